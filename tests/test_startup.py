"What is loaded for what: a mask must not cost the training loop, an ONNX file no torch, and a refusal neither."
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT


def loaded(code, cwd):
    "Which of the heavy libraries a fresh process has loaded after that code"
    heavy = ('torch', 'fastai', 'torchvision', 'timm', 'matplotlib')
    tell = f'import json, sys\nprint(json.dumps([m for m in {heavy} if m in sys.modules]))'
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'{code}\n{tell}'], capture_output=True, text=True,
                          cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


MASK = '''
from liverseg.phantom import make_subject, write_subject
scan = write_subject(make_subject(5, (96, 96, 16)), '.', 's')[0]
from liverseg.predict import predict
predict(scan, 'mask.nii.gz', {!r}, 'none', 'cpu')
'''


def test_a_mask_loads_torch_and_no_more(tmp_path):
    assert loaded(MASK.format('liver'), tmp_path) == {'torch'}


def test_a_mask_of_an_onnx_file_loads_no_torch(tmp_path):
    from liverseg.save import export_onnx
    assert loaded(MASK.format(str(export_onnx(tmp_path / 'liver.onnx'))), tmp_path) == set()


@pytest.mark.parametrize('words', [
    ['predict', 'wrong.nii.gz', 'mask.nii.gz'], ['predict', 'nothing.nii.gz', 'mask.nii.gz'], ['check', '.'],
    ['convert', 'nothing', 'png'],
    ['train', 'nothing', 'm', '--size', '7'], ['evaluate', 'nothing', 'report']])
def test_a_refusal_loads_nothing(words, tmp_path):
    (tmp_path / 'wrong.nii.gz').write_bytes(b'no scan')
    code = (f'import sys\nsys.argv = ["liverseg", *{words!r}]\nfrom liverseg.cli import main\n'
            'try: main()\nexcept SystemExit as e: assert e.code')
    assert not loaded(code, tmp_path) & {'torch', 'fastai', 'torchvision'}
