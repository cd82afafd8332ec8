"""Orientation: the same patient gives the same slices and gets the same mask back, in whatever axis order the file is
stored."""
import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from conftest import content, run, shared
from liverseg.convert import convert
from liverseg.phantom import make_subject
from liverseg.volume import from_slices, to_slices, volume_ml
from liverseg.cases import read_volume
from liverseg.nifti import ORDERS, stored_as, write_mask

GEOMETRY = ('dim', 'pixdim', 'qform_code', 'sform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x',
            'qoffset_y', 'qoffset_z',
            'srow_x', 'srow_y', 'srow_z', 'xyzt_units')


def round_trip(path, out):
    "Image to slices, a mask made on the slices, and back; the mask is compared on the file's own grid"
    vol = read_volume(path)
    # not a stored value, so that the rounding of a scale factor does not matter
    middle = float(np.median(vol.data)) + .1234
    write_mask(from_slices(to_slices(vol.data) > middle), vol, out)
    stored, mask = nib.load(path), nib.load(out)
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(stored.dataobj) > middle)
    assert mask.get_data_dtype() == np.uint8 and mask.shape == stored.shape
    for key in GEOMETRY:
        assert np.array_equal(mask.header[key], stored.header[key]), key
    return vol


def itk_grid(image):
    "Size, spacing, origin and direction, as SimpleITK sees them"
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def test_there_are_48(): assert len(ORDERS) == 48


@pytest.fixture(scope='module')
def subject(): return make_subject(seed=4, shape=(30, 26, 12))


@pytest.mark.parametrize('order', ORDERS)
def test_synthetic_in_all_orders(order, subject, tmp_path):
    nib.save(stored_as(nib.Nifti1Image(subject.hu, subject.affine), order), tmp_path / 'a.nii.gz')
    vol = round_trip(tmp_path / 'a.nii.gz', tmp_path / 'mask.nii.gz')
    assert np.array_equal(to_slices(vol.data), to_slices(subject.hu))
    assert np.allclose(vol.affine, subject.affine, atol=1e-4)


def test_real_in_all_orders(tmp_path):
    files = sorted(shared('wild', 'orientations').glob('*.nii*'))
    assert len(files) == 48
    first = None
    for f in files:
        slices = to_slices(round_trip(f, tmp_path / 'mask.nii.gz').data)
        first = slices if first is None else first
        assert np.array_equal(slices, first), f.name


@pytest.mark.parametrize('name',
                         ['oblique', 'sheared', 'anisotropic', 'qform only', 'no form', 'big endian', 'nifti-2',
                          'pair', 'scaled', 'one slice', 'trailing axis'])
def test_odd_grids(name, subject, tmp_path):
    img = nib.Nifti1Image(subject.hu, subject.affine)
    turn = np.eye(4)
    turn[:3, :3] = [[.96, -.28, 0], [.28, .96, 0], [0, 0, 1]]
    shear = np.eye(4)
    shear[1, 2] = .3
    path = tmp_path / 'a.nii.gz'
    if name == 'oblique': img = nib.Nifti1Image(subject.hu, turn @ subject.affine)
    if name == 'sheared': img = nib.Nifti1Image(subject.hu, shear @ subject.affine)
    if name == 'anisotropic': img = nib.Nifti1Image(subject.hu, subject.affine @ np.diag([.3, 1.7, 4, 1]))
    if name == 'qform only': img.set_sform(None, 0), img.set_qform(subject.affine, 1)
    if name == 'no form': img.set_sform(None, 0), img.set_qform(None, 0)
    if name == 'big endian':
        img = nib.Nifti1Image(subject.hu.astype('>i2'), subject.affine, nib.Nifti1Header(endianness='>'))
    if name == 'nifti-2': img = nib.Nifti2Image(subject.hu, subject.affine)
    if name == 'pair': img, path = nib.Nifti1Pair(subject.hu, subject.affine), tmp_path / 'a.img'
    if name == 'scaled': img.header.set_slope_inter(2, -1024)
    if name == 'one slice': img = nib.Nifti1Image(subject.hu[:, :, 5], subject.affine)
    if name == 'trailing axis': img = nib.Nifti1Image(subject.hu[..., None], subject.affine)
    nib.save(img, path)
    vol = round_trip(path, tmp_path / 'mask.nii.gz')
    if name not in ('scaled', 'one slice', 'no form'):
        assert np.array_equal(vol.data, subject.hu)
    if name == 'pair': assert nib.load(tmp_path / 'mask.nii.gz').header['magic'] == b'n+1'


