"""Reading DICOM folders: the order, the numbers and the geometry, against NIfTI, against SimpleITK, and on damaged
files."""
import shutil
import subprocess
import sys
import zipfile
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from conftest import shared
from liverseg.dicom import read_series, series_image
from liverseg.phantom import make_subject, write_series
from liverseg.archive import is_dir, is_file, ls, read_bytes
from liverseg.cases import masks_on
from liverseg.volume import AIR
from liverseg.work import BadInput

pydicom = pytest.importorskip('pydicom')
SUBJECT = make_subject(seed=3, shape=(40, 36, 12), spacing=(6, 6.5, 9))
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(.3, -.2, .4) @ np.diag([1.5, 1.25, 4]), [10, -20, 35])


def write(folder, affine=SUBJECT.affine, hu=SUBJECT.hu, **kwargs):
    return write_series(hu, affine, folder, **kwargs)


def change(path, func):
    "Rewrite a file with its data set changed"
    ds = pydicom.dcmread(path)
    func(ds)
    ds.save_as(path, enforce_file_format=True)


def codes(series): return [code for code, _ in series.notes]


def bad(folder, *words):
    with pytest.raises(BadInput) as e: read_series(folder)
    message = str(e.value)
    assert '\n' not in message and '; ' in message, message
    for word in words: assert word in message, message
    return message


def same_voxels(series, hu, affine):
    "The same HU at the same places, both turned to RAS by nibabel"
    a, b = (nib.as_closest_canonical(nib.Nifti1Image(d, m)) for d, m in ((series.data, series.affine), (hu, affine)))
    np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)


@pytest.mark.parametrize('affine', [SUBJECT.affine, OBLIQUE], ids=['axial', 'oblique'])
@pytest.mark.parametrize('axes', ['LPS', 'LPI', 'PIR', 'LIA', 'RAS', 'SRP'])
def test_round_trip(tmp_path, affine, axes):
    write(tmp_path, affine, codes=axes)
    series = read_series(tmp_path)
    assert series.data.dtype == np.int16 and series.notes == [] and series.modality == 'CT'
    same_voxels(series, SUBJECT.hu, affine)


@pytest.mark.parametrize('affine', [SUBJECT.affine, OBLIQUE], ids=['axial', 'oblique'])
@pytest.mark.parametrize('axes', ['LPS', 'LIA'])
def test_simpleitk_sees_the_same(tmp_path, affine, axes):
    sitk = pytest.importorskip('SimpleITK')
    write(tmp_path, affine, codes=axes)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image, series = reader.Execute(), read_series(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), series.data)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ lps, series.affine, atol=1e-4)


def test_names_and_numbers_do_not_matter(tmp_path):
    files = write(tmp_path / 'a', InstanceNumber=lambda n: (7*n) % 12)
    for f, n in zip(files, np.random.default_rng(1).permutation(12)):
        shutil.copy(f, (tmp_path / 'b').mkdir(exist_ok=True) or tmp_path / 'b' / f'{n}')
    a, b = read_series(tmp_path / 'a'), read_series(tmp_path / 'b')
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert [pydicom.dcmread(f).SOPInstanceUID for f in b.files] == [pydicom.dcmread(f).SOPInstanceUID for f in files]


def test_writing_is_deterministic(tmp_path):
    a, b = ([f.read_bytes() for f in write(tmp_path / x)] for x in 'ab')
    assert a == b


def test_other_things_in_the_folder(tmp_path):
    write(tmp_path / 'study/ct')
    write(tmp_path / 'study/short', hu=SUBJECT.hu[:, :, :5])
    write(tmp_path / 'study/mr', hu=np.repeat(SUBJECT.hu, 2, 2), Modality='MR')
    write(tmp_path / 'study/scout', codes='LIA', ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
    write(tmp_path / 'study/dose', hu=np.repeat(SUBJECT.hu, 2, 2), SOPClassUID='1.2.840.10008.5.1.4.1.1.7',
          ImagePositionPatient=None)
    for name in ('notes.txt', 'Thumbs.db', 'DICOMDIR', '.hidden', 'ct/picture.png'):
        (tmp_path / 'study' / name).write_bytes(b'something else')
    series = read_series(tmp_path / 'study')
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)
    (code, sentence), = series.notes
    assert code == 'several series'
    for word in ('CT (5 slices', 'MR (24 slices', 'localizer (36 slices', 'secondary capture (24 slices'):
        assert word in sentence
    bad(tmp_path / 'study/mr', 'holds no CT but MR (24 slices')
    bad(tmp_path / 'study/scout', 'localizer')


