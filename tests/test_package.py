"The built wheel in a clean environment, without the dev requirements' pins (slow: `make test-all`)."
import os
import subprocess
import sys
from configparser import ConfigParser

import pandas as pd
import pytest

from conftest import ROOT

pytestmark = pytest.mark.all


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "An environment that holds the wheel and what it asks for"
    home = tmp_path_factory.mktemp('clean')
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(home / 'dist'), str(ROOT)], check=True,
                   capture_output=True)
    subprocess.run([sys.executable, '-m', 'venv', str(home / 'env')], check=True)
    wheel = next((home / 'dist').glob('*.whl'))
    done = subprocess.run([str(home / 'env/bin/python'), '-m', 'pip', 'install', '-q', str(wheel)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home


def test_newest_fastai_and_fastcore_come(clean):
    code = 'from importlib.metadata import version as v; print(v("fastai"), v("fastcore"))'
    fastai, fastcore = subprocess.run([str(clean / 'env/bin/python'), '-c', code], capture_output=True, text=True,
                                      check=True).stdout.split()
    assert tuple(map(int, fastai.split('.'))) >= (2, 8, 7) and int(fastcore.split('.')[0]) >= 2


def run_demo(env, folder):
    "The demo by the command of that environment; its cases"
    clear = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    done = subprocess.run([str(env / 'bin/liverseg'), 'demo', str(folder)], capture_output=True, text=True, env=clear,
                          cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ('data', 'png', 'model', 'report', 'report_tta', 'scan.nii.gz', 'scan_mask.nii.gz', 'scan_mask.json',
                 'scan_mask.png'):
        assert (folder / name).exists()
    return pd.read_csv(folder / 'report/cases.csv')


def test_the_demo_runs_there(clean, tmp_path):
    cases = run_demo(clean / 'env', tmp_path / 'demo')
    assert len(cases) >= 6 and cases['volume_ml_true'].max() >= 1.3 * cases['volume_ml_true'].min()
    assert cases['dice'].mean() >= 0.90


def test_the_sdist_holds_what_a_build_needs(clean):
    import tarfile
    names = {n.split('/', 1)[1] for n in tarfile.open(next((clean / 'dist').glob('*.tar.gz'))).getnames() if '/' in n}
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'liverseg/cli.py'} <= names
    assert {f'liverseg/weights/{n}' for n in ('model.safetensors', 'model.json', 'LICENSE.md', 'card.json')} <= names
    assert not any(n.startswith('web/') for n in names) # its node_modules takes 150 MB


def test_a_mask_without_training_or_network(clean, tmp_path):
    "The wheel alone, with nobody to ask: one line, and the mask lies on the scan's grid"
    import nibabel as nib
    from liverseg.phantom import make_subject, write_subject
    scan, _ = write_subject(make_subject(3, shape=(256, 256, 40)), tmp_path, 's')
    away = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), 'http://127.0.0.1:9')
    away |= {'HF_HUB_OFFLINE': '1', 'HOME': str(tmp_path / 'home')}
    clear = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')} | away
    done = subprocess.run([str(clean / 'env/bin/liverseg'), 'predict', str(scan), 'mask.nii.gz'], capture_output=True,
                          text=True, env=clear, cwd=tmp_path)
    assert done.returncode == 0 and 'liver volume' in done.stdout, done.stdout + done.stderr
    assert nib.load(tmp_path / 'mask.nii.gz').shape == nib.load(scan).shape
    weights = next((clean / 'env/lib').glob('python*/site-packages/liverseg/weights/model.safetensors'))
    assert weights.stat().st_size < 12e6


def test_the_sdist_gives_the_same(clean, tmp_path):
    "In a second environment, which sees what the first has installed but not its liverseg"
    sdist, env = next((clean / 'dist').glob('*.tar.gz')), tmp_path / 'env'
    subprocess.run([sys.executable, '-m', 'venv', str(env)], check=True)
    lib = next((clean / 'env/lib').glob('python*/site-packages'))
    done = subprocess.run([str(env / 'bin/python'), '-m', 'pip', 'install', '-q', '--no-deps', str(sdist)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    next((env / 'lib').glob('python*/site-packages')).joinpath('others.pth').write_text(f'{lib}\n')
    where = subprocess.run([str(env / 'bin/python'), '-c', 'import liverseg; print(liverseg.__file__)'],
                           capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert where.startswith(str(env))
    assert run_demo(env, tmp_path / 'demo')['dice'].mean() >= 0.90


def test_metadata_comes_from_settings(clean):
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    code = ('from importlib.metadata import metadata as m; d = m("liverseg"); '
            'print(d["Version"], d["License-Expression"], d["Author"], sep="|")')
    said = subprocess.run([str(clean / 'env/bin/python'), '-c', code], capture_output=True, text=True,
                          check=True).stdout.strip()
    assert said == f"{ini['DEFAULT']['version']}|Apache-2.0 AND CC-BY-SA-4.0|{ini['DEFAULT']['author']}"


EXTRAS = dict(
    cluster='import bokeh, pyarrow; from distributed import LocalCluster; from liverseg.cluster import cluster; '
            'from liverseg.work import each; at = LocalCluster(1, processes=False, dashboard_address=None); '
            'pool = cluster(at.scheduler_address); assert list(each(abs, [-1, 2], pool=pool.__enter__())) == [1, 2]; '
            'pool.__exit__(None, None, None); at.close()',
    dicom='from liverseg.dicom import read_series; from liverseg.phantom import write_series; import gdcm; '
          'write_series(hu, eye, "ct"); assert read_series("ct").data.shape == hu.shape',
    lite='from liverseg.network import pretrained_encoder; pretrained_encoder("lite")',
    multi='import accelerate',
    onnx='from liverseg.network import build_net; from liverseg.save import describe, export_onnx, save_model; '
         'from liverseg.models import open_model; '
         'save_model(build_net("resnet18", size=64), describe("resnet18", 64), "m"); open_model([export_onnx("m.onnx", '
         '"m"), "m"], "cpu")',
    seg='from liverseg.outlines import dicom_mask; from liverseg.phantom import write_series; '
        'from liverseg.seg import write_seg; write_series(hu, eye, "ct"); '
        'write_seg("m.dcm", "ct", hu > 0); assert not dicom_mask("m.dcm", "ct")[0].any()',
    widgets='from liverseg.look import browse, browse_3d; from liverseg.phantom import make_subject, write_subject; '
            'scan = write_subject(make_subject(0, shape=(32, 32, 8)), ".", "s")[0]; browse(scan), browse_3d(scan)')


@pytest.mark.parametrize('extra', EXTRAS)
def test_each_extra_brings_what_it_is_for(clean, extra, tmp_path):
    wheel, python = next((clean / 'dist').glob('*.whl')), str(clean / 'env/bin/python')
    done = subprocess.run([python, '-m', 'pip', 'install', '-q', f'{wheel}[{extra}]'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = f'import numpy as np; hu, eye = np.zeros((8, 8, 4), np.int16), np.eye(4); {EXTRAS[extra]}'
    done = subprocess.run([python, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_extra_for_users_is_tried():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    assert {k.removesuffix('_requirements') for k in ini['DEFAULT']
            if k.endswith('_requirements')} - {'dev', 'bench'} == set(EXTRAS)


def test_conda_gets_the_same_python(tmp_path):
    import yaml
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    told = yaml.safe_load((ROOT / 'environment.yml').read_text())['dependencies']
    assert f"python>={ini['DEFAULT']['min_python']}" in told
