"Conversion: bad cases, interrupted runs, previews, odd names, sizes and places."
import errno
import json
import multiprocessing.connection
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import liverseg.convert as lib
import liverseg.runs as runs
import liverseg.single as single
from conftest import LIVERSEG
from liverseg.cli import main
from liverseg.phantom import write_series
from liverseg.volume import to_slices
from liverseg.cases import read_volume
from test_bad_input import change, image, mask

THREE = [(-150, 250), (0, 100), (-1000, 1000)]


def cli(*args, ok=0):
    "Run `liverseg` in this process; `ok` is the exit status that must come out"
    done = CliRunner().invoke(main, [str(a) for a in args])
    assert done.exit_code == ok and isinstance(done.exception, SystemExit | None), (done.output, done.exception)
    return done


def tree(folder):
    "All that is below a folder, with the files' bytes"
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob('*')}


def pixels(dst, name): return np.array(Image.open(dst / name))
def volume(path, data, affine=np.diag([.8, .8, 3, 1])):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
def tiny(src, name, hu, labels=None, split='test'):
    volume(src / split / 'nii' / f'{name}_orig.nii.gz', hu)
    if labels is not None: volume(src / split / 'nii' / f'{name}_liver.nii.gz', labels)


def finished(part):
    "The subjects that a run which was killed has converted"
    found = {p.name.split('.')[1]: json.loads(p.read_text()) for p in part.glob('.done/*synth*.json')}
    return {name for name, record in found.items() if 'slices' in record}


def truncate(path): path.write_bytes(path.read_bytes()[:5000])
def touching(src, n=0):
    "Make a good case one to warn of, twice: the mask reaches the last slice and is small"
    def on_top(a):
        return np.where(np.indices(a.shape)[2] == a.shape[2] - 1, a.max(2, keepdims=True), 0).astype(np.uint8)
    change(mask(src, n=n), on_top)


# ---- bad cases

@pytest.mark.parametrize('more', [(), ('--workers', 2), ('--no-check',), ('--no-check', '--workers', 2),
                                  ('--bits', 16, '--preview')])
def test_skip_leaves_out_what_stop_stops_for(more, src, tmp_path):
    good = shutil.copytree(src, tmp_path / 'good')
    for f in (image(good), mask(good), image(good, n=1)): f.unlink()
    mask(good, n=0).unlink()
    cli('convert', good, tmp_path / 'wanted', *more)
    truncate(image(src)), image(src, n=1).unlink()
    before = set(tmp_path.iterdir())
    done = cli('convert', src, tmp_path / 'png', *more, ok=1)
    assert 'synth_e01' in done.stderr or '--no-check' in more  # without the check, only the first case is known
    assert 'synth_e02' in done.stderr and set(tmp_path.iterdir()) == before and not done.stdout
    done = cli('convert', src, tmp_path / 'png', '--on-error', 'skip', *more, ok=1)
    assert done.stdout.startswith('2 subject(s), 44 slices, ') and done.stdout.endswith('; 2 left out\n')
    why = sorted(done.stderr.splitlines())
    assert len(why) == 2 and all(line.startswith('left out: ' + str(src)) for line in why)
    assert 'truncated' in why[1] + why[0] and 'without an image' in why[0] + why[1]
    assert tree(tmp_path / 'png') == tree(tmp_path / 'wanted')
    assert set(tmp_path.iterdir()) == before | {tmp_path / 'png'}


@pytest.mark.parametrize('more', [(), ('--no-check',)])
def test_all_bad_writes_nothing_and_says_why(more, src, tmp_path):
    for f in src.rglob('*_orig.nii.gz'): truncate(f)
    before = tree(tmp_path)
    said = cli('convert', src, tmp_path / 'png', '--on-error', 'skip', *more, ok=1).stderr
    assert 'no case is left' in said and tree(tmp_path) == before
    assert all(f'synth_e0{n}_orig.nii.gz: is truncated' in said for n in (1, 2, 3, 4))


def test_bad_input_makes_no_folders(src, tmp_path):
    truncate(image(src))
    cli('convert', src, tmp_path / 'new/deep/png', ok=1)
    assert not (tmp_path / 'new').exists()


def test_strict_takes_warnings_for_errors(src, tmp_path):
    touching(src)
    assert 'warning: synth_e01' in cli('convert', src, tmp_path / 'png').stderr
    said = cli('convert', src, tmp_path / 'a', '--strict', ok=1).stderr
    assert said.startswith(f'liverseg: {image(src)}: ') and len(said.splitlines()) == 1
    assert not (tmp_path / 'a').exists()
    done = cli('convert', src, tmp_path / 'a', '--strict', '--on-error', 'skip', ok=1)
    assert done.stdout.startswith('3 subject(s), 66 slices') and done.stdout.endswith('; 1 left out\n')
    assert done.stderr == f'left out: {said[10:]}'
    for f in (image, mask): f(src).unlink()
    cli('convert', src, tmp_path / 'b', '--strict')
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b')


