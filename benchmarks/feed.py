"""Whether a training is fed as fast as it eats: `train` against the bare network on batches that lie in memory.

    python benchmarks/feed.py                        # resnet34 and EfficientNet-Lite0, 128 px, on the processor
    python benchmarks/feed.py --device cuda --size 256 --batch-size 32

The contestants take turns, so that other work on the machine affects all of them alike:

    bare        forward, backward and optimiser in plain PyTorch, on batches in memory that are never changed
    augmented   the same, with the augmentation of each batch
    fastai      a training with fastai's own loader, which opens every PNG again in each epoch, in this process
    first       ours, in its first epoch, when nothing is in memory yet
    later       ours, in all others

A ratio is slices a second to those of `bare`. In seconds of this process (cpu), it is what a quiet machine would give,
as far as nothing is done by other processes.
"""

import argparse, subprocess, threading, time
from pathlib import Path

import torch

from common import HERE, REAL, WORK, joint, machine, write
from step import Stepper, settings

from liverseg.data import KEPT, training_table
from liverseg.recipe import Recipe, default_workers
from liverseg.train import _learner


class Busy:
    "The mean utilisation of the graphics card during a block, in percent, if there is one"
    def __init__(self, device): self.on, self.seen, self.stop = device == 'cuda', [], threading.Event()
    def _watch(self):
        ask = ['nvidia-smi', '--query-gpu=utilization.gpu', '--format=csv,noheader,nounits']
        while not self.stop.wait(.2):
            self.seen.append(float(subprocess.run(ask, capture_output=True, text=True).stdout.split()[0]))
    def __enter__(self):
        if self.on: (thread := threading.Thread(target=self._watch, daemon=True)).start()
        return self
    def __exit__(self, *_): self.stop.set()
    @property
    def mean(self): return round(sum(self.seen)/len(self.seen), 1) if self.seen else None


class Race:
    "The contestants over the same slices, with a number of reading processes"
    def __init__(self, arch, args, workers, data):
        recipe = Recipe(size=args.size, arch=arch, pretrained=False, batch_size=args.batch_size, loss='ce')
        self.learn = _learner(data, training_table(data), recipe, args.device, workers)
        self.dls, self.n, self.took, self.device = self.learn.dls, args.batches, {}, args.device
        self.feed, samples = self.dls.train.feed, range(args.batches*args.batch_size)
        assert len(samples) <= len(self.dls.train_ds), f'{len(samples)} slices wanted, {len(self.dls.train_ds)} there'
        self.dls.train.get_idxs, self.dls.valid.get_idxs = lambda: list(samples), lambda: [0] # training is looked at
        self.dls.train.n = len(samples)
        self.stepper = Stepper(arch, args.size, *settings(arch, args.device)['all'], device=args.device)
        self.raw = list(self.dls.train.create_batches(iter(samples)))
        self.ready = [self.plain(self.dls.train.after_batch(self.moved(b))) for b in self.raw]
    def moved(self, batch): return tuple(t.to(self.device) for t in batch)
    def plain(self, batch): return batch[0].as_subclass(torch.Tensor), batch[1].as_subclass(torch.Tensor).long()
    def bare(self):
        for b in self.ready: self.stepper(*b)
    def augmented(self):
        for b in self.raw: self.stepper(*self.plain(self.dls.train.after_batch(self.moved(b))))
    def fastai(self):
        self.dls.train.feed = self.dls.valid.feed = None
        self.learn.fit(1, 1e-6)
        self.dls.train.feed = self.dls.valid.feed = self.feed
    def first(self):
        self.feed.kept.clear()
        self.feed.room = KEPT
        self.learn.fit(1, 1e-6)
    def later(self): self.learn.fit(1, 1e-6)
    def run(self, name, count):
        "Seconds a batch by the clock and of this process"
        with Busy(self.device) as busy, self.learn.no_bar(), self.learn.no_logging():
            clock, cpu = time.perf_counter(), time.process_time()
            getattr(self, name)()
            if self.device == 'cuda': torch.cuda.synchronize()
            took = time.perf_counter() - clock, time.process_time() - cpu
        if count: self.took.setdefault(name, []).append([*(t/self.n for t in took), busy.mean])


def report(arch, args, workers, data):
    "Measure one encoder with so many processes, and say it"
    race, names = Race(arch, args, workers, data), ('bare', 'augmented', 'fastai', 'first', 'later')
    for k in range(args.rounds + 1): # the first round warms up
        for name in names: race.run(name, k > 0)
    race.feed.close()
    best = {name: [min(t[i] for t in race.took[name]) for i in (0, 1)] + [race.took[name][-1][2]] for name in names}
    print(f'\n{arch}, {args.size} px, batch {args.batch_size}, {args.device}, {workers} reading processes, '
          f'{torch.get_num_threads()} threads')
    for name, (clock, cpu, busy) in best.items():
        print(f'  {name:10} {args.batch_size/clock:7.1f} slices/s, ratio {best["bare"][0]/clock:.2f} by the clock, '
              f'{best["bare"][1]/cpu:.2f} of cpu' + (f', card busy {busy} %' if busy is not None else ''))
    return dict(arch=arch, workers=workers, seconds_a_batch=best)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['resnet34', 'lite'])
    parser.add_argument('--size', type=int, default=128, help='pixels')
    parser.add_argument('--batch-size', type=int, default=8, help='slices')
    parser.add_argument('--batches', type=int, default=16, help='of an epoch')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--workers', type=int, nargs='+', help='numbers of reading processes')
    parser.add_argument('--real', type=Path, default=REAL)
    parser.add_argument('--work', type=Path, default=WORK)
    args = parser.parse_args()
    data = joint(args.real, args.work)
    workers = args.workers if args.workers is not None else sorted({0, 2, default_workers(args.device)})
    found = [report(arch, args, n, data) for arch in args.arch for n in workers]
    how = {k: getattr(args, k) for k in ('size', 'batch_size', 'batches', 'device')}
    write(HERE / 'study' / f'feed_{args.device}_{args.size}.json', dict(machine=machine(), **how, found=found))


if __name__ == '__main__': main()
