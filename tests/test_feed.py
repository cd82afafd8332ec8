"""Training is fed: slices are checked once, read by other processes, and give the same model."""
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import LIVERSEG, content, run

TRAIN = ('--size', 64, '--epochs', 1, '--arch', 'lite', '--no-pretrained', '--device', 'cpu')


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Slices of no simple size, for the three kinds of PNG"
    from liverseg.convert import convert
    from liverseg.phantom import make_cohort
    tmp = tmp_path_factory.mktemp('odd')
    make_cohort(tmp / 'data', n_train=2, n_test=0, seed=3, shape=(90, 77, 18))
    three = [(-150, 250), (0, 160), (-1000, 600)]
    for name, how in dict(one=dict(), three=dict(windows=three), deep=dict(bits=16)).items():
        convert(tmp / 'data', tmp / name, **how)
    return tmp


@pytest.mark.parametrize('size', (64, 96))
@pytest.mark.parametrize('kind', ('one', 'three', 'deep'))
def test_batches_are_those_of_fastai(odd, kind, size):
    "Shrunk or enlarged, of one window or three or in HU: types, strides and bits"
    from liverseg.data import liver_block, liver_dls, training_table
    table = training_table(odd / kind)
    own = liver_block(odd / kind, size).dataloaders(table, bs=4, device='cpu', num_workers=0).valid
    fed = liver_dls(odd / kind, table, size, 4, device='cpu').valid
    samples = list(range(7))  # the last batch is not full
    for _ in range(2):
        for batch, same in zip(own.create_batches(iter(samples)), fed.create_batches(iter(samples)), strict=True):
            for a, b in zip(batch, same, strict=True):
                assert (type(a), a.dtype, a.shape, a.stride()) == (type(b), b.dtype, b.shape, b.stride())
                assert (a == b).all()


def test_what_does_not_fit_into_memory_is_read_again(odd):
    from liverseg.data import Feed
    read = []
    def reader(names):
        read.extend(names)
        return [(np.full(100, n, np.uint8),) for n in names]
    feed = Feed(reader, room=300)
    for _ in range(2): assert [a[0][0] for batch in feed([[1, 2], [3, 4], [5]]) for a in batch] == [1, 2, 3, 4, 5]
    assert sorted(feed.kept) == [1, 2, 3] and read == [1, 2, 3, 4, 5, 4, 5]


def test_a_killed_reader_is_replaced_and_a_bad_slice_is_named(odd, tmp_path):
    from liverseg.data import Feed, SliceReader, read_form, training_table
    from liverseg.work import BadInput
    data = Path(shutil.copytree(odd / 'one', tmp_path / 'data'))
    table = training_table(data)
    names = [[pair] for pair in zip(table['image'], table['mask'])]
    feed = Feed(SliceReader(str(data), read_form(data)[0], 64), workers=2, room=0)
    batches = feed(names)
    first = next(batches)
    os.kill(next(iter(feed.pool.pool._processes)), signal.SIGKILL)
    rest = list(batches)
    assert len(rest) == len(names) - 1
    one = SliceReader(str(data), read_form(data)[0], 64)
    for (a, m), name in zip([first[0], *(b[0] for b in rest)], names):
        assert (a == one(name)[0][0]).all() and (m == one(name)[0][1]).all()
    (data / table['image'].iloc[5]).write_bytes(b'no picture')
    with pytest.raises(BadInput, match=table['image'].iloc[5]): list(feed(names))
    feed.close()


@pytest.mark.all
def test_the_number_of_readers_leaves_the_model_as_it_is(png, tmp_path):
    from liverseg.train import train
    train(png, tmp_path / 'model0', device='cpu', loader_workers=0, size=64, epochs=1, arch='lite', pretrained=False)
    run('train', png, tmp_path / 'model2', *TRAIN, '--loader-workers', 2, ok=0)
    zero, two = (content(tmp_path / f'model{n}') for n in (0, 2))
    assert zero['model.safetensors'] == two['model.safetensors'] and zero['model.json'] == two['model.json']


def test_a_folder_with_a_memory_is_converted_anew(cohort, tmp_path):
    from liverseg.data import training_table
    from liverseg.manifest import check_slices
    run('convert', cohort, tmp_path / 'png', ok=0)
    check_slices(tmp_path / 'png', training_table(tmp_path / 'png'))
    run('convert', cohort, tmp_path / 'png', '--window', '0,200', ok=0)
    assert not (tmp_path / 'png/.checked.json').exists()


def test_readers_end_with_a_killed_training(png, tmp_path):
    data = Path(shutil.copytree(png, tmp_path / 'png'))
    command = [*LIVERSEG, 'train', data, tmp_path / 'model', *TRAIN, '--loader-workers', 2, '--epochs', 500]
    training = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f'/proc/{training.pid}/task/{training.pid}/children')
    if not children.parent.is_dir(): training.kill(); pytest.skip('no /proc')
    for _ in range(600):
        if len(readers := children.read_text().split()) == 2: break
        time.sleep(.1)
    training.kill()
    training.wait()
    assert len(readers) == 2
    for _ in range(50):
        left = [pid for pid in readers if Path(f'/proc/{pid}').is_dir()
                and Path(f'/proc/{pid}/stat').read_text().split(') ')[1][0] != 'Z']
        if not left: return
        time.sleep(.1)
    assert not left


@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_that_cannot_be_written_is_read(png, tmp_path):
    from liverseg.data import training_table
    from liverseg.manifest import check_slices
    data = Path(shutil.copytree(png, tmp_path / 'png'))
    data.chmod(0o555)
    try: assert check_slices(data, training_table(data))
    finally: data.chmod(0o755)
    assert not (data / '.checked.json').exists()


def test_a_memory_of_others_is_not_believed(png, tmp_path):
    "A folder that comes with dates and notes of its own is read, since no copy has the change time of its original"
    from liverseg.data import training_table
    from liverseg.manifest import check_slices
    from liverseg.work import BadInput
    data = Path(shutil.copytree(png, tmp_path / 'png'))
    table = training_table(data)
    check_slices(data, table)
    mask = data / table['mask'].iloc[3]
    date, size = mask.stat().st_mtime_ns, mask.stat().st_size
    mask.write_bytes(bytes(size))
    os.utime(mask, ns=(date, date))
    copy = Path(shutil.copytree(data, tmp_path / 'copy'))
    assert (copy / '.checked.json').is_file()
    assert ((copy / table['mask'].iloc[3]).stat().st_mtime_ns, size) == (date, mask.stat().st_size)
    with pytest.raises(BadInput, match='cannot be read as PNG'): check_slices(copy, table, 2)
