"The report's page in a real browser: nothing is fetched or fails, the table sorts, a narrow screen is wide enough."
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import run

webdriver = pytest.importorskip('selenium.webdriver')
BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason='needs chromium and chromedriver')


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The page of five cases, one of them lost and one named as no case should be"
    root = tmp_path_factory.mktemp('report')
    for k, name in enumerate(('a', 'b', 'c', 'lost', '<img src=x onerror=alert(1)>')):
        true = np.zeros((30, 30, 12), np.uint8)
        true[5:25, 5:20, 2:10] = 1
        for folder, mask in dict(truth=true, pred=np.roll(true, k, 0)*(name != 'lost')).items():
            (root / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(mask, np.diag([.8, .8, 5, 1])), root / folder / f'{name}.nii.gz')
    run('evaluate', '--pred', root / 'truth', '--truth', root / 'truth', root / 'other', ok=0)
    run('evaluate', '--pred', root / 'pred', '--truth', root / 'truth', root / 'out', '--against', root / 'other', ok=0)
    return root / 'out/report.html'


@pytest.fixture(scope='module', params=[1300, 390])
def browser(request):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'disable-background-networking', 'disable-dev-shm-usage'):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                           dict(width=request.param, height=900, deviceScaleFactor=1, mobile=False))
    yield driver
    driver.quit()


def test_the_section_on_probabilities_fits(browser, page):
    from liverseg.report import calibrated_section, with_section
    # the first is empty
    bins = [dict(pixels=k, probability=(k + .5)/15 if k else None, liver=k/15 if k else None) for k in range(15)]
    section = calibrated_section(dict(ece=.0333, pixels=105, over='pixels <near> the liver', bins=bins))
    other = page.with_name('probabilities.html')
    # in the place of the comparison
    other.write_text(with_section(page.read_text(encoding='utf-8'), section), encoding='utf-8')
    browser.get(other.as_uri())
    assert browser.get_log('browser') == [] and len(browser.find_elements('css selector', 'svg')) == 5
    assert browser.execute_script('return document.documentElement.scrollWidth <= document.documentElement.clientWidth')
    text = browser.find_element('css selector', 'body').text
    for word in ('Probabilities', 'Expected calibration error: 0.033', 'Taken over 105 pixels <near> the liver',
                 'Can the probabilities be believed?'):
        assert word in text, word


# the comparison's, and that of all cases
def tables(browser): return browser.find_elements('css selector', 'table.sorts')


def column(table, k):
    return [r.find_elements('css selector', 'td')[k].text for r in table.find_elements('css selector', 'tbody tr')]


def test_the_page_stands_alone(browser, page):
    browser.get(page.as_uri())
    assert browser.get_log('browser') == []
    asked = [e['message'] for e in browser.get_log('performance') if 'Network.requestWillBeSent"' in e['message']]
    assert all('"url":"file://' in m or '"url":"data:' in m for m in asked), asked
    assert len(browser.find_elements('css selector', 'svg')) == 5
    assert browser.execute_script('return document.documentElement.scrollWidth <= document.documentElement.clientWidth')
    text = browser.find_element('css selector', 'body').text
    for word in ('mean case Dice', '95 % interval', 'HD95', '1 infinite', 'Rules for empty masks',
                 'liverseg evaluate --pred', 'numpy', 'Against other', 'wilcoxon p', 'Best, median and worst'):
        assert word in text, word
    assert '<img src=x onerror=alert(1)>' in text # a name is text


def test_a_click_sorts(browser, page):
    browser.get(page.as_uri())
    assert len(tables(browser)) == 2
    for table, name in zip([*tables(browser), tables(browser)[1]], ('difference', 'dice', 'hd95_mm')):
        heads = table.find_elements('css selector', 'th')
        names = [h.text.split()[0] for h in heads]
        k = names.index(name)
        click = lambda: browser.execute_script('arguments[0].click()', heads[k].find_element('css selector', 'button'))
        value = lambda t: float('inf') if t == '∞' else float(t)
        click(); up = list(map(value, column(table, k)))
        click(); down = list(map(value, column(table, k)))
        assert up == sorted(up) and down == up[::-1] and len(set(up)) > 2
    assert heads[names.index('hd95_mm')].get_attribute('aria-sort') == 'descending'
