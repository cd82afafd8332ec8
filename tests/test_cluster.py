"""A real Dask scheduler with two workers on loopback, and what may happen to them: the answers are those of one
process. Parts, too, which need no cluster."""
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import LIVERSEG, content, run
from liverseg import cluster as room
from liverseg.cluster import Share, cluster
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

    def scheduler(self, port=0):
        self.file.unlink(missing_ok=True)
        self.main = self.start('scheduler', '--host', '127.0.0.1', '--port', port, '--dashboard-address', ':0',
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
def dask(folder, workers=2, **how):
    folder.mkdir(exist_ok=True, parents=True)
    it = Dask(folder)
    try:
        it.scheduler(**how)
        for _ in range(workers): it.worker()
        yield it
    finally: it.stop()


def wait_for(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, 'waited in vain'
        time.sleep(.02)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    with dask(tmp_path_factory.mktemp('dask')) as it:
        with cluster(str(it.file)) as pool: pool.client.wait_for_workers(2, timeout=60)
        yield it


# what the workers do, by its name in this module, which they find on their path

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


def test_a_misfit_that_comes_later_ends_the_work_in_a_sentence(tmp_path):
    (tmp_path / 'late.py').write_text(MISFITS['version'][0])
    with dask(tmp_path, workers=1) as it, pytest.raises(BadInput, match='has liverseg 0.0.9'):
        with cluster(str(it.file)) as pool:
            for n in each(slow, list(range(10000)), pool=pool):
                if n == 0: it.worker('--preload', tmp_path / 'late.py')


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


def test_a_scheduler_that_is_killed_ends_the_work_in_a_sentence(tmp_path):
    with dask(tmp_path, workers=1) as it, pytest.raises(BadInput, match='the scheduler was lost'):
        with cluster(str(it.file)) as pool:
            for n in each(slow, list(range(1000)), pool=pool, failed=lambda item, e: None):
                if n == 3: it.stop(it.main)
    assert n < 100


def test_parts():
    "Each name belongs to one of them, whatever the others are"
    names = [f'scan{n}.nii.gz' for n in range(1000)] + ['leber ä', 'x\udcff']
    for n in (1, 2, 7):
        of = [[name for name in names if Share(k, n).holds(name)] for k in range(1, n + 1)]
        assert sorted(sum(of, [])) == sorted(names)
        assert min(map(len, of)) > 1000 / n * .7
    assert Share(1, 2).holds('anna') == Share(1, 2).holds('anna') != Share(2, 2).holds('anna')


def test_without_dask(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    assert 'liverseg[cluster]' in complaint('tcp://127.0.0.1:1')
