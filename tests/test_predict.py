"Segmenting scans on the command line: one, a folder of them, bad ones among them, and what is told of each."
import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import run
from test_bad_input import image


@pytest.fixture(scope='module')
def scans(cohort, tmp_path_factory):
    "Two scans of the cohort, one cut off, one that is a single slice, one without a body, and one that is none"
    folder = tmp_path_factory.mktemp('scans')
    whole = nib.load(image(cohort, 'test'))
    mid = whole.shape[2]//2
    nib.save(whole, folder / 'whole.nii.gz')
    nib.save(whole.slicer[:, :, mid:], folder / 'cut.nii')
    nib.save(whole.slicer[:, :, mid:mid + 1], folder / 'single.nii.gz')
    nib.save(nib.Nifti1Image(np.full(whole.shape, -1000, np.int16), whole.affine), folder / 'air.nii.gz')
    (folder / 'broken.nii.gz').write_bytes(b'\x1f\x8b no scan')
    return folder


@pytest.fixture(scope='module')
def night(scans, model, tmp_path_factory):
    out = tmp_path_factory.mktemp('night') / 'masks'
    return out, run('predict', model, scans, out, '--post', 'largest', '--post', 'fill', '--device', 'cpu', ok=1)


def test_a_folder_of_scans(scans, night):
    out, done = night
    assert {p.name for p in out.iterdir()} == {'results.csv', *(f'{n}{e}' for n in ('whole', 'cut', 'single', 'air') for e in ('.nii.gz', '.json', '.png'))}
    assert '5 scan(s), 1 failed' in done.stdout and 'broken.nii.gz: failed' in done.stdout and 'error: ' in done.stderr and 'broken.nii.gz' in done.stderr
    rows = {r['scan']: r for r in csv.DictReader((out / 'results.csv').open())}
    assert rows['air.nii.gz']['liver_found'] == 'False' and rows['broken.nii.gz']['error'] and 'feet' in rows['cut.nii']['touches'].split()
    for name in ('whole.nii.gz', 'single.nii.gz'):
        mask, scan = nib.load(out / name), nib.load(scans / name)
        assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine) and mask.get_data_dtype() == np.uint8


def test_the_result_tells_what_was_found(night):
    out, _ = night
    told = json.loads((out / 'whole.json').read_text(), parse_constant=pytest.fail)
    mask = nib.load(out / 'whole.nii.gz')
    assert told['voxels'] == np.count_nonzero(mask.dataobj) and told['volume_ml'] == pytest.approx(told['voxels']*abs(np.linalg.det(mask.affine[:3, :3]))/1000, abs=.01)
    assert told['post'] == ['largest', 'fill'] and told['pieces_before_post'] >= 1 and 0 < told['hu_mean'] < 200 and len(told['model']) == 16
    none = json.loads((out / 'air.json').read_text(), parse_constant=pytest.fail)
    assert none['liver_found'] is False and none['hu_mean'] is None and 'no liver was found' in none['warnings']
    assert any('HU' in w or 'same everywhere' in w for w in none['warnings'])


def test_a_second_run_does_only_what_is_left(scans, night, model):
    out, _ = night
    how = ['--post', 'fill', '--post', 'largest', '--device', 'cpu']
    times = lambda: {p.name: p.stat().st_mtime_ns for p in out.glob('*.nii.gz')}
    before = times()
    (out / 'cut.json').unlink() # as after a kill: the mask is there, the mark is not
    (out / 'cut.png').unlink()
    run('predict', model, scans, out, *how, ok=1)
    after = times()
    assert {n for n in after if after[n] != before[n]} == {'cut.nii.gz'}
    run('predict', model, scans, out, *how, '--overwrite', ok=1)
    assert all(times()[n] != after[n] for n in after)


def test_maps_lie_on_the_scan(cohort, model, tmp_path):
    scan = image(cohort, 'test')
    run('predict', model, scan, tmp_path / 'm.nii.gz', '--maps', '--tta', 'shifts', '--post', 'none', '--device', 'cpu', ok=0)
    mask, prob, spread = (nib.load(tmp_path / f'm{e}.nii.gz') for e in ('', '_prob', '_spread'))
    assert prob.shape == spread.shape == nib.load(scan).shape and np.allclose(prob.affine, nib.load(scan).affine)
    p, s = prob.get_fdata(), spread.get_fdata()
    sure = abs(p - .5) > .001 # the map has three digits
    assert ((p > .5) == (mask.get_fdata() > 0))[sure].all() and 0 <= p.min() and p.max() <= 1 and 0 < s.max() <= .5


def test_nothing_of_the_users_is_overwritten(cohort, model, tmp_path):
    (tmp_path / 'm.json').write_text('{"mine": 1}')
    done = run('predict', model, image(cohort, 'test'), tmp_path / 'm.nii.gz', '--device', 'cpu', ok=1)
    assert 'was not written by liverseg predict' in done.stderr and [p.name for p in tmp_path.iterdir()] == ['m.json']


