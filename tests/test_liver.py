"""The network that ships, by the command line: its files, a mask without a connection, ONNX, and training that starts
from it."""
import hashlib
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from conftest import ROOT, run
from liverseg.liver import model_path

NOBODY = {'https_proxy': 'http://127.0.0.1:9', 'HTTPS_PROXY': 'http://127.0.0.1:9', 'HF_HUB_OFFLINE': '1'}
CPU = ('--device', 'cpu')


@pytest.fixture(scope='module')
def patient(tmp_path_factory):
    "A synthetic patient's scan and true mask"
    from liverseg.phantom import make_subject, write_subject
    return write_subject(make_subject(11, shape=(160, 160, 40)), tmp_path_factory.mktemp('patient'), 'eve')


@pytest.fixture(scope='module')
def soft(cohort, tmp_path_factory):
    "The cohort, converted with the window of the network that ships"
    dst = tmp_path_factory.mktemp('soft') / 'png'
    run('convert', cohort, dst, '--window', '0,255', ok=0)
    return dst


def dice(a, b): return 2*(a & b).sum()/(a.sum() + b.sum())


def test_its_files(tmp_path):
    folder = model_path()
    meta = json.loads((folder / 'model.json').read_text())
    raw = (folder / 'model.safetensors').read_bytes()
    assert len(raw) < 12e6 and hashlib.sha256(raw).hexdigest() == meta['sha256'] and meta['half'] is True
    assert meta['licence'] == 'CC BY-SA 4.0' and meta['window'] == [0, 255]
    text = (folder / 'LICENSE.md').read_text()
    assert 'CC-BY-SA-4.0' in text and len(set(re.findall(r'https://doi\.org/[\w./-]+\w', text))) >= 5
    assert not any('ircad' in s or 'curvas' in s for part in meta['subjects'].values() for s in part)
    assert not re.search(r'/(work|root|home|tmp)/',
                         (folder / 'model.json').read_text() + (folder / 'card.json').read_text())


def test_the_figures_of_the_readme_are_those_of_the_card():
    card = json.loads((model_path() / 'card.json').read_text())
    both, pred, true = np.array([counts[1:4] for counts in card['ircad']['counts'][::-1]]).T # 17, then 1
    wanted = ([f"{card['valid']['mean_case_dice']:.3f}"], [f'{d:.3f}' for d in 2*both/(pred + true)],
              [f"{card['curvas']['mean_case_dice']:.3f}"])
    table = (ROOT / 'README.md').read_text().split('**the network that ships**')[1].splitlines()[:3]
    assert [line.split('|')[-3].strip() for line in table] == [', '.join(w) for w in wanted]


def test_a_mask_without_a_connection(patient, tmp_path):
    scan, truth = patient
    done = run('predict', scan, tmp_path / 'mask.nii.gz', *CPU, ok=0, env=NOBODY)
    mask, true = (np.asarray(nib.load(p).dataobj) > 0 for p in (tmp_path / 'mask.nii.gz', truth))
    told = json.loads((tmp_path / 'mask.json').read_text())
    assert f'expected Dice {told["expected_dice"]:.3f};' in done.stdout
    assert f'liver volume {told["volume_ml"]:.1f} mL;' in done.stdout and dice(mask, true) > .85
    assert told['model'] == json.loads((model_path() / 'model.json').read_text())['sha256'][:16]


def test_a_scan_without_a_liver(tmp_path):
    "A scan of thighs is segmented without an error, and no liver is found"
    from liverseg.phantom import make_subject
    subject = make_subject(11, shape=(160, 160, 120), spacing=(2.4, 2.4, 5.))
    assert not subject.labels[:, :, :25].any()
    nib.save(nib.Nifti1Image(subject.hu[:, :, :25], subject.affine), tmp_path / 'thighs.nii.gz')
    done = run('predict', tmp_path / 'thighs.nii.gz', tmp_path / 'mask.nii.gz', *CPU, ok=0)
    assert 'no liver was found' in done.stderr and not np.asarray(nib.load(tmp_path / 'mask.nii.gz').dataobj).any()


def test_one_file_for_programs_without_torch(patient, tmp_path):
    run('export', tmp_path / 'liver.onnx', ok=0)
    assert (tmp_path / 'liver.onnx').stat().st_size < 12e6
    masks = []
    for name, model in (('torch', ()), ('onnx', ('--model', tmp_path / 'liver.onnx'))):
        run('predict', patient[0], tmp_path / f'{name}.nii.gz', '--thorough', *model, *CPU, ok=0)
        masks.append(np.asarray(nib.load(tmp_path / f'{name}.nii.gz').dataobj) > 0)
    assert masks[0].any() and (masks[0] != masks[1]).mean() <= 1e-4


def test_it_is_measured_like_any_other(soft, png, tmp_path):
    said = run('evaluate', soft, tmp_path / 'report', *CPU, ok=0).stdout
    assert 'mean case Dice' in said and (tmp_path / 'report/report.html').exists()
    assert 'convert with --window 0,255' in run('evaluate', png, tmp_path / 'other', *CPU, ok=1).stderr
    assert not (tmp_path / 'other').exists()


def test_training_starts_from_it(soft, tmp_path):
    run('train', soft, tmp_path / 'm', '--from', 'liver', '--epochs', 1, *CPU, ok=0, env=NOBODY)
    ours, theirs = (json.loads((d / 'model.json').read_text()) for d in (tmp_path / 'm', model_path()))
    assert ours['licence'] == theirs['licence'] and ours['start'] == theirs['sha256'][:16]
    assert ours['size'] == theirs['size']
    assert set(theirs['subjects']['train']) < set(ours['subjects']['train'])


@pytest.mark.parametrize('option, word',
                         [(('--size', 64), 'size'), (('--arch', 'resnet34'), 'arch'),
                          (('--decoder', 'fastai'), 'decoder')])
def test_options_that_the_start_decides_are_refused(soft, tmp_path, option, word):
    done = run('train', soft, tmp_path / 'm', '--from', 'liver', *option, *CPU, ok=1)
    assert done.stderr.count('\n') == 1 and f'leave out --{word}' in done.stderr and not (tmp_path / 'm').exists()


def test_slices_of_another_window_are_refused(png, tmp_path):
    done = run('train', png, tmp_path / 'm', '--from', 'liver', *CPU, ok=1)
    assert done.stderr.count('\n') == 1 and 'convert with --window 0,255' in done.stderr
    assert not (tmp_path / 'm').exists()


def test_a_folder_called_liver_is_a_folder(patient, model, tmp_path):
    shutil.copytree(model, tmp_path / 'liver')
    run('predict', patient[0], 'mask.nii.gz', '--model', './liver', *CPU, ok=0, cwd=tmp_path)
    told = json.loads((tmp_path / 'mask.json').read_text())
    assert told['model'] == hashlib.sha256((model / 'model.safetensors').read_bytes()).hexdigest()[:16]
