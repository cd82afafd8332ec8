"What volumes, series and archives are known to lie about, a function a fault, each with what must come of it."
import bz2
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from functools import cache
from types import SimpleNamespace

import nibabel as nib
import numpy as np

RIGHT, SENTENCE = 'right', 'sentence'


def made(files, data=None, affine=None, must=RIGHT, note=None):
    """Files by name, the first being the one to read; the volume that they are, if it is known; what must come, and the
    code of a note that must be given"""
    return SimpleNamespace(files=files, data=data, affine=affine, must=must, note=note)


def pick(rng, values): return values[rng.integers(len(values))]


# ---- NIfTI. A fault takes (rng, numbers, affine, what stands for nothing) of an int16 volume in RAS order

def nii(data, affine, kind=nib.Nifti1Image, order='<', forms=(1, 1), shift=0):
    "A sound file's bytes; `shift` mm lie between its two forms"
    img = kind(data, affine, kind.header_class(endianness=order))
    moved = affine.copy()
    moved[0, 3] += shift
    img.header.set_data_dtype(data.dtype.newbyteorder(order))
    img.header.set_xyzt_units('mm')
    img.header.set_qform(moved, forms[0]), img.header.set_sform(affine, forms[1])
    if not forms[1]: img = kind(data, None, img.header)
    return bytearray(img.to_bytes())


def packed(rng, raw, name='a'):
    "A file, gzipped or not"
    return {f'{name}.nii.gz': gzip.compress(bytes(raw), 1)} if rng.random() < .5 else {f'{name}.nii': bytes(raw)}


def first(data, shape):
    "What a header with other numbers of voxels makes of the same numbers"
    return data.ravel('F')[:int(np.prod(shape))].reshape(shape, order='F')


def at(fmt, where, *values): return lambda raw: struct.pack_into('<' + fmt, raw, where, *values)


# what is written over which byte, and what must come of it: a sentence, 'right' for the same volume, None for either
HEADER = {
    'voxels begin at 0': (at('f', 108, 0), SENTENCE), 'voxels begin at 100': (at('f', 108, 100), SENTENCE),
    'voxels begin at 351': (at('f', 108, 351), SENTENCE),
    'voxels begin before the file': (at('f', 108, -352), SENTENCE),
    'voxels begin behind it': (at('f', 108, 1e9), SENTENCE), 'voxels begin nowhere': (at('f', 108, np.nan), SENTENCE),
    'twice as many columns': (at('h', 42, 48), SENTENCE), 'a slice more': (at('h', 46, 7), SENTENCE),
    'no column': (at('h', 42, 0), SENTENCE), 'columns below zero': (at('h', 42, -24), SENTENCE),
    'all dimensions vast': (at('3h', 42, 32767, 32767, 32767), SENTENCE),
    'seven vast dimensions': (at('8h', 40, 7, *[32767]*7), SENTENCE),
    'no dimensions': (at('h', 40, 0), SENTENCE), 'eight dimensions': (at('h', 40, 8), SENTENCE),
    'dimensions below zero': (at('h', 40, -1), SENTENCE),
    'seven dimensions': (at('8h', 40, 7, 24, 20, 6, 1, 1, 1, 1), RIGHT),
    'two phases': (at('5h', 40, 4, 24, 20, 3, 2), SENTENCE), 'no phase': (at('5h', 40, 4, 24, 20, 6, 0), SENTENCE),
    'slope 0': (at('2f', 112, 0, 5), RIGHT), 'slope NaN': (at('2f', 112, np.nan, 5), None),
    'slope infinite': (at('2f', 112, np.inf, 5), None), 'slope minus infinite': (at('2f', 112, -np.inf, 0), None),
    'intercept NaN': (at('2f', 112, 1, np.nan), SENTENCE), 'intercept infinite': (at('2f', 112, 1, np.inf), SENTENCE),
    'sform without an axis': (at('4f', 300, 0, 0, 0, 0), SENTENCE),
    'sform with the same axis twice': (at('8f', 280, 3, 0, 0, 0, 3, 0, 0, 0), SENTENCE),
    'sform NaN': (at('f', 280, np.nan), SENTENCE),
    'sform infinite': (at('f', 292, np.inf), SENTENCE),
    'sform of thousands of kilometres': (at('f', 292, 1e12), SENTENCE),
    'sform of nothing': (at('12f', 280, *[0]*12), SENTENCE),
    'pixdim 0 under a sform': (at('3f', 80, 0, 0, 0), RIGHT),
    'pixdim NaN under a sform': (at('3f', 80, *[np.nan]*3), None),
    'pixdim below 0 under a sform': (at('3f', 80, -1, -2, -3), RIGHT),
    'a quaternion that is none': (at('3f', 256, 2, 2, 2), RIGHT),
    'a quaternion of NaN': (at('3f', 256, *[np.nan]*3), RIGHT),
    'no unit': (at('B', 123, 0), RIGHT), 'a unit of time': (at('B', 123, 8 + 2), RIGHT),
    'an unknown unit': (at('B', 123, 7), None),
    'other bits than the type has': (at('h', 72, 8), None),
    'many more bits than the type has': (at('h', 72, 32767), None), 'bits below zero': (at('h', 72, -16), None),
    'complex numbers': (at('2h', 70, 32, 64), SENTENCE), 'colours': (at('2h', 70, 128, 24), SENTENCE),
    'single bits': (at('2h', 70, 1, 1), SENTENCE), 'type 0': (at('h', 70, 0), SENTENCE),
    'type 9999': (at('h', 70, 9999), SENTENCE), 'floats where there are integers': (at('2h', 70, 16, 32), SENTENCE),
    'one dimension': (at('h', 40, 1), SENTENCE), 'size of the header 0': (at('i', 0, 0), None),
    'size of the header 349': (at('i', 0, 349), None), 'size of the header of NIfTI-2': (at('i', 0, 540), None),
    'magic of a pair': (at('4s', 344, b'ni1'), None), 'no magic': (at('4s', 344, b''), None),
    'text of no UTF-8': (at('80s', 148, b'\xff'*80), RIGHT),
    'a name with escapes': (at('24s', 228, b'\x1b[2J\0\r\n'), RIGHT),
    'an odd range to show': (at('2f', 124, np.nan, -np.inf), RIGHT),
    'an odd start': (at('f', 136, np.nan), RIGHT), 'an unknown intent': (at('h', 68, 9999), None),
    'an unknown order of slices': (at('B', 122, 99), None), 'odd directions': (at('B', 39, 255), RIGHT),
    'extensions announced and none there': (at('B', 348, 1), None)}


