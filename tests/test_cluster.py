"""A real Dask scheduler with two workers on loopback, and what may happen to them: the answers are those of one
process. Parts, too, which need no cluster."""
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import LIVERSEG, content, run
from liverseg import cluster as room
from liverseg.cluster import Share, cluster
from liverseg.phantom import make_cohort
from liverseg.work import BadInput, each

DASK = str(Path(sys.executable).with_name('dask'))
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([
    str(Path(room.__file__).parents[1]), str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]))


class Dask:
    "A scheduler and workers as processes, which end with the block"
    def __init__(self, folder): self.folder, self.file, self.all = folder, folder / 'scheduler.json', []

    def start(self, *command):
        log = open(self.folder / f'dask{len(self.all)}.log', 'wb')
        # a group of its own: a worker and its nanny end together
        self.all.append(subprocess.Popen([DASK, *map(str, command)], stdout=log, stderr=log, cwd=self.folder, env=ENV,
                                         start_new_session=True))
        return self.all[-1]

    def scheduler(self):
        self.file.unlink(missing_ok=True)
        self.main = self.start('scheduler', '--host', '127.0.0.1', '--port', 0, '--dashboard-address', ':0',
                               '--scheduler-file', self.file)
        wait_for(lambda: self.file.exists() and self.file.read_text().endswith('}'))
        return self

    def worker(self, *more):
        return self.start('worker', '--scheduler-file', self.file, '--nthreads', 1, '--no-dashboard',
                          '--local-directory', self.folder, '--memory-limit', 0, *more)

    def stop(self, *these):
        for p in these or self.all:
            try: os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError: pass
            p.wait()


@contextmanager
def dask(folder, workers=2):
    folder.mkdir(exist_ok=True, parents=True)
    it = Dask(folder)
    try:
        it.scheduler()
        for _ in range(workers): it.worker()
        yield it
    finally: it.stop()


def wait_for(true, seconds=120):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, 'waited in vain'
        time.sleep(.02)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    with dask(tmp_path_factory.mktemp('dask')) as it:
        with cluster(str(it.file)) as pool: pool.client.wait_for_workers(2, timeout=60)
        yield it


# what the workers do, by its name in this module, which they find on their path: so it must import nothing heavy

def double(n): return 2*n


def where(_): return os.getcwd(), os.getpid()


def deadly(n):
    if n == 3: os.kill(os.getpid(), signal.SIGKILL)
    return n


def slow(n):
    time.sleep(.1)
    return n


def test_the_answers_are_those_of_one_process(two):
    "In order, in batches and without, in the folder of the client and in both workers"
    with cluster(str(two.file), needs=[two.folder, two.folder / 'not/there/yet']) as pool:
        assert list(each(double, list(range(40)), pool=pool)) == [2*n for n in range(40)]
        assert list(each(double, list(range(40)), pool=pool, batch=7)) == [2*n for n in range(40)]
        found = list(each(where, list(range(30)), pool=pool))
    assert {folder for folder, _ in found} == {os.getcwd()}
    assert len({pid for _, pid in found} - {os.getpid()}) == 2


def test_an_error_is_that_of_the_item(two):
    with cluster(str(two.file)) as pool:
        assert list(each(float, ['1', 'x', '2'], pool=pool, failed=lambda item, e: type(e))) == [1., ValueError, 2.]
        with pytest.raises(ValueError): list(each(float, ['1', 'x', '2'], pool=pool))


def test_no_cluster_is_no_pool():
    with cluster(None) as pool: assert pool is None


def complaint(address):
    with pytest.raises(BadInput) as e, cluster(str(address)): pass
    return str(e.value)


def test_wrong_addresses(tmp_path, monkeypatch):
    monkeypatch.setattr(room, '_PATIENCE', 2)
    (tmp_path / 'notes.txt').write_text('not a scheduler')
    for address in (tmp_path / 'nothing.json', tmp_path / 'notes.txt', 'node1'):
        assert 'neither an address' in complaint(address)
    for address in ('tcp://127.0.0.1:1', '127.0.0.1:1'): assert 'no Dask scheduler answers' in complaint(address)


