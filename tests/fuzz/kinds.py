"What is damaged and how: for each kind a function that makes something sound once, and one that spoils it and says what to do with it."
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from liverseg.check import examine
from liverseg.convert import convert, import_slices
from liverseg.data import check_slices, read_manifest, training_table
from liverseg.pixels import read_form
from liverseg.layouts import Case, find_cases
from liverseg.download import unpack
from liverseg.network import build_net
from liverseg.phantom import make_subject, write_subject
from liverseg.predict import Segmenter, predict
from liverseg.save import describe, load_model, save_model
from liverseg.volume import AIR, check_same_grid, read_volume, write_mask

ODD = [0, -1, 1, 2, 7, 255, 2**15 - 1, -2**15, 2**31 - 1, -2**31, 2**63 - 1, 1e-30, -.0, .5, 1e30, 1e308, np.nan, np.inf, -np.inf]
TEXT = ['', ' ', '-1', '0', '1', '1.5', '1e30', 'nan', 'inf', '-inf', '9'*30, '9'*5000, '=1+1', '@SUM(A1)', '\0', 'a\0b', '../x', '/etc/passwd', 'a/b', 'é', '٣', '\x1b[2J', '"', '\n', ',', 'None', '1\\2', 'x'*300, 'test', 'TRAIN', '\ufeff', '\u202e']


def pick(rng, values): return values[rng.integers(len(values))]


def bytes_spoiled(rng, raw, most=8, upto=None):
    "A copy with bytes changed, cut, repeated or added"
    raw, how = bytearray(raw), rng.integers(6)
    if how < 3:
        for at in rng.integers(0, max(1, min(len(raw), upto or len(raw))), rng.integers(1, most + 1)): raw[at] = rng.integers(256)
    elif how == 3: del raw[rng.integers(len(raw)):]
    elif how == 4: at = rng.integers(len(raw)); del raw[at:at + rng.integers(1, 64)]
    else: raw += rng.bytes(rng.integers(1, 2000))
    return bytes(raw)


def once(func, **facts):
    "A function with facts about it"
    for key, value in facts.items(): setattr(func, key, value)
    return func


# ---- NIfTI

FIELDS = {'sizeof_hdr': (0, 'i'), 'dim0': (40, 'h'), 'dim1': (42, 'h'), 'dim2': (44, 'h'), 'dim3': (46, 'h'), 'dim4': (48, 'h'), 'datatype': (70, 'h'), 'bitpix': (72, 'h'),
          'pixdim0': (76, 'f'), 'pixdim1': (80, 'f'), 'pixdim3': (88, 'f'), 'vox_offset': (108, 'f'), 'slope': (112, 'f'), 'inter': (116, 'f'), 'units': (123, 'B'),
          'qform': (252, 'h'), 'sform': (254, 'h'), 'quatern': (256, 'f'), 'qoffset': (268, 'f'), 'srow_x': (280, 'f'), 'srow_y': (300, 'f'), 'srow_z': (320, 'f'), 'magic': (344, '4s')}
TYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4', 1024: 'i8', 1280: 'u8'}


def sound_scan(folder):
    "A subject, its mask, and a network that has learned nothing"
    s = make_subject(3, shape=(24, 20, 6))
    return s, Segmenter(build_net('lite').eval(), describe('lite', 64), 'none')


def lie(rng, raw):
    "A header that says something else"
    raw = bytearray(raw)
    at, kind = FIELDS[pick(rng, list(FIELDS))]
    values = {'f': ODD, 'h': [v for v in ODD if v == v and abs(v) < 2**15 and v == int(v)] + list(TYPES) + [3, 6, 20, 24, 128, 1536], 'i': [0, 540, -1, 349], 'B': [*range(0, 40, 3)], '4s': [b'ni1\0', b'n+2\0', b'', b'n+9\0']}[kind]
    value = pick(rng, values)
    struct.pack_into('<' + kind, raw, at, value if kind in ('f', '4s') else int(value)) if kind != 'f' or abs(value) < 3e38 or not np.isfinite(value) else None
    return bytes(raw)


