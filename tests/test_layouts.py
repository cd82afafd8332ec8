"""The same two patients in the layout of each data set give the same pixels; what is missing or damaged is reported by
name."""
import json
import shutil
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from liverseg.check import remarks
from liverseg.cli import main
from liverseg.convert import convert
from liverseg.layouts import LAYOUTS, find_cases, lits_numbers
from liverseg.cases import read_case
from liverseg.phantom import make_subject, write_series
from liverseg.volume import window
from liverseg.nifti import stored_as
from liverseg.work import BadInput

pytest.importorskip('pydicom')
# A has a tumour; C comes without a mask
A, B, C = (make_subject(seed, shape=(48, 40, 12), spacing=(7, 7, 14), tumour=seed == 3) for seed in (3, 4, 5))

def nii(path, data, affine=None, axes='RAS', bare=False):
    "Write a volume, its array in some axis order; `bare`: its header has nothing but the identity"
    img = stored_as(nib.Nifti1Image(data, A.affine if affine is None else affine), axes)
    if bare: img = nib.Nifti1Image(np.asarray(img.dataobj), np.eye(4))
    img.set_sform(img.affine, 1), img.set_qform(img.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(img, path)

def pair(s, image, mask=None, axes='RAS', binary=False):
    nii(image, s.hu, s.affine, axes)
    if mask: nii(mask, (s.labels > 0).astype(np.uint8) if binary else s.labels, s.affine, axes)

def own(root):
    pair(A, root / 'train/nii/a_orig.nii.gz', root / 'train/nii/a_liver.nii.gz')
    pair(B, root / 'test/nii/b_orig.nii.gz', root / 'test/nii/b_liver.nii.gz')
    return dict(a=(A, 'train'), b=(B, 'test'))

def own_dicom(root):
    for name, s in (('a', A), ('b', B)):
        write_series(s.hu, s.affine, root / f'train/nii/{name}_orig')
        nii(root / f'train/nii/{name}_liver.nii', s.labels, s.affine, 'LPS')
    return dict(a=(A, 'train'), b=(B, 'train'))

def patient(s, home):
    write_series(s.hu, s.affine, home / 'PATIENT_DICOM')
    masks = dict(liver=s.labels > 0, bone=s.hu > 300) | (dict(livertumor01=s.labels == 2) if (s.labels == 2).any()
                                                         else {})
    for organ, mask in masks.items(): write_series(255 * mask.astype(np.uint8), s.affine, home / 'MASKS_DICOM' / organ)

def ircad(root):
    patient(A, root / '3Dircadb1.2'), patient(B, root / '3Dircadb1.10')
    return {'3Dircadb1.2': (A, 'train'), '3Dircadb1.10': (B, 'train')}

def zipped(folder):
    "Replace a folder by a zip archive that holds a folder of the same name"
    with zipfile.ZipFile(folder.with_name(f'{folder.name}.zip'), 'w') as z:
        for p in sorted(folder.rglob('*')): z.write(p, p.relative_to(folder.parent))
    shutil.rmtree(folder)

def ircad_zipped(root):
    expected = ircad(root / '3Dircadb1')
    for part in ('PATIENT_DICOM', 'MASKS_DICOM'):
        for name in expected: zipped(root / '3Dircadb1' / name / part)
    zipped(root / '3Dircadb1')
    return expected

def lits(root, volumes=('',) * 2, segmentations=('',) * 2, test=None):
    for s, n, v, m in zip((A, B), (0, 11), volumes, segmentations):
        pair(s, root / v / f'volume-{n}.nii', root / m / f'segmentation-{n}.nii', 'LPI')
    if test: pair(C, root / test / 'test-volume-0.nii')
    return dict(lits_0=(A, 'train'), lits_11=(B, 'train')) | (dict(lits_test_0=(C, 'test')) if test else {})

def lits_batches(root): return lits(root, *2 * [('Training Batch 1', 'Training Batch 2')], 'Test')
def lits_apart(root): return lits(root, ('volume_pt1', 'volume_pt2'), ('segmentations',) * 2)

def msd(root, images='{}', labels={'0': 'background', '1': 'liver', '2': 'cancer'}):
    root /= 'Task03_Liver'
    for n, s in enumerate((A, B)):
        pair(s, root / f'imagesTr/{images.format(f"liver_{n}")}.nii.gz', root / f'labelsTr/liver_{n}.nii.gz', 'LAS')
    pair(C, root / f'imagesTs/{images.format("liver_7")}.nii.gz')
    for folder in ('imagesTr', 'labelsTr'): (root / folder / '._liver_0.nii.gz').write_bytes(b'\0\5\x16\7')
    (root / 'dataset.json').write_text(json.dumps(dict(name='Liver', labels=labels)))
    return dict(liver_0=(A, 'train'), liver_1=(B, 'train'), liver_7=(C, 'test'))

def nnunet(root): return msd(root, '{}_0000', dict(background=0, liver=[1, 2], tumor=2))

def totalsegmentator(root, meta='image_id;age;split\ns0000;50;train\ns0011;;test\ns9999;1;val\n'):
    for s, name in ((A, 's0000'), (B, 's0011')):
        pair(s, root / name / 'ct.nii.gz', root / name / 'segmentations/liver.nii.gz', binary=True)
        nii(root / name / 'segmentations/spleen.nii.gz', np.ones_like(s.labels))
    (root / 'meta.csv').write_text(meta)
    return dict(s0000=(A, 'train'), s0011=(B, 'test'))

def chaos(root, sets='Train_Sets', tests='Test_Sets'):
    for s, n in ((A, 1), (B, 22)):
        home = root / sets / 'CT' / str(n)
        write_series(s.hu, s.affine, home / 'DICOM_anon', name='i{n:04d},0000b.dcm')
        (home / 'Ground').mkdir()
        for k, m in enumerate(stored_as(nib.Nifti1Image(s.labels, s.affine), 'LPS').get_fdata().transpose(2, 1, 0)):
            Image.fromarray(((m > 0) * 255).astype(np.uint8)).save(home / f'Ground/liver_GT_{k:03d}.png')
        write_series(s.hu, s.affine, root / sets / f'MR/{n}/T2SPIR/DICOM_anon', Modality='MR')
    if tests: write_series(C.hu, C.affine, root / tests / 'CT/3/DICOM_anon')
    return dict(chaos_1=(A, 'train'), chaos_22=(B, 'train')) | (dict(chaos_3=(C, 'test')) if tests else {})

def one_each(root):
    "Train on LiTS, test on 3D-IRCADb-01"
    pair(A, root / 'train/volume-0.nii.gz', root / 'train/segmentation-0.nii.gz')
    patient(B, root / 'test/3Dircadb1.1')
    return {'lits_0': (A, 'train'), '3Dircadb1.1': (B, 'test')}

def loose(root):
    "Not a data set: scans in a folder, one of them without a mask"
    for s, name in ((A, 'a'), (B, 'b')): pair(s, root / f'{name}_orig.nii.gz', root / f'{name}_liver.nii.gz')
    pair(C, root / 'c_orig.nii.gz')
    return dict(a=(A, 'train'), b=(B, 'train'), c=(C, 'test'))

def tcia(root, **placed):
    "As The Cancer Imaging Archive files it: A with a SEG and a second series, B with an RTSTRUCT, C without a mask"
    from test_seg import planes_of, read_series, rtstruct, runs, write_seg
    homes = dict(native='2.000000-NATIVE-00123', ct='4.000000-PORTAL VENOUS-84211', mask='300.000000-Segmentation-99')
    for n, (s, name) in enumerate(((A, 'HCC_001'), (B, 'HCC_002'), (C, 'HCC_003'))):
        study = root / 'manifest-17/HCC' / name / '11-29-1999-NA-CT ABDPEL-52152'
        who = dict(PatientID=name, StudyInstanceUID=f'1.2.{n}', name='1-{n:02}.dcm')
        write_series(s.hu, s.affine, study / homes['ct'], SeriesInstanceUID=f'1.2.{n}.4', **who)
        if s is A: write_series(s.hu + np.int16(1), s.affine, study / homes['native'], SeriesInstanceUID='1.2.2', **who)
        if s is C: continue
        series = read_series(study / homes['ct'])
        liver = np.asarray(stored_as(nib.Nifti1Image(s.labels, s.affine), 'LPS').dataobj) > 0
        path = study / homes['mask'] / '1-1.dcm'
        path.parent.mkdir()
        if s is A: write_seg(path, series, liver, **placed)
        else: rtstruct(path, planes_of(series), {'Spleen': [], 'Liver': runs(liver)})
    (root / 'manifest-17/metadata.csv').write_text('Series UID,Collection\n')
    return dict(HCC_001=(A, 'train'), HCC_002=(B, 'train'), HCC_003=(C, 'test'))

def heaped(root):
    "All files of such a download in one folder, under other names"
    expected = tcia(root / 'tree')
    files = sorted((root / 'tree').rglob('*.dcm'))
    for n, f in enumerate(files): f.rename(root / f'IM{(n*31) % len(files):03}')
    shutil.rmtree(root / 'tree')
    return expected

WAYS = [own, own_dicom, tcia, heaped, ircad, ircad_zipped, lits, lits_batches, lits_apart, msd, nnunet,
        totalsegmentator, chaos,
        one_each, loose]

def same(dst, manifest, subject, kind, data):
    "The slices that were written are `data` (RAS) in radiological convention"
    got = np.stack([np.array(Image.open(dst / f)) for f in manifest.loc[manifest['subject'] == subject, kind]])
    np.testing.assert_array_equal(got, data[::-1, ::-1].transpose(2, 1, 0), f'{subject} {kind}')

@pytest.mark.parametrize('way', WAYS, ids=lambda w: w.__name__)
def test_the_same_patients(tmp_path, way):
    expected, dst = way(tmp_path / 'data'), tmp_path / 'png'
    m = convert(tmp_path / 'data', dst)
    assert m.attrs['skipped'] == []
    assert dict(zip(m['subject'], m['split'])) == {name: split for name, (_, split) in expected.items()}
    for name, (s, _) in expected.items():
        same(dst, m, name, 'image', window(s.hu))
        if s is C: assert set(m.loc[m['subject'] == name, 'mask']) == {''}
        else: same(dst, m, name, 'mask', s.labels > 0)

def name(value): return getattr(value, '__name__', None)
def tell(src, **options): return {c.subject: c for c in find_cases(src, **options)}
def cli(*args): return CliRunner().invoke(main, [str(a) for a in args])
def remove(path): shutil.rmtree(path) if path.is_dir() else path.unlink()

def refused(func, *words):
    "One sentence that holds all words; no other exception"
    with pytest.raises(BadInput) as e: func()
    assert all(word in str(e.value) for word in ('; ', *words)) and '\n' not in str(e.value), str(e.value)

@pytest.mark.parametrize('way', [own, lits, nnunet, ircad, chaos], ids=name)
def test_liver_1_leaves_out_tumours_only(tmp_path, way):
    expected, cases = way(tmp_path), tell(tmp_path, liver=(1,))
    for s, c in ((expected[n][0], c) for n, c in cases.items() if c.mask):
        np.testing.assert_array_equal(read_case(c)[1], s.labels > 0 if way is chaos else s.labels == 1)

def test_a_1_is_a_1(tmp_path):
    pair(A, tmp_path / 'a_orig.nii'), nii(tmp_path / 'a_liver.nii',
                                          np.where(A.hu > 300, 255, A.labels).astype(np.uint8))
    np.testing.assert_array_equal(read_case(tell(tmp_path, liver=(1,))['a'])[1], (A.labels == 1) & (A.hu <= 300))


@pytest.mark.parametrize('way, gone, subject, words', [
    (own, 'train/nii/a_liver.nii.gz', 'a', ['a_orig.nii.gz', 'has no mask']),
    (own_dicom, 'train/nii/a_orig', 'a', ['a_liver.nii', 'without an image']),
    (lits_apart, 'volume_pt1/volume-0.nii', 'lits_0', ['segmentation-0.nii', 'without an image']),
    (lits_apart, 'segmentations/segmentation-0.nii', 'lits_0', ['volume-0.nii', 'has no mask']),
    (nnunet, 'Task03_Liver/imagesTr/liver_0_0000.nii.gz', 'liver_0', ['labelsTr/liver_0.nii.gz', 'without an image']),
    (nnunet, 'Task03_Liver/labelsTr/liver_0.nii.gz', 'liver_0', ['liver_0_0000.nii.gz', 'has no mask']),
    (totalsegmentator, 's0000/segmentations/liver.nii.gz', 's0000', ['s0000/ct.nii.gz', 'has no mask']),
    (totalsegmentator, 's0000/ct.nii.gz', 's0000', ['s0000', 'without an image']),
    (chaos, 'Train_Sets/CT/1/Ground', 'chaos_1', ['CT/1/DICOM_anon', 'has no mask']),
    (chaos, 'Train_Sets/CT/1/Ground/liver_GT_003.png', 'chaos_1', ['CT/1/Ground', '11 pictures for the 12 slices']),
    (chaos, 'Train_Sets/CT/1/DICOM_anon', 'chaos_1', ['CT/1', 'without an image']),
    (ircad, '3Dircadb1.2/MASKS_DICOM', '3Dircadb1.2', ['3Dircadb1.2/PATIENT_DICOM', 'has no mask']),
    (ircad, '3Dircadb1.2/MASKS_DICOM/livertumor01/image_3', '3Dircadb1.2',
     ['livertumor01', '11 pictures for the 12 slices']),
    (ircad, '3Dircadb1.2/PATIENT_DICOM', '3Dircadb1.2', ['3Dircadb1.2', 'without an image'])],
                         ids=lambda v: v if isinstance(v, str) else '')
def test_a_missing_scan_or_mask(tmp_path, way, gone, subject, words):
    src, dst = tmp_path / 'data', tmp_path / 'png'
    expected = way(src)
    remove(src / gone)
    refused(lambda: convert(src, dst), *words)
    m = convert(src, dst, on_error='skip')
    assert set(m['subject']) == expected.keys() - {subject}
    assert len(m.attrs['skipped']) == 1 and all(w in m.attrs['skipped'][0] for w in words)

@pytest.mark.parametrize('way, gone, splits',
                         [(lits, 'segmentation-0.nii', dict(lits_0='test')),
                          (one_each, 'test/3Dircadb1.1/MASKS_DICOM', {})], ids=name)
def test_a_test_scan_needs_no_mask(tmp_path, way, gone, splits):
    way(tmp_path), remove(tmp_path / gone)
    assert [(c.split, c.error) for c in find_cases(tmp_path, splits=splits) if c.mask is None] == [('test', '')]

def loose_train(d): loose(d / 'train')
def msd_train(d): msd(d / 'train')

@pytest.mark.parametrize('way, splits',
                         [(msd_train, {}), (loose_train, {}), (lits_batches, dict(lits_test_0='valid'))], ids=name)
def test_nothing_trains_without_a_mask(tmp_path, way, splits):
    way(tmp_path)
    assert [c.subject for c in find_cases(tmp_path, splits=splits)
            if not (c.mask or c.error or c.split == 'test')] == []

def own_and_ircad(d): own(d), remove(d / 'test'), patient(B, d / 'test/3Dircadb1.1')
def lits_and_test(d): lits(d), patient(C, d / 'test/3Dircadb1.1')
def side_by_side(d): lits(d / 'LiTS'), ircad(d / 'IRCAD')
def two_tasks(d): msd(d), shutil.copytree(d / 'Task03_Liver', d / 'Task08_HepaticVessel')
def chaos_unpacked(d):
    chaos(d / 'CHAOS_Train_Sets'), (d / 'CHAOS_Test_Sets').mkdir()
    shutil.move(d / 'CHAOS_Train_Sets/Test_Sets', d / 'CHAOS_Test_Sets')
def odd_name(d): loose(d), pair(C, d / 'scan.nii.gz')
def four_digits(d):
    for s, tail, n in ((A, 'Tr', '0000'), (B, 'Tr', '0001'), (A, 'Ts', '0000'), (B, 'Ts', '0003')):
        pair(s, d / f'images{tail}/{tail}_{n}.nii.gz', d / f'labels{tail}/{tail}_{n}.nii.gz')

@pytest.mark.parametrize('way, n', [
    (own_and_ircad, 2), (lits_and_test, 3), (side_by_side, 4), (two_tasks, 6), (chaos_unpacked, 3),
    (odd_name, 4), (four_digits, 4)], ids=name)
def test_no_subject_is_overlooked(tmp_path, way, n):
    "All subjects are listed or, where it is unclear which are wanted, the choice is left to the user"
    way(tmp_path)
    try: cases = find_cases(tmp_path)
    except BadInput: return
    assert len(cases) == n and not any(c.error for c in cases)

def test_options_of_the_command(tmp_path):
    src, dst = tmp_path / 'data', tmp_path / 'png'
    lits(src)
    assert list(tell(src, without=('*_11',))) == ['lits_0']
    refused(lambda: find_cases(src, splits=dict(lits_9='test')), "no subject 'lits_9'", 'lits_0')
    done = cli('convert', src, dst, '--test', ' lits_0,', '--valid', 'lits_1*', '--liver', '1')
    assert done.exit_code == 0 and 'note: names look like those of LiTS: volumes 28–47' in done.stderr
    m = pd.read_csv(dst / 'manifest.csv')
    assert dict(zip(m['subject'], m['split'])) == dict(lits_0='test', lits_11='valid')
    same(dst, m, 'lits_0', 'mask', A.labels == 1)

def test_the_warning_about_lits(tmp_path):
    nnunet(tmp_path / 'nnunet'), own(tmp_path / 'own')
    cases = find_cases(tmp_path / 'nnunet')
    assert lits_numbers(cases) == [0, 1, 7] and 'volumes 28–47' in remarks(cases)[0]
    assert remarks(find_cases(tmp_path / 'own')) == []

@pytest.mark.parametrize('axes', ['LPI', 'SPR'])
def test_a_leak_from_lits_to_ircad(tmp_path, axes):
    "The copy's header has no position, voxel size or orientation"
    src = tmp_path / 'data'
    for kind, a in (('volume', A.hu), ('segmentation', A.labels)):
        nii(src / f'train/LiTS/{kind}-28.nii', a, axes=axes, bare=True)
    patient(A, src / 'test/3Dircadb1.1')
    refused(lambda: convert(src, tmp_path / 'png'), 'volume-28.nii', 'the same voxels as', '3Dircadb1.1')
    assert set(convert(src, tmp_path / 'png', on_error='skip')['subject']) == {'3Dircadb1.1'}
    found = {n: read_case(c)[0].spacing for n, c in tell(src, spacing=(1, 2, 3)).items()}
    assert found == {'lits_28': (1, 2, 3), '3Dircadb1.1': (7, 7, 14)}

@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('part', ['PATIENT_DICOM', 'MASKS_DICOM'])
def test_a_damaged_archive(tmp_path, part, skip):
    src, path = tmp_path / 'data', tmp_path / f'data/3Dircadb1.2/{part}.zip'
    ircad(src), zipped(path.with_suffix('')), path.write_bytes(path.read_bytes()[:-300])
    if not skip: refused(lambda: convert(src, tmp_path / 'png'), path.name, 'damaged')
    else: assert set(convert(src, tmp_path / 'png', on_error='skip')['subject']) == {'3Dircadb1.10'}

@pytest.mark.parametrize('keep', [2000, -300])
def test_a_cut_off_download(tmp_path, keep):
    path = tmp_path / '3Dircadb1.zip'
    ircad_zipped(tmp_path), path.write_bytes(path.read_bytes()[:keep])
    for src in (path, tmp_path): refused(lambda: find_cases(src), '3Dircadb1.zip', 'damaged')


@pytest.mark.parametrize('raw', [
    b'a\nb;c;d\n"x', b'\xff\xfe\0', b'image_id;split\ns0000;"tra', b'', b'xxxxx', b'\0\0\0',
    b'image_id;age\ns0000;5\n', b'image_id;split\ns0000;tset\n', b'image_id;split\ns0000;test;x;y\n'])
def test_a_damaged_meta_csv(tmp_path, raw):
    totalsegmentator(tmp_path), (tmp_path / 'meta.csv').write_bytes(raw)
    refused(lambda: find_cases(tmp_path), 'meta.csv')

@pytest.mark.parametrize('raw',
                         ['image_id,split\ns0000,val\n', 'image_id\tsplit\ns0000\tval\n',
                          '\ufeffimage_id;split\ns0000;val\n'])
def test_meta_csv_of_other_programs(tmp_path, raw):
    "Commas, tabs, and the byte order mark that Excel writes"
    totalsegmentator(tmp_path, raw)
    assert {n: c.split for n, c in tell(tmp_path).items()} == dict(s0000='valid', s0011='train')

LABELS = ('["liver"]', '3', '{"liver": "one"}', '{"liver": null}', '{"liver": NaN}', '{"liver": {"a": 1}}',
          '{"²": "liver"}')

@pytest.mark.parametrize('raw',
                         ['', '{', '[]', 'null', '[' * 10**5, *('{"labels": %s}' % labels for labels in LABELS)],
                         ids=lambda raw: raw[:30])
def test_a_damaged_dataset_json(tmp_path, raw):
    msd(tmp_path), (tmp_path / 'Task03_Liver/dataset.json').write_text(raw, encoding='utf-8')
    refused(lambda: find_cases(tmp_path), 'dataset.json')

@pytest.mark.parametrize('labels, liver',
                         [({'0': 'background', '1': 'Liver', '2': 'Liver Tumour'}, (1, 2)),
                          (dict(background=0, spleen=1, liver=6, liver_vessel=7), (6,)),
                                           ({'background': 0, 'hepatic vessels': 1, 'liver': [2, 3], 'cancer': 3},
                                            (2, 3))], ids=['msd', 'organs', 'regions'])
def test_labels_of_a_dataset_json(tmp_path, labels, liver):
    msd(tmp_path, labels=labels)
    assert {c.liver for c in find_cases(tmp_path)} == {liver}
    assert {c.liver for c in find_cases(tmp_path, liver=(9,))} == {(9,)}

def test_a_dataset_json_without_a_liver(tmp_path):
    msd(tmp_path / 'data', labels={'0': 'background', '1': 'spleen'})
    assert len(find_cases(tmp_path / 'data', liver=(1,))) == 3
    with pytest.raises(BadInput, match='dataset.json.*--liver'): convert(tmp_path / 'data', tmp_path / 'png')

def test_two_of_one_name(tmp_path):
    a, b, c = (tmp_path / n for n in 'abc')
    lits_batches(a), shutil.copy(a / 'Training Batch 1/volume-0.nii', a / 'Training Batch 2')
    refused(lambda: find_cases(a), 'Training Batch 1/volume-0.nii', 'Training Batch 2/volume-0.nii')
    lits(b / 'train'), lits(b / 'test')
    assert [c.split for c in find_cases(b) if not c.error] == ['test'] * 2
    with pytest.raises(BadInput, match='train/volume-0.nii.*is in train and, as .*test/volume-0.nii, in test'):
        convert(b, tmp_path / 'png')
    chaos(c), shutil.copytree(c / 'Train_Sets/CT/1', c / 'Test_Sets/CT/1')
    refused(lambda: find_cases(c), 'same number')

def lits_zipped(d): lits(d / 'LiTS'), zipped(d / 'LiTS')

@pytest.mark.parametrize('make', [lambda d: None, lambda d: (d / 'notes.txt').touch(), lits_zipped],
                         ids=['empty', 'text', 'an archive of another'])
def test_no_data_set(tmp_path, make):
    make(tmp_path)
    refused(lambda: find_cases(tmp_path), 'train/nii', *LAYOUTS)

@pytest.mark.parametrize('way, part, found', [
    (chaos, 'Train_Sets/CT', dict(chaos_1='train', chaos_22='train')),
    (chaos, 'Train_Sets/CT/1', dict(chaos_1='train')),
    (chaos, 'Test_Sets', dict(chaos_3='test')), (ircad, '3Dircadb1.2', {'3Dircadb1.2': 'train'}),
    (ircad_zipped, '3Dircadb1.zip', {'3Dircadb1.10': 'train', '3Dircadb1.2': 'train'}),
    (ircad, '3Dircadb1.2/PATIENT_DICOM', dict(PATIENT_DICOM='test'))], ids=name)
def test_a_part_of_a_data_set(tmp_path, way, part, found):
    way(tmp_path)
    assert {n: c.split for n, c in tell(tmp_path / part).items() if not c.error} == found

def test_the_current_folder(tmp_path, monkeypatch):
    ircad(tmp_path), monkeypatch.chdir(tmp_path / '3Dircadb1.2')
    assert list(tell('.')) == ['3Dircadb1.2']


def test_an_archives_own_top_folder(tmp_path):
    "Unpacked as it came, with a folder or two around the layout"
    own(tmp_path / 'ircad-dataset/data')
    for src in (tmp_path, tmp_path / 'ircad-dataset'): assert [c.split for c in find_cases(src)] == ['train', 'test']


def test_a_scan_beside_a_folder_is_not_overlooked(tmp_path):
    own(tmp_path / 'more/data')
    scan = next((tmp_path / 'more/data/test/nii').glob('*_orig.nii.gz'))
    shutil.copy(scan, tmp_path)
    assert [c.image for c in find_cases(tmp_path)] == [tmp_path / scan.name]


def test_without_the_dicom_extra(tmp_path):
    "NIfTI needs no pydicom, and DICOM says what to install"
    own(tmp_path / 'nifti'), ircad(tmp_path / 'dicom')
    code = ("import sys; sys.modules['pydicom'] = None; from liverseg.cli import main; "
            "main(['check', sys.argv[1]], prog_name='liverseg')")
    good, bad = (subprocess.run([sys.executable, '-c', code, str(tmp_path / d)], capture_output=True, text=True)
                 for d in ('nifti', 'dicom'))
    assert good.returncode == 0 and "pip install -e '.[dicom]'" in bad.stderr and bad.returncode == 1
    assert 'Traceback' not in bad.stderr


# --- masks in DICOM ---

def test_labels_in_dicom_give_the_same_slices(tmp_path):
    "Byte for byte as the same masks in NIfTI, whatever training makes of them"
    expected = tcia(tmp_path / 'tcia')
    for name, (s, split) in expected.items():
        series, = (p for p in (tmp_path / 'tcia').rglob('4.*') if name in str(p))
        shutil.copytree(series, tmp_path / f'own/{split}/nii/{name}_orig')
        if s is not C: nii(tmp_path / f'own/{split}/nii/{name}_liver.nii.gz', s.labels, s.affine)
    a, b = (convert(tmp_path / n, tmp_path / f'png_{n}') for n in ('tcia', 'own'))
    files = [{p.relative_to(tmp_path / f'png_{n}').as_posix(): p.read_bytes()
              for p in (tmp_path / f'png_{n}').rglob('*.png')} for n in ('tcia', 'own')]
    assert files[0] == files[1] and len(files[0]) == 5*12
    pd.testing.assert_frame_equal(a.drop(columns='source'), b.drop(columns='source'))
    assert [w for w in a.attrs['warnings'] if 'of 2 segments Liver was taken' in w[1]]


def test_a_seg_in_our_own_layout(tmp_path):
    from test_seg import read_series, write_seg
    write_series(A.hu, A.affine, tmp_path / 'train/nii/a_orig')
    series = read_series(tmp_path / 'train/nii/a_orig')
    liver = np.asarray(stored_as(nib.Nifti1Image(A.labels, A.affine), 'LPS').dataobj) > 0
    write_seg(tmp_path / 'train/nii/a_liver.dcm', series, liver)
    case, = find_cases(tmp_path)
    assert case.subject == 'a' and not case.error
    np.testing.assert_array_equal(read_case(case)[1], A.labels > 0)


def test_masks_without_their_series_and_two_on_one(tmp_path):
    from test_seg import SCT, described, read_series, theirs, write_seg
    tcia(tmp_path)
    of = lambda name, part: next(p for p in tmp_path.rglob(part) if name in str(p))
    gone, here = of('HCC_002', '4.*'), of('HCC_001', '4.*')
    shutil.rmtree(gone)
    cases = tell(tmp_path)
    assert 'refers to series 1.2.1.4, which is not below' in cases['HCC_002'].error and not cases['HCC_001'].error
    refused(lambda: convert(tmp_path, tmp_path.parent / 'no'), '1-1.dcm', 'add the series, or remove the mask')
    series = read_series(here)
    spleen = np.zeros(series.data.shape, bool)
    spleen[30:34, 20:25, 4:8] = True
    theirs(here.parent / 'spleen.dcm', series, spleen.T, [described(1, 'Spleen', SCT.Spleen)])
    assert tell(tmp_path)['HCC_001'].mask.parent.name[:3] == '300' # that with the liver
    chosen = tell(tmp_path, segment='Spleen')['HCC_001']
    assert chosen.mask.name == 'spleen.dcm' and read_case(chosen)[1].sum() == spleen.sum()
    write_seg(here.parent / 'again.dcm', series, spleen)
    assert 'holds the liver on the same series as' in tell(tmp_path)['HCC_001'].error


def test_two_series_of_a_patient_with_masks(tmp_path):
    "A validation that draws subjects would take them for two people"
    from test_seg import read_series, write_seg
    tcia(tmp_path)
    home = next(tmp_path.rglob('2.000000*'))
    series = read_series(home)
    write_seg(home.parent / 'second.dcm', series, series.data > 0)
    cases = tell(tmp_path)
    assert {'HCC_001_1', 'HCC_001_2'} < {*cases} and 'HCC_001' not in cases
    assert "is of patient 'HCC_001'" in cases['HCC_001_1'].error and not cases['HCC_001_2'].error
    alone = tell(tmp_path, without=('HCC_001_2',))
    assert not alone['HCC_001_1'].error and alone['HCC_001_1'].image.name[:1] == '2'
    assert tell(tmp_path, splits={'HCC_001_2': 'test'})['HCC_001_1'].error # one to train on, one to test on
    assert not any(c.error for c in tell(tmp_path, splits={'HCC_001_*': 'test'}).values())


def test_a_series_in_two_folders_and_a_damaged_mask(tmp_path):
    tcia(tmp_path)
    home = next(p for p in tmp_path.rglob('4.*') if 'HCC_001' in str(p))
    (home.parent / 'rest').mkdir()
    (home / '1-03.dcm').rename(home.parent / 'rest/1-03.dcm')
    mask = next(p for p in tmp_path.rglob('1-1.dcm') if 'HCC_002' in str(p))
    whole = mask.read_bytes()
    assert 'holds a part of series 1.2.0.4' in tell(tmp_path)['HCC_001'].error
    for n in (140, 200, 600, 1500, 3000, len(whole) - 2000): # listed with the reason, or refused when it is read
        mask.write_bytes(whole[:n])
        case, = (c for c in find_cases(tmp_path) if c.mask == mask)
        refused(lambda: read_case(case), '; ')


def test_the_segment_on_the_command_line(tmp_path):
    from test_seg import SCT, described, read_series, theirs
    write_series(A.hu, A.affine, tmp_path / 'data/ct', PatientID='P')
    series = read_series(tmp_path / 'data/ct')
    liver = np.asarray(stored_as(nib.Nifti1Image(A.labels, A.affine), 'LPS').dataobj) > 0
    left = liver & (np.indices(liver.shape)[0] < 20)
    array = np.stack([(liver & ~left).T, left.T], -1).astype(np.uint8)
    lobes = [described(n, f'{side} lobe', SCT.Organ) for n, side in enumerate(('right', 'left'), 1)]
    theirs(tmp_path / 'data/seg.dcm', series, array, lobes)
    done = cli('check', tmp_path / 'data')
    assert done.exit_code == 1 and 'holds no liver but right lobe, left lobe' in done.output
    for name in ('left lobe', '2'):
        done = cli('check', tmp_path / 'data', '--segment', name)
        assert done.exit_code == 0, done.output
        assert 'of 2 segments left lobe was taken, left out: right lobe' in done.output
    done = cli('convert', tmp_path / 'data', tmp_path / 'png', '--segment', 'left lobe')
    assert done.exit_code == 0 and 'left lobe was taken' in done.output
    assert pd.read_csv(tmp_path / 'png/manifest.csv')['liver_px'].sum() == left.sum()
    assert cli('check', tmp_path / 'data', '--segment', 1, '--liver', 7).exit_code == 0 # labels are of NIfTI alone
    own(tmp_path / 'own')
    refused(lambda: find_cases(tmp_path / 'own', segment='2'), 'no mask in DICOM', '--liver')
