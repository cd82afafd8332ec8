"Inputs of the kinds that went wrong: each gets a right answer or one sentence, in little time and memory."
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import LIVERSEG, run
from PIL import Image

from liverseg.convert import import_slices
from liverseg.manifest import read_manifest
from liverseg.layouts import find_cases
from liverseg.models import open_model
from liverseg.phantom import make_subject, write_subject
from liverseg.save import load_model
from liverseg.volume import Volume, check_same_grid
from liverseg.cases import read_volume
from liverseg.work import BadInput, each


@pytest.fixture(scope='module')
def subject():
    return make_subject(3, shape=(32, 32, 8))


def complaint(func, *args, **kwargs):
    with pytest.raises(BadInput) as e: func(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


# ---- NIfTI

def test_voxels_that_begin_in_the_header(subject, tmp_path):
    raw = bytearray(nib.Nifti1Image(subject.hu, subject.affine).to_bytes())
    raw[108:112] = np.float32(0).tobytes()
    (tmp_path / 'a.nii').write_bytes(raw)
    (tmp_path / 'b.nii.gz').write_bytes(gzip.compress(raw))
    for name in ('a.nii', 'b.nii.gz'): assert 'within its own header' in complaint(read_volume, tmp_path / name)


def test_more_than_the_header_announces(subject, tmp_path):
    "1 GB of zeros after the voxels is not unpacked but noted; several parts of one gzip file are one file"
    raw = nib.Nifti1Image(subject.hu, subject.affine).to_bytes()
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode='wb', compresslevel=1) as f:
        f.write(raw)
        for _ in range(64): f.write(bytes(2**24))
    (tmp_path / 'bomb.nii.gz').write_bytes(out.getvalue())
    code = ('import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); '
            'from liverseg.cases import read_volume; '
            f"print([n.code for n in read_volume({str(tmp_path / 'bomb.nii.gz')!r}).notes])")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1'))
    assert "'longer'" in done.stdout, done.stderr
    (tmp_path / 'parts.nii.gz').write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))
    vol = read_volume(tmp_path / 'parts.nii.gz')
    assert (vol.data == subject.hu).all() and not vol.notes
    (tmp_path / 'cut.nii.gz').write_bytes(gzip.compress(raw)[:-40])
    assert 'damaged' in complaint(read_volume, tmp_path / 'cut.nii.gz')
    spoiled = bytearray(gzip.compress(raw)); spoiled[-6] ^= 1
    (tmp_path / 'crc.nii.gz').write_bytes(spoiled)
    assert 'damaged' in complaint(read_volume, tmp_path / 'crc.nii.gz')


def test_a_longer_file_is_noted_in_any_form(subject, tmp_path):
    "Uncompressed and as a pair, too"
    img = nib.Nifti1Image(subject.hu, subject.affine)
    (tmp_path / 'a.nii').write_bytes(img.to_bytes() + bytes(5))
    nib.save(nib.Nifti1Pair(subject.hu, subject.affine), tmp_path / 'b.img')
    assert 'longer' not in [n.code for n in read_volume(tmp_path / 'b.hdr').notes]
    with (tmp_path / 'b.img').open('ab') as f: f.write(bytes(5))
    for name in ('a.nii', 'b.hdr'): assert 'longer' in [n.code for n in read_volume(tmp_path / name).notes]


@pytest.mark.parametrize('forms, lengths, good',
                         [((1, 0), (0, 2, 2), False), ((1, 0), (0, 0, 0), False), ((0, 0), (2, 2, 0), False),
                          ((0, 0), (0, 0, 0), True), ((1, 1), (0, 0, 0), True)])
def test_a_voxel_of_no_size(forms, lengths, good, subject, tmp_path):
    """nibabel replaces 0 by 1 mm, which gives a wrong volume; an sform has the size itself, and without any form it
    is unknown"""
    img = nib.Nifti1Image(subject.hu, None)
    img.set_qform(subject.affine, forms[0]), img.set_sform(subject.affine, forms[1])
    raw = bytearray(img.to_bytes())
    raw[80:92] = np.array(lengths, '<f4').tobytes()
    (tmp_path / 'a.nii').write_bytes(raw), (tmp_path / 'a.nii.gz').write_bytes(gzip.compress(raw))
    for name in ('a.nii', 'a.nii.gz'):
        if not good: assert '×' in complaint(read_volume, tmp_path / name); continue
        vol = read_volume(tmp_path / name)
        if forms[1]: assert np.allclose(vol.spacing, nib.affines.voxel_sizes(subject.affine))
        else: assert 'spacing' in [n.code for n in vol.notes]


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 8, 2), (8, 1, 2)])
def test_a_scan_of_one_column(shape, tmp_path):
    "Its masks are views with strides that the PNG encoder does not accept"
    from liverseg.convert import convert
    (tmp_path / 'data/test/nii').mkdir(parents=True)
    for name, data in dict(orig=np.full(shape, 40, np.int16), liver=np.ones(shape, np.uint8)).items():
        nib.save(nib.Nifti1Image(data, np.diag([2., 3, 4, 1])), tmp_path / f'data/test/nii/a_{name}.nii.gz')
    assert len(convert(tmp_path / 'data', tmp_path / 'png')) == shape[2]