def test_reformats_come_last(tmp_path):
    write(tmp_path / 'axial')
    write(tmp_path / 'coronal', codes='LIA', ImageType=['DERIVED', 'SECONDARY', 'MPR'])
    assert read_series(tmp_path).files[0].parent.name == 'axial'
    shutil.rmtree(tmp_path / 'axial')
    assert read_series(tmp_path).files[0].parent.name == 'coronal'


def test_labels_are_not_taken_for_the_scan(tmp_path):
    write(tmp_path / 'a_labels', hu=SUBJECT.labels.astype(np.int16))
    write(tmp_path / 'patient')
    assert read_series(tmp_path).files[0].parent.name == 'patient'


def test_gap(tmp_path):
    files = write(tmp_path)
    files[7].unlink()
    series = read_series(tmp_path)
    (code, sentence), = series.notes
    assert code == 'uneven slices' and 'vary from 9 to 18 mm: 1 slice is missing after slice 6 (image_6)' in sentence
    np.testing.assert_allclose(series.affine[2, 2], 9 * 11 / 10)
    files[2].unlink(), files[3].unlink()
    assert '3 slices are missing, the first after slice 1 (image_1)' in read_series(tmp_path).notes[0][1]


@pytest.mark.parametrize('lost', range(1, 11))
def test_any_lost_slice_is_noticed(tmp_path, lost):
    write(tmp_path)[lost].unlink()
    assert codes(read_series(tmp_path)) == ['uneven slices']


def test_jitter_is_harmless_and_drift_is_not(tmp_path):
    at = lambda z: dict(ImagePositionPatient=lambda n: ['0', '0', f'{z(n):.1f}'])
    write(tmp_path / 'rounded', **at(lambda n: .625*n))
    write(tmp_path / 'drift', **at(lambda n: 2*n + .1*n*n))
    series = read_series(tmp_path / 'rounded')
    assert series.notes == []
    np.testing.assert_allclose(series.affine[2, 2], .625, atol=.01)
    (code, sentence), = read_series(tmp_path / 'drift').notes
    assert code == 'uneven slices' and 'missing' not in sentence


def test_a_slice_moved_sideways(tmp_path):
    write(tmp_path, ImagePositionPatient=lambda n: [40*(n == 5), 0, 9*n])
    (code, sentence), = read_series(tmp_path).notes
    assert code == 'uneven slices' and 'image_5 is 40 mm to the side' in sentence


def test_tilt(tmp_path):
    shear = np.eye(4)
    shear[1, 2] = .5
    write(tmp_path, SUBJECT.affine @ shear)
    series = read_series(tmp_path)
    assert codes(series) == ['sheared'] and '19.9°' in series.notes[0][1]
    same_voxels(series, SUBJECT.hu, SUBJECT.affine @ shear)
    img, _ = series_image(tmp_path)
    assert (int(img.header['qform_code']), int(img.header['sform_code'])) == (0, 1)
    np.testing.assert_allclose(img.affine, series.affine, atol=1e-4)


def test_as_nifti(tmp_path):
    write(tmp_path, OBLIQUE)
    img, notes = series_image(tmp_path)
    assert notes == [] and (int(img.header['qform_code']), int(img.header['sform_code'])) == (1, 1)
    assert img.header.get_xyzt_units()[0] == 'mm'
    np.testing.assert_allclose(img.get_qform(), img.get_sform(), atol=1e-4)
    assert img.get_data_dtype() == np.int16


def test_duplicates(tmp_path):
    files = write(tmp_path)
    shutil.copy(files[4], tmp_path / 'copy')
    series = read_series(tmp_path)
    assert codes(series) == ['duplicate slices'] and len(series.files) == 12
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)


def test_two_phases_in_one_series(tmp_path):
    write(tmp_path / 'late', SeriesInstanceUID='1.2.3', AcquisitionNumber=2)
    early = write(tmp_path / 'early', hu=SUBJECT.hu + np.int16(50), SeriesInstanceUID='1.2.3', AcquisitionNumber=1)
    for f in early[9:]: f.unlink()
    series = read_series(tmp_path)
    assert codes(series) == ['several series'] and 'differ in AcquisitionNumber' in series.notes[0][1]
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)
    for f in tmp_path.rglob('image_*'): change(f, lambda ds: delattr(ds, 'AcquisitionNumber'))
    bad(tmp_path, 'no tag tells the two scans')
    # one per slice separates nothing
    for n, f in enumerate(sorted(tmp_path.rglob('image_*'))): change(f, lambda ds: setattr(ds, 'AcquisitionNumber', n))
    bad(tmp_path, 'no tag tells the two scans')


