"""How fast NIfTI volumes become PNG slices: `liverseg.convert` beside a plain loop, MONAI and the least possible work.

    pip install -e '.[bench]'
    python benchmarks/convert.py [--rounds 3] [--json FILE] [--only NAME ...]

Each contender converts the same volumes, in turn, each time in a process of its own that has imported everything before
the clock starts, by converting two tiny volumes, and each process has one thread. Two sets of volumes are measured
apart: eight synthetic ones, made on the spot, and real ones if ../shared/data/ircad exists
({train,test}/nii/{subject}_orig.nii.gz and {subject}_liver.nii.gz). CPU seconds count the process and its workers;
other work on the machine moves them less than wall seconds.

  ours       liverseg.convert.convert, one process, without the check
  ours-2     the same with two workers, whose start counts
  ours-check one process, every case checked before the first slice is written, as is the default
  loop       what tutorials do: nibabel's get_fdata, a window, Image.save slice by slice
  monai      LoadImaged, Orientationd, ScaleIntensityRanged, then PILWriter slice by slice
  floor      both files decompressed, the finished slices encoded and written, nothing else, with the fastest libraries
             found whose PNG are at most 10 % larger than Pillow's: imagecodecs for both
  floor-isal the same with a PNG put together by hand around ISA-L's deflate, faster than any PNG library that was found
"""
import argparse, json, math, os, platform, resource, shutil, statistics, subprocess, sys, tempfile, time
from contextlib import suppress
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent/'shared'/'data'/'ircad'
LOW, HIGH = -150, 250 # HU that become 0 and 255
LIBRARIES = 'numpy nibabel pillow monai torch imagecodecs isal liverseg'.split()
# so it cannot be a contender
MED2IMAGE = 'med2image 2.6.6 is not measured: it calls get_data, which nibabel 5 has removed.'
NOTES = """CPU seconds are user and system time of the process and its workers; those of ours-2 include the start of the
workers. Peak is memory above what was held after the imports and a tiny conversion, in MB and in int16 volumes; for
ours-2 it is that of the largest process, not the sum. The floors hold the finished slices from the start, so their peak
says nothing. MONAI's pixels are not compared: PILWriter truncates where the others round, and its slices are turned by
half a turn."""

# Contenders: NAME(src, dst) imports, and prepares what shall not be timed; it returns the function that is timed.

def ours(src, dst, **kw):
    from liverseg.convert import convert
    return lambda: convert(src, dst, **{'workers': 1, 'check': False, **kw})

def pairs(src):
    "(split, subject, image, mask) of each case"
    for image in sorted(Path(src).glob('*/nii/*_orig.nii.gz')):
        subject = image.name.removesuffix('_orig.nii.gz')
        yield image.parts[-3], subject, image, image.with_name(f'{subject}_liver.nii.gz')

def targets(dst, split, subject):
    "A function from slice number to the two files of that slice, named as ours are"
    for kind in ('images', 'masks'): (Path(dst)/split/kind/subject).mkdir(parents=True, exist_ok=True)
    return lambda z: [Path(dst)/split/kind/subject/f'{subject}_{z:03d}.png' for kind in ('images', 'masks')]

def plain_slices(image, mask):
    "The pixels of the image and of the mask, slice by slice, as a tutorial would compute them"
    import nibabel as nib, numpy as np
    both = [nib.as_closest_canonical(nib.load(p)).get_fdata() for p in (image, mask)]
    for z in range(both[0].shape[2]):
        hu, labels = (a[::-1, ::-1, z].T for a in both)
        yield np.rint((np.clip(hu, LOW,
                               HIGH) - LOW) / (HIGH - LOW) * 255).astype(np.uint8), (labels > 0).astype(np.uint8)

def loop(src, dst):
    from PIL import Image
    def run():
        for split, subject, *files in pairs(src):
            names = targets(dst, split, subject)
            for z, both in enumerate(plain_slices(*files)):
                for a, path in zip(both, names(z)): Image.fromarray(a).save(path)
    return run

