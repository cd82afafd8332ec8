"""From one scan to a million: what spreading the work costs, what it needs, and where it breaks first.

    python benchmarks/scale.py                      # all of it (ten minutes on two quiet cores)
    python benchmarks/scale.py spread simulate      # some of it; the rest of scale.json stays as it is
    python benchmarks/scale.py --quick              # all of it in a few minutes, with fewer scans

    spread      converting with one and two workers, by processes and by Dask, against one process
    overhead    milliseconds that a task costs, which does nothing
    memory      of the process that hands out the work, over 1000 to 100,000 stub scans
    real        10,000 small synthetic scans converted for real, in steps, so that the time per scan is seen to be even
    capacity    CPU seconds, memory and disk of one scan of ordinary size, for check and convert, and for predict
    simulate    up to 10,000 workers: by arithmetic on measured times, and with Dask's own scheduler and stub tasks

Seconds by the clock are those of the machine as it was; the load that was on it is recorded.
"""

import argparse, asyncio, contextlib, heapq, json, logging, os, random, resource, shutil, signal, subprocess
import sys, tempfile, time
from pathlib import Path

import numpy as np

from liverseg.cases import Case
from liverseg.check import CaseCheck
from liverseg.cluster import cluster
from liverseg.convert import make_dataset
from liverseg.phantom import Subject, make_subject, write_subject
from liverseg.work import _Processes, each

HERE = Path(__file__).parent
FOUND = HERE / 'study/scale.json'
PRICE = .04 # dollars for a core and an hour: an assumption, about what clouds ask for without a contract


def processor(children=False):
    "CPU seconds of this process, or of all that it started and that have ended"
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak():
    "The most memory that this process had, in MB; not what it got from its parent, as in getrusage"
    with contextlib.suppress(OSError):
        return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])/1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def small_scans(folder, n, first=0):
    "Scans of 16×16×4 voxels, all different, in a folder that `convert` reads"
    rng, nii = np.random.default_rng(first), Path(folder) / 'train/nii'
    labels = np.zeros((16, 16, 4), np.uint8)
    labels[4:10, 5:12, 1:3] = 1
    for k in range(first, first + n):
        hu = rng.normal(-50, 300, labels.shape).clip(-1000, 1000).astype(np.int16)
        hu[labels > 0] = 60
        write_subject(Subject(hu, labels, None, np.diag([2., 2., 5., 1.]), k), nii, f'stub_{k:06d}')