def _patched(name):
    change, must = HEADER[name]
    def _fault(rng, data, affine, fill):
        raw = nii(data, affine)
        change(raw)
        return made(packed(rng, raw), data, affine, must, 'forms disagree' if 'quaternion' in name else None)
    return _fault


NIFTI = {name: _patched(name) for name in HEADER}


def fault(table, name):
    def _add(func): table[name] = func; return func
    return _add


@fault(NIFTI, 'nothing')
def _(rng, data, affine, fill): return made(packed(rng, nii(data, affine)), data, affine)


def _fewer(shape, dim):
    def _fault(rng, data, affine, fill):
        raw = nii(data, affine)
        struct.pack_into(f'<{len(dim)}h', raw, 40, *dim)
        return made(packed(rng, raw), first(data, shape), affine, note='longer')
    return _fault


NIFTI |= {'a slice less': _fewer((24, 20, 5), (3, 24, 20, 5)), 'a column less': _fewer((23, 20, 6), (3, 23, 20, 6)),
          'one slice': _fewer((24, 20, 1), (2, 24, 20, 6)), 'a voxel': _fewer((1, 1, 1), (3, 1, 1, 1))}


def _rescaled(slope, inter, stored, back=lambda v: v):
    def _fault(rng, data, affine, fill):
        raw = nii(stored(data.astype(int)).astype(np.int16), affine)
        struct.pack_into('<2f', raw, 112, slope, inter)
        return made(packed(rng, raw), back(data.astype(int)), affine)
    return _fault