def test_guesses_are_noted(subject, tmp_path):
    img = nib.Nifti1Image(subject.hu, subject.affine)
    img.set_sform(None, 0), img.set_qform(None, 0)
    nib.save(img, tmp_path / 'a.nii')
    assert 'no form' in [note.code for note in read_volume(tmp_path / 'a.nii').notes]


def test_metres_are_metres(subject, tmp_path):
    img = nib.Nifti1Image(subject.hu, np.diag([1e-3, 1e-3, 1e-3, 1]) @ subject.affine)
    img.header.set_xyzt_units('meter')
    nib.save(img, tmp_path / 'a.nii')
    assert np.allclose(read_volume(tmp_path / 'a.nii').spacing, subject.spacing, rtol=1e-4)


def test_millilitres_of_a_sheared_grid():
    shear = np.eye(4)
    shear[1, 2] = .3
    assert np.isclose(volume_ml(np.ones((10, 10, 10)), shear), 1)


def test_simpleitk_sees_the_same_grid(subject, tmp_path):
    sitk = pytest.importorskip('SimpleITK')
    for order in ('RAS', 'LPS', 'SAR', 'PIL'):
        nib.save(stored_as(nib.Nifti1Image(subject.hu, subject.affine), order), tmp_path / 'a.nii.gz')
        round_trip(tmp_path / 'a.nii.gz', tmp_path / 'mask.nii.gz')
        a, b = (sitk.ReadImage(str(tmp_path / f)) for f in ('a.nii.gz', 'mask.nii.gz'))
        assert itk_grid(a) == itk_grid(b)


def there_and_back(src, tmp_path):
    """Convert, stack the masks' PNG and write them on each scan's grid: the original mask, voxel for voxel, under the
    scan's own geometry"""
    sitk = pytest.importorskip('SimpleITK')
    table, opened = convert(src, tmp_path / 'png'), 0
    for subject, rows in table.groupby('subject'):
        image, back = src / rows['source'].iloc[0], tmp_path / 'back.nii.gz'
        slices = np.stack([np.asarray(Image.open(tmp_path / 'png' / f)) for f in rows.sort_values('z')['mask']])
        write_mask(from_slices(slices), read_volume(image), back)
        scan, truth, mask = (nib.load(f) for f in (image, str(image).replace('_orig', '_liver'), back))
        assert np.array_equal(np.asarray(mask.dataobj),
                              np.asarray(truth.dataobj)) and mask.get_data_dtype() == np.uint8, subject
        for key in GEOMETRY: assert np.array_equal(mask.header[key], scan.header[key]), (subject, key)
        assert np.array_equal(mask.affine, scan.affine) and mask.header.get_zooms() == scan.header.get_zooms()
        for f in ('get_qform', 'get_sform'):
            (a, code), (b, same) = (getattr(i, f)(coded=True) for i in (mask, scan))
            assert code == same and np.array_equal(a, b) if a is not None else b is None, (subject, f)
        try: a = sitk.ReadImage(str(image))
        except RuntimeError: continue  # SimpleITK does not accept a sheared grid
        b, opened = sitk.ReadImage(str(back)), opened + 1
        assert itk_grid(a) == itk_grid(b), subject
    return table['subject'].nunique(), opened


def with_mask(img, folder, name, mask, codes=None):
    "Write an image and a mask on its grid; `codes`: of qform and sform"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, data in (('orig', np.asarray(img.dataobj)), ('liver', mask)):
        out = type(img)(data, img.affine, img.header)
        out.header.set_data_dtype(data.dtype)
        if codes: out.set_qform(img.affine, codes[0]), out.set_sform(img.affine, codes[1])
        nib.save(out, folder / f'{name}_{kind}.nii.gz')


