"The page Try it: its modules in Node against Python, and the page itself in a browser against `liverseg predict`."
import gzip
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, chromium, needs_browser, shared

from liverseg.cases import read_volume
from liverseg.check import histogram, judge_mask, lung_like, not_hu
from liverseg.nifti import ORDERS, read_nifti, stored_as, write_mask
from liverseg.phantom import make_subject, write_series
from liverseg.pixels import PixelForm, prepare
from liverseg.post import clean, pieces
from liverseg.tta import _enlarged
from liverseg.volume import volume_ml
from liverseg.work import BadInput

pytestmark = pytest.mark.skipif(not (shutil.which('node') and shutil.which('npm')), reason='needs node and npm')


@pytest.fixture(scope='session')
def modules(tmp_path_factory):
    "The page's modules and npm packages, without the network"
    from make_web import stage
    folder = tmp_path_factory.mktemp('modules')
    if why := stage(folder, with_network=False): pytest.skip(why)
    (folder / 'package.json').write_text('{"type": "module"}')
    return folder


@pytest.fixture
def node(modules, tmp_path):
    "A function that runs jobs of web_node.mjs and returns their answers"
    def ask(*jobs):
        (tmp_path / 'jobs.json').write_text(json.dumps(jobs, default=str))
        done = subprocess.run(['node', str(ROOT / 'tests/web_node.mjs'), str(modules), str(tmp_path / 'jobs.json')],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return ask


@pytest.fixture(scope='module')
def phantom(): return make_subject(3, (60, 56, 22))


def oblique(affine, degrees, shear=0.):
    "The affine turned about two axes, and sheared"
    a, b = np.radians([degrees, degrees/2])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    out = affine.copy()
    out[:3] = turn @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]]) @ affine[:3]
    return out


def same_volume(answer, path, out):
    "Check that the page has read a scan as Python does"
    vol = read_volume(path)
    assert answer['shape'] == list(vol.data.shape)
    np.testing.assert_allclose(answer['affine'], vol.affine, rtol=1e-12, atol=1e-9)
    assert answer['notes'] == [str(n) for n in vol.notes]
    assert answer['odd'] == [str(n) for n in not_hu(vol.data, histogram(vol.data))]
    assert np.array_equal(np.fromfile(out, np.float32), np.asarray(vol.data, np.float32).ravel(order='F'))


def read_both(node, paths, tmp_path):
    outs = [tmp_path / f'{i}.raw' for i in range(len(paths))]
    answers = node(*(dict(job='read', path=p, out=o) for p, o in zip(paths, outs)))
    for answer, path, out in zip(answers, paths, outs): same_volume(answer, path, out)
    return answers


def test_48_orders_and_masks_on_their_grids(node, phantom, tmp_path):
    whole = nib.Nifti1Image(phantom.hu, oblique(phantom.affine, 7, .04))
    paths = [tmp_path / f'{order}.nii' for order in ORDERS]
    for order, p in zip(ORDERS, paths): stored_as(whole, order).to_filename(p)
    read_both(node, paths, tmp_path)
    node(*(dict(job='mask', path=p, above=100, out=p.with_suffix('.gz')) for p in paths))
    for p in paths:
        vol = read_nifti(p)
        write_mask((vol.data > 100).astype(np.uint8), vol, tmp_path / 'python.nii.gz')
        ours, theirs = (gzip.decompress(f.read_bytes()) for f in (p.with_suffix('.gz'), tmp_path / 'python.nii.gz'))
        assert ours == theirs, p.name


def test_number_types_scale_factors_and_byte_orders(node, phantom, tmp_path):
    paths, rng = [], np.random.default_rng(0)
    for code, order, kind in itertools.product(('u1', 'i1', 'i2', 'u2', 'i4', 'u4', 'i8', 'u8', 'f4', 'f8'), '<>',
                                               (nib.Nifti1Image, nib.Nifti2Image)):
        thin = phantom.hu[::4, ::4, ::3] + 1024*(code[0] == 'u')
        data = (rng.integers(0, 127, (7, 6, 5)) if code in ('u1', 'i1') else thin).astype(order + code)
        header = kind.header_class(endianness=order)
        img = kind(data, oblique(np.diag([2., 2, 3, 1]), 12), header, dtype=data.dtype)
        for slope, inter in ((1, 0), (1, -1024), (2, -3000), (.37, 5.5)):
            paths.append(tmp_path / f'{len(paths)}.nii.gz')
            img.header.set_slope_inter(1, 0)
            raw, h = bytearray(img.to_bytes()), img.header.copy()
            h.set_slope_inter(slope, inter)
            h['vox_offset'] = h.single_vox_offset
            raw[:len(h.binaryblock)] = h.binaryblock
            paths[-1].write_bytes(gzip.compress(bytes(raw), 1))
    read_both(node, paths, tmp_path)
    out = [tmp_path / f'm{i}.nii.gz' for i in range(len(paths))]
    node(*(dict(job='mask', path=p, above=50, out=o) for p, o in zip(paths, out)))
    for p, o in zip(paths, out):
        vol = read_nifti(p)
        write_mask((vol.data > 50).astype(np.uint8), vol, tmp_path / 'python.nii.gz')
        assert gzip.decompress(o.read_bytes()) == gzip.decompress((tmp_path / 'python.nii.gz').read_bytes()), p.name


def test_unusual_headers(node, phantom, tmp_path):
    def save(name, affine=np.diag([-2., 2, 3, 1]), data=phantom.hu, q=1, s=1, q_affine=None, **fields):
        img = nib.Nifti1Image(data, affine)
        img.set_sform(affine, s)
        img.set_qform(affine if q_affine is None else q_affine, q)
        raw = bytearray(img.to_bytes())
        for key, value in fields.items(): img.header[key] = value
        img.header['vox_offset'] = 352
        raw[:348] = img.header.binaryblock
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name
    lost = phantom.hu.astype(np.float32)
    lost[:4] = np.nan
    lost[20:, -1, :] = np.inf
    low = phantom.hu.copy()
    low[:9] = -2000
    tilted = oblique(np.diag([-2., 2, 3, 1]), 9)
    paths = [
        save('q.nii', tilted, s=0), save('both.nii', tilted), save('apart.nii', tilted, q_affine=oblique(tilted, 1)),
        save('none.nii', q=0, s=0), save('metres.nii', np.diag([.002, .002, .003, 1]), xyzt_units=1),
        save('microns.nii', np.diag([-2000., 2000, 3000, 1]), xyzt_units=3),
        save('unset.nii', np.eye(4)), save('unset2.nii', np.eye(4), q=0, s=0),
        save('sheared.nii', oblique(np.diag([2., 2, 3, 1]), 9, .3)),
        save('nan.nii', data=lost), save('padding.nii', data=low), save('two.nii', data=phantom.hu[..., 5]),
        save('five.nii', data=phantom.hu[..., None, None]),
        save('hu1024.nii', data=(phantom.hu + 1024).astype(np.int16)),
        save('mask.nii', data=(phantom.hu > 100).astype(np.uint8)),
        save('grey.nii', data=np.clip(phantom.hu, 0, 255)), save('same.nii', data=phantom.hu*0),
        save('norm.nii', data=(phantom.hu/40).astype(np.float32)),
        save('quat.nii', s=0, quatern_b=2), save('badq.nii', quatern_b=2),
        save('neg.nii', pixdim=[-1, -2, 2, 3, 0, 0, 0, 0]), save('code.nii', sform_code=9, s=0)]
    answers = node(*(dict(job='read', path=p, out=tmp_path / f'{p.stem}.raw') for p in paths))
    for answer, path in zip(answers, paths):
        try: read_volume(path)
        except BadInput as e: assert answer.get('bad') == str(e).replace(str(path), path.name)
        else: same_volume(answer, path, tmp_path / f'{path.stem}.raw')


