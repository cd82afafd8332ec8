"""Masks from a trained network, made in several ways: seconds per slice, ratios, peak memory, and the Dice that
short-cuts cost.

    pip install -e '.[bench]'
    python benchmarks/predict.py                       # patient 17 and 600 slices of a synthetic trunk (15 minutes)
    python benchmarks/predict.py --model real/model    # another network than the one that ships
    python benchmarks/predict.py --net lite,light,128  # any network, with random weights, for the times alone

Each contestant runs in a process of its own, in turn, round after round. Reading files and loading the network are not
counted.

  ours             Segmenter.segment: from HU in memory to a mask on the scan's own grid
  thorough         the same without short-cuts: every slice, and all of it
  predict          fastai's learn.predict, PNG by PNG: from a file to a mask of the network's size
  get_preds        fastai's learn.get_preds, from files to masks of the network's size
  monai            SlidingWindowInferer on each prepared slice, one window
  onnx             thorough, the network being the ONNX file that export_onnx made
  bare             the network alone on prepared batches, at its best batch size
  reference        predict with the reference's network: resnet34, its wide decoder, random weights

From `predict` on, the contestants get only some evenly spread slices, as they take the same time for each.
"""

import argparse, json, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np

from common import REAL, WORK, machine, write

CONTESTANTS = 'ours thorough predict get_preds monai onnx bare reference'.split()
SOME = 30 # slices for those who take the same time for each


def model_of(net, folder):
    "A model folder with random weights"
    import torch
    from liverseg.network import build_net
    from liverseg.save import describe, save_model
    arch, decoder, size = net.split(',')
    torch.manual_seed(0)
    save_model(build_net(arch, decoder, int(size)), describe(arch, int(size), decoder=decoder), folder)
    return folder


def scans(real, work):
    "Name to (scan, truth)"
    from liverseg.phantom import make_subject, write_subject
    folder = work / 'trunk'
    # 42 cm of field of view, 60 cm of trunk, the liver in a third of them
    if not (folder / 'trunk_liver.nii.gz').is_file():
        write_subject(make_subject(3, shape=(512, 512, 600), spacing=(.82, .82, 1.)), folder, 'trunk')
    ircad = lambda split, k: tuple(real / f'ircad/{split}/nii/ircad_e{k:02d}_{kind}.nii.gz'
                                   for kind in ('orig', 'liver'))
    return dict(patient17=ircad('test', 17), patient1=ircad('train', 1),
                trunk=(folder / 'trunk_orig.nii.gz', folder / 'trunk_liver.nii.gz'))


def files_for_fastai(vol, meta, zs, folder):
    "Some of a scan's slices as `convert` writes them, and their table"
    import pandas as pd
    from PIL import Image
    from liverseg.pixels import PixelForm
    from liverseg.volume import to_slices
    slices, rows = to_slices(vol.data), []
    for z in zs:
        for kind, pixels in (('image', PixelForm.of(meta).pixels(slices[z])),
                             ('mask', np.zeros(slices[z].shape, np.uint8))):
            Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f'{kind}{z}.png')
        rows.append(dict(image=f'image{z}.png', mask=f'mask{z}.png', is_valid=False))
    (folder / 'dataset.json').write_text(json.dumps({k: meta[k] for k in ('window', 'bits')}))
    return pd.DataFrame(rows)


def learner(net, meta, table, folder):
    import torch
    from fastai.vision.all import CrossEntropyLossFlat, Learner
    from liverseg.data import liver_block
    dls = liver_block(folder, meta['size'],
                      'none').dataloaders(table.assign(is_valid=[False]*(len(table) - 1) + [True]), bs=8, device='cpu')
    return Learner(dls, net.to(memory_format=torch.contiguous_format), loss_func=CrossEntropyLossFlat(axis=1))


def best_batch(net, x):
    "Seconds a slice of the network alone, at the batch size that takes least"
    import torch
    found = {}
    with torch.inference_mode():
        for bs in (1, 2, 4, 8, 16):
            batches = x.split(bs)
            net(batches[0])
            start = time.perf_counter()
            for b in batches: net(b)
            found[bs] = (time.perf_counter() - start)/len(x)
        bs = min(found, key=found.get)
        start = time.perf_counter()
        for b in x.split(bs): net(b) # once more, as the least of five is luck in part
    return (time.perf_counter() - start)/len(x), dict(batch_size=bs)


