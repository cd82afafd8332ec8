"Whole commands in this process, and whether what they say and write is right."
import csv
import io
import json
import sys
import unicodedata
import zlib
from contextlib import redirect_stderr, redirect_stdout

import nibabel as nib
import numpy as np
from PIL import Image

from liverseg.volume import AIR, check_same_grid, to_slices, window
from liverseg.cases import read_volume
from liverseg.nifti import write_mask
from liverseg.work import BadInput


class Rows(BadInput):
    "Sentences about rows of a folder, the others being done"


def command(*args, rows=False):
    """What a command says on both streams; exit status 1 raises its sentences as `BadInput`, any other status is a
    failure"""
    from liverseg.cli import main
    out, err, status = io.StringIO(), io.StringIO(), 0
    sys.argv = ['liverseg', *map(str, args)]
    with redirect_stdout(out), redirect_stderr(err):
        try: main.main([str(a) for a in args], prog_name='liverseg')
        except SystemExit as e: status = e.code or 0
    said = out.getvalue() + err.getvalue()
    print(said)
    odd = [c for c in said if unicodedata.category(c)[0] == 'C' and c != '\n'
           or unicodedata.category(c) in ('Zl', 'Zp')]
    assert not odd, f'said what is not printable: {odd[:3]}'
    assert status in (0, 1), f'exit status {status}: {err.getvalue()[-1000:]}'
    told = [line.split(': ', 1)[1] for line in err.getvalue().splitlines()
            if line.startswith(('liverseg: ', 'error: '))]
    if status == 1 and not (rows and any(line.startswith('error: ') for line in err.getvalue().splitlines())):
        assert told, f'exit status 1 without a sentence: {said[-1000:]}'
        raise BadInput('\n'.join(told))
    return said


def strict_json(path):
    "JSON of finite numbers"
    def _odd(name): raise AssertionError(f'{path.name} holds {name}')
    return json.loads(path.read_text(encoding='utf-8'), parse_constant=_odd)


def is_number(cell):
    try: float(cell)
    except ValueError: return False
    return True


def cells(path):
    "A table's rows as texts, none of which is a formula"
    with path.open(newline='', encoding='utf-8') as f: rows = list(csv.DictReader(f, strict=True))
    for row in rows:
        for name, cell in row.items():
            assert name is not None and cell is not None, f'{path.name}: rows of several lengths'
            assert is_number(cell) or not cell[:1] or cell[0] not in '=+-@\t\r', f'{path.name}: the formula {cell!r}'
            assert '\n' not in cell and '\r' not in cell, f'{path.name}: a cell of several lines'
    return rows


# ---- the same volume

def codes(vol): return {n.code for n in vol.notes}


def same(data, truth, what='voxels'):
    assert data.shape == truth.shape, f'{what}: the shape {data.shape} instead of {truth.shape}'
    off = np.abs(data.astype(float) - truth).max()
    assert off <= 1e-6*max(1, np.abs(truth.astype(float)).max()), f'other {what}, by up to {off:g}'


def padded(truth, fill): return np.where(truth < -1100, AIR, truth) if fill else truth


def seen(path, case, out, fill=AIR):
    "The volume that it must be, with what must be noted; a mask lies on the file's own grid"
    vol = read_volume(path, fill)
    assert np.isfinite(vol.data).all() and np.isfinite(vol.affine).all() and min(vol.spacing) > 0
    if case.must != 'sentence' and case.data is not None:
        data, k = case.data, 0
        if isinstance(data, tuple):
            k = [vol.data.shape == d.shape and (vol.data == d).all() for d in data].index(True)
            data = data[k]
        same(vol.data, padded(data, fill))
        assert np.allclose(vol.affine, case.affine, 1e-5,
                           1e-3), f'another grid: {vol.affine.tolist()} instead of {case.affine.tolist()}'
    assert case.note is None or case.note in codes(vol), f'says nothing of {case.note!r}, only {codes(vol)}'
    mask = (np.arange(vol.data.size) % 3 == 0).reshape(vol.data.shape).astype(np.uint8)
    write_mask(mask, vol, out / 'm.nii.gz')
    again = read_volume(out / 'm.nii.gz', fill=0)
    assert (again.data == mask).all()
    check_same_grid(vol, again)
    nifti = path.is_file() and path.name.lower().endswith(('.nii', '.gz'))
    if nifti and case.data is not None and 'member' not in getattr(case, 'name', ''):
        assert np.allclose(nib.load(out / 'm.nii.gz').affine, vol_affine(path), 1e-6, 1e-6), 'the mask lies elsewhere'