MISFITS = dict(
    has=("import sys; sys.modules['liverseg'] = None", 'this worker has no liverseg'),
    version=("import liverseg; liverseg.__version__ = '0.0.9'", 'has liverseg 0.0.9, and here is 0'),
    see=("import genericpath, os; genericpath.exists = lambda path: 'tests' not in str(path) and os.access(path, 0)",
         'use a disk that all machines share'))


@pytest.mark.all
def test_workers_that_cannot_do_the_work(tmp_path, monkeypatch):
    "None at all; then, one after another, one without liverseg, one with another version, one without the disk"
    with dask(tmp_path, workers=0) as it:
        monkeypatch.setattr(room, '_PATIENCE', 1)
        assert 'has no workers' in complaint(it.file)
        monkeypatch.setattr(room, '_PATIENCE', 60)
        for name, (code, sentence) in MISFITS.items():
            (tmp_path / f'{name}.py').write_text(code)
            worker = it.worker('--preload', tmp_path / f'{name}.py', '--no-nanny')
            with pytest.raises(BadInput, match=sentence), cluster(str(it.file), needs=[__file__]): pass
            it.stop(worker)
            with cluster_client(it) as client: wait_for(lambda: not client.scheduler_info()['workers'])


@contextmanager
def cluster_client(it):
    from distributed import Client
    with Client(scheduler_file=str(it.file), set_as_default=False) as client: yield client


@pytest.mark.all
def test_tasks_for_a_gpu_go_where_one_is(tmp_path):
    said = []
    with dask(tmp_path, workers=1) as it:
        it.worker('--resources', 'GPU=1')
        with cluster(str(it.file)) as pool: pool.client.wait_for_workers(2, timeout=120)
        for gpu, used in ((False, 2), (True, 1)):
            with cluster(str(it.file), gpu=gpu, say=said.append) as pool:
                assert len(set(each(where, list(range(20)), pool=pool))) == used
    assert all(line.startswith(f'2 worker(s) at {it.file}; dashboard: http://127.0.0.1:') for line in said)


@pytest.mark.all
def test_a_misfit_that_comes_later_ends_the_work_in_a_sentence(tmp_path):
    (tmp_path / 'late.py').write_text(MISFITS['version'][0])
    with dask(tmp_path, workers=1) as it, pytest.raises(BadInput, match='has liverseg 0.0.9'):
        with cluster(str(it.file)) as pool:
            for n in each(slow, list(range(10000)), pool=pool):
                if n == 0: it.worker('--preload', tmp_path / 'late.py')


@pytest.mark.all
def test_a_misfit_that_comes_later_costs_nothing_that_is_finished(tmp_path):
    (tmp_path / 'late.py').write_text(MISFITS['version'][0])
    make_cohort(tmp_path / 'scans', n_train=40, n_test=1, seed=1, shape=(96, 96, 30))
    done, how = tmp_path / '.png.partial/.done', ['convert', tmp_path / 'scans', tmp_path / 'png', '--no-check']
    with dask(tmp_path, workers=1) as it:
        client = subprocess.Popen([*LIVERSEG, *map(str, how), '--cluster', str(it.file)], stderr=subprocess.PIPE,
                                  text=True)
        slices = lambda: sum('"slices"' in p.read_text() for p in done.glob('train.*.json'))
        wait_for(lambda: slices() > 1)
        it.worker('--preload', tmp_path / 'late.py')
        assert 'has liverseg 0.0.9' in client.communicate()[1] and client.returncode == 1
    assert 1 < slices() < 41
    run(*how, ok=0)
    run('convert', tmp_path / 'scans', tmp_path / 'whole', '--no-check', ok=0)
    assert content(tmp_path / 'png') == content(tmp_path / 'whole')