def test_padding_slope_and_sign(tmp_path):
    stored = (SUBJECT.hu.astype(int) + 1024).astype(np.uint16)
    stored[:3] = 60000
    write(tmp_path / 'pad', hu=stored, RescaleIntercept='-1024', PixelPaddingValue=60000)
    expected = SUBJECT.hu.copy()
    expected[:3] = AIR
    same_voxels(read_series(tmp_path / 'pad'), expected, SUBJECT.affine)
    write(tmp_path / 'half', hu=stored, RescaleIntercept='-1024', RescaleSlope=lambda n: '0.5' if n == 2 else '1',
          PixelPaddingValue=60000)
    half = read_series(tmp_path / 'half').data
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half[::-1, ::-1, 3], expected[:, :, 3])
    np.testing.assert_array_equal(half[::-1, ::-1, 2],
                                  np.where(expected[:, :, 2] == AIR, AIR, (expected[:, :, 2] + 1024)*.5 - 1024))
    write(tmp_path / 'none', RescaleSlope=None, RescaleIntercept=None)
    assert codes(read_series(tmp_path / 'none')) == ['no rescale']
    write(tmp_path / 'flat', RescaleSlope='0')
    bad(tmp_path / 'flat', 'rescale slope 0')


def test_padding_with_the_wrong_sign(tmp_path):
    hu = SUBJECT.hu.copy()
    hu[:3] = -2000
    # −2000, taken for unsigned
    for f in write(tmp_path, hu=hu): change(f, lambda ds: ds.add_new('PixelPaddingValue', 'US', 63536))
    hu[:3] = AIR
    same_voxels(read_series(tmp_path), hu, SUBJECT.affine)


def test_pictures_without_ct_numbers(tmp_path):
    write(tmp_path / 'inverted', PhotometricInterpretation='MONOCHROME1')
    bad(tmp_path / 'inverted', 'MONOCHROME1')
    write(tmp_path / 'colour', SamplesPerPixel=3, PhotometricInterpretation='RGB')
    bad(tmp_path / 'colour', 'colour picture')


def transcode(files, syntax):
    "Compress files in place with GDCM"
    gdcm = pytest.importorskip('gdcm')
    for f in files:
        reader, writer, to = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(str(f))
        assert reader.Read()
        to.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        to.SetInput(reader.GetImage())
        assert to.Change()
        writer.SetFileName(str(f)), writer.SetFile(reader.GetFile()), writer.SetImage(to.GetOutput())
        assert writer.Write()


@pytest.mark.parametrize('syntax',
                         ['RLE', 'JPEGLosslessProcess14_1', 'JPEGLosslessProcess14', 'JPEG2000Lossless',
                          'JPEGLSLossless'])
