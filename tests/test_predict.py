"Segmenting scans on the command line: one, a folder of them, bad ones among them, and what is reported about each."
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
    return out, run('predict', scans, out, '--model', model, '--post', 'largest', '--post', 'fill', '--device', 'cpu',
                    ok=1)


def test_a_folder_of_scans(scans, night):
    out, done = night
    assert {p.name for p in out.iterdir()} == {'results.csv', 'triage.html',
                                               *(f'{n}{e}' for n in ('whole', 'cut', 'single', 'air')
                                                 for e in ('.nii.gz', '.json', '.png'))}
    assert '5 scan(s), 1 failed' in done.stdout and 'broken.nii.gz: failed' in done.stdout and 'error: ' in done.stderr
    assert 'broken.nii.gz' in done.stderr
    rows = {r['scan']: r for r in csv.DictReader((out / 'results.csv').open())}
    assert rows['air.nii.gz']['liver_found'] == 'False'
    assert rows['air.nii.gz']['warnings'].endswith('no liver was found')
    assert 'a lower bound' in rows['cut.nii']['warnings'] and rows['broken.nii.gz']['warnings'] == ''
    assert rows['broken.nii.gz']['error'] and 'feet' in rows['cut.nii']['touches'].split()
    for name in ('whole.nii.gz', 'single.nii.gz'):
        mask, scan = nib.load(out / name), nib.load(scans / name)
        assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine) and mask.get_data_dtype() == np.uint8


def test_the_worst_come_first(night):
    "Errors, then what has warnings; the page shows every picture there is; a model of one's own knows no expected Dice"
    out, _ = night
    rows = list(csv.DictReader((out / 'results.csv').open()))
    assert [r['scan'] for r in rows][0] == 'broken.nii.gz' and all(r['expected_dice'] == '' for r in rows)
    doubtful = [bool(r['warnings']) for r in rows[1:]]
    assert doubtful == sorted(doubtful, reverse=True)
    page = (out / 'triage.html').read_text()
    shown = [page.index(f'<b>{r["scan"]}</b>') for r in rows]
    assert shown == sorted(shown) and all(f'src="{n}.png"' in page for n in ('whole', 'cut', 'single', 'air'))
    assert 'src="broken' not in page