GRIDS = dict(plain=np.eye(4), anisotropic=np.diag([.3, 1.7, 4, 1]),
             turned=nib.affines.from_matvec(nib.eulerangles.euler2mat(.4, -.3, .25)),
             shifted=nib.affines.from_matvec(np.eye(3), [-300.125, 512.7, 1800.3]),
             sheared=np.array([[1, 0, 0, 0], [0, 1, .3, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


@pytest.mark.parametrize('grid', GRIDS)
def test_disk_round_trip_in_all_orders(grid, tmp_path):
    rng = np.random.default_rng(3)
    shape, affine = (9, 7, 5), GRIDS[grid] @ np.diag([.7, .8, 2.5, 1])
    hu, liver = rng.integers(-1000, 1000, shape).astype(np.int16), (rng.random(shape) > .6).astype(np.uint8)
    for n, order in enumerate(ORDERS):
        a, b = (stored_as(nib.Nifti1Image(d, affine), order) for d in (hu, liver))
        with_mask(a, tmp_path / 'src/train/nii', order, np.asarray(b.dataobj),
                  None if grid == 'sheared' else [(1, 1), (0, 2), (1, 0), (4, 4)][n % 4])
    found, opened = there_and_back(tmp_path / 'src', tmp_path)
    assert found == 48 and (opened == 48 or grid == 'sheared')
    pictures = [[p.read_bytes() for p in sorted((tmp_path / 'png').rglob(f'{order}_*.png'))] for order in ORDERS]
    assert len(pictures[0]) == 10 and all(p == pictures[0] for p in pictures)


def test_real_disk_round_trip_in_all_orders(tmp_path):
    for f in sorted(shared('wild', 'orientations').glob('*.nii.gz')):
        img = nib.load(f)
        with_mask(img, tmp_path / 'src/test/nii', f.name[:3], (np.asarray(img.dataobj) > 60).astype(np.uint8))
    assert there_and_back(tmp_path / 'src', tmp_path) == (48, 48)


def test_command_line_in_other_orders(src, tmp_path):
    "The whole conversion, with image and mask each in an axis order of its own"
    run('convert', src, tmp_path / 'a', ok=0)
    for f, order in zip(sorted(src.rglob('*.nii.gz')), itertools.cycle(['LPS', 'SRA', 'PIR', 'IAL', 'ASL'])):
        nib.save(stored_as(nib.load(f), order), f)
    run('convert', src, tmp_path / 'b', ok=0)
    assert content(tmp_path / 'a') == content(tmp_path / 'b')


@pytest.fixture(scope='module')
def predicted(cohort, model, tmp_path_factory):
    "A scan and the mask that the command line wrote for it"
    scan, out = next((cohort / 'test/nii').glob('*_orig.nii.gz')), tmp_path_factory.mktemp('predicted') / 'mask.nii.gz'
    run('predict', scan, out, '--model', model, '--device', 'cpu', ok=0)
    return scan, out


@pytest.mark.parametrize('order', ['LPS', 'SAL', 'PIR', 'ILP'])
def test_predict_in_other_orders(order, predicted, model, tmp_path):
    scan, out = predicted
    nib.save(stored_as(nib.load(scan), order), tmp_path / 'other.nii.gz')
    run('predict', tmp_path / 'other.nii.gz', tmp_path / 'b.nii.gz', '--model', model, '--device', 'cpu', ok=0)
    a, b = nib.load(out), nib.load(tmp_path / 'b.nii.gz')
    assert b.shape == nib.load(tmp_path / 'other.nii.gz').shape
    assert np.array_equal(np.asarray(stored_as(b, 'RAS').dataobj), np.asarray(stored_as(a, 'RAS').dataobj))


def test_liver_is_on_the_pictures_left(png):
    import pandas as pd
    table = pd.read_csv(png / 'manifest.csv')
    columns = [np.nonzero(np.array(Image.open(png / m)))[1].mean() for m in table.loc[table['liver_px'] > 50, 'mask']]
    assert np.mean(columns) < 28  # of 64