def test_compressed(tmp_path, capfd, syntax):
    files = write(tmp_path)
    if syntax == 'RLE':
        for f in files: change(f, lambda ds: ds.compress(pydicom.uid.RLELossless))
    else: transcode(files, syntax)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID.is_compressed
    same_voxels(read_series(tmp_path), SUBJECT.hu, SUBJECT.affine)
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[:len(whole)*2//3])
    capfd.readouterr()
    bad(tmp_path, 'image_3')
    assert capfd.readouterr().err == ''


def recode(files, syntax, encode, bits=12, signed=False):
    "Compress files in place with an encoder of imagecodecs, the stored values HU + 1024, or HU if they are signed"
    for f in files:
        ds = pydicom.dcmread(f)
        stored = ds.pixel_array.astype(int)*int(ds.RescaleSlope) + int(ds.RescaleIntercept) + 1024*(not signed)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0 if signed else -1024
        ds.PixelData = pydicom.encaps.encapsulate([encode(np.ascontiguousarray(stored % 2**bits).astype(np.uint16))])
        ds['PixelData'].VR, ds.file_meta.TransferSyntaxUID = 'OB', '1.2.840.10008.1.2.4.201'
        ds.save_as(f) # pydicom may not know the syntax yet
        f.write_bytes(f.read_bytes().replace(b'1.2.840.10008.1.2.4.201', syntax.encode().ljust(23, b'\0')))


def jpeg_12(a):
    import imagecodecs
    return imagecodecs.jpeg8_encode(a, level=100, bitspersample=12)


def test_jpeg_with_12_bits(tmp_path):
    "pydicom and GDCM do not decode it; what is cut off is refused, though libjpeg would fill it in"
    files = write(tmp_path)
    recode(files, pydicom.uid.JPEGExtended12Bit, jpeg_12)
    with pytest.raises(RuntimeError): pydicom.dcmread(files[0]).pixel_array
    series = read_series(tmp_path)
    assert series.data.dtype == np.int16
    assert 0 < np.abs(series.data[::-1, ::-1].astype(int) - SUBJECT.hu).max() < 6 # with loss
    ds = pydicom.dcmread(files[3])
    frame, = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = pydicom.encaps.encapsulate([frame[:len(frame)//2]])
    ds.save_as(files[3])
    bad(tmp_path, 'image_3', 'compressed as JPEG Extended', 'truncated or damaged')


def test_jpeg_of_another_size(tmp_path):
    files = write(tmp_path)
    recode(files[2:3], pydicom.uid.JPEGExtended12Bit, lambda a: jpeg_12(np.ascontiguousarray(a[:8])))
    bad(tmp_path, 'image_2', 'compressed as JPEG Extended', 'truncated or damaged')


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('syntax', ['1.2.840.10008.1.2.4.201', '1.2.840.10008.1.2.4.110'])
def test_newer_lossless_kinds(tmp_path, syntax, signed):
    import imagecodecs
    encode = dict(zip(('201', '110'), (imagecodecs.htj2k_encode, partial(imagecodecs.jpegxl_encode, lossless=True))))
    files = write(tmp_path)
    recode(files, syntax, encode[syntax[-3:]], signed=signed)
    same_voxels(read_series(tmp_path), SUBJECT.hu, SUBJECT.affine)
    files[3].write_bytes(files[3].read_bytes()[:-300])
    bad(tmp_path, 'image_3')


def test_a_syntax_that_nothing_decodes(tmp_path):
    "A film, a retired kind of JPEG; and one that the extra would decode"
    files = write(tmp_path)
    change(files[2], lambda ds: ds.compress(pydicom.uid.RLELossless))
    for syntax, name in (('1.2.840.10008.1.2.4.102', 'MPEG-4'), ('1.2.840.10008.1.2.4.53', 'JPEG Spectral Selection')):
        change(files[2], lambda ds: setattr(ds.file_meta, 'TransferSyntaxUID', syntax))
        bad(tmp_path, 'image_2', name, 'which no decoder of pydicom or liverseg reads; export it uncompressed')


def test_a_decoder_that_is_not_installed(tmp_path, monkeypatch):
    files = write(tmp_path)
    transcode(files, 'JPEGLosslessProcess14_1')
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, 'is_available', False)
    monkeypatch.setattr(pydicom.dataset.Dataset, 'pixel_array', property(lambda ds: 1/0))
    bad(tmp_path, 'image_0', 'JPEG Lossless', "no decoder is installed; run pip install -e '.[dicom]' in the checkout")


def test_no_position(tmp_path):
    write(tmp_path / 'a', ImagePositionPatient=None, ImageOrientationPatient=None)
    series = read_series(tmp_path / 'a')
    assert codes(series) == ['no position']
    np.testing.assert_array_equal(series.data[::-1, ::-1], SUBJECT.hu)
    np.testing.assert_allclose(nib.affines.voxel_sizes(series.affine), (6, 6.5, 9), atol=1e-6)
    write(tmp_path / 'b', ImagePositionPatient=lambda n: None if n == 4 else [0, 0, n])
    bad(tmp_path / 'b', 'image_4', 'does not say where it lies')
    write(tmp_path / 'c', ImagePositionPatient=None, InstanceNumber=None)
    bad(tmp_path / 'c', 'order is unknown')


def test_one_slice(tmp_path):
    file, = write(tmp_path, hu=SUBJECT.hu[:, :, 5:6])
    for place in (tmp_path, file):
        series = read_series(place)
        assert series.data.shape == (40, 36, 1) and series.notes == [] and series.affine[2, 2] == 9


@pytest.mark.parametrize('syntax', [None, 'ImplicitVRLittleEndian', 'ExplicitVRLittleEndian'])
def test_without_a_preamble(tmp_path, syntax):
    for f in write(tmp_path):
        if syntax is None: f.write_bytes(f.read_bytes()[132:])  # the meta group is left
        else:
            ds = pydicom.dcmread(f)
            del ds.file_meta
            ds.preamble = None
            ds.save_as(f, implicit_vr=syntax.startswith('Implicit'), little_endian=True)
            assert f.read_bytes()[:2] == b'\x08\x00'
    (tmp_path / 'odd').write_bytes(b'\x08\x00' + bytes(range(256))*3)
    same_voxels(read_series(tmp_path), SUBJECT.hu, SUBJECT.affine)


def enhanced(folder, **tags):
    "One file with one frame per slice, made from single slices"
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence
    def group(**groups):
        out = Dataset()
        for name, values in groups.items():
            item = Dataset()
            for key, value in values.items(): setattr(item, key, value)
            setattr(out, name, Sequence([item]))
        return out
    files = write(folder)
    slices = [pydicom.dcmread(f) for f in files]
    ds = slices[0]
    position, orientation, pixel = (
        [s.get(key) for s in slices] for key in ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing'))
    pixels = [s.pixel_array + np.int16(5) for s in slices]
    for key in ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'RescaleSlope', 'RescaleIntercept',
                'InstanceNumber'):
        delattr(ds, key)
    ds.SOPClassUID, ds.NumberOfFrames = pydicom.uid.EnhancedCTImageStorage, len(slices)
    ds.SharedFunctionalGroupsSequence = Sequence([group(
        PlaneOrientationSequence=dict(ImageOrientationPatient=orientation[0]),
        PixelMeasuresSequence=dict(PixelSpacing=pixel[0], SliceThickness='9'))])
    order = np.random.default_rng(2).permutation(len(slices))
    ds.PerFrameFunctionalGroupsSequence = Sequence([group(PlanePositionSequence=dict(ImagePositionPatient=position[n]),
        PixelValueTransformationSequence=dict(RescaleSlope='1', RescaleIntercept='-5')) for n in order])
    ds.PixelData = b''.join(pixels[n].tobytes() for n in order)
    for key, value in tags.items(): setattr(ds, key, value)
    for f in files: f.unlink()
    ds.save_as(folder / 'all.dcm', enforce_file_format=True)


def test_enhanced_multi_frame(tmp_path):
    enhanced(tmp_path / 'a')
    series = read_series(tmp_path / 'a')
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)
    assert series.notes == [] and len(series.files) == 12 and len(set(series.files)) == 1
    enhanced(tmp_path / 'b', NumberOfFrames=10**9)
    bad(tmp_path / 'b', 'all.dcm', '12 of 1000000000 frames')


SPOILED = {
    'pixels cut': lambda b: b[:-100],
    'header cut': lambda b: b[:700],
    'cut after the magic': lambda b: b[:140],
    'cut before the magic': lambda b: b[:60],
    'empty': lambda b: b'',
    'zeros': lambda b: bytes(len(b)),
    'html': lambda b: b'<html>not found</html>',
    'huge': lambda b: b.replace(b'\x28\x00\x10\x00US\x02\x00' + bytes([36, 0]), b'\x28\x00\x10\x00US\x02\x00\xff\xff'),
    'no rows': lambda b: b.replace(b'\x28\x00\x10\x00US\x02\x00' + bytes([36, 0]),
                                   b'\x28\x00\x10\x00US\x02\x00\x00\x00'),
    'spacing is text': lambda b: b.replace(b'6.5\\6 ', b'abcdef'),
    'position is text': lambda b: b.replace(b'\x20\x00\x32\x00DS', b'\x20\x00\x32\x00XX'),
}


@pytest.mark.parametrize('name', SPOILED)
def test_a_damaged_file_is_named(tmp_path, name):
    file = write(tmp_path)[5]
    before = file.read_bytes()
    file.write_bytes(SPOILED[name](before))
    assert file.read_bytes() != before
    if name in ('huge', 'no rows'):  # the odd slice counts as a series of its own and leaves a gap
        assert codes(read_series(tmp_path)) == ['several series', 'uneven slices']
        for f in tmp_path.iterdir():
            if f != file: f.unlink()
    bad(tmp_path, 'image_5')


def test_random_damage_never_ends_in_a_traceback(tmp_path, caplog, recwarn):
    file = write(tmp_path, hu=SUBJECT.hu[:, :, :3])[1]
    before, rng = bytearray(file.read_bytes()), np.random.default_rng(0)
    for _ in range(150):
        spoiled = before.copy()
        for at in rng.integers(128, 1500, rng.integers(1, 6)): spoiled[at] = rng.integers(256)
        file.write_bytes(spoiled)
        try: read_series(tmp_path)
        except BadInput as e: assert '\n' not in str(e)
    assert not caplog.records and not list(recwarn)


def test_absurd_sizes(tmp_path):
    rle = np.zeros((64, 64, 2), np.int16)
    for f in write(tmp_path, hu=rle, affine=np.eye(4)):
        change(f, lambda ds: ds.compress(pydicom.uid.RLELossless))
        change(f, lambda ds: (setattr(ds, 'Rows', 65000), setattr(ds, 'Columns', 65000)))
    bad(tmp_path, '65000×65000')


def test_no_dicom_in_the_folder(tmp_path):
    bad(tmp_path / 'none', 'no such folder')
    (tmp_path / 'a.txt').write_text('x')
    bad(tmp_path, 'without DICOM')


def pack(target, files):
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, raw in files.items(): z.writestr(name, raw)
    return target


@pytest.fixture
def ircad_like(tmp_path):
    "3Dircadb1.zip with PATIENT_DICOM.zip and MASKS_DICOM.zip inside, and what macOS adds"
    scan = {f'PATIENT_DICOM/{f.name}': f.read_bytes() for f in write(tmp_path / 'ct')}
    labels = {f'MASKS_DICOM/liver/{f.name}': f.read_bytes()
              for f in write(tmp_path / 'liver', hu=(SUBJECT.labels > 0).astype(np.uint8)*255)}
    inner = pack(tmp_path / 'p.zip',
                 scan
                 | {'__MACOSX/PATIENT_DICOM/._image_0': b'x',
                    'PATIENT_DICOM/.DS_Store': b'x'}), pack(tmp_path / 'm.zip', labels)
    return pack(tmp_path / '3Dircadb1.zip',
                {f'3Dircadb1/3Dircadb1.1/{n}_DICOM.zip': p.read_bytes() for n, p in zip(('PATIENT', 'MASKS'), inner)})


def test_through_archives(ircad_like, tmp_path):
    case = ircad_like / '3Dircadb1/3Dircadb1.1'
    assert [p.name for p in ls(case)] == ['MASKS_DICOM.zip', 'PATIENT_DICOM.zip']
    assert [p.name for p in ls(case / 'PATIENT_DICOM.zip')] == ['PATIENT_DICOM']
    scan = case / 'PATIENT_DICOM.zip/PATIENT_DICOM'
    assert [p.name for p in ls(scan)] == [f'image_{n}' for n in range(12)]
    assert is_dir(ircad_like) and is_dir(scan) and not is_dir(scan / 'image_0') and is_file(scan / 'image_0')
    assert not is_file(scan / 'image_99') and not is_dir(scan / 'x/y')
    assert read_bytes(scan / 'image_3') == (tmp_path / 'ct/image_3').read_bytes()
    series = read_series(case / 'PATIENT_DICOM.zip')
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)
    liver = masks_on(series, case / 'MASKS_DICOM.zip/MASKS_DICOM/liver')
    np.testing.assert_array_equal(liver[::-1, ::-1], (SUBJECT.labels > 0)*255)
    with pytest.raises(BadInput, match='cannot be read'): read_bytes(scan / 'image_99')


def test_damaged_and_changed_archives(ircad_like, tmp_path):
    whole = ircad_like.read_bytes()
    ircad_like.write_bytes(whole[:-200])
    bad(ircad_like, '3Dircadb1.zip', 'damaged')
    spoiled = bytearray(whole)
    spoiled[len(whole)//2] ^= 255
    ircad_like.write_bytes(spoiled)
    bad(ircad_like, '.zip', 'cannot be unpacked')
    pack(ircad_like, {'a/b': b'new', '../../c': b'inside', 'd\\e': b'windows'})
    assert [p.name for p in ls(ircad_like)] == ['a', 'c', 'd'] and read_bytes(ircad_like / 'd/e') == b'windows'


def masks(tmp_path): return sorted(write(tmp_path / 'masks', hu=(SUBJECT.labels > 0).astype(np.uint8)*255))


def test_dicom_labels(tmp_path):
    write(tmp_path / 'ct')
    files = masks(tmp_path)
    series = read_series(tmp_path / 'ct')
    for f in files: f.rename(f.with_name(f'label_{f.name}'))  # matched by position
    np.testing.assert_array_equal(masks_on(series, tmp_path / 'masks')[::-1, ::-1], (SUBJECT.labels > 0)*255)
    (tmp_path / 'masks/label_image_3').unlink()
    with pytest.raises(BadInput, match='holds 11 pictures for the 12 slices'): masks_on(series, tmp_path / 'masks')
    shutil.rmtree(tmp_path / 'masks')
    write(tmp_path / 'masks', hu=SUBJECT.labels[:, :-1])
    with pytest.raises(BadInput, match='lies 6.5 mm from'): masks_on(series, tmp_path / 'masks')
    shutil.rmtree(tmp_path / 'masks')
    write(tmp_path / 'masks', hu=SUBJECT.labels, PixelSpacing=['6', '6'])
    with pytest.raises(BadInput, match='rows and columns run in other directions'): masks_on(series, tmp_path / 'masks')
    shutil.rmtree(tmp_path / 'masks')
    place = lambda n: list(map(float, pydicom.dcmread(tmp_path / f'ct/image_{11 - n}').ImagePositionPatient))
    write(tmp_path / 'masks', hu=SUBJECT.labels[:, :, ::-1], affine=SUBJECT.affine, ImagePositionPatient=place)
    with pytest.raises(BadInput, match='by position image_0 belongs to image_11'): masks_on(series, tmp_path / 'masks')


@pytest.mark.parametrize('mode', ['L', '1'])
def test_png_labels_by_name(tmp_path, mode):
    # from head to feet
    for n, f in enumerate(reversed(write(tmp_path / 'ct'))): f.rename(f.with_name(f'i{n},0000b.dcm'))
    series = read_series(tmp_path / 'ct')
    liver = ((SUBJECT.labels > 0)*255).astype(np.uint8)[::-1, ::-1]
    (tmp_path / 'png').mkdir()
    for n in range(12):
        Image.fromarray(np.ascontiguousarray(liver[:, :,
                                                   11 - n].T)).convert(mode).save(tmp_path / f'png/liver_GT_{n}.png')
    got = masks_on(series, tmp_path / 'png')
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got > 0, liver > 0)
    if mode == 'L': np.testing.assert_array_equal(got, liver)
    Image.new('L', (40, 35)).save(tmp_path / 'png/liver_GT_4.png')
    with pytest.raises(BadInput, match='GT_4.png: is 40×35 pixels, its slice 40×36'): masks_on(series, tmp_path / 'png')
    (tmp_path / 'png/liver_GT_4.png').write_bytes(b'nothing')
    with pytest.raises(BadInput, match='GT_4.png: cannot be read as PNG'): masks_on(series, tmp_path / 'png')


def test_without_pydicom(tmp_path):
    write(tmp_path)
    code = ('import sys; sys.modules["pydicom"] = None\nfrom liverseg.dicom import read_series\n'
            + f'read_series({str(tmp_path)!r})')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "is DICOM, and the reader is not installed; run pip install -e '.[dicom]' in the checkout" in done.stderr


def test_ircad_as_distributed():
    """Patient 17: the twelve DICOM slices are slices 60…71 of the NIfTI file, rows flipped, at the same place in the
    patient"""
    series = read_series(shared('ircad_dicom', 'PATIENT_DICOM'))
    assert series.notes == [] and [f.name for f in series.files] == [f'image_{n}' for n in range(60, 72)]
    nifti = nib.load(shared('ircad', 'test', 'nii', 'ircad_e17_orig.nii.gz'))
    liver = nib.load(shared('ircad', 'test', 'nii', 'ircad_e17_liver.nii.gz'))
    np.testing.assert_array_equal(series.data[:, ::-1], nifti.dataobj[:, :, 60:72])
    flip = nib.orientations.inv_ornt_aff([[0, 1], [1, -1], [2, 1]], series.data.shape)
    np.testing.assert_allclose(series.affine @ flip, nifti.slicer[:, :, 60:72].affine, atol=1e-3)
    mask = masks_on(series, shared('ircad_dicom', 'MASKS_DICOM', 'liver'))
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask[:, ::-1] > 0, np.asarray(liver.dataobj[:, :, 60:72]) > 0)


