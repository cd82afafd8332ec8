"Networks as ONNX files, several networks as one, and files that are neither, on the command line."
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import run
from test_bad_input import image

CPU = ('--device', 'cpu')


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
    out = tmp_path_factory.mktemp('onnx') / 'liver.onnx'
    assert f'ONNX file in {out}' in run('export', out, '--model', model, ok=0).stdout
    return out


def voxels(path): return np.asarray(nib.load(path).dataobj)


def test_the_masks_of_an_onnx_file_are_those_of_the_model(cohort, png, model, exported, tmp_path):
    scan = image(cohort, 'test')
    for name, which in (('torch', model), ('onnx', exported)):
        run('predict', scan, tmp_path / f'{name}.nii.gz', '--model', which, *CPU, ok=0)
        run('evaluate', png, tmp_path / name, '--model', which, *CPU, ok=0)
    ours, theirs = voxels(tmp_path / 'torch.nii.gz'), voxels(tmp_path / 'onnx.nii.gz')
    assert ours.any() and (ours != theirs).mean() <= 1e-5
    dice = [json.loads((tmp_path / name / 'summary.json').read_text())['pooled_dice'] for name in ('torch', 'onnx')]
    assert dice[0] == pytest.approx(dice[1], abs=1e-5)


@pytest.mark.parametrize('arch, decoder', [('lite', 'light'), ('resnet18', 'fastai'), ('resnet34', 'reference')])
def test_any_number_of_slices_of_any_size(arch, decoder, tmp_path):
    from liverseg.models import load_onnx
    from liverseg.save import describe, export_onnx, save_model
    from liverseg.network import build_net
    torch.manual_seed(0)
    net = build_net(arch, decoder, 64).eval()
    save_model(net, describe(arch, 64, decoder=decoder), tmp_path / 'model')
    other, meta = load_onnx(export_onnx(tmp_path / 'm.onnx', tmp_path / 'model'))
    assert meta['arch'] == arch
    for shape in ((1, 3, 64, 64), (3, 3, 96, 128), (2, 3, 100, 90), (1, 3, 77, 65)):
        x = torch.randn(*shape)
        with torch.no_grad():
            ours, theirs = torch.as_tensor(net(x)), other(x)
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-4 * max(1, ours.abs().max())


def test_two_models_answer_together(cohort, model, exported, tmp_path):
    scan, twin = image(cohort, 'test'), shutil.copytree(model, tmp_path / 'twin')
    run('predict', scan, tmp_path / 'one.nii.gz', '--model', model, '--maps', *CPU, ok=0)
    also = ('--also', twin, '--also', exported)
    run('predict', scan, tmp_path / 'two.nii.gz', '--model', model, '--maps', *also, *CPU, ok=0)
    one, two = (voxels(tmp_path / f'{name}_prob.nii.gz') for name in ('one', 'two'))
    assert np.abs(one - two).max() <= .0011 # maps have three digits
    assert json.loads((tmp_path / 'two.json').read_text())['model'].count('+') == 2
    told = json.loads((twin / 'model.json').read_text())
    (twin / 'model.json').write_text(json.dumps(dict(told, window=[0, 255])))
    done = run('predict', scan, tmp_path / 'three.nii.gz', '--model', model, '--also', twin, *CPU, ok=1)
    assert 'must share it' in done.stderr and not (tmp_path / 'three.nii.gz').exists()


def test_files_that_are_not_networks_of_liverseg(cohort, exported, tmp_path):
    import onnx
    bad = tmp_path / 'bad.onnx'

    def said():
        done = run('predict', image(cohort, 'test'), tmp_path / 'm.nii.gz', '--model', bad, *CPU, ok=1)
        assert str(bad) in done.stderr and done.stderr.count('\n') == 1, done.stderr
        return done.stderr

    assert 'no such file' in said()
    raw = exported.read_bytes()
    for content in (b'', b'onnx', raw[:len(raw)//2], raw[1000:]):
        bad.write_bytes(content)
        assert 'cannot be read as ONNX' in said()
    graph = onnx.load(exported)
    for value, word in (('null', 'does not describe a liverseg model'), ('{', 'not JSON'),
                        ('{"format": "liverseg", "version": 99}', 'update liverseg')):
        graph.metadata_props[0].value = value
        onnx.save(graph, bad)
        assert word in said()
    assert not (tmp_path / 'm.nii.gz').exists()
    assert 'end in .onnx' in run('export', tmp_path / 'm.bin', ok=1).stderr
    assert 'no such file' in run('export', tmp_path / 'm.onnx', '--model', tmp_path / 'nothing', ok=1).stderr


@pytest.mark.parametrize('option', [('--model', 'other'), ('--also', 'other'), ('--tta', 'flip'), ('--split', 'valid')])
def test_masks_take_no_option_of_a_model(tmp_path, option):
    said = run('evaluate', '--pred', tmp_path, '--truth', tmp_path, *option, tmp_path / 'r', ok=2).stderr
    assert f'{option[0]}: only with DATA, not with --pred' in said


def test_a_model_takes_no_option_of_masks(tmp_path):
    assert '--liver: only with --pred' in run('evaluate', 'png', tmp_path / 'r', '--liver', '6', ok=2).stderr


@pytest.mark.parametrize('threads', ['2,1', 'many', ''])
def test_odd_thread_counts_do_not_make_a_file_damaged(tmp_path, monkeypatch, threads):
    "OMP_NUM_THREADS may be a list, or something unknown; the file opens all the same"
    from liverseg.models import load_onnx
    from liverseg.save import export_onnx
    monkeypatch.setenv('OMP_NUM_THREADS', threads)
    assert load_onnx(export_onnx(tmp_path / 'liver.onnx'))[1]['arch'] == 'lite'