@contextlib.contextmanager
def dask(workers):
    "A scheduler and workers on this machine, as the command line starts them, and the executor of them"
    command, env = Path(sys.executable).with_name('dask'), dict(os.environ, OMP_NUM_THREADS='1')
    with tempfile.TemporaryDirectory() as tmp:
        file, all = Path(tmp) / 'scheduler.json', []
        def start(*args):
            all.append(subprocess.Popen([command, *args, '--scheduler-file', file], cwd=tmp, env=env,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        try:
            start('scheduler', '--host', '127.0.0.1', '--port', '0', '--no-dashboard')
            while not (file.exists() and file.read_text().endswith('}')): time.sleep(.05)
            for _ in range(workers): start('worker', '--nthreads', '1', '--no-dashboard', '--memory-limit', '0')
            with cluster(str(file)) as pool:
                pool.client.wait_for_workers(workers, timeout=120)
                pool.scheduler = all[0].pid
                yield pool
        finally:
            for p in all:
                with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
                p.wait()


@contextlib.contextmanager
def ways():
    "How to spread work: none at all, and by one and two processes and Dask workers, started already"
    with _Processes(1) as one, _Processes(2) as two, dask(1) as dask_one, dask(2) as dask_two:
        pools = {'one process, no pool': None, 'processes 1': one, 'processes 2': two, 'dask 1': dask_one,
                 'dask 2': dask_two}
        for pool in (one, two): list(each(abs, list(range(8)), pool=pool)) # they are there now
        yield pools


def spread(args):
    "Seconds to convert the same scans, the ways taking turns"
    took = {}
    with tempfile.TemporaryDirectory() as tmp, ways() as pools:
        for k in range(n := args.scans_spread):
            subject = make_subject(k, (64, 64, 24))
            write_subject(subject, Path(tmp) / 'scans/train/nii', f'phantom_{k:03d}')
        for name, pool in list(pools.items())*(args.rounds + 1): # the first round warms up
            start = time.perf_counter()
            make_dataset(Path(tmp) / 'scans', Path(tmp) / 'png', pool=pool)
            took.setdefault(name, []).append(time.perf_counter() - start)
            shutil.rmtree(Path(tmp) / 'png')
    best = {name: min(seconds[1:]) for name, seconds in took.items()}
    for name, seconds in best.items(): print(f'  {name:22} {seconds/n*1e3:7.1f} ms a scan, ratio to one process '
                                             f'{best["one process, no pool"]/seconds:.2f}')
    return dict(scans=n, seconds=best)


def of_scheduler(pool):
    "CPU seconds of a pool's scheduler, if it has one"
    import psutil # of Dask
    return sum(psutil.Process(pool.scheduler).cpu_times()[:2]) if hasattr(pool, 'scheduler') else 0.


def overhead(args):
    "Milliseconds that a task costs beside its work: by the clock, and CPU of the parent and of the scheduler"
    found = {}
    with ways() as pools:
        for name, pool in pools.items():
            list(each(abs, list(range(100)), pool=pool))
            before = time.perf_counter(), processor(), of_scheduler(pool)
            assert list(each(abs, list(range(args.tasks)), pool=pool)) == list(range(args.tasks))
            after = time.perf_counter(), processor(), of_scheduler(pool)
            found[name] = [(b - a)*1e3/args.tasks for a, b in zip(before, after)]
    for name, (clock, parent, scheduler) in found.items():
        print(f'  {name:22} {clock:.3f} ms a task, CPU {parent:.3f} in the parent, {scheduler:.3f} in the scheduler')
    return dict(tasks=args.tasks, milliseconds=found)


class Here:
    "An executor that does the work at once, in this process: what is left is the memory of the parent"
    ahead = 1000
    def submit(self, func, *args):
        from concurrent.futures import Future
        done = Future()
        done.set_result(func(*args))
        return done


def stub_scans(n):
    return [Case(f'subject_{k:07d}', 'train', Path(f'/data/scans/site_{k%100:03d}/subject_{k:07d}/ct.nii.gz'),
                 Path(f'/data/scans/site_{k%100:03d}/subject_{k:07d}/liver.nii.gz')) for k in range(n)]


def stub_report(case):
    report = CaseCheck(case.subject, case.split, str(case.image), str(case.mask), (512, 512, 200), (.7, .7, 2.), 'RAS',
                       (-1024, 1500), (0, 1), 1500.)
    report.key = f'{hash(case.subject):032x}'
    return report


def stub_convert(n):
    "The conversion's own bookkeeping, with cases that come from nowhere and are never written"
    import liverseg.convert as convert
    import liverseg.runs as room
    convert.find_cases = lambda src, **finding: stub_scans(n)
    room._look = lambda job, case: stub_report(case)
    room._convert_case = lambda job, case: (200, 80, True)
    room.join_cases = lambda place, wanted, meta: []
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp) / 'src').mkdir()
        assert make_dataset(Path(tmp) / 'src', Path(tmp) / 'png', pool=Here())['slices'] == 200*n


def stub_predict(n):
    "The rows of a folder of scans, streamed and made a table"
    import liverseg.folder as room
    def row(job, wait, scan):
        return dict(scan=scan.name, volume_ml=1500.25, expected_dice=.951, liver_found=True, touches=['top'],
                    warnings=['The liver touches the top of the scan.'], seconds=20.1, error=None), []
    room._segment_one = row
    scans = [Path(f'/data/scans/subject_{k:07d}.nii.gz') for k in range(n)]
    with tempfile.TemporaryDirectory() as tmp:
        job = room._Job('liver', 'cpu', '', Path(tmp) / 'masks', '.nii.gz', {}, False)
        assert len(room._in_turn(job, [], scans, Here(), None, print)) == n