@pytest.mark.parametrize('pixel', [['100000', '100000'], ['.001', '1'], ['1', '25']])
def test_pixels_that_no_ct_has(tmp_path, pixel):
    write(tmp_path / 'ct', PixelSpacing=pixel)
    with pytest.raises(BadInput, match='which no CT has; export it again'): read_series(tmp_path / 'ct')


# --- two phases in one enhanced file ---

def enhanced_phases(folder, tag='TemporalPositionIndex', second=SUBJECT.hu + np.int16(50), keep=12):
    "One file with two phases: the frames of the first, in some order, then `keep` frames of the second"
    enhanced(folder)
    def add(ds):
        group = ds.PerFrameFunctionalGroupsSequence[0].PixelValueTransformationSequence
        slices = [pydicom.dcmread(f) for f in write(folder / 'second', hu=second)]
        shutil.rmtree(folder / 'second')
        def item(**tags):
            out = pydicom.Dataset()
            for key, value in tags.items(): setattr(out, key, value)
            return out
        frames = list(ds.PerFrameFunctionalGroupsSequence)
        more = [item(PlanePositionSequence=[item(ImagePositionPatient=s.ImagePositionPatient)],
                     PixelValueTransformationSequence=list(group)) for s in slices[:keep]]
        for n, f in enumerate(frames + more):
            phase = 1 + (n >= len(frames))
            time = f'2026112912{n:02}' # each frame has its own, which separates nothing
            if tag: f.FrameContentSequence = [item(**{tag: str(phase) if tag == 'StackID' else phase,
                                                      'FrameAcquisitionDateTime': time})]
        ds.PerFrameFunctionalGroupsSequence = frames + more
        ds.NumberOfFrames = len(frames) + len(more)
        ds.PixelData += b''.join((s.pixel_array + np.int16(5)).tobytes() for s in slices[:keep])
    change(folder / 'all.dcm', add)
    return folder / 'all.dcm'


