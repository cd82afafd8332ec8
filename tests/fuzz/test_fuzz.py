"Some 260 cases in `make test`, more than 5000 in `make test-all`; what fails says how to run it again."
import os

import pytest

if not hasattr(os, 'fork'): pytest.skip('cases run in forked processes', allow_module_level=True)
from fuzz import run_cases
from kinds import KINDS

FEW = dict(nifti=60, dicom=50, slices=30, table=30, names=16, model=12, onnx=12, archive=50)
# each fault that has a name, more than once
MANY = dict(nifti=1000, dicom=1000, slices=1000, table=600, names=348, model=200, onnx=200, archive=1000)


@pytest.mark.parametrize('kind', KINDS)
def test_a_few(kind):
    answers, failed = run_cases(kind, 0, range(FEW[kind]))
    assert not failed, '\n'.join(failed)
    assert answers['sentence'] and answers['right'] # or nothing was damaged, or everything


@pytest.mark.all
@pytest.mark.parametrize('kind', KINDS)
def test_thousands(kind):
    _, failed = run_cases(kind, 1, range(MANY[kind]))
    assert not failed, '\n'.join(failed)
