"Killed processes, two runs at once, and the promise that the same command gives the same files."
import os
import shutil
import signal
import subprocess
import time

import filelock
import nibabel as nib
import numpy as np

from conftest import LIVERSEG, content, run
from liverseg.phantom import make_cohort


def test_killed_and_started_again(tmp_path):
    "SIGKILL in the middle: nothing under the target's name, the workers end, and the next run does the rest"
    make_cohort(tmp_path / 'data', n_train=6, n_test=2, seed=1, shape=(160, 160, 40))
    run('convert', tmp_path / 'data', tmp_path / 'whole', ok=0)
    part = tmp_path / '.png.partial'
    done = subprocess.Popen([*LIVERSEG, 'convert', str(tmp_path / 'data'), str(tmp_path / 'png'), '--workers', '2'],
                            start_new_session=True)
    started = time.time()
    while not list(part.glob('manifests/*.csv')) and done.poll() is None and time.time() - started < 60:
        time.sleep(.002)
    os.kill(done.pid, signal.SIGKILL)
    done.wait()
    assert not (tmp_path / 'png').exists()
    finished = {p.name.split('.')[1] for p in part.glob('.done/*e0*.json') if '"slices"' in p.read_text()}
    assert len(finished) < 8
    deadline = time.time() + 20
    while workers := subprocess.run(['pgrep', '-g', str(done.pid)], capture_output=True, text=True).stdout.split():
        assert time.time() < deadline, f'workers {workers} outlived their parent'
        time.sleep(.1)
    images = {p: p.stat().st_mtime_ns for p in part.rglob('*.png') if p.name[:9] in finished}
    run('convert', tmp_path / 'data', tmp_path / 'png', ok=0)
    assert content(tmp_path / 'png') == content(tmp_path / 'whole')
    for old, when in images.items():  # what was finished was not done again
        assert (tmp_path / 'png' / old.relative_to(part)).stat().st_mtime_ns == when
    assert sorted(p.name for p in tmp_path.iterdir()) == ['data', 'png', 'whole']


def test_another_source_leaves_nothing_behind(src, tmp_path):
    "Killed while converting one folder, then another is converted to the same place: nothing of the first is in it"
    run('convert', src, tmp_path / 'a', ok=0)
    part = tmp_path / '.png.partial'
    (part / '.done').mkdir(parents=True), (part / 'train/images').mkdir(parents=True)
    meta = (tmp_path / 'a/dataset.json').read_text()
    import json
    options = dict(json.loads(meta), preview=False, layout=2)
    (part / '.done/options.json').write_text(json.dumps(options, sort_keys=True))
    (part / 'train/images/stranger_000.png').write_bytes(b'x')
    run('convert', src, tmp_path / 'png', ok=0)
    assert content(tmp_path / 'png') == content(tmp_path / 'a')


def test_a_left_over_of_other_options_is_thrown_away(src, tmp_path):
    run('convert', src, tmp_path / 'clean', '--window', '0,255', ok=0)
    stale = tmp_path / '.png.partial'
    (stale / '.done').mkdir(parents=True)
    (stale / '.done/options.json').write_text('{}'), (stale / 'litter').write_text('x')
    run('convert', src, tmp_path / 'png', '--window', '0,255', ok=0)
    assert content(tmp_path / 'png') == content(tmp_path / 'clean')


def test_a_second_run_refuses(src, tmp_path):
    with filelock.FileLock(tmp_path / '.png.lock'):
        assert 'another run' in run('convert', src, tmp_path / 'png', ok=1).stderr
    assert not (tmp_path / 'png').exists()


def test_a_dead_lock_is_no_lock(src, tmp_path):
    (tmp_path / '.png.lock').touch()
    run('convert', src, tmp_path / 'png', ok=0)


def test_same_command_same_files(src, tmp_path):
    run('convert', src, tmp_path / 'a', ok=0)
    run('convert', src, tmp_path / 'b', '--workers', 2, ok=0)
    run('convert', src, tmp_path / 'b', ok=0)  # once more over itself
    assert content(tmp_path / 'a') == content(tmp_path / 'b')