def hostile(folder, phantom):
    "Files that are not scans"
    img = nib.Nifti1Image(phantom.hu, np.diag([2., 2, 2, 1]))
    raw = img.to_bytes()
    packed, broken = gzip.compress(raw), bytearray(gzip.compress(raw))
    broken[-6] ^= 255 # of the checksum
    def header(**fields):
        h = img.header.copy()
        h['vox_offset'] = 352
        for key, value in fields.items(): h[key] = value
        return h.binaryblock + raw[348:]
    files = {
        'zeros.nii.gz': bytes(10**6), 'zeros.nii': bytes(10**6), 'bomb.nii.gz': gzip.compress(bytes(10**6)),
        'empty.nii.gz': b'', 'empty.nii': b'',
        'cut.nii.gz': packed[:len(packed)//2], 'cut.nii': raw[:3000], 'short.nii.gz': gzip.compress(raw[:3000]),
        'head.nii.gz': gzip.compress(raw[:200]), 'head.nii': raw[:200],
        'text.nii': b'hello'*300, 'text.nii.gz': b'hello'*300, 'plain.nii.gz': raw, 'crc.nii.gz': bytes(broken),
        'junk.nii.gz': packed + b'junk'*9,
        'type.nii': header(datatype=7), 'magic.nii.gz': gzip.compress(header(magic=b'xyz')),
        'low.nii': header(vox_offset=100), 'inside.nii': header(vox_offset=0),
        'minus.nii': header(dim=[3, -20, 22, 18, 1, 1, 1, 1]), 'none.nii': header(dim=[3, 0, 22, 18, 1, 1, 1, 1]),
        'line.nii': header(dim=[1, 20, 22, 18, 1, 1, 1, 1]),
        'inter.nii': header(scl_slope=1, scl_inter=np.inf),
        'size.nii': header(pixdim=[1, 0, 2, 2, 0, 0, 0, 0], sform_code=0, qform_code=1),
        'flat.nii': header(srow_x=[0]*4),
        'big.nii': header(dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])}
    for name, content in files.items(): (folder / name).write_bytes(content)
    hole = phantom.hu.astype(np.float32)
    hole[30, 30, 9] = np.nan
    for name, data in dict(four=np.stack([phantom.hu]*3, -1), complex=phantom.hu.astype(np.complex64),
                           hole=hole).items():
        nib.Nifti1Image(data, np.diag([2., 2, 2, 1])).to_filename(folder / f'{name}.nii.gz')
    return [*(folder / name for name in files), *(folder / f'{name}.nii.gz' for name in ('four', 'complex', 'hole'))]


def python_says(path):
    with pytest.raises(BadInput) as e: read_volume(path)
    return str(e.value).replace(str(path), path.name)


def test_wrong_files_get_the_messages_of_python(node, phantom, tmp_path):
    paths = hostile(tmp_path, phantom)
    answers = node(*(dict(job='read', path=p) for p in paths))
    for path, answer in zip(paths, answers): assert answer.get('bad') == python_says(path)


def test_gzip_in_parts(node, phantom, tmp_path):
    raw = nib.Nifti1Image(phantom.hu, np.diag([2., 2, 2, 1])).to_bytes()
    paths = [tmp_path / f'{n}.nii.gz' for n in ('parts', 'more')]
    paths[0].write_bytes(gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]) + bytes(512))
    paths[1].write_bytes(gzip.compress(raw + bytes(999)))
    read_both(node, paths, tmp_path)


def test_pairs_of_header_and_voxels(node, phantom, tmp_path):
    def pair(name, cls=nib.Nifti1Pair, **fields):
        img = cls(phantom.hu, np.diag([-2., 2, 3, 1]))
        nib.save(img, tmp_path / f'{name}.img')
        path = tmp_path / f'{name}.hdr'
        for key, value in fields.items(): img.header[key] = value
        if fields: path.write_bytes(img.header.binaryblock + bytes(4))
        return path
    def rewrite(path, change): path.write_bytes(change(path.read_bytes()))
    paths = [pair('plain'), pair('second', nib.Nifti2Pair), pair('single', magic=b'n+1'), pair('later', vox_offset=16),
             pair('minus', vox_offset=-8), pair('analyze', nib.AnalyzeImage), pair('junk', magic=b'xyz'),
             pair('scaled', scl_slope=2, scl_inter=-3), pair('size', pixdim=[1, 0, 2, 2, 0, 0, 0, 0], sform_code=0,
                                                             qform_code=1)]
    for name, half, change in (('short', 'img', lambda b: b[:999]), ('longer', 'img', lambda b: b + b'more'),
                               ('none', 'img', lambda b: b''), ('empty', 'hdr', lambda b: b''),
                               ('cut', 'hdr', lambda b: b[:200]), ('text', 'hdr', lambda b: b'hello'*99)):
        paths.append(pair(name))
        rewrite(paths[-1].with_suffix(f'.{half}'), change)
    answers = node(*(dict(job='read', path=p, pair=p.with_suffix('.img'), out=tmp_path / f'{p.stem}.raw')
                     for p in paths))
    read = 0
    for answer, path in zip(answers, paths):
        try: read_volume(path)
        except BadInput as e: assert answer.get('bad') == str(e).replace(str(path), path.name)
        else: same_volume(answer, path, tmp_path / f'{path.stem}.raw'); read += 1
    assert read == 5
    node(dict(job='mask', path=paths[0], pair=paths[0].with_suffix('.img'), above=100, out=tmp_path / 'ours.nii.gz'))
    vol = read_nifti(paths[0])
    write_mask((vol.data > 100).astype(np.uint8), vol, tmp_path / 'python.nii.gz')
    ours, theirs = (gzip.decompress((tmp_path / f'{n}.nii.gz').read_bytes()) for n in ('ours', 'python'))
    assert ours == theirs
    both, half, other = node(*(dict(job='series', path=tmp_path / f'plain.{k}', paths=[tmp_path / f'plain.{k}'
                                                                                      for k in halves])
                               for k, halves in (('img', ('img', 'hdr')), ('hdr', ('hdr',)), ('img', ('img',)))))
    assert both['shape'] == list(vol.data.shape)
    alone = Path(shutil.copy(paths[0], tmp_path / 'alone.hdr'))
    said = python_says(alone).replace(f'{tmp_path}/', '').replace('copy', 'choose')
    assert half['bad'].replace('plain', 'alone') == said
    assert other['bad'] == 'plain.img: its header is in plain.hdr, which is not there; choose both files'
    (tmp_path / 'single.nii').write_bytes(paths[0].read_bytes())
    (tmp_path / 'single.nii.gz').write_bytes(gzip.compress(paths[0].read_bytes()))
    paths = [tmp_path / 'single.nii', tmp_path / 'single.nii.gz']
    for path, answer in zip(paths, node(*(dict(job='read', path=p) for p in paths))):
        assert answer['bad'] == python_says(path)


