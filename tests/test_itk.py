"""NRRD, MetaImage and 3D Slicer's segmentations: the same places as in SimpleITK and nibabel, the same grid back, and
one sentence for what cannot be read."""
import bz2
import gzip
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest

from conftest import content, run
from liverseg.cases import read_mask, read_volume
from liverseg.check import check
from liverseg.compare import evaluate_masks
from liverseg.convert import convert
from liverseg.folder import scans_in
from liverseg.layouts import find_cases
from liverseg.itk_files import is_our_itk, open_itk, read_itk, write_itk
from liverseg.nifti import ORDERS, stored_as
from liverseg.phantom import make_subject, write_series
from liverseg.predict import predict, Segmentation, Segmenter
from liverseg.results import check_mask_place, made_from, save_mask, write_result
from liverseg.slicer import read_slicer
from liverseg.work import BadInput

sitk = pytest.importorskip('SimpleITK')
FORMATS = ('.nrrd', '.nhdr', '.mha', '.mhd')
WRITTEN = ('.nrrd', '.seg.nrrd', '.mha', '.mhd')


@pytest.fixture(scope='module')
def subject(): return make_subject(3, shape=(20, 18, 10))


def complaint(func, *args, **kwargs):
    with pytest.raises(BadInput) as e: func(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


def turned(degrees):
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.radians(degrees))
    return np.array(turn.GetMatrix()).reshape(3, 3)


def picture(hu, order='RAS', degrees=(0, 0, 0), spacing=(.7, .71, 2.5), origin=(-100.1, -50.3, 20.7)):
    "A picture of SimpleITK whose array is stored in an order of axes, on a grid that is turned"
    stored = stored_as(nib.Nifti1Image(hu, np.diag([*spacing, 1])), order)
    img = sitk.GetImageFromArray(np.asarray(stored.dataobj).T)
    lengths = nib.affines.voxel_sizes(stored.affine)
    lps = np.diag([-1, -1, 1]) @ stored.affine[:3, :3]/lengths
    img.SetSpacing([float(round(v, 6)) for v in lengths])
    img.SetOrigin(origin)
    img.SetDirection((turned(degrees) @ lps).ravel())
    return img


def grid(img): return img.GetSize(), img.GetSpacing(), img.GetOrigin(), img.GetDirection()


def place(affine, index):
    "Where a voxel lies, mm in LPS"
    return (affine @ [*index, 1])[:3]*[-1, -1, 1]


PLANES = dict(axial=('LPS', (0, 0, 0)), sagittal=('PIR', (0, 0, 0)), coronal=('LIP', (0, 0, 0)),
              oblique=('ASL', (12, -20, 33)))


# ---- In: the same voxels at the same places

@pytest.mark.parametrize('plane', PLANES)
@pytest.mark.parametrize('end', FORMATS)
def test_places_are_those_of_simpleitk_and_nibabel(plane, end, subject, tmp_path):
    img = picture(subject.hu, *PLANES[plane])
    for name in (f'a{end}', f'packed{end}', 'b.nii.gz'):
        sitk.WriteImage(img, tmp_path / name, name.startswith('packed'))
    vol, nifti = read_volume(tmp_path / f'a{end}'), read_volume(tmp_path / 'b.nii.gz')
    assert np.array_equal(vol.data, read_volume(tmp_path / f'packed{end}').data)
    assert np.array_equal(vol.data, nifti.data) and vol.data.dtype == np.int16
    assert np.allclose(vol.affine, nifti.affine, atol=1e-4)
    itk, nii = sitk.ReadImage(tmp_path / f'a{end}'), nib.load(tmp_path / 'b.nii.gz')
    back = np.linalg.inv(vol.affine)
    for index in itertools.product((0, 3, 9), repeat=3):
        at = itk.TransformIndexToPhysicalPoint(index)
        assert np.allclose(place(nii.affine, index), at, atol=1e-4)
        ras = np.rint(back @ [-at[0], -at[1], at[2], 1]).astype(int)[:3]
        assert np.allclose(place(vol.affine, ras), at, atol=1e-6)
        assert vol.data[tuple(ras)] == itk.GetPixel(index)


@pytest.mark.parametrize('order', ORDERS[::5])
def test_orders_of_axes(order, subject, tmp_path):
    sitk.WriteImage(picture(subject.hu, order), tmp_path / 'a.mha')
    assert np.array_equal(read_volume(tmp_path / 'a.mha').data, subject.hu)


def nrrd(path, data, *lines, encoding='raw', type='short', before=b'', packed=None):
    "A NRRD file by hand"
    sizes = ' '.join(map(str, data.shape))
    head = ['NRRD0005', '# by hand', f'type: {type}', f'dimension: {data.ndim}', f'sizes: {sizes}',
            f'encoding: {encoding}', *lines, *['endian: little']*(not any(line.startswith('endian') for line in lines))]
    raw = data.tobytes('F') if packed is None else packed
    path.write_bytes('\n'.join([*head, '', '']).encode() + before + raw)
    return path