def test_a_single_row_is_not_a_volume(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(24, np.int16), np.diag([2., 2, 2, 1])), tmp_path / 'a.nii')
    assert 'which is not a volume' in complaint(read_volume, tmp_path / 'a.nii')


def test_endings_in_any_case(subject, tmp_path):
    raw = nib.Nifti1Image(subject.hu, subject.affine).to_bytes()
    for name in ('a.NII', 'a.Nii', 'a.nII.gZ'):
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith('Z') else raw)
        assert (read_volume(tmp_path / name).data == subject.hu).all()


def test_masks_in_any_form(subject, tmp_path):
    """Endings in any case, and pairs; two files of one name are not a pair of masks, and a name that no table can
    hold is refused"""
    from liverseg.compare import mask_pairs
    img = nib.Nifti1Image(subject.labels, subject.affine)
    for folder in ('pred', 'truth'): (tmp_path / folder).mkdir()
    (tmp_path / 'pred/a.NII').write_bytes(img.to_bytes()), nib.save(img, tmp_path / 'truth/a.hdr')
    assert [name for name, *_ in mask_pairs(tmp_path / 'pred', tmp_path / 'truth')] == ['a']
    nib.save(img, tmp_path / 'truth/a.nii.gz')
    assert 'in two forms' in complaint(mask_pairs, tmp_path / 'pred', tmp_path / 'truth')
    (tmp_path / 'truth/a.nii.gz').unlink()
    for name in ('\udcff', 'a\nb', '\u2028', '\x1b[2J'):
        nib.save(img, tmp_path / f'pred/{name}.nii')
        assert 'rename it' in complaint(mask_pairs, tmp_path / 'pred', tmp_path / 'truth')
        (tmp_path / f'pred/{name}.nii').unlink()


@pytest.mark.parametrize('shift, scale, good', [(.001, 1, True), (0, 1.0001, True), (0, 1.02, False), (3, 1, False)])
def test_the_farthest_corner_counts(subject, shift, scale, good):
    affine = subject.affine @ np.diag([scale]*3 + [1])
    affine[:3, 3] += shift # mm; a voxel has 10
    scan, mask = (Volume(subject.hu, a, None, None, name) for a, name in ((subject.affine, 'scan'), (affine, 'mask')))
    if good: check_same_grid(scan, mask)
    else: assert 'resample it' in complaint(check_same_grid, scan, mask)


# ---- DICOM

SPOILED = { # tags that do not fit the pixels or the other slices, and words of the message
    'one slice inverted': (dict(PhotometricInterpretation=lambda k: 'MONOCHROME1' if k == 3 else 'MONOCHROME2'),
                           'MONOCHROME1'),
    'the wrong bits': (dict(BitsStored=12, HighBit=15), 'the highest is number 15'),
    'too few columns': (dict(Columns=30), 'bytes more than'),
    'inverted HU': (dict(RescaleSlope='-1'), 'do not give HU'),
    'one slice without an intercept': (dict(RescaleIntercept=lambda k: None if k == 2 else '0'),
                                       'unlike other files of its series'),
}


@pytest.mark.parametrize('name', SPOILED)
def test_dicom_is_not_taken_at_its_word(name, subject, tmp_path):
    pytest.importorskip('pydicom')
    from liverseg.phantom import write_series
    changes, said = SPOILED[name]
    write_series(subject.hu, subject.affine, tmp_path / 's', **changes)
    what = complaint(read_volume, tmp_path / 's')
    assert said in what and str(tmp_path / 's/image_') in what


@pytest.mark.parametrize('tags',
                         [dict(RescaleIntercept=lambda k: '-1024' if k == 3 else '0'),
                          dict(RescaleSlope=lambda k: '2' if k == 3 else '1')])
def test_a_slice_on_another_scale_is_named(tags, subject, tmp_path):
    pytest.importorskip('pydicom')
    from liverseg.phantom import write_series
    for name, more in (('s', tags), ('t', {})): write_series(subject.hu, subject.affine, tmp_path / name, **more)
    assert [n.text.split(' ')[0] for n in read_volume(tmp_path / 's').notes
            if n.code == 'rescale differs'] == ['image_3']
    assert not read_volume(tmp_path / 't').notes


def test_one_dicom_file_is_a_scan(subject, tmp_path):
    pytest.importorskip('pydicom')
    from liverseg.phantom import write_series
    file = write_series(subject.hu, subject.affine, tmp_path / 's')[4]
    assert read_volume(file).data.shape == (32, 32, 1) and [c.image for c in find_cases(file)] == [file]