def stub_check(n):
    "A check, whose reports are compared with each other and listed"
    import liverseg.check as room
    room.examine = stub_report
    assert len(room.check(stub_scans(n), pool=Here())) == n


STUBS = dict(convert=stub_convert, predict=stub_predict, check=stub_check)


def memory(args):
    "Peak memory of the parent by the number of scans, each measured in a process of its own"
    found = {}
    for name in STUBS:
        found[name] = {}
        for n in args.stubs:
            code = (f'import sys; sys.path.insert(0, {str(HERE)!r}); import scale; '
                    f'scale.STUBS[{name!r}]({n}); print(scale.peak())')
            said = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
            if said.returncode: sys.exit(said.stderr[-2000:])
            found[name][n] = round(float(said.stdout.split()[-1]))
        sizes = sorted(found[name])
        if len(sizes) > 1:
            more = (found[name][sizes[-1]] - found[name][sizes[0]])*1024/(sizes[-1] - sizes[0])
            print(f'  {name:8}', ', '.join(f'{n:,}: {found[name][n]} MB' for n in sizes), f'; {more:.2f} kB a scan')
    return found


def real(args):
    "Seconds to convert small scans, added to one folder in steps, and again when nothing is new"
    steps, found = args.steps, []
    with tempfile.TemporaryDirectory() as tmp:
        src, dst = Path(tmp) / 'scans', Path(tmp) / 'png'
        for k, n in enumerate(steps):
            before = steps[k - 1] if k else 0
            small_scans(src, n - before, before)
            start, cpu = time.perf_counter(), processor() + processor(True)
            told = make_dataset(src, dst, workers=args.workers)
            took, cpu = time.perf_counter() - start, processor() + processor(True) - cpu
            assert told['subjects'] == n, told
            found.append(dict(scans=n, new=n - before, seconds=took, cpu=cpu, parent_mb=round(peak())))
            print(f'  {n:6} scans, {n - before} of them new: {took:.1f} s, {took/(n - before)*1e3:.1f} ms a new scan, '
                  f'{cpu/(n - before)*1e3:.1f} of CPU; the parent {peak():.0f} MB', flush=True)
        start = time.perf_counter()
        make_dataset(src, dst, workers=args.workers)
        nothing = time.perf_counter() - start
        print(f'  nothing new among {steps[-1]} scans: {nothing:.1f} s')
    return dict(workers=args.workers, steps=found, nothing_new=nothing)


MEASURE = """
import contextlib, io, resource, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
kind, scan, png, out = sys.argv[1], *map(Path, sys.argv[2:])
def used(): r = resource.getrusage(resource.RUSAGE_SELF); return r.ru_utime + r.ru_stime
if kind == 'check':
    from liverseg.check import check
    from liverseg.layouts import find_cases
    def work(k): assert not check(find_cases(scan.parents[2]))[0].errors
elif kind == 'convert':
    from liverseg.convert import make_dataset
    def work(k): make_dataset(scan.parents[2], png if k else out / 'first', (0, 255)) # as the network that ships
elif kind == 'predict':
    from liverseg.predict import Segmenter, predict
    segmenter = Segmenter.load()
    def work(k): predict(scan, out / f'{{k}}.nii.gz', segmenter, say=lambda s: None)
else:
    from liverseg.evaluate import evaluate
    def work(k): evaluate(png, out / str(k), device='cpu')
with contextlib.redirect_stdout(io.StringIO()):
    start = used()
    work(0)
    first, start, clock = used() - start, used(), time.perf_counter()
    work(1)
took = used() - start, time.perf_counter() - clock, first
from scale import peak
print('found', *took, peak())
"""
KINDS = ('check', 'convert', 'predict', 'evaluate')


