"A long scan must not need more memory than it takes to hold it a few times."
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

PEAK = """
import re, sys
from liverseg.predict import predict
model, scan, out = sys.argv[1:4]
predict(scan, out, model, device='cpu', post=['largest', 'fill'], say=lambda s: None)
# GB; ru_maxrss would count what the parent held before
print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])/1e6)
"""


def scan(path, slices, body):
    "A stored scan of noisy slices, written piece by piece"
    img = nib.Nifti1Image(np.broadcast_to(np.int16(0), (512, 512, slices)), np.diag([.7, .7, 1, 1]))
    img.header.set_data_dtype(np.int16)
    header = img.header
    header['vox_offset'] = 352
    with path.open('wb') as f:
        f.write(header.binaryblock + b'\0'*4)
        for _ in range(slices): f.write(body.tobytes())
    return path


def peak(model, path, out):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', PEAK, str(model), str(path), str(out)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the peak is read from /proc')
def test_nine_hundred_slices_fit_into_two_and_a_half_gigabytes(model, tmp_path):
    rng = np.random.default_rng(0)
    body = (rng.normal(60, 40, (512, 512))).astype(np.int16)
    small, large = (peak(model, scan(tmp_path / f'{n}.nii', n, body), tmp_path / f'm{n}.nii.gz') for n in (4, 900))
    print(f'{small:.2f} GB for 4 slices, {large:.2f} GB for 900')
    assert large - small <= 2.5