def test_copies_among_many_phases(subject, tmp_path):
    "20 slices at each place: copies are found without comparing all pairs"
    pytest.importorskip('pydicom')
    from liverseg.dicom import read_series
    from liverseg.phantom import write_series
    for k in range(20):
        write_series(subject.hu[..., :2] + (k // 2), subject.affine, tmp_path / f's/{k}', AcquisitionNumber=k // 2,
                     SeriesInstanceUID='1.2.3')
    series = read_series(tmp_path / 's')
    assert series.data.shape[2] == 2 and any('20 of 40 slices are copies' in text for _, text in series.notes)


# ---- folders and archives

def test_links_that_lead_back(subject, tmp_path):
    write_subject(subject, tmp_path / 'train/nii', 'a')
    for k in range(6): (tmp_path / f'link{k}').symlink_to('.')
    assert [c.subject for c in find_cases(tmp_path)] == ['a']


def test_what_is_hidden_stays_hidden(subject, tmp_path):
    for name in ('.trash', 'scans'):
        image, mask = write_subject(subject, tmp_path / name, 'x')
        image.rename(image.with_name(f'volume-{len(name)}.nii.gz'))
        mask.rename(mask.with_name(f'segmentation-{len(name)}.nii.gz'))
    assert [c.subject for c in find_cases(tmp_path)] == ['lits_5']


def test_archives_within_archives(tmp_path):
    inner = b'nothing'
    for level in range(6):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            for k in range(8): z.writestr(f'{k}.zip' if level else f'{k}.txt', inner)
        inner = out.getvalue()
    (tmp_path / 'a.zip').write_bytes(inner)
    assert 'archives within archives' in complaint(read_volume, tmp_path / 'a.zip')


def test_an_archive_that_swells(tmp_path):
    from liverseg.archive import unpack
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a/zeros', bytes(2*10**8))
    assert 'times as much' in complaint(unpack, tmp_path / 'a.zip', tmp_path / 'out')
    assert not any((tmp_path / 'out').rglob('*'))


# ---- slices and their table

def slices(folder, image=None, **row):
    "A folder for import_slices with one slice"
    for kind in ('images', 'masks'):
        (folder / kind).mkdir(parents=True)
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / kind / '0.png')
    if image: image(folder / 'images/0.png')
    table = pd.DataFrame([dict(file='0.png', subject='a', z='0', split='train') | row])
    table.to_csv(folder / 'manifest.csv', index=False)
    return folder


def palette(path): Image.fromarray(np.eye(8, dtype=np.uint8)).convert('P').save(path)
def gif(path): Image.fromarray(np.eye(8, dtype=np.uint8)).save(path, 'GIF')
def fifo(path): path.unlink(); os.mkfifo(path)
def vast(path): Image.new('1', (20000, 20000)).save(path)


@pytest.mark.parametrize('image, row, said', [
    (palette, {}, 'is not an 8-bit grey picture'), (gif, {}, 'cannot be read as PNG'),
    (fifo, {}, 'there is no such file'), (vast, {}, '0.png'),
    (None, dict(subject='a\0b'), 'unprintable'), (None, dict(subject='a\u202eb'), 'unprintable'),
    (None, dict(subject='ä'*101), 'more than 200 bytes'), (None, dict(subject='b'*300), 'more than 200 bytes'),
    (None, dict(file='../images/0.png'), 'outside images/'), (None, dict(file='/etc/0.png'), 'outside images/'),
    (None, dict(z='-1'), "('-1')"),
    (lambda p: Image.fromarray(np.full((8, 8), 77, np.uint8)).save(p.parents[1] / 'masks/0.png'), {}, 'number them so'),
    (None, dict(z='1'*23), 'whole number'), (None, dict(z='٣'), 'whole number')])
def test_slices_that_are_none(image, row, said, tmp_path):
    assert said in complaint(import_slices, slices(tmp_path / 's', image, **row), tmp_path / 'out')
    assert not [p for p in tmp_path.iterdir() if p.name != 's']


@pytest.mark.parametrize('change, said',
                         [(dict(dx='0'), 'not a length in mm'), (dict(dz='-2'), 'not a length in mm'),
                          (dict(dy='inf'), 'not a length in mm'), (dict(z='1e30'), 'no z'),
                          (None, 'same subject and z')])
def test_numbers_of_a_manifest(change, said, tmp_path):
    import_slices(slices(tmp_path / 's'), tmp_path / 'png')
    table = pd.read_csv(tmp_path / 'png/manifest.csv', dtype=str, keep_default_na=False)
    table = pd.concat([table, table.assign(z='0.0')]) if change is None else table.assign(**change)
    table.to_csv(tmp_path / 'png/manifest.csv', index=False)
    assert said in complaint(read_manifest, tmp_path / 'png')


@pytest.mark.parametrize('change, said',
                         [(lambda t: '\n'.join(line + ',1'*bool(k) for k, line in enumerate(t.splitlines())),
                           'more cells than its header'),
    (lambda t: t.replace('test/images/', 'train/images/').replace('train/images/a', 'x'*300 + 'a'), 'not on disk'),
                          (lambda t: t.replace('train/images/', '"train\nimages/"'), 'line break')])
def test_cells_of_a_manifest(change, said, tmp_path):
    import_slices(slices(tmp_path / 's'), tmp_path / 'png')
    table = tmp_path / 'png/manifest.csv'
    table.write_text(change(table.read_text()))
    assert said in complaint(read_manifest, tmp_path / 'png')


def test_a_description_without_end(tmp_path):
    from liverseg.pixels import read_form
    (tmp_path / 'dataset.json').write_text('['*100_000)
    assert 'gives no window' in complaint(read_form, tmp_path)


def test_no_voxels_to_scale(subject, tmp_path):
    raw = bytearray(nib.Nifti1Image(subject.hu, subject.affine).to_bytes())
    raw[46:48], raw[112:116] = bytes(2), np.float32(2).tobytes()
    (tmp_path / 'a.nii').write_bytes(raw)
    assert 'has no voxels' in complaint(read_volume, tmp_path / 'a.nii')


