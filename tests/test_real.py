"Real volumes, where they are at hand; each test has a synthetic twin that always runs."
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from conftest import run, shared

# slices, slices with liver: from the data set's own description
PINNED = {'ircad_e01': (129, 98), 'ircad_e17': (119, 113)}


def check_counts(src, dst, expected):
    "Each subject's slices, and the pixels of each liver slice counted again in the volume itself"
    run('convert', src, dst, ok=0)
    table = pd.read_csv(dst / 'manifest.csv')
    counts = {s: (len(r), int((r['liver_px'] > 0).sum())) for s, r in table.groupby('subject')}
    assert counts == expected
    for subject, rows in table.groupby('subject'):
        path = src / rows['source'].iloc[0].replace('_orig', '_liver')
        volume = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj) > 0
        assert list(rows['liver_px']) == list(volume.sum((0, 1)))


def test_ircad_converts(tmp_path): check_counts(shared('ircad'), tmp_path / 'png', PINNED)


def test_synthetic_converts(cohort, tmp_path):
    livers = {p.name[:9]: (np.asarray(nib.load(p).dataobj) > 0).any((0, 1))
              for p in sorted(cohort.rglob('*_liver.nii.gz'))}
    check_counts(cohort, tmp_path / 'png', {s: (len(v), int(v.sum())) for s, v in livers.items()})


def check_training(data, tmp_path, subjects):
    args = ['--size', 64, '--epochs', 1, '--batch-size', 32, '--arch', 'resnet18', '--no-pretrained', '--device', 'cpu']
    run('train', data, tmp_path / 'model', *args, ok=0)
    run('evaluate', data, tmp_path / 'report', '--model', tmp_path / 'model', '--split', 'valid', '--device', 'cpu',
        ok=0)
    cases = pd.read_csv(tmp_path / 'report/cases.csv')
    assert len(cases) == subjects and cases['volume_ml_true'].isna().all()  # spacing is unknown, so no millilitres


def test_msd_slices_come_over(tmp_path):
    run('import-slices', shared('msd2d'), tmp_path / 'data', '--window', '0,255', ok=0)
    table = pd.read_csv(tmp_path / 'data/manifest.csv')
    assert (len(table), table['subject'].nunique()) == (554, 102)
    given = pd.read_csv(shared('msd2d', 'manifest.csv')).sort_values(['split', 'subject', 'z'])
    both = table.merge(given, on=['subject', 'z', 'split'])
    assert len(both) == 554 and (both['liver_px_x'] == both['liver_px_y']).all()


@pytest.mark.all
def test_msd_slices_train(tmp_path):
    run('import-slices', shared('msd2d'), tmp_path / 'data', ok=0)
    check_training(tmp_path / 'data', tmp_path, 15)


def test_synthetic_slices_train(png, tmp_path):
    "The same adapter on slices that conversion wrote"
    table = pd.read_csv(png / 'manifest.csv')
    loose = tmp_path / 'loose'
    (loose / 'images').mkdir(parents=True), (loose / 'masks').mkdir()
    for row in table.itertuples():
        for kind in ('images', 'masks'):
            raw = (png / row.split / kind / row.subject / f'{row.subject}_{row.z:03d}.png').read_bytes()
            (loose / kind / f'{row.subject}_{row.z}.png').write_bytes(raw)
    table['file'] = table['subject'] + '_' + table['z'].astype(str) + '.png'
    table['split'] = table['split'].replace('test', 'valid')
    table[['file', 'subject', 'z', 'split']].to_csv(loose / 'manifest.csv', index=False)
    run('import-slices', loose, tmp_path / 'data', '--window=-150,250', ok=0)
    check_training(tmp_path / 'data', tmp_path, 1)


@pytest.mark.parametrize('spoil',
                         ['no manifest', 'no column', 'odd z', 'twice', 'empty', 'odd split', 'two splits',
                          'missing file', 'slash in subject'])
def test_bad_slices(spoil, png, tmp_path):
    loose = tmp_path / 'loose'
    (loose / 'masks').mkdir(parents=True)
    table = pd.DataFrame(dict(file=['a.png', 'b.png'], subject=['s', 's'], z=[1, 2], split=['train', 'train']))
    if spoil == 'no column': table = table.drop(columns='z')
    if spoil == 'odd z': table['z'] = ['1', '3.0']
    if spoil == 'twice': table['z'] = [1, 1]
    if spoil == 'empty': table = table[:0]
    if spoil == 'odd split': table['split'] = ['train', 'training']
    if spoil == 'two splits': table['split'] = ['train', 'valid']
    if spoil == 'slash in subject': table['subject'] = '../../s'
    if spoil != 'no manifest': table.to_csv(loose / 'manifest.csv', index=False)
    before = set(tmp_path.iterdir())
    assert str(loose) in run('import-slices', loose, tmp_path / 'data', ok=1).stderr
    assert set(tmp_path.iterdir()) == before