def test_the_network_that_ships_says_what_to_expect(scans, tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('whole.nii.gz', 'cut.nii'): (tmp_path / 'in' / name).write_bytes((scans / name).read_bytes())
    run('predict', tmp_path / 'in', tmp_path / 'out', '--device', 'cpu', ok=0)
    expected = [float(r['expected_dice']) for r in csv.DictReader((tmp_path / 'out/results.csv').open())]
    assert len(expected) == 2 and expected == sorted(expected) and 0 < expected[0] <= expected[1] < 1
    assert json.loads((tmp_path / 'out/whole.json').read_text())['expected_dice'] in expected


def test_a_page_of_the_users_is_not_replaced(scans, model, tmp_path):
    (tmp_path / 'triage.html').write_text('my notes')
    done = run('predict', scans, tmp_path, '--model', model, '--device', 'cpu', ok=1)
    assert done.stderr.count('\n') == 1 and 'triage.html' in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['triage.html']
    assert (tmp_path / 'triage.html').read_text() == 'my notes'


def test_the_result_says_what_was_found(night):
    out, _ = night
    told = json.loads((out / 'whole.json').read_text(), parse_constant=pytest.fail)
    mask = nib.load(out / 'whole.nii.gz')
    assert told['voxels'] == np.count_nonzero(mask.dataobj)
    assert told['volume_ml'] == pytest.approx(told['voxels']*abs(np.linalg.det(mask.affine[:3, :3]))/1000, abs=.01)
    assert told['post'] == ['largest', 'fill'] and told['pieces_before_post'] >= 1 and 0 < told['hu_mean'] < 200
    assert len(told['model']) == 16
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
    table = (out / 'results.csv').read_text()
    run('predict', scans, out, '--model', model, *how, ok=1)
    after = times()
    assert {n for n in after if after[n] != before[n]} == {'cut.nii.gz'}
    told = [[{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(t.splitlines())]
            for t in (table, (out / 'results.csv').read_text())]
    assert told[0] == told[1] and any(r['warnings'] for r in told[1]) # read from the .json of the first run
    run('predict', scans, out, '--model', model, *how, '--overwrite', ok=1)
    assert all(times()[n] != after[n] for n in after)


@pytest.fixture(scope='module')
def trained(png, tmp_path_factory):
    "A model good enough to find one liver, on either side"
    folder = tmp_path_factory.mktemp('trained') / 'model'
    run('train', png, folder, '--size', 64, '--epochs', 6, '--arch', 'resnet18', '--no-pretrained', '--flip',
        '--device', 'cpu', ok=0, env={'OMP_NUM_THREADS': '1'}) # the network depends on the number of threads
    return folder


LIES = { # what is done to the scan, and what is said of the answer
    'as it is': (lambda hu: hu, ()), 'mirrored': (lambda hu: hu[::-1], ("to the patient's left",)),
    'head and feet exchanged': (lambda hu: hu[..., ::-1], ('lies on the feet side of the liver',)),
    'front and back exchanged': (lambda hu: hu[:, ::-1], ('spine is not behind the liver',)),
    'HU + 1024': (lambda hu: hu + 1024, ('no Hounsfield units', 'the median inside the mask is')),
}


@pytest.mark.parametrize('name', LIES)
def test_a_scan_that_lies(name, cohort, trained, tmp_path):
    "On the command line, in the result, and with exit status 0"
    change, words = LIES[name]
    whole = nib.load(image(cohort, 'test'))
    nib.save(nib.Nifti1Image(change(np.asarray(whole.dataobj)), whole.affine), tmp_path / 's.nii.gz')
    done = run('predict', tmp_path / 's.nii.gz', tmp_path / 'm.nii.gz', '--model', trained, '--device', 'cpu', ok=0)
    told = json.loads((tmp_path / 'm.json').read_text())
    assert done.stderr.splitlines() == [f"warning: {tmp_path / 's.nii.gz'}: {w}" for w in told['warnings']]
    assert told['liver_found']
    for word in {w for _, ws in LIES.values() for w in ws}: assert (word in done.stderr) == (word in words), word


def test_a_scan_without_liver_is_no_error(scans, model, tmp_path):
    done = run('predict', scans / 'air.nii.gz', tmp_path / 'm.nii.gz', '--model', model, '--device', 'cpu', ok=0)
    assert 'no liver was found' in done.stderr and 'liver volume 0.0 mL' in done.stdout
    assert not np.asarray(nib.load(tmp_path / 'm.nii.gz').dataobj).any()


def test_maps_lie_on_the_scan(cohort, model, tmp_path):
    scan = image(cohort, 'test')
    run('predict', scan, tmp_path / 'm.nii.gz', '--model', model, '--maps', '--tta', 'shifts', '--post', 'none',
        '--device', 'cpu', ok=0)
    mask, prob, spread = (nib.load(tmp_path / f'm{e}.nii.gz') for e in ('', '_prob', '_spread'))
    assert prob.shape == spread.shape == nib.load(scan).shape and np.allclose(prob.affine, nib.load(scan).affine)
    p, s = prob.get_fdata(), spread.get_fdata()
    sure = abs(p - .5) > .001 # the map has three digits
    assert ((p > .5) == (mask.get_fdata() > 0))[sure].all() and 0 <= p.min() and p.max() <= 1 and 0 < s.max() <= .5


def test_nothing_of_the_users_is_overwritten(cohort, model, tmp_path):
    (tmp_path / 'm.json').write_text('{"mine": 1}')
    done = run('predict', image(cohort, 'test'), tmp_path / 'm.nii.gz', '--model', model, '--device', 'cpu', ok=1)
    assert 'was not written by liverseg predict' in done.stderr and [p.name for p in tmp_path.iterdir()] == ['m.json']


FOREIGN = { # what lies where something is to be written, and what is asked for
    'a mask drawn by hand': (lambda scan, d: nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)),
                                                      d / 'm.nii.gz'), 'm.nii.gz', ()),
    'something else': (lambda scan, d: (d / 'm.nii.gz').write_bytes(b'mine'), 'm.nii.gz', ()),
    'a map of another tool': (lambda scan, d: (d / 'm_prob.nii.gz').write_bytes(b'mine'), 'm_prob.nii.gz', ('--maps',)),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_no_foreign_file_is_replaced(name, cohort, model, tmp_path):
    make, where, how = FOREIGN[name]
    make(image(cohort, 'test'), tmp_path)
    before = (tmp_path / where).read_bytes()
    done = run('predict', image(cohort, 'test'), tmp_path / 'm.nii.gz', '--model', model, *how, '--device', 'cpu', ok=1)
    assert done.stderr.count('\n') == 1 and f'{where}: exists and was not written' in done.stderr
    assert (tmp_path / where).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [where]


