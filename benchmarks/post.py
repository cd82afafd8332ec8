"""What cleaning up gains on real scans: Dice, HD95 and surface Dice of whole cases before and after each step.

    make real && python benchmarks/study.py best       # make the models
    python benchmarks/post.py                          # (two minutes)

Each model is run on scans of patients that it was not trained on: 17 and 1 of 3D-IRCADb-01 for the one trained on
msd2d alone, 17 for the others.
"""

import argparse
from itertools import combinations
from pathlib import Path

from common import HERE, REAL, WORK, machine, write


def main():
    from liverseg.metrics import case_metrics
    from liverseg.post import STEPS, clean
    from liverseg.predict import Segmenter
    from liverseg.cases import read_mask, read_volume
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--real', type=Path, default=REAL)
    parser.add_argument('--work', type=Path, default=WORK)
    parser.add_argument('--json', type=Path, default=HERE / 'study/post.json')
    args = parser.parse_args()
    scans = {k: (read_volume(args.real / f'ircad/{split}/nii/ircad_e{k:02d}_orig.nii.gz'),
                 read_mask(args.real / f'ircad/{split}/nii/ircad_e{k:02d}_liver.nii.gz'))
             for k, split in ((17, 'test'), (1, 'train'))}
    models = {'best': (args.work / 'models/best', [17]),
              'msd2d alone, 128 px': (HERE.parent / 'real/msd_model', [17, 1]),
              'patient 1 alone, 128 px': (HERE.parent / 'real/model', [17])}
    steps, rows = [c for n in range(len(STEPS) + 1) for c in combinations(STEPS, n)], []
    for name, (model, patients) in models.items():
        seg = Segmenter.load(model, 'cpu')
        for k in patients:
            scan, truth = scans[k]
            found = seg.segment(scan)
            for post in steps:
                m = case_metrics(clean(found.mask, scan.spacing, post), truth.data > 0, scan.spacing)
                rows.append(dict(model=name, patient=k, post='+'.join(post) or 'none',
                                 pieces=found.how['pieces_before_post'],
                                 **{key: round(float(m[key]), 5) for key in ('dice', 'hd95_mm', 'assd_mm', 'nsd')}))
                print(f"{name:24} patient {k:2} {rows[-1]['post']:20} Dice {m['dice']:.4f}  HD95 {m['hd95_mm']:6.2f} "
                      f"mm  ASSD {m['assd_mm']:5.2f} mm  NSD {m['nsd']:.4f}", flush=True)
    write(args.json, dict(machine=machine(), rows=rows))


if __name__ == '__main__': main()