def test_strict_needs_the_check(src, tmp_path):
    assert '--strict needs the check' in cli('convert', src, tmp_path / 'a', '--strict', '--no-check', ok=1).stderr
    assert not (tmp_path / 'a').exists()


def test_a_test_scan_under_another_name_is_left_out_of_training(src, tmp_path):
    for f in (image, mask): shutil.copy(f(src, 'test'), f(src))
    assert 'same voxels' in cli('convert', src, tmp_path / 'png', ok=1).stderr
    cli('convert', src, tmp_path / 'png', '--on-error', 'skip', ok=1)
    assert set(pd.read_csv(tmp_path / 'png/manifest.csv')['subject']) == {'synth_e02', 'synth_e03', 'synth_e04'}


def test_a_subject_with_two_faults_is_one(src, tmp_path):
    for f in (image, mask): shutil.copy(f(src, 'test'), f(src))
    change(mask(src), lambda a: a * 3)
    done = cli('convert', src, tmp_path / 'a', '--on-error', 'skip', ok=1)
    assert done.stderr.count('left out: ') == 2 and done.stdout.endswith('; 1 left out\n')


# ---- killed, and started again

def killed(src, dst, at, **options):
    "Convert in a process that SIGKILL ends: at its `at`-th picture, half written, or on entering the function `at`"
    def work():
        os.setsid()
        count, whole, pid = multiprocessing.Value('i'), single._png, os.getpid()
        def die(*args):
            os.kill(pid, signal.SIGKILL)
            time.sleep(100)  # this may be a worker, which must end as its parent has
        def half(picture, path, *rest):
            with count.get_lock():
                count.value += 1
                if count.value == at: Path(path).write_bytes(b'\x89PNG'), die()
            whole(picture, path, *rest)
        if isinstance(at, int): single._png = half
        elif at == 'finish': runs.join_cases = die
        else:
            rename = Path.rename
            Path.rename = lambda p, to: die() if '.partial' in p.name else rename(p, to)
        lib.convert(src, dst, **options)
    child = multiprocessing.get_context('fork').Process(target=work)
    child.start()
    try: # workers hold the sentinel too
        assert multiprocessing.connection.wait([child.sentinel], 30), 'workers outlived their parent'
    finally:
        try: os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError: pass
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert dst.with_name(f'.{dst.name}.lock').exists()  # a dead process's lock is no lock


def to_dicom(src, n):
    "Make an image of the cohort a folder with a DICOM series"
    vol = read_volume(image(src, n=n))
    write_series(vol.data, vol.affine, image(src, n=n).with_name(image(src, n=n).name.replace('.nii.gz', '')))
    image(src, n=n).unlink()


ALL = dict(on_error='skip', preview=True, windows=THREE)


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('at', [1, 60, 131, 'finish', 'rename'])
def test_killed_with_all_options(at, workers, src, tmp_path, monkeypatch):
    to_dicom(src, 2), truncate(image(src, n=1))
    whole = lib.convert(src, tmp_path / 'whole', **ALL)
    assert len(whole.attrs['skipped']) == 1
    killed(src, tmp_path / 'png', at, workers=workers, **ALL)
    assert not (tmp_path / 'png').exists()
    before = finished(tmp_path / '.png.partial')
    assert workers == 2 or len(before) == {1: 0, 60: 1, 131: 2, 'finish': 3, 'rename': 3}[at]
    done, write = [], lib.write_slices
    monkeypatch.setattr(lib, 'write_slices', lambda case, *rest: done.append(case.subject) or write(case, *rest))
    again = lib.convert(src, tmp_path / 'png', **ALL)
    assert sorted([*done, *before]) == ['synth_e01', 'synth_e03', 'synth_e04'] and again.attrs == whole.attrs
    assert tree(tmp_path / 'png') == tree(tmp_path / 'whole')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['data', 'png', 'whole']


@pytest.mark.parametrize('what', ['a mask', 'a split', 'labels', 'a subject gone', 'a subject gone bad', 'a window',
                                  'bits', 'no preview', 'spacing'])
def test_killed_and_something_changed(what, src, tmp_path):
    "What was finished before the kill is used only if it would come out the same now"
    for f in src.rglob('*_liver.nii.gz'):  # with tumours
        change(f, lambda a: a + (np.indices(a.shape)[0] > 20) * (a > 0).astype(np.uint8))
    killed(src, tmp_path / 'png', 100, preview=True)
    now = dict(preview=True)
    if what == 'a mask': change(mask(src), lambda a: a[::-1])
    if what == 'a split': now['splits'] = {'synth_e01': 'test', 'synth_e02': 'valid'}
    if what == 'labels': now['liver'] = (2,)
    if what == 'a subject gone': image(src).unlink(), mask(src).unlink()
    if what == 'a subject gone bad': truncate(image(src)), now.update(on_error='skip')
    if what == 'a window': now['windows'] = (0, 255)
    if what == 'bits': now['bits'] = 16
    if what == 'no preview': now = {}
    if what == 'spacing': now['spacing'] = (1, 1, 2)
    lib.convert(src, tmp_path / 'png', **now)
    lib.convert(src, tmp_path / 'clean', **now)
    assert tree(tmp_path / 'png') == tree(tmp_path / 'clean')


