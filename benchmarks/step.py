"""Where the time of a training epoch goes, and what makes a step faster.

    python benchmarks/step.py                       # resnet34 and EfficientNet-Lite0, 128 px (five minutes)
    python benchmarks/step.py --arch lite --size 256
"""

import argparse, contextlib, statistics, time
from pathlib import Path

import torch

from common import HERE, REAL, WORK, joint, machine, write

BATCH = 8


def settings(arch, device='cpu'):
    """name: (channels last, fused optimiser, bfloat16, depthwise convolutions in float32); 'all' is what `train` does
    here"""
    from liverseg.train import in_precision
    yes = dict(plain=(0, 0, 0, 0), channels_last=(1, 0, 0, 0), fused=(0, 1, 0, 0), bf16=(0, 0, 1, 1),
               all=(1, 1, bool(in_precision("auto", device)), 1))
    return yes | (dict(all_but_depthwise=(1, 1, 1, 0)) if arch == 'lite' else {})


def network(arch, size, channels_last, depthwise):
    "A network, with or without the exemption of its depthwise convolutions"
    from liverseg.network import build_net
    torch.manual_seed(0)
    net = build_net(arch, 'light', size).train()
    if not depthwise:
        for m in net.modules(): m.__dict__.pop('forward', None)
    return net.to(memory_format=torch.channels_last) if channels_last else net


class Stepper:
    "A training step in plain PyTorch, timed in its parts"
    def __init__(self, arch, size, channels_last, fused, bf16, depthwise, device='cpu'):
        self.net, self.bf16, self.device = network(arch, size, channels_last, depthwise).to(device), bf16, device
        self.opt = torch.optim.AdamW(self.net.parameters(), fused=bool(fused), eps=1e-5)
    def __call__(self, x, y):
        marks = [time.perf_counter()]
        with torch.autocast(self.device, torch.bfloat16) if self.bf16 else contextlib.nullcontext(): out = self.net(x)
        loss = torch.nn.functional.cross_entropy(out.float(), y); marks.append(time.perf_counter())
        loss.backward(); torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.); marks.append(time.perf_counter())
        self.opt.step(); self.opt.zero_grad(); marks.append(time.perf_counter())
        return [b - a for a, b in zip(marks, marks[1:])]


def steps(arch, size, rounds):
    "Median seconds (forward, backward, optimiser) of each setting, in turn"
    x, y = torch.randn(BATCH, 3, size, size), (torch.rand(BATCH, size, size) > .8).long()
    all = {name: Stepper(arch, size, *how) for name, how in settings(arch).items()}
    took = {name: [] for name in all}
    for k in range(rounds + 2):
        for name, step in all.items():
            parts = step(x, y)
            if k > 1: took[name].append(parts)
    return {name: [statistics.median(p[i] for p in parts) for i in range(3)] for name, parts in took.items()}


def epochs(arch, size, data, rounds):
    """Seconds a batch of an epoch through fastai with everything around it, of a bare loop on the same batches, and of
    its loading and augmentation, in turn"""
    from liverseg.data import training_table
    from liverseg.train import _learner
    from liverseg.recipe import Recipe
    learn = _learner(data, training_table(data),
                     Recipe(size=size, arch=arch, pretrained=False, batch_size=BATCH, loss='ce'), 'cpu')
    stepper = Stepper(arch, size, *settings(arch)['all'])
    n = len(learn.dls.train)
    learn.dls.valid.get_idxs = lambda: [0]  # training alone is looked at
    took = dict(fastai=[], bare=[], items=[], batches=[])
    def timed(kind, f):
        start = time.perf_counter(); f(); took[kind].append((time.perf_counter() - start)/n)
    def bare():
        for x, y in learn.dls.train: stepper(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor).long())
    def items():
        train = learn.dls.train
        for idxs in range(n): train.create_batch([train.do_item(i) for i in range(idxs*BATCH, (idxs + 1)*BATCH)])
    def batches():
        for _ in learn.dls.train: pass
    with learn.no_bar(), learn.no_logging():
        for _ in range(rounds):
            timed('fastai', lambda: learn.fit(1, 1e-6))
            timed('bare', bare); timed('items', items); timed('batches', batches)
    return {k: min(v) for k, v in took.items()}


def report(arch, size, data, rounds):
    "Measure one encoder and size, and say it"
    parts, e = steps(arch, size, rounds), epochs(arch, size, data, 2)
    print(f'\n{arch}, {size} px, batch {BATCH}, {torch.get_num_threads()} threads; seconds a step')
    for name, (f, b, o) in parts.items():
        print(f'  {name:18} {f + b + o:.3f}  to plain {(f + b + o)/sum(parts["plain"]):.2f}  (forward {f:.3f}, '
              f'backward {b:.3f}, optimiser {o:.3f})')
    f, b, o = parts['all']
    shares = dict(loading=e['items'], augmentation=e['batches'] - e['items'], forward=f, backward=b, optimiser=o,
                  fastai=e['fastai'] - e['bare'])
    print('  of an epoch: ' + ', '.join(f'{k} {v/e["fastai"]:.1%}' for k, v in shares.items())
          + f'; {e["fastai"]:.3f} s a batch, a bare loop {e["bare"]:.3f}')
    return dict(arch=arch, size=size, steps=parts, epoch=e, shares={k: v/e['fastai'] for k, v in shares.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['resnet34', 'lite'])
    parser.add_argument('--size', type=int, default=128, help='pixels')
    parser.add_argument('--rounds', type=int, default=8)
    parser.add_argument('--real', type=Path, default=REAL)
    parser.add_argument('--work', type=Path, default=WORK)
    args = parser.parse_args()
    data = joint(args.real, args.work)
    found = [report(arch, args.size, data, args.rounds) for arch in args.arch]
    write(HERE / 'study' / f'step_{args.size}.json', dict(machine=machine(), found=found))


if __name__ == '__main__': main()
