"""The network that ships: trained, tuned, measured, and put into liverseg/weights/, from ../shared/data alone.

Steps that are done are skipped.

    python benchmarks/weights.py               # what `make weights` runs; two trainings side by side, one thread each
    python benchmarks/weights.py --no-folds    # without the four networks that are trained on less
    python benchmarks/weights.py --in-turn     # free0 and free1 alone; their figures go into the card that is there
    python benchmarks/weights.py --train half0 # one of the networks alone: liver, half0, half1, free0 or free1

It is trained on what may train weights that ship (`common.free`): msd2d, one whole volume of it, slices without liver.
A few more epochs from there include synthetic slices, and what ships is the mean of the weights before and after them
(Wortsman et al., Robust fine-tuning of zero-shot models, 2022): the mean keeps what the first training knows of real
scans, and leaves no liver where the synthetic slices have none. Patients 1 and 17 and the slices of curvas2d are in no
training. Four more networks are made in the same way from less. Two lack half of the patients each and are measured on
that half: how good a mask is, given what its network says of it, and how much false liver there is. Two lack the slices
without liver of half of the patients and nothing else, and are measured on these.
"""

import argparse, json, os, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common import REAL, WORK, away, figures, free, machine, rows, write
from liverseg.liver import model_path

RECIPE = dict(size=256, epochs=24, batch_size=8, arch='lite', decoder='light', loss='ce', augment='mild', lr=1e-3,
              save='average', seed=42)
TUNING = dict(epochs=4, batch_size=8, loss='ce', augment='mild', lr=3e-4, save='average', seed=43)
NETWORKS = ('liver', 'half0', 'half1', 'free0', 'free1')
LICENCE = 'CC BY-SA 4.0'
CARD = 'card.json'


def trained(data, model, **recipe):
    "Train, resume, or do nothing"
    from liverseg.data import training_table
    from liverseg.manifest import content_hash
    from liverseg.models import read_meta
    from liverseg.train import train
    if not (model / 'model.json').is_file(): train(data, model, say=lambda s: print('   ', s, flush=True), **recipe)
    if not (told := model.with_name(f'{model.name}.machine.json')).is_file(): write(told, machine())
    meta, now = read_meta(model), {k: v for k, v in recipe.items() if k != 'start'}
    now['data'] = content_hash(data, training_table(data))
    if other := [k for k, v in now.items() if meta.get(k) != v]:
        sys.exit(f'{model}: was trained with another {other[0]}; remove it, or name another --work')
    return model


def made_of(name, args):
    "Both trainings of one network, and the mean of their weights"
    models = args.work / 'models'
    first = trained(slices_of(name, args), models / name, **RECIPE)
    data = slices_of(name, args, made=True)
    tuned = trained(data, models / f'{name}_tuned', start=first, **TUNING)
    if not (models / f'{name}_mean/model.json').is_file(): averaged(first, tuned, models / f'{name}_mean', data)


