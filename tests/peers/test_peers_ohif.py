"""What we write, through the code that OHIF lays segmentations over a scan with: the mask must lie on its slices, voxel
by voxel."""
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from test_seg import GRIDS, pydicom, scan, write_seg

HERE = Path(__file__).parent
PACKAGES = ['@cornerstonejs/adapters@5.14.0', '@babel/runtime@7', 'esbuild@0.28.2'] # of npm, 100 MB
ENTRY = "export { adaptersSEG } from '@cornerstonejs/adapters'; export { metaData } from '@cornerstonejs/core';"


@pytest.fixture(scope='session')
def bundle(tmp_path_factory):
    "The adapter as one file for Node"
    folder = tmp_path_factory.mktemp('ohif')
    if not (shutil.which('node') and shutil.which('npm')): pytest.skip('node and npm are not installed')
    (folder / 'entry.mjs').write_text(ENTRY)
    npm = ['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', *PACKAGES]
    if subprocess.run(npm, cwd=folder, capture_output=True).returncode:
        pytest.skip('npm cannot install the adapter (no connection?)')
    made = [str(folder / 'node_modules/.bin/esbuild'), 'entry.mjs', '--bundle', '--outfile=bundle.cjs', '--format=cjs',
            '--platform=node', '--loader:.wasm=dataurl',
            '--define:import.meta.url="file:///"']
    done = subprocess.run(made, cwd=folder, capture_output=True, text=True)
    assert (folder / 'bundle.cjs').exists(), done.stderr
    return folder / 'bundle.cjs'


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
                                      rowPixelSpacing=pixel[0], columnPixelSpacing=pixel[1],
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
