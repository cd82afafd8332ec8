"Hostile files: each gives one sentence that names it, exit status 1, and nothing half-written."
import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from conftest import content, run
from liverseg.nifti import stored_as


def image(src, split='train', n=0): return sorted((src / split / 'nii').glob('*_orig.nii.gz'))[n]
def mask(src, split='train', n=0): return sorted((src / split / 'nii').glob('*_liver.nii.gz'))[n]


def change(path, func=lambda a: a, affine=None, dtype=None):
    "Rewrite a volume with its voxels, affine or type changed"
    img = nib.load(path)
    data = func(np.asarray(img.dataobj).copy())
    nib.save(nib.Nifti1Image(data.astype(dtype or data.dtype), img.affine if affine is None else affine), path)


def off_by(path, mm):
    affine = nib.load(path).affine.copy()
    affine[0, 3] += mm
    change(path, affine=affine)


def nan_at(index):
    def spoil(a):
        a = a.astype(np.float32)
        a[index] = np.nan
        return a
    return spoil


def four_d(path, n):
    img = nib.load(path)
    nib.save(nib.Nifti1Image(np.repeat(np.asarray(img.dataobj)[..., None], n, 3), img.affine), path)


def no_affine(path):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[280:328] = bytes(48)  # the three rows of the sform
    path.write_bytes(gzip.compress(raw))


def a_folder(path):
    path.unlink(), path.mkdir()


SPOILED = {
    'a folder of that name': (lambda s: a_folder(image(s)), 'is a folder'),
    'image without mask': (lambda s: mask(s).unlink(), 'has no mask'),
    'mask without image': (lambda s: image(s).unlink(), 'without an image'),
    'mask without image in test': (lambda s: image(s, 'test').unlink(), 'without an image'),
    'shapes differ': (lambda s: change(mask(s), lambda a: a[:-1]), 'its shape'),
    'affines differ': (lambda s: off_by(mask(s), 1.0), 'its voxels lie up to'),
    'labels not understood': (lambda s: change(mask(s), lambda a: a * 3), 'has the labels 0, 3'),
    'organ map': (lambda s: change(mask(s), lambda a: a + np.arange(a.shape[2], dtype=np.uint8)), 'has the labels'),
    'negative label': (lambda s: change(mask(s), lambda a: -a.astype(np.int16)), 'has the labels'),
    'probabilities': (lambda s: change(mask(s), lambda a: a * np.float32(.7)), 'no whole labels'),
    'truncated': (lambda s: image(s).write_bytes(image(s).read_bytes()[:5000]), 'truncated'),
    'last bytes gone': (lambda s: image(s).write_bytes(image(s).read_bytes()[:-6]), 'truncated'),
    'a flipped bit': (lambda s: image(s).write_bytes(image(s).read_bytes()[:9000] + b'\x55\xaa'
                                                     + image(s).read_bytes()[9002:]), 'damaged'),
    'truncated mask': (lambda s: mask(s).write_bytes(mask(s).read_bytes()[:200]), 'truncated'),
    'truncated before compression': (
        lambda s: image(s).write_bytes(gzip.compress(gzip.decompress(image(s).read_bytes())[:-500])), 'truncated'),
    'empty file': (lambda s: image(s).write_bytes(b''), 'cannot be read as NIfTI'),
    'not gzip': (lambda s: image(s).write_bytes(gzip.decompress(image(s).read_bytes())), 'not a gzip file'),
    'text': (lambda s: image(s).write_bytes(gzip.compress(b'<html>not found</html>')), 'cannot be read as NIfTI'),
    'NaN inside': (lambda s: change(image(s), nan_at((30, 30, 5))), 'inside the field of view'),
    'infinity inside': (lambda s: change(image(s),
                                         lambda a: np.where(np.indices(a.shape).sum(0) == 64, np.float32(np.inf),
                                                            a.astype(np.float32))), 'NaN or infinite'),
    'two volumes': (lambda s: four_d(image(s), 2), 'it is 2 volumes'),
    'one subject twice': (lambda s: image(s).with_suffix('').write_bytes(gzip.decompress(image(s).read_bytes())),
                          'claims to be'),
    'subject in both splits': (lambda s: [shutil.copy(f(s), s / 'test/nii') for f in (image, mask)],
                               'belongs to one split'),
    'no affine': (lambda s: no_affine(image(s)), 'its affine maps no volume'),
    'complex numbers': (lambda s: change(image(s), lambda a: a.astype(np.complex64)), 'one number per voxel'),
    'a name that fits no rule': (lambda s: image(s).rename(image(s).with_name('scan.nii.gz')), 'neither naming rule'),
    'no voxels': (lambda s: change(image(s), lambda a: a[:, :, :0]), 'has no voxels'),
}