def one(name, model, scan, truth):
    "Run one contestant: seconds a slice, slices, gigabytes, Dice if it made a whole mask"
    import torch
    from liverseg.pixels import PixelForm, prepare
    from liverseg.metrics import dice
    from liverseg.models import load_onnx, open_model
    from liverseg.save import export_onnx
    from liverseg.predict import Segmenter
    from liverseg.cases import read_mask, read_volume
    from liverseg.volume import to_slices
    vol, true, more = read_volume(scan), read_mask(truth).data > 0, {}
    n = vol.data.shape[2]
    zs = np.unique(np.linspace(0, n - 1, min(n, SOME)).astype(int))
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        seg = Segmenter.load(model_of('resnet34,reference,' + str(open_model(model, 'cpu')[1]['size']), tmp / 'ref')
                             if name == 'reference' else model, 'cpu')
        if name == 'onnx': seg = Segmenter(*load_onnx(export_onnx(tmp / 'm.onnx', model)))
        net, meta = seg.net, seg.meta
        if name in ('ours', 'thorough', 'onnx'):
            list(prepare([np.zeros((512, 512), np.uint8)], meta))
            start = time.perf_counter()
            found = seg.segment(vol, thorough=name != 'ours')
            seconds = (time.perf_counter() - start)/n
            more = dict(dice=dice(found.mask, true), slices_looked_at=found.how['slices_looked_at'])
        elif name in ('bare', 'monai'):
            x = torch.from_numpy(prepare([PixelForm.of(meta).as_read(to_slices(vol.data)[z]) for z in zs], meta))
            if name == 'bare': seconds, more = best_batch(net, x)
            else: seconds = monai(net, meta, x)
        else: seconds = fastai(name, net, meta, vol, zs, tmp)
    return dict(seconds_a_slice=seconds, slices=n, gigabytes=peak(), **more)


def peak():
    "Gigabytes that this process held at most; the usual ru_maxrss counts what its parent held before"
    return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])/1e6


def monai(net, meta, x):
    import torch
    from monai.inferers import SlidingWindowInferer
    infer = SlidingWindowInferer((meta['size'],)*2, sw_batch_size=8)
    with torch.no_grad():
        infer(x[:1], net)
        start = time.perf_counter()
        for k in range(len(x)): infer(x[k:k + 1], net).argmax(1)
    return (time.perf_counter() - start)/len(x)


def fastai(name, net, meta, vol, zs, folder):
    table = files_for_fastai(vol, meta, zs, folder)
    learn = learner(net, meta, table, folder)
    with learn.no_bar():
        learn.predict(table.iloc[0])
        start = time.perf_counter()
        if name == 'get_preds': learn.get_preds(dl=learn.dls.test_dl(table), with_decoded=True)
        else:
            for _, row in table.iterrows(): learn.predict(row)
    return (time.perf_counter() - start)/len(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='liver',
                        help='a folder or an ONNX file; the network that ships, if not given')
    parser.add_argument('--net', metavar='ARCH,DECODER,SIZE', help='instead: random weights')
    parser.add_argument('--only', nargs='+', default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument('--scans', nargs='+', default=['patient17', 'trunk'],
                        choices=['patient17', 'patient1', 'trunk'])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--real', type=Path, default=REAL)
    parser.add_argument('--work', type=Path, default=WORK)
    parser.add_argument('--json', type=Path, help='where to keep the figures')
    parser.add_argument('--one', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(one(*args.one)))
    with tempfile.TemporaryDirectory() as tmp:
        model = model_of(args.net, Path(tmp) / 'net') if args.net else args.model
        known = scans(args.real, args.work)
        runs = {(s, c): [] for s in args.scans for c in args.only}
        for _ in range(args.rounds):
            for s, c in runs:
                done = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--one', c, str(model),
                                       *map(str, known[s])], capture_output=True, text=True)
                if done.returncode: sys.exit(f'{c} on {s}: {done.stderr}')
                runs[s, c].append(json.loads(done.stdout.splitlines()[-1]))
        found = {s: {c: dict(runs[s, c][0],
                             seconds_a_slice=statistics.median(r['seconds_a_slice'] for r in runs[s, c]))
                     for c in args.only} for s in args.scans}
        tell(found, args.rounds)
        from liverseg.models import open_model
        meta = open_model(model, 'cpu')[1]
    if args.json: # scans that were measured before stay
        old = json.loads(args.json.read_text()) if args.json.is_file() else dict(machine={}, found={})
        write(args.json,
              dict(machine=old['machine'] | {s: machine() for s in found},
                   model={k: meta[k] for k in ('arch', 'decoder', 'size')}, rounds=args.rounds,
                   found=old['found'] | found))


def tell(found, rounds):
    "The figures as tables"
    for scan, rows in found.items():
        n = next(iter(rows.values()))['slices']
        print(f"\n{scan}, {n} slices, median of {rounds} rounds\n"
              f"{'':11}{'s a slice':>10}{'slices a s':>11}{'to bare':>9}{'faster than predict':>21}"
              f"{'than reference':>16}{'peak GB':>9}{'Dice':>8}{'looked at':>11}")
        def over(a, b):
            if a not in rows or b not in rows: return ''
            return f"{rows[a]['seconds_a_slice']/rows[b]['seconds_a_slice']:.2f}"
        for name, r in rows.items():
            dice = f"{r['dice']:.4f}" if 'dice' in r else ''
            print(f"{name:11}{r['seconds_a_slice']:10.4f}{1/r['seconds_a_slice']:11.1f}{over(name, 'bare'):>9}"
                  f"{over('predict', name):>21}{over('reference', name):>16}"
                  f"{r['gigabytes']:9.2f}{dice:>8}{r.get('slices_looked_at', ''):>11}")
        if {'ours', 'thorough'} <= set(rows):
            print(f"the short-cuts change Dice by {rows['ours']['dice'] - rows['thorough']['dice']:+.4f}")


if __name__ == '__main__': main()
