"The command line as a user meets it: help, exit status, and the whole job."
import json
import re
import subprocess
import sys

import click
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import content, run
from liverseg.cli import main

COMMANDS = ('download', 'check', 'convert', 'import-slices', 'train', 'evaluate', 'predict', 'merge', 'export',
            'demo')


@pytest.mark.parametrize('command', COMMANDS)
def test_help_says_what_each_option_means(command):
    text = run(command, '--help', ok=0).stdout
    assert text.startswith('Usage: liverseg ' + command)
    options = [p for p in main.commands[command].params if isinstance(p, click.Option)]
    assert all(p.help and p.opts[0] in text for p in options)
    valued = [p for p in options if isinstance(p.show_default, str) or p.secondary_opts
              or not p.is_flag and isinstance(p.default, (str, int, float, list, tuple)) and p.default != ()]
    assert text.count('[default:') == len(valued)


@pytest.mark.parametrize('args', [['--help'], ['convert', '--help'], ['check'], ['convert']])
def test_torch_stays_out(args, cohort, tmp_path):
    "help, convert and check must not import torch"
    places = {'check': [str(cohort)], 'convert': [str(cohort), str(tmp_path / 'out')]}.get(args[0], [])
    if '--help' in args: places = []
    code = f'''
import sys
from liverseg.cli import main
try: main({args + places!r}, prog_name="liverseg")
except SystemExit as e: assert not e.code, e.code
assert "liverseg.cli" in sys.modules
print("torch" in sys.modules)'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == 'False', out.stdout + out.stderr


@pytest.mark.parametrize('args', [['convert'], ['convert', 'a', 'b', '--window', '3'],
                                  ['convert', 'a', 'b', '--window', '250,-150'],
                                  ['train', 'a', 'b', '--size', 'x'], ['train', 'a', 'b', '--split', 'patient'],
                                  ['train', 'a', 'b', '--loss', 'none'], ['train', 'a', 'b', '--liver-share', '2'],
                                  ['train', 'a', 'b', '--seed', '-1'], ['convert', 'a', 'b', '--window=-inf,inf'],
                                  ['evaluate', 'a'], ['evaluate', 'a', 'b', 'c'],
                                  ['predict', 'a', 'b', 'c'], ['predict', 'a', 'b', '--tta', 'all'], ['nothing'],
                                  ['convert', 'a', 'b', '--workers', '0'], ['convert', 'a', 'b', '--part', '3/2'],
                                  ['convert', 'a', 'b', '--workers', '2', '--cluster', 'c'],
                                  ['check', 'a', '--part', '1/2'], ['predict', 'a', 'b', '--part', '1/2'],
                                  ['evaluate', 'a', 'b', '--part', '1/2', '--against', 'c'], ['merge']])
def test_wrong_usage_is_two(args):
    done = run(*args, ok=2)
    assert 'Usage:' in done.stderr


def test_convert_window_may_begin_with_a_minus(cohort, tmp_path):
    run('convert', cohort, tmp_path / 'a', '--window', '-150,250', ok=0)
    run('convert', cohort, tmp_path / 'b', '--window=-150,250', ok=0)
    run('convert', cohort, tmp_path / 'c', '--window', '0,255', ok=0)
    assert content(tmp_path / 'a') == content(tmp_path / 'b')
    assert json.loads((tmp_path / 'c/dataset.json').read_text())['window'] == [0, 255]


def test_manifest_is_as_promised(png, cohort):
    head = (png / 'manifest.csv').read_text().splitlines()[0]
    assert head == 'subject,split,z,image,mask,liver_px,dx,dy,dz,source'
    table = pd.read_csv(png / 'manifest.csv')
    assert set(table['split']) == {'train', 'test'}
    for row in table.itertuples():
        assert row.image == f'{row.split}/images/{row.subject}/{row.subject}_{row.z:03d}.png'
        mask = np.array(Image.open(png / row.mask))
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1} and mask.sum() == row.liver_px
        assert (cohort / row.source).exists()
    assert list(table['z'][table['subject'] == table['subject'][0]]) == list(range(22))


def test_train_evaluate_predict(png, model, cohort, tmp_path):
    meta = json.loads((model / 'model.json').read_text())
    assert meta['window'] == [-150, 250] and meta['size'] == 64 and len(meta['subjects']['valid']) == 1
    assert not set(meta['subjects']['valid']) & set(meta['subjects']['train'])
    done = run('evaluate', png, tmp_path / 'report', '--model', model, '--tta', 'flip', '--device', 'cpu', ok=0)
    assert 'mean case Dice' in done.stdout and 'pooled Dice' in done.stdout
    assert (tmp_path / 'report/cases.csv').read_text().startswith('subject,dice')
    summary = json.loads((tmp_path / 'report/summary.json').read_text())
    assert summary['cases'] == 1 and summary['rules']['one_empty'].startswith('0')
    written = {p.name for p in (tmp_path / 'report').iterdir()}
    assert written == {'report.html', 'cases.csv', 'slices.csv', 'summary.json', 'cases.png'}
    scan = next((cohort / 'test/nii').glob('*_orig.nii.gz'))
    done = run('predict', scan, tmp_path / 'mask.nii.gz', '--model', model, '--device', 'cpu', ok=0)
    mask = nib.load(tmp_path / 'mask.nii.gz')
    assert mask.shape == nib.load(scan).shape and mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, nib.load(scan).affine)
    ml = np.count_nonzero(np.asarray(mask.dataobj)) * np.prod(mask.header.get_zooms()) / 1000
    assert f'{ml:.1f} mL' in done.stdout


def test_the_report_and_the_saved_mask_are_the_same_masks(png, model, cohort, tmp_path):
    "evaluate goes through PNG, predict through NIfTI: both must count the same liver pixels"
    run('evaluate', png, tmp_path / 'report', '--model', model, '--device', 'cpu', ok=0)
    scan = next((cohort / 'test/nii').glob('*_orig.nii.gz'))
    run('predict', scan, tmp_path / 'mask.nii.gz', '--model', model, '--thorough', '--post', 'none', '--device', 'cpu',
        ok=0)
    counted = pd.read_csv(tmp_path / 'report/slices.csv')['pred_px']
    stored = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / 'mask.nii.gz')).dataobj)
    assert list(counted) == list(stored.sum((0, 1)))


def test_slice_split_says_so(png, tmp_path):
    done = run('train', png, tmp_path / 'm', '--size', 64, '--epochs', 1, '--arch', 'resnet18', '--no-pretrained',
               '--split', 'slice', '--device', 'cpu', ok=0)
    assert 'flattered' in done.stdout
    assert json.loads((tmp_path / 'm/model.json').read_text())['split'] == 'slice'


def test_test_images_may_lack_masks(src, model, tmp_path):
    next((src / 'test/nii').glob('*_liver.nii.gz')).unlink()
    run('convert', src, tmp_path / 'png', ok=0)
    table = pd.read_csv(tmp_path / 'png/manifest.csv', keep_default_na=False, dtype=str)
    tested = table[table['split'] == 'test']
    assert set(tested['mask']) == {''} == set(tested['liver_px'])
    done = run('evaluate', tmp_path / 'png', tmp_path / 'report', '--model', model, ok=1)
    assert 'has a mask' in done.stderr and not (tmp_path / 'report').exists()


@pytest.mark.parametrize('gone', ['train', 'test'])
def test_one_split_may_be_absent(src, tmp_path, gone):
    import shutil
    shutil.rmtree(src / gone)
    run('convert', src, tmp_path / 'png', ok=0)
    assert gone not in set(pd.read_csv(tmp_path / 'png/manifest.csv')['split'])


def test_other_names(src, tmp_path):
    for f in sorted(src.rglob('*.nii.gz')):
        n = f.name[7:9]
        f.rename(f.with_name(f'volume-{n}.nii.gz' if 'orig' in f.name else f'segmentation-{n}.nii.gz'))
    assert 'naming rule' in run('convert', src, tmp_path / 'png', ok=1).stderr
    run('convert', src, tmp_path / 'png', '--image-name', 'volume-{subject}', '--mask-name', 'segmentation-{subject}',
        ok=0)
    assert set(pd.read_csv(tmp_path / 'png/manifest.csv', dtype=str)['subject']) == {'01', '02', '03', '04'}


def test_a_model_that_is_not_there_is_a_sentence(cohort, tmp_path):
    scan = next(cohort.rglob('*_orig.nii.gz'))
    done = run('predict', scan, tmp_path / 'm.nii.gz', '--model', tmp_path / 'none', ok=1)
    for word in ('no such file', 'liverseg train', 'liverseg export', 'the network that ships'):
        assert word in done.stderr
    assert not (tmp_path / 'm.nii.gz').exists()


def test_a_users_folder_is_never_replaced(png, model, tmp_path):
    (tmp_path / 'mine').mkdir(), (tmp_path / 'mine/thesis.txt').write_text('precious')
    for args in (['convert', png.parent, tmp_path / 'mine'], ['train', png, tmp_path / 'mine'],
                 ['evaluate', png, tmp_path / 'mine', '--model', model]):
        run(*args, ok=1)
    assert content(tmp_path / 'mine') == {'thesis.txt': b'precious'}


def test_rows_marked_valid_override_the_share(png, tmp_path):
    import shutil
    data = shutil.copytree(png, tmp_path / 'data')
    table = pd.read_csv(data / 'manifest.csv', dtype=str, keep_default_na=False)
    table.loc[table['subject'] == 'synth_e02', 'split'] = 'valid'
    table.to_csv(data / 'manifest.csv', index=False)
    (data / 'dataset.json').unlink()
    done = run('train', data, tmp_path / 'm', '--size', 64, '--epochs', 1, '--arch', 'resnet18', '--no-pretrained',
               '--valid', '0', '--device', 'cpu', ok=0)
    assert 'slices are taken to have the window -150,250' in done.stdout
    subjects = json.loads((tmp_path / 'm/model.json').read_text())['subjects']
    assert subjects == {'train': ['synth_e01', 'synth_e03'], 'valid': ['synth_e02']}


def test_the_choices_are_those_of_the_library():
    "They stand in the command line as text, so that its help needs no torch"
    from liverseg.cli import main
    from liverseg.data import AUGMENT
    from liverseg.recipe import ARCHS, DECODERS, LOSSES
    choices = {p.name: tuple(p.type.choices) for p in main.commands['train'].params if hasattr(p.type, 'choices')}
    assert choices['arch'] == ARCHS and choices['decoder'] == DECODERS
    assert set(choices['loss']) == set(LOSSES) and set(choices['augment']) == {'none', *AUGMENT}


@pytest.mark.parametrize('command', ['evaluate', 'predict'])
def test_help_counts_the_views(command):
    from liverseg.tta import VIEWS
    tta, = (p for p in main.commands[command].params if p.name == 'tta')
    assert tuple(tta.type.choices) == tuple(VIEWS)
    told = {name: int(n) for n, name in re.findall(r'(\d)(?: views)? of (\w+)', tta.help)}
    assert told == {name: len(views) for name, views in VIEWS.items() if name != 'none'}


def test_the_defaults_are_those_of_the_library():
    from dataclasses import asdict
    from liverseg.cli import main
    from liverseg.recipe import Recipe
    given = {p.name: p.default for p in main.commands['train'].params}
    for name, value in asdict(Recipe()).items():
        assert given[name] == value or (value is None and not isinstance(given[name], (int, float, str))), name