def test_quiet_when_piped(src, png, tmp_path):
    done = run('convert', src, tmp_path / 'a', ok=0)
    assert done.stderr == '' and len(done.stdout.splitlines()) == 1
    done = run('train', png, tmp_path / 'm', '--size', 64, '--epochs', 1, '--arch', 'resnet18', '--no-pretrained',
               '--device', 'cpu', ok=0)
    assert done.stderr == '' and '%' not in done.stdout and '\r' not in done.stdout


def test_training_killed_and_started_again(png, tmp_path):
    """SIGKILL after the third of four epochs: nothing under the model's name, and the next run ends with the same
    weights"""
    how = ['--size', '64', '--epochs', '4', '--arch', 'lite', '--device', 'cpu']
    run('train', png, tmp_path / 'whole', *how, ok=0)
    done = subprocess.Popen([*LIVERSEG, 'train', str(png), str(tmp_path / 'model'), *how], stdout=subprocess.PIPE,
                            text=True)
    for line in done.stdout:
        if line.startswith('epoch 3 '): break
    os.kill(done.pid, signal.SIGKILL)
    done.wait()
    assert not (tmp_path / 'model').exists()
    again = run('train', png, tmp_path / 'model', *how, ok=0)
    assert 'going on from there' in again.stdout and 'epoch 1 of' not in again.stdout
    assert (tmp_path / 'model/model.safetensors').read_bytes() == (tmp_path / 'whole/model.safetensors').read_bytes()
    assert (tmp_path / 'model/model.json').read_bytes() == (tmp_path / 'whole/model.json').read_bytes()
    assert sorted(content(tmp_path / 'model')) == sorted(content(tmp_path / 'whole'))


def test_an_evaluation_killed_and_started_again(tmp_path):
    "What was measured is not measured again, but for a mask that has changed since; the report is that of one run"
    make_cohort(tmp_path / 'data', n_train=8, n_test=1, seed=1, shape=(160, 160, 40))
    masks, pred = tmp_path / 'masks', tmp_path / 'pred'
    masks.mkdir(), pred.mkdir()
    for k, mask in enumerate(sorted(tmp_path.glob('data/train/nii/*_liver.nii.gz'))):
        img = nib.load(mask.rename(masks / mask.name))
        nib.save(nib.Nifti1Image(np.roll(np.asarray(img.dataobj), k, 0), img.affine), pred / mask.name)
    how = ['evaluate', '--pred', pred, '--truth', masks, '--liver', '1,2']
    journal = tmp_path / '.report.jsonl'
    done = subprocess.Popen([*LIVERSEG, *map(str, how), str(tmp_path / 'report')], stdout=subprocess.DEVNULL)
    while not journal.exists() or journal.read_text().count('\n') < 4: assert done.poll() is None
    os.kill(done.pid, signal.SIGKILL)
    done.wait()
    n = journal.read_text().count('\n') - 1
    first = pred / min(p.name for p in pred.iterdir())
    img = nib.load(first)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(img.dataobj), 9, 0), img.affine), first)
    with open(journal, 'a') as f: f.write('{"subject": "cut o')
    again = run(*how, tmp_path / 'report', ok=0)
    assert f'{n - 1} case(s) had been measured when the last run was stopped' in again.stdout + again.stderr
    found = content(tmp_path / 'report')
    shutil.rmtree(tmp_path / 'report')
    run(*how, tmp_path / 'report', ok=0)
    assert content(tmp_path / 'report') == found
    assert not list(tmp_path.glob('.*'))


def test_an_interrupted_training_with_other_options_starts_afresh(png, tmp_path):
    how = ['--size', '64', '--arch', 'resnet18', '--no-pretrained', '--device', 'cpu']
    done = subprocess.Popen([*LIVERSEG, 'train', str(png), str(tmp_path / 'model'), '--epochs', '9', *how],
                            stdout=subprocess.PIPE, text=True)
    for line in done.stdout:
        if line.startswith('epoch 1 '): break
    os.kill(done.pid, signal.SIGKILL)
    done.wait()
    again = run('train', png, tmp_path / 'model', '--epochs', '1', *how, ok=0)
    assert 'going on' not in again.stdout
    assert not list(tmp_path.glob('.model*'))
