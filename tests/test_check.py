"Every finding of `liverseg check` on a file made for it, and files on which it must find nothing."
import gzip
import json
import struct
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from conftest import run, shared
from liverseg.check import as_json, check, examine, judge_mask, lung_like, table
from liverseg.cli import main
from liverseg.cases import Case, liver_mask, read_labels
from liverseg.phantom import STRUCTURES, make_subject, write_series
from liverseg.nifti import ORDERS, as_volume, stored_as

pytestmark = pytest.mark.filterwarnings('error')
GOOD = make_subject(3, shape=(64, 64, 22))
HU, LIVER, AFFINE, MIRROR = GOOD.hu, GOOD.labels, GOOD.affine, np.diag([-1., -1, 1, 1])
OTHER = make_subject(5, shape=(64, 64, 22)).hu
RNG = np.random.default_rng(0)


@pytest.fixture
def put(tmp_path):
    "Write a volume, both forms set"
    def _put(data, affine=AFFINE, qform=None, codes=(1, 1), units='mm', kind=nib.Nifti1Image, header=None, ext='.nii'):
        img = kind(data, affine, header, dtype=data.dtype)
        img.header.set_xyzt_units(units)
        img.set_sform(affine, codes[0]), img.set_qform(affine if qform is None else qform, codes[1])
        path = tmp_path / f'{len(list(tmp_path.iterdir())):03}{ext}'
        nib.save(img, path)
        return path
    return _put


@pytest.fixture
def look(put):
    "The report on one scan with its mask"
    def _look(hu=HU, labels=LIVER, spacing=None, liver=(), **kwargs):
        paths = [put(p, **kwargs) if isinstance(p, np.ndarray) else p for p in (hu, labels)]
        return examine(Case('s', 'train', *paths, spacing=spacing, liver=liver))
    return _look


def codes(report):
    assert report.errors == [], report.errors
    return {n.code for n in report.warnings}


def text(report, code): return next(n.text for n in report.warnings if n.code == code)


def poke(path, *changes):
    "Overwrite bytes of a file: (offset, struct format, value), ..."
    raw = bytearray(path.read_bytes())
    for at, form, value in changes: struct.pack_into(form, raw, at, value)
    path.write_bytes(raw)
    return path


def scaled(put, dtype, slope, inter, order='<'):
    "The good scan, stored with a scale factor"
    stored = np.round((HU - float(inter)) / slope).astype(np.dtype(dtype).newbyteorder(order))
    return poke(put(stored, header=nib.Nifti1Header(endianness=order)), (112, order + 'f', slope),
                (116, order + 'f', inter))


STORED = {
    'int16 − 1024': lambda p: scaled(p, 'i2', 1, -1024), 'uint16 − 1024': lambda p: scaled(p, 'u2', 1, -1024),
    'halves': lambda p: scaled(p, 'i2', .5, 0),
    'uint16 halves': lambda p: scaled(p, 'u2', .5, -1024), 'big-endian': lambda p: scaled(p, 'i2', 1, -1024, '>'),
    'int32': lambda p: p(HU.astype('i4')),
    'int64': lambda p: p(HU.astype('i8')), 'float32': lambda p: p(HU.astype('f4')),
    'float64': lambda p: p(HU.astype('f8')),
    'NIfTI-2': lambda p: p(HU, kind=nib.Nifti2Image), '.hdr/.img': lambda p: p(HU, kind=nib.Nifti1Pair, ext='.hdr'),
    '.nii.gz': lambda p: p(HU, ext='.nii.gz'),
    'qform only': lambda p: p(HU, codes=(0, 1)), 'sform only': lambda p: p(HU, qform=MIRROR, codes=(1, 0)),
}


@pytest.mark.parametrize('name', STORED)
def test_however_it_is_stored(name, put, look):
    "No finding, and the same fingerprint where the HU are the same"
    r, plain = look(STORED[name](put)), look()
    assert codes(r) == set() and r.key == plain.key and r.liver_ml == pytest.approx(plain.liver_ml)
    assert r.hu == plain.hu == (HU.min(), HU.max())


