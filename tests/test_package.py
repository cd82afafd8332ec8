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
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(home / 'dist'), str(ROOT)], check=True, capture_output=True)
    subprocess.run([sys.executable, '-m', 'venv', str(home / 'env')], check=True)
    wheel = next((home / 'dist').glob('*.whl'))
    done = subprocess.run([str(home / 'env/bin/python'), '-m', 'pip', 'install', '-q', str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home


def test_newest_fastai_and_fastcore_come(clean):
    code = 'from importlib.metadata import version as v; print(v("fastai"), v("fastcore"))'
    fastai, fastcore = subprocess.run([str(clean / 'env/bin/python'), '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert tuple(map(int, fastai.split('.'))) >= (2, 8, 7) and int(fastcore.split('.')[0]) >= 2


def test_the_demo_runs_there(clean, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    done = subprocess.run([str(clean / 'env/bin/liverseg'), 'demo', str(tmp_path / 'demo')], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ('data', 'png', 'model', 'report', 'report_tta', 'scan.nii.gz', 'scan_mask.nii.gz', 'scan_mask.json', 'scan_mask.png'):
        assert (tmp_path / 'demo' / name).exists()
    cases = pd.read_csv(tmp_path / 'demo/report/cases.csv')
    assert len(cases) >= 6 and cases['volume_ml_true'].max() >= 1.3 * cases['volume_ml_true'].min()
    assert cases['dice'].mean() >= 0.90


def test_the_sdist_holds_what_a_build_needs(clean):
    import tarfile
    names = {n.split('/', 1)[1] for n in tarfile.open(next((clean / 'dist').glob('*.tar.gz'))).getnames() if '/' in n}
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'liverseg/cli.py'} <= names


def test_metadata_comes_from_settings(clean):
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini')
    code = 'from importlib.metadata import metadata as m; d = m("liverseg"); print(d["Version"], d["License-Expression"], d["Author"], sep="|")'
    said = subprocess.run([str(clean / 'env/bin/python'), '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{ini['DEFAULT']['version']}|Apache-2.0|{ini['DEFAULT']['author']}"
