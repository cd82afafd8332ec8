"What the pixels of a data set mean: windows, bits and labels, and that the same form goes from convert to predict."
import itertools
import json
import re
import shlex

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import liverseg.convert as lib
from liverseg.volume import to_slices, window
from liverseg.cases import read_volume
from liverseg.work import BadInput
from test_bad_input import change, image, mask
from test_convert import THREE, cli, pixels, tiny, tree

EXTREMES = np.array([[-32768, -1101, -1100, -1024, -1023], [0, 250, 3071, 32766, 32767]], np.int16)[..., None]


def test_first_window_is_red(src, tmp_path):
    cli('convert', src, tmp_path / 'png', *(f'--window={low},{high}' for low, high in THREE))
    hu = to_slices(read_volume(image(src)).data)[11]
    rgb = pixels(tmp_path / 'png', 'train/images/synth_e01/synth_e01_011.png')
    assert rgb.shape == (64, 64, 3) and rgb.dtype == np.uint8
    for c, (low, high) in enumerate(THREE): assert np.array_equal(rgb[..., c], window(hu, low, high))
    assert json.loads((tmp_path / 'png/dataset.json').read_text())['window'] == [list(w) for w in THREE]
    cli('convert', src, tmp_path / 'two', '--window', '-150,250', '--window', '0,100')
    assert np.array_equal(pixels(tmp_path / 'two', 'train/images/synth_e01/synth_e01_011.png'), rgb[..., [0, 1, 0]])


def test_windows_that_are_none(src, tmp_path):
    before = set(tmp_path.iterdir())
    done = cli('convert', src, tmp_path / 'png', *['--window=0,9'] * 4, ok=1)
    assert done.stderr == 'liverseg: 4 windows are too many; a picture has three channels\n'
    for wrong in ('9,9', '9,0', 'nan,9', '0', '0,9,10', '', '0;9'):
        assert 'LOW below HIGH' in cli('convert', src, tmp_path / 'png', '--window=0,9', f'--window={wrong}',
                                       ok=2).stderr
    for wrong in ((9, 9), (9, 0), [(0, 9), (5, 5)], (float('nan'), 9)):
        with pytest.raises(BadInput, match='is empty'): lib.convert(src, tmp_path / 'png', wrong)
    assert set(tmp_path.iterdir()) == before


def test_an_infinite_window(): pytest.raises(BadInput, lib.PixelForm, (-np.inf, 250))


def test_sixteen_bits_keep_hu(tmp_path):
    tiny(tmp_path / 'src', 'a', EXTREMES)
    tiny(tmp_path / 'src', 'b', EXTREMES.astype(np.float32) + .25)
    tiny(tmp_path / 'src', 'c', np.array([[-2000000, 0, 64511, 64512, 2000000]], np.int32)[..., None])
    said = cli('convert', tmp_path / 'src', tmp_path / 'png', '--bits', 16).stderr
    stored = {s: pixels(tmp_path / 'png', f'test/images/{s}/{s}_000.png').astype(int) - 1024 for s in 'abc'}
    wanted = to_slices(np.where(EXTREMES < -1024, -1024, EXTREMES))[0]  # below air is padding or air
    assert np.array_equal(stored['a'], wanted) and np.array_equal(stored['b'], wanted)
    assert stored['c'].ravel().tolist() == [64511, 64511, 64511, 0, -1024]  # clipped, not wrapped
    assert 'a: 2 voxels of padding (down to -32768) were filled with air' in said
    assert Image.open(tmp_path / 'png/test/images/a/a_000.png').mode == 'I;16'


def test_eight_bits_saturate(tmp_path):
    tiny(tmp_path / 'src', 'a', EXTREMES)
    lib.convert(tmp_path / 'src', tmp_path / 'png', [(-32768, 32767), (-1024, 3071), (0, 250)])
    red, green, blue = pixels(tmp_path / 'png', 'test/images/a/a_000.png').transpose(2, 1, 0).tolist()
    # 32767, 32766, 3071, 250, 0; -1023, -1024, -1100, padding
    assert red == [[255, 255, 139, 128, 128], [124, 124, 123, 124, 124]]
    assert green == [[255, 255, 255, 79, 64], [0] * 5] and blue == [[255, 255, 255, 255, 0], [0] * 5]


LABELS = np.repeat(np.arange(3, dtype=np.uint8), 12).reshape(6, 6, 1)  # 12 voxels each of background, liver and tumour


@pytest.mark.parametrize('liver, pixels_',
                         [(None, 24), ('1', 12), ('2', 12), ('1,2', 24), ('2,1', 24), ('0', 12), ('1,7', 12)])
def test_liver_is_the_declared_labels(liver, pixels_, tmp_path):
    for n, data in enumerate((LABELS, LABELS.astype(np.int16), LABELS + np.float32(4e-4), LABELS - np.float64(9e-4))):
        tiny(tmp_path / 'src', f's{n}', np.full((6, 6, 1), 50, np.int16), data)
    cli('convert', tmp_path / 'src', tmp_path / 'png', *([f'--liver={liver}'] if liver else []))
    table = pd.read_csv(tmp_path / 'png/manifest.csv')
    assert table['liver_px'].tolist() == [pixels_] * 4
    for name in table['mask']:
        assert np.array_equal(pixels(tmp_path / 'png', name),
                              to_slices(np.isin(LABELS, eval(f'[{liver or "1,2"}]')))[0])