@pytest.mark.parametrize('tag', ['TemporalPositionIndex', 'FrameAcquisitionNumber', 'StackID'])
@pytest.mark.parametrize('wanted', [1, 2])
def test_two_phases_in_one_enhanced_file(tag, wanted, tmp_path):
    "The longest is taken, or that of the frames which a mask names; the frame numbers tell which"
    path = enhanced_phases(tmp_path, tag, keep=12 if wanted == 1 else 9)
    uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
    series = read_series(tmp_path)
    assert codes(series) == ['several series'] and f'differ in {tag}: the longest was taken (12 ' in series.notes[0][1]
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)
    assert {n for _, n in series.images} == {*range(1, 13)} and {u for u, _ in series.images} == {uid}
    second = read_series(path, {uid: {13, 14}})
    assert {n for _, n in second.images} == {*range(13, 13 + (12 if wanted == 1 else 9))}
    assert 'that of the mask was taken' in second.notes[0][1] and 'from frame 1' in second.notes[0][1]
    same_voxels(second, SUBJECT.hu[..., :second.data.shape[2]] + 50, SUBJECT.affine)


def test_phases_of_an_enhanced_file_that_nothing_tells_apart(tmp_path):
    bad(enhanced_phases(tmp_path, None), 'all.dcm: its frames', 'no tag tells the two phases in this file apart')