def test_maps_never_replace_the_scan(cohort, model, tmp_path):
    scan = tmp_path / 'ct_prob.nii.gz'
    scan.write_bytes(image(cohort, 'test').read_bytes())
    done = run('predict', scan, tmp_path / 'ct.nii.gz', '--maps', '--model', model, '--device', 'cpu', ok=1)
    assert 'would replace the scan' in done.stderr and scan.read_bytes() == image(cohort, 'test').read_bytes()


def test_a_folder_that_holds_something_else(scans, model, tmp_path):
    "A table and masks of the user's own, and the folder of the scans itself"
    (tmp_path / 'results.csv').write_text('case,dice\n1,0.9\n')
    done = run('predict', scans, tmp_path, '--model', model, '--device', 'cpu', ok=1)
    assert done.stderr.count('\n') == 1 and 'results.csv: exists and was not written' in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['results.csv']
    done = run('predict', scans, scans, '--model', model, '--device', 'cpu', ok=1)
    assert done.stderr.count('\n') == 1 and 'is the folder with the scans' in done.stderr


def test_a_voxel_size_that_comes_later(cohort, model, tmp_path):
    "Without one no volume is reported; with --spacing the scans are done again"
    whole = nib.load(image(cohort, 'test'))
    (tmp_path / 'in').mkdir()
    for name in 'ab': nib.save(nib.Nifti1Image(np.asarray(whole.dataobj), None), tmp_path / f'in/{name}.nii.gz')
    done = run('predict', tmp_path / 'in', tmp_path / 'out', '--model', model, '--device', 'cpu', ok=0)
    assert done.stdout.count('volume unknown') == 2
    done = run('predict', tmp_path / 'in', tmp_path / 'out', '--model', model, '--device', 'cpu', '--spacing', '3,3,5',
               ok=0)
    assert 'volume unknown' not in done.stdout and done.stdout.count(' mL') == 2


def test_a_scan_that_replaced_another(cohort, model, tmp_path):
    "What was made from another file, or in another way, is made again; maps of the earlier mask go"
    scans, out = tmp_path / 'in', tmp_path / 'out'
    scans.mkdir()
    (scans / 'a.nii.gz').write_bytes(image(cohort, 'test').read_bytes())
    told = lambda: json.loads((out / 'a.json').read_text())
    run('predict', scans, out, '--model', model, '--maps', '--device', 'cpu', ok=0)
    first = told()
    assert (out / 'a_prob.nii.gz').is_file()
    run('predict', scans, out, '--model', model, '--post', 'none', '--device', 'cpu', ok=0)
    assert told()['post'] == [] and not (out / 'a_prob.nii.gz').exists()
    (scans / 'a.nii.gz').write_bytes(image(cohort, 'train').read_bytes())
    run('predict', scans, out, '--model', model, '--post', 'none', '--device', 'cpu', ok=0)
    assert told()['voxels'] != first['voxels']