@pytest.mark.all
def test_a_worker_that_is_killed_is_replaced(two):
    "And only the item that kills each worker that gets it is lost"
    lost = lambda item, e: type(e).__name__
    with cluster(str(two.file)) as pool:
        pids = set(each(where, list(range(20)), pool=pool))
        answers = each(slow, list(range(60)), pool=pool)
        for n in answers:
            if n == 10: os.kill(next(iter(pids))[1], signal.SIGKILL)
            assert n == double(n) // 2
        assert n == 59
        assert list(each(deadly, list(range(8)), pool=pool, failed=lost)) == [0, 1, 2, 'WorkerLost', 4, 5, 6, 7]
        assert list(each(deadly, list(range(8)), pool=pool, batch=4, failed=lost)) == [
            0, 1, 2, 'WorkerLost', 4, 5, 6, 7]


@pytest.mark.all
def test_a_scheduler_that_is_killed_ends_the_work_in_a_sentence(tmp_path):
    with dask(tmp_path, workers=1) as it, pytest.raises(BadInput, match='the scheduler was lost'):
        with cluster(str(it.file)) as pool:
            for n in each(slow, list(range(1000)), pool=pool, failed=lambda item, e: None):
                if n == 3: it.stop(it.main)
    assert n < 100


def test_shares():
    "Each name belongs to one of them, whatever the others are"
    names = [f'scan{n}.nii.gz' for n in range(1000)] + ['leber ä', 'x\udcff']
    for n in (1, 2, 7):
        of = [[name for name in names if Share(k, n).holds(name)] for k in range(1, n + 1)]
        assert sorted(sum(of, [])) == sorted(names)
        assert min(map(len, of)) > 1000 / n * .7
    assert Share(1, 2).holds('anna') == Share(1, 2).holds('anna') != Share(2, 2).holds('anna')


