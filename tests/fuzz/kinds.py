"""What is damaged and how: for each kind a function that makes something sound once, and one that spoils it and says
what to do with it."""
import csv
import gzip
import hashlib
import io
import json
import os
from types import SimpleNamespace
import shutil
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from commands import cells, checked, command, converted as converted_whole, measured, predicted, same, seen, strict_json
from faults import ARCHIVES, NIFTI, RIGHT, SENTENCE, SERIES, TREES, pick, put

from liverseg.check import examine
from liverseg.convert import convert, import_slices
from liverseg.data import training_table
from liverseg.manifest import check_slices, read_manifest
from liverseg.pixels import read_form
from liverseg.layouts import find_cases
from liverseg.cases import Case, read_volume
from liverseg.archive import unpack
from liverseg.network import build_net
from liverseg.phantom import make_subject, write_subject
from liverseg.predict import Segmenter, predict
from liverseg.compare import evaluate_masks
from liverseg.save import describe, load_model, save_model
from liverseg.volume import AIR, check_same_grid
from liverseg.nifti import as_volume, write_mask
from liverseg.work import from_cell

ODD = [0, -1, 1, 2, 7, 255, 2**15 - 1, -2**15, 2**31 - 1, -2**31, 2**63 - 1, 1e-30, -.0, .5, 1e30, 1e308, np.nan,
       np.inf, -np.inf]
TEXT = ['', ' ', '-1', '0', '1', '1.5', '1e30', 'nan', 'inf', '-inf', '9'*30, '9'*5000, '=1+1', '@SUM(A1)', '\0',
        'a\0b', '../x', '/etc/passwd', 'a/b', 'é', '٣', '\x1b[2J', '"', '\n', ',', 'None', '1\\2', 'x'*300, 'test',
        'TRAIN', '\ufeff', '\u202e']


def nth(names, k):
    "All names in turn, in an order in which the first hundred are of all sorts"
    names = sorted(names)
    return names[np.random.default_rng(1).permutation(len(names))[k % len(names)]]


def bytes_spoiled(rng, raw, most=8, upto=None):
    "A copy with bytes changed, cut, repeated or added"
    raw, how = bytearray(raw), rng.integers(6)
    if how < 3:
        for at in rng.integers(0, max(1, min(len(raw), upto or len(raw))), rng.integers(1, most + 1)):
            raw[at] = rng.integers(256)
    elif how == 3: del raw[rng.integers(len(raw)):]
    elif how == 4: at = rng.integers(len(raw)); del raw[at:at + rng.integers(1, 64)]
    else: raw += rng.bytes(rng.integers(1, 2000))
    return bytes(raw)


def once(func, **facts):
    "A function with facts about it"
    for key, value in facts.items(): setattr(func, key, value)
    return func


# ---- NIfTI

FIELDS = {'sizeof_hdr': (0, 'i'), 'dim0': (40, 'h'), 'dim1': (42, 'h'), 'dim2': (44, 'h'), 'dim3': (46, 'h'),
          'dim4': (48, 'h'), 'datatype': (70, 'h'), 'bitpix': (72, 'h'),
          'pixdim0': (76, 'f'), 'pixdim1': (80, 'f'), 'pixdim3': (88, 'f'), 'vox_offset': (108, 'f'),
          'slope': (112, 'f'), 'inter': (116, 'f'), 'units': (123, 'B'),
          'qform': (252, 'h'), 'sform': (254, 'h'), 'quatern': (256, 'f'), 'qoffset': (268, 'f'), 'srow_x': (280, 'f'),
          'srow_y': (300, 'f'), 'srow_z': (320, 'f'), 'magic': (344, '4s')}
TYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4', 1024: 'i8', 1280: 'u8'}


def sound_scan(folder):
    "A subject, its mask, a network that has learned nothing, and what the network that ships finds on small squares"
    s = make_subject(3, shape=(24, 20, 6))
    return s, Segmenter(build_net('lite').eval(), describe('lite', 64), 'none'), known_scan(s, folder)


def known_scan(s, folder):
    "A scan, its labels, and its mask by a network whose folder is kept"
    net, meta = load_model('liver')
    save_model(net, meta | dict(size=128), folder / 'ships', half=True)
    mask = Segmenter.load(folder / 'ships', 'cpu').segment(as_volume(nib.Nifti1Image(s.hu, s.affine), 'a')).mask
    assert mask.any()
    return SimpleNamespace(hu=s.hu, labels=s.labels, affine=s.affine, mask=mask, other=np.roll(s.labels, 1, 0),
                           model=folder / 'ships')


def lie(rng, raw):
    "A header that says something else"
    raw = bytearray(raw)
    at, kind = FIELDS[pick(rng, list(FIELDS))]
    values = {'f': ODD,
              'h': [v for v in ODD if v == v and abs(v) < 2**15 and v == int(v)] + list(TYPES)
              + [3, 6, 20, 24, 128, 1536], 'i': [0, 540, -1, 349], 'B': [*range(0, 40, 3)],
              '4s': [b'ni1\0', b'n+2\0', b'', b'n+9\0']}[kind]
    value = pick(rng, values)
    struct.pack_into('<' + kind, raw, at, value if kind in ('f', '4s')
                     else int(value)) if kind != 'f' or abs(value) < 3e38 or not np.isfinite(value) else None
    return bytes(raw)


def plain_reader(raw):
    """The voxels of an uncompressed little-endian NIfTI-1 file, sorted, as the standard has it; None where it would
    take more"""
    if raw[:4] != b'\x5c\1\0\0' or raw[344:348] != b'n+1\0': return None
    dim, (kind, _) = struct.unpack_from('<8h', raw, 40), struct.unpack_from('<2h', raw, 70)
    offset, slope, inter = struct.unpack_from('<3f', raw, 108)
    whole = np.isfinite([offset, slope, inter]).all()
    if not 1 <= dim[0] <= 7 or min(dim[1:dim[0] + 1]) < 1 or kind not in TYPES or not whole:
        return None
    n = int(np.prod(dim[1:dim[0] + 1], dtype=object))
    if offset < 348 or offset + n*np.dtype(TYPES[kind]).itemsize > len(raw): return None
    with np.errstate(all='ignore'):
        data = np.frombuffer(raw, '<' + TYPES[kind], n, int(offset)).astype(float)
        return levelled(data*slope + inter if slope and (slope, inter) != (1, 0) else data)


