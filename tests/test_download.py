"""Downloads from a server on this machine that is slow, lies, breaks off or sends hostile archives: a whole folder, or
one sentence and nothing."""
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from collections import namedtuple

import pytest

from conftest import content
from liverseg import archive, download as module
from liverseg.download import RECORD, SOURCES, Source, download
from liverseg.archive import unpack
from liverseg.phantom import make_cohort
from liverseg.work import BadInput, check_target


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    "Requests to this machine do not go through a proxy, and there is no wait between two attempts"
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr('pooch.core.time.sleep', lambda seconds: None)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A packed cohort: a zip, a tar and a tar.gz with one top folder"
    site = tmp_path_factory.mktemp('site')
    make_cohort(site / 'synth', n_train=1, n_test=1, shape=(32, 32, 6))
    for kind in ('zip', 'tar', 'gztar'): shutil.make_archive(site / 'synth', kind, site, 'synth')
    return site


@pytest.fixture
def good(site): return (site / 'synth.zip').read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    "Answers with the server's `answers`, each called with the handler"
    protocol_version = 'HTTP/1.0'

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answers[self.path](self)

    def send(self, body, status=200, **headers):
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        try: self.wfile.write(body)
        except ConnectionError: pass

    def log_message(self, *args): pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        httpd.asked, httpd.answers, httpd.release = [], {}, threading.Event()
        httpd.url = f'http://127.0.0.1:{httpd.server_port}/x.zip'
        threading.Thread(target=httpd.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
        yield httpd
        httpd.release.set()
        httpd.shutdown()


def served(server, answer, **kwargs):
    "A source at `server` that answers with bytes, or by a function of the handler"
    server.answers['/x.zip'] = answer if callable(answer) else lambda h: h.send(answer, Content_Length=len(answer))
    return Source('a test', server.url, 'a licence', 'a citation', **{'limit': 10**7, **kwargs})


def get(source, dst, **kwargs):
    "Download, and return the lines that were printed"
    said = []
    download('test', dst, source=source, say=said.append, **{'timeout': .3, 'retries': 0, **kwargs})
    return '\n'.join(said)


def refused(source, dst, contains, **kwargs):
    "The download must fail with one sentence and leave what was there before"
    before = content(dst.parent)
    with pytest.raises(BadInput) as e: get(source, dst, **kwargs)
    said = str(e.value)
    assert contains in said and len(said.splitlines()) == 1 and said.isprintable(), said
    assert content(dst.parent) == before
    assert not [p for p in dst.parent.iterdir() if p.name.startswith('.')]
    return said


# What goes well

@pytest.mark.parametrize('name', ['synth.zip', 'synth.tar', 'synth.tar.gz'])
def test_a_whole_folder(name, site, server, tmp_path):
    "The content of an archive is recognised, whatever the archive is called"
    said = get(served(server, (site / name).read_bytes()), tmp_path / 'data').splitlines()
    files = content(tmp_path / 'data')
    about = json.loads(files.pop(RECORD))
    assert files == content(site / 'synth')
    digest = hashlib.sha256((site / name).read_bytes()).hexdigest()
    assert said[1:3] == ['Licence: a licence', 'Cite: a citation']
    assert f'--sha256 {digest}' in said[3] and '4 files' in said[4]
    assert said[5] == f"Next: liverseg check {tmp_path / 'data'}"
    assert about['files'] == sorted(files) and about['hash'] == f'sha256:{digest}' and about['licence'] == 'a licence'
    assert [p.name for p in tmp_path.iterdir()] == ['data']
    for p in (tmp_path / 'data').rglob('*.nii.gz'): assert not p.stat().st_mode & 0o111


def test_the_licence_comes_before_the_first_byte(server, good, tmp_path):
    said = []
    def note(line): said.append((line, len(server.asked)))
    download('test', tmp_path / 'data', source=served(server, good), say=note)
    assert 'licence' in said[0][0] and said[0][1] == 0


def test_returns_the_path_it_was_given(server, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = download('test', 'new/data', source=served(server, good), say=lambda line: None)
    assert str(made) == os.path.join('new', 'data')
    assert (tmp_path / 'new/data/train/nii').is_dir()


def test_a_redirect_is_followed(server, good, tmp_path):
    source = served(server, lambda h: h.send(b'', 302, Location='/there?dl=1'))
    server.answers['/there?dl=1'] = lambda h: h.send(good, Content_Length=len(good))
    assert '4 files' in get(source, tmp_path / 'data')


def test_a_slow_server_is_waited_for(server, good, tmp_path):
    def slow(h):
        h.send(b'', Content_Length=len(good))
        for i in range(0, len(good), 4000): h.wfile.write(good[i:i + 4000]), time.sleep(.01)
    get(served(server, slow), tmp_path / 'data')


def test_a_server_that_recovers(server, good, tmp_path):
    "500 twice and half a file once, then it works; each further attempt is reported"
    replies = [lambda h: h.send(b'', 500), lambda h: h.send(b'', 503),
               lambda h: h.send(good[:999], Content_Length=len(good)), lambda h: h.send(good)]
    said = get(served(server, lambda h: replies[len(server.asked) - 1](h)), tmp_path / 'data', retries=3)
    assert 'attempt 4' in said and '4 files' in said and len(server.asked) == 4


def test_no_length_given(server, good, tmp_path): get(served(server, lambda h: h.send(good)), tmp_path / 'data')


def test_the_users_own_file(site, tmp_path):
    "The network is not used, and the file stays as it is"
    mine = shutil.copy(site / 'synth.tar', tmp_path / 'mine.bin')
    before = os.stat(mine)
    said = get(Source('a test', 'http://127.0.0.1:9/x', 'a licence', 'a citation', size=10**18), tmp_path / 'data',
               file=mine)
    assert '4 files' in said and os.stat(mine).st_mtime_ns == before.st_mtime_ns
    assert open(mine, 'rb').read() == (site / 'synth.tar').read_bytes()


def test_junk_of_macos_is_left_out(server, tmp_path):
    names = ['top/a.nii', '__MACOSX/top/._a.nii', 'top/._a.nii', 'top/.DS_Store']
    get(served(server, zipped(*names)), tmp_path / 'data')
    assert set(content(tmp_path / 'data')) == {'a.nii', RECORD}


def test_names_that_differ_in_case_are_reported(server, tmp_path):
    said = get(served(server, zipped('t/A.nii', 't/a.nii')), tmp_path / 'data')
    assert "'t/A.nii'" not in said and "'A.nii' and 'a.nii' differ only" in said


def test_a_bar_is_shown_on_a_terminal(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, 'watched', lambda: True)
    get(served(server, zipped('a.nii', body=os.urandom(3_000_000))), tmp_path / 'data')
    assert '3/3' in capsys.readouterr().out


def test_quiet_when_piped(server, good, tmp_path):
    "Neither a bar nor pooch's log, which names temporary files"
    source = served(server, good)
    code = f"from liverseg.download import *; download('t', 'data', source=Source('t', '{source.url}', 'l', 'c'))"
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == '' and len(done.stdout.splitlines()) == 6 and '\r' not in done.stdout


def test_bytes_as_they_are(server, good, tmp_path):
    "The server is asked not to compress, since length and checksum are those of the archive itself"
    def answer(h):
        assert h.headers['Accept-Encoding'] == 'identity'
        h.send(good)
    get(served(server, answer), tmp_path / 'data')


# Checksums

def test_hashes_that_match(server, good, tmp_path):
    md5, sha = hashlib.md5(good).hexdigest(), hashlib.sha256(good).hexdigest()
    said = get(served(server, good, hash=f'md5:{md5}'), tmp_path / 'data', sha256=f' {sha.upper()} ')
    assert '--sha256' not in said
    assert '--sha256' not in get(served(server, good, hash=f'md5:{md5}'), tmp_path / 'data')


@pytest.mark.parametrize('which', ['published', 'asked for', 'second of two', 'own file'])
def test_hashes_that_do_not_match(which, server, good, tmp_path):
    md5, sha, none = 'md5:' + hashlib.md5(good).hexdigest(), hashlib.sha256(good).hexdigest(), '0' * 64
    mine = tmp_path / 'mine.zip'
    mine.write_bytes(good)
    published = served(server, good, hash='md5:' + '0' * 32)
    if which == 'published': said = refused(published, tmp_path / 'data', md5[4:], retries=3)
    if which == 'asked for': said = refused(served(server, good), tmp_path / 'data', sha, sha256=none)
    if which == 'second of two': said = refused(published, tmp_path / 'data', md5[4:], sha256=sha)
    if which == 'own file': said = refused(published, tmp_path / 'data', md5[4:], file=mine)
    assert '000000, not' not in said and ', not 0000' in said
    assert ('was deleted' in said) == (which != 'own file') and mine.exists()
    assert len(server.asked) == (which != 'own file')  # a wrong file is not fetched again


def test_what_is_not_a_sha256(server, good, tmp_path):
    refused(served(server, good), tmp_path / 'data', 'is not a SHA-256', sha256='abc')
    assert not server.asked


# The network

@pytest.mark.parametrize('status, words, tries',
                         [(404, '404 Not Found', 1), (403, '403 Forbidden', 1), (500, '500 Internal Server Error', 3)])
def test_an_error_of_the_server(status, words, tries, server, tmp_path):
    said = refused(served(server, lambda h: h.send(b'<html>', status)), tmp_path / 'data', words, retries=2)
    assert server.url in said and '--from FILE' in said and len(server.asked) == tries


@pytest.mark.parametrize('url',
                         ['http://127.0.0.1:9/x.zip', 'http://nowhere.invalid/x.zip', 'http://[', 'ftps://127.0.0.1/x'])
def test_no_network(url, tmp_path):
    said = refused(Source('a test', url, 'a licence', 'a citation'), tmp_path / 'data', '--from FILE')
    assert said.startswith(url)


def test_a_proxy_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    refused(Source('a test', 'http://nowhere.invalid/x.zip', 'a licence', 'a citation'), tmp_path / 'data', 'proxy')


@pytest.mark.parametrize('when', ['before the answer', 'in the middle'])
def test_a_server_that_stalls(when, server, good, tmp_path):
    def stall(h):
        if when == 'in the middle': h.send(good[:1000], Content_Length=len(good)), h.wfile.flush()
        server.release.wait(5)
    started = time.time()
    refused(served(server, stall), tmp_path / 'data', 'does not answer in time', timeout=.2)
    assert time.time() - started < 2


def test_half_a_file(server, good, tmp_path):
    refused(served(server, lambda h: h.send(good[:-1], Content_Length=len(good))), tmp_path / 'data', 'broke off')


def test_half_a_file_where_the_library_does_not_notice(server, good, tmp_path, monkeypatch):
    "Older urllib3 accepts the half; our own comparison of the length does not"
    import urllib3
    monkeypatch.setattr(urllib3.response.HTTPResponse, '_init_length', lambda self, method: None)
    refused(served(server, lambda h: h.send(good[:-1], Content_Length=len(good))), tmp_path / 'data', 'broke off')


@pytest.mark.parametrize('name', ['synth.zip', 'synth.tar', 'synth.tar.gz'])
@pytest.mark.parametrize('told', ['too short a length', 'no length'])
def test_half_a_file_that_claims_to_be_whole(name, told, site, server, tmp_path):
    body = (site / name).read_bytes()
    half = body[:len(body) // 2]
    answer = (lambda h: h.send(half)) if told == 'no length' else lambda h: h.send(body, Content_Length=len(half))
    refused(served(server, answer), tmp_path / 'data', 'truncated or damaged')


def test_a_web_page(server, tmp_path):
    page = b'<!DOCTYPE html><title>Moved</title>'
    said = refused(served(server, page), tmp_path / 'data',
                   "is not a zip or tar archive (it begins with '<!DOCTYPE html')")
    assert said == refused(served(server, page, hash='md5:' + '0' * 32), tmp_path / 'data', 'html')
    refused(served(server, b''), tmp_path / 'data', 'is empty')


def test_a_length_that_is_not_a_number(server, good, tmp_path):
    refused(served(server, lambda h: h.send(good, Content_Length='many')), tmp_path / 'data', '--from FILE')


def test_an_endless_stream(server, tmp_path):
    def endless(h):
        h.send(b'')
        try:
            while not server.release.is_set(): h.wfile.write(bytes(1 << 16))
        except OSError: pass
    refused(served(server, endless, limit=10**6), tmp_path / 'data', 'sends more than 1.0 MB', timeout=5)
    refused(served(server, lambda h: h.send(b'', Content_Length=10**7), limit=10**6), tmp_path / 'data',
            'sends more than 1.0 MB')


# The disk

def free(n):
    return lambda folder: namedtuple('usage', 'total used free')(10**12, 0, n)


def test_no_room(server, good, tmp_path, monkeypatch):
    "Known before the start, announced by the server, or seen in the archive"
    monkeypatch.setattr(module.shutil, 'disk_usage', free(len(good) + 10))
    refused(served(server, good, size=len(good)), tmp_path / 'data', 'make room')
    assert not server.asked
    refused(served(server, good), tmp_path / 'data', f'has {module._bytes(len(good) + 10)} free')
    mine = tmp_path / 'mine.zip'
    mine.write_bytes(zipped('a.nii', body=bytes(10**6)))
    refused(served(server, good), tmp_path / 'data', 'needs 1.0 MB', file=mine)


def test_the_size_of_a_large_download_is_announced(tmp_path):
    said = []
    with pytest.raises(BadInput):
        download('msd', tmp_path / 'data', say=said.append,
                 source=Source('t', 'http://127.0.0.1:9/x', 'l', 'c', size=26_900_000), retries=0)
    assert '26.9 MB will be downloaded' in said[1]
    assert SOURCES['msd'].size > 20 * 10**9


@pytest.mark.parametrize('size', [3_000, 30_000])
def test_a_disk_that_fills(size, site, tmp_path):
    "A real limit on the size of a file, in a process of its own: the archive is too big, or a member is"
    (tmp_path / 'big.zip').write_bytes(zipped('a.nii', body=bytes(100_000)))
    code = f'''
        import resource
        from liverseg.download import download, Source
        from liverseg.archive import unpack
        from liverseg.work import BadInput
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
        try: download('t', 'data', source=Source('t', 'u', 'l', 'c'), file='big.zip', say=lambda line: None)
        except BadInput as e: print(e)'''
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True)
    assert 'cannot be written (File too large)' in done.stdout and done.stderr == ''
    assert [p.name for p in tmp_path.iterdir()] == ['big.zip']


def test_a_disk_that_fills_during_the_download(server, good, tmp_path, monkeypatch):
    def full(self, *args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module.pooch.HTTPDownloader, '__call__', full)
    refused(served(server, good), tmp_path / 'data', 'No space left on device); make room')


# The target

def test_an_unknown_name(tmp_path):
    with pytest.raises(BadInput, match="give one of ircad, msd"): download('lits', tmp_path / 'data')


def test_a_target_that_belongs_to_somebody_else(server, good, tmp_path):
    (tmp_path / 'data').mkdir()
    get(served(server, good), tmp_path / 'data')  # empty: taken
    get(served(server, good), tmp_path / 'data')  # our own: replaced
    (tmp_path / 'data/train/nii/mine.nii.gz').write_bytes(b'x')
    os.utime(tmp_path / 'data/train/nii/mine.nii.gz', (0, 0))  # brought along, older than the download
    refused(served(server, good), tmp_path / 'data', 'mine.nii.gz: was added or changed')
    (tmp_path / 'data/train/nii/mine.nii.gz').unlink()
    (tmp_path / 'data/train/nii/synth_e01_liver.nii.gz').write_bytes(b'corrected')
    os.utime(tmp_path / 'data/train/nii/synth_e01_liver.nii.gz', (2**31, 2**31))
    refused(served(server, good), tmp_path / 'data', 'synth_e01_liver.nii.gz: was added or changed')
    (tmp_path / 'data' / RECORD).write_text('[]')
    refused(served(server, good), tmp_path / 'data', 'not something of ours')
    refused(served(server, good), tmp_path / 'data' / RECORD, 'is a file')


def test_an_earlier_download_stays_when_the_next_fails(server, good, tmp_path):
    get(served(server, good), tmp_path / 'data')
    refused(served(server, good[:-100]), tmp_path / 'data', 'truncated')
    assert (tmp_path / 'data/train/nii/synth_e01_orig.nii.gz').exists()


def test_the_users_file_inside_the_target(server, good, tmp_path):
    get(served(server, good), tmp_path / 'data')
    mine = tmp_path / 'data/mine.zip'
    mine.write_bytes(good)
    refused(served(server, good), tmp_path / 'data', 'mine.zip', file=mine)


@pytest.mark.parametrize('what', ['missing', 'a folder', 'unreadable'])
def test_no_file_of_the_users(what, server, good, tmp_path, monkeypatch):
    mine = tmp_path / 'mine.zip'
    if what == 'a folder': mine.mkdir()
    if what == 'unreadable':
        mine.write_bytes(good)
        def deny(path, *args): raise PermissionError(13, 'Permission denied', str(path))
        monkeypatch.setattr(archive, 'open', deny, raising=False)
    refused(served(server, good), tmp_path / 'data',
            'cannot be read (Permission denied)' if what == 'unreadable' else 'no such file', file=mine)


def test_ctrl_c(server, good, tmp_path, monkeypatch):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    for where, name in ((archive, '_write_member'), (module, '_verify'), (module, 'fetch')):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(where, name, stop)
            get(served(server, good), tmp_path / 'data')
        assert list(tmp_path.iterdir()) == []


def test_sigkill(server, good, tmp_path):
    "Nothing has the target's name, and the next run removes what the killed one left"
    def half(h):
        h.send(bytes(1 << 18), Content_Length=1 << 20), h.wfile.flush()
        server.release.wait(20)
    source = served(server, half)
    code = f"from liverseg.download import *; download('t', 'data', source=Source('t', '{source.url}', 'l', 'c'))"
    done = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    started = time.time()
    begun = lambda: any(p.stat().st_size for p in tmp_path.glob('.data.partial.archive/*'))
    while not begun() and done.poll() is None and time.time() - started < 20:
        time.sleep(.01)
    os.kill(done.pid, signal.SIGKILL)
    done.wait()
    assert sum(p.stat().st_size for p in tmp_path.glob('.data.partial.archive/*')) > 0
    assert not (tmp_path / 'data').exists()
    get(served(server, good), tmp_path / 'data')
    assert [p.name for p in tmp_path.iterdir()] == ['data']


def test_an_archive_of_a_killed_run_is_not_used(server, good, tmp_path):
    (tmp_path / '.data.partial.archive').mkdir()
    (tmp_path / '.data.partial.archive/archive').write_bytes(zipped('stale.nii'))
    get(served(server, good), tmp_path / 'data')
    assert 'stale.nii' not in content(tmp_path / 'data') and [p.name for p in tmp_path.iterdir()] == ['data']


# Hostile archives

def zipped(*names, body=b'x' * 100, mode=None, **kwargs):
    "A zip file with these members"
    made = io.BytesIO()
    with zipfile.ZipFile(made, 'w', zipfile.ZIP_DEFLATED) as z:
        for n in names:
            info = zipfile.ZipInfo(n)
            if mode: info.create_system, info.external_attr = 3, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, body)
    return made.getvalue()


def tarred(*members, mode='w', **kwargs):
    "A tar file with these members: a name, or (name, type, link)"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, **kwargs) as t:
        for m in members:
            name, kind, link = m if isinstance(m, tuple) else (m, tarfile.REGTYPE, '')
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 100 if kind == tarfile.REGTYPE else 0
            t.addfile(info, io.BytesIO(b'x' * 100))
    return made.getvalue()


