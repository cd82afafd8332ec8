"""The docs site in a real browser: built without a warning, served from below a path, without network, on a wide and a
narrow screen."""
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest
from conftest import ROOT, chromium, needs_browser

pytest.importorskip('smalldocs')
WebDriverWait = pytest.importorskip('selenium.webdriver.support.wait').WebDriverWait
pytestmark = needs_browser


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "(folder, address, what was said); the site lies two folders below the server's root"
    from make_docs import make
    root = tmp_path_factory.mktemp('docs')
    said = make(root / 'some/where')
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root / 'some/where', f'http://127.0.0.1:{server.server_port}/some/where/', said
    server.shutdown()


@pytest.fixture(scope='module')
def browser():
    driver = chromium()
    yield driver
    driver.quit()


def pages(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.html') if 'site_libs' not in p.parts)


def wide(browser, width):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                            dict(width=width, height=900, deviceScaleFactor=1, mobile=False))


def test_it_is_built_without_a_warning(site):
    folder, _, said = site
    assert said == []
    notebooks = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if 'book' not in p.parts]
    # and the changelog, and Try it where npm is
    assert len(pages(folder)) == len(notebooks) + 1 + (folder / 'try.html').is_file()


@pytest.mark.parametrize('width', [1300, 390])
def test_every_page_loads_whole_and_fits(site, browser, width):
    folder, address, _ = site
    wide(browser, width)
    for page in pages(folder):
        browser.get(address + page)
        errors = [e for e in browser.get_log('browser') if e['level'] in ('SEVERE', 'WARNING')]
        assert errors == [], page
        for entry in browser.get_log('performance'):
            message = json.loads(entry['message'])['message']
            if message['method'] == 'Network.requestWillBeSent':
                url = message['params']['request']['url']
                assert url.startswith((address, 'data:', 'blob:')), f'{page}: {url}'
        size = browser.execute_script('return [document.documentElement.scrollWidth, '
                                      'document.documentElement.clientWidth]')
        assert size[0] <= size[1], f'{page} is {size[0]} pixels wide on a screen of {size[1]}'
        raw = re.search(r'.*\]\((https?:|[\w./-]+\.(ipynb|html)).*',
                        browser.execute_script('return document.querySelector("main").innerText'))
        assert not raw, f'{page}: a link inside a link, or in code: {raw[0]}'
        wrong = browser.find_elements('css selector', '.cell-output-stderr, .cell-output-error')
        assert wrong == [], f'{page}: a warning or an error among the outputs'
        dumb = browser.execute_script('return [...document.querySelectorAll("main img")]'
                                      '.filter(i => !i.alt).map(i => i.src.slice(0, 80))')
        assert dumb == [], f'{page}: pictures without an alternative text'
        blind = browser.execute_script('return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)')
        assert blind == [], page


def test_no_link_leads_nowhere(site, browser):
    folder, address, _ = site
    links, ids = {}, {}
    for page in pages(folder):
        browser.get(address + page)
        links[page] = browser.execute_script('return [...document.querySelectorAll("a[href]")].map(a => a.href)')
        ids[page] = set(browser.execute_script('return [...document.querySelectorAll("[id]")].map(e => e.id)'))
    lost = []
    for page, hrefs in links.items():
        for href in hrefs:
            if not href.startswith(address): continue
            target, _, anchor = href[len(address):].partition('#')
            target = unquote(target) or 'index.html'
            if target.endswith('/'): target += 'index.html'
            if not (folder / target).is_file(): lost.append((page, href))
            elif anchor and target in ids and unquote(anchor) not in ids[target]:
                lost.append((page, target + '#' + anchor))
    assert lost == []


def test_the_search_finds_dice(site, browser):
    folder, address, _ = site
    wide(browser, 1300)
    browser.get(address + 'index.html')
    box = browser.find_element('css selector', '#quarto-search input, input[type=search], .aa-Input')
    box.send_keys('dice')
    found = WebDriverWait(browser, 10).until(
        lambda b: b.execute_script('return [...document.querySelectorAll("a[href]")]'
                                   '.filter(a => /dice/i.test(a.textContent) && '
                                   'a.closest("[id*=search], [class*=search], [class*=aa-]")).map(a => a.href)'))
    assert any('evaluate.html' in href or 'metrics.html' in href for href in found), found


def test_the_sidebar_lists_every_page(site, browser):
    folder, address, _ = site
    wide(browser, 1300)
    browser.get(address + 'tta.html')
    links = browser.execute_script('return [...document.querySelectorAll("#quarto-sidebar a[href]")].map(a => a.href)')
    listed = {urlparse(a).path.split('/some/where/')[1] for a in links if '/some/where/' in a}
    assert set(pages(folder)) <= listed
    titles = browser.execute_script('return [...document.querySelectorAll("#quarto-sidebar a[href]")]'
                                    '.filter(a => a.href.endsWith(".html") && !a.textContent.trim()).map(a => a.href)')
    assert titles == []


def test_the_pictures_of_the_site_are_those_of_the_readme():
    for p in (ROOT / 'img').iterdir():
        assert p.read_bytes() == (ROOT / 'nbs/img' / p.name).read_bytes(), f'{p.name}: run `make figures`'
