"Calibrated probabilities: the temperature in a model's description, what uses it, and what a report says."
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from conftest import run


def with_temperature(model, folder, temperature):
    "A copy of a model with another temperature, or none"
    shutil.copytree(model, folder)
    meta = json.loads((folder / 'model.json').read_text())
    meta.pop('temperature', None)
    if temperature is not None: meta['temperature'] = temperature
    (folder / 'model.json').write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope='module')
def tempered(model, tmp_path_factory):
    "The model without a temperature, as older ones are, and with 1 and 3"
    root = tmp_path_factory.mktemp('tempered')
    return {t: with_temperature(model, root / str(t), t) for t in (None, 1., 3.)}


@pytest.fixture(scope='module')
def maps(cohort, tempered, tmp_path_factory):
    "Each one's map of the test subject, and its mask"
    root, found = tmp_path_factory.mktemp('maps'), {}
    scan = next((cohort / 'test/nii').glob('*orig*'))
    for t, model in tempered.items():
        run('predict', scan, root / f'{t}.nii.gz', '--model', model, '--maps', '--thorough', '--post', 'none',
            '--device', 'cpu', ok=0)
        found[t] = [np.asarray(nib.load(root / name).dataobj) for name in (f'{t}_prob.nii.gz', f'{t}.nii.gz')]
    return found


def test_training_fits_a_temperature(model):
    temperature = json.loads((model / 'model.json').read_text())['temperature']
    assert .1 <= temperature <= 10 and temperature != 1 and temperature == round(temperature, 3)


def test_the_temperature_is_that_of_the_kept_weights_on_the_validation_slices(model, png):
    from liverseg.data import liver_dls
    from liverseg.save import load_model
    from liverseg.temperature import fit_temperature
    net, meta = load_model(model)
    valid = liver_dls(png, size=meta['size'], bs=3, device='cpu').valid
    assert fit_temperature(net, valid) == pytest.approx(meta['temperature'], abs=.002)


def test_no_temperature_means_one(maps):
    assert (maps[None][0] == maps[1.][0]).all() and (maps[None][1] == maps[1.][1]).all()


def test_a_temperature_makes_the_map_milder_and_leaves_the_mask(maps):
    one, three = (np.clip(maps[t][0].astype(float), 1e-6, 1 - 1e-6) for t in (1., 3.))
    assert (maps[1.][1] == maps[3.][1]).all() and maps[1.][1].any()
    sure = np.abs(one - .5) > .05
    assert (np.abs(three - .5) < np.abs(one - .5))[sure].all()
    asked = sure & (np.abs(one - .5) < .45) # stored maps are rounded
    assert np.log(three/(1 - three))[asked] == pytest.approx(np.log(one/(1 - one))[asked]/3, abs=.05)


def test_onnx_carries_it(tempered, png, tmp_path):
    pytest.importorskip('onnxruntime')
    from liverseg.manifest import read_manifest
    from liverseg.pixels import PixelForm
    from liverseg.models import load_onnx
    from liverseg.save import export_onnx, load_model
    from liverseg.tta import slice_probs
    fast, meta = load_onnx(export_onnx(tmp_path / 'm.onnx', tempered[3.]))
    assert meta['temperature'] == 3
    slices = [PixelForm.of(meta).read(png / f) for f in read_manifest(png, ['test'])['image'][8:12]]
    ours, theirs = (np.stack(list(slice_probs(net, meta, slices))) for net in (load_model(tempered[3.])[0], fast))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_an_impossible_temperature_is_refused(tempered, png, tmp_path):
    from liverseg.models import read_meta
    from liverseg.work import BadInput
    folder = with_temperature(tempered[None], tmp_path / 'model', 7.125)
    good = (folder / 'model.json').read_text()
    for wrong in ('0', '-2', 'NaN', 'Infinity', 'null', 'true', '"warm"', '[1]', '1e-300', '1' + '0'*400):
        (folder / 'model.json').write_text(good.replace('7.125', wrong))
        with pytest.raises(BadInput, match='has temperature = .* is not possible'): read_meta(folder)
    said = run('evaluate', png, tmp_path / 'report', '--model', folder, '--device', 'cpu', ok=1).stderr
    assert 'has temperature' in said and not (tmp_path / 'report').exists()


def test_a_report_shows_the_calibration(tempered, png, tmp_path):
    for name in ('a', 'b'): run('evaluate', png, tmp_path / name, '--model', tempered[3.], '--device', 'cpu', ok=0)
    told = json.loads((tmp_path / 'a/summary.json').read_text())
    found = told['calibration']
    assert told['model']['temperature'] == 3 and set(found) == {'ece', 'pixels', 'over', 'bins'}
    assert len(found['bins']) == 15
    full = [b for b in found['bins'] if b['pixels']]
    assert sum(b['pixels'] for b in full) == found['pixels'] > 0
    off = sum(b['pixels']*abs(b['probability'] - b['liver']) for b in full)
    assert found['ece'] == pytest.approx(off/found['pixels'], abs=1e-5)
    assert all(k/15 - 1e-6 <= b['probability'] <= (k + 1)/15 + 1e-6 for k, b in enumerate(found['bins']) if b['pixels'])
    page = (tmp_path / 'a/report.html').read_text(encoding='utf-8')
    assert page.count('<svg') == 5 and f"<b>{found['ece']:.3f}</b>" in page
    assert found['over'].replace("'", '&#x27;') in page
    assert (tmp_path / 'a/summary.json').read_bytes() == (tmp_path / 'b/summary.json').read_bytes()
    other = (tmp_path / 'b/report.html').read_text(encoding='utf-8')
    assert page.replace(str(tmp_path / 'a'), '') == other.replace(str(tmp_path / 'b'), '')


def test_masks_have_no_probabilities(cohort, tmp_path):
    for folder in ('pred', 'truth'):
        shutil.copytree(cohort / 'test/nii', tmp_path / folder,
                        ignore=lambda _, names: [n for n in names if 'orig' in n])
    run('evaluate', '--pred', tmp_path / 'pred', '--truth', tmp_path / 'truth', tmp_path / 'report', ok=0)
    assert 'calibration' not in json.loads((tmp_path / 'report/summary.json').read_text())
    assert 'Probabilities' not in (tmp_path / 'report/report.html').read_text(encoding='utf-8')