LPS = 'space: LPS', 'space directions: (2,0,0) (0,3,.3) (0,0,4)', 'space origin: (1,2,3)'


@pytest.mark.parametrize('space', ['left-posterior-superior', 'LPS', 'right-anterior-superior', 'RAS',
                                   'left-anterior-superior', 'LAS'])
def test_spaces_of_nrrd(space, subject, tmp_path):
    path = nrrd(tmp_path / 'a.nrrd', subject.hu, f'space: {space}', *LPS[1:])
    vol, img = read_itk(path), sitk.ReadImage(path)
    lps = np.diag([-1, -1, 1, 1]) @ vol.affine
    index = np.linalg.inv(lps) @ [*img.TransformIndexToPhysicalPoint((4, 5, 6)), 1]
    assert vol.data[tuple(np.rint(index[:3]).astype(int))] == img.GetPixel(4, 5, 6)
    assert vol.grid.spacing.tolist() == list(img.GetSpacing()) and vol.grid.origin.tolist() == list(img.GetOrigin())
    assert vol.grid.directions.T.ravel().tolist() == list(img.GetDirection())
    assert not [n for n in vol.notes if n.code == 'no form']


@pytest.mark.parametrize('lines', [('spacings: 2 3 4',), ('space: scanner-xyz', *LPS[1:]),
                                   ('space dimension: 3', *LPS[1:])])
def test_a_side_that_is_a_guess_is_said(lines, subject, tmp_path):
    vol = read_itk(nrrd(tmp_path / 'a.nrrd', subject.hu, *lines))
    assert 'no form' in [n.code for n in vol.notes] and 'which side is left is a guess' in str(vol.notes[0])
    assert vol.grid.spacing.tolist() == list(sitk.ReadImage(tmp_path / 'a.nrrd').GetSpacing())


def test_forms_of_nrrd(subject, tmp_path):
    "Byte orders, other encodings, bytes to skip, a detached header, number types"
    hu, at = subject.hu, tmp_path / 'a.nrrd'
    same = lambda path: np.array_equal(read_itk(path).data, read_itk(plain).data)
    plain = nrrd(tmp_path / 'plain.nrrd', hu, *LPS)
    big = np.asfortranarray(hu).astype('>i2')
    assert same(nrrd(at, hu, *LPS[:3], 'endian: big', packed=big.tobytes('F')))
    raw = hu.tobytes('F')
    assert same(nrrd(at, hu, *LPS, encoding='bz2', packed=bz2.compress(raw)))
    assert same(nrrd(at, hu, *LPS, encoding='gz', packed=gzip.compress(raw)))
    assert same(nrrd(at, hu, *LPS, 'byte skip: 7', before=b'1234567'))
    assert same(nrrd(at, hu, *LPS, 'byteskip: -1', before=b'1234567'))
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/v.raw').write_bytes(b'xx' + raw)
    assert same(nrrd(tmp_path / 'b.nhdr', hu, *LPS, 'data file: sub/v.raw', 'byte skip: 2', packed=b''))
    for name, kind in (('int8', 'i1'), ('unsigned char', 'u1'), ('uint16_t', 'u2'), ('signed int', 'i4'),
                       ('uint', 'u4'), ('long long', 'i8'), ('unsigned long long int', 'u8'),
                       ('float', 'f4'), ('double', 'f8')):
        small = (subject.labels*3).astype(kind)
        vol = read_itk(nrrd(at, small, *LPS, type=name), fill=0)
        assert np.array_equal(np.flip(vol.data, (0, 1)), small), name
        assert vol.data.dtype == (np.float32 if kind[0] == 'f' else np.dtype(kind)), name
        if kind != 'u8': assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(at)).T, small), name


def meta(path, data, *lines, type='MET_SHORT', raw=None, file='LOCAL', n=3):
    "A MetaImage file by hand"
    head = ['ObjectType = Image', f'NDims = {n}', *lines, f'DimSize = {" ".join(map(str, data.shape[-n:]))}',
            f'ElementType = {type}', f'ElementDataFile = {file}', '']
    path.write_bytes('\n'.join(head).encode() + (data.tobytes('F') if raw is None else raw))
    return path