def plain_reader(raw):
    "The voxels of an uncompressed little-endian NIfTI-1 file, sorted, as the standard has it; None where it would take more"
    if raw[:4] != b'\x5c\1\0\0' or raw[344:348] != b'n+1\0': return None
    dim, (kind, bits) = struct.unpack_from('<8h', raw, 40), struct.unpack_from('<2h', raw, 70)
    offset, slope, inter = struct.unpack_from('<3f', raw, 108)
    if not 1 <= dim[0] <= 7 or min(dim[1:dim[0] + 1]) < 1 or kind not in TYPES or not np.isfinite([offset, slope, inter]).all(): return None
    n = int(np.prod(dim[1:dim[0] + 1], dtype=object))
    if offset < 348 or offset + n*np.dtype(TYPES[kind]).itemsize > len(raw): return None
    with np.errstate(all='ignore'):
        data = np.frombuffer(raw, '<' + TYPES[kind], n, int(offset)).astype(float)
        return levelled(data*slope + inter if slope and (slope, inter) != (1, 0) else data)


def levelled(data):
    "Sorted numbers, what was never measured being air"
    data = np.asarray(data, float).ravel()
    return np.sort(np.where(np.isfinite(data) & (np.abs(data) < 3e38) & (data > AIR), data, AIR))


def spoil_nifti(rng, base, folder):
    "A scan in one of four forms; it is read, examined, converted or segmented"
    subject, segmenter = base
    hu = subject.hu if rng.random() < .5 else subject.hu.astype(pick(rng, ['f4', 'f8', 'i4']))
    if hu.dtype.kind == 'f' and rng.random() < .5: hu[tuple(rng.integers(0, n) for n in hu.shape)] = pick(rng, [np.nan, np.inf, 1e38]); hu[:, 0] = np.nan
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
    return pick(rng, [once(lambda out: seen_scan(file, truth, out), may_leave=True), lambda out: converted(folder, out), lambda out: examined(file), lambda out: segmented(file, segmenter, out)])


def seen_scan(file, truth, out):
    "A volume of finite numbers, those of the file, on whose grid a mask can be written"
    vol = read_volume(file)
    assert vol.data.ndim == 3 and vol.data.size and np.isfinite(vol.data).all() and np.isfinite(vol.affine).all() and min(vol.spacing) > 0
    assert nib.aff2axcodes(vol.affine) == ('R', 'A', 'S')
    if truth is not None:
        found = levelled(vol.data)
        assert len(found) == len(truth) and np.allclose(found, truth, 1e-5, 1e-6*max(1, np.abs(truth).max())), 'other voxels than in the file'
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

GEOMETRY = ['ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'SliceThickness', 'SpacingBetweenSlices', 'InstanceNumber', 'SeriesInstanceUID', 'SOPInstanceUID',
            'FrameOfReferenceUID', 'AcquisitionNumber', 'ImageType', 'Modality', 'SOPClassUID', 'NumberOfFrames', 'StudyInstanceUID']
VALUES = ['RescaleSlope', 'RescaleIntercept', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation', 'SamplesPerPixel', 'PhotometricInterpretation', 'Rows', 'Columns',
          'PixelPaddingValue', 'PixelPaddingRangeLimit', 'PixelData', 'TransferSyntaxUID']


def sound_series(folder):
    "A series as {name: bytes}, and its values"
    from liverseg.dicom import write_series
    s = make_subject(3, shape=(20, 16, 6))
    return {p.name: p.read_bytes() for p in write_series(s.hu, s.affine, folder)}, np.unique(s.hu)


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
        elif key == 'TransferSyntaxUID': where.TransferSyntaxUID = '1.2.840.10008.1.2' + pick(rng, ['', '.2', '.4.50', '.4.70', '.4.90', '.5', '.1.99'])
        elif key in VALUES and key not in ('RescaleSlope', 'RescaleIntercept', 'PhotometricInterpretation'): setattr(where, key, int(pick(rng, [0, 1, 2, 7, 8, 12, 16, 32, 64, 1000, 65535])))
        else: setattr(where, key, other_value(rng, getattr(ds, key, '1')))
        out = io.BytesIO()
        ds.save_as(out)
        return out.getvalue()
    except Exception: return raw


def spoil_dicom(rng, base, folder):
    "A series with tags, bytes or slices changed; a folder or a zip archive"
    files, truth = dict(base[0]), base[1]
    names = list(files)
    how = rng.integers(6)
    some = [n for n in names if rng.random() < pick(rng, [.2, 1])] or names[:1]
    if how < 2: files |= {n: retagged(np.random.default_rng(k), files[n], GEOMETRY) for k in [int(rng.integers(2**31))] for n in some}
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
    return pick(rng, [once(lambda out: seen_series(where, truth, out), may_leave=True), lambda out: seen_cases(where, out)])


