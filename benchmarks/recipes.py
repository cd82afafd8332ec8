"""Which recipe travels? Trained on one data set, measured on hospitals that are in no training: one JSON per run
in benchmarks/recipes/; finished runs are skipped.

    python benchmarks/recipes.py                  # everything that is not there yet
    python benchmarks/recipes.py base dice_ce     # these settings only
    python benchmarks/recipes.py --table          # what the runs say, the mean over seeds

Each run is measured with the weights of its last epoch, of the epoch that is best on the fifteen validation patients,
and with a moving average of all steps.
"""

import argparse, json
from pathlib import Path

from common import HERE, REAL, WORK, Clock, away, figures, free, machine, rows, write

RUNS = HERE / 'recipes'
BASE = dict(size=128, epochs=12, batch_size=8, arch='lite', decoder='light', loss='ce', augment='mild', lr=1e-3,
            precision='auto', data='msd2d', fit='ours')
SEEDS = (42, 43, 44)
# one change at a time; `fit` and `net` are of this benchmark, the rest are options of `liverseg train`
CHANGES = dict(base={}, dice_ce=dict(loss='dice_ce'), plain_fit=dict(fit='plain'), scanner=dict(augment='scanner'),
               spots=dict(augment='spots'), free=dict(data='free'), made=dict(data='made'),
               smp=dict(net='smp', fit='plain', precision='fp32'), fp32=dict(precision='fp32'),
               wide=dict(augment='wide'), full=dict(augment='full'),
               short=dict(epochs=6), long=dict(epochs=24), longer=dict(epochs=48), px192=dict(size=192),
               fastai_decoder=dict(decoder='fastai'))


def fit_plain(learn, epochs, lr):
    "fastai's one cycle, all layers from the first step at one rate"
    learn.unfreeze()
    learn.fit_one_cycle(epochs, lr)


def keepers():
    "Callbacks that remember the best epoch and a moving average of the weights"
    from fastai.vision.all import Callback
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Best(Callback):
        order, score, state = 65, -1, None
        def after_epoch(self):
            score = self.recorder.log[self.recorder.metric_names.index('case_dice')]
            if score is not None and score > self.score:
                self.score, self.state = score, {k: v.clone() for k, v in self.model.state_dict().items()}

    class Average(Callback):
        order, average = 66, None
        def before_fit(self):
            if self.average is None: # before the hooks of fastai's decoder hold what cannot be copied
                self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(.99), use_buffers=True)
        def after_batch(self):
            if self.training: self.average.update_parameters(self.model) # the first time, it takes them as they are
    return Best(), Average()


def learner(recipe, seed, args):
    "The learner of one run, as `liverseg train` makes it, or with a peer's network"
    from fastai.vision.all import CrossEntropyLossFlat, Learner, set_seed
    from liverseg.data import liver_dls, training_table
    from liverseg.train import CaseDice, _learner
    from liverseg.recipe import Recipe
    from train import peer
    data = folder(recipe['data'], args)
    table = training_table(data)
    if recipe.get('net'):
        set_seed(seed)
        dls = liver_dls(data, table, recipe['size'], recipe['batch_size'], recipe['augment'], device='cpu')
        return Learner(dls, peer('smp_lite'), loss_func=CrossEntropyLossFlat(axis=1), metrics=CaseDice())
    own = {k: v for k, v in recipe.items() if k not in ('data', 'fit', 'net')}
    return _learner(data, table, Recipe(**own, seed=seed), 'cpu')


def folder(name, args):
    "The training slices of that name"
    return free(args.real, args.work,
                ('made',) if name == 'free' else () if name == 'made' else ('free2d', 'msd_volume', 'made'))


def measure(net, size, args):
    "Figures at home (the fifteen patients) and away"
    from liverseg.data import training_table
    from liverseg.pixels import PixelForm
    from liverseg.save import describe
    meta, home = describe('', size, PixelForm((0, 255))), folder('msd2d', args)
    table = training_table(home)
    found = {'valid': figures(rows(net, meta, home, table[table['is_valid']].reset_index(drop=True)))}
    for name, (data, wanted) in away(args.real, args.work).items(): found[name] = figures(rows(net, meta, data, wanted))
    return found


def run(recipe, seed, args):
    "Train once and measure three times"
    from fastai.vision.all import set_seed
    from liverseg.train import fit
    learn, (best, average) = learner(recipe, seed, args), keepers()
    learn.add_cbs([best, average])
    set_seed(seed, reproducible=True)
    with Clock() as clock, learn.no_bar(), learn.no_logging():
        (fit_plain if recipe['fit'] == 'plain' else fit)(learn, recipe['epochs'], recipe['lr'])
    net, found = learn.model.eval(), {}
    found['last'] = measure(net, recipe['size'], args)
    found['average'] = measure(average.average.module.eval(), recipe['size'], args)
    net.load_state_dict(best.state)
    found['best'] = measure(net.eval(), recipe['size'], args)
    return dict(seed=seed, recipe=recipe, seconds=clock.wall, cpu_seconds=clock.cpu, machine=machine(), **found)


GROUNDS = dict(valid=('mean_slice_dice', 'pooled_dice'),
               curvas=('mean_case_dice', 'mean_slice_dice', 'pooled_dice', 'false_positive_px_on_empty_slices'),
               ircad=('mean_case_dice', 'mean_slice_dice'))


def table(runs):
    "One row per run and kind of weights"
    import pandas as pd
    found = []
    for path in sorted(runs.glob('*.json')):
        r = json.loads(path.read_text())
        for kind in ('best', 'last', 'average'):
            short = lambda m: m.replace('_dice', '').replace('false_positive_px_on_empty_slices', 'false px')
            figures = {f'{g} {short(m)}': r[kind][g][m] for g, ms in GROUNDS.items() for m in ms}
            found.append(dict(setting=r['setting'], weights=kind, seed=r['seed'], seconds=r['seconds'], **figures))
    return pd.DataFrame(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('settings', nargs='*', help='names of settings; all if left out')
    parser.add_argument('--real', type=Path, default=REAL, help='folder with the real slices')
    parser.add_argument('--work', type=Path, default=WORK, help='folder for converted slices')
    parser.add_argument('--out', type=Path, default=RUNS, help='folder for the JSON files')
    parser.add_argument('--seeds', type=int, nargs='*', default=SEEDS)
    parser.add_argument('--threads', type=int, default=1, help='two processes side by side: one each')
    parser.add_argument('--table', action='store_true', help='only print what the runs say')
    args = parser.parse_args()
    if args.table:
        t = table(args.out)
        return print(t.groupby(['setting',
                                'weights']).mean(numeric_only=True).drop(columns='seed').round(4).to_string())
    import torch
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        for name in args.settings or CHANGES:
            path, recipe = args.out / f'{name}_{seed}.json', dict(BASE, **CHANGES[name])
            if path.is_file() and json.loads(path.read_text())['recipe'] == recipe: continue
            print(f'{name}, seed {seed}', flush=True)
            result = run(recipe, seed, args)
            write(path, dict(result, setting=name))
            print('   ',
                  {k: {g: [result[k][g][m] for m in ms] for g, ms in GROUNDS.items()} for k in ('best', 'last')},
                  f"{result['seconds']} s", flush=True)


if __name__ == '__main__': main()