def test_a_mask_that_was_edited_stays(cohort, model, tmp_path):
    "Ours until somebody edits and saves it, whatever lies beside it and whatever is asked for"
    scans, mask = tmp_path / 'in', tmp_path / 'out/a.nii.gz'
    scans.mkdir()
    (scans / 'a.nii.gz').write_bytes(image(cohort, 'test').read_bytes())
    run('predict', scans, tmp_path / 'out', '--model', model, '--device', 'cpu', ok=0)
    nib.save(nib.Nifti1Image(np.ones(nib.load(mask).shape, np.uint8), nib.load(mask).affine), mask)
    done = run('predict', scans, tmp_path / 'out', '--model', model, '--device', 'cpu', '--overwrite', ok=1)
    assert 'a.nii.gz: exists and was not written' in done.stderr and nib.load(mask).get_fdata().all()
    mask.unlink() # and without it, what lies beside it is still ours
    run('predict', scans, tmp_path / 'out', '--model', model, '--device', 'cpu', ok=0)


def test_what_a_result_was_made_from(tmp_path):
    "The voxels of a pair, the archive that a path leads into, and options; not the number of slices at once"
    from types import SimpleNamespace
    from liverseg.results import made_from
    seg = SimpleNamespace(name='a', meta={})
    for name in ('s.hdr', 's.img', 's.zip'): (tmp_path / name).write_bytes(b'1')
    first = {name: made_from(tmp_path / name, seg, {}) for name in ('s.hdr', 's.zip', 's.zip/inner/1')}
    assert len(set(first.values())) == 3
    for name in ('s.img', 's.zip'): (tmp_path / name).write_bytes(b'22')
    assert not any(made_from(tmp_path / name, seg, {}) == mark for name, mark in first.items())
    now = made_from(tmp_path / 's.hdr', seg, dict(tta='none', bs=1))
    assert now == made_from(tmp_path / 's.hdr', seg, dict(tta='none', bs=4))
    assert now != made_from(tmp_path / 's.hdr', seg, dict(tta='flip', bs=4))


def test_endings_of_all_kinds(cohort, model, tmp_path):
    "Capitals and pairs are scans too; what looks like a scan and is none of ours is counted, the rest is named"
    whole = nib.load(image(cohort, 'test'))
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/B.NII.GZ').write_bytes(image(cohort, 'test').read_bytes())
    nib.save(nib.Nifti1Pair(np.asarray(whole.dataobj), whole.affine), tmp_path / 'in/c.img')
    (tmp_path / 'in/d.mgz').write_bytes(b'1')
    (tmp_path / 'in/e.nrrd').write_text('NRRD0004')
    (tmp_path / 'in/notes.txt').write_text('mine')
    done = run('predict', tmp_path / 'in', tmp_path / 'out', '--model', model, '--device', 'cpu', ok=1)
    assert '4 scan(s), 2 failed' in done.stdout
    assert 'd.mgz: is neither NIfTI' in done.stderr and 'e.nrrd: its header cannot be read' in done.stderr
    assert 'notes.txt' in done.stderr
    one, other = (np.asarray(nib.load(tmp_path / f'out/{n}.nii.gz').dataobj) for n in 'Bc')
    assert (one == other).all()


def test_a_folder_of_patients_as_dicom(cohort, model, tmp_path):
    pytest.importorskip('pydicom')
    from liverseg.phantom import write_series
    whole = nib.load(image(cohort, 'test'))
    hu = np.asarray(whole.dataobj).astype(np.int16)
    for name, data in (('anna', hu), ('bert', hu[::-1])):
        write_series(data, whole.affine, tmp_path / 'ward' / name / 'SE1')
    nib.save(whole, tmp_path / 'ward/carl.nii.gz')
    (tmp_path / 'ward/notes').mkdir()
    (tmp_path / 'ward/notes/read.me').write_text('not a scan')
    (tmp_path / 'ward/dora').mkdir()
    (tmp_path / 'ward/dora/1.dcm').write_bytes(next((tmp_path / 'ward/anna/SE1').iterdir()).read_bytes()[:400])
    done = run('predict', tmp_path / 'ward', tmp_path / 'out', '--model', model, '--device', 'cpu', ok=1)
    rows = {r['scan']: r for r in csv.DictReader((tmp_path / 'out/results.csv').open())}
    assert set(rows) == {'anna', 'bert', 'carl.nii.gz', 'dora'}, done.stderr
    assert [n for n in rows if rows[n]['error']] == ['dora'], done.stderr
    anna, carl = ((nib.load(tmp_path / f'out/{n}.nii.gz').get_fdata() > 0).sum() for n in ('anna', 'carl'))
    assert anna == carl > 0
    # the folder of one patient is one scan, however deep its series lie
    run('predict', tmp_path / 'ward/anna', tmp_path / 'anna.nii.gz', '--model', model, '--device', 'cpu', ok=0)
    nib.save(whole, tmp_path / 'ward/carl.nii')
    assert 'in two forms' in run('predict', tmp_path / 'ward', tmp_path / 'out', '--model', model, '--device', 'cpu',
                                 ok=1).stderr


