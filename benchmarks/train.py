"""Our training against the reference's recipe, segmentation_models_pytorch and MONAI: the same slices, size, seed and
threads.

    python benchmarks/train.py                 # encoders without weights, then EfficientNet-Lite0 with ImageNet
                                               # weights, three seeds each
    python benchmarks/train.py --init lite     # the second only (an hour)
    python benchmarks/train.py --table         # what the races in benchmarks/race/ say, with intervals over the cases

All are trained on the slices of msd2d's training patients, and measured on its fifteen validation patients and on
hospitals that are in no training: the slices of curvas2d, and patients 1 and 17 whole.

Each contestant is a process of its own. They take turns, one epoch at a time, so that other work on the machine affects
all of them alike. The peers train for --epochs epochs; ours for as many as fit into the minutes of
segmentation_models_pytorch, by the time of 20 steps that are measured before. The peers are measured after their last
epoch, ours with the moving average, as `liverseg train` does; each mask on the slice's own grid.
"""

import argparse, json, subprocess, sys, time
from pathlib import Path

import numpy as np

from common import HERE, REAL, WORK, away, figures, free, machine, rows, write

RACES = HERE / 'race'
ONLY = ('free2d', 'msd_volume', 'made') # left out, which leaves msd2d
GROUNDS = dict(valid=('mean_slice_dice', 'pooled_dice'), curvas=('mean_slice_dice', 'pooled_dice'),
               ircad=('mean_slice_dice', 'pooled_dice'))

# name: (encoder's start, what it is)
CONTESTANTS = {
    'ours': ('none', 'liverseg train: resnet34, light decoder'),
    'reference': ('none', "the reference's recipe: fastai unet_learner(resnet34), cross entropy"),
    'smp': ('none', "segmentation_models_pytorch Unet('resnet34'), cross entropy"),
    'monai': ('none', 'MONAI UNet (32…512, 2 residual units), cross entropy'),
    'ours_lite': ('lite', 'liverseg train --arch lite'),
    'smp_lite': ('lite', "segmentation_models_pytorch Unet on EfficientNet-Lite0 with its weights, cross entropy"),
}


def peer(name):
    "A peer's network"
    if name == 'monai':
        from monai.networks.nets import UNet
        return UNet(2, 3, 2, (32, 64, 128, 256, 512), (2, 2, 2, 2), num_res_units=2)
    import segmentation_models_pytorch as smp
    if name == 'smp': return smp.Unet('resnet34', encoder_weights=None, classes=2)
    from liverseg.network import pretrained_encoder
    net, ours = smp.Unet('tu-tf_efficientnet_lite0', encoder_weights=None, classes=2), pretrained_encoder('lite')
    mine, theirs = list(ours.state_dict().values()), net.encoder.state_dict()
    assert [v.shape for v in theirs.values()] == [v.shape for v in mine]
    net.encoder.load_state_dict(dict(zip(theirs, mine)))
    return net


def learner(name, data, args):
    "A contestant's learner, and how it is fitted"
    from fastai.vision.all import CrossEntropyLossFlat, Learner, set_seed
    from liverseg.data import liver_dls, training_table
    from liverseg.train import _learner, fit
    from liverseg.recipe import Recipe
    table = training_table(data)
    if name.startswith('ours'):
        lite = dict(arch='lite') if name == 'ours_lite' else dict(pretrained=False)
        return _learner(data, table, Recipe(size=args.size, batch_size=8, seed=args.seed, loss='ce', **lite),
                        'cpu'), fit
    set_seed(args.seed)
    dls = liver_dls(data, table, args.size, 8, device='cpu')
    if name == 'reference':
        from torchvision.models import resnet34
        from fastai.vision.all import unet_learner
        learn = unet_learner(dls, resnet34, pretrained=False, n_out=2, loss_func=CrossEntropyLossFlat(axis=1))
    else: learn = Learner(dls, peer(name), loss_func=CrossEntropyLossFlat(axis=1))
    return learn, lambda learn, epochs: learn.fit_one_cycle(epochs, 1e-3)


def contestant(name, args):
    """Train in this process, an epoch each time a line comes in; say a line of JSON after each, and in the end what was
    measured"""
    import torch
    from fastai.vision.all import Callback, set_seed
    from liverseg.data import training_table
    from liverseg.checkpoint import MovingAverage
    from liverseg.pixels import PixelForm
    from liverseg.save import describe
    torch.set_num_threads(args.threads)
    say = lambda **what: print(json.dumps(what), flush=True)
    data = free(args.real, args.work, ONLY)

    class Turn(Callback):
        order = 70
        seconds, epochs = 0., 0
        def before_epoch(self):
            sys.stdin.readline()
            set_seed(args.seed*1000 + self.epochs)
            self.start = time.perf_counter()
        def after_train(self): self.took = time.perf_counter() - self.start # validation is not counted
        def after_epoch(self):
            self.seconds += self.took; self.epochs += 1
            say(epoch=self.epochs, seconds=self.took)

    learn, fit = learner(name, data, args)
    learn.model.train()
    say(parameters=sum(p.numel() for p in learn.model.parameters()),
        step=probe(learner(name, data, args)[0], sys.stdin.readline, name.startswith('ours')))
    epochs = int(sys.stdin.readline())
    set_seed(args.seed)
    with learn.no_bar(), learn.no_logging():
        learn.add_cb(turn := Turn())
        if name.startswith('ours'): learn.add_cb(average := MovingAverage(learn.model, epochs*len(learn.dls.train)))
        fit(learn, epochs)
    sys.stdin.readline()
    net = (average.net.module if name.startswith('ours') else learn.model).eval()
    meta, table = describe('', args.size, PixelForm((0, 255))), training_table(data)
    grounds = dict(valid=(data, table[table['is_valid']].reset_index(drop=True)), **away(args.real, args.work))
    say(name=name, epochs=turn.epochs, seconds=turn.seconds,
        **{kind: figures(rows(net, meta, *ground)) for kind, ground in grounds.items()})