def test_all_storage_orders(put):
    keys = set()
    for order in ORDERS:
        img, mask = (stored_as(nib.load(put(a)), order) for a in (HU, LIVER))
        paths = [put(np.asarray(i.dataobj), i.affine) for i in (img, mask)]
        r = examine(Case('s', 'train', *paths))
        assert codes(r) == set() and r.orientation == order and r.shape == HU.shape
        assert r.labels == tuple(np.unique(LIVER))
        keys.add(r.key)
    assert len(keys) == 1


def judged(hu, mask, affine=AFFINE):
    return {n.code for n in judge_mask(as_volume(nib.Nifti1Image(hu, affine), 'scan'), mask)}


WRONG = {(): set(), (0,): {'liver side'}, (1,): {'spine'}, (2,): {'upside down'}, (0, 2): {'liver side', 'upside down'},
         (0, 1, 2): {'liver side', 'spine', 'upside down'}}


@pytest.mark.parametrize('axes', WRONG)
def test_axes_misread_in_all_storage_orders(axes):
    "The array is reversed, the affine is not; then it is stored in any order"
    hu, mask = (nib.Nifti1Image(np.flip(a, axes), AFFINE) for a in (HU, LIVER))
    for order in ORDERS:
        scan, liver = (as_volume(nib.Nifti1Image.from_bytes(stored_as(i, order).to_bytes()), 'scan')
                       for i in (hu, mask))
        assert {n.code for n in judge_mask(scan, liver.data)} == WRONG[axes], order


@pytest.mark.parametrize('seed', range(5, 29))
def test_true_masks_of_many_subjects(seed):
    s = make_subject(seed, shape=(64, 64, 22))
    for axes in WRONG:
        assert judged(np.flip(s.hu, axes), np.flip(s.labels, axes), s.affine) - {'cut off'} == WRONG[axes]


@pytest.mark.parametrize('below', [0, 150], ids=['', 'much air below'])
def test_a_long_scan(below):
    "At most every other slice is examined, and the liver lies far up"
    s = make_subject(78, shape=(64, 64, 150), spacing=(5.6, 5.6, 4.))
    for axes in ((), (2,)):
        hu, mask = (np.pad(np.flip(a, axes), ((0, 0), (0, 0), (below, 0)), constant_values=v)
                    for a, v in ((s.hu, -1000), (s.labels, 0)))
        assert judged(hu, mask, s.affine) == WRONG[axes]


def drowned(slices):
    "A trunk with effusions instead of lungs, and its true mask"
    s = make_subject(78, shape=(96, 96, slices), spacing=(3.8, 3.8, 4.), full=True)
    return np.where(s.anatomy == STRUCTURES['lung'][0], RNG.normal(20, 25, s.hu.shape), s.hu), s


def gassy(calibrated):
    "Below the liver, loops of bowel full of gas"
    hu, s = drowned(80)
    at = np.indices(hu.shape)
    loop = lambda *c: sum(((i - k)/r)**2 for i, k, r in zip(at, c, (9, 9, 8))) < 1
    loops = loop(32, 56, 12) | loop(64, 56, 14) | loop(48, 60, 24)
    soft = ndimage.gaussian_filter(loops.astype(float), .7)*(s.labels == 0)
    return (hu*(1 - soft) + RNG.normal(calibrated, 25, hu.shape)*soft).astype(np.int16), s.labels, s.affine


@pytest.mark.parametrize('hu', [-1000, -980, -960])
def test_bowel_gas_is_not_lung(hu):
    data, mask, affine = gassy(hu)
    air, inside = lung_like(data)
    gas = (data < -500)[inside].mean() # a grid of 96 voxels is not thinned
    assert gas > .03 and air.sum() < .3*gas*inside.sum() and judged(data, mask, affine) == set()