# ---- names

def test_a_name_that_no_table_can_hold(subject, tmp_path):
    image, _ = write_subject(subject, tmp_path / 'test/nii', 'a')
    os.rename(image, os.fsencode(tmp_path) + b'/test/nii/a\xff_orig.nii.gz')
    done = run('convert', tmp_path, tmp_path / 'out', ok=1)
    assert r'a\udcff' in done.stderr and 'rename it' in done.stderr and not (tmp_path / 'out').exists()
    (tmp_path / 'in').mkdir()
    write_subject(subject, tmp_path / 'in', 'b\x1b[2J')
    done = run('predict', tmp_path / 'in', tmp_path / 'masks', ok=1)
    assert r'\x1b' in done.stderr and '\x1b' not in done.stderr and not (tmp_path / 'masks').exists()


@pytest.mark.parametrize('name', ['\x07', '\x85', '\u2028', '\u202e', '\udcff', 'a\nb'])
def test_nothing_that_is_printed_acts_on_the_terminal(name, subject, tmp_path):
    "The table of check too, and a line break in a name ends no sentence"
    write_subject(subject, tmp_path / 'train/nii', name)
    done = run('check', tmp_path, ok=1)
    assert name not in done.stdout + done.stderr and 'rename it' in done.stderr
    assert done.stderr.splitlines()[-1].startswith('liverseg: ')


def test_a_report_with_a_subject_twice(tmp_path):
    from liverseg.compare import read_cases
    (tmp_path / 'cases.csv').write_text('subject,dice\na,0.5\na,0.6\n')
    assert 'twice' in complaint(read_cases, tmp_path)


# ---- what is cut off

def test_a_damaged_checkpoint(png, tmp_path):
    "Said, set aside, and the training begins anew and ends as if nothing had been"
    how = ['--size', '64', '--epochs', '3', '--arch', 'resnet18', '--no-pretrained', '--save', 'average', '--device',
           'cpu']
    run('train', png, tmp_path / 'whole', *how, ok=0)
    done = subprocess.Popen([*LIVERSEG, 'train', str(png), str(tmp_path / 'model'), *how], stdout=subprocess.PIPE,
                            text=True)
    for line in done.stdout:
        if line.startswith('epoch 2 '): break # the first epoch's checkpoint is written by then
    os.kill(done.pid, signal.SIGKILL)
    done.wait()
    checkpoint = tmp_path / '.model.partial/.done/checkpoint.pth'
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    again = run('train', png, tmp_path / 'model', *how, ok=0)
    assert 'set aside as damaged.pth' in again.stdout and 'epoch 1 of 3' in again.stdout
    assert (tmp_path / 'model/model.safetensors').read_bytes() == (tmp_path / 'whole/model.safetensors').read_bytes()


def _killed(item):
    if item == 1: os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_worker_that_the_system_stopped():
    assert 'fewer --workers' in complaint(list, each(_killed, [0, 1, 2, 3], 2))


def test_only_the_item_that_stops_its_worker_is_lost():
    "Those that were under way beside it are tried again"
    lost = lambda item, error: f'{item}: {type(error).__name__}'
    wanted = [0, '1: WorkerLost', *range(2, 20)]
    assert list(each(_killed, list(range(20)), 2, failed=lost)) == wanted
    assert list(each(_killed, list(range(20)), 2, batch=4, failed=lost)) == wanted


def test_weights_that_are_no_numbers(model, tmp_path):
    import shutil
    import torch
    from liverseg.save import load_model, save_model
    net, meta = load_model(model)
    next(iter(net.parameters())).data[0] = torch.nan
    save_model(net, meta, shutil.copytree(model, tmp_path / 'm'))
    assert 'are not numbers' in complaint(load_model, tmp_path / 'm')


@pytest.mark.parametrize('change',
                         [dict(subjects=None), dict(subjects=['a']), dict(sha256=None), dict(mean=[10**400, 0, 0]),
                          dict(arch=[]), dict(arch={})])
def test_descriptions_of_any_shape(change, model, tmp_path):
    from liverseg.models import read_meta
    (tmp_path / 'model.json').write_text(json.dumps(json.loads((model / 'model.json').read_text()) | change))
    assert f'has {next(iter(change))}' in complaint(read_meta, tmp_path)
    (tmp_path / 'model.json').write_text('['*100_000)
    assert 'is not JSON' in complaint(read_meta, tmp_path)


def test_what_nobody_foresaw(tmp_path):
    "One sentence, exit status 70 and the traceback in a file; at once with LIVERSEG_DEBUG=1"
    code = ("import sys, liverseg.cli as c\n@c.main.command()\ndef boom(): raise ZeroDivisionError('over')\n"
            "sys.argv = ['liverseg', 'boom']; c.main()")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env=dict(os.environ, TMPDIR=str(tmp_path)))
    assert done.returncode == 70 and done.stderr.count('\n') == 1 and 'ZeroDivisionError: over' in done.stderr
    log, = tmp_path.glob('liverseg-*.log')
    assert str(log) in done.stderr and 'Traceback' in log.read_text()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env=dict(os.environ, LIVERSEG_DEBUG='1'))
    assert 'Traceback' in done.stderr and done.returncode == 1


# ---- names that a spreadsheet would run