def averaged(first, tuned, folder, data):
    "Write the mean of two networks' weights, with what both were trained on and a temperature of its own"
    from liverseg.data import liver_dls, training_table
    from liverseg.save import load_model, save_model
    from liverseg.temperature import fit_temperature
    (net, meta), (other, after) = load_model(first), load_model(tuned)
    theirs = other.state_dict()
    mean = {k: (v + theirs[k])/2 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict(mean)
    valid = liver_dls(data, training_table(data), RECIPE['size'], RECIPE['batch_size'], device='cpu').valid
    told = dict(tuning=TUNING, subjects=after['subjects'], data=after['data'], temperature=fit_temperature(net, valid))
    save_model(net, {k: v for k, v in meta.items() if k not in ('sha256', 'metrics')} | told, folder)


def seconds(model):
    "Of a training, however often it was stopped"
    from liverseg.checkpoint import read_history
    return sum(int(m)*60 + int(s) for m, s in (t.split(':')[-2:] for t in read_history(model)['time']))


def slices(args, made=False):
    "What is trained on: all that may be; the synthetic slices only in the tuning, since they cost patient 17 too much"
    return free(args.real, args.work, () if made else ('made',))


def slices_of(name, args, made=False):
    "The folder of slices for one of the trainings"
    whole = slices(args, made)
    if name == 'liver': return whole
    data = args.work / (f'{name}+made' if made else name)
    if not data.exists(): without(whole, data, folds(args)[int(name[-1])], alone=name.startswith('free'))
    return data


def train_all(names, args):
    "Each network in a process of its own, two at a time on the processor"
    for name in names:
        for made in (False, True): slices_of(name, args, made)
    gpu = torch.cuda.is_available()
    env = dict(os.environ) | ({} if gpu else dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE'))
    command = lambda name: [sys.executable, '-W', 'ignore', __file__, '--train', name, '--real', args.real,
                            '--work', args.work]
    with ThreadPoolExecutor(1 if gpu else 2) as pool:
        return list(pool.map(lambda name: subprocess.run(command(name), env=env, check=True), names))


def shipped(model, folder, **more):
    """Write the package's files from a trained model: weights in 16 bits, and a description that says whose licence
    they have"""
    from liverseg.save import load_model, save_model
    net, meta = load_model(model)
    save_model(net, dict({k: v for k, v in meta.items() if k not in ('sha256', 'half')}, licence=LICENCE, **more),
               folder, half=True)


def measured(model, args):
    "The card's figures, each ground by its name"
    from liverseg.data import training_table
    from liverseg.models import open_model
    net, meta, _ = open_model(model, 'cpu')
    home = slices(args)
    table = training_table(home)
    grounds = {'valid': (home, table[table['is_valid']].reset_index(drop=True)), **away(args.real, args.work)}
    return {name: figures(rows(net, meta, folder, wanted)) for name, (folder, wanted) in grounds.items()}


def folds(args):
    "Two halves of all training patients, those with liver and those without apart"
    table = pd.read_csv(slices(args) / 'manifest.csv', dtype=str, keep_default_na=False).query('split == "train"')
    table = table[table['subject'] != 'msd_10001'] # goes with its patient, 10001
    seen = table.assign(liver=table['liver_px'] != '0').groupby('subject')['liver'].any()
    halves = [[], []]
    for kind in (False, True):
        names = np.random.default_rng(0).permutation(sorted(seen.index[seen == kind]))
        for k in (0, 1): halves[k] += list(names[k::2])
    return [sorted(half + ['msd_10001']*('10001' in half)) for half in halves]


def own_and_true(net, meta, folder, table):
    "One row per subject: what the network promises of its mask, the mask's Dice, and the true liver's pixels"
    from liverseg.pixels import PixelForm, read_slice_mask
    from liverseg.metrics import dice_from_counts
    from liverseg.trust import OwnDice
    from liverseg.tta import slice_probs
    found = []
    for subject, rows in table.groupby('subject'):
        own, both, true = OwnDice(), 0, 0
        for row, prob in zip(rows.itertuples(),
                             slice_probs(net, meta, (PixelForm.of(meta).read(folder / f) for f in rows['image']))):
            mask, truth = prob > .5, read_slice_mask(folder / row.mask, prob.shape) > 0
            own.add(prob, mask)
            both, true = both + int((mask & truth).sum()), true + int(truth.sum())
        found.append(dict(subject=subject, own=own.dice, dice=float(dice_from_counts(both, own.size, true)),
                          true_px=true))
    return found


def not_seen(name, args):
    """A network that was trained without a half, and each half in turn: number of the half, network, description, the
    rows that it lacks"""
    from liverseg.manifest import read_manifest
    from liverseg.models import open_model
    table = read_manifest(slices(args), ['train'])
    for k, out in enumerate(folds(args)):
        net, meta, _ = open_model(args.work / f'models/{name}{k}_mean', 'cpu')
        yield k, net, meta, table[table['subject'].isin(out)]


def false_liver(name, args):
    "Liver that two such networks find on the slices without liver that they lack, in pixels of 256 × 256"
    from liverseg.pixels import PixelForm, resize_mask
    from liverseg.tta import slice_probs
    whole, empty = slices(args), []
    for _, net, meta, table in not_seen(name, args):
        table = table[table['liver_px'] == 0]
        probs = slice_probs(net, meta, (PixelForm.of(meta).read(whole / f) for f in table['image']))
        empty += [dict(subject=r.subject, z=r.z, px=int(resize_mask(p > .5, (256, 256)).sum()))
                  for r, p in zip(table.itertuples(), probs)]
    px = np.array([f['px'] for f in empty])
    return dict(machine=machine(), slices=len(px), mean_px=round(float(px.mean()), 2),
                empty=round(float((px == 0).mean()), 4), worst=sorted(empty, key=lambda f: -f['px'])[:10])


def own_and_true_of_halves(args):
    "Own and true Dice of the patients with liver that each of two networks lacks; livers of which nothing was found"
    cases = [dict(c, half=k) for k, net, meta, table in not_seen('half', args)
             for c in own_and_true(net, meta, slices(args), table) if c['true_px']]
    found = [c for c in cases if c['own'] is not None] # a mask that is empty promises nothing
    return found, len(cases) - len(found)


def expectation(cases, args):
    "The line from a mask's own estimate to its Dice, tried on the other half and on other hospitals"
    from scipy.stats import spearmanr
    from liverseg.models import open_model
    from liverseg.trust import expected_dice, fit_expected_dice
    fits = [fit_expected_dice(*zip(*((c['own'], c['dice']) for c in cases if c['half'] != k))) for k in (0, 1)]
    told = [dict(expected=expected_dice(c['own'], fits[c['half']]), dice=round(c['dice'], 4)) for c in cases]
    order, bad = np.argsort([t['expected'] for t in told]), np.argsort([t['dice'] for t in told])[:len(told)//10]
    card = dict(fit=fit_expected_dice(*zip(*((c['own'], c['dice']) for c in cases))), cases=len(cases),
                rank_correlation=round(float(spearmanr([t['expected'] for t in told], [t['dice'] for t in told])[0]),
                                       3),
                worst_tenth_among_the_lowest_quarter=f'{len(set(bad) & set(order[:len(told)//4]))} of {len(bad)}',
                left_out=told)
    net, meta, _ = open_model(args.out, 'cpu')
    for name, (folder, table) in away(args.real, args.work).items():
        found = [c for c in own_and_true(net, meta, folder, table) if c['true_px'] and c['own']]
        pairs = [(expected_dice(c['own'], card['fit']), round(c['dice'], 4)) for c in found]
        card[name] = dict(cases=pairs) | (dict(rank_correlation=round(float(spearmanr(*zip(*pairs))[0]), 3))
                                          if len(pairs) > 2 else {})
    return card


def without(whole, data, out, alone=False):
    "A copy of the training slices without some subjects; `alone`: without their slices without liver alone"
    shutil.copytree(whole, part := data.with_name(f'{data.name}.part'), dirs_exist_ok=True)
    table = pd.read_csv(part / 'manifest.csv', dtype=str, keep_default_na=False)
    gone = table['subject'].isin(out) & (not alone or table['liver_px'] == '0')
    table[~gone].to_csv(part / 'manifest.csv', index=False)
    part.rename(data)


def trunk(model, args):
    "A synthetic trunk of 600 slices: liver further than 30 mm from the liver, after cleaning up"
    from scipy import ndimage
    from liverseg.metrics import dice
    from liverseg.predict import Segmenter
    from liverseg.cases import read_mask
    from predict import scans
    scan, truth = scans(args.real, args.work)['trunk']
    found, true = Segmenter.load(model, 'cpu').segment(scan), read_mask(truth).data > 0
    thin = (slice(None, None, 2),)*2 # every second row and column is enough to tell 30 mm
    near = ndimage.distance_transform_edt(~true[thin],
                                          (2*found.scan.spacing[0], 2*found.scan.spacing[1],
                                           found.scan.spacing[2])) <= 30
    near = near.repeat(2, 0).repeat(2, 1)[:true.shape[0], :true.shape[1]]
    return dict(slices=true.shape[2], far_voxels=int(found.mask[~near].sum()), dice=round(dice(found.mask, true), 4),
                seconds=found.how['seconds'])


def in_turn(args):
    "Add to the card how much liver is found on slices without liver that were left out in turn"
    train_all(NETWORKS[3:], args)
    card = json.loads((args.out / CARD).read_text())
    card['false_liver'] = dict(card.get('false_liver', {}), free=false_liver('free', args))
    write(args.out / CARD, card)
    print(json.dumps(card['false_liver']['free'], indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--real', type=Path, default=REAL, help='folder with the real slices and volumes')
    parser.add_argument('--work', type=Path, default=WORK.parent / 'weights', help='folder for slices and models')
    parser.add_argument('--out', type=Path, default=model_path(), help='folder of the package')
    parser.add_argument('--no-folds', dest='folds', action='store_false',
                        help='leave out the four networks that are trained on less')
    parser.add_argument('--in-turn', action='store_true',
                        help='make and measure only the two networks that lack slices without liver')
    parser.add_argument('--train', choices=NETWORKS, help='make this network and nothing else')
    args = parser.parse_args()
    if args.train: return made_of(args.train, args)
    if args.in_turn: return in_turn(args)
    train_all(NETWORKS if args.folds else NETWORKS[:1], args)
    models = args.work / 'models'
    shipped(models / 'liver_mean', args.out)
    told = lambda name: json.loads((models / f'{name}.machine.json').read_text())
    parts = {name: dict(seconds=seconds(models / name), machine=told(name))
             for name in ('liver', 'liver_tuned')}
    card = dict(machine=machine(), recipe=RECIPE, tuning=TUNING, training=parts, **measured(args.out, args))
    card['trunk'] = trunk(args.out, args)
    write(args.out / CARD, card)
    if args.folds:
        card['false_liver'] = {name: false_liver(name, args) for name in ('free', 'half')}
        cases, missed = own_and_true_of_halves(args)
        card['expected'] = dict(expectation(cases, args), missed_livers=missed)
        write(args.out / CARD, card)
        shipped(models / 'liver_mean', args.out, expected=card['expected']['fit'])
    print(json.dumps({k: card[k] for k in card if k not in ('machine', 'recipe')}, indent=1)[:3000])


if __name__ == '__main__': main()
