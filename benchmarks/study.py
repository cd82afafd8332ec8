"""The study behind the defaults: one JSON per run in benchmarks/study/; finished runs are skipped, interrupted ones
resume.

    python benchmarks/study.py                # everything that is not there yet
    python benchmarks/study.py base wide      # these settings only
    python benchmarks/study.py best           # the best model, in real/study/models/best

The notebook nbs/tutorials/study.ipynb reads the JSON files and nothing else.
"""

import argparse, json, shutil
from pathlib import Path

from common import HERE, REAL, THREE, WORK, Clock, figures, joint, machine, pair, rows, write

RUNS = HERE / 'study'
BASE = dict(size=128, epochs=8, batch_size=8, arch='lite', decoder='light', loss='ce', augment='mild', flip=False,
            lr=1e-3)
SEEDS = (42, 43, 44)

# six settings, one change at a time, and what follows from them: the two that helped together, and painted tumours on
# top; three seeds each
CHANGES = dict(base={}, dice_ce=dict(loss='dice_ce'), wce=dict(loss='wce'), share=dict(liver_share=.8),
               wide=dict(augment='wide'), flip=dict(flip=True),
               both=dict(loss='dice_ce', augment='wide'), spots=dict(loss='dice_ce', augment='spots'))
# the same, one seed each
SINGLES = dict(size192=dict(size=192), size256=dict(size=256), fp32=dict(precision='fp32'),
               lite_reference=dict(decoder='reference'), lite_scratch=dict(pretrained=False),
               resnet34=dict(arch='resnet34', pretrained=False))
# patients 1 and 17 alone, whose slices are neighbours
PAIR = dict(BASE, epochs=20)
PAIRS = {f'pair_{name}_{train}': dict(train=train, windows=windows)
         for name, windows in (('one', [(-150, 250)]), ('three', THREE)) for train in (1, 17)}
PAIRS['pair_slices'] = dict(train='both', windows=[(-150, 250)])
# everything that helps
BEST = dict(size=320, epochs=40, batch_size=8, arch='lite', decoder='light', loss='dice_ce', augment='spots',
            flip=False, lr=1e-3)


def plan(only):
    "(name, setting, seed, recipe, pair or None) of every run"
    for seed in SEEDS:
        for name, change in CHANGES.items(): yield f'{name}_{seed}', name, seed, dict(BASE, **change), None
    for name, change in SINGLES.items(): yield f'{name}_42', name, 42, dict(BASE, **change), None
    for name, which in PAIRS.items():
        for seed in SEEDS[:2]:
            yield f'{name}_{seed}', name, seed, dict(PAIR,
                                                     **dict(split='slice', valid=.5) if which['train'] == 'both'
                                                     else {}), which
    if 'best' in only: yield 'best', 'best', 42, BEST, None


def run(name, recipe, seed, which, args):
    "Train and measure once"
    from liverseg.data import training_table
    from liverseg.manifest import read_manifest
    from liverseg.train import train
    from liverseg.save import load_model
    data = pair(which['train'], which['windows'], args.real, args.work) if which else joint(args.real, args.work)
    model = args.work / 'models' / name
    shutil.rmtree(model, ignore_errors=True)
    with Clock() as clock:
        meta = train(data, model, 'cpu', seed=seed, save='best', **recipe, say=lambda s: print('   ', s, flush=True))
    net, meta = load_model(model)
    table = training_table(data, recipe.get('valid', .2), recipe.get('split', 'subject'), seed)
    sets = dict(valid=table[table['is_valid']], test=read_manifest(data, ['test']))
    found = {}
    for kind, rows_of in sets.items():
        if not len(rows_of): continue
        for tta in ('none', 'flip') if recipe['flip'] else ('none',):
            for grid in (None, 128):
                slices = rows(net, meta, data, rows_of.reset_index(drop=True), tta, grid)
                key, by_case = f"{kind}_{tta}_{'own' if grid is None else grid}", bool(which) and grid is None
                found[key] = figures(slices, by_case and tta == 'none')
    return dict(name=name, seed=seed, recipe=recipe, pair=which, best_epoch=meta['kept_epoch'], seconds=clock.wall,
                cpu_seconds=clock.cpu,
                parameters=sum(p.numel() for p in net.parameters()), machine=machine(), **found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('settings', nargs='*', help='names of settings; all but best if left out')
    parser.add_argument('--real', type=Path, default=REAL, help='folder with ircad and msd2d')
    parser.add_argument('--work', type=Path, default=WORK, help='folder for slices and models')
    parser.add_argument('--out', type=Path, default=RUNS,
                        help='folder for the JSON files; one elsewhere leaves the checkout clean, so that they name a '
                             'commit')
    parser.add_argument('--list', action='store_true', help='only list what there is to do')
    args = parser.parse_args()
    todo = [r for r in plan(args.settings) if (not args.settings or r[1] in args.settings)]
    if odd := set(args.settings) - {r[1] for r in todo}: parser.error(f'there is no setting {", ".join(sorted(odd))}')
    for k, (name, setting, seed, recipe, which) in enumerate(todo, 1):
        path = args.out / f'{name}.json'
        done = path.is_file() and json.loads(path.read_text())
        done = (done and done['recipe'] == json.loads(json.dumps(recipe))
                and done['pair'] == json.loads(json.dumps(which)))
        print(f'{k} of {len(todo)}: {name}{" is there" if done else ""}', flush=True)
        if done or args.list: continue
        result = run(name, recipe, seed, which, args)
        write(path, dict(result, setting=setting))
        if setting == 'best': shutil.copyfile(args.work / 'models/best/model.json', args.out / 'best.model.json')
        for kind in ('valid_none_own', 'test_none_own'):
            if kind in result:
                print(f"    {kind}: mean slice {result[kind]['mean_slice_dice']:.4f}, pooled "
                      f"{result[kind]['pooled_dice']:.4f}; {result['seconds']} s", flush=True)


if __name__ == '__main__': main()
