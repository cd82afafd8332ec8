"""What the training benchmark and the study share: the slices, the measuring, the clock."""

import json, platform, shutil, subprocess, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import ndimage

from liverseg.convert import convert, import_slices
from liverseg.cases import SPLITS
from liverseg.pixels import resize_mask
from liverseg.pixels import PixelForm, read_slice_mask
from liverseg.tables import case_table, slice_row, summarise
from liverseg.phantom import Subject, make_subject, write_subject
from liverseg.train import in_precision
from liverseg.tta import slice_probs
from liverseg.work import atomic_write, whole_folder

HERE = Path(__file__).parent
REAL = HERE.parent.parent / 'shared/data'
WORK = HERE.parent / 'real/study'
THREE = [(-150, 250), (0, 160), (-1000, 600)]  # windows of the three channels


def _folder(dst, parts, table):
    "A folder of slices from several folders, with the rows of `table`, whose paths start with the part's name"
    with whole_folder(dst, [*SPLITS, 'manifest.csv', 'dataset.json'], 'manifest.csv') as out:
        for row in table.itertuples():
            for name in (row.image, row.mask):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(parts[row.part] / name, out / name)
        shutil.copyfile(next(iter(parts.values())) / 'dataset.json', out / 'dataset.json')
        table.drop(columns='part').to_csv(out / 'manifest.csv', index=False)


def joint(real=REAL, work=WORK):
    """521 training slices (87 patients of msd2d, every second slice of patient 1), 98 of 15 for validation, patient 17
    for the test; window [0, 255]"""
    dst = Path(work) / 'joint'
    if (dst / 'manifest.csv').is_file(): return dst
    parts = dict(msd=Path(work) / 'msd', ircad=Path(work) / 'ircad')
    import_slices(real / 'msd2d', parts['msd'], (0, 255))
    convert(real / 'ircad', parts['ircad'], [(0, 255)])
    table = pd.concat([pd.read_csv(p / 'manifest.csv', dtype=str, keep_default_na=False).assign(part=name)
                       for name, p in parts.items()], ignore_index=True)
    second = (table['subject'] == 'ircad_e01') & (table['z'].astype(int) % 2 == 1)
    _folder(dst, parts, table[~second])
    return dst


def pair(train, windows, real=REAL, work=WORK, name=None):
    "Patients 1 and 17, every slice: `train` is 1 or 17 and the other the test, or 'both'"
    name = name or ('three' if len(windows) == 3 else 'one')
    src, dst = Path(work) / f'pair_{name}', Path(work) / f'pair_{name}_{train}'
    if not (src / 'manifest.csv').is_file(): convert(real / 'ircad', src, windows)
    if (dst / 'manifest.csv').is_file(): return dst
    table = pd.read_csv(src / 'manifest.csv', dtype=str, keep_default_na=False).assign(part='src')
    if train == 'both': table['split'] = 'train'
    else: table['split'] = np.where(table['subject'] == f'ircad_e{int(train):02d}', 'train', 'test')
    _folder(dst, dict(src=src), table)
    return dst


def _slices(name, real, work):
    "One of the folders of single slices, in the form that training takes"
    if not (Path(work) / name / 'manifest.csv').is_file(): import_slices(real / name, Path(work) / name, (0, 255))
    return Path(work) / name


def _volumes(name, real, work):
    "One of the folders of volumes, converted with the window of the slices"
    dst = Path(work) / f'{name}255'
    if not (dst / 'manifest.csv').is_file(): convert(real / name, dst, [(0, 255)])
    return dst


def shapes(seed, n=20, size=512):
    """A volume whose slices have no organs: one or two ovals of fat, muscle and bone each, as legs, heads, arms and
    test objects have"""
    rng, (x, y) = np.random.default_rng(seed), np.mgrid[:size, :size].astype(np.float32)
    hu = np.full((size, size, n), -1000, np.float32)
    for z in range(n):
        for side in (-1, 1) if z % 2 else (0,):
            r = rng.uniform(60, 110, 2) if side else rng.uniform(70, 220, 2)
            far = np.hypot((x - size/2 - side*(r[0] + rng.uniform(4, 20)))/r[0],
                           (y - size/2 - rng.uniform(-20, 20))/r[1])
            hu[far < 1, z], rim = -100, rng.uniform(.8, .98)
            hu[far < rim, z] = rng.uniform(10, 130)
            inner = rng.uniform(.15, .35) if side else rng.uniform(.0, .9)
            hu[(far < inner) & (far > .8*inner), z] = rng.uniform(400, 1200)
    noise = ndimage.gaussian_filter(rng.normal(size=hu.shape).astype(np.float32), (.8, .8, 0))
    return np.rint(hu + noise*rng.uniform(20, 60, n).astype(np.float32)).astype(np.int16)


