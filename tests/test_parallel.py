"""Several processes that train one model, as `accelerate launch` starts them."""
import os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest

from conftest import LIVERSEG

LAUNCH = [str(Path(sys.executable).with_name('accelerate')), 'launch', '--multi_gpu', '--num_processes', '2',
          '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
ENV = dict(os.environ, OMP_NUM_THREADS='1')


def start(*command, timeout=300):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout, env=ENV)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_take_the_steps_of_one(png, tmp_path):
    "With BatchNorm frozen: the same losses on the joint batches, the same Dice of cases, and one set of weights"
    worker = Path(__file__).with_name('parallel_worker.py')
    start(sys.executable, worker, png, tmp_path / 'one')
    start(*LAUNCH, worker, png, tmp_path / 'two')
    one, two, other = (np.loadtxt(tmp_path / f) for f in ('one/losses0.txt', 'two/losses0.txt', 'two/losses1.txt'))
    assert len(one) == 4 + 4 + 2  # steps of two epochs, validation loss and Dice
    assert one[0] != pytest.approx(one[7], abs=1e-2)  # something was learned
    assert one[:8] == pytest.approx(two[:8], abs=1e-4)
    assert (two == other).all()
    assert one[-1] == pytest.approx(two[-1], abs=1e-3)  # Dice of the validation cases
    assert (tmp_path / 'two/weights0.safetensors').read_bytes() == (tmp_path / 'two/weights1.safetensors').read_bytes()


def test_two_processes_make_one_model(png, tmp_path):
    said = start(*LAUNCH, LIVERSEG[-1] if len(LIVERSEG) == 1 else Path(sys.executable).with_name('liverseg'), 'train',
                 png, tmp_path / 'model', '--size', 64, '--epochs', 2,
                 '--arch', 'resnet18', '--no-pretrained', '--device', 'cpu')
    assert said.count('epoch 1 of 2') == said.count('epoch 2 of 2') == said.count('model in') == 1
    assert sorted(p.name for p in (tmp_path / 'model').iterdir()) == [
        'batch.png', 'history.csv', 'loss.png', 'model.json', 'model.safetensors', 'valid.png']
    assert [p.name for p in tmp_path.iterdir()] == ['model']