NIFTI |= {'HU + 1024 and an intercept': _rescaled(1, -1024, lambda v: v + 1024),
          'a slope below 0': _rescaled(-1, 0, lambda v: -v),
          'slope 2': _rescaled(2, 0, lambda v: v//2, lambda v: v//2*2),
          'a slope of fractions': _rescaled(.5, 0, lambda v: v*2),
          'slope and intercept that cancel': _rescaled(-2, 100, lambda v: (100 - v)//2, lambda v: 100 - (100 - v)//2*2)}


@fault(NIFTI, 'slope beyond 16 bits')
def _(rng, data, affine, fill):
    data = data.copy(); data[3, 4, 2] = 30000
    raw = nii(data, affine)
    struct.pack_into('<2f', raw, 112, 3, 0)
    out = data.astype(float)*3
    return made(packed(rng, raw), np.where(out < -1100, fill, out) if fill else out, affine)


@fault(NIFTI, 'slope 1e30')
def _(rng, data, affine, fill):
    raw = nii(data, affine); struct.pack_into('<2f', raw, 112, 1e38, 0)
    return made(packed(rng, raw), must=None)


@fault(NIFTI, 'signed numbers said to be unsigned')
def _(rng, data, affine, fill):
    raw = nii(data, affine); struct.pack_into('<h', raw, 70, 512)
    return made(packed(rng, raw), data.view(np.uint16).astype(int), affine)


def _formed(**how):
    note = 'forms disagree' if 'shift' in how else None
    return lambda rng, data, affine, fill: made(packed(rng, nii(data, affine, **how)), data, affine, note=note)


NIFTI |= {'a sform only': _formed(forms=(0, 1)), 'a qform only': _formed(forms=(1, 0)),
          'forms that disagree': _formed(shift=10), 'NIfTI-2': _formed(kind=nib.Nifti2Image),
          'big-endian': _formed(order='>')}


@fault(NIFTI, 'no form')
def _(rng, data, affine, fill): return made(packed(rng, nii(data, affine, forms=(0, 0))), note='no form')


def _qform(must, *spacing, note=None):
    "Only the qform tells, and the spacing with it"
    def _fault(rng, data, affine, fill):
        raw = nii(data, affine, forms=(1, 0))
        struct.pack_into(f'<{len(spacing)}f', raw, 80, *spacing)
        told = affine.copy(); told[:3, :3] = np.diag([*spacing, *np.diag(affine)[len(spacing):3]])
        return made(packed(rng, raw), *((data, told) if must == RIGHT else (None, None)), must, note)
    return _fault


NIFTI |= {'spacing 0': _qform(SENTENCE, 0, 0, 0), 'spacing 0 along one axis': _qform(SENTENCE, 0),
          'spacing NaN': _qform(SENTENCE, np.nan), 'spacing infinite': _qform(SENTENCE, np.inf),
          'spacing below 0': _qform(None, -3),
          'spacing 1e-3 and 1e5': _qform(RIGHT, 1e-3, 1e5), 'spacing 1e5 and 1e-3': _qform(RIGHT, 1e5, 1e-3),
          'spacing 1e-3 and 1e5 across': _qform(RIGHT, 1e-3, 5, 1e5), 'spacing 1e-6': _qform(None, 1e-6, 1e-6, 1e-6),
          'spacing 1e30': _qform(SENTENCE, 1e30, 1, 1)}


@fault(NIFTI, 'a quaternion that is none and no sform')
def _(rng, data, affine, fill):
    raw = nii(data, affine, forms=(1, 0)); struct.pack_into('<3f', raw, 256, 2, 2, 2)
    return made(packed(rng, raw), must=SENTENCE)


@fault(NIFTI, 'another order of axes')
def _(rng, data, affine, fill):
    from liverseg.nifti import ORDERS, stored_as
    img = stored_as(nib.Nifti1Image(data, affine), pick(rng, ORDERS))
    return made(packed(rng, nii(np.asarray(img.dataobj), img.affine)), data, affine)


@fault(NIFTI, 'a mirrored form')
def _(rng, data, affine, fill):
    "The header alone is mirrored, so the patient is"
    told = affine @ np.diag([-1, 1, 1, 1])
    back = np.eye(4); back[0, 0], back[0, 3] = -1, len(data) - 1
    return made(packed(rng, nii(data, told)), data[::-1], told @ back)


@fault(NIFTI, 'a form that leans')
def _(rng, data, affine, fill):
    told = affine.copy(); told[1, 2] = 2.
    return made(packed(rng, nii(data, told)), data, told, note='sheared')


def _unit(code, factor):
    def _fault(rng, data, affine, fill):
        raw = nii(data, np.diag([factor]*3 + [1]) @ affine)
        raw[123] = code
        return made(packed(rng, raw), data, affine)
    return _fault


NIFTI |= {'metres': _unit(1, 1e-3), 'microns': _unit(3, 1e3)}


def _odd_number(value, where, must, note=None):
    def _fault(rng, data, affine, fill):
        odd, truth = data.astype(pick(rng, ['f4', 'f8'])), data.copy()
        odd[where], truth[where] = value, fill
        return made(packed(rng, nii(odd, affine)), truth, affine, must, note)
    return _fault


NIFTI |= {'NaN at the border': _odd_number(np.nan, np.s_[:, 0], RIGHT, 'not finite'),
          'NaN within': _odd_number(np.nan, np.s_[5:7, 5, 3], SENTENCE),
          'infinity within': _odd_number(np.inf, np.s_[5, 5, 3], SENTENCE),
          'infinity at the border': _odd_number(-np.inf, np.s_[0], RIGHT, 'not finite'),
          'NaN everywhere': _odd_number(np.nan, np.s_[:], None)}


def _extended(size):
    "An extension of 32 bytes that says it has another size"
    def _fault(rng, data, affine, fill):
        raw = nii(data, affine)
        raw[348] = 1
        struct.pack_into('<f', raw, 108, 352 + 32)
        return made(packed(rng, raw[:352] + struct.pack('<2i', size, 6) + b'a comment'.ljust(24, b'\0') + raw[352:]),
                    data, affine, RIGHT if size == 32 else None)
    return _fault


NIFTI |= {f'an extension of 32 bytes that says {n}': _extended(n) for n in (32, 7, 0, -16, 48, 2**31 - 1)}


def _named(name, must=RIGHT):
    def _fault(rng, data, affine, fill):
        raw = nii(data, affine)
        return made({name: gzip.compress(raw, 1) if name.lower().endswith('gz') else bytes(raw)}, data, affine, must)
    return _fault


NIFTI |= {f'named {name}': _named(name) for name in ('a.NII', 'a.Nii', 'a.NII.GZ', 'a.nii.GZ')}


def _pair(name='a.hdr', other='a.img', change=lambda raw: raw, offset=0, must=RIGHT, note=None):
    def _fault(rng, data, affine, fill):
        raw = nii(data, affine)
        struct.pack_into('<f', raw, 108, offset), struct.pack_into('<4s', raw, 344, b'ni1')
        body = change(bytes(offset) + bytes(raw[352:]))
        return made({name: bytes(raw[:348])} | ({other: body} if body is not None else {}), data, affine, must, note)
    return _fault


NIFTI |= {'a pair': _pair(), 'a pair in capitals': _pair('a.HDR', 'a.IMG'),
          'a pair in both': _pair('a.HDR', 'a.img', must=None), 'a pair with an offset': _pair(offset=16),
          'a pair whose voxels end early': _pair(change=lambda raw: raw[:-2], must=SENTENCE),
          'a pair without voxels': _pair(change=lambda raw: None, must=SENTENCE),
          'a pair with an empty half': _pair(change=lambda raw: b'', must=SENTENCE),
          'a pair with more': _pair(change=lambda raw: raw + bytes(100), note='longer'),
          'a pair with gzipped voxels': _pair(other='a.img.gz', change=lambda raw: gzip.compress(raw), must=None)}


@cache
def zeros(mib):
    "A gzip member of so many MiB of zeros, made of one MiB that is repeated"
    part = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = part.compress(bytes(2**20)) + part.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(mib//16): crc = zlib.crc32(bytes(2**24), crc)
    return b'\x1f\x8b\x08\0\0\0\0\0\0\xff' + one*mib + part.flush() + struct.pack('<2I', crc, mib*2**20 % 2**32)


def _zipped(change, must=RIGHT, note=None, name='a.nii.gz'):
    def _fault(rng, data, affine, fill):
        return made({name: change(rng, bytes(nii(data, affine)))}, data, affine, must, note)
    return _fault


def _members(rng, raw):
    cut = int(rng.integers(1, len(raw)))
    return gzip.compress(raw[:cut]) + gzip.compress(raw[cut:])


NIFTI |= {
    'two members': _zipped(_members),
    'a member a byte': _zipped(lambda rng, raw: b''.join(gzip.compress(raw[k:k + 1]) for k in range(400))
                               + gzip.compress(raw[400:])),
    'an empty member first': _zipped(lambda rng, raw: gzip.compress(b'') + gzip.compress(raw)),
    'zeros behind': _zipped(lambda rng, raw: gzip.compress(raw) + bytes(512)),
    'garbage behind': _zipped(lambda rng, raw: gzip.compress(raw) + rng.bytes(99), None),
    'a member more': _zipped(lambda rng, raw: gzip.compress(raw) + gzip.compress(bytes(99)), note='longer'),
    'a bomb behind': _zipped(lambda rng, raw: gzip.compress(raw) + zeros(1536), None),
    'another checksum': _zipped(lambda rng, raw: (g := gzip.compress(raw))[:-8] + bytes([g[-8] ^ 1]) + g[-7:],
                                SENTENCE),
    'another length': _zipped(lambda rng, raw: (g := gzip.compress(raw))[:-4] + bytes([g[-4] ^ 1]) + g[-3:], SENTENCE),
    'cut off': _zipped(lambda rng, raw: (g := gzip.compress(raw))[:rng.integers(1, len(g) - 8)], SENTENCE),
    'without its last byte': _zipped(lambda rng, raw: gzip.compress(raw)[:-1], SENTENCE),
    'empty': _zipped(lambda rng, raw: b'', SENTENCE), 'not gzipped': _zipped(lambda rng, raw: raw, SENTENCE),
    'gzipped twice': _zipped(lambda rng, raw: gzip.compress(gzip.compress(raw)), SENTENCE),
    'bzip2': _zipped(lambda rng, raw: bz2.compress(raw), SENTENCE),
    'gzipped, named .nii': _zipped(lambda rng, raw: gzip.compress(raw), None, name='a.nii'),
    'a file cut off': _zipped(lambda rng, raw: raw[:-2], SENTENCE, name='a.nii'),
    'a header alone': _zipped(lambda rng, raw: raw[:352], SENTENCE, name='a.nii'),
    'a header cut off': _zipped(lambda rng, raw: raw[:rng.integers(348)], SENTENCE, name='a.nii'),
    'more than announced': _zipped(lambda rng, raw: raw + bytes(100), note='longer', name='a.nii')}


@fault(NIFTI, 'a bomb of voxels')
def _(rng, data, affine, fill):
    raw = nii(data, affine); struct.pack_into('<3h', raw, 42, 1024, 1024, 768)
    return made({'a.nii.gz': gzip.compress(bytes(raw[:352])) + zeros(1536)}, must=None)


# ---- DICOM. A fault takes (rng, files as {name: bytes}, numbers, affine) of a sound axial series

def edited(files, edit):
    """Each file after `edit(data set, number)`; those for which it gives False are left out, and what is bytes is taken
    as it is"""
    import pydicom
    from pydicom import config
    config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
    out = {}
    for k, (name, raw) in enumerate(files.items()):
        ds = pydicom.dcmread(io.BytesIO(raw))
        done = edit(ds, k)
        if done is False: continue
        if not isinstance(done, bytes): ds.save_as(to := io.BytesIO()); done = to.getvalue()
        out[name] = done
    return out


def _tags(must, note=None, only=None, **values):
    "Tags set in all slices, or in one; None takes a tag away, a function gets the number of the slice"
    def _edit(ds, k):
        if only is not None and k != only: return
        for key, value in values.items():
            value = value(k) if callable(value) else value
            if value is None: ds.pop(key, None) if key in ds else None
            elif not isinstance(value, tuple): setattr(ds, key, value)
            else: ds.add_new(key, *value) # another representation than the tag has
    return lambda rng, files, hu, affine: made(edited(files, _edit), *((None, None) if must is None else (hu, affine)),
                                               must, note)


SERIES = {'nothing': _tags(RIGHT)}
for _where, _only in (('', None), (' in one slice', 3)):
    SERIES |= {f'{what}{_where}': _tags(SENTENCE, only=_only, **tags) for what, tags in {
        'inverted grey': dict(PhotometricInterpretation='MONOCHROME1'),
        'colours by a palette': dict(PhotometricInterpretation='PALETTE COLOR'),
        'the highest bit wrong': dict(BitsStored=12, HighBit=15), 'the highest bit beyond': dict(HighBit=31),
        'a slope below 0': dict(RescaleSlope='-1'), 'slope 0': dict(RescaleSlope='0'),
        'slope NaN': dict(RescaleSlope='nan'), 'intercept infinite': dict(RescaleIntercept='inf'),
        'half the bits': dict(BitsAllocated=8, BitsStored=8, HighBit=7),
        'twice the bits': dict(BitsAllocated=32, BitsStored=32, HighBit=31), 'no bits': dict(BitsAllocated=0),
        'more bits stored than there are': dict(BitsStored=24, HighBit=23),
        'no pixels': dict(PixelData=None)}.items()}
SERIES |= {
    'a second frame announced': _tags(SENTENCE, NumberOfFrames=2),
    'no intercept in one slice': _tags(SENTENCE, only=2, RescaleIntercept=None),
    'no intercept': _tags(RIGHT, 'no rescale', RescaleIntercept=None, RescaleSlope=None),
    'another modality': _tags(SENTENCE, Modality='MR'), 'no modality': _tags(SENTENCE, Modality=None),
    'colours': _tags(SENTENCE, SamplesPerPixel=3), 'columns missing': _tags(SENTENCE, Columns=12),
    'rows missing': _tags(SENTENCE, Rows=8), 'rows too many': _tags(SENTENCE, Rows=4000),
    'rows and columns vast': _tags(SENTENCE, Rows=65535, Columns=65535),
    'spacing 0': _tags(SENTENCE, PixelSpacing=['0', '0']),
    'spacing below 0': _tags(SENTENCE, PixelSpacing=['-1', '-1']),
    'spacing NaN': _tags(SENTENCE, PixelSpacing=['nan', 'nan']), 'no spacing': _tags(SENTENCE, PixelSpacing=None),
    'spacing infinite': _tags(SENTENCE, PixelSpacing=['inf', 'inf']),
    'spacing a text': _tags(SENTENCE, PixelSpacing=('LO', 'wide')),
    'spacing one number': _tags(SENTENCE, PixelSpacing=('DS', '1.5')),
    'spacing 1e30': _tags(SENTENCE, PixelSpacing=['1e30', '1e30']),
    'spacing 1e-3 and 1e5': _tags(SENTENCE, PixelSpacing=['1e-3', '1e5']),
    'spacing of 100 m': _tags(SENTENCE, PixelSpacing=['1e5', '1e5']),
    'directions of nothing': _tags(SENTENCE, ImageOrientationPatient=['0']*6),
    'directions that are the same': _tags(SENTENCE, ImageOrientationPatient=[*'100100']),
    'directions NaN': _tags(None, ImageOrientationPatient=['nan']*6),
    'no position in one slice': _tags(SENTENCE, only=1, ImagePositionPatient=None),
    'position NaN in one slice': _tags(SENTENCE, only=1, ImagePositionPatient=['nan', '0', '0']),
    'position infinite': _tags(SENTENCE, only=5, ImagePositionPatient=['0', '0', 'inf']),
    'position 1e30': _tags(None, only=5, ImagePositionPatient=['0', '0', '1e30']),
    'all at one place': _tags(SENTENCE, ImagePositionPatient=[*'000']),
    'slice distance nonsense': _tags(RIGHT, SliceThickness='nan', SpacingBetweenSlices='-7'),
    'numbers in any order': _tags(RIGHT, InstanceNumber=lambda k: (7*k) % 6),
    'numbers that are texts': _tags(None, InstanceNumber=('LO', 'x')),
    'the same number': _tags(RIGHT, InstanceNumber=1),
    'padding that is nowhere': _tags(RIGHT, PixelPaddingValue=('SS', -2000)),
    'padding of a text': _tags(None, PixelPaddingValue=('LO', 'none')),
    'a window of nothing': _tags(RIGHT, WindowCenter='nan', WindowWidth='0'),
    'private tags': _tags(RIGHT, PatientComments='\x1b[2J' + 'x'*9000, PatientName='^^^=\\\\', StudyDate='yesterday',
                          PatientAge='-1'),
    'an unknown character set': _tags(RIGHT, SpecificCharacterSet='ISO_IR 9999', PatientName='\u00e9'),
    'a picture that is small': _tags(RIGHT, LossyImageCompression='01'),
    'an image type of escapes': _tags(None, ImageType=['\x1b[2J']*3),
    'a series without a number': _tags(RIGHT, SeriesInstanceUID=None),
    'a series called anything': _tags(RIGHT, SeriesInstanceUID='../../x\\1', SOPInstanceUID='')}


def series(name):
    def _add(func): SERIES[name] = func; return func
    return _add


@series('an intercept for each slice')
def _(rng, files, hu, affine):
    def _edit(ds, k):
        slope, inter = pick(rng, [1, 2]), -int(rng.integers(1000))
        stored = (ds.pixel_array.astype(int)//2*2 - inter//2*2)//slope
        ds.PixelData, ds.RescaleSlope, ds.RescaleIntercept = stored.astype('<i2').tobytes(), str(slope), str(inter//2*2)
    return made(edited(files, _edit), hu//2*2, affine)


@series('HU + 1024, 12 bits')
def _(rng, files, hu, affine):
    def _edit(ds, k):
        stored = (ds.pixel_array.astype(int) + 1024).astype('<u2')
        ds.PixelData, ds.RescaleIntercept, ds.PixelRepresentation = stored.tobytes(), '-1024', 0
        ds.BitsStored, ds.HighBit = 12, 11
    return made(edited(files, _edit), hu, affine)


@series('12 bits with rubbish above')
def _(rng, files, hu, affine):
    "Overlays were once kept in the highest four bits"
    def _edit(ds, k):
        stored = (ds.pixel_array.astype(int) + 1024) | rng.integers(16, size=(int(ds.Rows), int(ds.Columns))) << 12
        ds.PixelData, ds.RescaleIntercept, ds.PixelRepresentation = stored.astype('<u2').tobytes(), '-1024', 0
        ds.BitsStored, ds.HighBit = 12, 11
    return made(edited(files, _edit), hu, affine, None)


@series('fractions of HU')
def _(rng, files, hu, affine):
    def _edit(ds, k):
        ds.PixelData, ds.RescaleSlope = (ds.pixel_array.astype(int)*2).astype('<i2').tobytes(), '0.5'
    return made(edited(files, _edit), hu, affine)


@series('signed numbers said to be unsigned')
def _(rng, files, hu, affine):
    return made(edited(files, lambda ds, k: setattr(ds, 'PixelRepresentation', 0)), hu.view(np.uint16).astype(int),
                affine)


@series('padding of a value that is there')
def _(rng, files, hu, affine):
    value = int(hu[10, 8, 3])
    return made(edited(files, lambda ds, k: ds.add_new('PixelPaddingValue', 'SS', value)),
                np.where(hu == value, -1024, hu), affine)


def _lost(k, note=None):
    def _fault(rng, files, hu, affine):
        told = affine.copy()
        if k == 0: told[2, 3] += affine[2, 2]
        if 0 < k < 5: told[2, 2] *= 5/4 # the slices that are left, evenly over the same length
        return made(edited(files, lambda ds, n: n != k), np.delete(hu, k, 2), told, note=note)
    return _fault


SERIES |= {'the first slice missing': _lost(0), 'the last slice missing': _lost(5),
           'a slice missing': _lost(2, 'uneven slices')}


@series('other rows in one slice')
def _(rng, files, hu, affine):
    def _edit(ds, k):
        if k == 5: ds.PixelData, ds.Rows = ds.pixel_array[:8].tobytes(), 8
    return made(edited(files, _edit), hu[..., :5], affine, note='several series')


@series('a second frame announced in the last slice')
def _(rng, files, hu, affine):
    return made(edited(files, lambda ds, k: setattr(ds, 'NumberOfFrames', 1 + (k == 5))), hu[..., :5], affine,
                note='several series')


@series('other spacing in one slice')
def _(rng, files, hu, affine):
    def _edit(ds, k):
        if k == 5: ds.PixelSpacing = ['2', '2']
    return made(edited(files, _edit), hu[..., :5], affine, note='several series')


@series('a slice to the side')
def _(rng, files, hu, affine):
    def _edit(ds, k):
        if k == 2: ds.ImagePositionPatient = [float(ds.ImagePositionPatient[0]) + 40, *ds.ImagePositionPatient[1:]]
    return made(edited(files, _edit), hu, affine, note='uneven slices')


@series('copies')
def _(rng, files, hu, affine):
    again = edited({f'{n}_b': raw for n, raw in files.items()}, lambda ds, k: setattr(ds, 'SOPInstanceUID', f'1.2.{k}'))
    return made(files | again, hu, affine, note='duplicate slices')


def _phases(**tags):
    def _fault(rng, files, hu, affine):
        def _other(ds, k):
            ds.PixelData = (ds.pixel_array + 20).astype('<i2').tobytes()
            for key, value in tags.items(): setattr(ds, key, value)
        first_one = edited(files, lambda ds, k: [setattr(ds, key, type(value)(1)) for key, value in tags.items()]
                           and None)
        return made(first_one | edited({f'{n}_b': raw for n, raw in files.items()}, _other), (hu, hu + 20), affine,
                    RIGHT if tags else SENTENCE, 'several series' if tags else None)
    return _fault


SERIES |= {'two phases, told apart by their number': _phases(AcquisitionNumber=2),
           'two phases, told apart by time': _phases(AcquisitionTime='120000'),
           'two phases that nothing tells apart': _phases()}


@series('one slice of another phase at a place')
def _(rng, files, hu, affine):
    name = list(files)[2]
    return made(files
                | {'z': edited({name: files[name]},
                               lambda ds, k: setattr(ds, 'PixelData',
                                                     (ds.pixel_array + 20).astype('<i2').tobytes()))[name]},
                must=SENTENCE)


@series('no positions')
def _(rng, files, hu, affine):
    return made(edited(files, lambda ds, k: [ds.pop('ImagePositionPatient'), ds.pop('ImageOrientationPatient')]
                       and None), note='no position')


@series('one file')
def _(rng, files, hu, affine):
    k = int(rng.integers(6))
    told = affine.copy(); told[2, 3] += k*affine[2, 2]
    return made({'a.dcm': list(files.values())[k]}, hu[..., k:k + 1], told)


def deflated(raw, more=0):
    "The same file, deflated, with `more` MiB of zeros behind it"
    from pydicom import dcmread
    from pydicom.filereader import read_dataset
    ds = dcmread(io.BytesIO(raw))
    ds.file_meta.TransferSyntaxUID = '1.2.840.10008.1.2.1.99'
    ds.save_as(out := io.BytesIO(), enforce_file_format=True)
    raw = out.getvalue()
    if not more: return raw
    f = io.BytesIO(raw); f.seek(132)
    read_dataset(f, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    inside, size = zlib.decompressobj(-15).decompress(raw[f.tell():]), len(ds.PixelData)
    part = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = part.compress(inside[:-size - 4] + struct.pack('<I', size + more*2**20)
                          + inside[-size:]) + part.flush(zlib.Z_FULL_FLUSH)
    one = part.compress(bytes(2**20)) + part.flush(zlib.Z_FULL_FLUSH)
    return raw[:f.tell()] + start + one*more + part.flush()


@series('deflated')
def _(rng, files, hu, affine): return made({n: deflated(raw) for n, raw in files.items()}, hu, affine)


@series('deflated, and it swells')
def _(rng, files, hu, affine):
    return made({n: deflated(raw, 1536*(k == 2)) for k, (n, raw) in enumerate(files.items())}, must=SENTENCE)


def _written(syntax, swap=False):
    def _fault(rng, files, hu, affine):
        from pydicom import dcmread, dcmwrite
        out = {}
        for name, raw in files.items():
            ds = dcmread(io.BytesIO(raw))
            if swap: ds.PixelData = np.frombuffer(ds.PixelData, '<i2').astype('>i2').tobytes()
            ds.file_meta.TransferSyntaxUID = syntax
            dcmwrite(to := io.BytesIO(), ds, implicit_vr=syntax == '1.2.840.10008.1.2', little_endian=not swap,
                     force_encoding=True)
            out[name] = to.getvalue()
        return made(out, hu, affine)
    return _fault


SERIES |= {'implicit': _written('1.2.840.10008.1.2'), 'big-endian': _written('1.2.840.10008.1.2.2', True)}


def _says(syntax, must=SENTENCE):
    def _fault(rng, files, hu, affine):
        old, new = b'1.2.840.10008.1.2.1\0', syntax.encode()
        return made({n: raw.replace(old, new.ljust(20, b'\0')[:20], 1) for n, raw in files.items()}, hu, affine, must)
    return _fault


SERIES |= {'said to be implicit': _says('1.2.840.10008.1.2', None), 'said to be JPEG': _says('1.2.840.10008.1.2.5'),
           'said to be big-endian': _says('1.2.840.10008.1.2.2', None),
           'a syntax that there is not': _says('1.2.3', None)}


@series('without DICM')
# check and convert know a series by DICM
def _(rng, files, hu, affine): return made({n: raw[132:] for n, raw in files.items()}, hu, affine, None)


@series('a preamble of another kind')
def _(rng, files, hu, affine):
    return made({n: b'II*\0' + bytes(124) + raw[128:] for n, raw in files.items()}, hu, affine)


def _spoiled(change, must=SENTENCE):
    "One file as bytes"
    def _fault(rng, files, hu, affine):
        name = pick(rng, list(files))
        return made(files | {name: change(rng, files[name])}, hu, affine, must)
    return _fault


SERIES |= {'a file cut off in its pixels': _spoiled(lambda rng, raw: raw[:-rng.integers(3, 600)]),
           'a file cut off in its header': _spoiled(lambda rng, raw: raw[:rng.integers(1, 400)]),
           'an empty file': _spoiled(lambda rng, raw: b''),
           'a file of zeros': _spoiled(lambda rng, raw: bytes(len(raw))),
           'a file of anything': _spoiled(lambda rng, raw: rng.bytes(len(raw))),
           'an odd byte behind': _spoiled(lambda rng, raw: raw + b'\0', None),
           'two files in one': _spoiled(lambda rng, raw: raw + raw, None)}


@series('pixels of another length')
def _(rng, files, hu, affine):
    more = int(pick(rng, [-64, -2, 2, 64, 640]))
    def _edit(ds, k):
        if k == 4: ds.PixelData = ds.PixelData[:more] if more < 0 else ds.PixelData + bytes(more)
    return made(edited(files, _edit), must=SENTENCE)


@series('a localiser and a report beside it')
def _(rng, files, hu, affine):
    name = list(files)[0]
    def _edit(ds, k):
        ds.ImageType, ds.SeriesInstanceUID, ds.SOPInstanceUID = ['ORIGINAL', 'PRIMARY', 'LOCALIZER'], '1.2.99', '1.2.98'
    return made(files | {'scout': edited({name: files[name]}, _edit)[name], 'README.txt': b'no DICOM',
                         'notes.pdf': b'%PDF-1.4' + bytes(300)}, hu, affine, note='several series')


# ---- archives. A fault takes (rng, files as {name: bytes}) and gives the archive's bytes, its ending, and the files
# that must come out, or None

def zipped(files, method=zipfile.ZIP_DEFLATED, **attributes):
    with zipfile.ZipFile(out := io.BytesIO(), 'w', method) as z:
        for name, raw in files if isinstance(files, list) else files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in attributes.items(): setattr(info, key, value)
            z.writestr(info, raw)
    return out.getvalue()


def tarred(files, mode='w', form=tarfile.PAX_FORMAT, odd=()):
    with tarfile.open(fileobj=(out := io.BytesIO()), mode=mode, format=form) as t:
        for name, raw in files if isinstance(files, list) else files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            t.addfile(info, io.BytesIO(raw))
        for info in odd: t.addfile(info)
    return out.getvalue()


def archive(raw, ending='zip', out=None, must=RIGHT): return SimpleNamespace(raw=raw, ending=ending, out=out, must=must)


def below(files, top='d'): return {f'{top}/{n}': raw for n, raw in files.items()}


ARCHIVES = {}


def arch(name):
    def _add(func): ARCHIVES[name] = func; return func
    return _add


def _as(pack, ending):
    "Sound archives, with and without one folder that holds everything"
    def _fault(rng, files): return archive(pack(below(files) if rng.random() < .5 else files), ending, files)
    return _fault


ARCHIVES |= {'a zip': _as(zipped, 'zip'),
             'a zip that is not packed': _as(lambda f: zipped(f, zipfile.ZIP_STORED), 'zip'),
             'a zip of bzip2': _as(lambda f: zipped(f, zipfile.ZIP_BZIP2), 'zip'),
             'a zip of lzma': _as(lambda f: zipped(f, zipfile.ZIP_LZMA), 'zip'),
             'a tar': _as(tarred, 'tar'), 'a tar.gz': _as(lambda f: tarred(f, 'w:gz'), 'tar.gz'),
             'a tar of GNU': _as(lambda f: tarred(f, form=tarfile.GNU_FORMAT), 'tar'),
             'an old tar': _as(lambda f: tarred(f, form=tarfile.USTAR_FORMAT), 'tar'),
             'a zip named tar': _as(zipped, 'tar'), 'a tar named zip': _as(tarred, 'zip')}


def _with(name, must=SENTENCE, only=('zip', 'tar')):
    "A member more, of this name"
    def _fault(rng, files):
        kind, raw = pick(rng, only), rng.bytes(30)
        whole = [*files.items()]
        whole.insert(rng.integers(len(whole) + 1), (name, raw))
        return archive(zipped(whole) if kind == 'zip' else tarred(whole), kind, files | {name: raw}, must)
    return _fault


ARCHIVES |= {f'a member {ascii(name)}': _with(name) for name in (
    '../x', '/x', '/etc/x', 'C:\\x', 'C:x', '..\\x', 'd/../../x', 'd/..', '...', 'd/ /x', '\\\\host\\share\\x',
    'd/. /x', '//x', 'a/b.txt/x', 'a')}
ARCHIVES['a member of NUL'] = lambda rng, files: archive(zipped(files | {'aXb': b'1'}).replace(b'aXb', b'a\0b'), 'zip',
                                                         None, SENTENCE)
ARCHIVES |= {f'a name {ascii(name)[:40]}': _with(name, None) for name in (
    '\x1b[2J', 'a\nb', 'a\rb', '\t=1', 'CON', 'nul.txt', 'x.', ' x', 'x ', 'é', 'e\u0301', '\u202e', '=1+1', 'n'*300,
    'd/'*600 + 'x', '-rf', '~', '$HOME', '.hidden', '%s', '*')}


def _latin_tar(rng, files):
    raw = tarred(files | {'aXb': b'1'}, form=tarfile.GNU_FORMAT)
    return archive(raw.replace(b'aXb', b'a\xffb', 1), 'tar', None, None)


def _latin_zip(rng, files):
    return archive(zipped(files | {'aXb': b'1'}).replace(b'aXb', b'a\xffb'), 'zip', None, None)


def _either(members, must=None):
    "A zip or a tar of what `members` makes of the files; a sentence, or with `must` those files"
    def make(rng, files):
        z = rng.random() < .5
        told = (None, SENTENCE) if must is None else (must(files),)
        return archive((zipped if z else tarred)(members(files)), 'zip' if z else 'tar', *told)
    return make


def _three_cases(files): return files | {'B.NII': b'1', 'b.nii': b'2', 'b.Nii': b'3'}


ARCHIVES |= {'a name of no UTF-8 in a tar': _latin_tar, 'a name of no UTF-8 in a zip': _latin_zip,
             'the same name twice': _either(lambda files: [*files.items(), (next(iter(files)), b'other')]),
             'names that differ in case': _either(_three_cases, _three_cases),
             'rubbish of a Mac': lambda rng, files: archive(zipped(files | {'__MACOSX/._a': b'1', '.DS_Store': b'2'}),
                                                            'zip', files),
             'empty': lambda rng, files: archive(b'', pick(rng, ['zip', 'tar', 'tar.gz']), None, SENTENCE),
             'no members': _either(lambda files: {})}


def _entry(kind, target=''):
    info = tarfile.TarInfo('link')
    info.type, info.linkname = kind, target
    return lambda rng, files: archive(tarred(files, odd=[info]), 'tar', None, SENTENCE)


def _odd_member(mode):
    "A zip with a member of that kind"
    return lambda rng, files: archive(zipped([*files.items(), ('link', b'/etc')], external_attr=mode << 16), 'zip',
                                      None, SENTENCE)


ENTRIES = {'link to /etc': (tarfile.SYMTYPE, '/etc'), 'link to itself': (tarfile.SYMTYPE, 'link'),
           'link upwards': (tarfile.SYMTYPE, '..'), 'hard link': (tarfile.LNKTYPE, 'a/b.txt'),
           'pipe': (tarfile.FIFOTYPE,), 'device': (tarfile.CHRTYPE,), 'disk': (tarfile.BLKTYPE,)}
ARCHIVES |= {f'a {what} in a tar': _entry(*how) for what, how in ENTRIES.items()}
ARCHIVES |= {f'a {what} in a zip': _odd_member(mode)
             for what, mode in {'link': 0o120777, 'pipe': 0o010777, 'device': 0o020777}.items()}


def _patch_zip(offset, value, where=(b'PK\1\2',), must=SENTENCE):
    "Other numbers in the directory of a zip, or in what stands before a member"
    def _fault(rng, files):
        raw = bytearray(zipped(files))
        for mark in where:
            k = raw.index(mark) + offset - (mark == b'PK\3\4')*2
            raw[k:k + len(value)] = value
        return archive(bytes(raw), 'zip', files, must)
    return _fault


ARCHIVES |= {'encrypted': _patch_zip(8, b'\1\0', (b'PK\1\2', b'PK\3\4')),
             'a packing that there is not': _patch_zip(10, b'\x63\0', (b'PK\1\2', b'PK\3\4')),
             'a larger size announced': _patch_zip(24, b'\0\0\1\0'),
             'a smaller size announced': _patch_zip(24, b'\1\0\0\0'),
             'a vast size announced': _patch_zip(24, b'\xf0\xff\xff\xff'),
             'no size announced': _patch_zip(24, b'\0\0\0\0'), 'another checksum': _patch_zip(16, b'abcd'),
             'a member that begins elsewhere': _patch_zip(42, b'\x99\0\0\0'),
             'more packed than there is': _patch_zip(20, b'\xff\xff\xff\x7f', must=None)}


@arch('cut off')
def _(rng, files):
    ending = pick(rng, ['zip', 'tar', 'tar.gz'])
    raw = dict(zip=zipped, tar=tarred).get(ending, lambda f: tarred(f, 'w:gz'))(files)
    return archive(raw[:rng.integers(1, len(raw) - (10300 if ending == 'tar' and len(raw) > 20000 else 30))], ending,
                   None, SENTENCE if ending != 'tar' else None)


def _tar_header(must, offset, value):
    def _fault(rng, files):
        raw = bytearray(tarred(files, form=tarfile.USTAR_FORMAT))
        raw[offset:offset + len(value)] = value
        raw[148:156] = b' '*8
        raw[148:156] = f'{sum(raw[:512]):06o}\0 '.encode()
        return archive(bytes(raw), 'tar', None, must)
    return _fault


ARCHIVES |= {'a vast size in a tar': _tar_header(SENTENCE, 124, b'77777777777\0'),
             'a size below zero in a tar': _tar_header(SENTENCE, 124, b'\xff'*12),
             'a size that is none in a tar': _tar_header(None, 124, b'xyz\0'),
             'a type that there is not in a tar': _tar_header(None, 156, b'Z'),
             'sparse, and no map in a tar': _tar_header(None, 156, b'S')}


def _pax(**headers):
    "A tar whose first member says more of itself"
    def _fault(rng, files):
        info = tarfile.TarInfo('more')
        info.size, info.pax_headers = 4, {k.replace('_', '.', 2) if k.startswith('GNU') else k: v
                                          for k, v in headers.items()}
        with tarfile.open(fileobj=(out := io.BytesIO()), mode='w', format=tarfile.PAX_FORMAT) as t:
            t.addfile(info, io.BytesIO(b'1234'))
            for name, raw in files.items():
                info = tarfile.TarInfo(name); info.size = len(raw)
                t.addfile(info, io.BytesIO(raw))
        return archive(out.getvalue(), 'tar', None, SENTENCE if headers.get('path') == '../x' else None)
    return _fault


ARCHIVES |= {'PAX: another name': _pax(path='../x'), 'PAX: a size': _pax(size='99999999999999'),
             'PAX: a size below zero': _pax(size='-5'), 'PAX: a size that is none': _pax(size='many'),
             'PAX: sparse': _pax(**{'GNU.sparse.major': '1', 'GNU.sparse.minor': '0',
                                    'GNU.sparse.realsize': '999999999999', 'GNU.sparse.name': '../x'}),
             'PAX: sparse, an old one': _pax(**{'GNU.sparse.map': '0,4', 'GNU.sparse.size': '99999999999'})}


@arch('sparse')
def _(rng, files):
    "A file of holes, as GNU tar writes it: 100 kB of which 512 bytes are there"
    info, real = tarfile.TarInfo('holes'), 100_000
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = f'{0:011o}\0{512:011o}\0'.encode()
    head[483:495] = f'{real:011o}\0'.encode()
    head[148:156] = b' '*8
    head[148:156] = f'{sum(head):06o}\0 '.encode()
    return archive(bytes(head) + b'x'*512 + tarred(files, form=tarfile.GNU_FORMAT), 'tar',
                   files | {'holes': b'x'*512 + bytes(real - 512)}, None)


@arch('a sparse bomb')
def _(rng, files):
    info = tarfile.TarInfo('holes'); info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = f'{0:011o}\0{512:011o}\0'.encode()
    head[483:495] = b'07777777777\0'
    head[148:156] = b' '*8
    head[148:156] = f'{sum(head):06o}\0 '.encode()
    return archive(bytes(head) + b'x'*512 + tarred(files, form=tarfile.GNU_FORMAT), 'tar', None, SENTENCE)


@arch('a bomb')
def _(rng, files):
    kind = pick(rng, ['zip', 'tar.gz'])
    return archive(zipped(files | {'zeros': bytes(2*10**8)}) if kind == 'zip'
                   else gzip.compress(tarred(files | {'zeros': bytes(2*10**8)}), 1), kind, None, SENTENCE)


@arch('more members than anybody has')
def _(rng, files):
    return archive((zipped if (z := rng.random() < .5) else tarred)({f'{k}': b'' for k in range(20_001)}),
                   'zip' if z else 'tar', None, SENTENCE)


@arch('archives within it')
def _(rng, files):
    "They stay as they are"
    inside = {'z.zip': zipped(files), 't.tar': tarred(files),
              'deep.zip': zipped({'a.zip': zipped({'b.zip': zipped(files)})})}
    return archive((zipped if (z := rng.random() < .5) else tarred)(inside), 'zip' if z else 'tar', inside)


@arch('a comment, and something before it')
def _(rng, files):
    with zipfile.ZipFile(out := io.BytesIO(), 'w') as z:
        for name, raw in files.items(): z.writestr(name, raw)
        z.comment = rng.bytes(60000)
    return archive(out.getvalue() if rng.random() < .5 else b'PK, said the script\n' + out.getvalue(), 'zip', files,
                   None)


# ---- trees of folders and archives from which a series is read; (rng, files of the series) to (a function that makes
# the tree, must)

def tree(build, must=RIGHT): return SimpleNamespace(build=build, must=must)


def put(folder, files):
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def nested(levels, width):
    "Archives within archives, nothing in the last of them"
    inner = b'nothing'
    for level in range(levels): inner = zipped({f'{k}.zip' if level else f'{k}.txt': inner for k in range(width)})
    return inner


def put_links(folder, files):
    put(folder / 's', files)
    for k in range(6): (folder / f's/link{k}').symlink_to('..' if k % 2 else '.')


def lying(count, size=2**31 - 1):
    "A zip whose directory lists one small member many times, each said to be vast"
    raw = bytearray(zipped({'0': bytes(2**20)}))
    k, end = raw.index(b'PK\1\2'), raw.index(b'PK\5\6')
    raw[k + 24:k + 28] = size.to_bytes(4, 'little')
    entries, tail = raw[k:end]*count, raw[end:]
    tail[8:10] = tail[10:12] = count.to_bytes(2, 'little')
    tail[12:16] = len(entries).to_bytes(4, 'little')
    return bytes(raw[:k] + entries + tail)


def zip_in(folder, raw): (folder / 's.zip').write_bytes(raw)


TREES = {
    'a folder': tree(lambda d, f: put(d / 's', f)),
    'folders in folders': tree(lambda d, f: put(d / 's', below(f, 'a/b/c/d'))),
    'a zip of a series': tree(lambda d, f: zip_in(d, zipped(below(f)))),
    'a zip in a zip': tree(lambda d, f: zip_in(d, zipped({'x/y.zip': zipped(f)}))),
    'a zip in a zip in a zip': tree(lambda d, f: zip_in(d, zipped({'a.ZIP': zipped({'b.zip': zipped(below(f))})}))),
    'a zip in a folder': tree(lambda d, f: put(d / 's', {'z.zip': zipped(f)})),
    'a tar in a zip': tree(lambda d, f: zip_in(d, zipped({'a.tar': tarred(f)})), SENTENCE),
    'names that lead out': tree(lambda d, f: zip_in(d, zipped({f'../../{n}': raw for n, raw in f.items()})), None),
    'names from a root': tree(lambda d, f: zip_in(d, zipped({f'/{n}': raw for n, raw in f.items()})), None),
    'names of Windows': tree(lambda d, f: zip_in(d, zipped({f'a\\b\\{n}': raw for n, raw in f.items()}))),
    'encrypted members': tree(lambda d, f: zip_in(d, _patch_zip(8, b'\1\0', (b'PK\1\2', b'PK\3\4'))(None, f).raw),
                              SENTENCE),
    'a zip cut off': tree(lambda d, f: zip_in(d, (z := zipped(f))[:len(z)//2]), SENTENCE),
    'another checksum': tree(lambda d, f: zip_in(d, _patch_zip(16, b'abcd')(None, f).raw), SENTENCE),
    'archives without end': tree(lambda d, f: zip_in(d, nested(6, 8)), SENTENCE),
    'a zip of vast members': tree(lambda d, f: zip_in(d, lying(9)), SENTENCE), 'links that lead back': tree(put_links),
    'deep folders': tree(lambda d, f: zip_in(d, zipped(below(f, '/'.join('d'*60)))), None),
    'a zip of nothing': tree(lambda d, f: zip_in(d, zipped({})), SENTENCE),
    'an empty zip': tree(lambda d, f: zip_in(d, b''), SENTENCE),
    'an empty folder': tree(lambda d, f: (d / 's').mkdir(), SENTENCE),
    'names with escapes': tree(lambda d, f: zip_in(d, zipped({f'\x1b[2J{n}': raw for n, raw in f.items()})), None),
    'names of no UTF-8': tree(lambda d, f: zip_in(d,
                                        zipped({f'aXb{n}': raw for n, raw in f.items()}).replace(b'aXb', b'a\xffb')),
                              None)}