def table(init):
    """Mean over the seeds of each contestant, and of ours less the peer with an interval: 95 % of 10,000 draws of
    cases, all seeds of a case together"""
    import pandas as pd
    from liverseg.metrics import dice_from_counts
    races = [json.loads(p.read_text()) for p in sorted(RACES.glob(f'{init}_*.json'))]
    runs = [(r['seed'], c) for r in races for c in r['contestants']]
    mean = pd.DataFrame([dict(name=c['name'], epochs=c['epochs'], minutes=c['seconds']/60,
                              **{f'{g} {m}': c[g][m] for g, ms in GROUNDS.items() for m in ms}) for _, c in runs])
    peer, ours = (next(c['name'] for _, c in runs if c['name'].startswith(n)) for n in ('smp', 'ours'))
    found = []
    for ground in GROUNDS:
        # seeds, cases, counts
        cases = {n: np.array([[case[1:5] for case in c[ground]['counts']] for _, c in runs if c['name'] == n], float)
                 for n in (ours, peer)}
        def pooled(n, at): return dice_from_counts(*cases[n][:, at, :3].sum(1).T).mean()
        def case_slices(n, at): return np.nanmean(cases[n][:, at, 3])
        everyone = np.arange(cases[ours].shape[1])
        draws = np.random.default_rng(0).choice(everyone, (10_000, len(everyone)))
        for what, of in dict(pooled=pooled, case_mean_of_slices=case_slices).items():
            ahead = np.array([of(ours, at) - of(peer, at) for at in draws])
            found.append(dict(ground=ground, what=what, ahead=of(ours, everyone) - of(peer, everyone),
                              low=np.quantile(ahead, .025), high=np.quantile(ahead, .975)))
    return mean.groupby('name').mean(numeric_only=True), pd.DataFrame(found)


def probe(learn, wait, averaged):
    """Seconds from one training step to the next, its batch's loading included, with a learner that is thrown away; the
    mean of twenty"""
    from fastai.vision.all import CancelFitException, Callback
    class Steps(Callback):
        def before_fit(self): self.times = []
        def after_batch(self):
            self.times.append(time.perf_counter())
            if len(self.times) == 24: raise CancelFitException
    wait()
    from liverseg.checkpoint import MovingAverage
    learn.unfreeze()
    learn.add_cbs([steps := Steps(), *[MovingAverage(learn.model, 24)]*averaged])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-6)
    return (steps.times[-1] - steps.times[3])/20


class Child:
    "A contestant's process"
    def __init__(self, name, args):
        command = [sys.executable, __file__, '--one', name, '--size', args.size, '--seed', args.seed, '--threads',
                   args.threads, '--real', args.real, '--work', args.work]
        self.name, self.process = name, subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE,
                                                         stdout=subprocess.PIPE, text=True)
    def ask(self, text=''):
        self.process.stdin.write(f'{text}\n'); self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{'): return json.loads(line)
        raise SystemExit(f'{self.name} has ended before it was done')
    def tell(self, text): self.process.stdin.write(f'{text}\n'); self.process.stdin.flush()


def race(names, args):
    "Train the contestants in turn; return what each measured"
    children = [Child(n, args) for n in names]
    facts = {c.name: c.ask() for c in children}
    smp = next(n for n in names if n.startswith('smp'))
    epochs = {n: args.epochs if not n.startswith('ours') else round(args.epochs*facts[smp]['step']/facts[n]['step'])
              for n in names}
    for c in children:
        print(f"{c.name}: {facts[c.name]['parameters']/1e6:.1f} M parameters, {facts[c.name]['step']:.3f} s a step, "
              f"{epochs[c.name]} epochs", flush=True)
        c.tell(epochs[c.name])
    for k in range(max(epochs.values())):
        for c in children:
            if k < epochs[c.name]: print(f"  {c.name}, epoch {k + 1}: {c.ask()['seconds']:.1f} s", flush=True)
    return [dict(c.ask(), **facts[c.name], what=CONTESTANTS[c.name][1]) for c in children]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--init', choices=['none', 'lite', 'both'], default='both',
                        help="the encoders' weights before training")
    parser.add_argument('--epochs', type=int, default=8, help='of the peers')
    parser.add_argument('--size', type=int, default=128, help='pixels')
    parser.add_argument('--seeds', type=int, nargs='*', default=(42, 43, 44))
    parser.add_argument('--seed', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--real', type=Path, default=REAL, help='folder with the real slices')
    parser.add_argument('--work', type=Path, default=WORK, help='folder for converted slices')
    parser.add_argument('--table', action='store_true', help='only print what the races say')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return contestant(args.one, args)
    free(args.real, args.work, ONLY)
    for init in ('none', 'lite') if args.init == 'both' else (args.init,):
        for args.seed in () if args.table else args.seeds:
            path = RACES / f'{init}_{args.seed}.json'
            how = dict(epochs=args.epochs, size=args.size, threads=args.threads, seed=args.seed)
            if path.is_file() and json.loads(path.read_text()).items() >= how.items(): continue
            found = race([n for n, (start, _) in CONTESTANTS.items() if start == init], args)
            write(path, dict(machine=machine(), **how, contestants=found))
        if not any(RACES.glob(f'{init}_*.json')): continue
        mean, ahead = table(init)
        print(f"\nencoders {'without weights' if init == 'none' else 'with ImageNet weights'}, {args.size} px",
              mean.round(4).to_string(), ahead.round(4).to_string(), sep='\n\n')


if __name__ == '__main__': main()