@pytest.mark.parametrize('at', [60, 'finish', 'rename'])
def test_killed_over_an_earlier_result(at, src, tmp_path):
    lib.convert(src, tmp_path / 'png', bits=16)
    before = tree(tmp_path / 'png')
    killed(src, tmp_path / 'png', at)
    # the earlier one stays until the new one is whole
    assert tree(tmp_path / ('.png.old' if at == 'rename' else 'png')) == before
    lib.convert(src, tmp_path / 'png'), lib.convert(src, tmp_path / 'clean')
    assert tree(tmp_path / 'png') == tree(tmp_path / 'clean')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['clean', 'data', 'png']


@pytest.mark.parametrize('stamp', ['older', 'junk', 'empty', 'none', 'bytes'])
def test_a_left_over_of_another_version(stamp, src, tmp_path):
    lib.convert(src, tmp_path / 'clean')
    options = json.loads((tmp_path / 'clean/dataset.json').read_text())  # as they were before --preview
    part = tmp_path / '.png.partial'
    tiny(part, 'litter', np.zeros((2, 2, 2), np.int16))
    (part / '.done').mkdir()
    for n in (1, 2, 3): (part / f'.done/train.synth_e0{n}.json').write_text('{"stamp": 1}')
    older = json.dumps(options, sort_keys=True).encode()
    raw = dict(older=older, junk=b'{', empty=b'', none=None, bytes=b'\xff\xfe\x00')[stamp]
    if raw is not None: (part / '.done/options.json').write_bytes(raw)
    lib.convert(src, tmp_path / 'png')
    assert tree(tmp_path / 'png') == tree(tmp_path / 'clean')


def test_an_empty_record_is_no_record(src, tmp_path):
    killed(src, tmp_path / 'png', 100)
    next(tmp_path.glob('.png.partial/.done/train*.json')).write_bytes(b'')
    lib.convert(src, tmp_path / 'png')


def test_two_runs_at_once(src, tmp_path):
    lib.convert(src, tmp_path / 'clean')
    command = [*LIVERSEG, 'convert', str(src), str(tmp_path / 'png')]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [p.communicate()[1] for p in children]
    assert 0 in [p.returncode for p in children]
    assert all('another run' in s if p.returncode else not s for p, s in zip(children, said)), said
    assert tree(tmp_path / 'png') == tree(tmp_path / 'clean')


@pytest.mark.parametrize('options', [dict(bits=16), ALL, dict(check=False, on_error='skip'),
                                     dict(splits={'synth_e02': 'valid'}, liver=(1,))])
def test_workers_change_nothing(options, src, tmp_path):
    to_dicom(src, 2)
    if 'on_error' in options: truncate(image(src, n=1))
    one, two = (lib.convert(src, tmp_path / f'{n}', workers=n, **options) for n in (1, 2))
    assert tree(tmp_path / '1') == tree(tmp_path / '2') and one.attrs == two.attrs


def test_no_time_in_the_result(cohort, tmp_path, monkeypatch):
    lib.convert(cohort, tmp_path / 'a', preview=True)
    time.sleep(1.1)
    monkeypatch.chdir(cohort.parent)
    lib.convert(cohort.name, tmp_path / 'b', preview=True)
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b')


# ---- previews, names, sizes, places

def test_preview(src, tmp_path):
    mask(src, 'test').unlink()
    cli('convert', src, tmp_path / 'png', '--preview', '--window', '0,200', '--window', '-150,250')
    cli('convert', src, tmp_path / 'plain', '--window', '0,200', '--window', '-150,250')
    sheets = {f'preview/synth_e0{n}.png' for n in (1, 2, 3, 4)}
    assert tree(tmp_path / 'png').keys() - tree(tmp_path / 'plain').keys() == {'preview', *sheets}
    for name in sheets:
        sheet = pixels(tmp_path / 'png', name)
        assert sheet.shape[1] == 4 * 192 and sheet.dtype == np.uint8
        tiles = [t for row in np.array_split(sheet, 3) for t in np.array_split(row, 4, 1)]
        outlined = [(t == (255, 140, 0)).all(-1).any() for t in tiles]
        assert all(t.any() for t in tiles) and (all(outlined) if 'e04' not in name else not any(outlined)), name
    cli('convert', src, tmp_path / 'png', '--window', '0,200', '--window', '-150,250')  # it was not asked for this time
    assert tree(tmp_path / 'png') == tree(tmp_path / 'plain')