def patched(raw, pairs):
    "Bytes with the first of each pair replaced by the second, wherever it occurs"
    for old, new in pairs:
        assert old in raw and len(old) == len(new)
        raw = raw.replace(old, new)
    return raw


def raw_name(name, kind):
    "An archive with a member of exactly this name, which zipfile and tarfile would tidy up"
    stand_in = 'Q' * len(name)
    if kind == 'zip': return patched(zipped('good.nii', stand_in), [(stand_in.encode(), name.encode())])
    return tarred('good.nii', name)


def lying_zip(claim):
    "A member of 5 MB of zeros whose headers claim another size"
    size = 5_000_000
    return patched(zipped('a.nii', body=bytes(size)), [(struct.pack('<L', size), struct.pack('<L', claim))])


def negative_tar():
    info = tarfile.TarInfo('a.nii')
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = b'\xff' * 10 + b'\xfe\x00'
    raw[148:156] = b'%06o\0 ' % (256 + sum(raw[:148]) + sum(raw[156:512]))
    return bytes(raw) + bytes(1024)


def long_name_bomb(size):
    "A tar.gz whose first header announces a name of `size` bytes"
    info = tarfile.TarInfo('././@LongLink')
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b'x' * min(size, 1 << 20) + tarred('a.nii'))


def chain_of_long_names(n=3000):
    info = tarfile.TarInfo('././@LongLink')
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    return (info.tobuf(tarfile.GNU_FORMAT) + b'x\0' + bytes(510)) * n + tarred('a.nii')