@pytest.mark.parametrize('name', SPOILED)
def test_one_sentence_and_nothing_written(name, src, tmp_path):
    spoil, expected = SPOILED[name]
    spoil(src)
    before = set(tmp_path.iterdir())
    done = run('convert', src, tmp_path / 'png', ok=1)
    said = done.stderr.strip()
    assert expected in said and said.startswith('liverseg: ') and len(said.splitlines()) == 1, said
    assert str(src) in said
    assert set(tmp_path.iterdir()) == before
    assert run('check', src, ok=1).stderr == done.stderr


def test_source_missing_or_empty(tmp_path):
    assert 'no such folder' in run('convert', tmp_path / 'gone', tmp_path / 'png', ok=1).stderr
    (tmp_path / 'empty/train/nii').mkdir(parents=True)
    assert 'holds no volumes' in run('convert', tmp_path / 'empty', tmp_path / 'png', ok=1).stderr
    assert not (tmp_path / 'png').exists()


def test_all_bad_cases_are_named_at_once(src, tmp_path):
    for n in (0, 2):
        image(src, n=n).write_bytes(image(src, n=n).read_bytes()[:4000])
    said = run('convert', src, tmp_path / 'png', '--workers', 2, ok=1).stderr.splitlines()
    assert len(said) == 2 and 'e01' in said[0] and 'e03' in said[1]


def test_good_labels_and_grids(src, tmp_path):
    "What must be accepted: 0/255, 0/1/2, whole numbers as floats, another axis order, an affine off by less than 1e-3"
    run('convert', src, tmp_path / 'a', ok=0)
    change(mask(src, n=0), lambda a: (a > 0) * 255, dtype=np.uint8)
    change(mask(src, n=1), lambda a: a.astype(np.float64))
    nib.save(stored_as(nib.load(mask(src, n=2)), 'SPL'), mask(src, n=2))
    off_by(mask(src, 'test'), 5e-4)
    run('convert', src, tmp_path / 'b', ok=0)
    assert content(tmp_path / 'a') == content(tmp_path / 'b')


def test_upper_case_endings(src, tmp_path):
    run('convert', src, tmp_path / 'a', ok=0)
    for f in (image(src), mask(src)): f.rename(f.with_name(f.name.replace('.nii.gz', '.NII.GZ')))
    run('convert', src, tmp_path / 'b', ok=0)
    table = (tmp_path / 'a/manifest.csv').read_text().replace('e01_orig.nii.gz', 'e01_orig.NII.GZ')
    assert table == (tmp_path / 'b/manifest.csv').read_text()


def test_nan_in_a_mask_is_background(src, tmp_path):
    run('convert', src, tmp_path / 'a', ok=0)
    change(mask(src), nan_at((slice(0, 2), slice(None), slice(None))))
    run('convert', src, tmp_path / 'b', ok=0)
    assert content(tmp_path / 'a') == content(tmp_path / 'b')


def test_source_is_never_its_own_target(src):
    before = content(src)
    (src / 'dataset.json').write_text('{}')
    assert 'would be replaced' in run('convert', src, src, ok=1).stderr
    assert 'would be replaced' in run('convert', src, src.parent, ok=1).stderr
    assert before.items() <= content(src).items()


def test_a_place_that_cannot_be_written(src):
    assert '/dev/null/x' in run('convert', src, '/dev/null/x', ok=1).stderr


def test_demo_leaves_the_users_folder_alone(src):
    before = content(src.parent)
    assert 'not something of ours' in run('demo', src.parent, ok=1).stderr
    assert content(src.parent) == before