def test_without_dask(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    assert '.[cluster]' in complaint('tcp://127.0.0.1:1')


# the commands, as a user gives them

def test_convert_and_check(two, cohort, png, tmp_path):
    done = run('convert', cohort, tmp_path / 'png', '--cluster', two.file, ok=0)
    assert content(tmp_path / 'png') == content(png)
    assert done.stderr.startswith('2 worker(s) at ') and '/status' in done.stderr
    for where in ([], ['--cluster', two.file]):
        run('check', cohort, '--json', tmp_path / f'{len(where)}.json', *where, ok=0)
    assert (tmp_path / '0.json').read_bytes() == (tmp_path / '2.json').read_bytes()


def test_relative_paths(two, src, png, tmp_path):
    "They mean what they mean to the user, whatever folder the workers are in"
    run('convert', 'data', 'png', '--cluster', os.path.relpath(two.file, tmp_path), ok=0, cwd=tmp_path)
    assert content(tmp_path / 'png') == content(png)


@pytest.fixture(scope='module')
def scans(cohort, tmp_path_factory):
    "Four scans and a file that is none"
    folder = tmp_path_factory.mktemp('scans') / 'scans'
    folder.mkdir()
    for path in cohort.rglob('*_orig.nii.gz'): (folder / path.name).write_bytes(path.read_bytes())
    (folder / 'broken.nii.gz').write_bytes(b'no scan')
    return folder


def files(folder):
    from test_spread import files
    return files(folder)


def report(folder):
    "Its files, without the command that stands at the end of the page"
    found = content(folder)
    return dict(found, **{'report.html': re.sub(b'<code>liverseg [^<]*</code>', b'', found['report.html'])})


@pytest.mark.all
def test_predict_and_evaluate(two, scans, png, cohort, model, tmp_path):
    "The same masks, tables and reports"
    here, there = [], ['--cluster', two.file]
    for where, name in ((here, 'a'), (there, 'b')):
        said = run('predict', scans, tmp_path / name, '--model', model, '--device', 'cpu', *where, ok=1).stderr
        assert said.count('error: ') == 1
        run('evaluate', png, tmp_path / f'{name}.report', '--model', model, '--device', 'cpu', *where, ok=0)
    assert files(tmp_path / 'a') == files(tmp_path / 'b')
    assert report(tmp_path / 'a.report') == report(tmp_path / 'b.report')
    truth = cohort / 'train/nii'
    for mask in truth.glob('*_liver.nii.gz'): # under the same names
        (tmp_path / 'truth').mkdir(exist_ok=True)
        (tmp_path / 'truth' / mask.name.replace('_liver', '_orig')).write_bytes(mask.read_bytes())
    for p in (tmp_path / 'a').glob('*_e04*'): p.unlink() # of the test split
    for where, name in ((here, 'c'), (there, 'd')):
        run('evaluate', '--pred', tmp_path / 'a', '--truth', tmp_path / 'truth', tmp_path / name, *where, ok=0)
    assert report(tmp_path / 'c') == report(tmp_path / 'd')


def test_parts(cohort, png, tmp_path):
    "In any order, and put together at the end; a missing one is named"
    for k in (3, 1): run('convert', cohort, tmp_path / 'png', '--part', f'{k}/3', ok=0)
    assert '2/3' in run('merge', tmp_path / 'png', ok=1).stderr
    run('convert', cohort, tmp_path / 'png', '--part', '2/3', ok=0)
    run('merge', tmp_path / 'png', ok=0)
    assert content(tmp_path / 'png') == content(png)
    assert 'no parts' in run('merge', tmp_path / 'other', ok=1).stderr
    for bad in ('0/3', '4/3', 'x'): assert 'is not a part' in run('convert', cohort, 'x', '--part', bad, ok=2).stderr


@pytest.mark.all
def test_parts_of_the_other_commands(scans, cohort, png, model, tmp_path):
    how = ['--model', model, '--device', 'cpu']
    run('predict', scans, tmp_path / 'a', *how, ok=1)
    run('evaluate', png, tmp_path / 'a.report', *how, '--split', 'train', ok=0)
    run('check', cohort, '--json', tmp_path / 'a.json', ok=0)
    for k in (2, 1):
        part = ['--part', f'{k}/2']
        assert run('predict', scans, tmp_path / 'b', *how, *part).returncode in (0, 1)
        run('evaluate', png, tmp_path / 'b.report', *how, *part, '--split', 'train', ok=0)
        run('check', cohort, '--json', tmp_path / 'b.json', *part, ok=0)
        if k == 2:
            for name in ('b', 'b.report', 'b.json'): assert '1/2' in run('merge', tmp_path / name, ok=1).stderr
    run('merge', tmp_path / 'b', ok=1)
    run('merge', f'{tmp_path}/b.report/', '--against', tmp_path / 'a.report', ok=0)
    run('merge', tmp_path / 'b.json', ok=0)
    assert files(tmp_path / 'a') == files(tmp_path / 'b')
    merged = content(tmp_path / 'b.report')
    assert b'against' in merged.pop('report.html') and merged.pop('against.csv') and merged.pop('against.json')
    assert merged == {k: v for k, v in content(tmp_path / 'a.report').items() if k != 'report.html'}
    assert (tmp_path / 'a.json').read_bytes() == (tmp_path / 'b.json').read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'a.json', 'a.report', 'b', 'b.json', 'b.report']


# killed in the middle

@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "SRC with eight larger cases, and its slices"
    from liverseg.phantom import make_cohort
    home = tmp_path_factory.mktemp('large')
    make_cohort(home / 'data', n_train=6, n_test=2, seed=1, shape=(160, 160, 40))
    run('convert', home / 'data', home / 'png', ok=0)
    return home


@contextmanager
def converting(large, tmp_path, it):
    "The command as a process, when the first case is done"
    done = subprocess.Popen([*LIVERSEG, 'convert', str(large / 'data'), str(tmp_path / 'png'), '--cluster',
                             str(it.file)], stderr=subprocess.PIPE, text=True, env=ENV)
    try:
        wait_for(lambda: list(tmp_path.glob('.png.partial/manifests/*.csv')) or done.poll() is not None)
        assert done.poll() is None, done.stderr.read()
        yield done
    finally: done.kill()