class Sided(torch.nn.Module):
    "Sees what is bright on the left of the picture alone, where the patient's right is"
    def forward(self, x):
        here = torch.zeros_like(x[:, 0]); here[..., :x.shape[3]//2] = 1
        return torch.stack([here*0, (here*(x[:, 0] + 9) - 9)*50], 1)


@pytest.mark.parametrize('turn, told', [(1, False), (-1, True)])
def test_a_mirrored_scan_is_noticed(turn, told):
    "A warning where the network finds more with left and right exchanged; one trained with flips is not asked"
    from liverseg.predict import Segmenter
    from liverseg.save import describe
    from liverseg.nifti import as_volume
    img = trunk([((250, 170, 150), 60), ((100, 170, 150), 20)])
    vol = as_volume(nib.Nifti1Image(np.asarray(img.dataobj)[::turn], img.affine), 's.nii')
    meta = dict(describe('resnet18', 128), mean=[.7]*3, std=[.1]*3)
    said = [w for w in Segmenter(Sided(), meta).segment(vol).result()['warnings'] if 'left and right exchanged' in w]
    assert bool(said) == told
    assert Segmenter(Sided(), dict(meta, flip=True)).segment(vol).how['mirrored'] is None


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
    hu = np.where(((at[:2] - middle[:2, None, None, None])**2/np.array([150, 90])[:, None, None, None]**2).sum(0) < 1,
                  40, -1000)
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
    from liverseg.save import describe
    nib.save(trunk(balls), tmp_path / 's.nii')
    found, seen = {}, {}
    for thorough in (False, True):
        seg = Segmenter(Bright(), dict(describe('resnet18', size), mean=[.7]*3, std=[.1]*3, flip=True))
        found[thorough] = seg.segment(tmp_path / 's.nii', thorough=thorough, maps=True)
        seen[thorough] = seg.net.seen
    assert (found[False].mask == found[True].mask).all() and found[True].mask.any() == bool(balls)
    assert seen[True] == 150*size**2 and seen[False] < .8*seen[True]
    assert found[True].how['slices_looked_at'] == 150 and found[False].how['slices_looked_at'] >= 31


def test_no_slice_is_skipped_where_the_spacing_is_unknown(tmp_path):
    from liverseg.predict import Segmenter
    from liverseg.save import describe
    nib.save(nib.Nifti1Image(np.asarray(trunk([]).dataobj), np.eye(4)), tmp_path / 's.nii')
    seg = Segmenter(Bright(), dict(describe('resnet18', 128), mean=[.7]*3, std=[.1]*3))
    assert seg.segment(tmp_path / 's.nii').how['slices_looked_at'] == 150


@pytest.mark.parametrize('more, cut', [(dict(), True), (dict(arch='efficientnet_b0'), False),
                                       (dict(archs=['resnet18', 'efficientnet_b0']), False)])
def test_networks_that_see_all_at_once_are_shown_all(more, cut, tmp_path):
    from liverseg.predict import Segmenter
    from liverseg.save import describe
    nib.save(trunk([((150, 160, 150), 60)]), tmp_path / 's.nii')
    seg = Segmenter(Bright(), dict(describe('resnet18', 256), mean=[.7]*3, std=[.1]*3, flip=True) | more)
    found = seg.segment(tmp_path / 's.nii')
    assert (seg.net.seen == found.how['slices_looked_at']*256**2) is not cut and found.how['slices_looked_at'] < 150