def levelled(data):
    "Sorted numbers, what was never measured being air"
    data = np.asarray(data, float).ravel()
    return np.sort(np.where(np.isfinite(data) & (np.abs(data) < 3e38) & (data > AIR), data, AIR))


def spoil_nifti(rng, base, folder, case=0):
    """A scan with a fault that has a name, or in one of four forms with bytes changed; it is read, examined, converted
    or segmented"""
    subject, segmenter, whole = base
    if case % 3: return told_nifti(rng, whole, folder, nth(NIFTI, case - case//3 - 1))
    hu = subject.hu if rng.random() < .5 else subject.hu.astype(pick(rng, ['f4', 'f8', 'i4']))
    if hu.dtype.kind == 'f' and rng.random() < .5:
        hu[tuple(rng.integers(0, n) for n in hu.shape)] = pick(rng, [np.nan, np.inf, 1e38]); hu[:, 0] = np.nan
    raw = nib.Nifti1Image(hu, subject.affine).to_bytes()
    for _ in range(rng.integers(0, 4)): raw = lie(rng, raw) if rng.random() < .8 else bytes_spoiled(rng, raw, upto=352)
    if rng.random() < .15: raw = bytes_spoiled(rng, raw)
    form = pick(rng, ['a.nii', 'a.nii.gz', 'a.nii', 'a.nii.gz', 'a.hdr', 'a.NII'])
    nii = folder / 'train/nii'
    nii.mkdir(parents=True)
    file, whole = nii / form.replace('a', 'a_orig', 1), True
    if form == 'a.nii.gz':
        packed = gzip.compress(raw, 1)
        if rng.random() < .3: packed, whole = bytes_spoiled(rng, packed), False
        file.write_bytes(packed)
    elif form == 'a.hdr': file.write_bytes(raw[:348]), file.with_suffix('.img').write_bytes(raw[352:])
    else: file.write_bytes(raw)
    truth = plain_reader(raw) if whole and form != 'a.hdr' else None
    write_subject(subject, folder / 'whole', 'a')[1].rename(nii / 'a_liver.nii.gz')
    shutil.rmtree(folder / 'whole')
    return pick(rng,
                [once(lambda out: seen_scan(file, truth, out), may_leave=True), lambda out: converted(folder, out),
                 lambda out: examined(file), lambda out: segmented(file, segmenter, out)])


def labels_on(labels, data):
    if data is None or isinstance(data, tuple) or data.shape == labels.shape: return labels
    return labels.ravel('F')[:data.size].reshape(data.shape, order='F')


def told_nifti(rng, base, folder, name):
    "A scan, or a mask, with a fault that has a name, read as it is or by a whole command"
    how = pick(rng, ['seen', 'seen', 'mask', 'evaluate', 'evaluate', 'check', 'check', 'convert', 'preview', 'predict'])
    if name.startswith('spacing') and rng.random() < .5: how = 'preview'
    is_mask = how in ('mask', 'evaluate')
    case = NIFTI[name](rng, base.labels.astype(np.int16) if is_mask else base.hu, base.affine, 0 if is_mask else AIR)
    case.labels, case.name = base.labels, name
    named = lambda end, files: {n.replace('a', f'a{end}', 1) if n.startswith('a') else n: raw
                                for n, raw in files.items()}
    nii, first = folder / 'train/nii', next(iter(case.files))
    if how == 'evaluate':
        put(folder / 'truth', case.files), put(folder / 'pred', {})
        (folder / 'pred').mkdir(exist_ok=True)
        at = case.affine if case.data is not None else base.affine
        data = labels_on(base.other, case.data)
        nib.save(nib.Nifti1Image(data, at), folder / 'pred' / 'a.nii.gz')
        base = SimpleNamespace(**{**vars(base), 'other': data})
        func = lambda out: measured(folder / 'pred', folder / 'truth', case, out, base)
        may_be_labels = lambda: case.data is not None and set(np.unique(case.data)) <= {0, 1, 2}
        if not first.endswith(('.nii', '.nii.gz')) or case.must == 'right' and not may_be_labels():
            case.must = None
        return once(func, fault=f'{name} (evaluate)', must=case.must)
    put(nii, named('_orig', case.files))
    file = nii / next(iter(named('_orig', case.files)))
    if how in ('seen', 'mask'):
        return once(lambda out: seen(file, case, out, 0 if is_mask else AIR), may_leave=True, fault=f'{name} ({how})',
                    must=case.must)
    if how == 'predict':
        return once(lambda out: predicted(file, case, out, base), fault=f'{name} ({how})', must=case.must)
    if isinstance(case.data, np.ndarray): case.labels = labels_on(base.labels, case.data)
    if name == 'a mirrored form': case.labels = base.labels[::-1]
    at = case.affine if case.affine is not None else base.affine
    if case.must == 'right' and case.affine is None: case.must = None # the mask does not lie on it
    nib.save(nib.Nifti1Image(case.labels, at), nii / 'a_liver.nii.gz')
    func = dict(check=lambda out: checked(folder, case, out), convert=lambda out: converted_whole(folder, case, out),
                preview=lambda out: converted_whole(folder, case, out, '--preview'))[how]
    return once(func, may_leave=how == 'check', fault=f'{name} ({how})', must=case.must)


def seen_scan(file, truth, out):
    "A volume of finite numbers, those of the file, on whose grid a mask can be written"
    vol = read_volume(file)
    assert vol.data.ndim == 3 and vol.data.size and np.isfinite(vol.data).all() and np.isfinite(vol.affine).all()
    assert min(vol.spacing) > 0
    assert nib.aff2axcodes(vol.affine) == ('R', 'A', 'S')
    if truth is not None:
        found = levelled(vol.data)
        close = len(found) == len(truth) and np.allclose(found, truth, 1e-5, 1e-6*max(1, np.abs(truth).max()))
        assert close, 'other voxels than in the file'
    mask = (np.arange(vol.data.size) % 3 == 0).reshape(vol.data.shape).astype(np.uint8)
    write_mask(mask, vol, out / 'm.nii.gz')
    again = read_volume(out / 'm.nii.gz', fill=0)
    assert (again.data == mask).all()
    check_same_grid(vol, again)


def converted(folder, out):
    "Slices that a training would take"
    convert(folder, out)
    check_slices(out, training_table(out))


def examined(file):
    "A report, which knows what it complains of"
    report = examine(Case('a', 'train', file, file.with_name('a_liver.nii.gz')))
    assert not any('cannot be examined' in e for e in report.errors), report.errors


def segmented(file, segmenter, out):
    "A mask on the scan's grid"
    found = predict(file, out / 'm.nii.gz', segmenter, say=lambda line: None)
    assert found.mask.shape == found.scan.data.shape and found.mask.max() <= 1
    json.dumps(json.loads((out / 'm.json').read_text()), allow_nan=False)


# ---- DICOM

GEOMETRY = ['ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'SliceThickness',
            'SpacingBetweenSlices', 'InstanceNumber', 'SeriesInstanceUID', 'SOPInstanceUID',
            'FrameOfReferenceUID', 'AcquisitionNumber', 'ImageType', 'Modality', 'SOPClassUID', 'NumberOfFrames',
            'StudyInstanceUID']
VALUES = ['RescaleSlope', 'RescaleIntercept', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation',
          'SamplesPerPixel', 'PhotometricInterpretation', 'Rows', 'Columns',
          'PixelPaddingValue', 'PixelPaddingRangeLimit', 'PixelData', 'TransferSyntaxUID']


def sound_series(folder):
    "A series as {name: bytes}, and its values"
    from liverseg.phantom import write_series
    s = make_subject(3, shape=(20, 16, 6))
    files = {p.name: p.read_bytes() for p in write_series(s.hu, s.affine, folder / 's')}
    return files, np.unique(s.hu), known_scan(s, folder)


def other_value(rng, old):
    "Something else for a tag: odd numbers, text, more or fewer of them"
    how = rng.integers(5)
    if how == 0: return ''
    if how == 1: return pick(rng, TEXT)[:64]
    if how == 2: return str(pick(rng, ODD))[:16]
    values = list(old) if isinstance(old, (list, tuple)) or hasattr(old, 'append') else [old]
    if how == 3: return values[:rng.integers(len(values) + 1)] + [pick(rng, ['0', '1', '-1'])]*int(rng.integers(3))
    return [str(pick(rng, ODD))[:16] if rng.random() < .5 else v for v in values]


def retagged(rng, raw, keys):
    "A DICOM file with a tag gone or with another value, or as it was where DICOM cannot say it"
    import pydicom
    ds, key = pydicom.dcmread(io.BytesIO(raw)), pick(rng, keys)
    try:
        where = ds.file_meta if key == 'TransferSyntaxUID' else ds
        if rng.random() < .3: delattr(where, key)
        elif key == 'PixelData': ds.PixelData = bytes_spoiled(rng, ds.PixelData)
        elif key == 'TransferSyntaxUID':
            ending = pick(rng, ['', '.2', '.4.50', '.4.70', '.4.90', '.5', '.1.99'])
            where.TransferSyntaxUID = f'1.2.840.10008.1.2{ending}'
        elif key in VALUES and key not in ('RescaleSlope', 'RescaleIntercept', 'PhotometricInterpretation'):
            setattr(where, key, int(pick(rng, [0, 1, 2, 7, 8, 12, 16, 32, 64, 1000, 65535])))
        else: setattr(where, key, other_value(rng, getattr(ds, key, '1')))
        out = io.BytesIO()
        ds.save_as(out)
        return out.getvalue()
    except Exception: return raw


def spoil_dicom(rng, base, folder, case=0):
    "A series with a fault that has a name, or with tags, bytes or slices changed; a folder or a zip archive"
    if case % 3: return told_dicom(rng, base, folder, nth(SERIES, case - case//3 - 1))
    files, truth = dict(base[0]), base[1]
    names = list(files)
    how = rng.integers(6)
    some = [n for n in names if rng.random() < pick(rng, [.2, 1])] or names[:1]
    if how < 2:
        files |= {n: retagged(np.random.default_rng(k), files[n], GEOMETRY) for k in [int(rng.integers(2**31))]
                  for n in some}
    elif how == 2: files |= {n: retagged(rng, files[n], VALUES) for n in some}; truth = None
    elif how == 3: files |= {n: bytes_spoiled(rng, files[n], upto=pick(rng, [None, 1200])) for n in some}; truth = None
    elif how == 4:
        for n in some: files.pop(n)
    else: files |= {f'again_{n}': files[n] for n in some}
    if rng.random() < .1: files['README.txt'] = rng.bytes(200)
    where = folder / 's'
    if rng.random() < .7:
        where.mkdir()
        for name, raw in files.items(): (where / name).write_bytes(raw)
    else:
        where = folder / 's.zip'
        with zipfile.ZipFile(where, 'w') as z:
            for name, raw in files.items(): z.writestr(f's/{name}', raw)
    return pick(rng,
                [once(lambda out: seen_series(where, truth, out), may_leave=True), lambda out: seen_cases(where, out)])


def told_dicom(rng, base, folder, name):
    "A series with a fault that has a name, in a folder or an archive, read as it is or by a whole command"
    files, _, whole = base
    case = SERIES[name](rng, files, whole.hu, whole.affine)
    where = folder / 's'
    if rng.random() < .6: put(where, case.files)
    else:
        where = folder / 's.zip'
        with zipfile.ZipFile(where, 'w') as z:
            for n, raw in case.files.items(): z.writestr(n, raw)
    how = pick(rng, ['seen', 'seen', 'check', 'convert', 'predict'])
    func = dict(seen=lambda out: seen(where, case, out), check=lambda out: checked(where, case, out),
                convert=lambda out: converted_whole(where, case, out),
                predict=lambda out: predicted(where, case, out, whole))[how]
    return once(func, may_leave=how in ('seen', 'check'), fault=f'{name} ({how})', must=case.must)


def seen_series(where, truth, out):
    "A volume like any other, with no values that no slice has"
    seen_scan(where, None, out)
    if truth is not None:
        assert np.isin(read_volume(where).data, np.r_[truth, AIR]).all(), 'other values than in the files'


def seen_cases(where, out):
    "Cases that can be examined"
    for c in find_cases(where):
        report = examine(c)
        assert not any('cannot be examined' in e for e in report.errors), report.errors


# ---- slices

def sound_slices(folder):
    "What import_slices takes, and what convert makes, 8 bits, 16 bits and three windows"
    s = make_subject(3, shape=(24, 20, 4))
    for kind, data in (('images', np.clip(s.hu//4 + 100, 0, 255)), ('masks', s.labels > 0)):
        (folder / 'raw' / kind).mkdir(parents=True)
        for z in range(4): Image.fromarray(data[..., z].astype(np.uint8)).save(folder / f'raw/{kind}/{z}.png')
    pd.DataFrame(dict(file=[f'{z}.png' for z in range(4)], subject='a', z=range(4),
                      split='train')).to_csv(folder / 'raw/manifest.csv', index=False)
    write_subject(s, folder / 'data/train/nii', 'a')
    for name, how in dict(eight={}, sixteen=dict(bits=16),
                          three=dict(windows=[(-150, 250), (-50, 150), (0, 100)])).items():
        convert(folder / 'data', folder / name, **how)
    return folder


def png_spoiled(rng, raw):
    "A PNG with bytes changed, another mode, another size in its header, or a chunk more"
    how = rng.integers(4)
    if how == 0: return bytes_spoiled(rng, raw)
    if how == 1:
        out = io.BytesIO()
        image = Image.open(io.BytesIO(raw)).convert('L').convert(pick(rng, ['1', 'P', 'RGB', 'RGBA', 'LA', 'I;16']))
        image.save(out, pick(rng, ['PNG', 'PNG', 'TIFF']))
        return out.getvalue()
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    if how == 2:
        header = bytearray(raw[16:29])
        if rng.random() < .5:
            struct.pack_into('>I', header, pick(rng, [0, 4]),
                             int(pick(rng, [0, 1, 19, 21, 8192, 8193, 2**16, 2**31 - 1, 2**32 - 1])))
        else: header[8 + rng.integers(5)] = pick(rng, [0, 1, 2, 3, 4, 6, 8, 16, 255])
        return raw[:8] + chunk(b'IHDR', bytes(header)) + raw[33:]
    more = pick(rng,
                [(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**7))), (b'iCCP', b'a\0\0' + zlib.compress(bytes(10**7))),
                 (b'tRNS', b'\0\0'), (b'gAMA', b'\0\0\0\0'), (b'acTL', b'\0\0\0\2\0\0\0\0'), (b'ABCD', rng.bytes(50)),
                 (b'PLTE', rng.bytes(768)), (b'pHYs', b''), (b'IDAT', zlib.compress(rng.bytes(100)))])
    return raw[:33] + chunk(*more) + raw[33:]


def table_spoiled(rng, raw):
    "A table with cells, columns, rows or bytes changed"
    how, table = rng.integers(5), pd.read_csv(io.BytesIO(raw), dtype=str, keep_default_na=False)
    if how == 0: return bytes_spoiled(rng, raw)
    if how == 1: table = table.drop(columns=pick(rng, list(table)))
    elif how == 2: table = pd.concat([table, table.iloc[[rng.integers(len(table))]]])
    else:
        for _ in range(rng.integers(1, 4)):
            table.iloc[rng.integers(len(table)), rng.integers(table.shape[1])] = pick(rng, TEXT)
    return table.to_csv(index=False).encode()


def json_spoiled(rng, raw):
    "JSON with a value replaced, of any shape and depth, or with bytes changed"
    value = json.loads(raw)
    how = rng.integers(6)
    if how == 0: return bytes_spoiled(rng, raw)
    if how == 1:
        return pick(rng,
                    [b'['*100_000, b'{"a":'*50_000, b'9'*5000, b'', b'null', b'[]', b'"a"', b'\xff\xfe', b'{"a":NaN}',
                     b'1e999'])
    odd = [None, True, False, [], {}, [[]], '', 'a', '\0', 10**400, -1, 0, 1.5, float('nan'), float('inf'), [None]*3,
           [1e308]*3, [10**400]*2, {'a': 1}, 'x'*10**4, [[1, 2]]*9, ['1', '2'], 2**63]
    for _ in range(rng.integers(1, 3)):
        at = value
        while isinstance(at, (dict, list)) and len(at):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = pick(rng, keys)
            if not isinstance(at[key], (dict, list)) or not len(at[key]) or rng.random() < .5:
                if isinstance(at, dict) and rng.random() < .2: del at[key]
                else: at[key] = pick(rng, odd)
                break
            at = at[key]
    return json.dumps(value).encode()


def spoil_slices(rng, base, folder, case=0):
    "Slices of one of four kinds with a picture, the table or the description changed"
    name = pick(rng, ['raw', 'raw', 'eight', 'sixteen', 'three'])
    where = shutil.copytree(base / name, folder / 's')
    pngs = sorted((where).rglob('*.png'))
    how = rng.integers(3 if (where / 'dataset.json').exists() else 2)
    file, spoil = [(pick(rng, pngs), png_spoiled), (where / 'manifest.csv', table_spoiled),
                   (where / 'dataset.json', json_spoiled)][how]
    file.write_bytes(spoil(rng, file.read_bytes()))
    return (lambda out: imported(where, out)) if name == 'raw' else lambda out: seen_slices(where)


def imported(where, out):
    "The same pixels, in a form that a training takes"
    table = import_slices(where, out)
    for row in table.itertuples():
        assert (np.asarray(Image.open(out / row.image)) == np.asarray(Image.open(where / row.source))).all()
    seen_slices(out)


def seen_slices(where):
    "A table of numbers, names and pictures"
    read_form(where)
    table = read_manifest(where)
    assert table['z'].dtype.kind == 'i' and not table.duplicated(['subject', 'z']).any()
    assert np.isfinite(table[['dx', 'dy', 'dz']].dropna()).all(axis=None)
    check_slices(where, training_table(where))


# ---- models

def sound_model(folder):
    "A model folder with a network that has learned nothing"
    save_model(build_net('lite'),
               describe('lite', 64, subjects=dict(train=['a'], valid=[]), temperature=1.,
                        expected=dict(slope=1., offset=0.)), folder / 'm', half=True)
    return folder / 'm'


def weights_spoiled(rng, raw):
    "A safetensors file with its header, its numbers or its bytes changed"
    n = int.from_bytes(raw[:8], 'little')
    how = rng.integers(4)
    if how == 0: return bytes_spoiled(rng, raw, upto=pick(rng, [8, n, None]))
    if how == 1: return pick(rng, [2**63, 10**9, 0, 1, n - 1, n + 1]).to_bytes(8, 'little') + raw[8:]
    if how == 2:
        out, value = bytearray(raw), np.float16(pick(rng, [np.nan, np.inf, 6e4, 1, 0])).tobytes()
        for at in rng.integers((n + 8)//2, len(raw)//2, 20): out[2*at:2*at + 2] = value
        return bytes(out)
    head = json_spoiled(rng, raw[8:8 + n])
    return len(head).to_bytes(8, 'little') + head + raw[8 + n:]


def spoil_model(rng, base, folder, case=0):
    "A model whose description or weights are changed, the promised SHA-256 with them, or neither"
    meta, weights = (base / 'model.json').read_bytes(), folder / 'model.safetensors'
    if (how := rng.random()) < .5:
        if how > .2: meta = json_spoiled(rng, meta)
        os.link(base / 'model.safetensors', weights)
    else:
        weights.write_bytes(weights_spoiled(rng, (base / 'model.safetensors').read_bytes()))
        if rng.random() < .9:
            meta = json.dumps(json.loads(meta) | dict(sha256=hashlib.sha256(weights.read_bytes()).hexdigest())).encode()
    (folder / 'model.json').write_bytes(meta)
    return lambda out: answering(folder)


def answering(path):
    "A network that gives numbers"
    seg = Segmenter.load(path, 'cpu')
    import torch
    with torch.no_grad(): assert seg.net(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    json.dumps(seg.meta)


def sound_onnx(folder):
    "The same network as ONNX"
    from liverseg.save import export_onnx
    return export_onnx(folder / 'm.onnx', sound_model(folder)).read_bytes()


def spoil_onnx(rng, base, folder, case=0):
    "An ONNX file with bytes, its description, its nodes or the shapes of its weights changed, or nothing"
    import onnx
    file = folder / 'm.onnx'
    if (how := rng.integers(4)) == 3: file.write_bytes(base)
    elif how == 0: file.write_bytes(bytes_spoiled(rng, base, upto=pick(rng, [200, 5000, None])))
    else:
        model = onnx.load_from_string(base)
        if how == 1:
            prop = model.metadata_props[0]
            prop.value = json_spoiled(rng, prop.value.encode()).decode(errors='replace')
        elif rng.random() < .5: del model.graph.node[rng.integers(len(model.graph.node))]
        else: pick(rng, list(model.graph.initializer)).dims.append(int(pick(rng, [0, 2, 2**31, -1])))
        file.write_bytes(model.SerializeToString())
    return lambda out: answering(file)


# ---- archives

NAMES = ['a.nii', 'd/b.nii', 'd/e/f.txt', '../x', '/x', 'C:\\x', '..\\x', 'd/../../x', 'd', 'd/b.nii/x', '', '.', ' ',
         'a\0b', 'n'*300, 'é', 'A.NII', '__MACOSX/a', '.hidden', 'CON', 'x.', '\x1b[2J', 'd//x', './a.nii']


def spoil_archive(rng, base, folder, case=0):
    """A zip or tar file with a fault that has a name, or with odd names, links, holes, archives within it, or bytes
    changed"""
    if case % 4 == 3: return told_tree(rng, base, folder, nth(TREES, case//4))
    if case % 4: return told_archive(rng, folder, nth(ARCHIVES, case - case//4*2 - 1))
    out, kind = io.BytesIO(), pick(rng, ['zip', 'tar', 'tar.gz'])
    names = [pick(rng, NAMES) if rng.random() < .3 else f'd/{k}.nii' for k in range(pick(rng, [1, 3, 5, 300]))]
    if kind == 'zip':
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            for name in names:
                info = zipfile.ZipInfo(name or 'x')
                if rng.random() < .05: info.external_attr = int(pick(rng, [0o120777, 0o020777, 0o040777])) << 16
                z.writestr(info, rng.bytes(rng.integers(200)) if rng.random() < .95 else bytes(10**6))
    else:
        with tarfile.open(fileobj=out, mode='w:gz' if kind == 'tar.gz' else 'w',
                          format=pick(rng, [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as t:
            for name in names:
                info = tarfile.TarInfo(name.replace('\0', '')); info.size = int(rng.integers(200))
                if rng.random() < .05:
                    info.type, info.linkname = pick(rng,
                                                    [(tarfile.SYMTYPE, '/etc'), (tarfile.LNKTYPE, '../x'),
                                                     (tarfile.FIFOTYPE, ''), (tarfile.DIRTYPE, ''),
                                                     (tarfile.CHRTYPE, ''), (tarfile.GNUTYPE_SPARSE, '')])
                t.addfile(info, io.BytesIO(rng.bytes(info.size)))
    raw = out.getvalue()
    if rng.random() < .4: raw = bytes_spoiled(rng, raw, most=3)
    if rng.random() < .1:
        with zipfile.ZipFile(out := io.BytesIO(), 'w') as z: z.writestr('d/inner.zip', raw)
        raw, kind = out.getvalue(), 'zip'
    file = folder / f'a.{kind}'
    file.write_bytes(raw)
    if kind == 'zip' and rng.random() < .5: return lambda out: seen_cases(file, out)
    return once(lambda out: unpacked(file, out), may_leave=True)


# what archives hold
FILES = {'a/b.txt': b'text'*10, 'a/c.nii': bytes(range(256))*40, 'e.txt': b'', 'f/g/h.bin': b'h'*70000}


def told_archive(rng, folder, name):
    "An archive with a fault that has a name: its files come out as they are, and nothing else"
    case = ARCHIVES[name](rng, FILES)
    file = folder / f'a.{case.ending}'
    file.write_bytes(case.raw)
    return once(lambda out: unpacked(file, out, case.out), may_leave=True, fault=name, must=case.must)


def told_tree(rng, base, folder, name):
    "A series that lies somewhere below: the volume, or a sentence"
    files, _, whole = base
    TREES[name].build(folder, files)
    where, how = next(folder.iterdir()), pick(rng, ['seen', 'seen', 'check', 'predict'])
    # check looks for a data set, and not as deep
    must = None if how == 'check' and TREES[name].must == RIGHT else TREES[name].must
    case = SimpleNamespace(data=whole.hu, affine=whole.affine, must=must, note=None)
    func = dict(seen=lambda out: seen(where, case, out), check=lambda out: checked(where, case, out),
                predict=lambda out: predicted(where, case, out, whole))[how]
    return once(func, may_leave=how != 'predict', fault=f'{name} ({how})', must=must)


def unpacked(file, out, files=None):
    "Plain files, all of them below the folder, with the bytes that they have in the archive"
    names = unpack(file, out, say=lambda line: None)
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if not p.is_dir()
             and not p.is_symlink()}
    assert set(found) == set(n.replace('//', '/') for n in names) and not any(p.is_symlink() for p in out.rglob('*'))
    if files is not None:
        same_files = found in (files, {n.replace('\\', '/'): raw for n, raw in files.items()})
        assert same_files, f'other files than in the archive: {sorted(set(found) ^ set(files))[:4]}'


# ---- tables

def sound_tables(folder):
    """Slices as import_slices takes them and as convert makes them, a report and the masks that it is about,
    TotalSegmentator's table"""
    sound_slices(folder)
    known = known_scan(make_subject(3, shape=(24, 20, 6)), folder)
    for name in ('a', 'b'):
        for kind, data in (('pred', known.other), ('truth', known.labels)):
            (folder / 'masks' / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(data, known.affine), folder / f'masks/{kind}/{name}.nii.gz')
        for part, data in (('ct', known.hu), ('segmentations/liver', (known.labels > 0).astype(np.uint8))):
            (folder / 'total' / name / 'segmentations').mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(data + (name == 'b')*(part == 'ct'), known.affine),
                     folder / f'total/{name}/{part}.nii.gz')
    (folder / 'total/meta.csv').write_text('image_id;age;split\na;50;train\nb;60;test\n')
    evaluate_masks(folder / 'masks/pred', folder / 'masks/truth', folder / 'report', say=lambda line: None)
    import_slices(folder / 'raw', folder / 'imported')
    convert(folder / 'data', folder / 'shipped', windows=load_model('liver')[1]['window'])
    evaluated(folder / 'three_rows', folder / 'shipped', known.model)
    return SimpleNamespace(folder=folder, model=known.model, rows=cells(folder / 'imported/manifest.csv'),
                           dice=strict_json(folder / 'three_rows/summary.json')['mean_case_dice'])


def evaluated(report, data, model):
    command('evaluate', data, report, '--model', model, '--split', 'train', '--device', 'cpu')


def _cell(column, value, must=SENTENCE, row=1):
    def _change(rng, table): table.loc[row, column] = value; return table
    return _change, must


def _text(change, must=RIGHT): return lambda rng, table: change(table.to_csv(index=False)), must


SAME = { # what is done to a table of any kind that leaves it what it is, or makes it none
    'nothing': (lambda rng, table: table, RIGHT),
        'columns in another order': (lambda rng, table: table[list(table)[::-1]], RIGHT),
        'a column more': (lambda rng, table: table.assign(more='x'), RIGHT),
        'lines of Windows': _text(lambda t: t.replace('\n', '\r\n')),
    'everything quoted': (lambda rng, table: table.to_csv(index=False, quoting=1), RIGHT),
        'a mark of UTF-8': _text(lambda t: '\ufeff' + t, None), 'no line at the end': _text(str.strip),
        'an empty line at the end': _text(lambda t: t + '\n'),
        'a cell more in a row': _text(lambda t: t.rstrip() + ',,,x\n', None),
        'a row of nothing': _text(lambda t: t + ',\n', SENTENCE),
    'UTF-16': (lambda rng, table: table.to_csv(index=False).encode('utf-16'), SENTENCE),
        'no UTF-8': (lambda rng, table: table.to_csv(index=False).encode().rstrip() + b'\xff\n', SENTENCE),
        'zeros': (lambda rng, table: bytes(500), SENTENCE), 'empty': (lambda rng, table: b'', SENTENCE),
        'a header alone': (lambda rng, table: table.iloc[:0], None),
        'a quote that never ends': _text(lambda t: t.rstrip() + '\n"', SENTENCE),
        'NUL': _text(lambda t: t.replace(',', '\0,', 1), None),
    'a column missing': (lambda rng, table: table.drop(columns=list(table)[0]), SENTENCE),
        'a column twice': _text(lambda t: '\n'.join(f'{line},{line.split(",")[0]}' for line in t.split('\n') if line),
                                None), 'a row twice': (lambda rng, table: pd.concat([table, table.iloc[:1]]), SENTENCE),
        'a cell of a million letters': (lambda rng, table: table.assign(more='x'*10**6), RIGHT)}
RAW = { # of import_slices
    f'{column} {str(value)[:30]!r}': _cell(column, value, must) for column, values, must in (
        ('z', ['1'*23, '٣', '-1', '1.5', 'nan', 'inf', '', '1e3', '0x1', '2'], SENTENCE),
        ('subject', ['', 'a/b', '../a', 'a\\b', 'a\0b', 'a\nb', '\x1b[2J', 'b'*300], SENTENCE),
        ('split', ['', 'Train', 'all', 'test', '=1+1', '../x'], SENTENCE),
        ('file', ['', '.', '..', 'none.png', '../../x.png', '/etc/passwd', 'x'*5000, 'a\nb'], SENTENCE))
       for value in values}
MADE = { # of convert
    f'{column} {str(value)[:30]!r}': _cell(column, value, must) for column, values, must in (
        ('z', ['1'*23, '-1'*9, '1.5', 'nan', 'inf', '', '0'], SENTENCE),
        ('dx', ['0', '-1', 'inf', '1e999', '-0'], SENTENCE), ('dy', ['0'], SENTENCE), ('dz', ['0', '-inf'], SENTENCE),
        ('dx', ['', 'wide', 'nan'], None), ('subject', [''], SENTENCE), ('subject', ['b'], None),
        ('split', ['', 'Train', 'test'], SENTENCE),
        ('image', ['', '.', 'none.png', '/etc/passwd', '../../../etc/passwd', 'x'*5000, 'a\0b'], SENTENCE),
        ('mask', ['.', 'none.png', '/etc/passwd', 'x'*5000], SENTENCE), ('mask', [''], None),
        ('liver_px', ['', '-1', 'nan', '1e999', 'many'], None), ('source', ['', '=1+1', '\x1b[2J', 'x'*9000], RIGHT))
        for value in values}
CASES = {f'{column} {value!r}': _cell(column, value, must)
         for column, values, must in (('dice', ['many', '٣', '1 2'], SENTENCE),
                                      ('dice', ['inf', '1e999', '-1', 'nan', ''], None),
                  ('subject', ['', 'c', 'a'], SENTENCE)) for value in values}
TOTAL = {f'{column} {value!r}': _cell(column, value, must)
         for column, values, must in (('split', ['', 'all', '=1+1', 'test;'], None),
                                      ('split', ['TEST', ' test ', 'val'], RIGHT),
                  ('image_id', ['', 'x', 'a'], None)) for value in values}
TABLES = [(kind, name) for kind, faults in dict(raw=RAW, made=MADE, cases=CASES, total=TOTAL).items()
          for name in [*SAME, *faults]]


def spoil_table(rng, base, folder, case=0):
    """One of four tables with a fault that has a name; the command that reads it does what it does with the sound one,
    or says why not"""
    kind, name = nth(TABLES, case)
    change, must = (SAME | dict(raw=RAW, made=MADE, cases=CASES, total=TOTAL)[kind])[name]
    where = shutil.copytree(base.folder / dict(raw='raw', made='shipped', cases='report', total='total')[kind],
                            folder / 's')
    file = where / dict(cases='cases.csv', total='meta.csv').get(kind, 'manifest.csv')
    table = pd.read_csv(file, dtype=str, keep_default_na=False, sep=';' if kind == 'total' else ',')
    new = change(rng, table.copy())
    if isinstance(new, pd.DataFrame): new = new.to_csv(index=False)
    file.write_bytes(new if isinstance(new, bytes) else new.encode())
    # columns that nobody reads
    if kind == 'total' and must == SENTENCE and name in SAME or kind == 'cases' and name == 'a column missing':
        must = None
    # numbers alone, and csv's limit
    harmless = dict(cases=('a column more', 'a cell of a million letters'), total=('a cell of a million letters',))
    if name in harmless.get(kind, ()):
        must = None
    func = dict(raw=lambda out: imported_as(where, out, base, must),
                made=lambda out: measured_as(where, out, base, must), cases=lambda out: against(where, out, base),
                total=lambda out: split_by(where, out, name))[kind]
    return once(func, may_leave=kind in ('cases', 'total'), fault=f'{kind}: {name}', must=must)


def imported_as(where, out, base, must):
    command('import-slices', where, out)
    rows = cells(out / 'manifest.csv')
    if must == RIGHT: assert rows == base.rows, 'other slices than from the sound table'
    seen_slices(out)


def measured_as(where, out, base, must):
    evaluated(out, where, base.model)
    found = strict_json(out / 'summary.json')
    cells(out / 'cases.csv'), cells(out / 'slices.csv')
    if must == RIGHT: assert found['mean_case_dice'] == base.dice


def against(where, out, base):
    command('evaluate', '--pred', base.folder / 'masks/pred', '--truth', base.folder / 'masks/truth', out, '--against',
            where)
    strict_json(out / 'against.json'), cells(out / 'against.csv')


def split_by(where, out, name):
    command('check', where, '--json', out / 'r.json')
    splits = {s['subject']: s['split'] for s in strict_json(out / 'r.json')['subjects']}
    if name == 'nothing': assert splits == dict(a='train', b='test')
    if 'TEST' in name or ' test ' in name: assert splits['b'] == 'test'
    if "'val'" in name: assert splits['b'] == 'valid'


# ---- names

CALLED = ['$x^2$', '$', '$\\frac{', 'a^b_c', '\\alpha', '%s', '{}', '{0}', 'NA', 'nan', 'None', 'null', 'inf', '007',
          '1e5', 'True', '=1+1', '-2', '+1', '@SUM(A1)', "'=3", "'", "''", '"', 'a,b', 'a;b', ' a;=1+1', ' =1+1', ' a',
          'a ', 'a.', '...a', 'CON', 'nul', '-rf', '--help', '~', '$HOME', '*', '?', '[a]', '!', '#', '&amp;', '<b>',
          '<script>alert(1)', "' onload=1 '", '\r', 'a\rb', 'a\nb', '\t=1', 'a\tb', '\x1b[2J', '\x07', '\x7f', '\x85',
          '\u2028', '\u202ea', '\ufeffa', 'é', 'e\u0301', '肝', 'ß', 'İ', '\U0001f600', '\udcff', 'a\udcffb', 'x'*200,
          'é'*100, 'x'*240, 'test', 'train', 'images', 'masks', 'manifest.csv', 'a_orig', '_orig', 'a_liver', 'a.nii',
          'a.nii.gz', '.hidden', 'a\\b', 'C:x', '%2e%2e', ' ', '  ', '\u3000']


# on a terminal, or on a table
def acts(name): return any((kind := unicodedata.category(c))[0] == 'C' or kind in ('Zl', 'Zp') for c in name)


def sound_names(folder): return known_scan(make_subject(3, shape=(24, 20, 6)), folder)


def spoil_names(rng, base, folder, case=0):
    """A subject with an odd name in a whole command: it is called so in every table, and nowhere a formula, a mark-up,
    an escape or another file"""
    name, how = nth([(name, how) for name in CALLED for how in ('check', 'convert', 'predict', 'evaluate')], case)
    odd = acts(name)
    sound = [n for n in CALLED if not acts(n) and len(n) < 150 and n[0] != '.' and n != name]
    others = ['other', *rng.choice(sound, 6 if how == 'evaluate' else 1, replace=False).tolist()]
    try:
        if how in ('check', 'convert'):
            put(folder / 'train/nii',
                {f'{name}_orig.nii.gz': volume_bytes(base.hu, base),
                 f'{name}_liver.nii.gz': volume_bytes(base.labels, base)})
        else:
            put(folder / ('scans' if how == 'predict' else 'pred'),
                {f'{n}.nii.gz': volume_bytes(base.hu if how == 'predict' else base.other, base)
                 for n in (name, *others)})
        if how == 'evaluate':
            put(folder / 'truth', {f'{n}.nii.gz': volume_bytes(base.labels, base) for n in (name, *others)})
    except OSError: name, odd = 'too long', None
    func = dict(check=named_check, convert=named_convert, predict=named_predict, evaluate=named_evaluate)[how]
    return once(lambda out: func(folder, out, base, name, {*others, *([name] if name[0] != '.' else [])}),
                may_leave=how == 'check' or how == 'predict' and len(name) > 200, fault=f'{name!r} ({how})',
                must=None if odd in (True, None) or len(name) > 150 or name.startswith('.') else RIGHT)


def volume_bytes(data, base): return gzip.compress(nib.Nifti1Image(data, base.affine).to_bytes(), 1)


def named_check(folder, out, base, name, all_names):
    command('check', folder, '--json', out / 'r.json')
    subject, = strict_json(out / 'r.json')['subjects']
    assert subject['subject'] == name


def named_convert(folder, out, base, name, all_names):
    command('convert', folder, out, '--preview')
    rows = list(csv.DictReader((out / 'manifest.csv').open(newline='', encoding='utf-8'), strict=True))
    assert {r['subject'] for r in rows} == {name}
    assert all((out / r['image']).is_file() and (out / r['mask']).is_file() for r in rows)
    assert set(read_manifest(out)['subject']) == {name}
    seen_slices(out)


def named_predict(folder, out, base, name, all_names):
    command('predict', folder / 'scans', out, '--model', base.model, '--device', 'cpu')
    told = {from_cell(r['scan']) for r in cells(out / 'results.csv')}
    assert told == {f'{n}.nii.gz' for n in all_names}, told
    for n in told: same(read_volume(out / n, fill=0).data, base.mask, 'mask')
    page = (out / 'triage.html').read_text(encoding='utf-8')
    assert '<script>alert' not in page and '<b>.nii' not in page


def named_evaluate(folder, out, base, name, all_names):
    command('evaluate', '--pred', folder / 'pred', '--truth', folder / 'truth', out / 'one')
    command('evaluate', '--pred', folder / 'pred', '--truth', folder / 'truth', out / 'two', '--against', out / 'one')
    for table in ('cases.csv', 'slices.csv', 'against.csv'):
        assert {from_cell(r['subject']) for r in cells(out / 'two' / table)} == all_names, table
    assert {r['subject'] for r in strict_json(out / 'two/summary.json')['rows']} == all_names
    assert strict_json(out / 'two/against.json')['measures']['dice']['cases'] == len(all_names)
    page = (out / 'two/report.html').read_text(encoding='utf-8')
    assert '<script>alert' not in page and '<b><' not in page


KINDS = dict(nifti=(sound_scan, spoil_nifti), dicom=(sound_series, spoil_dicom), slices=(sound_slices, spoil_slices),
             table=(sound_tables, spoil_table), names=(sound_names, spoil_names),
             model=(sound_model, spoil_model), onnx=(sound_onnx, spoil_onnx), archive=(sound_series, spoil_archive))