@pytest.mark.parametrize('wall, rows', [(1, (4, 19)), (3, (0, 9))], ids=['thin, below the back', 'thick, apart'])
def test_the_foam_of_a_table_is_not_lung(wall, rows):
    hu, s = drowned(130)
    hu[8:88, slice(*rows)] = 60
    hu[8 + wall:88 - wall, rows[0] + wall:rows[1] - wall] = -800
    top = int(np.flatnonzero(s.labels.any((0, 1)))[-1]) + 1
    data, mask = (a[..., :top].astype(np.int16) for a in (hu, s.labels))
    assert ((data > -950) & (data < -500)).mean() > .01 and 'upside down' not in judged(data, mask, s.affine)


def test_scans_without_lung_are_not_upside_down():
    top = int(np.flatnonzero(LIVER.any((0, 1)))[-1])
    for cut in range(3, top - 6):
        if not LIVER[..., :cut].any(): continue
        assert 'upside down' not in judged(HU[..., :cut], LIVER[..., :cut])
        assert 'upside down' not in judged(HU[..., cut-1::-1], LIVER[..., cut-1::-1])


@pytest.mark.parametrize('share, found', [(.01, False), (.06, True)])
def test_a_mask_that_runs_over(share, found):
    "By a share of its voxels beyond the body; noise alone is not reported"
    mask = (LIVER > 0).astype(np.uint8)
    above = sum(np.roll(mask, k, 2) for k in range(1, 5)) > 0
    air = np.flatnonzero(((HU < -400) & above).ravel())[:int(share*mask.sum())]
    mask[np.unravel_index(air, mask.shape)] = 1
    assert ('fat or air' in judged(HU, mask)) is found
    assert 'fat or air' not in judged((HU + RNG.normal(0, 90, HU.shape)).astype(np.int16), LIVER)


def test_the_largest_mask_is_judged_in_little_memory():
    "256 slices, all of them liver: 67 MB of mask"
    scan = as_volume(nib.Nifti1Image(np.full((512, 512, 256), 60, np.int16), np.diag([.7, .7, 1, 1])), 'scan')
    mask = np.ones(scan.data.shape, np.uint8)
    tracemalloc.start()
    try:
        assert {'cut off', 'volume'} <= {n.code for n in judge_mask(scan, mask)}
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally: tracemalloc.stop()


REAL = ('ircad', 'train', 'ircad_e01'), ('ircad', 'test', 'ircad_e17'), ('msd_volume', 'train', 'msd_10001')