FORMULAS = ['=1+1', '-2', '@SUM(A1)', "'=3"] # the last one is not a formula, but would be taken for one of ours


def raw(path):
    "The cells of a table, as any reader sees them"
    import csv
    with path.open(newline='') as f: cells = list(csv.reader(f))
    return cells[0], [dict(zip(cells[0], row)) for row in cells[1:]]


def is_number(cell):
    try: float(cell)
    except ValueError: return False
    return True


def no_formula_in(path):
    head, rows = raw(path)
    odd = [c for row in rows for name, c in row.items() if c[:1] in tuple('=+-@\t\r') and c
           and (name in ('subject', 'scan', 'error') or not is_number(c))]
    assert rows and not odd, odd
    return [row[head[0]] for row in rows]


def test_subjects_named_like_formulas(tmp_path):
    """The manifest holds them as they are, so do the model and the summary; the tables for people hold texts; and these
    are read back"""
    from liverseg.compare import read_cases
    for k, (name, split) in enumerate(zip(FORMULAS, ('train', 'train', 'test', 'test'))):
        write_subject(make_subject(k, shape=(32, 32, 8)), tmp_path / f'data/{split}/nii', name)
    run('convert', tmp_path / 'data', tmp_path / 'png', ok=0)
    assert set(read_manifest(tmp_path / 'png')['subject']) == set(FORMULAS)
    assert {row['subject'] for row in raw(tmp_path / 'png/manifest.csv')[1]} == set(FORMULAS)
    run('train', tmp_path / 'png', tmp_path / 'model', '--size', 64, '--epochs', 1, '--arch', 'resnet18',
        '--no-pretrained', '--device', 'cpu', ok=0)
    kept = json.loads((tmp_path / 'model/model.json').read_text())['subjects']
    assert sorted(kept['train'] + kept['valid']) == sorted(FORMULAS[:2])
    for name in ('one', 'two'):
        run('evaluate', tmp_path / 'png', tmp_path / name, '--model', tmp_path / 'model', '--device', 'cpu', ok=0)
    run('evaluate', tmp_path / 'png', tmp_path / 'two', '--model', tmp_path / 'model', '--device', 'cpu', '--against',
        tmp_path / 'one', ok=0)
    for table in ('cases.csv', 'slices.csv', 'against.csv'):
        assert set(no_formula_in(tmp_path / 'two' / table)) == {"'@SUM(A1)", "''=3"}, table
    assert set(read_cases(tmp_path / 'two').index) == set(FORMULAS[2:])
    rows = json.loads((tmp_path / 'two/summary.json').read_text())['rows']
    assert {row['subject'] for row in rows} == set(FORMULAS[2:])


def test_a_subject_called_na_is_read_back(tmp_path):
    from liverseg.compare import read_cases
    (tmp_path / 'cases.csv').write_text("subject,dice\nNA,0.5\n007,\n")
    cases = read_cases(tmp_path)
    assert list(cases.index) == ['NA', '007'] and cases['dice'].isna().tolist() == [False, True]