def test_declared_labels_that_are_nowhere(tmp_path):
    tiny(tmp_path / 'src', 's', np.full((6, 6, 1), 50, np.int16), LABELS)
    tiny(tmp_path / 'src', 'empty', np.full((6, 6, 1), 49, np.int16), LABELS * 0)  # which is no fault
    done = cli('convert', tmp_path / 'src', tmp_path / 'png', '--liver', 7, '--on-error', 'skip', ok=1)
    assert 's_liver.nii.gz: has the labels 0, 1, 2, and none of them is 7' in done.stderr
    assert done.stdout.startswith('1 subject(s), 1 slices, 0 of them')


def test_no_minus_nought(tmp_path):
    tiny(tmp_path / 'src', 's', np.full((6, 6, 1), 50, np.int16), LABELS - np.float32(9e-4))
    assert 'has the labels 0, 1, 2' in cli('convert', tmp_path / 'src', tmp_path / 'png', '--liver', 7, ok=1).stderr


@pytest.mark.parametrize('off', [.0011, .3, -.5])
def test_a_mask_that_is_not_near_whole(off, tmp_path):
    tiny(tmp_path / 'src', 's', np.full((6, 6, 1), 50, np.int16), LABELS + np.float32(off) * (LABELS == 1))
    for more in ((), ('--liver', 1), ('--no-check',)):
        assert 'no whole labels' in cli('convert', tmp_path / 'src', tmp_path / 'png', *more, ok=1).stderr
    assert not (tmp_path / 'png').exists()


@pytest.mark.filterwarnings('ignore')  # of libraries about each other
def test_sixteen_bits_reach_the_network_unclipped(src, tmp_path):
    """The same windows through 8-bit colours and through 16-bit HU give the same batch; masks keep to 0 and 1 at any
    size"""
    from liverseg.data import liver_dls, training_table
    windows = [(-150, 250), (20, 300), (-1000, -200)]  # HU + 1024 is beyond 255 in nearly all of it
    batches = []
    for bits in (8, 16):
        lib.convert(src, tmp_path / f'{bits}', windows, bits=bits)
        table = training_table(tmp_path / f'{bits}', 0).iloc[8:14].assign(is_valid=False)
        dls = liver_dls(tmp_path / f'{bits}', table, size=64, bs=6, augment='none', device='cpu')
        batches.append(dls.train.new(shuffle=False).one_batch())
    (x8, y8), (x16, y16) = batches
    assert x8.shape == x16.shape == (6, 3, 64, 64) and (y8 == y16).all()
    assert (x8 - x16).abs().max() < .51 / 255 / .224 and all(x16[:, c].std() > .1 for c in range(3))
    _, y = liver_dls(tmp_path / '16', table, size=97, bs=6, device='cpu').one_batch()
    assert set(y.unique().tolist()) == {0, 1}


@pytest.mark.filterwarnings('ignore')  # of libraries about each other
def test_the_form_goes_with_the_model(src, tmp_path):
    """Train, evaluate and predict on three windows and on 16 bits; data of another form are refused with the options to
    use"""
    import torch
    torch.set_num_threads(1)  # steady where others compute too
    for f in src.rglob('*.nii.gz'): change(f, lambda a: a[:, :, 10:16])
    for f in (image, mask): f(src, n=2).unlink()
    forms = dict(rgb=([list(w) for w in THREE], 8, [f'--window={low},{high}' for low, high in THREE]),
                 hu=([-100, 300], 16, ['--bits', '16', '--window=-100,300']))
    for name, (windows, bits, options) in forms.items():
        cli('convert', src, tmp_path / name, *options)
        cli('train', tmp_path / name, tmp_path / f'm_{name}',
            *'--size 64 --epochs 1 --arch resnet18 --no-pretrained --device cpu'.split())
        meta = json.loads((tmp_path / f'm_{name}/model.json').read_text())
        assert meta['window'] == windows and meta['bits'] == bits
    for name, other in itertools.permutations(forms):
        said = cli('evaluate', tmp_path / other, tmp_path / 'no', '--model', tmp_path / f'm_{name}', '--device', 'cpu',
                   ok=1).stderr
        advice = re.search('; convert with (.+)$', said.strip())[1]
        cli('convert', src, tmp_path / 'again', *shlex.split(advice))  # the advice is good as it stands
        (tmp_path / name / '.checked.json').unlink(missing_ok=True)  # what the training remembers
        assert tree(tmp_path / 'again') == tree(tmp_path / name) and not (tmp_path / 'no').exists()
        cli('evaluate', tmp_path / 'again', tmp_path / f'r_{name}', '--model', tmp_path / f'm_{name}', '--device',
            'cpu')
        cli('predict', image(src, 'test'), tmp_path / f'{name}.nii.gz', '--model', tmp_path / f'm_{name}', '--device',
            'cpu')
        found = np.asarray(nib.load(tmp_path / f'{name}.nii.gz').dataobj).sum((0, 1))
        assert pd.read_csv(tmp_path / f'r_{name}/slices.csv')['pred_px'].tolist() == found.tolist()