def capacity(args):
    "One scan of ordinary size, synthetic, in a fresh process: the second of two, since a worker loads its network once"
    found = dict(price=PRICE, shape=args.shape)
    with tempfile.TemporaryDirectory() as tmp:
        tmp, nii = Path(tmp), Path(tmp) / 'scans/test/nii'
        write_subject(make_subject(7, tuple(args.shape), (.75, .75, 2.5)), nii, 'ordinary')
        scan = nii / 'ordinary_orig.nii.gz'
        found['scan_mb'] = scan.stat().st_size/1e6
        for kind in KINDS:
            (tmp / kind).mkdir()
            command = [sys.executable, '-W', 'ignore', '-c', MEASURE.format(here=str(HERE)), kind, scan, tmp / 'png',
                       tmp / kind]
            said = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
            if said.returncode: sys.exit(said.stderr[-2000:])
            cpu, clock, first, most = map(float, said.stdout.split('found')[-1].split())
            made = tmp / 'png' if kind == 'convert' else tmp / kind
            files = [p for p in made.rglob('*') if p.is_file() and not p.name.startswith('0.') and p.parts[-2] != '0']
            size = sum(p.stat().st_size for p in files)/1e6
            found[kind] = dict(cpu=cpu, clock=clock, first=first, worker_mb=round(most), files=len(files), disk_mb=size)
            hours = 1e6*cpu/3600
            print(f'  {kind:8} {cpu:.1f} CPU s a scan ({3600/cpu:.0f} scans an hour and core), {most:.0f} MB a worker, '
                  f'{size:.1f} MB in {len(files)} files; a million: {hours:,.0f} core hours, {hours*PRICE:,.0f} $')
    return found


def night(workers, scans, seconds, window, task, lost=1e-3, long=.01, seed=0):
    """What a cluster of so many workers reaches: the share of the workers' time in which scans are worked on.

    `seconds` is the mean of a scan, log-normal; a share `long` takes ten times as long; a share `lost` loses its
    worker, which comes back after a minute, while the scan begins anew; `task` is what scheduler and client need for
    each scan, one after the other. `window` is how far the work may be ahead of the oldest scan that is not done."""
    rng, free, ends = random.Random(seed), [0.]*workers, []
    draw = lambda: seconds/(1 + 9*long)*rng.lognormvariate(-.125, .5)*(10 if rng.random() < long else 1)
    now = oldest = work = 0. # `oldest`: when all scans up to the one that leaves the window are done
    for k in range(scans):
        if k >= window: oldest = max(oldest, ends[k - window])
        now = max(now + task, oldest)
        length, start = draw(), max(now, heapq.heappop(free))
        while rng.random() < lost:
            heapq.heappush(free, start + length*rng.random() + 60)
            start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + length)
        ends.append(start + length)
        work += length
    return work/(workers*sorted(ends)[int(.95*scans)])*.95 # the last scans, which leave workers idle, are left out


async def _stub(seconds):
    await asyncio.sleep(seconds)
    return seconds


def one_loop(args):
    "Dask's own scheduler with as many workers as asked for, all in one process and on one event loop, and stub tasks"
    import dask
    from distributed import Client, Scheduler, Worker
    dask.config.set({'distributed.comm.timeouts.connect': '120s', 'distributed.scheduler.work-stealing': True,
                     'distributed.worker.profile.enabled': False, 'distributed.admin.tick.interval': '1h',
                     'distributed.admin.system-monitor.interval': '1h'}) # a thousand on one loop must not all tick
    async def run(n):
        rng = random.Random(0)
        async with Scheduler(protocol='inproc://', dashboard=False, dashboard_address=None, port=0) as scheduler:
            workers = [Worker(scheduler.address, nthreads=1, memory_limit=0, dashboard=False, validate=False)
                       for _ in range(n)]
            start = time.perf_counter()
            for k in range(0, n, 50): await asyncio.gather(*workers[k:k + 50])
            joined = time.perf_counter() - start
            async with Client(scheduler.address, asynchronous=True) as client:
                found = dict(workers=n, joined=joined, load=os.getloadavg()[0])
                for name, seconds in dict(nothing=0, work=args.stub_seconds).items():
                    tasks = max(2000, n) if not seconds else 3*n
                    times = [seconds*rng.lognormvariate(-.125, .5) for _ in range(tasks)]
                    start, cpu = time.perf_counter(), processor()
                    futures = client.map(_stub, times, pure=False)
                    await client.gather(futures)
                    took, cpu = time.perf_counter() - start, processor() - cpu
                    found[name] = dict(tasks=tasks, seconds=took, cpu_ms_a_task=cpu/tasks*1e3, busy=sum(times)/(n*took))
                    del futures
            found['mb'] = peak()
            for k in range(0, n, 50): await asyncio.gather(*(w.close() for w in workers[k:k + 50]))
        return found
    logging.disable(logging.CRITICAL)
    return asyncio.run(run(args.loop_workers))


