"A data set that grows: new, changed and withdrawn scans, kills, two runs at once, parts, old folders, large tables."
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest

import liverseg.convert as lib
import liverseg.grow as grow
import liverseg.manifest as manifest
import liverseg.runs as runs
import liverseg.single as single
from conftest import content, run
from liverseg.cluster import Share
from liverseg.manifest import content_hash, join_manifests, manifest_path, read_manifest, write_rows
from liverseg.phantom import make_cohort
from liverseg.pixels import read_png
from liverseg.work import BadInput
from test_bad_input import image, mask
from test_convert import cli, tree, truncate
from test_hostile import complaint


def shares(n): return [Share(k, n) for k in range(1, n + 1)]


def pair(src, name): return [src / f'train/nii/{name}_{kind}.nii.gz' for kind in ('orig', 'liver')]


@pytest.fixture(scope='session')
def others(tmp_path_factory):
    "Three scans that come later"
    src = tmp_path_factory.mktemp('others') / 'data'
    make_cohort(src, n_train=3, n_test=0, seed=77, shape=(64, 64, 18))
    return src


def arrives(others, src, name, n):
    "The n-th of the later scans is put into the data set under this name, in place of what had that name"
    for new, path in zip(pair(others, f'synth_e0{n}'), pair(src, name)): shutil.copyfile(new, path)


def times(dst): return {p.relative_to(dst): p.stat().st_mtime_ns for p in dst.rglob('*.png')}


def later(*values): return pytest.param(*values, marks=pytest.mark.all)


def touched(dst, before): return {p.parent.name for p, when in times(dst).items() if before.get(p) != when}


def as_if_anew(src, dst, **options):
    "Is the folder what a first conversion would have made?"
    clean = dst.with_name('clean')
    shutil.rmtree(clean, ignore_errors=True)
    lib.make_dataset(src, clean, **options)
    return tree(dst) == tree(clean)


# ---- what is new, has changed, or is gone