def test_forms_of_metaimage(subject, tmp_path):
    "Old words, a negative spacing, zlib and gzip, bytes to skip, big-endian, number types: as SimpleITK reads them"
    hu, at = subject.hu, tmp_path / 'a.mha'
    raw, turn = hu.tobytes('F'), 'TransformMatrix = 0 1 0 1 0 0 0 0 1'
    packed, gz = zlib.compress(raw), gzip.compress(raw)
    size = f'CompressedDataSize = {len(packed)}'
    (tmp_path / 'v.raw').write_bytes(b'xyz' + raw)
    (tmp_path / 'v.zraw').write_bytes(packed)
    for lines, more in (((turn, 'Offset = 1 2 3', 'ElementSpacing = 2 3 4'), {}),
                        ((turn.replace('TransformMatrix', 'Rotation'), 'Position = 1 2 3', 'ElementSize = 2 3 4'), {}),
                        ((turn.replace('TransformMatrix', 'Orientation'), 'Origin = 1 2 3',
                          'ElementSpacing = -2 3 4'), {}),
                        ((turn, 'BinaryDataByteOrderMSB = True'), dict(raw=hu.astype('>i2').tobytes('F'))),
                        ((turn, 'CompressedData = True', size), dict(raw=packed)),
                        ((turn, 'CompressedData = True', f'CompressedDataSize = {len(gz)}'), dict(raw=gz)),
                        ((turn, 'CompressedData = True'), dict(raw=b'', file='v.zraw')),
                        ((turn, 'HeaderSize = 3'), dict(raw=b'', file='v.raw')),
                        ((turn, 'HeaderSize = -1'), dict(raw=b'', file='v.raw'))):
        path = meta(at.with_suffix('.mhd' if 'file' in more else '.mha'), hu, *lines, **more)
        vol, img = read_itk(path), sitk.ReadImage(path)
        assert np.array_equal(read_stored(vol), sitk.GetArrayFromImage(img).T), lines
        assert vol.grid.spacing.tolist() == list(img.GetSpacing()), lines
        assert vol.grid.directions.T.ravel().tolist() == list(img.GetDirection()), lines
        assert vol.grid.origin.tolist() == list(img.GetOrigin()), lines
    for name, kind in (('MET_CHAR', 'i1'), ('MET_UCHAR', 'u1'), ('MET_USHORT', 'u2'), ('MET_INT', 'i4'),
                       ('MET_UINT', 'u4'), ('MET_LONG', 'i4'), ('MET_LONG_LONG', 'i8'),
                       ('MET_FLOAT', 'f4'), ('MET_DOUBLE', 'f8')):
        small = (subject.labels*3).astype(kind)
        assert np.array_equal(read_stored(read_itk(meta(at, small, turn, type=name), fill=0)), small), name
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(at)).T, small), name


def read_stored(vol):
    from liverseg.nifti import to_stored_grid
    return to_stored_grid(vol.data, vol)


# ---- Out: the same grid, bit by bit

def source(kind, plane, subject, tmp_path):
    "A scan in some format, and SimpleITK's picture of it"
    order, degrees = PLANES[plane]
    img = picture(subject.hu, order, degrees)
    if kind == 'DICOM':
        sitk.WriteImage(img, tmp_path / 'for_dicom.nii')
        write_series(subject.hu, read_volume(tmp_path / 'for_dicom.nii').affine, tmp_path / 'ct', codes=order)
        files = read_series_files(tmp_path / 'ct')
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        return tmp_path / 'ct', reader.Execute()
    path = tmp_path / f'scan{kind}'
    sitk.WriteImage(img, path, True)
    return path, sitk.ReadImage(path)


def read_series_files(folder):
    from liverseg.dicom import read_series
    return [str(f) for f in read_series(folder).files]


@pytest.mark.parametrize('plane', PLANES)
@pytest.mark.parametrize('kind', ['.nii.gz', '.nrrd', '.nhdr', '.mha', '.mhd', 'DICOM'])
def test_the_same_grid_comes_out(kind, plane, subject, tmp_path):
    "A .mha has the numbers of the source; a .nrrd keeps spacing times direction, exact if the source does"
    path, img = source(kind, plane, subject, tmp_path)
    vol = read_volume(path)
    mask = (vol.data > 40).astype(np.uint8)
    exact = kind != 'DICOM' or plane != 'oblique' # GDCM rounds the distance of oblique slices
    for end in WRITTEN:
        save_mask(Segmentation(mask, vol), out := tmp_path / f'mask{end}')
        back = sitk.ReadImage(out)
        assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(img) > 40), end
        assert back.GetPixelIDTypeAsString() == '8-bit unsigned integer' and back.GetSize() == img.GetSize()
        if exact and end in ('.mha', '.mhd') or kind in ('.nrrd', '.nhdr'): assert grid(back) == grid(img), end
        for ours, theirs in zip(grid(back), grid(img)):
            assert np.allclose(ours, theirs, rtol=0, atol=1e-8 if exact else 1e-6)
        again = read_mask(out)
        assert np.array_equal(again.data, mask) and np.allclose(again.affine, vol.affine, atol=1e-6)


