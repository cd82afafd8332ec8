"Masks of another tool on the command line: what a user types, what the report says, and what is said of a bad file."
import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
from conftest import run

from liverseg.compare import evaluate_masks
from liverseg.nifti import stored_as
from liverseg.work import BadInput


@pytest.fixture
def folders(tmp_path):
    "Three cases; the predictions are stored in other axis orders, and the last one is empty"
    grid = nib.affines.from_matvec(np.diag([-.8, .9, 2.5]), [10, -20, 30])
    for k in range(3):
        true = np.zeros((24, 20, 10), np.uint8)
        true[4:18, 5:15, 2:8] = 1
        pred = np.roll(true, 1, k % 2)*(k < 2)
        for name, mask, order in (('truth', true, 'LAS'), ('pred', pred, ('PIR', 'RAS', 'SLA')[k])):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(stored_as(nib.Nifti1Image(mask, grid), order),
                     tmp_path / name / f'case{k}.nii{".gz"*(name == "truth")}')
    return tmp_path


def measure(folders, *more, ok=0, **kwargs):
    return run('evaluate', '--pred', folders / 'pred', '--truth', folders / 'truth', folders / 'report', *more, ok=ok,
               **kwargs)


def test_masks_are_measured_without_torch(folders, tmp_path):
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none/torch.py').write_text("raise ImportError('torch is not wanted here')\n")
    said = measure(folders, env=dict(PYTHONPATH=str(tmp_path / 'none'))).stdout
    assert '3 case(s): mean case Dice' in said and 'HD95' in said and '(1 infinite)' in said
    rows = list(csv.DictReader((folders / 'report/cases.csv').open()))
    assert list(rows[0])[:2] == ['subject', 'dice']
    assert {'hd95_mm', 'assd_mm', 'nsd', 'rvd', 'volume_ml_true', 'volume_ml_pred'} <= set(rows[0])
    assert [round(float(r['dice']), 4) for r in rows] == [round(13/14, 4), round(9/10, 4), 0]
    assert [r['hd95_mm'] for r in rows] == ['0.800000', '0.900000', 'inf']
    assert float(rows[0]['volume_ml_true']) == pytest.approx(14*10*6*.8*.9*2.5/1000)
    summary = json.loads((folders / 'report/summary.json').read_text(),
                         parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    assert summary['measures']['hd95_mm']['infinite'] == 1 and summary['rows'][2]['hd95_mm'] is None
    assert summary['measures']['hd95_mm']['mean'] == pytest.approx(.85)
    assert summary['rules']['measures']['recall']['truth_empty'] == 'undefined'


def test_two_reports_are_compared_case_by_case(folders):
    measure(folders)
    (folders / 'report').rename(folders / 'before')
    for k in range(3): nib.save(nib.load(folders / f'truth/case{k}.nii.gz'), folders / f'pred/case{k}.nii')
    said = measure(folders, '--against', folders / 'before').stdout
    found = json.loads((folders / 'report/against.json').read_text())['measures']
    assert found['dice']['difference'] == pytest.approx((1/14 + 1/10 + 1)/3, abs=1e-6)
    assert found['hd95_mm']['left_out'] == 1
    assert 'on 3 case(s)' in said
    assert math.isclose(float(said.split('Dice +')[1].split()[0]), found['dice']['difference'], abs_tol=1e-4)
    assert (folders / 'report/against.csv').read_text().startswith('subject,dice,dice_against,difference')
    measure(folders) # and a report with a comparison may be replaced
    assert not (folders / 'report/against.csv').exists()


def test_each_side_has_its_own_labels(folders):
    "5 is the liver in the prediction, and 1 something else; in the truth it is 1"
    for k in range(3):
        true = nib.load(folders / f'truth/case{k}.nii.gz')
        other = np.roll(np.asarray(true.dataobj), 9, 0)
        nib.save(nib.Nifti1Image(np.where(np.asarray(true.dataobj) > 0, 5, other).astype(np.uint8), true.affine),
                 folders / f'pred/case{k}.nii')
    assert 'mean case Dice 1.0000' not in measure(folders, '--liver', '1,5').stdout
    assert 'mean case Dice 1.0000' in measure(folders, '--pred-liver', '5').stdout
    assert json.loads((folders / 'report/summary.json').read_text())['labels'] == dict(pred=[5], truth=[])


def numbered(folders, *labels):
    "Predictions right in place, with the liver as the given number in each case, and another organ as 1"
    for k, n in enumerate(labels):
        true = nib.load(folders / f'truth/case{k}.nii.gz')
        other = np.roll(np.asarray(true.dataobj), 9, 0)
        nib.save(nib.Nifti1Image(np.where(np.asarray(true.dataobj) > 0, n, other).astype(np.uint8), true.affine),
                 folders / f'pred/case{k}.nii')


def told(folders, **how):
    "Measured in this process: all that was said, with the mean Dice; or what is wrong"
    said = []
    try:
        summary = evaluate_masks(folders / 'pred', folders / 'truth', folders / 'report', say=said.append, **how)
        said.append(f"mean {summary['mean_case_dice']:.4f}")
    except BadInput as e: said.append(str(e))
    return '\n'.join(said)


def test_a_liver_that_a_network_for_many_organs_missed(folders):
    "It counts as empty, and that is said; a number that is in none of the masks is rather a wrong one"
    numbered(folders, 5, 5, 0)
    found = told(folders, pred_liver=(5.,))
    assert 'case2.nii: has the labels 0, 1, and none of them is 5, so it counts as empty' in found
    assert 'mean 0.6667' in found
    assert 'nor has any other of the 3 masks' in (found := told(folders, pred_liver=(6,)))
    assert found.endswith('fix --pred-liver')
    for k in (0, 1):
        for side in ('truth', 'pred'): next((folders / side).glob(f'case{k}.*')).unlink()
    assert 'mean 0.0000' in told(folders, pred_liver=(5,))
    alone = nib.load(folders / 'truth/case2.nii.gz')
    nib.save(nib.Nifti1Image(np.asarray(alone.dataobj)*7, alone.affine), folders / 'pred/case2.nii')
    assert 'with --pred-liver' in told(folders)


def test_one_list_of_labels_for_two_numberings_is_said(folders):
    numbered(folders, 5, 5, 5)
    assert 'it has 1 and 5, its truth 1' in told(folders, liver=(1, 5))
    numbered(folders, 1, 1, 1)
    assert 'warning' not in told(folders, liver=(1, 2))


def test_masks_with_other_endings_are_measured_too(folders):
    "In capitals, or as a pair of files; none is passed over, and of two that could be meant one has to go"
    mask = nib.load(folders / 'truth/case0.nii.gz')
    nib.save(nib.Nifti1Pair(np.asarray(mask.dataobj), mask.affine), folders / 'truth/case0.hdr')
    assert 'in two forms' in told(folders)
    (folders / 'truth/case0.nii.gz').unlink()
    (folders / 'truth/case1.nii.gz').rename(folders / 'truth/case1.NII.GZ')
    (folders / 'pred/case2.nii').rename(folders / 'pred/case2.Nii')
    assert 'mean' in told(folders) and json.loads((folders / 'report/summary.json').read_text())['cases'] == 3


def save_like(folders, values):
    "A prediction for case1 with these values, on the truth's grid"
    nib.save(nib.Nifti1Image(values, nib.load(folders / 'truth/case1.nii.gz').affine), folders / 'pred/case1.nii')


@pytest.mark.parametrize('harm, says', [
    (lambda f: (f / 'pred/case1.nii').unlink(), 'has no mask for 1 of the 3 cases'),
    (lambda f: (f / 'pred/case1.nii').write_bytes(b'no NIfTI'), 'case1.nii'),
    (lambda f: nib.save(nib.Nifti1Image(np.zeros((24, 20, 9), np.uint8), np.eye(4)), f / 'pred/case1.nii'), 'shape'),
    (lambda f: save_like(f, np.full((24, 20, 10), .4, np.float32)), 'probability'),
    (lambda f: [p.unlink() for p in (f / 'truth').iterdir()], 'holds no mask'),
])
def test_a_bad_folder_or_mask_is_one_sentence(folders, harm, says):
    harm(folders)
    done = measure(folders, ok=1)
    said = [line for line in (done.stdout + done.stderr).splitlines() if says in line]
    assert len(said) == 1 and len(done.stderr.splitlines()) < 2 and not list(folders.glob('.report*'))
    if says in ('has no mask for 1 of the 3 cases', 'holds no mask'): assert not (folders / 'report').exists()
    else: # the others are measured, and the reason has a row
        rows = list(csv.DictReader((folders / 'report/cases.csv').open()))
        assert [bool(r['error']) for r in rows] == [False, True, False] and says in rows[1]['error']


def test_what_does_not_fit_together_is_refused(folders):
    assert '--pred and --truth go together' in run('evaluate', '--pred', folders / 'pred', folders / 'report',
                                                   ok=2).stderr
    assert 'give REPORT alone' in measure(folders, 'more', ok=2).stderr
    assert 'give DATA and REPORT' in run('evaluate', 'data', ok=2).stderr
    assert 'there is no such file' in measure(folders, '--against', folders / 'nowhere', ok=1).stderr
    assert not (folders / 'report').exists()


def test_names_in_letters_that_a_font_lacks(tmp_path):
    "They are boxes in a picture, and no warnings"
    true = np.zeros((30, 30, 12), np.uint8)
    true[5:25, 5:20, 2:10] = 1
    for name in ('肝臓', 'b'):
        for folder, mask in dict(truth=true, pred=np.roll(true, 1, 0)).items():
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(mask, np.diag([.8, .8, 5, 1])), tmp_path / folder / f'{name}.nii.gz')
    done = run('evaluate', '--pred', tmp_path / 'pred', '--truth', tmp_path / 'truth', tmp_path / 'out', ok=0)
    assert done.stderr == '' and '肝臓' in (tmp_path / 'out/cases.csv').read_text(encoding='utf-8')