@pytest.mark.parametrize('options', [{}, dict(preview=True, bits=16, workers=2), dict(check=False)])
def test_only_what_is_new_is_done(options, src, others, tmp_path):
    lib.make_dataset(src, tmp_path / 'png', **options)
    before = times(tmp_path / 'png')
    arrives(others, src, 'later', 1), arrives(others, src, 'synth_e02', 2)
    for path in pair(src, 'synth_e01'): path.unlink()
    told = lib.make_dataset(src, tmp_path / 'png', **options)
    assert touched(tmp_path / 'png', before) - {'preview'} == {'later', 'synth_e02'}
    assert told['new'] == 2 and told['gone'] == ['synth_e01'] and told['subjects'] == 4
    assert as_if_anew(src, tmp_path / 'png', **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['clean', 'data', 'png']


def test_nothing_new(src, tmp_path, monkeypatch):
    lib.make_dataset(src, tmp_path / 'png')
    before, all_of_it = times(tmp_path / 'png'), tree(tmp_path / 'png')
    monkeypatch.setattr(runs, 'examine', None), monkeypatch.setattr(lib, 'read_case', None)
    assert lib.make_dataset(src, tmp_path / 'png')['new'] == 0
    assert times(tmp_path / 'png') == before and tree(tmp_path / 'png') == all_of_it


def test_the_command_says_what_changed(src, others, tmp_path):
    cli('convert', src, tmp_path / 'png')
    arrives(others, src, 'later', 1)
    for path in pair(src, 'synth_e01'): path.unlink()
    done = cli('convert', src, tmp_path / 'png')
    assert f"removed: synth_e01: no longer in the source, and so not in {tmp_path / 'png'}\n" in done.stderr
    assert done.stdout.endswith('; 1 subject(s) new or changed\n')


@pytest.mark.parametrize('what', ['another split', 'a scan gone bad', 'a lost slice', 'a moved source', 'stray files',
                                  *map(later, ('labels', 'a lost table', 'a mask gone', 'a broken record',
                                               'a broken description'))])
def test_as_if_made_anew(what, src, tmp_path):
    lib.make_dataset(src, dst := tmp_path / 'png')
    before, options, redone = times(dst), dict(on_error='skip'), {'synth_e01'}
    if what == 'another split': options['splits'] = {'synth_e01': 'valid'}
    if what == 'labels': options['liver'], redone = (1,), {f'synth_e0{n}' for n in (1, 2, 3, 4)}
    if what == 'a scan gone bad': truncate(image(src)), redone.clear()
    if what == 'a lost slice': (dst / 'train/images/synth_e01/synth_e01_003.png').unlink()
    if what == 'a lost table': (dst / 'manifests/synth_e01.csv').unlink()
    if what == 'a mask gone': mask(src, 'test').unlink()
    if what == 'a moved source': src, redone = src.rename(tmp_path / 'moved'), set()
    if what == 'a broken record': (dst / '.done/train.synth_e01.json').write_text('[' * 10**5)
    if what == 'stray files': (dst / 'train/images/stray').mkdir(), (dst / 'manifests/stray.csv').touch()
    if what == 'stray files': redone.clear()
    if what == 'a broken description': (dst / 'dataset.json').write_text('{'), redone.clear()
    assert lib.make_dataset(src, dst, **options)['gone'] == []  # a scan that is left out is named as such
    if what == 'a mask gone': redone = {'synth_e04'}
    assert touched(dst, before) == redone and as_if_anew(src, dst, **options)


@pytest.mark.parametrize('options', [dict(bits=16), later(dict(windows=(0, 255))), later(dict(preview=True))])
def test_other_options_make_everything_anew(options, src, tmp_path):
    lib.make_dataset(src, tmp_path / 'png')
    before = times(tmp_path / 'png')
    assert lib.make_dataset(src, tmp_path / 'png', **options)['new'] is None
    assert len(touched(tmp_path / 'png', before) - {'preview'}) == 4 and as_if_anew(src, tmp_path / 'png', **options)


def test_checked_now_what_was_not_checked_then(src, tmp_path):
    for f in (image, mask): shutil.copy(f(src, 'test'), f(src))
    lib.make_dataset(src, tmp_path / 'png', check=False)
    assert 'same voxels' in complaint(lib.make_dataset, src, tmp_path / 'png')


def test_a_new_scan_that_is_a_twin_of_an_old_one(src, tmp_path):
    lib.make_dataset(src, tmp_path / 'png')
    before = tree(tmp_path / 'png')
    for path, name in zip((image(src, 'test'), mask(src, 'test')), pair(src, 'twin')): shutil.copy(path, name)
    assert 'same voxels' in complaint(lib.make_dataset, src, tmp_path / 'png')
    assert tree(tmp_path / 'png') == before and not (tmp_path / '.png.partial').exists()
    told = lib.make_dataset(src, tmp_path / 'png', on_error='skip')
    assert told['left_out'] == 1 and tree(tmp_path / 'png') == before


# ---- killed, and at once

def killed(at, src, dst, **options):
    "Convert in a process that SIGKILL ends at a picture, given by its number, or on entering a function of grow"
    def work():
        seen = []
        def die(*args): os.kill(os.getpid(), signal.SIGKILL)
        def counted(func, n):
            def call(*args, **how):
                seen.append(1)
                return die() if len(seen) == n else func(*args, **how)
            return call
        name, n = at
        module = dict(_png=single, _convert_case=runs).get(name, grow)
        setattr(module, name, counted(getattr(module, name), n))
        lib.make_dataset(src, dst, **options)
    child = multiprocessing.get_context('fork').Process(target=work)
    child.start(), child.join(60)
    assert child.exitcode == -signal.SIGKILL


def usable(dst):
    "The manifest reads, and each slice has the subject's own pixels; the subjects"
    table = read_manifest(dst)
    for row in table.itertuples():
        counted = int(np.count_nonzero(read_png(dst / row.mask))) if row.mask else None
        assert counted is None or counted == row.liver_px, row
    return set(table['subject'])


KILLS = [('_png', 40), ('join_manifests', 1), ('_remove', 8), ('join_manifests', 2)]
MORE = [('_png', 3), ('move_case', 1), ('move_case', 2), ('_remove', 3), ('_sweep', 1), ('_remove', 12),
        ('_remove', 14)]


@pytest.mark.parametrize('at', [*KILLS, *map(later, MORE)], ids=lambda at: f'{at[0]}{at[1]}')
def test_an_interrupted_addition_leaves_a_folder_that_is_used(at, src, others, tmp_path):
    lib.make_dataset(src, dst := tmp_path / 'png')
    arrives(others, src, 'later', 1), arrives(others, src, 'synth_e02', 2)
    for path in pair(src, 'synth_e01'): path.unlink()
    killed(at, src, dst)
    assert {'synth_e03', 'synth_e04'} <= usable(dst)
    if at[0] == '_png': assert usable(dst) == {f'synth_e0{n}' for n in (1, 2, 3, 4)}
    lib.make_dataset(src, dst)
    assert as_if_anew(src, dst) and not list(tmp_path.glob('.png*'))


def test_killed_then_the_new_scan_is_withdrawn(src, others, tmp_path):
    lib.make_dataset(src, dst := tmp_path / 'png')
    arrives(others, src, 'later', 1)
    killed(('join_manifests', 1), src, dst)
    for path in pair(src, 'later'): path.unlink()
    lib.make_dataset(src, dst)
    assert as_if_anew(src, dst)


def test_a_check_that_was_interrupted_goes_on(src, tmp_path, monkeypatch):
    killed(('_convert_case', 1), src, tmp_path / 'png')
    monkeypatch.setattr(runs, 'examine', None)
    lib.make_dataset(src, tmp_path / 'png')


def test_a_case_that_another_process_holds_is_waited_for(src, tmp_path, monkeypatch):
    "A worker may outlive its run: while it writes a case, the next run neither writes it nor gives up"
    place = grow.Place(tmp_path / '.png.partial', tmp_path / 'png')
    with grow.workplace(tmp_path / 'png', dict(lib.PixelForm().as_dict(), preview=False), shares(1)[0]): pass
    case = lib.find_cases(src)[1]
    lock = filelock.FileLock(place.part / '.done/train.synth_e01.lock')
    with lock:
        child = subprocess.Popen([sys.executable, '-c', 'from liverseg.convert import make_dataset; import sys; '
                                  'make_dataset(*sys.argv[1:])', str(src), str(tmp_path / 'png')])
        time.sleep(3)
        assert child.poll() is None
    assert child.wait(60) == 0 and as_if_anew(src, tmp_path / 'png')
    assert 'has ended' in complaint(grow.only_here(place, case).__enter__)  # nothing is left to write to
    with grow.workplace(tmp_path / 'png', dict(bits=16), shares(1)[0]):  # nor where other slices are made
        assert 'has ended' in complaint(grow.only_here(place, case).__enter__)


def test_two_runs_at_once_on_a_folder_that_grows(src, others, tmp_path):
    lib.make_dataset(src, tmp_path / 'png')
    arrives(others, src, 'later', 1)
    code = 'import sys; from liverseg.cli import main; main()'
    children = [subprocess.Popen([sys.executable, '-c', code, 'convert', str(src), str(tmp_path / 'png')],
                                 stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [p.communicate()[1] for p in children]
    assert 0 in [p.returncode for p in children] and as_if_anew(src, tmp_path / 'png')
    assert all(('another run' in s) == bool(p.returncode) for p, s in zip(children, said)), said


# ---- parts

@pytest.mark.parametrize('n, options', [(3, dict(preview=True, bits=16)), (2, dict(on_error='skip')), later(2, {}),
                                        later(7, dict(check=False))])
def test_parts_together_are_one_run(n, options, src, tmp_path):
    if 'on_error' in options: truncate(image(src, n=1))
    whole = lib.make_dataset(src, tmp_path / 'whole', **options)
    told = [lib.make_dataset(src, tmp_path / 'png', part=part, **options) for part in reversed(shares(n))]
    assert sum(t['slices'] for t in told) == whole['slices'] and not (tmp_path / 'png').exists()
    assert lib.merge_slices(tmp_path / 'png') == whole
    assert subprocess.run(['diff', '-r', tmp_path / 'png', tmp_path / 'whole']).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ['data', 'png', 'whole']


def test_parts_of_a_folder_that_grows(src, others, tmp_path):
    lib.make_dataset(src, tmp_path / 'png')
    before = times(tmp_path / 'png')
    arrives(others, src, 'later', 1), arrives(others, src, 'synth_e02', 2)
    for path in pair(src, 'synth_e01'): path.unlink()
    for part in shares(3): lib.make_dataset(src, tmp_path / 'png', part=part)
    told = lib.merge_slices(tmp_path / 'png')
    assert (told['new'], told['gone']) == (2, ['synth_e01']) and as_if_anew(src, tmp_path / 'png')
    assert touched(tmp_path / 'png', before) == {'later', 'synth_e02'}


def test_a_merge_names_what_is_missing_or_was_stopped(src, tmp_path):
    dst, parts = tmp_path / 'png', shares(3)
    assert 'no parts' in complaint(lib.merge_slices, dst) and not list(tmp_path.glob('*png*'))
    home = next(p for p in parts if p.holds('synth_e01'))
    raw = image(src).read_bytes()
    truncate(image(src))
    for part in parts:
        if part is not home: lib.make_dataset(src, dst, part=part)
    assert f'part {home.k}/3 is missing' in complaint(lib.merge_slices, dst)
    assert 'truncated' in complaint(lib.make_dataset, src, dst, part=home)
    with pytest.raises(BadInput) as found: lib.merge_slices(dst)
    said = str(found.value)
    assert 'truncated' in said and f'part {home.k}/3 was stopped' in said
    image(src).write_bytes(raw)
    lib.make_dataset(src, dst, part=home), lib.merge_slices(dst)
    assert as_if_anew(src, dst)


def test_a_leak_that_no_part_can_see(src, tmp_path):
    dst, parts = tmp_path / 'png', shares(2)
    home = next(p for p in parts if not p.holds('synth_e04'))
    name = next(f'twin{n}' for n in range(99) if home.holds(f'twin{n}'))
    for path, copy in zip((image(src, 'test'), mask(src, 'test')), pair(src, name)): shutil.copy(path, copy)
    for part in parts: lib.make_dataset(src, dst, part=part)
    said = complaint(lib.merge_slices, dst)
    assert f'{name}_orig.nii.gz: has the same voxels as' in said and not dst.exists()
    for part in parts: lib.make_dataset(src, dst, part=part, on_error='skip')
    told = lib.merge_slices(dst)
    assert told['left_out'] == 1 and told['skipped'] == said.splitlines() and as_if_anew(src, dst, on_error='skip')


def test_a_part_at_work(src, tmp_path):
    "Another may work beside it; the same, a merge, a whole run, or a part with other options may not"
    dst, (one, two) = tmp_path / 'png', shares(2)
    options = dict(lib.PixelForm().as_dict(), preview=False)
    with grow.workplace(dst, options, one):
        lib.make_dataset(src, dst, part=two)
        for run_it in (lambda: lib.make_dataset(src, dst, part=one), lambda: lib.make_dataset(src, dst),
                       lambda: lib.merge_slices(dst), lambda: lib.make_dataset(src, dst, part=two, bits=16)):
            assert 'part 1/2 of it is being made at this moment' in complaint(run_it)
    lib.make_dataset(src, dst, part=one), lib.merge_slices(dst)
    assert as_if_anew(src, dst)


# ---- any error of a case is a sentence

def broken(kind):
    def read(case):
        if case.subject == 'synth_e02': raise kind('no more')
        return whole(case)
    whole = lib.read_case
    return read


@pytest.mark.parametrize('kind, workers', [(MemoryError, 2), (OSError, 1), later(RuntimeError, 1), later(BadInput, 2),
                                           later(ZeroDivisionError, 2)])
def test_any_error_leaves_one_case_out(kind, workers, src, tmp_path, monkeypatch):
    monkeypatch.setattr(lib, 'read_case', broken(kind))
    told = lib.make_dataset(src, tmp_path / 'png', on_error='skip', workers=workers)
    assert told['subjects'] == 3 and len(told['skipped']) == 1 and 'no more' in told['skipped'][0]
    monkeypatch.undo()
    assert lib.make_dataset(src, tmp_path / 'png')['new'] == 1 and as_if_anew(src, tmp_path / 'png')


# ---- tables: old and new, small and large

def flattened(png, dst):
    "The folder as it was written before there was a folder per subject"
    table = pd.read_csv(png / 'manifest.csv', dtype=str, keep_default_na=False)
    for column in ('image', 'mask'):
        for name in filter(None, table[column]):
            flat = dst / re.sub('/[^/]+/([^/]+)$', r'/\1', name)
            flat.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(png / name, flat)
        table[column] = table[column].str.replace('/[^/]+/([^/]+)$', r'/\1', regex=True)
    table.to_csv(dst / 'manifest.csv', index=False)
    shutil.copy(png / 'dataset.json', dst)
    return dst


def test_an_old_folder(src, png, model, tmp_path):
    "It is read, trained on and measured; its content's hash is what it was; and it is converted anew"
    old = flattened(png, tmp_path / 'old')
    a, b = read_manifest(old), read_manifest(png)
    assert a['image'][3] == 'train/images/synth_e01_003.png'
    pd.testing.assert_frame_equal(a.drop(columns=['image', 'mask']), b.drop(columns=['image', 'mask']))
    total = hashlib.sha256()
    for row in a.sort_values('image').itertuples():
        for name in (row.image, row.mask): total.update(hashlib.sha256((old / name).read_bytes()).digest())
        total.update(b'\0')
    assert content_hash(old, a.assign(is_valid=False)) == total.hexdigest()[:16]
    run('evaluate', old, tmp_path / 'report', '--model', model, '--device', 'cpu', ok=0)
    run('evaluate', png, tmp_path / 'same', '--model', model, '--device', 'cpu', ok=0)
    assert (tmp_path / 'report/slices.csv').read_bytes() == (tmp_path / 'same/slices.csv').read_bytes()
    assert lib.make_dataset(src, old)['new'] is None and content(old) == content(png)


@pytest.mark.all
def test_training_from_a_folder_that_grew(src, others, tmp_path):
    lib.make_dataset(src, tmp_path / 'png')
    arrives(others, src, 'later', 1)
    lib.make_dataset(src, tmp_path / 'png')
    run('train', tmp_path / 'png', tmp_path / 'm', '--size', 64, '--epochs', 1, '--arch', 'lite', '--device', 'cpu',
        ok=0)
    subjects = json.loads((tmp_path / 'm/model.json').read_text())['subjects']
    assert {*subjects['train'], *subjects['valid']} == {'later', 'synth_e01', 'synth_e02', 'synth_e03'}


ODD = ['a', '=1+1', 'a,b', '"q"', 'é', 'nan', '007', '1e3', ' ', "'"]


def listed(root, subjects, slices=4):
    for s in subjects:
        rows = [dict(subject=s, split='train', z=z, image=f'train/images/{s}/{z}.png',
                     mask=f'train/masks/{s}/{z}.png' if z else '', liver_px=7*z if z else '', dx='0.7031251',
                     dy='' if s == 'a' else '1e-1', dz='1.2345678', source=f'train/nii/{s}.nii.gz')
                for z in range(slices)]
        write_rows(root / f'manifests/{s}.csv', rows)
        for row in rows:
            for name in filter(None, (row['image'], row['mask'])):
                (root / name).parent.mkdir(parents=True, exist_ok=True), (root / name).touch()


def test_parquet_and_csv_give_the_same_table(tmp_path, monkeypatch):
    pytest.importorskip('pyarrow')
    listed(tmp_path, ODD)
    assert join_manifests(tmp_path, ODD) == 4*len(ODD) and manifest_path(tmp_path).name == 'manifest.csv'
    small = read_manifest(tmp_path)
    monkeypatch.setattr(manifest, 'MOST_ROWS', 30)
    join_manifests(tmp_path, ODD)
    assert sorted(p.name for p in tmp_path.glob('*manifest.*')) == ['manifest.parquet']
    pd.testing.assert_frame_equal(read_manifest(tmp_path), small)
    join_manifests(tmp_path, ODD[:3])
    assert sorted(p.name for p in tmp_path.glob('*manifest.*')) == ['manifest.csv']
    pd.testing.assert_frame_equal(read_manifest(tmp_path), small.head(12))


def test_a_large_table_without_pyarrow(tmp_path, monkeypatch):
    listed(tmp_path, ODD)
    monkeypatch.setattr(manifest, 'MOST_ROWS', 30)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    join_manifests(tmp_path, ODD)
    assert len(read_manifest(tmp_path)) == 4*len(ODD) and manifest_path(tmp_path).name == 'manifest.csv'
    (tmp_path / 'manifest.csv').rename(tmp_path / 'manifest.parquet')
    assert '.[cluster]' in complaint(read_manifest, tmp_path)


@pytest.mark.parametrize('raw', [b'', b'PAR1', b'PAR1' + bytes(100) + b'PAR1'])
def test_a_parquet_file_that_is_none(raw, tmp_path):
    pytest.importorskip('pyarrow')
    (tmp_path / 'manifest.parquet').write_bytes(raw)
    assert 'is not a table' in complaint(read_manifest, tmp_path)


@pytest.mark.parametrize('change, said', [
    (dict(image=[['a']]*40), 'is not a table'), (dict(z=['x']*40), 'no z'), (dict(z=None), 'no column z'),
    (dict(split=[None]*40), 'no z or a split'), (dict(subject=[1.5]*40), 'same subject and z'),
    (dict(dx=[0.]*40), 'not a length'), (dict(image=['gone.png']*40), 'not on disk')])
def test_an_odd_parquet_file(change, said, tmp_path):
    pytest.importorskip('pyarrow')
    listed(tmp_path, ODD)
    join_manifests(tmp_path, ODD)
    table = read_manifest(tmp_path)
    name, values = next(iter(change.items()))
    table = table.drop(columns=name) if values is None else table.assign(**change)
    (tmp_path / 'manifest.csv').unlink()
    table.head(0).to_parquet(tmp_path / 'manifest.parquet')
    if values is not None: assert len(read_manifest(tmp_path)) == 0
    table.to_parquet(tmp_path / 'manifest.parquet')
    assert said in complaint(read_manifest, tmp_path)


def test_lines_are_counted_across_pieces(tmp_path, monkeypatch):
    "A slice twice, or a subject in two splits, is found however far apart the lines are"
    listed(tmp_path, ODD)
    join_manifests(tmp_path, ODD)
    whole = manifest._pieces_of
    monkeypatch.setattr(manifest, '_pieces_of', lambda path: whole(path, rows=3))
    lines = (tmp_path / 'manifest.csv').read_text().splitlines()
    (tmp_path / 'manifest.csv').write_text('\n'.join([*lines, lines[2]]))
    assert f'line {len(lines) + 1} has the same subject and z' in complaint(read_manifest, tmp_path)
    (tmp_path / 'manifest.csv').write_text('\n'.join([*lines[:-1], lines[-1].replace(',train,', ',test,')]))
    assert 'more than one split' in complaint(read_manifest, tmp_path)
    (tmp_path / 'manifest.csv').write_text('\n'.join([*lines[:20], lines[20].replace(',train,', ',all,'), *lines[21:]]))
    assert 'line 21 has' in complaint(read_manifest, tmp_path)
    (tmp_path / 'manifest.csv').write_text('\n'.join(lines))
    pd.testing.assert_frame_equal(manifest.read_manifest(tmp_path), manifest.read_manifest(tmp_path, ['train']))


@pytest.mark.parametrize('name', ['.', '..', '...'])
def test_a_scan_that_is_called_dots(name, src, tmp_path):
    for kind in ('orig', 'liver'):
        shutil.copy(pair(src, 'synth_e01')[kind == 'liver'], src / f'train/nii/scan_{name}_{kind}.nii.gz')
    names = dict(image_name='{subject}_orig', mask_name='{subject}_liver')
    assert lib.make_dataset(src, tmp_path / 'a', **names)['subjects'] == 5  # scan_. and so on are names
    for path in (src / 'train/nii').glob('synth*'): path.rename(path.with_name(f'scan_{path.name}'))
    for path in (src / 'test/nii').glob('synth*'): path.rename(path.with_name(f'scan_{path.name}'))
    names = dict(image_name='scan_{subject}_orig', mask_name='scan_{subject}_liver')
    assert 'as no folder can be called' in complaint(lib.make_dataset, src, tmp_path / 'b', **names)
    assert lib.make_dataset(src, tmp_path / 'b', on_error='skip', **names)['subjects'] == 4


def test_a_subject_that_would_lead_out_of_its_folder(tmp_path):
    from test_hostile import slices
    for name in ('.', '..'):
        shutil.rmtree(tmp_path / 's', ignore_errors=True)
        assert 'rename it' in complaint(lib.import_slices, slices(tmp_path / 's', subject=name), tmp_path / 'out')


# ---- memory

KEPT = """
import re, sys
import liverseg.manifest as manifest
from pathlib import Path
def kept(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])*1024
manifest._check_files = lambda *a: None  # the slices are not there
manifest.read_manifest(sys.argv[1])
small = kept()
table = manifest.read_manifest(sys.argv[2])
print((kept() - small)/len(table))
"""

LEAKS = """
import re, sys
from pathlib import Path
from liverseg.check import CaseCheck, compare
from liverseg.work import Note
def kept(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])*1024
n, before = int(sys.argv[1]), kept()
def stub(k):
    where = f'/data/studies/site_{k % 50:02d}/{"test" if k % 10 == 0 else "train"}/nii/study_{k:07d}'
    return CaseCheck(f'study_{k:07d}', 'test' if k % 10 == 0 else 'train', f'{where}_orig.nii.gz',
                     f'{where}_liver.nii.gz', (512, 512, 250 + k % 7), (.7 + k % 5/100, .7, 1.25), 'LPS',
                     (-1024., 3071.), (0, 1), 1500. + k, [],
                     [Note('cut off', f'the liver touches the last slice of {k}')],
                     f'{k - 1 if k % 1000 == 5 or k and k % 1000 == 0 else k:032x}')  # twins, and leaks
reports = compare([stub(k) for k in range(n)])
print(sum(bool(r.errors) for r in reports), sum(any(m.code == 'twin' for m in r.warnings) for r in reports),
      (kept() - before)/n)
"""


def numbers(code, *args):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(n) for n in done.stdout.split()]


needs_proc = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the peak is read from /proc')


@needs_proc
def test_a_row_of_a_manifest_is_a_few_hundred_bytes(tmp_path):
    row = 'study_{0:05d},train,{1},train/images/study_{0:05d}/study_{0:05d}_{1:03d}.png,' \
          'train/masks/study_{0:05d}/study_{0:05d}_{1:03d}.png,{1},0.7031251,0.7031251,1.2345678,study_{0:05d}.nii.gz\n'
    for name, subjects in (('small', 400), ('large', 1600)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / 'manifest.csv').open('w') as f:
            f.write(','.join(manifest.COLUMNS) + '\n')
            for s in range(subjects): f.writelines(row.format(s, z) for z in range(250))
    bytes_a_row, = numbers(KEPT, tmp_path / 'small', tmp_path / 'large')
    print(f'{bytes_a_row:.0f} bytes a row')
    assert bytes_a_row < 450


@needs_proc
def test_leaks_among_100_000_scans_are_found_in_less_than_a_gigabyte():
    errors, twins, bytes_a_scan = numbers(LEAKS, 100_000)
    print(f'{bytes_a_scan:.0f} bytes a scan')
    assert (errors, twins) == (99, 100) and bytes_a_scan*100_000 < 1e9
