"""What we write, through the code that OHIF lays segmentations over a scan with: the mask must lie on its slices, voxel
by voxel, and on the liver on the screen."""
import base64
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import chromium, needs_browser
from test_seg import GRIDS, pydicom, scan, write_seg

HERE = Path(__file__).parent
PACKAGES = ['@cornerstonejs/adapters@5.14.0', '@babel/runtime@7', 'esbuild@0.28.2'] # of npm, 100 MB
SHOWN = ['@cornerstonejs/core@5.14.0', '@cornerstonejs/tools@5.14.0', 'events@3.3.0']
ENTRY = "export { adaptersSEG } from '@cornerstonejs/adapters'; export { metaData } from '@cornerstonejs/core';"


def bundled(folder, packages, entry, *options):
    "Packages of npm and a module that imports them as one file"
    if not (shutil.which('node') and shutil.which('npm')): pytest.skip('node and npm are not installed')
    npm = ['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', *packages]
    if subprocess.run(npm, cwd=folder, capture_output=True).returncode:
        pytest.skip('npm cannot install the packages (no connection?)')
    (folder / 'entry.mjs').write_text(entry)
    made = [str(folder / 'node_modules/.bin/esbuild'), 'entry.mjs', '--bundle', '--outfile=bundle.cjs',
            '--loader:.wasm=dataurl', '--define:import.meta.url="file:///"', *options]
    done = subprocess.run(made, cwd=folder, capture_output=True, text=True)
    assert (folder / 'bundle.cjs').exists(), done.stderr
    return folder / 'bundle.cjs'


@pytest.fixture(scope='session')
def bundle(tmp_path_factory):
    "The adapter as one file for Node"
    return bundled(tmp_path_factory.mktemp('ohif'), PACKAGES, ENTRY, '--format=cjs', '--platform=node')


@pytest.fixture(scope='session')
def viewer(tmp_path_factory):
    "A browser with WebGL and a page with the viewer"
    folder = tmp_path_factory.mktemp('viewer')
    (folder / 'url.mjs').write_text('export const { URL, URLSearchParams } = globalThis') # for a package made for Node
    bundled(folder, [*PACKAGES, *SHOWN], (HERE / 'viewer.mjs').read_text(), '--format=iife', '--platform=browser',
            '--define:global=globalThis', '--alias:url=./url.mjs', '--external:fs', '--external:path',
            '--external:module').rename(folder / 'viewer.js')
    (folder / 'page.html').write_text('<!DOCTYPE html><meta charset="utf-8"><body><script src="viewer.js"></script>')
    driver = chromium('--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist')
    driver.set_script_timeout(300)
    def ask(code, *args):
        then = 'const done = arguments[arguments.length - 1]; '
        answer, error = driver.execute_async_script(
            f'{then}({code}).then(v => done([v, null]), e => done([null, String(e.stack ?? e)]))', *args)
        assert error is None, error
        return answer
    def show(pictures, seg):
        driver.get(f'file://{folder}/page.html')
        ask('window.openSeries(arguments[0], arguments[1])', pictures, base64.b64encode(seg.read_bytes()).decode())
        return ask
    yield show
    driver.quit()


def modules(ds, name):
    "A header as the viewer keeps it"
    numbers = lambda key: [float(v) for v in ds[key].value]
    at, axes, pixel = map(numbers, ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing'))
    keys = ('SOPInstanceUID', 'SeriesInstanceUID', 'StudyInstanceUID', 'FrameOfReferenceUID', 'SOPClassUID', 'Rows',
            'Columns')
    size = dict(rows=ds.Rows, columns=ds.Columns)
    return dict(id=name,
                instance={key: ds[key].value for key in keys} | dict(ImagePositionPatient=at,
                                                                     ImageOrientationPatient=axes, PixelSpacing=pixel),
                imagePlaneModule=dict(size, rowCosines=axes[:3], columnCosines=axes[3:], imagePositionPatient=at,
                                      imageOrientationPatient=axes,
                                      rowPixelSpacing=pixel[0], columnPixelSpacing=pixel[1], pixelSpacing=pixel,
                                      frameOfReferenceUID=ds.FrameOfReferenceUID),
                generalSeriesModule=dict(seriesInstanceUID=ds.SeriesInstanceUID, modality='CT'),
                generalImageModule=dict(sopInstanceUID=ds.SOPInstanceUID),
                imagePixelModule=dict(size, bitsAllocated=16, bitsStored=16, highBit=15, samplesPerPixel=1,
                                      photometricInterpretation='MONOCHROME2', pixelRepresentation=1))


@pytest.mark.all
@pytest.mark.parametrize('grid', GRIDS)
def test_ohif_lays_the_mask_on_its_slices(grid, bundle, tmp_path):
    "The slices in any order, as a viewer may sort them"
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    write_seg(tmp_path / 'liver.dcm', series, liver)
    order = np.random.default_rng(0).permutation(len(series.files))
    told = [modules(pydicom.dcmread(series.files[k]), f'wadouri:{k}') for k in order]
    (tmp_path / 'series.json').write_text(json.dumps(told))
    done = subprocess.run(['node', HERE / 'ohif.mjs', bundle, tmp_path / 'series.json', tmp_path / 'liver.dcm'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(order)
    for k in order:
        labels = np.frombuffer(bytes.fromhex(found[f'wadouri:{k}']), np.uint8).reshape(liver.shape[1::-1]).T
        np.testing.assert_array_equal(labels > 0, liver[:, :, k])


@needs_browser
@pytest.mark.all
@pytest.mark.parametrize('grid', GRIDS)
def test_the_overlay_lies_on_the_liver_on_the_screen(grid, viewer, tmp_path):
    "The scan shows the liver bright, and the SEG colours the same points of the screen"
    series, liver = scan(tmp_path / 'ct', *GRIDS[grid])
    write_seg(tmp_path / 'liver.dcm', series, liver)
    order = np.random.default_rng(0).permutation(len(series.files))
    bright = lambda k: base64.b64encode((100*liver[:, :, k].T).astype('<i2').tobytes()).decode()
    window = dict(voiLutModule=dict(windowCenter=[50], windowWidth=[100]))
    ask = viewer([modules(pydicom.dcmread(series.files[k]), f'made:{k}') | window | dict(pixels=bright(k))
                  for k in order], tmp_path / 'liver.dcm')
    for k, n in zip(order, ask('window.showStack()')):
        # scan and mask are drawn apart, and may differ in the last point before an edge, but nowhere else
        assert n['far'] == 0 and (n['red'] > 0) == (n['bright'] > 0) == liver[:, :, k].any(), (k, n)
        assert n['bright'] >= 25*liver[:, :, k].sum() # a voxel has five points and more on each side
    if grid == 'tilted': return # not a volume for a viewer: its slices are not above each other
    for name, points in ask('window.showVolume()').items():
        points = np.array(points)
        cells = nib.affines.apply_affine(np.linalg.inv(series.affine), points[:, :3]*[-1, -1, 1])
        clear = np.abs(cells - np.floor(cells) - .5).min(1) > .2 # not between two voxels
        cells = np.rint(cells).astype(int)
        inside = ((cells >= 0) & (cells < liver.shape)).all(1)
        there = np.zeros(len(points), bool)
        there[inside] = liver[tuple(cells[inside].T)]
        assert there[clear].sum() > 50 and (there == points[:, 3])[clear].mean() > .999, name