@pytest.mark.parametrize('parts', REAL, ids=lambda p: p[-1])
def test_true_masks_of_patients(parts):
    paths = [shared(*parts[:2], 'nii', f'{parts[2]}_{kind}.nii.gz') for kind in ('orig', 'liver')]
    scan, labels = read_labels(Case('s', 'train', *paths))
    mask = liver_mask(labels)
    for axes in WRONG:
        notes = judge_mask(replace(scan, data=np.flip(scan.data, axes)), np.flip(mask, axes))
        assert {n.code for n in notes} == WRONG[axes]
    air, _ = lung_like(scan.data)
    step, slices = -(-mask.shape[2] // 96), mask.sum((0, 1), dtype=int)
    middle = (slices*np.arange(len(slices))).sum()/slices.sum()
    assert air[:, :, :int(np.ceil(middle/step))].sum() <= .0145*air.sum() and (scan.data[mask > 0] < -100).mean() < .001


@pytest.mark.parametrize('seed', [0, 7, 12, 15])
def test_other_anatomies(seed, look):
    s = make_subject(seed, shape=(64, 64, 22))
    assert codes(look(s.hu, s.labels, affine=s.affine)) == set()


@pytest.mark.parametrize('units, scale', [('meter', 1e-3), ('micron', 1e3), ('unknown', 1)])
def test_units(units, scale, look):
    r = look(affine=np.diag([scale]*3 + [1]) @ AFFINE, units=units)
    assert codes(r) == set() and r.spacing == pytest.approx(look().spacing, rel=1e-5)
    assert r.liver_ml == pytest.approx(look().liver_ml, rel=1e-5)


def full_size():
    hu = np.full((512, 512, 2), -1000, np.int16)
    hu[100:400, 100:400] = np.arange(300)[:, None, None]
    return hu

ONE = np.array([[1, 0, 0, -9], [0, 1, 0, 4], [0, 0, 1, 7], [0, 0, 0, 1.]])
TILTED, MOVED = AFFINE.copy(), AFFINE.copy()
TILTED[1, 2], MOVED[0, 3] = 1.5, AFFINE[0, 3] + 50
CORNER = np.zeros_like(LIVER)
CORNER[-4:, -4:, :4] = 1
TWO = LIVER.copy()
TWO[..., 11] = 0
FLOAT, GREY = HU.astype(np.float32), np.clip((HU + 150.)*.6375, 0, 255)
UNIT = (FLOAT + 1024)/(FLOAT.max() + 1024)
BURST = RNG.integers(-10**9, 10**9, HU.shape)
RADIUS = np.sqrt(sum(((i - (n - 1)/2)/(.42*n))**2 for i, n in zip(np.indices(HU.shape), HU.shape)))
HEAD = np.select([RADIUS < .85, RADIUS < .95, RADIUS < 1], [35, 1100, -60], -1000) + RNG.normal(0, 8, HU.shape)
RIM = FLOAT.copy()
RIM[0], RIM[:, 0], RIM[:, -1] = np.nan, -np.inf, np.inf
def turned(*step):
    return dict(hu=HU[tuple(slice(None, None, s) for s in step)],
                labels=LIVER[tuple(slice(None, None, s) for s in step)])
FOUND = { # what is done to the scan, and all that must be found
    'identity': (dict(affine=np.eye(4)), {'spacing'}, '--spacing'),
    'identity in LPS': (dict(affine=MIRROR, **turned(-1, -1, 1)), {'spacing'}),
    '1 mm and 512×512': (dict(hu=full_size(), labels=None, affine=ONE), {'spacing'}),
    '1 mm and smaller': (dict(hu=full_size()[:400], labels=None, affine=ONE), set()),
    'HU + 1024': (dict(hu=HU + 1024), {'not HU', 'liver HU'}, '1024'),
    'HU + 1024, no mask': (dict(hu=(HU + 1024).astype('u2'), labels=None), {'not HU'}),
    'HU + 1024, padded': (dict(hu=np.where(HU < -1000, -2000, HU + 1024), labels=None), {'padding', 'not HU'}),
    'HU + 1000': (dict(hu=HU + 1000, labels=None), {'not HU'}),
    '8 bits': (dict(hu=GREY.astype('u1')), {'not HU'}, '8-bit'), 'greys as floats': (dict(hu=GREY), {'not HU'}),
    'signed 8 bits': (dict(hu=(GREY - 128).astype('i1')), {'not HU'}),
    'min–max': (dict(hu=UNIT), {'not HU'}, '0…1', 'minimum'), 'min–max −1…1': (dict(hu=UNIT*2 - 1), {'not HU'}),
    'z scores': (dict(hu=(FLOAT - FLOAT.mean())/FLOAT.std()), {'not HU'}), 'HU/1000': (dict(hu=FLOAT/1000), {'not HU'}),
    'min–max, 12 bits': (dict(hu=UNIT*4095), {'not HU', 'liver HU'}),
    'padding −2000': (dict(hu=np.where(HU == HU.min(), -2000, HU)), {'padding'}),
    'padding −3024': (dict(hu=np.where(HU == HU.min(), -3024, FLOAT)), {'padding'}, '-3024'),
    'a rim of NaN': (dict(hu=RIM), {'not finite'}, 'filled with air'),
    'neither form': (dict(codes=(0, 0), labels=None), {'no form'}),
    'neither form nor spacing': (dict(affine=np.eye(4), codes=(0, 0), labels=None), {'no form', 'spacing'}),
    'forms disagree': (dict(qform=MOVED), {'forms disagree'}, '50 mm', 'sform was used'),
    'forms disagree, metres': (dict(affine=np.diag([1e-3]*3 + [1]) @ AFFINE, qform=np.diag([1e-3]*3 + [1]) @ MOVED,
                                    units='meter'), {'forms disagree'}, '50 mm'),
    'forms disagree in sign': (dict(qform=AFFINE @ MIRROR), {'forms disagree'}),
    'tilted gantry': (dict(affine=TILTED, codes=(1, 0)), {'sheared'}, '81.5°'),
    'mirrored': (turned(-1, 1, 1), {'liver side'}), 'front and back exchanged': (turned(1, -1, 1), {'spine'}),
    'LPS under RAS': (turned(-1, -1, 1), {'liver side', 'spine'}),
    'head and feet exchanged': (turned(1, 1, -1), {'upside down'}, 'feet side'),
    'turned about the axis to the front': (turned(-1, 1, -1), {'liver side', 'upside down'}),
    'all three exchanged': (turned(-1, -1, -1), {'liver side', 'spine', 'upside down'}),
    'into the lung': (dict(labels=np.roll(LIVER, 2, 2)), {'fat or air'}, 'below −100 HU'),
    'cut at the feet': (dict(hu=HU[..., 11:], labels=LIVER[..., 11:]), {'cut off'}, 'first slice', 'lower bound'),
    'cut at the head': (dict(hu=HU[..., :15], labels=LIVER[..., :15]), {'cut off'}, 'last slice'),
    'half a liver': (dict(affine=np.diag([.6, .6, .6, 1]) @ AFFINE), {'volume'}),
    'giant': (dict(affine=np.diag([1.7, 1.7, 1.7, 1]) @ AFFINE), {'volume'}),
    'two pieces': (dict(labels=TWO), {'pieces'}, '2 large'), 'empty mask': (dict(labels=LIVER*0), {'empty mask'}),
    'mask in a corner': (dict(labels=CORNER), {'cut off', 'volume', 'liver HU'}),
    'mask of 0 and 255': (dict(labels=(LIVER > 0)*np.uint8(255)), set()),
    'mask of floats': (dict(labels=LIVER + 1e-5), set()),
    'empty mask of floats': (dict(labels=LIVER*0. + 1e-5), {'empty mask'}),
    'other label is liver': (dict(labels=LIVER*np.uint8(6), liver=(6, 12)), set()),
    'no bone': (dict(hu=np.clip(HU, -1024, 200)), set()), 'no air': (dict(hu=np.clip(HU, -200, 3000)), set()),
    'one bright voxel': (dict(hu=np.where(HU == HU.max(), 1e30, FLOAT)), set()),
    'int32 ± 1e9': (dict(hu=BURST.astype('i4'), labels=None), {'padding', 'not HU'}),
    'float 1e30': (dict(hu=(BURST*1e21).astype('f4'), labels=None), {'padding', 'not HU'}),
    'float64 1e300': (dict(hu=(HU + .5)*1e300), {'not finite', 'not HU', 'liver HU'}),
    'constant': (dict(hu=HU*0 + 40), {'not HU'}, 'the same everywhere'),
    'nothing but NaN': (dict(hu=FLOAT*np.nan), {'not finite', 'not HU', 'liver HU'}),
    'one slice': (dict(hu=HU[..., 11], labels=LIVER[..., 11]), {'cut off', 'volume'}),
    'one voxel': (dict(hu=HU[:1, :1, :1], labels=None), {'not HU'}),
    'lower abdomen': (dict(hu=HU[..., :6], labels=None), set()),
    'a head': (dict(hu=HEAD.astype('i2'), labels=None), set()),
    'noise': (dict(hu=np.clip(HU + RNG.normal(0, 150, HU.shape), -1024, 3071).astype('i2')), set()),
}
@pytest.mark.parametrize('name', FOUND)
def test_found(name, look):
    way, expected, *words = FOUND[name]
    report = look(**way)
    assert codes(report) == expected
    for word in words: assert word in ' '.join(n.text for n in report.warnings)


def test_volumes_are_withheld_until_the_spacing_is_given(look):
    r, given = look(affine=np.eye(4)), look(affine=np.eye(4), spacing=(5, 5, 9.5))
    assert (r.spacing, r.liver_ml) == (None, None)
    assert codes(given) == set() and given.spacing == (5, 5, 9.5)
    assert given.liver_ml == pytest.approx((LIVER > 0).sum()*5*5*9.5/1000)
    assert look(spacing=(1, 1, 1)).spacing == look().spacing  # the file's own spacing takes precedence


def test_dicom(tmp_path):
    def series(name, drop=(), **changes):
        files = write_series(HU, AFFINE, tmp_path / name, **changes)
        for n in drop: files[n].unlink()
        return examine(Case(name, 'test', tmp_path / name))
    at = lambda *xyz: [f'{v:g}' for v in xyz]
    assert codes(series('good')) == set() and '1 slice is missing' in text(series('missing', [7]), 'uneven slices')
    assert '3 slices' in text(series('3', [7, 8, 15]), 'uneven slices')
    assert codes(series('uneven', ImagePositionPatient=lambda k: at(100, 100, 10*k + 4*(k == 5)))) == {'uneven slices'}
    assert codes(series('tilted', ImagePositionPatient=lambda k: at(100, 100 + 2*k, 10*k))) == {'sheared'}


COPIES = STORED | {
    'another axis order': lambda p: p(np.asarray(stored_as(nib.Nifti1Image(HU, AFFINE), 'SLP').dataobj)),
    'mirrored': lambda p: p(HU[::-1]),
    'no geometry': lambda p: p(HU, np.eye(4)), 'padding': lambda p: p(np.where(HU == HU.min(), -3024, HU)),
    'clipped': lambda p: p(np.clip(HU, -1000, 400)),
    'DICOM': lambda p: write_series(HU, AFFINE, p(HU).with_suffix('.d'))[0].parent,
    'floats a little off': lambda p: p(HU + RNG.uniform(-.01, .01, HU.shape)),
    'clipped to the window': lambda p: p(np.clip(HU, -150, 250)),
    'clipped to −200…250': lambda p: p(np.clip(HU, -200, 250)),
}


@pytest.mark.parametrize('name', COPIES)
def test_leakage(name, put):
    train, other, test = check([Case('a', 'train', put(HU)), Case('b', 'valid', put(OTHER)),
                                Case('c', 'test', COPIES[name](put))])
    assert len(train.errors) == 1 and train.image in train.errors[0] and test.image in train.errors[0]
    assert other.errors == test.errors == []


def test_twins(put):
    a, b, c = check([Case(n, 'train', put(d)) for n, d in zip('abc', (HU, HU.astype('f8'), OTHER))])
    assert codes(a) == codes(c) == set() and codes(b) == {'twin'} and text(b, 'twin').endswith(' a')
    bad = check([Case('a', 'train', put(HU), put(LIVER*np.uint8(9))), Case('b', 'test', put(HU))])[0].errors
    assert len(bad) == 2 and 'labels' in bad[0] and 'same voxels' in bad[1]


WRECKS = {'far above': lambda a: a + 32768., 'within ± ½': lambda a: a/5000.,
          'air only': lambda a: np.clip(a, -1024, -400)}


@pytest.mark.parametrize('name', WRECKS)
def test_two_patients_are_not_one(name, put):
    "No voxel is within the window, so no false error may stop a conversion"
    wrecked = [Case(n, s, put(WRECKS[name](d).astype('f4'))) for n, s, d in (('a', 'train', HU), ('b', 'test', OTHER))]
    assert [r.errors for r in check(wrecked)] == [[], []]


DAMAGE = { # bytes of a NIfTI-1 header
    'truncated': (lambda p: [p.write_bytes(p.read_bytes()[:-1])], 'truncated'),
    'truncated gzip': (lambda p: [p.write_bytes(p.read_bytes()[:3000])], 'truncated'),
    'checksum gone': (lambda p: [p.write_bytes(p.read_bytes()[:-5])], 'truncated'),
    'an unknown unit': (lambda p: poke(p, (123, 'B', 7)), None),
    'an unknown time unit': (lambda p: poke(p, (123, 'B', 58)), None),
    'negative shape': (lambda p: poke(p, (42, '<h', -64)), 'cannot be read'),
    'huge shape': (lambda p: poke(p, *((a, '<h', 32767) for a in (42, 44, 46))), 'cannot be read'),
    'no axis': (lambda p: poke(p, *((a, '<f', 0) for a in (284, 300, 316))), 'maps no volume'),
    'two axes nearly in one direction': (lambda p: poke(p, (312, '<f', 4.5e18)), 'maps no volume'),
    'an affine beyond all bounds': (lambda p: poke(p, (284, '<f', 3e38)), 'maps no volume'),
    'scale factor beyond all bounds': (lambda p: poke(p, (112, '<f', 3e38), (116, '<f', 0)), None),
    'offset beyond the end': (lambda p: poke(p, (108, '<f', 1e9)), 'cannot be read'),
    'offset that is not a number': (lambda p: poke(p, (108, '<f', np.nan)), 'cannot be read'),
    'invalid quaternion': (lambda p: poke(p, (256, '<f', 9)), None),
    'unknown type': (lambda p: poke(p, (70, '<h', 77)), 'cannot be read'),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_damaged_headers(name, put):
    "One sentence in the report, or a good report; never an exception or a warning from a library"
    spoil, expected = DAMAGE[name]
    path = put(HU, ext='.nii.gz' if 'gzip' in name or 'checksum' in name else '.nii')
    spoil(path)
    r = examine(Case('s', 'train', path, put(LIVER)))
    if expected is None: assert r.errors == [] and r.shape == HU.shape
    else:
        assert len(r.errors) == 1, r.errors
        assert str(path) in r.errors[0] and expected in r.errors[0] and '\n' not in r.errors[0], r.errors


def test_a_small_file_does_not_take_much_memory(put):
    "It claims 800 MB"
    path = poke(put(HU), (42, '<h', 4096), (44, '<h', 4096), (46, '<h', 24))
    tracemalloc.start()
    try: assert examine(Case('s', 'test', path)).errors and tracemalloc.get_traced_memory()[1] < 50e6
    finally: tracemalloc.stop()


JUNK = [struct.pack('<f', v) for v in (np.nan, np.inf, -3e38, 1e18, 0)]
JUNK += [struct.pack('<i', v) for v in (-1, 2**31 - 1)]


def fuzz(rng, raw):
    "A few bytes of a header changed"
    raw = bytearray(raw)
    for at in map(int, rng.integers(4, (348 if raw[0] == 92 else 540) - 4, rng.integers(1, 5))):
        new = [*JUNK, rng.bytes(1), rng.bytes(2), rng.bytes(2)][rng.integers(10)]
        at -= at % len(new)
        raw[at:at + len(new)] = new
    return bytes(raw)


def test_fuzzed_headers(put, tmp_path):
    small = HU[::4, ::4, ::4], LIVER[::4, ::4, ::4]
    for part, name in enumerate(('scan', 'mask')):
        good = [put(small[part], kind=k).read_bytes() for k in (nib.Nifti1Image, nib.Nifti2Image)]
        paths = [put(a) for a in small]
        paths[part] = tmp_path / 'fuzzed.nii.gz'
        for seed in range(200):
            paths[part].write_bytes(gzip.compress(fuzz(np.random.default_rng(seed), good[seed % 2]), 1))
            try: r = examine(Case('s', 'train', *paths))
            except Exception as e: raise AssertionError(f'seed {seed}, {name}') from e
            assert not any('\n' in e or 'cannot be examined' in e for e in r.errors), (seed, name, r.errors)


def test_tiny_random_volumes(tmp_path):
    "Any type, any affine, NaN and infinity, with masks of any type: a report that can be printed and written"
    def volume(rng, shape, dtype):
        if dtype[0] != 'f': return rng.integers(0, 3 if rng.random() < .4 else np.iinfo(dtype).max, shape, dtype)
        data = rng.standard_normal(shape) * 10.**rng.integers(-40, 38)
        data[rng.random(shape) < .1*rng.integers(0, 2)] = rng.choice([np.nan, np.inf, -np.inf])
        return data.astype(dtype)
    for seed in range(200):
        rng, paths = np.random.default_rng(seed), [tmp_path / 'scan.nii', tmp_path / 'mask.nii']
        shape = rng.integers(1, 7, 3)
        affine = nib.affines.from_matvec(rng.standard_normal((3, 3)) * 10.**rng.integers(-2, 3))
        for n, path in enumerate(paths):
            data = volume(rng, shape, str(rng.choice(['i1', 'u1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f4', 'f8'])))
            nib.save(nib.Nifti1Image(np.clip(data, 0, 2) if n and rng.random() < .7 else data, affine,
                                     dtype=data.dtype), path)
        try: report = [examine(Case('s', 'train', *paths))]
        except Exception as e: raise AssertionError(f'seed {seed}') from e
        assert not any('cannot be examined' in e for e in report[0].errors), (seed, report[0].errors)
        json.dumps(as_json(report, 'src'), allow_nan=False)
        assert len(table(report)) == 1


def liverseg(*args, status):
    done = CliRunner().invoke(main, list(map(str, args)))
    assert done.exit_code == status, (done.output, done.exception)
    return done


def test_command(src, tmp_path):
    "Table, JSON and exit status; nothing is written into SRC"
    scan = next((src / 'train/nii').glob('*e01_orig*'))
    before = sorted(src.rglob('*'))
    done = liverseg('check', src, '--strict', status=0)
    assert 'nothing wrong' in done.stdout and done.stderr == '' and len(done.stdout.splitlines()) == 1 + 4 + 1
    img = nib.load(scan)
    hu = np.asarray(img.dataobj)
    nib.save(nib.Nifti1Image(np.where(hu == hu.min(), -2000, hu), img.affine), scan)
    done = liverseg('check', src, '--json', tmp_path / 'report.json', status=0)
    assert done.stderr.startswith('warning: synth_e01: ') and len(done.stderr.splitlines()) == 1
    assert '1 warning(s)' in done.stdout
    said = json.loads((tmp_path / 'report.json').read_text())
    assert (said['errors'], said['warnings']) == (0, 1)
    assert [s['subject'][-3:] for s in said['subjects']] == ['e01', 'e02', 'e03', 'e04']
    one = said['subjects'][0]
    assert one['warnings'][0]['code'] == 'padding' and one['shape'] == [64, 64, 22]
    assert one['labels'] in ([0, 1], [0, 1, 2]) and one['orientation'] == 'RAS'
    assert len(one['spacing']) == 3 and one['hu'][0] == -1024 and 500 < one['liver_ml'] < 4000 and one['errors'] == []
    assert liverseg('check', src, '--strict', status=1).stderr.splitlines()[-1].startswith('liverseg: ')
    assert sorted(src.rglob('*')) == before


def test_command_on_leakage(src, tmp_path):
    scan = next((src / 'train/nii').glob('*e02_orig*'))
    nib.save(stored_as(nib.load(scan), 'LPI'), src / 'test/nii/stranger_orig.nii.gz')
    done = liverseg('check', src, '--json', tmp_path / 'report.json', status=1)
    assert done.stderr.startswith(f'liverseg: {scan}: has the same voxels as ') and len(done.stderr.splitlines()) == 1
    assert 'ERROR' in done.stdout and json.loads((tmp_path / 'report.json').read_text())['errors'] == 1
    assert done.stderr == liverseg('convert', src, tmp_path / 'png', status=1).stderr
    assert not (tmp_path / 'png').exists()


def test_only_our_own_sentences(src):
    scan = next((src / 'train/nii').glob('*e01_orig*'))
    path = scan.with_suffix('')
    path.write_bytes(gzip.decompress(scan.read_bytes())), scan.unlink()
    poke(path, (80, '<f', -nib.load(path).header['pixdim'][1]))  # a spacing with a sign, as some writers have it
    assert run('check', src, ok=0).stderr == ''
