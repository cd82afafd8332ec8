"Masks of another tool on the command line: what a user types, what stands in the report, and what is said of a bad file."
import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
from conftest import run

from liverseg.volume import stored_as


@pytest.fixture
def folders(tmp_path):
    "Three cases; the predictions are stored in other axis orders, and the last one is empty"
    rng, grid = np.random.default_rng(0), nib.affines.from_matvec(np.diag([-.8, .9, 2.5]), [10, -20, 30])
    for k in range(3):
        true = np.zeros((24, 20, 10), np.uint8)
        true[4:18, 5:15, 2:8] = 1
        pred = np.roll(true, 1, k % 2)*(k < 2)
        for name, mask, order in (('truth', true, 'LAS'), ('pred', pred, ('PIR', 'RAS', 'SLA')[k])):
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(stored_as(nib.Nifti1Image(mask, grid), order), tmp_path / name / f'case{k}.nii{".gz"*(name == "truth")}')
    return tmp_path


def measure(folders, *more, ok=0, **kwargs):
    return run('evaluate', '--pred', folders / 'pred', '--truth', folders / 'truth', folders / 'report', *more, ok=ok, **kwargs)


def test_masks_are_measured_without_torch(folders, tmp_path):
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none/torch.py').write_text("raise ImportError('torch is not wanted here')\n")
    said = measure(folders, env=dict(PYTHONPATH=str(tmp_path / 'none'))).stdout
    assert '3 case(s): mean case Dice' in said and 'HD95' in said and '(1 infinite)' in said
    rows = list(csv.DictReader((folders / 'report/cases.csv').open()))
    assert list(rows[0])[:2] == ['subject', 'dice'] and {'hd95_mm', 'assd_mm', 'nsd', 'rvd', 'volume_ml_true', 'volume_ml_pred'} <= set(rows[0])
    assert [round(float(r['dice']), 4) for r in rows] == [round(13/14, 4), round(9/10, 4), 0]
    assert [r['hd95_mm'] for r in rows] == ['0.800000', '0.900000', 'inf']
    assert float(rows[0]['volume_ml_true']) == pytest.approx(14*10*6*.8*.9*2.5/1000)
    summary = json.loads((folders / 'report/summary.json').read_text(), parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    assert summary['measures']['hd95_mm']['infinite'] == 1 and summary['rows'][2]['hd95_mm'] is None
    assert summary['measures']['hd95_mm']['mean'] == pytest.approx(.85) and summary['rules']['measures']['recall']['truth_empty'] == 'undefined'


def test_two_reports_are_compared_case_by_case(folders):
    measure(folders)
    (folders / 'report').rename(folders / 'before')
    for k in range(3): nib.save(nib.load(folders / f'truth/case{k}.nii.gz'), folders / f'pred/case{k}.nii')
    said = measure(folders, '--against', folders / 'before').stdout
    found = json.loads((folders / 'report/against.json').read_text())['measures']
    assert found['dice']['difference'] == pytest.approx((1/14 + 1/10 + 1)/3, abs=1e-6) and found['hd95_mm']['left_out'] == 1
    assert 'on 3 case(s)' in said and math.isclose(float(said.split('Dice +')[1].split()[0]), found['dice']['difference'], abs_tol=1e-4)
    assert (folders / 'report/against.csv').read_text().startswith('subject,dice,dice_against,difference')
    measure(folders) # and a report with a comparison may be replaced
    assert not (folders / 'report/against.csv').exists()


def test_each_side_has_its_own_labels(folders):
    "5 is the liver in the prediction, and 1 something else; in the truth it is 1"
    for k in range(3):
        true = nib.load(folders / f'truth/case{k}.nii.gz')
        other = np.roll(np.asarray(true.dataobj), 9, 0)
        nib.save(nib.Nifti1Image(np.where(np.asarray(true.dataobj) > 0, 5, other).astype(np.uint8), true.affine), folders / f'pred/case{k}.nii')
    assert 'mean case Dice 1.0000' not in measure(folders, '--liver', '1,5').stdout
    assert 'mean case Dice 1.0000' in measure(folders, '--pred-liver', '5').stdout
    assert json.loads((folders / 'report/summary.json').read_text())['labels'] == dict(pred=[5], truth=[])


@pytest.mark.parametrize('harm, says', [
    (lambda f: (f / 'pred/case1.nii').unlink(), 'has no mask for 1 of the 3 cases'),
    (lambda f: (f / 'pred/case1.nii').write_bytes(b'no NIfTI'), 'case1.nii'),
    (lambda f: nib.save(nib.Nifti1Image(np.zeros((24, 20, 9), np.uint8), np.eye(4)), f / 'pred/case1.nii'), 'shape'),
    (lambda f: nib.save(nib.Nifti1Image(np.full((24, 20, 10), .4, np.float32), nib.load(f / 'truth/case1.nii.gz').affine), f / 'pred/case1.nii'), 'probability'),
    (lambda f: [p.unlink() for p in (f / 'truth').iterdir()], 'holds no NIfTI file'),
])
def test_a_bad_folder_or_mask_is_one_sentence(folders, harm, says):
    harm(folders)
    done = measure(folders, ok=1)
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (folders / 'report').exists() and not list(folders.glob('.report*'))


def test_what_does_not_fit_together_is_refused(folders):
    assert '--pred and --truth go together' in run('evaluate', '--pred', folders / 'pred', folders / 'report', ok=2).stderr
    assert 'give REPORT alone' in measure(folders, 'more', ok=2).stderr
    assert 'give DATA and REPORT' in run('evaluate', 'data', ok=2).stderr
    assert 'there is no such file' in measure(folders, '--against', folders / 'nowhere', ok=1).stderr
    assert not (folders / 'report').exists()
