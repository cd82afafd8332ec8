"""What each set of views gains in Dice and costs in time, on real slices: the best model's validation patients and
patient 17.

    python benchmarks/study.py best                     # makes the model (an hour)
    python benchmarks/tta.py                            # every set of views (five minutes)
    python benchmarks/tta.py --model real/msd_model --views none shifts

The gain over one view is taken patient by patient; its interval is a bootstrap over the patients. Seconds per slice
are those of whole passes.
"""

import argparse, time
from pathlib import Path

import numpy as np

from common import HERE, REAL, WORK, joint, machine, rows, write


def main():
    from liverseg.tables import bootstrap_mean, case_table, summarise
    from liverseg.data import training_table
    from liverseg.manifest import read_manifest
    from liverseg.save import load_model
    from liverseg.tta import VIEWS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=Path, help='the best model, if not given')
    parser.add_argument('--views', nargs='+', default=list(VIEWS), choices=list(VIEWS),
                        help='sets of views; none is always measured')
    parser.add_argument('--real', type=Path, default=REAL)
    parser.add_argument('--work', type=Path, default=WORK)
    parser.add_argument('--json', type=Path, default=HERE / 'study/tta.json')
    args = parser.parse_args()
    data, (net, meta) = joint(args.real, args.work), load_model(args.model or args.work / 'models/best')
    table, found = training_table(data), {}
    sets = dict(valid=table[table['is_valid']].reset_index(drop=True), test=read_manifest(data, ['test']))
    for name in dict.fromkeys(['none', *args.views]):
        found[name] = dict(views=len(VIEWS[name]))
        for kind, wanted in sets.items():
            start = time.perf_counter()
            slices = rows(net, meta, data, wanted, name)
            seconds = (time.perf_counter() - start)/len(slices)
            cases = case_table(slices)
            told = summarise(slices, cases)
            found[name][kind] = dict(pooled=told['pooled_dice'], patients=cases['dice'].tolist(),
                                     mean_slice=told['mean_slice_dice'], seconds_a_slice=seconds)
            gain = bootstrap_mean(np.subtract(found[name][kind]['patients'], found['none'][kind]['patients']), 4000)
            found[name][kind] |= dict(gain=gain['mean'], interval=[gain['low'], gain['high']])
        v, t = found[name]['valid'], found[name]['test']
        span = '' if v['interval'][0] is None else f" [{v['interval'][0]:+.4f}, {v['interval'][1]:+.4f}]"
        print(f"{name:9} {len(VIEWS[name])} views, {v['seconds_a_slice']:.3f} s a slice; 15 patients: mean case gain "
              f"{v['gain']:+.4f}{span}, pooled {v['pooled']:.4f}; "
              f"patient 17: {t['pooled']:.4f} ({t['gain']:+.4f})", flush=True)
    write(args.json,
          dict(machine=machine(), model=dict((k, meta.get(k)) for k in ('arch', 'size', 'flip', 'seed')), found=found))


if __name__ == '__main__': main()
