"""Training from a liver network or from ImageNet: on patient 1 alone, measured on patient 17, with the same network and
epochs.

    python benchmarks/start.py          # from the network that ships, and from EfficientNet-Lite0's ImageNet weights;
                                        # 1, 2 and 4 epochs
"""

import argparse, json, shutil
from pathlib import Path

from common import HERE, REAL, WORK, Clock, figures, machine, pair, rows, write


def one(start, epochs, data, args):
    "Train once, and measure on the other patient"
    from liverseg.manifest import read_manifest
    from liverseg.train import train
    from liverseg.models import read_meta
    from liverseg.save import load_model
    from liverseg.liver import model_path
    meta = read_meta(model_path('liver'))
    how = dict(start='liver', lr=args.lr) if start == 'liver' else {k: meta[k] for k in ('arch', 'decoder', 'size')}
    model = args.work / f'models/start_{start}_{epochs}'
    # a run that was stopped, too: its time would be too short
    for old in model.parent.glob(f'*{model.name}*'): shutil.rmtree(old)
    with Clock() as clock: train(data, model, 'cpu', epochs=epochs, seed=42, say=lambda s: None, **how)
    net, meta = load_model(model)
    found = figures(rows(net, meta, data, read_manifest(data, ['test'])))
    return dict(start=start, epochs=epochs, seconds=clock.wall, dice=found['mean_case_dice'],
                mean_slice_dice=found['mean_slice_dice'])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--real', type=Path, default=REAL, help='folder with ircad')
    parser.add_argument('--work', type=Path, default=WORK, help='folder for slices and models')
    parser.add_argument('--epochs', type=int, nargs='*', default=(1, 2, 4))
    parser.add_argument('--lr', type=float, default=3e-4, help='highest learning rate from a liver')
    args = parser.parse_args()
    from liverseg.manifest import read_manifest
    from liverseg.models import open_model
    data = pair(1, [(0, 255)], args.real, args.work, 'wide')
    net, meta, _ = open_model('liver', 'cpu')
    before = figures(rows(net, meta, data, read_manifest(data, ['test'])))
    runs = [dict(start='liver', epochs=0, seconds=0, dice=before['mean_case_dice'],
                 mean_slice_dice=before['mean_slice_dice'])]
    for epochs in args.epochs:
        for start in ('liver', 'imagenet'):
            runs.append(one(start, epochs, data, args))
            print(json.dumps(runs[-1]), flush=True)
    write(HERE / 'study/start.json', dict(machine=machine(), lr=args.lr, runs=runs))


if __name__ == '__main__': main()