def test_a_tilted_series_stays_sheared(subject, tmp_path):
    shear = np.eye(4)
    shear[1, 2] = .4
    write_series(subject.hu, subject.affine @ shear, tmp_path / 'ct')
    vol = read_volume(tmp_path / 'ct')
    for end in WRITTEN:
        save_mask(Segmentation((vol.data > 40).astype(np.uint8), vol), out := tmp_path / f'mask{end}')
        assert np.allclose(read_mask(out).affine, vol.affine, atol=1e-4) and 'sheared' in [n.code for n in read_itk(
            out, fill=0).notes] or end == '.seg.nrrd'


@pytest.mark.parametrize('end', WRITTEN)
def test_the_same_mask_is_the_same_bytes(end, subject, tmp_path):
    sitk.WriteImage(picture(subject.hu), tmp_path / 'a.mha')
    vol = read_volume(tmp_path / 'a.mha')
    for name in 'xy':
        (tmp_path / name).mkdir()
        save_mask(Segmentation((vol.data > 40).astype(np.uint8), vol), tmp_path / name / f'mask{end}')
    assert content(tmp_path / 'x') == content(tmp_path / 'y')


def test_a_scan_of_itk_gets_its_mask_as_nifti(subject, tmp_path):
    "On the grid that SimpleITK would write as NIfTI"
    img = picture(subject.hu, *PLANES['oblique'])
    sitk.WriteImage(img, tmp_path / 'a.nrrd'), sitk.WriteImage(img, tmp_path / 'b.nii')
    vol = read_volume(tmp_path / 'a.nrrd')
    save_mask(Segmentation((vol.data > 40).astype(np.uint8), vol), tmp_path / 'mask.nii.gz')
    mask, theirs = nib.load(tmp_path / 'mask.nii.gz'), nib.load(tmp_path / 'b.nii')
    assert np.allclose(mask.affine, theirs.affine, atol=1e-5) and mask.header['qform_code'] == 1
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(theirs.dataobj) > 40)


# ---- Whose file it is

@pytest.mark.parametrize('end', WRITTEN)
def test_only_ours_is_replaced(end, subject, tmp_path):
    sitk.WriteImage(picture(subject.hu), tmp_path / 'scan.mha')
    vol, out = read_volume(tmp_path / 'scan.mha'), tmp_path / f'mask{end}'
    found = Segmentation((vol.data > 40).astype(np.uint8), vol, vol.data/np.float32(3000))
    write_result(found, out, dict(liver_found=True))
    check_mask_place(out, tmp_path / 'scan.mha')
    names = {p.name for p in tmp_path.iterdir()}
    assert {f'mask{end}', 'mask.json', 'mask.png', f'mask_prob{".nrrd" if "nrrd" in end else ".mha"}'} < names
    assert ('mask.zraw' in names) == (end == '.mhd')
    prob = sitk.ReadImage(tmp_path / f'mask_prob{".nrrd" if "nrrd" in end else ".mha"}')
    assert np.allclose(sitk.GetArrayFromImage(prob).T, np.round(read_stored(vol)/3000, 3), atol=1e-6)
    edited = sitk.ReadImage(out)
    edited[0, 0, 0] = 1 - edited[0, 0, 0]
    sitk.WriteImage(edited, out, True) # the pairs of a NRRD file, our signature among them, are kept
    assert 'was not written by liverseg' in complaint(check_mask_place, out, tmp_path / 'scan.mha')
    assert 'is the scan itself' in complaint(check_mask_place, tmp_path / 'scan.mha', tmp_path / 'scan.mha')


def test_voxels_of_others_are_not_replaced(subject, tmp_path):
    "A .mhd of ours vouches for the .zraw beside it, with its checksum; an interrupted one has none"
    sitk.WriteImage(picture(subject.hu), tmp_path / 'scan.mha')
    vol, out = read_volume(tmp_path / 'scan.mha'), tmp_path / 'mask.mhd'
    (tmp_path / 'mask.zraw').write_bytes(b'mine')
    assert 'mask.zraw: exists' in complaint(check_mask_place, out, tmp_path / 'scan.mha')
    (tmp_path / 'mask.zraw').unlink()
    write_itk((vol.data > 40).astype(np.uint8), vol, out)
    check_mask_place(out, tmp_path / 'scan.mha')
    (tmp_path / 'mask.zraw').unlink()
    check_mask_place(out, tmp_path / 'scan.mha')
    (tmp_path / 'mask.zraw').write_bytes(b'mine')
    assert not is_our_itk(out)


def test_a_full_disk_leaves_nothing(subject, tmp_path, monkeypatch):
    sitk.WriteImage(picture(subject.hu), tmp_path / 'scan.mha')
    vol = read_volume(tmp_path / 'scan.mha')
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('liverseg.results.save_mask', lambda *args: (write_itk(vol.data > 0, vol, args[1]), full()))
    with pytest.raises(OSError): write_result(Segmentation(vol.data > 0, vol), tmp_path / 'mask.mhd', {})
    assert [p.name for p in tmp_path.iterdir()] == ['scan.mha']