def seen_series(where, truth, out):
    "A volume like any other, with no values that no slice has"
    seen_scan(where, None, out)
    if truth is not None: assert np.isin(read_volume(where).data, np.r_[truth, AIR]).all(), 'other values than in the files'


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
    pd.DataFrame(dict(file=[f'{z}.png' for z in range(4)], subject='a', z=range(4), split='train')).to_csv(folder / 'raw/manifest.csv', index=False)
    write_subject(s, folder / 'data/train/nii', 'a')
    for name, how in dict(eight={}, sixteen=dict(bits=16), three=dict(windows=[(-150, 250), (-50, 150), (0, 100)])).items(): convert(folder / 'data', folder / name, **how)
    return folder


def png_spoiled(rng, raw):
    "A PNG with bytes changed, another mode, another size in its header, or a chunk more"
    how = rng.integers(4)
    if how == 0: return bytes_spoiled(rng, raw)
    if how == 1:
        out = io.BytesIO()
        Image.open(io.BytesIO(raw)).convert('L').convert(pick(rng, ['1', 'P', 'RGB', 'RGBA', 'LA', 'I;16'])).save(out, pick(rng, ['PNG', 'PNG', 'TIFF']) )
        return out.getvalue()
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    if how == 2:
        header = bytearray(raw[16:29])
        if rng.random() < .5: struct.pack_into('>I', header, pick(rng, [0, 4]), int(pick(rng, [0, 1, 19, 21, 8192, 8193, 2**16, 2**31 - 1, 2**32 - 1])))
        else: header[8 + rng.integers(5)] = pick(rng, [0, 1, 2, 3, 4, 6, 8, 16, 255])
        return raw[:8] + chunk(b'IHDR', bytes(header)) + raw[33:]
    more = pick(rng, [(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**7))), (b'iCCP', b'a\0\0' + zlib.compress(bytes(10**7))), (b'tRNS', b'\0\0'), (b'gAMA', b'\0\0\0\0'), (b'acTL', b'\0\0\0\2\0\0\0\0'), (b'ABCD', rng.bytes(50)), (b'PLTE', rng.bytes(768)), (b'pHYs', b''), (b'IDAT', zlib.compress(rng.bytes(100)))])
    return raw[:33] + chunk(*more) + raw[33:]


def table_spoiled(rng, raw):
    "A table with cells, columns, rows or bytes changed"
    how, table = rng.integers(5), pd.read_csv(io.BytesIO(raw), dtype=str, keep_default_na=False)
    if how == 0: return bytes_spoiled(rng, raw)
    if how == 1: table = table.drop(columns=pick(rng, list(table)))
    elif how == 2: table = pd.concat([table, table.iloc[[rng.integers(len(table))]]])
    else:
        for _ in range(rng.integers(1, 4)): table.iloc[rng.integers(len(table)), rng.integers(table.shape[1])] = pick(rng, TEXT)
    return table.to_csv(index=False).encode()


def json_spoiled(rng, raw):
    "JSON with a value replaced, of any shape and depth, or with bytes changed"
    value = json.loads(raw)
    how = rng.integers(6)
    if how == 0: return bytes_spoiled(rng, raw)
    if how == 1: return pick(rng, [b'['*100_000, b'{"a":'*50_000, b'9'*5000, b'', b'null', b'[]', b'"a"', b'\xff\xfe', b'{"a":NaN}', b'1e999'])
    odd = [None, True, False, [], {}, [[]], '', 'a', '\0', 10**400, -1, 0, 1.5, float('nan'), float('inf'), [None]*3, [1e308]*3, [10**400]*2, {'a': 1}, 'x'*10**4, [[1, 2]]*9, ['1', '2'], 2**63]
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


def spoil_slices(rng, base, folder):
    "Slices of one of four kinds with a picture, the table or the description changed"
    name = pick(rng, ['raw', 'raw', 'eight', 'sixteen', 'three'])
    where = shutil.copytree(base / name, folder / 's')
    pngs = sorted((where).rglob('*.png'))
    how = rng.integers(3 if (where / 'dataset.json').exists() else 2)
    file, spoil = [(pick(rng, pngs), png_spoiled), (where / 'manifest.csv', table_spoiled), (where / 'dataset.json', json_spoiled)][how]
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
    assert table['z'].dtype.kind == 'i' and not table.duplicated(['subject', 'z']).any() and np.isfinite(table[['dx', 'dy', 'dz']].dropna()).all(axis=None)
    check_slices(where, training_table(where))