@pytest.mark.parametrize('shape', [(512, 512), (128, 128), (256, 256), (300, 411), (97, 640)])
def test_what_the_network_sees(node, tmp_path, shape):
    rng = np.random.default_rng(1)
    hu = np.rint(rng.normal(60, 120, shape)).astype(np.int16)
    jobs, wanted = [], []
    for window, bits, kind in itertools.product(([-150, 250], [0., 255.], [[0, 255], [-150, 250], [-1000, 400]]),
                                                (8, 16), ('int16', 'float32')):
        meta = dict(size=256, window=window, bits=bits, mean=[.485, .456, .406], std=[.229, .224, .225])
        here = hu.astype(kind) + (.37 if kind == 'float32' else 0)
        here = here.astype(kind)
        path = tmp_path / f'{len(jobs)}.hu'
        here.tofile(path)
        jobs.append(dict(job='prepare', path=path, kind=kind, h=shape[0], w=shape[1], meta=meta,
                         out=tmp_path / f'{len(jobs)}.x'))
        wanted.append(np.broadcast_to(prepare([PixelForm.of(meta).as_read(here)], meta)[0], (3, 256, 256)))
    node(*jobs)
    for job, x in zip(jobs, wanted):
        found = np.fromfile(job['out'], np.float32).reshape(3, 256, 256)
        if job['meta']['bits'] == 8: assert np.array_equal(found, x)
        else: np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize('shape', [(512, 512), (128, 128), (256, 256), (300, 411)])
def test_a_map_on_the_scans_grid(node, tmp_path, shape):
    maps = np.random.default_rng(2).random((1, 256, 256), np.float32)
    maps.tofile(tmp_path / 'map')
    node(dict(job='enlarge', path=tmp_path / 'map', size=256, h=shape[0], w=shape[1], out=tmp_path / 'large'))
    np.testing.assert_allclose(np.fromfile(tmp_path / 'large', np.float32).reshape(shape), _enlarged(maps, shape)[0],
                               atol=2e-5)


def test_cleaning_up_and_warnings(node, phantom, tmp_path):
    truth, rng = (phantom.labels > 0).astype(np.uint8), np.random.default_rng(4)
    specks = truth | (rng.random(truth.shape) > .995)
    masks = dict(truth=truth, specks=specks, shifted=np.roll(truth, 30, 0), left=truth[::-1].copy(),
                 low=np.roll(truth, -8, 2), empty=truth*0, two=truth | np.roll(truth, 25, 1),
                 air=(phantom.hu < -500).astype(np.uint8), noise=(rng.random(truth.shape) > .7).astype(np.uint8),
                 full=np.ones_like(truth))
    scans = dict(scan=phantom.hu, turned=phantom.hu[:, :, ::-1].copy(), prone=phantom.hu[:, ::-1].copy(),
                 mirrored=phantom.hu[::-1].copy())
    for name, data in {**masks, **scans}.items():
        stored_as(nib.Nifti1Image(data, phantom.affine), 'PIL').to_filename(tmp_path / f'{name}.nii')
    pairs = list(itertools.product(scans, masks))
    answers = node(*(dict(job='judge', path=tmp_path / f'{s}.nii', mask=tmp_path / f'{m}.nii',
                          out=tmp_path / f'{s}_{m}.raw') for s, m in pairs))
    said = set()
    for answer, (s, m) in zip(answers, pairs):
        vol, mask = read_nifti(tmp_path / f'{s}.nii'), np.asarray(read_nifti(tmp_path / f'{m}.nii').data)
        cleaned = clean(mask, vol.spacing, ('specks',))
        notes = judge_mask(vol, mask)
        assert answer['notes'] == [str(n) for n in notes], (s, m)
        assert answer['n'] == len(pieces(mask)[2])
        assert np.array_equal(np.fromfile(tmp_path / f'{s}_{m}.raw', np.float32),
                              cleaned.astype(np.float32).ravel(order='F'))
        assert answer['ml'] == pytest.approx(volume_ml(cleaned, vol.affine), rel=1e-12)
        assert [answer['air'], answer['inside']] == [int(a.sum()) for a in lung_like(vol.data)]
        said |= {n.code for n in notes}
    assert said >= {'cut off', 'volume', 'pieces', 'liver HU', 'liver side', 'spine', 'upside down', 'empty mask'}, said


def test_numbers_are_written_as_python_writes_them(node):
    values = (0, 1, -1.5, 2.25, 123456.7, 1234567, .1, 9.99996, 999999.5)
    numbers = [(v*10.**e, d) for v in values for e in (-7, -4, 0, 3) for d in (3, 6)]
    assert node(dict(job='words', numbers=numbers))[0] == [[f'{v:.{d}g}', f'{v:.0f}'] for v, d in numbers]


def test_a_large_scan_fits_and_a_larger_one_is_refused(node):
    fits, floats, large = node(*(dict(job='memory', shape=shape, bytes=n) for shape,
                                 n in (((512, 512, 900), 2), ((512, 512, 900), 4), ((512, 512, 2400), 2))))
    assert fits < 1.1e9 and floats < 2e9
    assert 'liverseg predict' in large['bad'] and '2.0 GB' in large['bad']


def test_sha256(node, tmp_path):
    raws = [bytes(n % 251 for n in range(k)) for k in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000)]
    for i, raw in enumerate(raws): (tmp_path / f'{i}.bin').write_bytes(raw)
    found, = node(dict(job='sha256', paths=[tmp_path / f'{i}.bin' for i in range(len(raws))]))
    assert found == [hashlib.sha256(raw).hexdigest() for raw in raws]


def drop(n): return lambda files: files[n].unlink()
def spoil(func): return lambda files: files[3].write_bytes(func(files[3].read_bytes()))
def tagged(n=3, **tags):
    def do(files):
        import pydicom
        ds = pydicom.dcmread(files[n])
        for key, value in tags.items(): setattr(ds, key, value)
        ds.save_as(files[n], enforce_file_format=True)
    return do


def implicit(files):
    import pydicom
    for f in files:
        ds = pydicom.dcmread(f)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        ds.save_as(f, enforce_file_format=True)


def deflated(files):
    import pydicom
    for f in files:
        ds = pydicom.dcmread(f)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        ds.save_as(f, enforce_file_format=True)


def bare(files):
    for f in files: f.write_bytes(f.read_bytes()[132:])


def compressed(syntax):
    def do(files):
        from test_dicom import transcode
        import pydicom
        if syntax != 'RLE': return transcode(files, syntax)
        for f in files:
            ds = pydicom.dcmread(f)
            ds.compress(pydicom.uid.RLELossless)
            ds.save_as(f, enforce_file_format=True)
    return do


def in_one_file(files):
    from test_dicom import enhanced
    enhanced(files[0].parent)