def monai(src, dst):
    import numpy as np, torch
    from monai.data import PILWriter
    from monai.transforms import Compose, LoadImaged, Orientationd, ScaleIntensityRanged
    torch.set_num_threads(1)
    read = Compose([LoadImaged(['image', 'mask'], ensure_channel_first=True),
                    Orientationd(['image', 'mask'], axcodes='RAS'),
                    ScaleIntensityRanged('image', LOW, HIGH, 0, 255, clip=True)])
    def run():
        for split, subject, image, mask in pairs(src):
            names, case = targets(dst, split, subject), read(dict(image=image, mask=mask))
            for z in range(case['image'].shape[3]):
                for kind, path in zip(('image', 'mask'), names(z)):
                    writer = PILWriter(output_dtype=np.uint8, scale=None)
                    writer.set_data_array(case[kind][..., z])
                    writer.write(path)
    return run

def floor(src, dst, encoders=None):
    # libdeflate for gzip; for PNG run lengths alone, of differences (16) or of the pixels themselves (8)
    import imagecodecs, numpy as np
    # image, mask
    encoders = encoders or [lambda a, f=f: imagecodecs.png_encode(a, 1, strategy=3, filter=f) for f in (16, 8)]
    ready = [(case, [tuple(map(np.ascontiguousarray, both)) for both in plain_slices(*case[2:])])
             for case in pairs(src)]
    def run():
        for (split, subject, *files), slices in ready:
            names = targets(dst, split, subject)
            for path in files: imagecodecs.gzip_decode(path.read_bytes())
            for z, both in enumerate(slices):
                for a, path, encode in zip(both, names(z), encoders): path.write_bytes(encode(a))
    return run

def floor_isal(src, dst):
    import struct
    import numpy as np
    from isal import isal_zlib
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', isal_zlib.crc32(kind + data))
    # PNG specification, 9.2: filter 1 is the difference to the pixel on the left, filter 0 none
    def encode(a, difference):
        rows = np.empty((a.shape[0], a.shape[1] + 1), np.uint8)
        rows[:, 0], rows[:, 1:] = difference, a
        if difference: rows[:, 2:] -= a[:, :-1]
        head = struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 8, 0, 0, 0, 0)
        pixels = chunk(b'IDAT', isal_zlib.compress(rows, 1))
        return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + pixels + chunk(b'IEND', b'')
    return floor(src, dst, [lambda a: encode(a, 1), lambda a: encode(a, 0)])

CONTENDERS = {'ours': ours, 'ours-2': partial(ours, workers=2), 'ours-check': partial(ours, check=True),
              'loop': loop, 'monai': monai, 'floor': floor, 'floor-isal': floor_isal}

# One run, in a process of its own

def memory(key):
    "VmRSS (now) or VmHWM (the most so far) of this process in bytes"
    return next(int(line.split()[1])*1024 for line in open('/proc/self/status') if line.startswith(key + ':'))

