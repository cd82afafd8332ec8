"Some 280 cases in `make test`, 4400 in `make test-all`; what fails says how to run it again."
import os

import pytest

if not hasattr(os, 'fork'): pytest.skip('cases run in forked processes', allow_module_level=True)
from fuzz import run_cases
from kinds import KINDS


@pytest.mark.parametrize('kind', KINDS)
def test_a_few(kind):
    answers, failed = run_cases(kind, 0, range(20 if kind in ('model', 'onnx') else 60))
    assert not failed, '\n'.join(failed)
    assert answers['sentence'] and answers['right'] # or nothing was damaged, or everything


@pytest.mark.all
@pytest.mark.parametrize('kind', KINDS)
def test_thousands(kind):
    _, failed = run_cases(kind, 1, range(200 if kind in ('model', 'onnx') else 1000))
    assert not failed, '\n'.join(failed)