@pytest.mark.parametrize('what', ['0 and 255', 'another size', 'junk', 'no mask', 'z'])
def test_training_reads_its_slices_first(what, png, tmp_path):
    from PIL import Image
    data = shutil.copytree(png, tmp_path / 'png')
    victim = sorted((data / 'train/masks').rglob('*.png'))[20]
    if what == '0 and 255': Image.fromarray(np.full((64, 64), 255, np.uint8)).save(victim)
    if what == 'another size': Image.fromarray(np.zeros((32, 64), np.uint8)).save(victim)
    if what == 'junk': (data / 'train/images' / victim.parent.name / victim.name).write_bytes(b'junk')
    table = (data / 'manifest.csv').read_text()
    if what == 'no mask': (data / 'manifest.csv').write_text(table.replace(victim.relative_to(data).as_posix(), ''))
    if what == 'z': (data / 'manifest.csv').write_text(table.replace('synth_e01,train,3,', 'synth_e01,train,inf,'))
    done = run('train', data, tmp_path / 'm', '--no-pretrained', '--device', 'cpu', ok=1)
    assert (victim.name if what != 'z' else 'line 5') in done.stderr
    assert not (tmp_path / 'm').exists()


def test_nan_at_the_rim_becomes_air_with_a_note(src, tmp_path):
    change(image(src), nan_at((slice(0, 2), slice(None), slice(None))))
    done = run('convert', src, tmp_path / 'png', ok=0)
    assert 'filled with air' in done.stderr and 'synth_e01' in done.stderr


@pytest.mark.parametrize('case', ['scan gone', 'truncated', 'out is scan', 'no nifti name', 'damaged weights',
                                  'wrong json', 'newer model', 'json of another size'])
def test_predict(case, src, model, tmp_path):
    scan, out, folder = image(src, 'test'), tmp_path / 'out.nii.gz', shutil.copytree(model, tmp_path / 'model')
    if case == 'scan gone': scan = tmp_path / 'gone.nii.gz'
    if case == 'truncated': scan.write_bytes(scan.read_bytes()[:9000])
    if case == 'out is scan': out = scan
    if case == 'no nifti name': out = tmp_path / 'out.png'
    if case == 'damaged weights':
        (folder / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:-100])
    text = (folder / 'model.json').read_text()
    if case == 'wrong json': (folder / 'model.json').write_text(text[:50])
    if case == 'newer model': (folder / 'model.json').write_text(text.replace('"version": 2', '"version": 3'))
    if case == 'json of another size': (folder / 'model.json').write_text(text.replace('resnet18', 'resnet50'))
    before = scan.read_bytes() if scan.exists() else None
    done = run('predict', scan, out, '--model', folder, '--device', 'cpu', ok=1)
    assert len(done.stderr.strip().splitlines()) == 1
    assert case == 'out is scan' or not out.exists()
    assert before is None or scan.read_bytes() == before


def test_nothing_is_unpickled(src, model, tmp_path):
    "A pickle in place of the weights is not executed"
    import os, pickle
    folder = shutil.copytree(model, tmp_path / 'model')
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path / 'boom'),)
    (folder / 'model.safetensors').write_bytes(pickle.dumps(Bomb()))
    told = json.loads((folder / 'model.json').read_text())
    told.pop('sha256') # a description without a SHA-256
    (folder / 'model.json').write_text(json.dumps(told))
    run('predict', image(src, 'test'), tmp_path / 'out.nii.gz', '--model', folder, '--device', 'cpu', ok=1)
    assert not (tmp_path / 'boom').exists()


@pytest.mark.parametrize('what', ['gone', 'not grey', 'mask of another size'])
def test_slices_that_changed_after_conversion(what, png, model, tmp_path):
    from PIL import Image
    data = shutil.copytree(png, tmp_path / 'png')
    victim = sorted((data / 'test/images').rglob('*.png'))[5]
    if what == 'gone': victim.unlink()
    if what == 'not grey': Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(victim)
    if what == 'mask of another size':
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(data / 'test/masks' / victim.parent.name / victim.name)
    done = run('evaluate', data, tmp_path / 'report', '--model', model, '--device', 'cpu', ok=1)
    assert victim.name in done.stderr and not (tmp_path / 'report').exists()