def made(work=WORK, seeds=(101, 102, 103, 104)):
    "Slices of synthetic CT: every sixth slice of some trunks of 60 cm, and shapes without organs"
    dst, nii = Path(work) / 'made', Path(work) / 'made_volumes/train/nii'
    if (dst / 'manifest.csv').is_file(): return dst
    for k, seed in enumerate(seeds):
        pixel = .7 + .08*k
        write_subject(make_subject(seed, (512, 512, 120), (pixel, pixel, 5.)), nii, f'made_{seed}')
    affine = np.diag([.8, .8, 5, 1])
    for seed in (1, 2):
        write_subject(Subject(hu := shapes(seed), np.zeros(hu.shape, np.uint8), None, affine, seed), nii,
                      f'shapes_{seed}')
    convert(nii.parent.parent, whole := dst.with_name('made_all'), [(0, 255)])
    table = pd.read_csv(whole / 'manifest.csv', dtype=str, keep_default_na=False).assign(part='all')
    some = table['subject'].str.startswith('shapes') | (table['z'].astype(int) % 6 == 0)
    _folder(dst, dict(all=whole), table[some])
    return dst


def free(real=REAL, work=WORK, without=(), every=4):
    """What may train weights that ship: msd2d, the whole volume of its patient 10001, slices without liver, every
    fourth of the one patient with 59, and synthetic ones.

    `without` names parts that are left out: 'free2d', the slices without liver, 'msd_volume' or 'made', the synthetic
    ones."""
    names = [name for name in ('msd2d', 'free2d', 'msd_volume', 'made') if name not in without]
    if names == ['msd2d']: return _slices('msd2d', real, work)
    dst = Path(work) / '+'.join(names) # named for what is in it
    if (dst / 'manifest.csv').is_file(): return dst
    parts = dict(msd2d=_slices('msd2d', real, work), free2d=_slices('free2d', real, work),
                 msd_volume=_volumes('msd_volume', real, work), made=made(work))
    tables = {name: pd.read_csv(p / 'manifest.csv', dtype=str, keep_default_na=False).assign(part=name)
              for name, p in parts.items() if name in names}
    if 'free2d' in tables:
        table = tables['free2d'].sort_values(['subject', 'z'], key=lambda c: c.astype(int) if c.name == 'z' else c)
        many = table.groupby('subject')['subject'].transform('size') > 20
        tables['free2d'] = table[~many | (table.groupby('subject').cumcount() % every == 0)]
    _folder(dst, parts, pd.concat(tables.values(), ignore_index=True))
    return dst


def away(real=REAL, work=WORK):
    """Hospitals that are in no training: name to (folder, its rows); patients 1 and 17 whole, and the slices of
    fourteen from elsewhere"""
    from liverseg.manifest import read_manifest
    found = dict(curvas=_slices('curvas2d', real, work), ircad=_volumes('ircad', real, work))
    return {name: (folder, read_manifest(folder)) for name, folder in found.items()}


def _at(pixels, grid, how):
    return pixels if grid is None else np.asarray(Image.fromarray(pixels).resize((grid, grid), how))


def rows(net, meta, data, table, tta='none', grid=None):
    """A row of counts a slice, on its own grid, or on a square of `grid` pixels to which slice and mask are brought
    first"""
    data, form = Path(data), PixelForm.of(meta)
    probs = slice_probs(net, meta, (_at(form.read(data / f), grid, Image.Resampling.BILINEAR) for f in table['image']),
                        tta)
    masks = (read_slice_mask(data / r.mask, form.read(data / r.image).shape[:2]) for r in table.itertuples())
    return pd.DataFrame([slice_row(r.subject, r.z, p > .5, m if grid is None else resize_mask(m, (grid, grid))) for r,
                         p, m in zip(table.itertuples(), probs, masks)])


def figures(slices, by_slice=False):
    "What is kept of such rows"
    cases = case_table(slices)
    kept = {k: v for k, v in summarise(slices, cases).items() if k not in ('rules', 'worst_case', 'measures')}
    counts = slices if by_slice else slices.groupby('subject', as_index=False)[['both_px', 'pred_px', 'true_px']].sum()
    per_slice = slices.groupby('subject')['dice'].mean() if not by_slice else slices['dice']
    names = ['subject', *(['z'] if by_slice else []), 'both_px', 'pred_px', 'true_px', 'dice']
    columns = counts.assign(dice=per_slice.round(5).to_numpy())[names]
    return dict(kept, counts=json.loads(columns.to_json(orient='values')))


class Clock:
    "Wall seconds and CPU seconds"
    def __enter__(self):
        self.start = time.perf_counter(), time.process_time()
        return self
    def __exit__(self, *_):
        self.wall, self.cpu = (round(now - then, 1)
                               for now, then in zip((time.perf_counter(), time.process_time()), self.start))


def machine():
    "The machine, without which a timing means nothing"
    try:
        commit = subprocess.run(['git', '-C', str(HERE), 'describe', '--always', '--dirty'], capture_output=True,
                                text=True).stdout.strip()
    except OSError: commit = ''
    return dict(commit=commit, threads=torch.get_num_threads(), torch=torch.__version__,
                python=platform.python_version(), bf16=bool(in_precision('auto', 'cpu')))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(value, indent=None) + '\n').encode())
