"""Scans and cases spread over processes, threads and parts: the same files as from one process, whatever is killed."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, content

from liverseg.check import as_json, check, merge_checks, remarks, write_checks
from liverseg.cluster import Share
from liverseg.compare import evaluate_masks, merge_masks, read_cases
from liverseg.convert import make_dataset
from liverseg.evaluate import evaluate, merge_report
from liverseg.folder import merge_results, predict_folder
from liverseg.layouts import find_cases
from liverseg.measured import parts_of_masks
from liverseg.work import BadInput, PoolUnfit, _Processes


def quiet(message): pass


@pytest.fixture(scope='module')
def scans(cohort, tmp_path_factory):
    "Six small scans, a file that is none, and one of a kind that is not read"
    folder = tmp_path_factory.mktemp('spread') / 'scans'
    folder.mkdir()
    for k, path in enumerate(sorted(cohort.rglob('*_orig.nii.gz'))):
        img = nib.load(path)
        nib.save(img, folder / f's{k}.nii.gz')
        if k < 2: nib.save(img.slicer[:, :, 3:], folder / f'cut{k}.nii')
    (folder / 'broken.nii.gz').write_bytes(b'\x1f\x8b no scan')
    (folder / 'other.mgz').write_bytes(b'ObjectType = Image')
    return folder


@pytest.fixture(scope='module')
def serial(scans, model, tmp_path_factory):
    out = tmp_path_factory.mktemp('serial') / 'masks'
    predict_folder(scans, out, model, device='cpu', say=quiet)
    return out


def files(folder):
    "All files, without the seconds, which differ from run to run"
    found = content(folder)
    rows = list(csv.DictReader(found['results.csv'].decode().splitlines()))
    found['results.csv'] = [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]
    for name in found:
        if name.endswith('.json'): found[name] = dict(json.loads(found[name]), seconds=0)
    return found


def three(do, *args, **kwargs):
    for k in (3, 1, 2): do(*args, part=Share(k, 3), **kwargs)


WAYS = ('processes', 'threads', 'parts')


def spread(way, do, merge, out, *args, **kwargs):
    "A function that takes workers, pool and part, run in one of the ways"
    if way == 'processes': return do(*args, workers=2, **kwargs)
    if way == 'threads':
        with ThreadPoolExecutor(3) as pool: return do(*args, pool=pool, **kwargs)
    three(do, *args, **kwargs)
    return merge(out)


@pytest.mark.parametrize('way', WAYS)
def test_masks_are_the_same_in_all_ways(way, scans, serial, model, tmp_path):
    out, said = tmp_path / 'out', []
    table = spread(way, predict_folder, merge_results, out, scans, out, model, device='cpu', say=said.append)
    assert files(out) == files(serial)
    assert list(table['scan'])[:2] == ['broken.nii.gz', 'other.mgz'] and table['error'].notna().sum() == 2
    assert sum(line.startswith('error: ') for line in said) == 2
    assert list(csv.DictReader((out / 'results.csv').open()))[0]['error'].startswith(str(scans / 'broken.nii.gz'))


def test_a_missing_part_is_named(scans, model, tmp_path):
    with pytest.raises(BadInput, match='no parts to merge'): merge_results(tmp_path)
    for k in (1, 3): predict_folder(scans, tmp_path, model, device='cpu', say=quiet, part=Share(k, 3))
    with pytest.raises(BadInput, match=r'1 of 3 parts are missing \(2/3\)'): merge_results(tmp_path)
    assert not (tmp_path / 'results.csv').exists()
    (tmp_path / 'results.2of3.csv').write_text('case,dice\n1,0.9\n')
    with pytest.raises(BadInput, match='results.2of3.csv: exists and was not written'): merge_results(tmp_path)
    with pytest.raises(BadInput, match='results.2of3.csv: exists and was not written'):
        predict_folder(scans, tmp_path, model, device='cpu', say=quiet, part=Share(2, 3))


def test_rows_are_on_disk_as_they_come(scans, model, tmp_path, monkeypatch):
    import liverseg.folder as folder
    seen, predict = [], folder.predict
    def watched(scan, *args, **kwargs):
        seen.append(len((tmp_path / 'out/results.1of1.partial.csv').read_text().splitlines()))
        return predict(scan, *args, **kwargs)
    monkeypatch.setattr(folder, 'predict', watched)
    predict_folder(scans, tmp_path / 'out', model, device='cpu', say=quiet)
    assert seen == [2, 3, 4, 5, 6, 7, 8]  # a header, the file of another kind, then one more each time
    assert not list((tmp_path / 'out').glob('*.partial.*'))


def test_two_runs_on_one_folder_share_its_scans(scans, serial, model, tmp_path, monkeypatch):
    "Each mask is made by one of them, and both give the whole table"
    import liverseg.folder as folder
    made, predict, said = [], folder.predict, []
    def slowly(scan, *args, **kwargs):
        time.sleep(.3)
        found = predict(scan, *args, **kwargs)
        made.append((threading.current_thread().name, scan.name))
        return found
    monkeypatch.setattr(folder, 'predict', slowly)
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(predict_folder, scans, tmp_path / 'out', model, device='cpu', say=said.append)
                for _ in range(2)]
        a, b = (run.result() for run in runs)
    assert sorted(name for _, name in made) == sorted(p.name for p in scans.glob('[cs]*.nii*'))
    assert len({who for who, _ in made}) == 2
    assert a.equals(b) and files(tmp_path / 'out') == files(serial)
    assert sum('another run is at work' in line for line in said) == 1


KILLED = '''
import os, signal, sys
import liverseg.results as results
from liverseg.folder import predict_folder
write = results.atomic_write
def killed_at_the_third(path, raw):
    if path.name == 's0.json':
        path.with_name(f'.{path.name}.part{os.getpid()}').write_bytes(raw[:20])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, raw)
results.atomic_write = killed_at_the_third
predict_folder(*sys.argv[1:4], device='cpu', say=lambda s: None)
'''


def test_a_killed_run_goes_on(scans, serial, model, tmp_path):
    "What is done is not done again, and nothing half-written stays"
    out = tmp_path / 'out'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', KILLED, scans, out, model],
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == -signal.SIGKILL
    left = {p.name for p in out.iterdir()}
    assert {'.s0.nii.gz.lock', 'results.1of1.partial.csv', 's0.nii.gz', 'cut1.json'} < left
    assert any(name.startswith('.s0.json.part') for name in left) and 's0.json' not in left
    before = (out / 'cut1.nii.gz').stat().st_mtime_ns
    predict_folder(scans, out, model, device='cpu', say=quiet)
    assert (out / 'cut1.nii.gz').stat().st_mtime_ns == before
    assert files(out) == files(serial)


def poison():
    "In a worker: a scan that the system kills it for"
    import liverseg.folder as folder
    predict = folder.predict
    def deadly(scan, *args, **kwargs):
        if scan.name == 's1.nii.gz': os.kill(os.getpid(), signal.SIGKILL)
        return predict(scan, *args, **kwargs)
    folder.predict = deadly


@pytest.mark.all
def test_a_scan_that_kills_its_worker_is_a_row(scans, serial, model, tmp_path):
    with _Processes(2, get_context('spawn'), poison) as pool:
        table = predict_folder(scans, tmp_path, model, device='cpu', say=quiet, pool=pool)
    bad = dict(zip(table['scan'], table['error'].fillna('')))
    assert bad['s1.nii.gz'].startswith(f'{scans / "s1.nii.gz"}: a worker was stopped')
    found, wanted = files(tmp_path), files(serial)
    assert {n for n in wanted if n not in found} == {f's1{e}' for e in ('.nii.gz', '.png', '.json')}
    assert all(found[n] == wanted[n] for n in found if n not in ('results.csv', 'triage.html'))
    assert not [n for n in found if n.startswith('.')]


CHILDREN = '''
import sys
from liverseg.folder import predict_folder
if __name__ == '__main__': predict_folder(*sys.argv[1:4], device='cpu', say=lambda s: None, workers=2)
'''


@pytest.mark.all
@pytest.mark.skipif(not Path('/proc/self/cmdline').exists(), reason='workers are found in /proc')
def test_a_worker_that_is_killed_from_outside(scans, serial, model, tmp_path):
    out = tmp_path / 'out'
    done = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', CHILDREN, scans, out, model],
                            env=dict(os.environ, PYTHONPATH=str(ROOT)))
    killed = False
    while done.poll() is None:
        children = subprocess.run(['pgrep', '-P', str(done.pid), '-f', 'spawn_main'], capture_output=True, text=True)
        if not killed and children.stdout.split() and list(out.glob('*.json')):
            os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
            killed = True
        time.sleep(.01)
    assert killed and done.returncode == 0
    assert files(out) == files(serial)


class Wearing:
    "A pool that looks at four cases, converts two, and then will not go on"
    ahead, tries, done = 1, 1, 0
    def submit(self, func, *args):
        self.done, answer = self.done + 1, Future()
        if self.done <= 6: answer.set_result(func(*args))
        else: answer.set_exception(PoolUnfit('this worker has liverseg 0.0.9'))
        return answer


@pytest.mark.parametrize('on_error', ['stop', 'skip'])
def test_what_is_converted_outlasts_a_pool_that_will_not_go_on(on_error, cohort, png, tmp_path):
    "It is not the scans that are wrong"
    how = (cohort, tmp_path / 'png')
    with pytest.raises(PoolUnfit, match='0.0.9'): make_dataset(*how, check=False, on_error=on_error, pool=Wearing())
    part = tmp_path / '.png.partial'
    finished = {p: p.stat().st_mtime_ns for p in part.rglob('images/*/*.png')}
    assert len({p.parent for p in finished}) == 2
    make_dataset(*how, check=False, on_error=on_error)
    for path, when in finished.items(): assert (how[1] / path.relative_to(part)).stat().st_mtime_ns == when
    assert content(how[1] / 'train') == content(png / 'train')


# ---- evaluation of a network

@pytest.fixture(scope='module')
def report(png, model, tmp_path_factory):
    out = tmp_path_factory.mktemp('measured') / 'report'
    evaluate(png, out, model, 'train', device='cpu', say=quiet)
    return out


@pytest.mark.parametrize('way', WAYS)
def test_reports_are_the_same_in_all_ways(way, png, report, model, tmp_path):
    out = tmp_path / 'report'
    summary = spread(way, evaluate, merge_report, out, png, out, model, 'train', device='cpu', say=quiet)
    assert content(out) == content(report) and summary['cases'] == 3 and 'failed' not in summary
    assert [p.name for p in tmp_path.iterdir()] == ['report']


def test_a_stopped_report_goes_on(png, report, model, tmp_path, monkeypatch):
    "Slices that have changed since are measured again; so is everything, with another model or in another way"
    import liverseg.evaluate as room
    data, out, asked, said = Path(shutil.copytree(png, tmp_path / 'data')), tmp_path / 'report', [], []
    measure = room.evaluate_case
    def stops(net, meta, data, rows, *more):
        asked.append(rows['subject'].iloc[0])
        if len(asked) == 3: raise KeyboardInterrupt
        return measure(net, meta, data, rows, *more)
    monkeypatch.setattr(room, 'evaluate_case', stops)
    how = (data, out, model, 'train')
    with pytest.raises(KeyboardInterrupt): evaluate(*how, device='cpu', say=quiet)
    changed = sorted((data / 'train').rglob('*e02*_005.png'))[0]
    changed.write_bytes(changed.read_bytes())
    evaluate(*how, device='cpu', say=said.append)
    assert asked[3:] == ['synth_e02', 'synth_e03'] and '1 case(s) had been measured' in said[-1]
    assert content(out) == content(report) and sorted(p.name for p in tmp_path.iterdir()) == ['data', 'report']
    asked.clear()
    with pytest.raises(KeyboardInterrupt): evaluate(*how, device='cpu', say=quiet)
    evaluate(*how, 'flip', device='cpu', say=quiet)
    assert len(asked) == 6


WHOLE = '{"subject": "a", "stamp": "s"}\n'


@pytest.mark.parametrize('text, n', [(WHOLE, 1), (WHOLE + '{"sub', 1), ('{"subject": "a"}\n', 0), ('nonsense\n', 0),
                                     ('[1]\n', 0), ('['*100_000 + '\n', 0)])
def test_what_a_stopped_report_left_may_be_damaged(text, n, tmp_path):
    from liverseg.measured import _measured_before
    head = json.dumps(dict(liverseg='0'))
    (tmp_path / 'left.jsonl').write_text(f'{head}\n{text}')
    assert len(_measured_before(tmp_path / 'left.jsonl', head)) == n


def spoil(png, tmp_path):
    "The data, with one slice of one training subject cut short"
    data = Path(shutil.copytree(png, tmp_path / 'data'))
    victim = sorted((data / 'train').rglob('*e02*_005.png'))[0]
    victim.write_bytes(victim.read_bytes()[:40])
    return data, victim


@pytest.mark.parametrize('way', WAYS[1:])
def test_a_case_that_cannot_be_measured_is_a_row(way, png, model, tmp_path):
    (data, victim), out = spoil(png, tmp_path), tmp_path / 'report'
    said = []
    summary = spread(way, evaluate, merge_report, out, data, out, model, 'train', device='cpu', say=said.append)
    assert list(summary['failed']) == ['synth_e02'] and victim.name in summary['failed']['synth_e02']
    assert sum(line.startswith('error: ') and victim.name in line for line in said) == 1
    assert summary['cases'] == 2
    rows = {r['subject']: r for r in csv.DictReader((out / 'cases.csv').open())}
    assert victim.name in rows['synth_e02']['error'] and rows['synth_e02']['dice'] == ''
    assert rows['synth_e01']['error'] == '' and float(rows['synth_e01']['dice']) >= 0
    assert rows['synth_e01']['slices'] == '22'
    page = (out / 'report.html').read_text()
    assert '1 case(s) could not be measured' in page and '2 case(s), 44 slices' in page
    cases = read_cases(out)
    assert list(cases.index) == ['synth_e01', 'synth_e02', 'synth_e03'] and np.isnan(cases['dice']['synth_e02'])


def test_parts_that_do_not_belong_together(png, model, tmp_path):
    out = tmp_path / 'report'
    assert evaluate(png, out, model, 'train', device='cpu', say=quiet, part=Share(1, 2))['failed'] == {}
    assert not out.exists() and not parts_of_masks_or_none(out)
    with pytest.raises(BadInput, match=r'\(2/2\)'): merge_report(out)
    evaluate(png, out, model, 'train', 'flip', device='cpu', say=quiet, part=Share(2, 2))
    with pytest.raises(BadInput, match='was measured with tta flip, report.1of2.jsonl with none'): merge_report(out)
    evaluate(png, out, model, 'train', device='cpu', say=quiet, part=Share(2, 2))
    path = tmp_path / 'report.2of2.jsonl'
    lines = path.read_text().splitlines(True)
    other = tmp_path / 'report.1of2.jsonl' if len(lines) == 1 else path
    other.write_text(''.join(other.read_text().splitlines(True)[:-1]))
    with pytest.raises(BadInput, match='other cases than there are now'): merge_report(out)
    path.write_text('my notes\n')
    with pytest.raises(BadInput, match='is not a part of a report'): merge_report(out)
    with pytest.raises(BadInput, match='is not a part of a report'):
        evaluate(png, out, model, 'train', device='cpu', say=quiet, part=Share(2, 2))
    assert path.read_text() == 'my notes\n' and not out.exists()


def parts_of_masks_or_none(out):
    try: return parts_of_masks(out)
    except BadInput: return None


# ---- evaluation of masks

@pytest.fixture
def masks(tmp_path):
    "Five pairs of masks, the prediction of the second damaged"
    for k in range(5):
        true = np.zeros((20, 18, 8), np.uint8)
        true[4:15, 5:12, 1 + k % 3:7] = 1
        for name, mask in dict(truth=true, pred=np.roll(true, 1, k % 2)).items():
            (tmp_path / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(mask, np.diag([.8, .9, 2.5, 1])), tmp_path / name / f'case{k}.nii.gz')
    (tmp_path / 'pred/case1.nii.gz').write_bytes(b'no NIfTI')
    return tmp_path


@pytest.mark.parametrize('way', WAYS)
def test_masks_are_measured_in_all_ways(way, masks):
    found = {}
    for name, how in dict(one='serial', other=way).items():
        out = masks / name
        args = (masks / 'pred', masks / 'truth', out)
        found[name] = evaluate_masks(*args, say=quiet) if how == 'serial' else spread(
            way, evaluate_masks, merge_masks, out, *args, say=quiet)
    assert content(masks / 'one') == content(masks / 'other')
    assert found['one'] == found['other'] and list(found['one']['failed']) == ['case1'] and found['one']['cases'] == 4
    assert not list(masks.glob('*.jsonl'))


def deadly():
    "In a worker: a case that the system kills it for"
    import liverseg.compare as compare
    measure = compare.measure_pair
    def killed(pair, **how):
        if pair[0] == 'case3': os.kill(os.getpid(), signal.SIGKILL)
        return measure(pair, **how)
    compare.measure_pair = killed


def test_a_case_that_kills_its_worker_is_a_row(masks):
    args = (masks / 'pred', masks / 'truth')
    with _Processes(2, get_context('fork'), deadly) as pool:
        found = evaluate_masks(*args, masks / 'report', say=quiet, pool=pool)
    assert list(found['failed']) == ['case1', 'case3'] and found['cases'] == 3
    assert 'case3: could not be measured (WorkerLost: a worker was stopped' in found['failed']['case3']
    wanted = evaluate_masks(*args, masks / 'whole', say=quiet)
    ours, theirs = (read_cases(masks / name) for name in ('report', 'whole'))
    good = ['case0', 'case2', 'case4']
    assert wanted['cases'] == 4 and ours.loc[good].equals(theirs.loc[good])


def test_masks_of_which_none_can_be_measured(masks):
    for p in (masks / 'pred').iterdir(): p.write_bytes(b'no NIfTI')
    with pytest.raises(BadInput) as e: evaluate_masks(masks / 'pred', masks / 'truth', masks / 'report', say=quiet)
    assert len(str(e.value).splitlines()) == 5 and not (masks / 'report').exists()


def test_it_is_known_whose_parts_they_are(masks):
    three(evaluate_masks, masks / 'pred', masks / 'truth', masks / 'report', say=quiet)
    assert parts_of_masks(masks / 'report')
    (masks / 'truth/case4.nii.gz').unlink()
    with pytest.raises(BadInput, match='case4 is in one alone'): merge_masks(masks / 'report', quiet)


# ---- checking

@pytest.mark.parametrize('way', WAYS)
def test_checks_are_the_same_in_all_ways(way, src, tmp_path):
    "A scan of the training is in the test under another name; whoever has both parts says so"
    scan = next((src / 'train/nii').glob('*e02_orig*'))
    (src / 'test/nii/stranger_orig.nii.gz').write_bytes(scan.read_bytes())
    cases = find_cases(src)
    wanted, notes, place = check(cases), remarks(cases), tmp_path / 'found.json'
    assert sum(len(r.errors) for r in wanted) == 1
    if way == 'parts':
        for k in (2, 3, 1): write_checks(place, check(cases, part=Share(k, 3)), src, notes, Share(k, 3), cases)
        reports, source, told = merge_checks(place)
        assert (source, told) == (str(src), notes) and [p.name for p in tmp_path.glob('found*')] == ['found.json']
        assert json.loads(place.read_text()) == json.loads(json.dumps(as_json(wanted, src, notes)))
    else: reports = spread(way, check, None, None, cases)
    assert reports == wanted


def test_parts_of_a_check_that_do_not_belong_together(src, tmp_path):
    cases, place = find_cases(src), tmp_path / 'found.json'
    for k in (1, 2): write_checks(place, check(cases, part=Share(k, 2)), src, [], Share(k, 2), cases[k - 1:])
    with pytest.raises(BadInput, match='not of one data set'): merge_checks(place)
    (tmp_path / 'found.2of2.json').write_text('{"subjects": 3}')
    with pytest.raises(BadInput, match='found.2of2.json: is not a part'): merge_checks(place)
    assert not place.exists()
