"What the tests share: the command line as a subprocess, a small cohort, and a small model."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'
LIVERSEG = [str(Path(sys.executable).with_name('liverseg'))]
BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason='needs chromium and chromedriver')


def chromium(*flags, **prefs):
    "Chromium without a window, which logs its console and its requests; without graphics unless `flags` give it some"
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ('--headless', '--no-sandbox', '--disable-background-networking', '--disable-dev-shm-usage',
                 *(flags or ['--disable-gpu'])):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    options.add_experimental_option('prefs', prefs)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def run(*args, ok=None, env=None, **kwargs):
    "Run `liverseg` as a user would; `ok` is the exit status that must come out"
    done = subprocess.run([*LIVERSEG, *map(str, args)], capture_output=True, text=True,
                          env={**os.environ, **(env or {})}, **kwargs)
    assert 'Traceback' not in done.stderr, done.stderr
    if ok is not None:
        assert done.returncode == ok, done.stdout + done.stderr
    return done


def content(folder):
    "All files below a folder and their bytes, but for the records that know how old sources and slices were"
    files = [p for p in sorted(Path(folder).rglob('*'))
             if p.is_file() and not {'.done', '.checked.json'} & {*p.relative_to(folder).parts}]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope='session')
def cohort(tmp_path_factory):
    "SRC with three training subjects and one test subject; never written to"
    from liverseg.phantom import make_cohort
    src = tmp_path_factory.mktemp('cohort') / 'data'
    make_cohort(src, n_train=3, n_test=1, seed=5, shape=(64, 64, 22))
    return src


@pytest.fixture
def src(cohort, tmp_path):
    "A copy of the cohort to spoil"
    return Path(shutil.copytree(cohort, tmp_path / 'data'))


@pytest.fixture(scope='session')
def png(cohort, tmp_path_factory):
    "The cohort, converted"
    dst = tmp_path_factory.mktemp('png') / 'png'
    run('convert', cohort, dst, ok=0)
    return dst


@pytest.fixture(scope='session')
def model(png, tmp_path_factory):
    "A model trained for two epochs, good enough to be run"
    folder = tmp_path_factory.mktemp('model') / 'model'
    run('train', png, folder, '--size', 64, '--epochs', 2, '--arch', 'resnet18', '--no-pretrained', '--device', 'cpu',
        ok=0)
    return folder


def shared(*parts):
    "A path of the real data, or the reason to skip"
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip('the real data are not here (../shared/data); the synthetic twin of this test ran')
    return path