def test_what_a_result_was_made_from(subject, tmp_path):
    "The voxels beside a header count"
    from types import SimpleNamespace
    sitk.WriteImage(picture(subject.hu), tmp_path / 'scan.mhd')
    seg = SimpleNamespace(name='a', meta={})
    first = made_from(tmp_path / 'scan.mhd', seg, {})
    os.utime(tmp_path / 'scan.raw', (0, 0))
    assert made_from(tmp_path / 'scan.mhd', seg, {}) != first


# ---- What is refused

@pytest.mark.parametrize('name', ['../private', '/etc/passwd', 'sub/../../private', '..\\private', 'C:\\private',
                                  'link', 'sub/link', 'LIST', 'a%02d.raw 1 9 1'])
@pytest.mark.parametrize('end', ['.mhd', '.nhdr'])
def test_no_file_outside_the_folder_is_read(end, name, subject, tmp_path, monkeypatch):
    small, opened = subject.labels[:2, :2, :2], []
    (tmp_path / 'private').write_bytes(small.tobytes()*9)
    (tmp_path / 'data/sub').mkdir(parents=True)
    for link in ('data/link', 'data/sub/link'): (tmp_path / link).symlink_to(tmp_path / 'private')
    path = tmp_path / f'data/scan{end}'
    if end == '.mhd': meta(path, small, type='MET_UCHAR', raw=b'', file=name)
    else: nrrd(path, small, *LPS, f'data file: {name}', type='uchar', packed=b'')
    from_file, plain_open = np.fromfile, open
    monkeypatch.setattr('builtins.open', lambda p, *args, **kw: (opened.append(str(p)), plain_open(p, *args, **kw))[1])
    monkeypatch.setattr(np, 'fromfile', lambda p, *args, **kw: (opened.append(str(p)), from_file(p, *args, **kw))[1])
    said = complaint(read_volume, path)
    assert 'outside its own folder' in said or 'in several files' in said
    assert not [p for p in opened if 'private' in p or 'passwd' in p or 'link' in p]


def test_a_folder_that_is_a_link_itself(subject, tmp_path):
    sitk.WriteImage(picture(subject.hu), tmp_path / 'scan.mhd')
    (tmp_path / 'elsewhere').symlink_to(tmp_path, target_is_directory=True)
    assert read_volume(tmp_path / 'elsewhere/scan.mhd').data.shape == subject.hu.shape


def several(subject, tmp_path):
    img = picture(subject.hu)
    for end in ('.nrrd', '.mha'):
        yield sitk.Compose([img, img, img]), f'rgb{end}', '3 numbers per voxel'
        yield sitk.Compose([img, img]), f'vector{end}', '2 numbers per voxel'
        yield sitk.JoinSeries([img, img, img, img]), f'times{end}', '4 numbers per voxel'
        yield img[:, :, 0], f'flat{end}', 'has 2 axes in space'
        yield sitk.Cast(img, sitk.sitkComplexFloat32), f'complex{end}', ''


def test_several_numbers_per_voxel(subject, tmp_path):
    for img, name, why in several(subject, tmp_path):
        try: sitk.WriteImage(img, tmp_path / name)
        except RuntimeError: continue # ITK has no complex MetaImage
        assert why in complaint(read_volume, tmp_path / name), name


def test_a_fourth_axis_of_one(subject, tmp_path):
    for end in ('.nrrd', '.mha'):
        sitk.WriteImage(sitk.JoinSeries([picture(subject.hu)]), tmp_path / f'a{end}')
        assert np.array_equal(read_volume(tmp_path / f'a{end}').data, subject.hu)