def test_a_folder_of_patients_as_dicom(cohort, model, tmp_path):
    pytest.importorskip('pydicom')
    from liverseg.dicom import write_series
    whole = nib.load(image(cohort, 'test'))
    hu = np.asarray(whole.dataobj).astype(np.int16)
    for name, data in (('anna', hu), ('bert', hu[::-1])):
        write_series(data, whole.affine, tmp_path / 'ward' / name / 'SE1')
    nib.save(whole, tmp_path / 'ward/carl.nii.gz')
    (tmp_path / 'ward/notes').mkdir()
    (tmp_path / 'ward/notes/read.me').write_text('not a scan')
    (tmp_path / 'ward/dora').mkdir()
    (tmp_path / 'ward/dora/1.dcm').write_bytes(next((tmp_path / 'ward/anna/SE1').iterdir()).read_bytes()[:400])
    done = run('predict', model, tmp_path / 'ward', tmp_path / 'out', '--device', 'cpu', ok=1)
    rows = {r['scan']: r for r in csv.DictReader((tmp_path / 'out/results.csv').open())}
    assert set(rows) == {'anna', 'bert', 'carl.nii.gz', 'dora'} and [n for n in rows if rows[n]['error']] == ['dora'], done.stderr
    assert (nib.load(tmp_path / 'out/anna.nii.gz').get_fdata() > 0).sum() == (nib.load(tmp_path / 'out/carl.nii.gz').get_fdata() > 0).sum() > 0
    # the folder of one patient is one scan, however deep its series lie
    run('predict', model, tmp_path / 'ward/anna', tmp_path / 'anna.nii.gz', '--device', 'cpu', ok=0)
    nib.save(whole, tmp_path / 'ward/carl.nii')
    assert 'in two forms' in run('predict', model, tmp_path / 'ward', tmp_path / 'out', '--device', 'cpu', ok=1).stderr


class Bright(torch.nn.Module):
    "Takes what is bright for liver, and keeps what it was shown"
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += x.shape[0]*x.shape[2]*x.shape[3]
        return torch.stack([-x[:, 0], x[:, 0]], 1)*50


def trunk(balls, shape=(128, 112, 150), spacing=(3, 3, 2)):
    "A body, wider than deep, with bright balls (centre, radius) in mm, and its truth"
    at = np.stack(np.meshgrid(*(np.arange(n)*s for n, s in zip(shape, spacing)), indexing='ij'))
    middle = np.array([n*s/2 for n, s in zip(shape, spacing)])
    hu = np.where(((at[:2] - middle[:2, None, None, None])**2/np.array([150, 90])[:, None, None, None]**2).sum(0) < 1, 40, -1000)
    for centre, radius in balls: hu[((at - np.array(centre)[:, None, None, None])**2).sum(0) < radius**2] = 200
    return nib.Nifti1Image(hu.astype(np.int16), np.diag([*spacing, 1.]))


@pytest.mark.parametrize('balls', [
    [((150, 160, 150), 60)], # in the middle
    [((120, 160, 20), 50)], # cut off at the feet
    [((100, 150, 60), 30), ((250, 180, 250), 30)], # two, far apart
    [((60, 160, 150), 45)], # out of the body, towards the edge of the picture
    [((150, 160, 150), 6)], # as small as a first look is sure to meet
    [], # none
], ids=lambda balls: f'{len(balls)} balls')
@pytest.mark.parametrize('size', [128, 200])
def test_short_cuts_find_the_same(balls, size, tmp_path):
    from liverseg.predict import Segmenter
    from liverseg.train import describe
    nib.save(trunk(balls), tmp_path / 's.nii')
    found, seen = {}, {}
    for thorough in (False, True):
        seg = Segmenter(Bright(), dict(describe('resnet18', size), mean=[.7]*3, std=[.1]*3))
        found[thorough] = seg.segment(tmp_path / 's.nii', thorough=thorough, maps=True)
        seen[thorough] = seg.net.seen
    assert (found[False].mask == found[True].mask).all() and found[True].mask.any() == bool(balls)
    assert seen[True] == 150*size**2 and seen[False] < .8*seen[True]
    assert found[True].how['slices_looked_at'] == 150 and found[False].how['slices_looked_at'] >= 31


def test_no_slice_is_skipped_where_the_spacing_is_unknown(tmp_path):
    from liverseg.predict import Segmenter
    from liverseg.train import describe
    nib.save(nib.Nifti1Image(np.asarray(trunk([]).dataobj), np.eye(4)), tmp_path / 's.nii')
    seg = Segmenter(Bright(), dict(describe('resnet18', 128), mean=[.7]*3, std=[.1]*3))
    assert seg.segment(tmp_path / 's.nii').how['slices_looked_at'] == 150


@pytest.mark.parametrize('more, cut', [(dict(), True), (dict(arch='efficientnet_b0'), False), (dict(archs=['resnet18', 'efficientnet_b0']), False)])
def test_networks_that_see_all_at_once_are_shown_all(more, cut, tmp_path):
    from liverseg.predict import Segmenter
    from liverseg.train import describe
    nib.save(trunk([((150, 160, 150), 60)]), tmp_path / 's.nii')
    seg = Segmenter(Bright(), dict(describe('resnet18', 256), mean=[.7]*3, std=[.1]*3) | more)
    found = seg.segment(tmp_path / 's.nii')
    assert (seg.net.seen == found.how['slices_looked_at']*256**2) is not cut and found.how['slices_looked_at'] < 150