NAMES = ['a b', 'x.1', 'x.1.nii', 'Müller', '患者7', "o'neil", 'a,b', '"q"', 'a', 'a_000', '#1', '%s', '{z}', '-v',
         'images', 'é', 'e\u0301', ' ', 'nan', '007', '1e3']


def test_names(tmp_path):
    for n, name in enumerate(NAMES):
        tiny(tmp_path / 'src', name, np.full((5, 4, 3), n, np.int16), np.zeros((5, 4, 3), np.uint8), 'train')
    cli('convert', tmp_path / 'src', tmp_path / 'a ö', '--preview', '--bits', 16)
    killed(tmp_path / 'src', tmp_path / 'b', 40, preview=True, bits=16)
    cli('convert', tmp_path / 'src', tmp_path / 'b', '--preview', '--bits', 16, '--workers', 2)
    assert tree(tmp_path / 'a ö') == tree(tmp_path / 'b')
    table = pd.read_csv(tmp_path / 'b/manifest.csv', dtype=str, keep_default_na=False)
    assert sorted(table['subject'].unique()) == sorted(NAMES) and table['image'].nunique() == 3 * len(NAMES)
    for r in table.itertuples():
        assert (pixels(tmp_path / 'b', r.image) == 1024 + NAMES.index(r.subject)).all()
        assert (tmp_path / 'src' / r.source).exists()


@pytest.mark.parametrize('n', [1, 2, 1100])
def test_number_of_slices(n, tmp_path):
    labels = (np.random.default_rng(n).random((5, 4, n)) > .5).astype(np.uint8)
    tiny(tmp_path / 'src', 'long', labels.astype(np.int16) + np.arange(n, dtype=np.int16), labels)
    cli('convert', tmp_path / 'src', tmp_path / 'png', '--preview', '--bits', 16)
    table = pd.read_csv(tmp_path / 'png/manifest.csv')
    assert table['z'].tolist() == list(range(n)) and table['image'].iloc[-1] == f'test/images/long/long_{n - 1:03d}.png'
    got = [np.stack([pixels(tmp_path / 'png', f) for f in table[c]]) for c in ('image', 'mask')]
    assert np.array_equal(got[1], to_slices(labels))
    assert np.array_equal(got[0] - 1024, to_slices(labels) + np.arange(n)[:, None, None])
    assert (pixels(tmp_path / 'png', 'preview/long.png').shape[0] > 0)


def test_a_target_in_the_source(src, tmp_path):
    lib.convert(src, tmp_path / 'png')
    before = tree(src)
    for dst in (src / 'png', src / 'train/png', src / 'train/nii/.png'):
        for _ in range(2): cli('convert', src, dst)
        assert tree(dst) == tree(tmp_path / 'png')
        shutil.rmtree(dst)
    assert tree(src) == before
    for dst in (src, src / 'train', src / 'train/nii', tmp_path, image(src)):
        cli('convert', src, dst, ok=1)
    assert tree(src) == before


@pytest.mark.parametrize('workers', [1, 2])
def test_disk_full(workers, src, tmp_path, monkeypatch):
    whole = single._png
    def full(picture, path, *rest):
        if '_011.png' in str(path): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        whole(picture, path, *rest)
    lib.convert(src, tmp_path / 'clean')
    monkeypatch.setattr(single, '_png', full)
    said = cli('convert', src, tmp_path / 'png', '--workers', workers, ok=1).stderr
    assert 'No space left on device' in said and 'free space' in said and len(said.splitlines()) == 1
    assert not (tmp_path / 'png').exists()
    monkeypatch.undo()
    cli('convert', src, tmp_path / 'png')
    assert tree(tmp_path / 'png') == tree(tmp_path / 'clean')


def test_a_write_that_fails_names_its_place(src, tmp_path):
    done = subprocess.run([*LIVERSEG, 'convert', str(src), str(tmp_path / 'png')], capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert done.returncode == 1 and 'Traceback' not in done.stderr and not (tmp_path / 'png').exists()
    assert str(tmp_path) in done.stderr


def test_places_that_cannot_be_written(src, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'closed').mkdir(mode=0o500)
    closed = [tmp_path / 'closed/png'] if os.getuid() else []
    for dst in (tmp_path / 'file', tmp_path / 'file/png', '/proc/png', tmp_path / ('x' * 250), *closed):
        said = cli('convert', src, dst, ok=1).stderr
        assert Path(dst).name[:200] in said and len(said.splitlines()) == 1 and ';' in said, said
    assert (tmp_path / 'file').read_text() == 'mine' and not list((tmp_path / 'closed').iterdir())
