"""The whole set of measures of a case beside other libraries': one pair of livers, in turn, seconds and values.

    pip install -e '.[bench]'
    python benchmarks/metrics.py                       # a synthetic pair of 512 x 512 x 120 voxels (two minutes)
    python benchmarks/metrics.py --shape 256 256 60

The truth is a synthetic liver, the prediction the same moved by two voxels, with a hole and a speck. Each contestant is
given both as boolean arrays and returns Dice, Jaccard, HD95, average surface distance and surface Dice at 2 mm.

  ours              liverseg.metrics.case_metrics, which also gives precision, recall, RVD and volumes
  monai             compute_dice, compute_iou, compute_hausdorff_distance, compute_average_surface_distance,
                    compute_surface_dice
  surface-distance  DeepMind's, whose surfaces are made of small triangles with areas: its distances differ a little
  medpy             dc, jc, hd95, assd; it has no surface Dice, and its HD95 takes both ways together
"""

import argparse, statistics, time, warnings

import numpy as np

TOLERANCE = 2.
NAMES = 'dice jaccard hd95_mm assd_mm nsd'.split()


def livers(shape):
    "Truth, prediction and spacing"
    from liverseg.phantom import make_subject
    subject = make_subject(3, shape=shape)
    true = subject.labels > 0
    pred = np.roll(true, 2, 0)
    x, y, z = np.argwhere(true).mean(0).astype(int)
    pred[x:x + 12, y:y + 12, z:z + 4] = False
    pred[4:10, 4:10, 2:5] = True
    return pred, true, subject.spacing


def ours(pred, true, spacing):
    from liverseg.metrics import case_metrics
    found = case_metrics(pred, true, spacing, TOLERANCE)
    return [found[k] for k in NAMES]


def monai(pred, true, spacing):
    import torch
    from monai.metrics import (compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou,
                               compute_surface_dice)
    hot = [torch.from_numpy(np.stack([~m, m]))[None] for m in (pred, true)]
    kw = dict(include_background=False)
    return [float(v) for v in (compute_dice(*hot, **kw), compute_iou(*hot, **kw),
                               compute_hausdorff_distance(*hot, percentile=95, spacing=spacing, **kw),
                               compute_average_surface_distance(*hot, symmetric=True, spacing=spacing, **kw),
                               compute_surface_dice(*hot, [TOLERANCE], spacing=spacing, **kw))]


def surface_distance(pred, true, spacing):
    import surface_distance as sd
    found = sd.compute_surface_distances(true, pred, spacing)
    there, back = sd.compute_average_surface_distance(found)
    dice = sd.compute_dice_coefficient(true, pred)
    return [dice, dice/(2 - dice), sd.compute_robust_hausdorff(found, 95), (there + back)/2,
            sd.compute_surface_dice_at_tolerance(found, TOLERANCE)]


def medpy(pred, true, spacing):
    from medpy.metric import binary
    return [binary.dc(pred, true), binary.jc(pred, true), binary.hd95(pred, true, spacing),
            binary.assd(pred, true, spacing), np.nan]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', type=int, nargs=3, default=(512, 512, 120), help='voxels')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    small, pair = livers((64, 64, 24)), livers(tuple(args.shape))
    contestants, took, values = dict(ours=ours, monai=monai,
                                     medpy=medpy) | {'surface-distance': surface_distance}, {}, {}
    for k in range(args.rounds + 1): # the first round, on a small pair, imports
        for name, measure in contestants.items():
            start = time.perf_counter()
            found = measure(*(pair if k else small))
            if k: took.setdefault(name, []).append(time.perf_counter() - start); values[name] = found
    print(f"{' x '.join(map(str, args.shape))} voxels, {int(pair[1].sum())} of them liver, spacing "
          f"{', '.join(f'{s:.2f}' for s in pair[2])} mm; median of {args.rounds} rounds")
    fastest = min(statistics.median(t) for name, t in took.items() if name != 'ours')
    print(f"{'':17}{'seconds':>8}{'to the fastest peer':>21}  " + ''.join(f'{n:>10}' for n in NAMES))
    for name, t in took.items():
        print(f'{name:17}{statistics.median(t):8.2f}{statistics.median(t)/fastest:21.2f}  '
              + ''.join(f'{v:10.4f}' for v in values[name]))


if __name__ == '__main__': main()