def vol_affine(path):
    "What a file's header says, unit and all"
    raw = path.read_bytes()
    if raw[:2] == b'\x1f\x8b': raw = zlib.decompressobj(31).decompress(raw, 10**6) # of several members the first tells
    kind = nib.Nifti2Image if 540 in (int.from_bytes(raw[:4], 'little'),
                                      int.from_bytes(raw[:4], 'big')) else nib.Nifti1Image
    return kind.from_bytes(raw).affine


def known(case): return case.must != 'sentence' and case.data is not None and not isinstance(case.data, tuple)


def checked(src, case, out):
    "check: the report tells the scan"
    command('check', src, '--json', out / 'r.json')
    subject, = strict_json(out / 'r.json')['subjects']
    told = {w['code'] for w in subject['warnings']}
    assert case.note is None or case.note in told, f'says nothing of {case.note!r}, only {told}'
    if not known(case): return
    data = padded(case.data, AIR)
    same_hu = np.allclose(subject['hu'], (data.min(), data.max()), 1e-5)
    assert tuple(subject['shape']) == data.shape and same_hu, f"another scan: {subject['shape']}, {subject['hu']}"
    spacing = nib.affines.voxel_sizes(case.affine)
    if subject['spacing'] is not None or 'spacing' not in told:
        assert np.allclose(subject['spacing'], spacing, 1e-4), f"spacing {subject['spacing']}, not {spacing}"
    if subject['liver_ml'] is not None and hasattr(case, 'labels'):
        assert np.isclose(subject['liver_ml'], (case.labels > 0).sum()*abs(np.linalg.det(case.affine[:3, :3]))/1000,
                          1e-3)


def converted(src, case, out, *options):
    "convert: the slices are those of the volume"
    command('convert', src, out, *options)
    rows = cells(out / 'manifest.csv')
    strict_json(out / 'dataset.json')
    if not known(case): return
    grey = to_slices(window(padded(case.data, AIR).astype(np.float32)))
    assert [int(r['z']) for r in rows] == list(range(len(grey))), f'{len(rows)} slices instead of {len(grey)}'
    for r, want in zip(rows, grey):
        same(np.asarray(Image.open(out / r['image'])), want, 'greys')
        if r['mask']:
            same(np.asarray(Image.open(out / r['mask'])), to_slices(case.labels > 0)[int(r['z'])].astype(np.uint8),
                 'labels')
    dx, dy, _ = nib.affines.voxel_sizes(case.affine)
    if rows[0]['dx']:
        assert np.allclose([float(rows[0][k]) for k in ('dx', 'dy', 'dz')],
                           [dx, dy, abs(np.linalg.det(case.affine[:3, :3]))/dx/dy], 1e-4)


def predicted(path, case, out, base):
    "predict: the mask is that of the sound scan where the scan is the same, and the result fits it"
    command('predict', path, out / 'm.nii.gz', '--model', base.model, '--device', 'cpu')
    told = strict_json(out / 'm.json')
    mask = read_volume(out / 'm.nii.gz', fill=0)
    assert told['voxels'] == (mask.data > 0).sum() and mask.data.max() <= 1 and tuple(told['shape']) == mask.data.shape
    if told['volume_ml'] is not None:
        assert np.isclose(told['volume_ml'], told['voxels']*abs(np.linalg.det(mask.affine[:3, :3]))/1000, 1e-3, .01)
    if not known(case): return
    assert mask.data.shape == case.data.shape and np.allclose(mask.affine, case.affine, 1e-5, 1e-3)
    as_before = case.data.shape == base.hu.shape and (case.data == base.hu).all()
    if as_before and np.allclose(case.affine, base.affine, atol=1e-3):
        same(mask.data, base.mask, 'mask')


def measured(pred, truth, case, out, base):
    "evaluate: Dice and volume of two masks, of which one was spoiled"
    command('evaluate', '--pred', pred, '--truth', truth, out)
    row, = cells(out / 'cases.csv')
    strict_json(out / 'summary.json')
    if not known(case): return
    a, b = base.other > 0, case.data > 0
    if a.shape != b.shape: raise AssertionError('masks of two shapes were compared')
    if not a.any() and not b.any(): assert row['dice'] == '', 'a Dice of two empty masks'; return
    dice = 2*(a & b).sum()/(a.sum() + b.sum())
    assert abs(float(row['dice']) - dice) < 1e-5, f"Dice {row['dice']} instead of {dice}"