@pytest.mark.parametrize('end', FORMATS)
@pytest.mark.parametrize('packed', [False, True])
def test_truncated_files(end, packed, subject, tmp_path):
    sitk.WriteImage(picture(subject.hu), tmp_path / f'a{end}', packed)
    voxels = next((p for p in tmp_path.iterdir() if p.suffix in ('.raw', '.zraw', '.gz')), tmp_path / f'a{end}')
    raw = voxels.read_bytes()
    for cut in (len(raw) - 1, len(raw)//2):
        voxels.write_bytes(raw[:cut])
        assert 'truncated or damaged' in complaint(read_volume, tmp_path / f'a{end}')
    if voxels.suffix != end:
        voxels.unlink()
        assert 'copy both files' in complaint(read_volume, tmp_path / f'a{end}')
    (tmp_path / f'a{end}').write_bytes(b'')
    assert 'its header cannot be read' in complaint(read_volume, tmp_path / f'a{end}')


def test_headers_that_contradict(subject, tmp_path):
    hu, at = subject.hu, tmp_path / 'a.nrrd'
    for lines, kind, why in ((('encoding: ascii', *LPS), 'short', 'stores its voxels as ascii'),
                             ((*LPS, 'space units: "um" "um" "um"'), 'short', 'counts in um'),
                             ((LPS[0], 'space directions: (2,0,0) (0,3,0) (0,0,0)'), 'short', 'have the size 2×3×0'),
                             (('space: LPS', 'space directions: (2,0,0) (0,3,0) (0,nan,1)'), 'short', 'not finite'),
                             ((LPS[0], 'space directions: (2,0,0) (0,3,0) (0,1e30,1)'), 'short', 'maps no volume'),
                             (LPS, 'block', 'of type block')):
        assert why in complaint(read_itk, nrrd(at, hu, *lines, type=kind)), lines
    for lines, why in ((('ElementSpacing = 0 1 1',), 'have the size 0×1×1 mm'), (('BinaryData = False',), 'as text'),
                       (('ElementSpacing = 1',), 'header cannot'), (('TransformMatrix = 1 0 0',), 'header cannot')):
        assert why in complaint(read_itk, meta(tmp_path / 'a.mha', hu, *lines)), lines
    (tmp_path / 'b.mha').write_bytes(b'\x89PNG\r\n' + bytes(5000))
    assert 'neither that of NRRD nor that of MetaImage' in complaint(read_volume, tmp_path / 'b.mha')
    (tmp_path / 'dir.nhdr').mkdir()
    assert 'there is no such file' in complaint(read_volume, tmp_path / 'none.nrrd')
    assert 'is a folder' in complaint(open_itk, tmp_path / 'dir.nhdr')


LIMITED = ('import resource, sys; from liverseg.cases import read_volume\n'
           'used = int(open("/proc/self/statm").read().split()[0])*4096\n'
           'resource.setrlimit(resource.RLIMIT_AS, (used + 2**27,)*2)\n'
           'try: print(read_volume(sys.argv[1]).data.shape)\n'
           'except Exception as e: print(type(e).__name__, e)')


def limited(path):
    "What reading says with 128 MB of memory more than it has"
    done = subprocess.run([sys.executable, '-c', LIMITED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='the memory in use is read from /proc')
def test_bombs(subject, tmp_path):
    "256 MB after the voxels are not unpacked; an announced size that cannot be right is refused at once"
    hu = subject.hu
    tail = bz2.compress(hu.tobytes('F') + bytes(2**28))
    shape = str(hu.shape)
    assert shape in limited(nrrd(tmp_path / 'a.nrrd', hu, *LPS, encoding='bzip2', packed=tail))
    tail = zlib.compressobj(1)
    tail = tail.compress(hu.tobytes('F') + bytes(2**28)) + tail.flush()
    assert shape in limited(meta(tmp_path / 'a.mha', hu, 'CompressedData = True', raw=tail))
    wide = np.broadcast_to(np.int16(0), (2**11, 2**11, 2**10)) # 8 GB
    for encoding, packed in (('gzip', gzip.compress(bytes(2**20))), ('bzip2', bz2.compress(bytes(2**20)))):
        said = limited(nrrd(tmp_path / 'b.nrrd', wide, *LPS, encoding=encoding, packed=packed))
        assert 'BadInput' in said and 'unpacks to 8 GiB' in said
    assert 'BadInput' in (said := limited(nrrd(tmp_path / 'c.nrrd', wide, *LPS, packed=b''))) and 'truncated' in said
    with open(nrrd(tmp_path / 'd.nrrd', wide, *LPS, packed=b''), 'ab') as f: f.truncate(2**33 + 2000)
    assert 'BadInput' in (said := limited(tmp_path / 'd.nrrd')) and 'do not fit into the memory' in said


# ---- 3D Slicer

def segments(path, img, *parts):
    "(name, layer, label, terminology) of each segment"
    for n, (name, layer, label, code) in enumerate(parts):
        told = dict(ID=f'Segment_{n}', Name=name, Layer=layer, LabelValue=label,
                    Tags=f'TerminologyEntry:a~~{code}~~~~|')
        for key, value in told.items(): img.SetMetaData(f'Segment{n}_{key}', str(value))
    sitk.WriteImage(img, path, True)
    return path


@pytest.fixture
def drawn(subject, tmp_path):
    "The folder with a scan, and the liver's labels on its grid as a picture"
    sitk.WriteImage(picture(subject.hu, 'LPS', (5, 10, 15)), tmp_path / 'scan.nrrd')
    return tmp_path, picture(subject.labels.astype(np.uint8), 'LPS', (5, 10, 15))


def test_segments_by_code_and_by_name(drawn, subject):
    root, img = drawn
    for parts in ((('Hepar', 0, 1, 'SCT^10200004^Liver'), ('tumour', 0, 2, '')),
                  (('liver', 0, 1, ''), ('liver tumour', 0, 2, '')),
                  (('Spleen', 0, 7, ''), ('Liver', 0, 1, ''), ('Lesion', 0, 2, ''))):
        mask = read_mask(segments(root / 'm.seg.nrrd', img, *parts))
        assert np.array_equal(mask.data > 0, subject.labels > 0), parts
    for key in img.GetMetaDataKeys(): img.EraseMetaData(key)
    path = segments(root / 'm.seg.nrrd', img, ('Spleen', 0, 1, ''), ('Kidney', 0, 2, ''))
    assert 'holds no liver but Spleen, Kidney' in complaint(read_mask, path)
    assert 'not a scan' in complaint(read_volume, path)
    assert 'layer 5' in complaint(read_mask, segments(root / 'm.seg.nrrd', img, ('Liver', 5, 1, '')))
    segments(root / 'm.seg.nrrd', img, ('Liver', 'x', 1, ''))
    assert 'describes its segments wrongly' in complaint(read_mask, root / 'm.seg.nrrd')


def test_layers(drawn, subject):
    root, img = drawn
    vessel = sitk.Cast(sitk.BinaryErode(img > 0, (1, 1, 1)), sitk.sitkUInt8)
    both = sitk.Compose([vessel, img])
    liver, inner = ('Liver', 1, 1, ''), ('tumour', 1, 2, '')
    mask = read_slicer(segments(root / 'm.seg.nrrd', both, ('Liver vessels', 0, 1, ''), liver, inner))
    assert np.array_equal(mask.data > 0, subject.labels > 0)
    assert read_slicer(root / 'm.seg.nrrd', 'Liver vessels').data.sum() == sitk.GetArrayFromImage(vessel).sum()
    moved = sitk.CyclicShift(img, (2, 0, 0))
    path = segments(root / 'm.seg.nrrd', sitk.Compose([moved, img]), ('Spleen', 0, 1, ''), liver, inner)
    assert 'Spleen overlaps with the liver' in complaint(read_mask, path)
    path = segments(root / 'm.seg.nrrd', sitk.Compose([moved, img]), ('Liver', 0, 1, ''), ('Liver', 1, 1, ''))
    assert 'which' in complaint(read_mask, path) or 'overlap' in complaint(read_mask, path)


def checked(src):
    "What check says about the only subject"
    report, = check(find_cases(src))
    return report


def test_a_cropped_segmentation_of_a_scan(drawn, subject):
    "In check, convert and training, and as prediction or truth of evaluate"
    root, img = drawn
    used = np.argwhere(sitk.GetArrayFromImage(img).T)
    (a, b, c), (d, e, f) = used.min(0).tolist(), (used.max(0) + 1).tolist()
    home = root / 'data/train/nii'
    home.mkdir(parents=True)
    (root / 'scan.nrrd').rename(home / 'x_orig.nrrd')
    segments(home / 'x_liver.seg.nrrd', img[a:d, b:e, c:f], ('Liver', 0, 1, ''), ('tumour', 0, 2, ''))
    assert checked(root / 'data').errors == []
    for name in ('pred', 'truth'): (root / name).mkdir()
    (root / 'truth/x.seg.nrrd').write_bytes((home / 'x_liver.seg.nrrd').read_bytes())
    sitk.WriteImage(img, root / 'pred/x.mha')
    assert evaluate_masks(root / 'pred', root / 'truth', root / 'report', say=print)['mean_case_dice'] == 1
    moved = img[a:d, b:e, c:f]
    moved.SetOrigin([v + 1 for v in moved.GetOrigin()])
    segments(home / 'x_liver.seg.nrrd', moved, ('Liver', 0, 1, ''), ('tumour', 0, 2, ''))
    assert 'its shape' in str(checked(root / 'data').errors)


# ---- Wherever NIfTI is read

def in_format(src, dst, end):
    "A cohort with all of its files in another format"
    for path in sorted(src.rglob('*.nii.gz')):
        out = dst / path.relative_to(src).parent / (path.name[:-7] + end)
        out.parent.mkdir(parents=True, exist_ok=True)
        img = sitk.ReadImage(path)
        for key in img.GetMetaDataKeys(): img.EraseMetaData(key)
        sitk.WriteImage(img, out, True)
    return dst


@pytest.mark.parametrize('end', ['.nrrd', '.mhd'])
def test_conversion_gives_the_same_slices(end, cohort, png, tmp_path):
    src = in_format(cohort, tmp_path / 'data', end)
    convert(src, tmp_path / 'png')
    theirs, ours = content(png), content(tmp_path / 'png')
    pictures = {n: raw for n, raw in ours.items() if n.endswith('.png')}
    assert len(pictures) > 50 and pictures == {n: raw for n, raw in theirs.items() if n.endswith('.png')}


def test_a_folder_of_scans(cohort, model, tmp_path):
    "Of all formats; segmentations and the voxels of a header are no scans, and nothing is left out without a word"
    scan = next((cohort / 'test/nii').glob('*orig.nii.gz'))
    img = sitk.ReadImage(scan)
    (tmp_path / 'in').mkdir()
    for name in ('a.nrrd', 'b.mha', 'c.mhd', 'd.nhdr', 'f.seg.nrrd'): sitk.WriteImage(img, tmp_path / 'in' / name)
    (tmp_path / 'in/e.nii.gz').write_bytes(scan.read_bytes())
    (tmp_path / 'in/g.mha').write_bytes((tmp_path / 'in/b.mha').read_bytes()[:2000])
    assert [p.name for p in scans_in(tmp_path / 'in')] == ['a.nrrd', 'b.mha', 'c.mhd', 'd.nhdr', 'e.nii.gz', 'g.mha']
    done = run('predict', tmp_path / 'in', tmp_path / 'out', '--model', model, '--device', 'cpu', ok=1)
    assert '6 scan(s), 1 failed' in done.stdout and 'g.mha: is truncated' in done.stderr
    assert 'left out, being no scans: f.seg.nrrd' in done.stderr and '.raw' not in done.stderr
    masks = [np.asarray(nib.load(tmp_path / f'out/{n}.nii.gz').dataobj) for n in 'abcde']
    assert all(np.array_equal(masks[0], m) for m in masks) and masks[0].any()
    for form, end in (('nrrd', '.seg.nrrd'), ('mha', '.mha')):
        out = tmp_path / form
        run('predict', tmp_path / 'in', out, '--format', form, '--maps', '--model', model, '--device', 'cpu', ok=1)
        assert [p.name for p in sorted(out.glob(f'?{end}'))] == [f'{n}{end}' for n in 'abcde']
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(out / f'b{end}')).T, masks[0])
        assert scans_in(tmp_path / 'in', out) == scans_in(tmp_path / 'in')


