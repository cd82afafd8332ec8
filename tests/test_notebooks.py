"The notebooks as committed: executed, clean, short cells, no machine paths; the library and README are made from them."
import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from conftest import ROOT

BOOKS = sorted((ROOT / 'nbs').rglob('*.ipynb'))
CHAPTERS = [b for b in BOOKS if re.match(r'\d\d_', b.name)]
TUTORIALS = [b for b in BOOKS if b.parent.name == 'tutorials']


def cells(path, kind=None):
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [dict(c, source=''.join(c['source'])) for c in found if kind in (None, c['cell_type'])]


def test_the_chapters_are_numbered_and_in_the_sidebar():
    path, rooms = [b.name for b in CHAPTERS if b.name[0] == '0'], [b.name for b in CHAPTERS if b.name[0] != '0']
    assert [n[:2] for n in path] == [f'{n:02d}' for n in range(len(path))]
    assert len({n[:2] for n in rooms}) == len(rooms)
    assert {f'0{n[0]}' for n in rooms} <= {'07', '09', *(p[:2] for p in path[1:])} # nobody's room is one of chapter 00
    listed = re.findall(r'(?:- |href: )(\S+\.ipynb)', (ROOT / 'nbs/sidebar.yml').read_text())
    assert listed[0] == 'index.ipynb'
    assert [n for n in listed[1:] if '/' not in n and n != 'api.ipynb'] == [b.name for b in CHAPTERS]
    assert sorted(n for n in listed if '/' in n) == [f'tutorials/{b.name}' for b in TUTORIALS]


@pytest.mark.parametrize('book', CHAPTERS + TUTORIALS, ids=lambda b: b.name)
def test_a_chapter_is_short_executed_and_clean(book):
    for c in cells(book, 'code'):
        assert len(c['source'].splitlines()) <= 25, c['source'][:80]
        for o in c['outputs']:
            text = json.dumps(o)
            assert o['output_type'] != 'error', c['source'][:80]
            assert '<Figure size' not in text or 'image/png' in o['data'], c['source'][:80]
            assert not re.search(r'/(work|root|home|tmp)/[\w.]', text) and o.get('name') != 'stderr', c['source'][:80]
    assert any(c['outputs'] for c in cells(book, 'code'))
    first = next(c['source'] for c in cells(book, 'markdown'))
    assert re.match(r'# .+\n\n> .+', first)


@pytest.mark.parametrize('number', ['00', '01', '02', '03', '04', '21'])
def test_lines_of_code_are_short(number):
    book, = (b for b in CHAPTERS if b.name.startswith(number))
    for c in cells(book, 'code'):
        for line in c['source'].splitlines(): assert len(line) <= 120, line


@pytest.mark.parametrize('book', CHAPTERS + TUTORIALS, ids=lambda b: b.name)
def test_prose_leads_into_the_code(book):
    words = sum(len(c['source'].split()) for c in cells(book, 'markdown'))
    assert words > 150
    prose = ' '.join(c['source'] for c in cells(book, 'markdown'))
    assert all(f'**{word}**' in prose for word in ('Needs', 'Made', 'Next'))


@pytest.mark.parametrize('book', CHAPTERS, ids=lambda b: b.name)
def test_every_chapter_but_the_plain_one_makes_its_module(book):
    first = cells(book)[0]['source']
    if book.name == '00_whole.ipynb':
        assert not any(word in c['source'] for c in cells(book, 'code') for word in ('#| default_exp', '#| export'))
    else: assert first == f'#| default_exp {book.stem[3:]}' and (ROOT / f'liverseg/{book.stem[3:]}.py').is_file()


@pytest.mark.parametrize('book', [b for b in CHAPTERS if b.name[:2] in ('01', '02', '03', '04', '05', '06')],
                         ids=lambda b: b.name)
def test_a_chapter_of_the_path_ends_with_exercises(book):
    last = [c['source'] for c in cells(book, 'markdown') if c['source'].startswith('## Try it')]
    assert len(last) == 1
    assert last[0].count('<details><summary>Answer</summary>') == last[0].count('</details>') == 3


@pytest.mark.parametrize('book', CHAPTERS, ids=lambda b: b.name)
def test_an_export_cell_has_one_public_name(book):
    for c in cells(book, 'code'):
        if not c['source'].startswith('#| export'): continue
        made = [n.name for n in ast.parse(c['source']).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        names = [name for name in made if not name.startswith('_')]
        assert len(names) <= 1, names


def test_a_heading_is_in_one_chapter_only():
    "So that a link's text says where it leads; exercises have one name in all chapters"
    found = Counter(line for book in CHAPTERS for c in cells(book, 'markdown')
                    for line in c['source'].split('\n') if re.match('#+ ', line))
    assert {line for line, n in found.items() if n > 1} <= {'## Try it', '## By name'}


def test_links_between_notebooks_lead_somewhere():
    for book in BOOKS:
        for c in cells(book, 'markdown'):
            for target in re.findall(r'\]\(([^)#]+)\)', c['source']):
                if '://' not in target: assert (book.parent / target).exists(), f'{book.name}: {target}'


def test_the_library_is_what_the_notebooks_export(tmp_path):
    no = shutil.ignore_patterns('.venv', '.git', 'demo', '_proc', '_docs', '*.egg-info', '__pycache__', 'node_modules')
    here = shutil.copytree(ROOT, tmp_path / 'checkout', ignore=no)
    export = 'from nbdev.export import nb_export\nfrom nbdev.doclinks import nbdev_export\nnbdev_export.__wrapped__()'
    subprocess.run([sys.executable, '-c', export], cwd=here, check=True)
    for f in sorted((ROOT / 'liverseg').glob('*.py')):
        same = (here / 'liverseg' / f.name).read_text() == f.read_text()
        assert same, f'{f.name}: edit the notebook and run nbdev_export'


def test_readme_is_made_from_the_index():
    from make_readme import readme
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == readme(), 'run `make readme`'


def test_pictures_of_the_readme_exist():
    for target in re.findall(r'!\[[^\]]+\]\(([^)]+)\)', (ROOT / 'README.md').read_text(encoding='utf-8')):
        assert (ROOT / target).stat().st_size > (1000 if target.endswith('.svg') else 5000)