# ---- models

def sound_model(folder):
    "A model folder with a network that has learned nothing"
    save_model(build_net('lite'), describe('lite', 64, subjects=dict(train=['a'], valid=[]), temperature=1., expected=dict(slope=1., offset=0.)), folder / 'm', half=True)
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


def spoil_model(rng, base, folder):
    "A model whose description or weights are changed, the promised SHA-256 with them, or neither"
    meta, weights = (base / 'model.json').read_bytes(), folder / 'model.safetensors'
    if (how := rng.random()) < .5:
        if how > .2: meta = json_spoiled(rng, meta)
        os.link(base / 'model.safetensors', weights)
    else:
        weights.write_bytes(weights_spoiled(rng, (base / 'model.safetensors').read_bytes()))
        if rng.random() < .9: meta = json.dumps(json.loads(meta) | dict(sha256=hashlib.sha256(weights.read_bytes()).hexdigest())).encode()
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


def spoil_onnx(rng, base, folder):
    "An ONNX file with bytes, its description, its nodes or the shapes of its weights changed, or nothing"
    import onnx
    file = folder / 'm.onnx'
    if (how := rng.integers(4)) == 3: file.write_bytes(base)
    elif how == 0: file.write_bytes(bytes_spoiled(rng, base, upto=pick(rng, [200, 5000, None])))
    else:
        model = onnx.load_from_string(base)
        if how == 1: model.metadata_props[0].value = json_spoiled(rng, model.metadata_props[0].value.encode()).decode(errors='replace')
        elif rng.random() < .5: del model.graph.node[rng.integers(len(model.graph.node))]
        else: pick(rng, list(model.graph.initializer)).dims.append(int(pick(rng, [0, 2, 2**31, -1])))
        file.write_bytes(model.SerializeToString())
    return lambda out: answering(file)


# ---- archives

NAMES = ['a.nii', 'd/b.nii', 'd/e/f.txt', '../x', '/x', 'C:\\x', '..\\x', 'd/../../x', 'd', 'd/b.nii/x', '', '.', ' ', 'a\0b', 'n'*300, 'é', 'A.NII', '__MACOSX/a', '.hidden', 'CON', 'x.', '\x1b[2J', 'd//x', './a.nii']


def spoil_archive(rng, base, folder):
    "A zip or tar file with odd names, links, holes, archives within it, or bytes changed"
    out, kind = io.BytesIO(), pick(rng, ['zip', 'tar', 'tar.gz'])
    names = [pick(rng, NAMES) if rng.random() < .3 else f'd/{k}.nii' for k in range(pick(rng, [1, 3, 5, 300]))]
    if kind == 'zip':
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            for name in names:
                info = zipfile.ZipInfo(name or 'x')
                if rng.random() < .05: info.external_attr = int(pick(rng, [0o120777, 0o020777, 0o040777])) << 16
                z.writestr(info, rng.bytes(rng.integers(200)) if rng.random() < .95 else bytes(10**6))
    else:
        with tarfile.open(fileobj=out, mode='w:gz' if kind == 'tar.gz' else 'w', format=pick(rng, [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as t:
            for name in names:
                info = tarfile.TarInfo(name.replace('\0', '')); info.size = int(rng.integers(200))
                if rng.random() < .05: info.type, info.linkname = pick(rng, [(tarfile.SYMTYPE, '/etc'), (tarfile.LNKTYPE, '../x'), (tarfile.FIFOTYPE, ''), (tarfile.DIRTYPE, ''), (tarfile.CHRTYPE, ''), (tarfile.GNUTYPE_SPARSE, '')])
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


def unpacked(file, out):
    "Plain files, all of them below the folder"
    names = unpack(file, out, say=lambda line: None)
    found = {p.relative_to(out).as_posix() for p in out.rglob('*') if not p.is_dir()}
    assert found == set(n.replace('//', '/') for n in names) and not any(p.is_symlink() for p in out.rglob('*'))


KINDS = dict(nifti=(sound_scan, spoil_nifti), dicom=(sound_series, spoil_dicom), slices=(sound_slices, spoil_slices), model=(sound_model, spoil_model),
             onnx=(sound_onnx, spoil_onnx), archive=(lambda folder: folder, spoil_archive))