def test_predict_writes_what_the_name_asks_for(cohort, model, tmp_path):
    scan = next((cohort / 'test/nii').glob('*orig.nii.gz'))
    sizes, source, seg = set(), sitk.ReadImage(scan), Segmenter.load(model, 'cpu')
    for end in ('.nii.gz', *WRITTEN):
        predict(scan, tmp_path / f'm{end}', seg, maps=end == '.mhd', say=print)
        img = sitk.ReadImage(tmp_path / f'm{end}')
        for what in ('GetDirection', 'GetOrigin', 'GetSpacing'):
            assert np.allclose(getattr(img, what)(), getattr(source, what)())
        sizes.add(int(sitk.GetArrayFromImage(img).sum()))
        assert json.loads((tmp_path / 'm.json').read_text())['voxels'] in sizes
    assert len(sizes) == 1 and sizes != {0}
    told = run('predict', scan, tmp_path / 'm.nhdr', '--model', model, ok=1).stderr
    assert 'let its name end in .nii.gz, .nrrd, .seg.nrrd, .mha, .mhd or .dcm' in told


# ---- At random

def test_damaged_headers(subject, tmp_path):
    "Bytes changed, lines dropped, doubled and exchanged: a volume or one sentence, within the time of a small file"
    rng = np.random.default_rng(7)
    seeds = []
    for end, packed in itertools.product(('.nrrd', '.mha', '.nhdr', '.mhd'), (False, True)):
        sitk.WriteImage(picture(subject.hu[:6, :6, :4]), path := tmp_path / f's{packed}{end}', packed)
        seeds.append((end, path.read_bytes()))
    words = [b'-1', b'0', b'1e400', b'nan', b'99999999999999999999', b'(', b'none', b'LIST', b'/etc/passwd', b'\x00',
             b'%d', b'']
    said = {}
    for case in range(600):
        end, raw = seeds[case % len(seeds)]
        size = len(raw) if end in ('.nhdr', '.mhd') else raw.find(b'LOCAL') if b'LOCAL' in raw else raw.find(b'\n\n')
        head, tail = bytearray(raw[:size]), raw[size:]
        lines = bytes(head).split(b'\n')
        k = int(rng.integers(len(lines)))
        how = int(rng.integers(5))
        if how == 0: del lines[k]
        elif how == 1: lines.insert(k, lines[int(rng.integers(len(lines)))])
        elif how == 2:
            parts = re.split(rb'([ ,=:]+)', lines[k])
            parts[int(rng.integers(len(parts)))] = words[int(rng.integers(len(words)))]
            lines[k] = b''.join(parts)
        head = bytearray(b'\n'.join(lines))
        if how > 2:
            for at in rng.integers(0, len(head), 3): head[at] = rng.integers(256)
        (path := tmp_path / f'case{end}').write_bytes(bytes(head) + tail)
        try: said['read'] = said.get('read', 0) + read_volume(path).data.size*0 + 1
        except BadInput as e:
            assert '\n' not in str(e) and str(path) in str(e)
            said['refused'] = said.get('refused', 0) + 1
    assert said['read'] > 50 and said['refused'] > 100, said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6