OUT = 'leads out of the folder'
OUTSIDE = ['../a.nii', 'x/../../a.nii', '/abs/a.nii', '..\\a.nii', 'C:\\a.nii', 'C:a.nii', '\\\\host\\share\\a.nii',
           '//host/a.nii', 'x/.. /a.nii', '..']
HOSTILE = {
    **{f'zip {n!r}': (raw_name(n, 'zip'), OUT) for n in OUTSIDE},
    **{f'tar {n!r}': (raw_name(n, 'tar'), OUT) for n in OUTSIDE},
    'zip NUL': (raw_name('a\0../b', 'zip'), OUT),
    'zip symlink': (zipped('good.nii', 'link', body=b'/etc/passwd', mode=stat.S_IFLNK | 0o777),
                    'is a link or a device'),
    'zip device': (zipped('null', mode=stat.S_IFCHR | 0o666), 'is a link or a device'),
    'zip encrypted': (patched(zipped('a.nii'),
                              [(b'PK\x03\x04\x14\0\0\0', b'PK\x03\x04\x14\0\x01\0'),
                               (b'PK\x01\x02\x14\x03\x14\0\0\0', b'PK\x01\x02\x14\x03\x14\0\x01\0')]),
                      "its member 'a.nii' is encrypted"),
    'zip bomb by header': (zipped('a.nii', body=bytes(2 * 10**7)), 'unpacks to more than'),
    'zip bomb that claims little': (lying_zip(100), 'truncated or damaged'),
    'zip that claims too much': (lying_zip(6_000_000), 'not as long as it claims'),
    'zip of wrong bytes': (patched(zipped('a.nii', body=bytes(range(256))), [(bytes(range(50, 60)), bytes(10))]) ,
                           'truncated or damaged'),
    'zip of an odd method': (patched(zipped('a.nii'), [(b'\x14\0\0\0\x08\0', b'\x14\0\0\0\x60\0')]),
                             'truncated or damaged'),
    'zip twice': (patched(zipped('a.nii', 'b.nii'), [(b'b.nii', b'a.nii')]), 'occurs twice'),
    'zip twice, in other words': (zipped('x/a.nii', 'x//a.nii'), 'occurs twice'),
    'zip file and folder': (zipped('a', 'a/b', 'c'), 'both as a file and as a folder'),
    'zip with our name': (zipped(RECORD, 'a.nii'), 'a name that we need'),
    'zip without files': (zipped(), 'holds no files'),
    'zip of junk alone': (zipped('__MACOSX/a'), 'holds no files'),
    'zip without a name': (raw_name('.', 'zip'), OUT),
    'zip with a name too long': (zipped('x' * 300), 'cannot be written (File name too long)'),
    'zip that clears the screen': (zipped('../\x1b[2J' + 'y' * 1000), OUT),
    'tar symlink': (tarred('a.nii', ('link', tarfile.SYMTYPE, '/etc')), 'is a link or a device'),
    'tar symlink inside': (tarred('a.nii', ('link', tarfile.SYMTYPE, 'a.nii')), 'is a link or a device'),
    'tar hard link': (tarred('a.nii', ('link', tarfile.LNKTYPE, '../../x')), 'is a link or a device'),
    'tar device': (tarred(('null', tarfile.CHRTYPE, '')), 'is a link or a device'),
    'tar pipe': (tarred(('pipe', tarfile.FIFOTYPE, '')), 'is a link or a device'),
    'tar twice': (tarred('a.nii', './a.nii'), 'occurs twice'),
    'tar below zero': (negative_tar(), 'negative size'),
    'tar of a huge name': (long_name_bomb(10**11), 'a header of 100000000000 bytes'),
    'tar of a large name': (long_name_bomb(10**6), 'a header of 1000448 bytes'),
    'tar of names of names': (chain_of_long_names(), 'truncated or damaged'),
    'tar of bytes that are no text': (tarred('a\udcff.nii', '../b\udcff.nii', errors='surrogateescape'), OUT),
    'tar without its end': (tarred('a.nii', 'b.nii')[:1024], 'its end is missing'),
    'tar with a broken header': (patched(tarred('a.nii', 'b.nii'), [(b'b.nii', b'c.nii')]), 'its end is missing'),
    'tar.gz cut in its checksum': (gzip.compress(tarred('a.nii'))[:-4], 'truncated or damaged'),
    'tar.gz with a wrong checksum': (gzip.compress(tarred('a.nii'))[:-8] + bytes(8), 'truncated or damaged'),
    'gzip of a page': (gzip.compress(b'<html>'), 'is not a zip or tar archive'),
    'tar.bz2': (tarred('a.nii', mode='w:bz2'), 'is not a zip or tar archive'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile(name, server, tmp_path):
    raw, words = HOSTILE[name]
    started = time.time()
    said = refused(served(server, raw), tmp_path / 'data', words)
    assert server.url in said or words.startswith('cannot be written')
    assert time.time() - started < 3 and len(said) < 400


def test_nothing_is_written_before_everything_is_checked(tmp_path):
    (tmp_path / 'x.zip').write_bytes(zipped('a.nii', 'b.nii', '../c.nii'))
    with pytest.raises(BadInput): unpack(tmp_path / 'x.zip', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_too_many_members(tmp_path):
    (tmp_path / 'x.zip').write_bytes(zipped(*'abcd'))
    assert len(unpack(tmp_path / 'x.zip', tmp_path / 'out', most=4)) == 4
    with pytest.raises(BadInput, match='3 members'): unpack(tmp_path / 'x.zip', tmp_path / 'other', most=3)


def test_names_in_other_alphabets(server, tmp_path):
    get(served(server, zipped('Пациент 1/Leber ä.nii', 'x/a')), tmp_path / 'data')
    # and again over itself
    get(served(server, tarred('Пациент 1/Leber ä.nii', 'a\udcff.nii', errors='surrogateescape')), tmp_path / 'data')
    get(served(server, zipped('a')), tmp_path / 'data')


def test_a_conversion_does_not_take_the_folder_for_its_own(server, good, tmp_path):
    get(served(server, good), tmp_path / 'data')
    with pytest.raises(BadInput):
        check_target(tmp_path / 'data', ('train', 'valid', 'test', 'manifest.csv', 'dataset.json'), 'dataset.json')