def compressed_in_one_file(syntax, table=True, fragments=1, extended=False, change=None):
    "One enhanced file of compressed frames, with a table of offsets or without"
    def do(files):
        import pydicom
        from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
        in_one_file(files)
        path, single = files[0].parent / 'all.dcm', files[0].parent / 'single'
        ds, frames = pydicom.dcmread(path), []
        pixels = ds.pixel_array
        for picture in pixels:
            one = pydicom.dcmread(path)
            del one.SharedFunctionalGroupsSequence, one.PerFrameFunctionalGroupsSequence
            one.NumberOfFrames, one.PixelData, one.SOPClassUID = 1, picture.tobytes(), pydicom.uid.CTImageStorage
            one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
            one.save_as(single, enforce_file_format=True)
            compressed(syntax)([single])
            one = pydicom.dcmread(single)
            frames += generate_frames(one.PixelData, number_of_frames=1)
        single.unlink()
        ds.file_meta.TransferSyntaxUID = one.file_meta.TransferSyntaxUID
        if extended: ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        else: ds.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table)
        ds['PixelData'].VR, ds['PixelData'].is_undefined_length = 'OB', True
        if change: change(ds)
        ds.save_as(path, enforce_file_format=True)
    return do


def fewer(ds): ds.PixelData = ds.PixelData[:len(ds.PixelData)*2//3] + bytes(len(ds.PixelData) % 2)
def noise(ds): ds.PixelData = ds.PixelData[:500] + bytes(len(ds.PixelData) - 500)


FRAMES = {
    'RLE frames': compressed_in_one_file('RLE'), 'RLE bare': compressed_in_one_file('RLE', table=False),
    'JPEG frames': compressed_in_one_file('JPEGLosslessProcess14_1', fragments=2),
    'JPEG extended': compressed_in_one_file('JPEGLosslessProcess14_1', extended=True),
    'JPEG 2000 frames': compressed_in_one_file('JPEG2000Lossless', table=False, fragments=2),
    'JPEG-LS frames': compressed_in_one_file('JPEGLSLossless', table=False),
    'JPEG-LS pieces': compressed_in_one_file('JPEGLSLossless', table=False, fragments=3),
    'cut': compressed_in_one_file('RLE', change=fewer),
    'cut bare': compressed_in_one_file('RLE', table=False, change=fewer),
    'noise': compressed_in_one_file('JPEG2000Lossless', change=noise)}


def test_frames_as_python_reads_them(node, tmp_path):
    pytest.importorskip('pydicom')
    who = make_subject(3, (40, 36, 10))
    for name, change in FRAMES.items(): change(write_series(who.hu, who.affine, tmp_path / name))
    answers = series_as_python_reads_them(node, tmp_path, FRAMES)
    assert sum('bad' not in answer for answer in answers) == 7
    shutil.copy(tmp_path / 'RLE frames/all.dcm', tmp_path / 'all.dcm')
    (tmp_path / 'all.zip').write_bytes(packed(tmp_path / 'all.dcm'))
    series_as_python_reads_them(node, tmp_path, ['all.dcm', 'all.zip'])


def phases_in_one_file(tag):
    def change(files):
        from test_dicom import enhanced_phases
        enhanced_phases(files[0].parent, tag)
    return change


SERIES = {
    'plain': {}, 'sagittal': dict(codes='PIR'), 'coronal': dict(codes='LIA'), 'upwards': dict(codes='RAS'),
    'mr': dict(Modality='MR'), 'nowhere': dict(ImagePositionPatient=None),
    'neither': dict(ImagePositionPatient=None, InstanceNumber=None), 'spacing': dict(PixelSpacing=None),
    'slope': dict(RescaleSlope='0.5'), 'intercept': dict(RescaleIntercept='-24'),
    'none': dict(RescaleIntercept=None), 'zero': dict(RescaleSlope='0'),
    'inverted': dict(PhotometricInterpretation='MONOCHROME1'),
    'thick': dict(SliceThickness=None, SpacingBetweenSlices=None),
    'localizer': dict(ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER']), 'bits': dict(HighBit=11),
    'padded': dict(PixelPaddingValue=-1000), 'lost': drop(4), 'short': spoil(lambda b: b[:1300]),
    'header': spoil(lambda b: b[:700]), 'magic': spoil(lambda b: b[:140]), 'empty': spoil(lambda b: b''),
    'zeros': spoil(lambda b: bytes(len(b))), 'other': tagged(Modality='MR'),
    'scale': tagged(RescaleIntercept='5'), 'moved': tagged(ImagePositionPatient=[9, 9, 0]),
    'twin': lambda files: (files[0].parent / 'copy').write_bytes(files[2].read_bytes()),
    'unplaced': tagged(ImagePositionPatient=None),
    'phases': dict(AcquisitionNumber=lambda n: n % 2, ImagePositionPatient=lambda n: [0, 0, n//2]),
    'implicit': implicit, 'deflated': deflated, 'bare': bare,
    'two phases': phases_in_one_file('TemporalPositionIndex'),
    'two runs': phases_in_one_file('FrameAcquisitionNumber'), 'untold phases': phases_in_one_file(None),
    'frames': in_one_file, 'RLE': compressed('RLE'), 'JPEGLosslessProcess14_1': compressed('JPEGLosslessProcess14_1'),
    'JPEG2000Lossless': compressed('JPEG2000Lossless'), 'JPEGLSLossless': compressed('JPEGLSLossless')}


def test_dicom_series_as_python_reads_them(node, tmp_path):
    pytest.importorskip('pydicom')
    who = make_subject(3, (40, 36, 10))
    for name, what in SERIES.items():
        files = write_series(who.hu, who.affine, tmp_path / name, **(what if isinstance(what, dict) else {}))
        if callable(what): what(files)
    series_as_python_reads_them(node, tmp_path, SERIES)


def series_as_python_reads_them(node, folder, names):
    "Check that the page reads some folders or files as Python does"
    answers = node(*(dict(job='series', path=folder / name, out=folder / f'{name}.raw', mask=folder / f'{name}.nii.gz')
                     for name in names))
    for answer, name in zip(answers, names): same_series(answer, folder, name)
    return answers


def same_series(answer, folder, name):
    "Check that the page reads a series as Python does and writes its masks on the same grid"
    try: vol = read_volume(folder / name)
    except BadInput as e:
        assert answer.get('bad') == str(e).replace(f'{folder}/', ''), name
        return
    assert 'bad' not in answer, (name, answer)
    same_volume(answer, folder / name, folder / f'{name}.raw')
    write_mask((vol.data > 100).astype(np.uint8), vol, folder / 'python.nii.gz')
    ours, theirs = (gzip.decompress((folder / f'{n}.nii.gz').read_bytes()) for n in (name, 'python'))
    geometry = [*range(76, 108), *range(256, 328)] # of 32-bit floats, whose last digits may differ
    without = lambda raw: bytes(v for i, v in enumerate(raw[:352]) if i not in geometry) + raw[352:]
    assert without(ours) == without(theirs), name
    ours, theirs = nib.load(folder / f'{name}.nii.gz'), nib.load(folder / 'python.nii.gz')
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=1e-6, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(ours.get_qform(), theirs.get_qform(), rtol=1e-5, atol=1e-3, err_msg=name)


def packed(*files, method=zipfile.ZIP_DEFLATED, top='', **more):
    "An archive of files, with further content by name"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', method) as z:
        for f in files: z.write(f, f'{top}{f.name}')
        for name, raw in more.items(): z.writestr(name, raw)
    return out.getvalue()


def with_old_names(raw):
    "An archive with an ü of MS-DOS for each #, without the mark of UTF-8"
    return raw.replace(b'K#r', b'K\x81r')


def archives(folder, files):
    "Archives of a series, whole and spoiled, by name"
    plain, bare = packed(*files), packed(*files, method=zipfile.ZIP_STORED)
    def changed(raw, at, value):
        out = bytearray(raw)
        out[at:at + len(value)] = value
        return bytes(out)
    entry, record, end = plain.index(b'PK\1\2'), bare.index(b'PK\1\2'), plain.rindex(b'PK\5\6')
    swelling = changed(plain, plain.index(b'PK\1\2') + 24, (2**31 + 2**30).to_bytes(4, 'little'))
    zeros = packed(**{str(k): bytes(2**20) for k in range(3)})
    claims = zeros
    for k in range(3):
        at = -1
        for _ in range(k + 1): at = claims.index(b'PK\1\2', at + 1)
        claims = changed(claims, at + 24, (2**31 - 1).to_bytes(4, 'little'))
    nested = packed(**{'p.zip': packed(*files, top='PATIENT/'), 'm.zip': packed(**{'a.txt': b'x'}),
                       '__MACOSX/._p': b'x'})
    names = {
        'plain': plain, 'stored': bare, 'inside': packed(*files, top='a/b/'), 'nested': nested,
        'hidden': packed(*files, **{'.DS_Store': b'x', '__MACOSX/._image_0': b'x',
                                    'a/.b/image_0': files[0].read_bytes()}),
        'climbs': packed(*files[1:], **{'../../image_0': files[0].read_bytes(), 'x\\y': b'text'}),
        'old names': with_old_names(packed(**{f'K#r{k}': f.read_bytes() for k, f in enumerate(files)})),
        'accents': packed(**{f'Lëber_{k}': f.read_bytes() for k, f in enumerate(files)}),
        'remark': plain[:end + 20] + (9).to_bytes(2, 'little') + b'a remark.', 'twice': packed(*files, *files[:2]),
        'scan': packed(**{'a.nii': bytes(400)}), 'folders': packed(**{'a/': b'', 'b/': b''}), 'nothing': packed(),
        'no archive': files[0].read_bytes(), 'empty': b'', 'cut': plain[:len(plain)//2], 'short': plain[:-30],
        'before': b'MZ' + plain, 'sum': changed(plain, entry + 16, b'abcd'),
        'claim': changed(plain, entry + 24, b'\x09\0\0\0'),
        'large': swelling, 'bomb': claims, 'place': changed(plain, entry + 42, b'\7'),
        'method': changed(plain, entry + 10, b'\x09'),
        'mark': changed(plain, entry, b'PK\1\3'), 'version': changed(plain, entry + 6, b'\x50'),
        'locked': changed(plain, entry + 8, b'\1'), 'stream': changed(plain, 60, b'\xff'*40),
        'pixels': changed(bare, record//2, b'\xff'*3), 'other name': changed(plain, 30, b'X'),
        'disks': plain[:end] + b'PK\6\7' + (1).to_bytes(4, 'little') + bytes(12) + plain[end:],
        'mr': packed(*write_series(np.zeros((9, 9, 3)), np.eye(4), folder / 'mr', Modality='MR')),
        'not whole': packed(*files[1:], **{files[0].name: files[0].read_bytes()[:700]})}
    for name, raw in names.items(): (folder / f'{name}.zip').write_bytes(raw)
    (folder / 'in a folder').mkdir()
    (folder / 'in a folder/p.zip').write_bytes(plain)
    (folder / 'in a folder/q.zip').write_bytes(packed(*files[:3], top='again/'))
    with zipfile.ZipFile(folder / 'long.zip', 'w') as z: # with the records of archives beyond 4 GiB
        for f in files:
            with z.open(f.name, 'w', force_zip64=True) as out: out.write(f.read_bytes())
    inner = b'nothing'
    for level in range(4):
        inner = packed(**{f'{k}.zip' if level else f'{k}.txt': inner for k in range(8)})
    (folder / 'many.zip').write_bytes(inner)
    return [*(f'{name}.zip' for name in names), 'in a folder', 'long.zip', 'many.zip']


def test_archives_as_python_reads_them(node, tmp_path):
    pytest.importorskip('pydicom')
    who = make_subject(3, (40, 36, 10))
    names = archives(tmp_path, write_series(who.hu, who.affine, tmp_path / 'series'))
    answers = series_as_python_reads_them(node, tmp_path, names)
    assert sum('bad' not in answer for answer in answers) == 12
    assert 'is encrypted' in answers[names.index('locked.zip')]['bad']


def test_a_file_that_unpacks_to_more_than_it_says(node, tmp_path):
    pytest.importorskip('pydicom')
    from test_hostile import deflated as packed_again
    who = make_subject(3, (40, 36, 10))
    for name, more in (('plain', 0), ('large', 40)):
        files = write_series(who.hu, who.affine, tmp_path / name)
        for file in files: packed_again(file)
        if more: packed_again(files[2], more)
    cut = write_series(who.hu, who.affine, tmp_path / 'cut')[4]
    packed_again(cut)
    cut.write_bytes(cut.read_bytes()[:-900])
    plain, large, short = series_as_python_reads_them(node, tmp_path, ['plain', 'large', 'cut'])
    assert 'bad' not in plain and 'unpacks to more' in large['bad'] and 'truncated' in short['bad']


def test_masks_and_other_formats_are_named(node, tmp_path):
    pytest.importorskip('highdicom')
    from liverseg.dicom import read_series
    from liverseg.seg import write_seg
    who = make_subject(3, (40, 36, 10))
    write_series(who.hu, who.affine, tmp_path / 'series')
    series = read_series(tmp_path / 'series')
    write_seg(tmp_path / 'liver.dcm', series, series.data > 50)
    (tmp_path / 'a.nrrd').write_bytes(b'NRRD0004')
    (tmp_path / 'b.mha').write_bytes(b'ObjectType = Image')
    shutil.copy(series.files[3], tmp_path / 'one.dcm')
    names = 'liver.dcm', 'a.nrrd', 'b.mha', 'one.dcm'
    seg, nrrd, mha, one = node(*(dict(job='series', path=tmp_path / name) for name in names))
    assert seg['bad'] == 'liver.dcm: is a DICOM SEG, which holds a mask and no scan; give the CT series'
    for name, answer in (('a.nrrd', nrrd), ('b.mha', mha)):
        assert answer['bad'].startswith(f'{name}: is NRRD or MetaImage')
    assert one['shape'] == [40, 36, 1] and one['notes'] == [str(n) for n in read_volume(tmp_path / 'one.dcm').notes]


def test_packings_that_only_python_knows(node, tmp_path):
    files = write_series(np.zeros((9, 9, 3)), np.eye(4), tmp_path / 'series')
    for name in ('BZIP2', 'LZMA'):
        (tmp_path / f'{name}.zip').write_bytes(packed(*files, method=getattr(zipfile, f'ZIP_{name}')))
    first, second = node(*(dict(job='series', path=tmp_path / f'{n}.zip') for n in ('BZIP2', 'LZMA')))
    assert 'BZIP2.zip/image_0: is packed with bzip2' in first['bad'] and 'with LZMA' in second['bad']


# The page itself


class Served:
    "A folder on a port of its own, and the requests it received"
    def __init__(self, folder):
        asked = self.asked = []
        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args): asked.append(self.path)
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f'http://127.0.0.1:{self.server.server_port}/some/where/'
    def asked_since(self, n):
        "Later requests, except the browser's own check for a newer service worker, which carries no data"
        return [path for path in self.asked[n:] if not path.endswith('/try-sw.js')]
    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "A folder with the site two folders below it"
    pytest.importorskip('smalldocs')
    pytest.importorskip('selenium')
    from make_web import alone
    root = tmp_path_factory.mktemp('web')
    if why := alone(root / 'some/where'): pytest.skip(why)
    return root


@pytest.fixture(scope='session')
def served(built):
    server = Served(built)
    yield server
    server.close()


@pytest.fixture(scope='session')
def downloads(tmp_path_factory): return tmp_path_factory.mktemp('downloads')


@pytest.fixture(scope='session')
def browser(downloads):
    driver = chromium(**{'download.default_directory': str(downloads),
                         'profile.default_content_setting_values.automatic_downloads': 1})
    yield driver
    driver.quit()


class Page:
    "The page, used as a reader would"
    def __init__(self, browser, address, query='?threads=1'):
        self.browser = browser
        browser.get(address + 'try.html' + query)
        self.until(lambda: browser.execute_script('return document.documentElement.dataset.try') or self.wrong(),
                   'ready')
    def until(self, test, what, seconds=200):
        end = time.time() + seconds
        while time.time() < end:
            if found := test(): return found
            time.sleep(.1)
        raise AssertionError(f'{what}: not within {seconds} s; the page says {self.text("status")!r} {self.wrong()!r}')
    def text(self, name):
        return self.browser.execute_script(f'return document.getElementById("try-{name}").textContent')
    def wrong(self): return self.text('wrong')
    def click(self, name): self.browser.execute_script(f'document.getElementById("try-{name}").click()')
    def focus(self): return self.browser.execute_script('return document.activeElement.id')
    def forget(self):
        "So that the next answer is not taken for the last one, which stays until the page has seen the next file"
        self.browser.execute_script('window.tryResult = null; document.getElementById("try-wrong").textContent = ""')
    def result(self):
        "The result, or the error message"
        return self.until(lambda: self.wrong() or self.browser.execute_script('return window.tryResult'), 'result')
    def give(self, path, thorough=False, more=()):
        self.forget()
        box = self.browser.find_element('id', 'try-thorough')
        if box.is_selected() != thorough: self.click('thorough')
        paths = '\n'.join(map(str, [path, *more]))
        self.browser.find_element('id', 'try-folder' if path.is_dir() else 'try-file').send_keys(paths)
        return self.result()
    def save(self, folder, name):
        "The file that the page saves"
        path = folder / name
        path.unlink(missing_ok=True)
        self.click('save')
        # a browser reserves the name before the file is whole
        whole = lambda: path.exists() and path.stat().st_size and not [*folder.glob('*.crdownload'),
                                                                       *folder.glob('*.part')]
        self.until(whole, f'{name} saved')
        return path
    def set(self, name, value):
        self.browser.execute_script(f'const e = document.getElementById("try-{name}"); e.value = {value}; '
                                    'e.dispatchEvent(new Event("input"))')


@pytest.fixture(scope='session')
def segmenter():
    from liverseg.predict import Segmenter
    return Segmenter.load('liver', 'cpu')


def as_predicted(result, saved, scan, segmenter, folder, **how):
    "Check that the page's mask and messages are those of `liverseg predict`"
    from liverseg.predict import predict
    assert isinstance(result, dict), result
    found = predict(scan, folder / 'python.nii.gz', segmenter, say=lambda text: None, **how)
    told = found.result()
    ours, theirs = nib.load(saved), nib.load(folder / 'python.nii.gz')
    a, b = (np.asarray(i.dataobj) > 0 for i in (ours, theirs))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    assert a.shape == b.shape and b.any()
    assert 2*(a & b).sum()/(a.sum() + b.sum()) >= .9995
    assert result['volume_ml'] == pytest.approx(told['volume_ml'], rel=1e-3)
    assert result['slices_looked_at'] == told['slices_looked_at']
    assert result['pieces_before_post'] == pytest.approx(told['pieces_before_post'], abs=2)
    assert result['warnings'] == told['warnings']
    assert result['expected_dice'] == pytest.approx(told['expected_dice'], abs=.002)
    assert (result['mirrored'] or 0) == pytest.approx(told['mirrored'] or 0, abs=.02)


def network(browser):
    "What the page has requested since the last call"
    messages = (json.loads(e['message'])['message'] for e in browser.get_log('performance'))
    return [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']


@needs_browser
def test_the_example_as_on_the_command_line_and_nothing_is_sent(served, browser, built, downloads, segmenter, tmp_path):
    page = Page(browser, served.address)
    assert browser.execute_script('return crossOriginIsolated')
    assert [e for e in browser.get_log('browser') if e['level'] in ('SEVERE', 'WARNING')] == []
    assert all(u.startswith((served.address, 'data:', 'blob:')) for u in network(browser))
    before = len(served.asked)
    page.click('example')
    result = page.result()
    assert page.focus() == 'try-heading'
    saved = page.save(downloads, 'example_liver.nii.gz')
    as_predicted(result, saved, built / 'some/where/try/example.nii.gz', segmenter, tmp_path)
    assert 'not a medical device' in browser.execute_script('return document.querySelector("main").innerText')
    page.forget()
    page.set('threshold', 20)
    assert page.result()['volume_ml'] > result['volume_ml']*1.01
    page.forget()
    page.set('threshold', 50)
    assert page.result()['volume_ml'] == pytest.approx(result['volume_ml'], rel=1e-3)
    for name in ('axial', 'front', 'side', 'solid'):
        red = browser.execute_script(f'const c = document.querySelector("#try-{name} canvas"); '
                                     'const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data; '
                                     'let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] > d[i + 1] + 40; '
                                     'return 4*n/d.length')
        assert red > .01, f'{name}: no liver in red'
    assert [u for u in network(browser) if u.startswith('http')] == []
    assert served.asked_since(before) == []


@needs_browser
@pytest.mark.all
def test_a_scan_in_another_orientation(served, browser, downloads, segmenter, tmp_path):
    who = make_subject(11, (96, 96, 12), (3.6, 3.6, 5))
    stored_as(nib.Nifti1Image(who.hu, oblique(who.affine, 6)), 'PIL').to_filename(tmp_path / 'turned.nii.gz')
    page = Page(browser, served.address)
    result = page.give(tmp_path / 'turned.nii.gz')
    as_predicted(result, page.save(downloads, 'turned_liver.nii.gz'), tmp_path / 'turned.nii.gz', segmenter, tmp_path)


@needs_browser
@pytest.mark.all
def test_a_dicom_series(served, browser, downloads, segmenter, tmp_path):
    pytest.importorskip('pydicom')
    who = make_subject(12, (96, 96, 5), (3.6, 3.6, 12))
    write_series(who.hu, who.affine, tmp_path / 'series')
    page = Page(browser, served.address)
    result = page.give(tmp_path / 'series')
    as_predicted(result, page.save(downloads, 'series_liver.nii.gz'), tmp_path / 'series', segmenter, tmp_path)


@needs_browser
def test_wrong_files_in_the_page(served, browser, phantom, tmp_path):
    (tmp_path / 'files').mkdir()
    paths = hostile(tmp_path / 'files', phantom)
    chosen = [p for p in paths if p.name in ('cut.nii.gz', 'four.nii.gz', 'text.nii', 'hole.nii.gz')]
    with open(tmp_path / 'gigabyte.nii.gz', 'wb') as f: f.truncate(2**30)
    with open(tmp_path / 'gigabyte.nii', 'wb') as f: f.truncate(2**30)
    chosen += [tmp_path / 'gigabyte.nii.gz', tmp_path / 'gigabyte.nii']
    page = Page(browser, served.address)
    for path in chosen: assert page.give(path) == python_says(path)
    pytest.importorskip('pydicom')
    files = write_series(phantom.hu[:, :, :3], phantom.affine, tmp_path / 'mr', Modality='MR')
    assert page.give(tmp_path / 'mr') == python_says(tmp_path / 'mr')
    (tmp_path / 'mr.zip').write_bytes(packed(*files))
    (tmp_path / 'zeros.zip').write_bytes(packed(**{'1': bytes(2**28)}))
    for name in ('mr.zip', 'zeros.zip'): assert page.give(tmp_path / name) == python_says(tmp_path / name)


@needs_browser
@pytest.mark.all
@pytest.mark.parametrize('kind', ['zip', 'pair', 'frames'])
def test_a_scan_in_other_files(served, browser, downloads, segmenter, tmp_path, kind):
    pytest.importorskip('pydicom')
    who = make_subject(12, (96, 96, 5), (3.6, 3.6, 12))
    if kind == 'pair': nib.save(nib.Nifti1Pair(who.hu, who.affine), tmp_path / 'scan.img')
    else: files = write_series(who.hu, who.affine, tmp_path / 'series')
    if kind == 'zip': (tmp_path / 'scan.zip').write_bytes(packed(*files, top='CT/'))
    if kind == 'frames':
        compressed_in_one_file('JPEGLosslessProcess14_1')(files)
        (tmp_path / 'series/all.dcm').rename(tmp_path / 'scan.dcm')
    scan = tmp_path / {'zip': 'scan.zip', 'pair': 'scan.hdr', 'frames': 'scan.dcm'}[kind]
    page = Page(browser, served.address)
    result = page.give(scan, more=[scan.with_suffix('.img')] if kind == 'pair' else [])
    if kind == 'frames':
        from liverseg.predict import predict
        assert result['volume_ml'] == predict(scan, tmp_path / 'python.nii.gz', segmenter).result()['volume_ml']
    else: as_predicted(result, page.save(downloads, 'scan_liver.nii.gz'), scan, segmenter, tmp_path)


@needs_browser
@pytest.mark.all
def test_a_scan_that_is_not_ct_gets_a_warning(served, browser, phantom, segmenter, tmp_path):
    page = Page(browser, served.address)
    for name, data in dict(plus=(phantom.hu + 1024).astype(np.int16),
                           mask=(phantom.labels > 0).astype(np.uint8)).items():
        nib.Nifti1Image(data[:, :, 9:11], phantom.affine).to_filename(tmp_path / f'{name}.nii.gz')
        said = segmenter.segment(tmp_path / f'{name}.nii.gz').result()['warnings']
        assert page.give(tmp_path / f'{name}.nii.gz')['warnings'] == said


@needs_browser
@pytest.mark.all
@pytest.mark.parametrize('thorough', [False, True])
@pytest.mark.parametrize('codes, degrees, shear', [('LPS', 0, 0), ('ASR', 12, 0), ('IRP', 5, .08)])
def test_three_orientations(served, browser, downloads, segmenter, tmp_path, codes, degrees, shear, thorough):
    who = make_subject(21, (160, 160, 40), (2.2, 2.2, 4))
    img = nib.Nifti1Image(who.hu, oblique(who.affine, degrees, shear))
    stored_as(img, codes).to_filename(tmp_path / f'{codes}.nii.gz')
    page = Page(browser, served.address)
    result = page.give(tmp_path / f'{codes}.nii.gz', thorough)
    as_predicted(result, page.save(downloads, f'{codes}_liver.nii.gz'), tmp_path / f'{codes}.nii.gz', segmenter,
                 tmp_path, thorough=thorough)


@needs_browser
@pytest.mark.all
@pytest.mark.parametrize('syntax', ['RLE', 'JPEGLosslessProcess14_1', 'JPEG2000Lossless', 'JPEGLSLossless'])
def test_a_compressed_series(served, browser, downloads, segmenter, tmp_path, syntax):
    who = make_subject(12, (128, 128, 12), (2.7, 2.7, 10))
    compressed(syntax)(write_series(who.hu, who.affine, tmp_path / 'series'))
    page = Page(browser, served.address)
    before = len(served.asked)
    result = page.give(tmp_path / 'series')
    as_predicted(result, page.save(downloads, 'series_liver.nii.gz'), tmp_path / 'series', segmenter, tmp_path)
    assert served.asked_since(before) == []


@needs_browser
@pytest.mark.all
@pytest.mark.parametrize('thorough', [False, True])
def test_patient_17(served, browser, downloads, segmenter, tmp_path, thorough):
    scan = shared('ircad', 'test', 'nii', 'ircad_e17_orig.nii.gz')
    page = Page(browser, served.address, '')
    result = page.give(scan, thorough)
    as_predicted(result, page.save(downloads, 'ircad_e17_orig_liver.nii.gz'), scan, segmenter, tmp_path,
                 thorough=thorough)


def resident(browser):
    "Bytes of the largest process of the browser, all threads of its page among them"
    mine, pages = {browser.service.process.pid}, []
    command = ['ps', '-eo', 'pid,ppid,rss', '--no-headers', '--sort', 'start_time']
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        pid, parent, rss = map(int, line.split())
        if parent in mine: mine.add(pid); pages.append(1024*rss)
    return max(pages)


@needs_browser
@pytest.mark.all
def test_900_slices_of_512x512_pass_in_2_gb(served, browser, tmp_path):
    # 40 slices of body, air above and below: only the memory matters
    who = make_subject(4, (128, 128, 45))
    large = np.full((512, 512, 900), -1000, np.int16)
    large[:, :, 400:440] = np.repeat(np.repeat(who.hu[:, :, 22], 4, 0), 4, 1)[..., None]
    nib.Nifti1Image(large, np.diag([.8, .8, .5, 1])).to_filename(tmp_path / 'large.nii')
    del large
    page, most = Page(browser, served.address, ''), []
    page.forget()
    browser.find_element('id', 'try-file').send_keys(str(tmp_path / 'large.nii'))
    def found():
        most.append(resident(browser))
        return page.wrong() or browser.execute_script('return window.tryResult')
    result = page.until(found, 'result', 900)
    assert isinstance(result, dict) and result['liver_found'], result
    print(f'{max(most)/1e9:.2f} GB at most')
    assert max(most) < 2e9


class Firefox:
    "Firefox by WebDriver BiDi, which needs no geckodriver; only the methods that Page uses"
    def __init__(self, profile, downloads):
        import websocket # of selenium
        wanted = {'browser.download.folderList': 2, 'browser.download.dir': str(downloads),
                  'browser.shell.checkDefaultBrowser': False}
        (profile / 'user.js').write_text(''.join(f'user_pref({json.dumps(k)}, {json.dumps(v)});\n' for k,
                                                 v in wanted.items()))
        self.process = subprocess.Popen([shutil.which('firefox-esr'), '--headless', '--profile', str(profile),
                                         '--remote-debugging-port', '0', 'about:blank'],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stderr if 'WebDriver BiDi listening on' in line)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.socket = websocket.create_connection(line.split()[-1] + '/session', timeout=60, suppress_origin=True)
        self.n = 0
        self.ask('session.new', capabilities={})
        self.context = self.ask('browsingContext.getTree')['contexts'][0]['context']
    def ask(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while (answer := json.loads(self.socket.recv())).get('id') != self.n: pass
        if answer['type'] == 'error': raise RuntimeError(answer['message'])
        return answer['result']
    def get(self, url): self.ask('browsingContext.navigate', context=self.context, url=url, wait='none')
    def execute_script(self, code):
        code = f'JSON.stringify((() => {{ {code} }})() ?? null)'
        try: found = self.ask('script.evaluate', expression=code, target=dict(context=self.context), awaitPromise=False)
        except RuntimeError: return None # the page was being loaded
        return json.loads(found['result']['value']) if found['type'] == 'success' else None
    def quit(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.mark.all
@pytest.mark.skipif(not shutil.which('firefox-esr'), reason='needs firefox-esr')
def test_the_example_in_firefox(served, built, segmenter, tmp_path):
    for name in ('profile', 'downloads'): (tmp_path / name).mkdir()
    firefox = Firefox(tmp_path / 'profile', tmp_path / 'downloads')
    try:
        page = Page(firefox, served.address)
        assert firefox.execute_script('return crossOriginIsolated')
        before = len(served.asked)
        page.click('example')
        result = page.result()
        as_predicted(result, page.save(tmp_path / 'downloads', 'example_liver.nii.gz'),
                     built / 'some/where/try/example.nii.gz', segmenter, tmp_path)
        assert served.asked_since(before) == []
    finally: firefox.quit()


@needs_browser
def test_cancel_and_go_on(served, browser, built):
    page = Page(browser, served.address)
    page.click('example')
    page.until(lambda: page.text('status').startswith('Slice'), 'a slice')
    assert page.focus() == 'try-cancel'
    page.click('cancel')
    page.until(lambda: page.text('status').startswith('Cancelled'), 'cancelled')
    assert page.focus() == 'try-file-button'
    assert browser.execute_script('return document.getElementById("try-result").hidden')
    page.click('example')
    page.until(lambda: page.text('status').startswith('Slice 1 '), 'starting again')
    page.click('cancel')
    page.until(lambda: page.text('status').startswith('Cancelled'), 'cancelled')


@needs_browser
def test_it_fits_and_can_be_used_by_keyboard(served, browser):
    from selenium.webdriver.common.keys import Keys
    page = Page(browser, served.address)
    for width in (390, 1300):
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
        # the results, too
        browser.execute_script('for (const e of document.querySelectorAll("#try [hidden]")) e.hidden = false')
        size = browser.execute_script('return [document.documentElement.scrollWidth, '
                                      'document.documentElement.clientWidth]')
        assert size[0] <= size[1], width
    nameless = browser.execute_script("""const kinds = ['button', 'input', 'canvas', 'progress'];
        const named = e => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length
        const all = [...document.querySelectorAll(kinds.map(kind => '#try ' + kind))]
        return all.filter(e => !named(e)).map(e => e.outerHTML)""")
    assert nameless == []
    reached = []
    browser.execute_script('document.getElementById("try-file-button").focus()')
    for _ in range(3):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.get_attribute('id'))
    assert reached == ['try-folder-button', 'try-example', 'try-thorough']
    assert page.wrong() == ''


CONTRAST = """const value = c => c <= 10.31475 ? c/3294.6 : ((c/255 + .055)/1.055)**2.4
    const light = c => .2126*value(c[0]) + .7152*value(c[1]) + .0722*value(c[2])
    const parts = text => { const p = text.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p }
    function ground(e) {
        for (; e; e = e.parentElement) {
            const p = parts(getComputedStyle(e).backgroundColor)
            if (p[3] === 1) return p
        }
        return [255, 255, 255]
    }
    const found = [], words = document.createTreeWalker(document.getElementById('try'), NodeFilter.SHOW_TEXT)
    for (let e; words.nextNode();) {
        e = words.currentNode.parentElement
        if (!words.currentNode.textContent.trim() || !e.checkVisibility() || e.closest('noscript, style')) continue
        const [a, b] = [light(parts(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => b - a)
        found.push([(a + .05)/(b + .05), words.currentNode.textContent.trim()])
    }
    const example = document.getElementById('try-example')
    example.focus({focusVisible: true})
    const two = [parts(getComputedStyle(example).outlineColor), ground(example.parentElement)]
    const [a, b] = two.map(light).sort((a, b) => b - a)
    return [found, (a + .05)/(b + .05)]"""


@needs_browser
def test_its_words_stand_out_by_day_and_by_night(served, browser):
    "WCAG 2.1: text has a contrast of 4.5 to 1 and more; the frame of what has the focus, of 3 to 1"
    for scheme in ('light', 'dark'):
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia',
                                dict(features=[dict(name='prefers-color-scheme', value=scheme)]))
        Page(browser, served.address)
        browser.execute_script('for (const e of document.querySelectorAll("#try [hidden]")) e.hidden = false')
        found, frame = browser.execute_script(CONTRAST)
        assert frame >= 3, frame
        assert len(found) > 20 and [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5] == []
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[]))


@needs_browser
def test_the_second_visit_needs_no_network(built, browser, phantom, tmp_path):
    server = Served(built)
    Page(browser, server.address)
    server.close()
    page = Page(browser, server.address)
    nib.Nifti1Image(phantom.hu[:, :, 9:11], phantom.affine).to_filename(tmp_path / 'two.nii.gz')
    assert page.give(tmp_path / 'two.nii.gz')['slices_looked_at'] == 2


@needs_browser
def test_another_network_is_refused(built, browser, tmp_path):
    shutil.copytree(built, tmp_path / 'site', copy_function=shutil.os.link)
    network = tmp_path / 'site/some/where/try/liver.onnx'
    raw = bytearray(network.read_bytes())
    raw[len(raw)//2] ^= 1
    network.unlink()
    network.write_bytes(raw)
    server = Served(tmp_path / 'site')
    assert 'it is damaged or another file' in Page(browser, server.address).wrong()
    server.close()


def test_without_npm_the_site_has_no_such_page(monkeypatch, tmp_path):
    import make_web
    monkeypatch.setattr(make_web.shutil, 'which', lambda name: None)
    assert make_web.place(tmp_path) == 'npm is not installed' and list(tmp_path.iterdir()) == []


def test_every_package_has_a_hash_and_a_licence():
    from make_web import VENDOR, licences
    told = json.loads((ROOT / 'web/package-lock.json').read_text())['packages']
    assert all(p['integrity'].startswith('sha512-') and p.get('license') for name, p in told.items() if name)
    pinned = json.loads((ROOT / 'web/package.json').read_text())['dependencies']
    assert all(version[0].isdigit() for version in pinned.values())
    text = licences()
    assert all(f'{name} {version}' in text for name, version in pinned.items()) and 'has no licence text' not in text
    assert all('/'.join(v.split('/')[:2 if v[0] == '@' else 1]) in pinned for v in VENDOR.values())