def simulate(args):
    "Where it breaks first"
    known = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    seconds = known.get('capacity', {}).get('predict', {}).get('cpu', 20.)
    # scheduler and client are processes of their own: the slower one decides
    task = max(known.get('overhead', {}).get('milliseconds', {}).get('dask 2', [0, 1.])[1:])/1e3
    found = dict(seconds=seconds, task=task, lost=1e-3, long=.01, rows=[])
    print(f'  scans of {seconds:.1f} s, one in 100 ten times as long, one task in 1000 loses its worker, '
          f'{task*1e3:.2f} ms a task')
    ahead = lambda n: max(1000, 4*n) # as liverseg.cluster has it
    for n in args.simulated:
        scans = min(100*n, 500_000) if args.quick else min(200*n, 2_000_000)
        strict, ours = (night(n, scans, seconds, far*ahead(n), task) for far in (1, 64))
        found['rows'].append(dict(workers=n, scans_a_second=n/seconds, strict=strict, ours=ours))
        print(f'  {n:6} workers, {n/seconds:7.1f} scans a second: busy {ours:.0%}; {strict:.0%} if no more than '
              f'{ahead(n)} scans could be ahead of the oldest')
    if args.loop_workers:
        found['one_loop'] = loop = one_loop(args)
        for name in ('nothing', 'work'):
            print(f'  Dask, {loop["workers"]} workers on one event loop, {loop[name]["tasks"]} tasks of '
                  f'{args.stub_seconds if name == "work" else 0} s: {loop[name]["seconds"]:.1f} s, '
                  f'{loop[name]["cpu_ms_a_task"]:.2f} CPU ms a task, workers busy {loop[name]["busy"]:.0%}; '
                  f'{loop["mb"]:.0f} MB')
    return found


PARTS = dict(spread=spread, overhead=overhead, memory=memory, real=real, capacity=capacity, simulate=simulate)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', default=list(PARTS), help=' '.join(PARTS))
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--loop-workers', type=int, default=1000, help='of Dask in one process; 0: none')
    args = parser.parse_args()
    q = args.quick
    args.scans_spread, args.rounds, args.tasks, args.workers = (8, 1, 500, 2) if q else (40, 3, 5000, 2)
    args.stubs, args.steps = ([1000, 100_000], [250, 500, 1000]) if q else ([1000, 10_000, 100_000],
                                                                           [1250, 2500, 5000, 10_000])
    args.shape, args.simulated, args.stub_seconds = [512, 512, 120], [10, 100, 1000, 10_000], 20.
    if odd := set(args.parts) - set(PARTS): parser.error(f'{odd.pop()} is none of {", ".join(PARTS)}')
    if len(args.parts) > 1: # each in a process of its own, so that its memory is its own, too
        how = ['--quick']*q + ['--loop-workers', str(args.loop_workers)]
        for name in args.parts: subprocess.run([sys.executable, __file__, name, *how], check=True)
        return
    name, = args.parts
    print(name, flush=True)
    result = dict(PARTS[name](args), quick=q, load=[round(v, 1) for v in os.getloadavg()])
    from common import machine, write # it loads torch, which the parent of a conversion does not
    write(FOUND, (json.loads(FOUND.read_text()) if FOUND.is_file() else {}) | {name: result, 'machine': machine()})


if __name__ == '__main__': main()