def usage():
    "CPU seconds of this process and of its workers that have ended"
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage,
                                                    (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

# bytes, of workers that have ended
def largest_child(): return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024

def child(name, src, dst, tiny):
    "Convert the tiny set, so that all is imported, then convert once more; prints what that cost as JSON"
    # workers too: a worker's peak is counted above one that had next to nothing to do
    CONTENDERS[name](tiny, f'{dst}-tiny')()
    run = CONTENDERS[name](src, dst)
    try: Path('/proc/self/clear_refs').write_text('5') # VmHWM starts again from what is held now
    except OSError: before = None # not Linux: the peak stays unknown
    else: before, worker = memory('VmRSS'), largest_child()
    cpu, wall = usage(), time.perf_counter()
    run()
    cost = dict(cpu=usage() - cpu, wall=time.perf_counter() - wall, peak=None)
    if before: cost['peak'] = max(memory('VmHWM') - before, largest_child() - worker)
    print(json.dumps(cost))

def measure(name, src, dst):
    "Run a contender in a fresh process and look at what it wrote"
    env = dict(os.environ, **{f'{lib}_NUM_THREADS': '1' for lib in ('OMP', 'OPENBLAS', 'MKL')}, PYTHONWARNINGS='ignore')
    command = [sys.executable, __file__, '--child', name, str(src), str(dst), str(dst.parent/'tiny')]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    shutil.rmtree(f'{dst}-tiny', ignore_errors=True)
    if done.returncode: sys.exit(f'{name} failed:\n{done.stderr}')
    sizes = [p.stat().st_size for p in Path(dst).rglob('*') if p.is_file()]
    return json.loads(done.stdout.splitlines()[-1]) | dict(bytes=sum(sizes), files=len(sizes))

# A set of volumes

def same_pixels(one, other):
    "How many PNG two folders hold; stops unless their names and pixels are the same"
    import numpy as np
    from PIL import Image
    names = [sorted(p.relative_to(root) for p in Path(root).rglob('*.png')) for root in (one, other)]
    if names[0] != names[1] or not names[0]: sys.exit(f'{one.name} and {other.name} have not written the same files')
    for name in names[0]:
        if not np.array_equal(*(np.array(Image.open(root/name)) for root in (one, other))):
            sys.exit(f'{one.name} and {other.name} differ in {name}, so their times cannot be compared')
    return len(names[0])

def verify(src, tmp, names):
    "Before anything is timed: the loop, ours and the floors write the same pixels"
    who = ['loop', 'ours'] + [n for n in names if n.startswith('floor')]
    for name in who: measure(name, src, tmp/name)
    size = {name: sum(p.stat().st_size for p in (tmp/name).rglob('*.png')) for name in who}
    for name in who[1:]:
        n = same_pixels(tmp/'loop', tmp/name)
        print(f'Checked: {name} and loop wrote the same pixels in all {n} PNG, {name} with '
              f'{size[name]/size["loop"]:.3f} times the bytes.')
    for name in who: shutil.rmtree(tmp/name)

def alternate(src, tmp, names, rounds):
    "{name: [cost of each round]}; each round starts with another contender"
    costs = {name: [] for name in names}
    for r in range(rounds):
        for name in names[r % len(names):] + names[:r % len(names)]:
            costs[name].append(measure(name, src, tmp/name))
            shutil.rmtree(tmp/name)
    return costs

def middle(costs, key):
    "Median, least and most of one measure"
    values = [c[key] for c in costs if c[key] is not None] or [math.nan]
    return statistics.median(values), min(values), max(values)

def table(costs, volume):
    "One line per contender: medians, and the range of what varies"
    print(f"{'':11}{'CPU s':>22}{'wall s':>22}{'peak MB':>10}{'volumes':>9}{'MB out':>8}{'files':>7}")
    for name, runs in costs.items():
        cpu, wall = ('{:.2f} ({:.2f}–{:.2f})'.format(*middle(runs, key)) for key in ('cpu', 'wall'))
        peak = middle(runs, 'peak')[0]
        print(f"{name:11}{cpu:>22}{wall:>22}{peak/1e6:10.0f}{peak/volume:9.2f}"
              f"{runs[0]['bytes']/1e6:8.1f}{runs[0]['files']:7}")

RATIOS = [ # what, of whom, beside whom, how, aim
    ('ours / floor, CPU', 'ours', 'floor', lambda a, b, _: a['cpu']/b['cpu'], '≤ 1.25'),
    ('ours / floor-isal, CPU', 'ours', 'floor-isal', lambda a, b, _: a['cpu']/b['cpu'], ''),
    ('loop / ours, wall', 'loop', 'ours', lambda a, b, _: a['wall']/b['wall'], '≥ 1.5'),
    ('loop / ours-2, wall', 'loop', 'ours-2', lambda a, b, _: a['wall']/b['wall'], '≥ 2.5'),
    ('monai / ours, wall', 'monai', 'ours', lambda a, b, _: a['wall']/b['wall'], ''),
    ('check / ours, CPU', 'ours-check', 'ours', lambda a, b, _: a['cpu']/b['cpu'] - 1, '≤ 1'),
    ('peak of ours / int16 volume', 'ours', 'ours', lambda a, b, volume: a['peak']/volume, '≤ 3')]

def ratios(costs, volume):
    "Print each ratio that these contenders allow, of medians, beside its aim; returns {what: value}"
    m = {name: {key: middle(runs, key)[0] for key in ('cpu', 'wall', 'peak')} for name, runs in costs.items()}
    found = {}
    for what, a, b, how, aim in RATIOS:
        if a not in m or b not in m: continue
        found[what] = value = how(m[a], m[b], volume)
        met = value <= float(aim[2:]) if aim[:1] == '≤' else aim and value >= float(aim[2:])
        print(f"  {what:28}{value:6.2f}" + (f"  aim {aim}: {'met' if met else 'not met'}" if aim else ''))
    return found

def benchmark(title, src, tmp, names, rounds):
    "Verify, time and print one set; returns what was measured"
    import nibabel as nib
    cases = list(pairs(src))
    volume = max(2*math.prod(nib.load(image).shape) for _, _, image, _ in cases) # bytes of the largest as int16
    print(f'\n{title}: {len(cases)} volumes, the largest {volume/1e6:.1f} MB as int16; '
          f'median (least–most) of {rounds} rounds')
    verify(src, tmp, names)
    costs = alternate(src, tmp, names, rounds)
    table(costs, volume)
    return dict(set=title, volumes=len(cases), int16_bytes=volume, costs=costs, ratios=ratios(costs, volume))

def installed(package):
    with suppress(PackageNotFoundError): return version(package)

def machine():
    "What the numbers depend on"
    try: cpu = next(line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name'))
    except (OSError, StopIteration): cpu = platform.processor() or platform.machine()
    return dict(date=str(date.today()), cpu=cpu, cores=os.cpu_count(), python=platform.python_version(),
                **{p: installed(p) for p in LIBRARIES})

def code(): return [p.read_bytes() for p in sorted((ROOT/'liverseg').glob('*.py'))]

def chosen(only):
    "The contenders to run; those whose package is missing are named"
    needs = {'monai': ['monai'], 'floor': ['imagecodecs'], 'floor-isal': ['imagecodecs', 'isal']}
    missing = {name: [p for p in needs.get(name, []) if not installed(p)] for name in only or CONTENDERS}
    for name in filter(missing.get, missing):
        print(f"{name} is left out: {', '.join(missing[name])} not installed; pip install -e '.[bench]'")
    return [name for name in missing if not missing[name]]

def sets(tmp):
    "(title, folder) of the sets of volumes"
    from liverseg.phantom import make_cohort
    make_cohort(tmp/'tiny', n_train=2, n_test=0, shape=(64, 64, 8))
    make_cohort(tmp/'synthetic', n_train=6, n_test=2, shape=(256, 256, 64))
    yield 'synthetic', tmp/'synthetic'
    if list(pairs(REAL)): yield 'ircad', REAL
    else: print('\nThe two real volumes are not at hand; only synthetic ones are measured.')

def main():
    if sys.argv[1:2] == ['--child']: return child(*sys.argv[2:])
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3, help='how often each contender runs (3)')
    p.add_argument('--json', type=Path, help='write all that was measured to this file')
    p.add_argument('--only', nargs='+', choices=CONTENDERS, metavar='NAME',
                   help=f"contenders to run, of {', '.join(CONTENDERS)}")
    args = p.parse_args()
    if args.rounds < 1: p.error('--rounds: give 1 or more')
    about, names, start = machine(), chosen(args.only), code()
    print('\n'.join([MED2IMAGE, ', '.join(f'{k} {v}' for k, v in about.items() if v is not None)]))
    with tempfile.TemporaryDirectory() as tmp:
        results = [benchmark(title, src, Path(tmp), names, args.rounds) for title, src in sets(Path(tmp))]
    print('\n' + NOTES)
    if code() != start:
        sys.exit('liverseg was edited while it was measured, so the numbers are of more than one version; '
                 'run this again')
    if args.json:
        args.json.write_text(json.dumps(dict(machine=about, rounds=args.rounds, sets=results), indent=1) + '\n')

if __name__ == '__main__': main()