def test_scans_and_masks_named_like_formulas(model, subject, tmp_path):
    (tmp_path / 'scans').mkdir()
    for name in FORMULAS: nib.save(nib.Nifti1Image(subject.hu, subject.affine), tmp_path / f'scans/{name}.nii.gz')
    (tmp_path / 'scans/+broken.nii.gz').write_bytes(b'no scan')
    done = subprocess.run([*LIVERSEG, 'predict', 'scans', 'masks', '--model', str(model), '--device', 'cpu'],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    found = no_formula_in(tmp_path / 'masks/results.csv')
    assert sorted(found) == sorted(["'=1+1.nii.gz", "'-2.nii.gz", "'@SUM(A1).nii.gz", "''=3.nii.gz", "'+broken.nii.gz"])
    again = subprocess.run([*LIVERSEG, 'predict', '.', '../masks', '--model', str(model), '--device', 'cpu'],
                           cwd=tmp_path / 'scans', capture_output=True, text=True)
    # its error begins with the file's name
    assert again.returncode == 1 and no_formula_in(tmp_path / 'masks/results.csv') == found
    for path in (tmp_path / 'masks').iterdir():
        if not path.name.endswith('.nii.gz'): path.unlink()
    run('evaluate', '--pred', tmp_path / 'masks', '--truth', tmp_path / 'masks', tmp_path / 'report', ok=0)
    assert len(no_formula_in(tmp_path / 'report/cases.csv')) == 4


@pytest.mark.parametrize('name, cell',
                         [('=1+1', "'=1+1"), ('+1', "'+1"), ('-1', "'-1"), ('@a', "'@a"), ('\t=1', "'\t=1"),
                          ('\r=1', "'\r=1"), ("'=1", "''=1"),
                                        ("o'hara", "o'hara"), ("'a'", "'a'"), ('a=1', 'a=1'), ('a;=1+1', "a;'=1+1"),
                          (";'-1;;@x;a", ";''-1;;'@x;a"), ('a; =1', 'a; =1'), ('', ''), (-1.5, -1.5)])
def test_a_text_as_a_cell_and_back(name, cell):
    from liverseg.work import as_cell, from_cell
    assert as_cell(name) == cell and (not isinstance(cell, str) or from_cell(cell) == name)


def test_a_tab_in_a_name_is_refused(subject, tmp_path):
    write_subject(subject, tmp_path / 'test/nii', '\t=1+1')
    assert 'rename it' in run('convert', tmp_path, tmp_path / 'out', ok=1).stderr and not (tmp_path / 'out').exists()


# ---- results where the scan lies

def test_a_mask_among_the_slices_of_its_scan(subject, model, tmp_path):
    "It is no scan, it changes no stamp, and another program's beside it is not one either"
    pytest.importorskip('pydicom')
    from liverseg.phantom import write_series
    from liverseg.predict import Segmenter, predict
    from liverseg.folder import scans_in
    for name in 'st': write_series(subject.hu, subject.affine, tmp_path / name, PatientID=name)
    how = dict(model=Segmenter.load(model, 'cpu'), say=lambda s: None)
    first, mask = scans_in(tmp_path), tmp_path / 's/mask.nii.gz'
    predict(tmp_path / 's', mask, maps=True, **how)
    stamp = json.loads((tmp_path / 's/mask.json').read_text())['made_from']
    assert scans_in(tmp_path / 's') == [] and scans_in(tmp_path) == first
    write_subject(subject, tmp_path / 's', 'other')
    assert scans_in(tmp_path / 's', mask) == [] and read_volume(tmp_path / 's').data.shape == subject.hu.shape
    predict(tmp_path / 's', mask, maps=True, **how)
    assert json.loads((tmp_path / 's/mask.json').read_text())['made_from'] == stamp
    done = run('predict', '--model', model, tmp_path, tmp_path / 'one.nii.gz', ok=1)
    assert 'is the name of one mask' in done.stderr and not (tmp_path / 'one.nii.gz').exists()


# ---- what swells

def limited(code, *args, gib=3):
    "Run Python with so much address space and no more"
    held = f'import resource; resource.setrlimit(resource.RLIMIT_AS, ({gib}*2**30,)*2)\n'
    return subprocess.run([sys.executable, '-c', held + code, *map(str, args)], capture_output=True, text=True)


READ = '''
import sys
from pathlib import Path
from liverseg.cases import read_volume
from liverseg.work import BadInput
try: print(read_volume(Path(sys.argv[1])).data.sum())
except BadInput as e: print('BadInput', e)
'''


def deflated(file, more=0):
    "Write a DICOM file again, deflated, with `more` MiB of zeros after its pixels"
    import zlib
    from pydicom import dcmread
    from pydicom.filebase import DicomBytesIO
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    ds = dcmread(file)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    size = len(ds.PixelData)
    ds.save_as(file, enforce_file_format=True)
    if not more: return
    raw = file.read_bytes()
    f = DicomBytesIO(raw)
    f.seek(132)
    from pydicom.filereader import read_dataset
    read_dataset(f, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    at = f.tell()
    inside = zlib.decompressobj(-15).decompress(raw[at:])
    head = bytearray(inside[:-size])
    head[-4:] = (size + more*2**20).to_bytes(4, 'little')
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    with open(file, 'wb') as out:
        out.write(raw[:at] + pack.compress(bytes(head) + inside[-size:]))
        for _ in range(more): out.write(pack.compress(bytes(2**20)))
        out.write(pack.flush())


def test_a_deflated_file_that_swells(subject, tmp_path):
    "It is unpacked only as far as its header announces; an honest file is read"
    pytest.importorskip('pydicom')
    from liverseg.phantom import write_series
    files = write_series(subject.hu, subject.affine, tmp_path / 's')
    for file in files: deflated(file)
    np.testing.assert_array_equal(np.sort(read_volume(tmp_path / 's').data, None), np.sort(subject.hu, None))
    deflated(files[2], more=3500)
    assert files[2].stat().st_size < 2**23
    done = limited(READ, tmp_path / 's')
    for word in ('BadInput', 'image_2', 'unpacks to more'): assert word in done.stdout, done.stderr[-500:]


def test_an_archive_of_zeros(tmp_path):
    "Each member is within the limit, all together are far beyond it"
    pack, members = zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED), 9
    with pack:
        with pack.open('0', 'w') as f:
            for _ in range(4): f.write(bytes(2**20))
    raw = bytearray((tmp_path / 'a.zip').read_bytes())
    at = raw.index(b'PK\1\2')
    raw[at + 24:at + 28] = (2**31 - 1).to_bytes(4, 'little')
    end = raw.index(b'PK\5\6')
    entries = raw[at:end]*members
    tail = raw[end:]
    tail[8:10] = tail[10:12] = members.to_bytes(2, 'little')
    tail[12:16] = len(entries).to_bytes(4, 'little')
    (tmp_path / 'a.zip').write_bytes(raw[:at] + entries + tail)
    assert '200 times its size' in complaint(read_volume, tmp_path / 'a.zip')


def test_archives_that_hold_too_much_together(tmp_path, monkeypatch):
    "Each is within its own limit; nested archives count again"
    pytest.importorskip('pydicom')
    from liverseg import archive
    monkeypatch.setattr(archive, 'MOST_UNPACKED', 10**6)
    for k in range(3):
        with zipfile.ZipFile(tmp_path / f'{k}.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.bin', bytes(400_000))
    assert 'without DICOM' in complaint(read_volume, tmp_path / '0.zip')
    said = complaint(read_volume, tmp_path)
    assert '2.zip: comes to more than' in said and 'unpack it first' in said
    with zipfile.ZipFile(tmp_path / 'whole.zip', 'w') as z:
        for k in range(3): z.write(tmp_path / f'{k}.zip', f'{k}.zip')
    assert 'whole.zip/2.zip: comes to more than' in complaint(read_volume, tmp_path / 'whole.zip')


# ---- what lies where an answer goes

@pytest.fixture(scope='module')
def scans(tmp_path_factory, subject):
    folder = tmp_path_factory.mktemp('scans')
    nib.save(nib.Nifti1Image(subject.hu, subject.affine), folder / 'a.nii.gz')
    return folder


@pytest.mark.parametrize('name', ['results.csv', 'triage.html', 'a.json', 'a.png', 'a.nii.gz'])
@pytest.mark.parametrize('put', [os.mkfifo, lambda p: p.symlink_to('/nowhere/at/all'), lambda p: p.mkdir()],
                         ids=['pipe', 'link', 'folder'])
def test_what_is_no_file_in_the_place_of_an_answer(name, put, scans, model, tmp_path):
    "Neither waited for nor replaced"
    from liverseg.folder import predict_folder
    put(tmp_path / name)
    kind = (tmp_path / name).lstat().st_mode
    try: said = predict_folder(scans, tmp_path, model, device='cpu', say=lambda s: None)['error'][0]
    except BadInput as e: said = str(e)
    assert f'{name}: ' in said and 'was not written by' in said or 'is a folder' in said
    assert (tmp_path / name).lstat().st_mode == kind


def test_a_folder_for_masks_that_cannot_be_one(scans, model, tmp_path):
    "Said before the work"
    (tmp_path / 'note.txt').write_text('mine')
    from liverseg.predict import predict
    from liverseg.folder import predict_folder
    for out in ('note.txt', 'note.txt/deep/er'):
        assert 'note.txt: is not a folder' in complaint(predict_folder, scans, tmp_path / out, model, device='cpu')
    assert 'note.txt: is not a folder' in complaint(predict, scans / 'a.nii.gz', tmp_path / 'note.txt/m.nii.gz', model,
                                                 device='cpu', say=pytest.fail)


def test_files_of_others_are_not_replaced_by_a_list_or_a_network(scans, subject, model, tmp_path):
    before = (scans / 'a.nii.gz').read_bytes()
    assert 'was not written by liverseg check' in run('check', scans, '--json', scans / 'a.nii.gz', ok=1).stderr
    assert (scans / 'a.nii.gz').read_bytes() == before
    for _ in range(2): run('check', scans, '--json', tmp_path / 'found.json', ok=0)
    (tmp_path / 'other.onnx').write_bytes(bytes(1000))
    pytest.importorskip('onnx')
    from liverseg.save import export_onnx
    assert 'was not written by liverseg export' in complaint(export_onnx, tmp_path / 'other.onnx', model)
    assert (tmp_path / 'other.onnx').read_bytes() == bytes(1000)
    for _ in range(2): export_onnx(tmp_path / 'ours.onnx', model)


def test_what_was_changed_or_taken_away_is_not_done(scans, model, tmp_path):
    from liverseg.folder import predict_folder
    how = dict(model=model, device='cpu', say=lambda s: None)
    for maps in (False, True): predict_folder(scans, tmp_path, maps=maps, **how)
    for name in ('a.png', 'a_prob.nii.gz'):
        (tmp_path / name).unlink()
        predict_folder(scans, tmp_path, maps=True, **how)
        assert (tmp_path / name).is_file(), name
    mask = nib.load(tmp_path / 'a.nii.gz')
    nib.save(nib.Nifti1Image(np.ones(mask.shape, np.uint8), mask.affine), tmp_path / 'a.nii.gz')
    assert 'was not written by' in predict_folder(scans, tmp_path, maps=True, **how)['error'][0]


def test_scans_in_other_wrappings(scans, subject, model, tmp_path):
    "A pair of files in capitals is one scan; another packer's file is named and counts as failed"
    from liverseg.folder import predict_folder
    nib.save(nib.Nifti1Pair(subject.hu, subject.affine), tmp_path / 'c.hdr')
    for end in ('hdr', 'img'): (tmp_path / f'c.{end}').rename(tmp_path / f'C.{end.upper()}')
    (tmp_path / 'b.nii.bz2').write_bytes(b'BZh9')
    table = predict_folder(tmp_path, tmp_path / 'out', model, device='cpu', say=lambda s: None)
    assert table['error'].notna().tolist() == [True, False] and 'b.nii.bz2: is neither NIfTI' in table['error'][0]
    (tmp_path / 'C.IMG').rename(tmp_path / 'C.gone')
    assert 'which is not there' in complaint(read_volume, tmp_path / 'C.HDR')


def test_a_broken_link_is_not_overlooked(scans, tmp_path):
    shutil.copy(scans / 'a.nii.gz', tmp_path)
    (tmp_path / 'b.nii.gz').symlink_to('nowhere.nii.gz')
    os.mkfifo(tmp_path / 'c.nii.gz')
    done = run('check', tmp_path, ok=1)
    for name in ('b', 'c'): assert f'{name}.nii.gz: is not a file but a broken link, a pipe or a device' in done.stderr


# ---- the terminal

def test_a_name_does_nothing_to_the_terminal(scans, tmp_path):
    "Neither in the table nor beside it, and no line of a file's name looks like one of ours"
    for name in ('a\x1b]0;x\x07b', 'c\nd'): shutil.copy(scans / 'a.nii.gz', tmp_path / f'{name}.nii.gz')
    # as on a terminal
    code = 'import sys, click; click.utils.should_strip_ansi = lambda *a: False; from liverseg.cli import main; main()'
    done = subprocess.run([sys.executable, '-c', code, 'check', str(tmp_path)], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 1 and r'a\x1b]0;x\x07b' in done.stdout and '\x1b' not in done.stdout + done.stderr
    assert done.stderr.count('rename it') == len(done.stderr.splitlines()) == 2


def test_nobody_listens(scans, tmp_path):
    "A closed or full output is no reason to break down"
    for close, status in (('>&-', 0), ('>&- 2>&-', 0), ('>/dev/full', 1)):
        done = subprocess.run(['bash', '-c', f'"$0" check "$1" {close}', *LIVERSEG, str(scans)], capture_output=True,
                              text=True)
        assert done.returncode == status and 'Traceback' not in done.stderr, done.stderr
    assert done.stderr.startswith('liverseg: the output: No space left')


@pytest.mark.parametrize('args',
                         [('check', ''), ('predict', '', 'm.nii.gz'), ('predict', 'a', ''),
                          ('check', 'a', '--json', ''), ('evaluate', '--pred', '', '--truth', 'a', 'r')])
def test_an_empty_name_is_not_the_folder_that_one_is_in(args, tmp_path):
    from click.testing import CliRunner
    from liverseg.cli import main
    with pytest.MonkeyPatch.context() as here:
        here.chdir(tmp_path)
        done = CliRunner().invoke(main, args)
    assert done.exit_code == 2 and 'is empty' in done.output and not any(tmp_path.iterdir())


def test_a_folder_that_convert_did_not_write(scans, tmp_path):
    from liverseg.evaluate import evaluate
    assert 'manifest.csv: there is no such file' in complaint(evaluate, scans, tmp_path / 'r', device='cpu')


# ---- models

def test_a_model_that_is_too_large_or_of_networks_that_there_are_not(model, tmp_path):
    shutil.copytree(model, tmp_path / 'm')
    meta = json.loads((tmp_path / 'm/model.json').read_text())
    for archs in ('lite', ['lite', 3], ['no_such_net'], {'a': 1}, 5, None, [[]], {}):
        (tmp_path / 'm/model.json').write_text(json.dumps(dict(meta, archs=archs)))
        assert 'has archs = ' in complaint(load_model, tmp_path / 'm')
    (tmp_path / 'm/model.json').write_text(json.dumps(dict(meta, mean=[.5]*10_000)))
    assert 'has mean = ' in (said := complaint(load_model, tmp_path / 'm')) and len(said) < 1000
    for path in (tmp_path / 'm/model.safetensors', tmp_path / 'm.onnx'):
        with path.open('wb') as f: f.truncate(3*2**30) # holes, which take no room
    (tmp_path / 'm/model.json').write_text(json.dumps(meta))
    for path in (tmp_path / 'm', tmp_path / 'm.onnx'):
        assert 'more than any network of ours' in complaint(open_model, path, 'cpu')
    assert 'is an ONNX file already' in run('export', tmp_path / 'x.onnx', '--model', tmp_path / 'm.onnx', ok=1).stderr


# ---- a disk that is full

@pytest.mark.skipif(os.name == 'nt', reason='no limit on the size of files')
@pytest.mark.parametrize('room, command, args, named', [
    # the mask itself has room
    (6000, 'predict', ('{scan}', 'out/m.nii.gz', '--model', '{model}', '--device', 'cpu'), 'm.png'),
    (100, 'predict', ('{scan}', 'out/m.nii.gz', '--model', '{model}', '--device', 'cpu'), 'm.nii.gz'),
    (2000, 'evaluate', ('{png}', 'out/report', '--model', '{model}', '--device', 'cpu'), 'report'),
    (2000, 'convert', ('{cohort}', 'out/png'), 'png'),
    (2000, 'train',
     ('{png}', 'out/m', '--size', 64, '--epochs', 1, '--arch', 'resnet18', '--no-pretrained', '--device', 'cpu'), 'm'),
    # the pictures have room
    (2_000_000, 'train',
     ('{png}', 'out/m', '--size', 64, '--epochs', 1, '--arch', 'resnet18', '--no-pretrained', '--device', 'cpu'), 'm'),
    (2000, 'export', ('out/m.onnx', '--model', '{model}'), 'm.onnx')])
def test_a_file_for_which_there_is_no_room(room, command, args, named, cohort, png, model, tmp_path):
    "One sentence that names it, and neither a half of it nor another file of the same answer"
    import resource
    (tmp_path / 'out').mkdir()
    places = dict(scan=next((cohort / 'test/nii').glob('*_orig.nii.gz')), png=png, model=model, cohort=cohort)
    done = run(command, *(str(a).format(**places) for a in args), ok=1, cwd=tmp_path,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert named in done.stderr.splitlines()[-1] and 'free space' in done.stderr.splitlines()[-1]
    assert [p.name for p in (tmp_path / 'out').iterdir() if p.name[0] != '.'] == []