def same_as(large, tmp_path):
    assert content(tmp_path / 'png') == content(large / 'png')
    assert [p.name for p in tmp_path.iterdir() if 'png' in p.name] == ['png']


@pytest.mark.all
def test_killed_worker(two, large, tmp_path):
    with cluster_client(two) as client: pid = list(client.run(os.getpid).values())[0]
    with converting(large, tmp_path, two) as done:
        os.kill(pid, signal.SIGKILL)
        assert done.wait(120) == 0
    same_as(large, tmp_path)


@pytest.mark.all
def test_killed_client(two, large, tmp_path):
    "Given again at once, while its workers still work"
    with converting(large, tmp_path, two) as done:
        done.kill()
        done.wait()
    assert not (tmp_path / 'png').exists()
    run('convert', large / 'data', tmp_path / 'png', '--cluster', two.file, ok=0)
    same_as(large, tmp_path)


@pytest.mark.all
def test_killed_scheduler(large, tmp_path):
    with dask(tmp_path / 'dask') as it:
        with converting(large, tmp_path, it) as done:
            it.stop(it.main)
            assert done.wait(120) == 1
            said = done.stderr.read()
        assert 'the scheduler was lost' in said and 'Traceback' not in said and len(said.splitlines()) == 2
        assert not (tmp_path / 'png').exists()
        it.stop()
        it.scheduler(), it.worker()
        run('convert', large / 'data', tmp_path / 'png', '--cluster', it.file, ok=0)
    same_as(large, tmp_path)


@pytest.mark.all
def test_two_clients_on_one_folder(two, large, scans, model, tmp_path):
    "convert refuses the second; predict shares the scans"
    with converting(large, tmp_path, two) as done:
        second = run('convert', large / 'data', tmp_path / 'png', '--cluster', two.file)
        assert 'another run' in second.stderr or done.poll() == second.returncode == 0  # it came when all was done
        assert done.wait(120) == 0
    same_as(large, tmp_path)
    how = ['predict', scans, tmp_path / 'masks', '--model', model, '--device', 'cpu', '--cluster', two.file]
    both = [subprocess.Popen([*LIVERSEG, *map(str, how)], stderr=subprocess.PIPE, env=ENV) for _ in range(2)]
    assert [p.wait(200) for p in both] == [1, 1]  # for the file that is no scan
    run('predict', scans, tmp_path / 'alone', '--model', model, '--device', 'cpu', ok=1)
    assert files(tmp_path / 'masks') == files(tmp_path / 'alone')


POISON = """
import os, signal
import liverseg.nifti as nifti
def deadly(path, *args, read=nifti.open_nifti, **kwargs):
    if '_e02_orig' in str(path): os.kill(os.getpid(), signal.SIGKILL)
    return read(path, *args, **kwargs)
nifti.open_nifti = deadly
"""


@pytest.mark.all
def test_poisoned_scan(scans, cohort, model, tmp_path):
    "It kills each worker that reads it, and becomes a row; all others are done"
    (tmp_path / 'poison.py').write_text(POISON)
    with dask(tmp_path / 'dask', workers=0) as it:
        for _ in range(2): it.worker('--preload', tmp_path / 'poison.py')
        how = ['--model', model, '--device', 'cpu', '--cluster', it.file]
        done = run('predict', scans, tmp_path / 'masks', *how, ok=1)
        assert sorted(p.name for p in (tmp_path / 'masks').glob('*.nii.gz')) == [
            f'synth_e0{k}_orig.nii.gz' for k in (1, 3, 4)]
        assert 'synth_e02_orig.nii.gz: a worker was stopped by the system each time' in done.stderr
        how = ['--on-error', 'skip', '--cluster', it.file]
        done = run('convert', cohort, tmp_path / 'png', *how, ok=1)
        assert 'left out: ' in done.stderr and 'a worker was stopped by the system each time' in done.stderr
    assert sorted(p.name for p in (tmp_path / 'png').glob('*/images/*')) == [f'synth_e0{k}' for k in (1, 3, 4)]
