"""Seconds per slice: the page Try it in Chromium against ONNX Runtime native, on the same machine, slices and network.

    python benchmarks/web.py [--json benchmarks/study/web.json]

Both run the whole of `liverseg predict --thorough` on one synthetic scan of 256×256 pixels, with one and two threads.
The page's figure is its own time from the file to the result; native is the time of `Segmenter.segment` after reading.
WebGPU is compared with WASM by benchmarks/webgpu.py; the page uses WASM.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'tests')]
SLICES, RUNS = 12, 3


def make_scan(path):
    import nibabel as nib
    from liverseg.phantom import make_subject
    who = make_subject(5, (256, 256, SLICES))
    nib.Nifti1Image(who.hu, who.affine).to_filename(path)


def native(scan, network, threads):
    "Seconds per slice of ONNX Runtime, in a fresh process"
    code = ('import sys, time\nfrom liverseg.predict import Segmenter\nfrom liverseg.cases import read_volume\n'
            'scan, network, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])\n'
            'seg = Segmenter.load(network)\nvol = read_volume(scan)\n'
            'for _ in range(runs):\n    t = time.perf_counter(); found = seg.segment(vol, thorough=True); '
            'print(time.perf_counter() - t, int(found.mask.sum()))')
    done = subprocess.run([sys.executable, '-c', code, str(scan), str(network), str(RUNS)], capture_output=True,
                          text=True, check=True,
                          env={**os.environ, 'OMP_NUM_THREADS': str(threads)})
    lines = [line.split() for line in done.stdout.splitlines()]
    return [float(t)/SLICES for t, _ in lines], int(lines[-1][1])


def in_page(scan, address, driver, threads):
    "Seconds per slice of the page"
    from test_web import Page
    page = Page(driver, address, f'?threads={threads}')
    told = int(driver.execute_script('return document.documentElement.dataset.threads'))
    if told != threads: sys.exit(f'the page has {told} threads, not {threads}')
    times, voxels = [], 0
    for _ in range(RUNS):
        start = time.perf_counter()
        found = page.give(scan, thorough=True)
        if not isinstance(found, dict): sys.exit(found)
        times.append((time.perf_counter() - start)/SLICES)
        voxels = found['voxels']
    return times, voxels


def main():
    from conftest import chromium
    from make_web import alone
    from test_web import Served
    parser = argparse.ArgumentParser()
    parser.add_argument('--json', help='also write the figures there')
    args, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        make_scan(tmp / 'scan.nii.gz')
        if why := alone(tmp / 'site/some/where'): sys.exit(why)
        network, server, driver = tmp / 'site/some/where/try/liver.onnx', Served(tmp / 'site'), chromium()
        for threads in (1, 2):
            for name, (times, voxels) in (('native', native(tmp / 'scan.nii.gz', network, threads)),
                                          ('page', in_page(tmp / 'scan.nii.gz', server.address, driver, threads))):
                rows.append(dict(where=name, threads=threads, seconds_per_slice=round(statistics.median(times), 4),
                                 least=round(min(times), 4),
                                 most=round(max(times), 4), voxels=voxels))
                print(rows[-1], flush=True)
        driver.quit()
        server.close()
    versions = json.loads((ROOT / 'web/package.json').read_text())['dependencies']
    load = round(os.getloadavg()[0], 1)
    print(f'{SLICES} slices of 256×256, median of {RUNS} runs; load of the machine {load} on {os.cpu_count()} cores')
    if args.json:
        told = dict(rows=rows, slices=SLICES, runs=RUNS, versions=versions, load=load, cores=os.cpu_count())
        Path(args.json).write_text(json.dumps(told, indent=1) + '\n')


if __name__ == '__main__': main()