def test_copies_within_an_enhanced_file(tmp_path):
    enhanced_phases(tmp_path, second=SUBJECT.hu)
    series = read_series(tmp_path)
    assert codes(series) == ['duplicate slices'] and len(series.copies) == 12
    same_voxels(series, SUBJECT.hu, SUBJECT.affine)
    assert {n for _, n in series.images} | {n for _, n in series.copies} == {*range(1, 25)}


# --- series among loose files ---

def heap(folder):
    "Two series and a scout of one study in one folder"
    tags = dict(StudyInstanceUID='1.2', PatientID='P')
    write(folder, name='z{n}', SeriesInstanceUID='1.2.3', **tags)
    write(folder, hu=SUBJECT.hu + np.int16(50), name='a{n}', SeriesInstanceUID='1.2.10', **tags)
    write(folder, hu=SUBJECT.hu[..., :2], name='s{n}', SeriesInstanceUID='1.2.4',
          ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'], **tags)
    return folder


def test_a_series_among_loose_files(tmp_path):
    from liverseg.cases import read_volume
    from liverseg.dicom_files import is_dicom, series_files, series_in
    folder = heap(tmp_path / 'heap')
    assert [p.name for p in series_in(folder)] == ['1.2.10', '1.2.4', '1.2.3']
    for uid, more in (('1.2.3', 0), ('1.2.10', 50)):
        same_voxels(read_series(folder / uid), SUBJECT.hu + more, SUBJECT.affine)
        assert read_series(folder / uid).notes == [] and is_dicom(folder / uid)
        assert len(series_files(folder / uid)) == 12 and read_volume(folder / uid).path.name == uid
    bad(folder / '1.2.4', 'holds no CT but localizer')
    bad(folder / '1.2.5', 'there is no such folder')
    assert not is_dicom(folder / '1.2.5') and series_files(folder) == [] and not is_dicom(tmp_path / 'none/1.2.3')
    (folder / 'z5').write_bytes((folder / 'z5').read_bytes()[:400]) # the other series does not mind
    same_voxels(read_series(folder / '1.2.10'), SUBJECT.hu + 50, SUBJECT.affine)
    assert codes(read_series(folder / '1.2.3')) == ['uneven slices'] # the cache has noticed


@pytest.mark.parametrize('uid', ['../../up', '', 'x'*300, '.1.2', 'a/b', '1.2\n3'])
def test_what_is_no_uid_names_no_file(uid, tmp_path):
    from liverseg.dicom_files import series_in
    write(tmp_path, SeriesInstanceUID=uid)
    place, = series_in(tmp_path)
    assert place.parent == tmp_path and place.name.startswith('series_') and len(place.name) == 15
    same_voxels(read_series(place), SUBJECT.hu, SUBJECT.affine)
