"""Build the docs site, rendered in pure Python from the project that `nbdev_docs` gives to Quarto:

    python tests/make_docs.py            # builds it in _docs/
    python tests/make_docs.py --serve    # also serves it at http://localhost:8000
"""
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import make_web

ROOT = Path(__file__).resolve().parents[1]
# warnings on settings that are for Quarto alone, or whose work is done here
EXPECTED = 'output-file is not read', 'format commonmark is not built', 'keep-md is ignored'


def page_names(folder):
    "The page name of each notebook, from its front matter: Quarto names the page of `04_tta.ipynb` `tta.html`"
    found = {}
    for p in sorted(folder.rglob('*.ipynb')):
        front = ''.join(json.loads(p.read_text(encoding='utf-8'))['cells'][0]['source'])
        if name := re.search(r'^output-file: (\S+)\.html$', front, re.M): found[p] = name[1]
    return found


def without_repeats(book):
    "Show a function's code once, unfolded, with types and comments: remove the signature that repeats them above it"
    for cell in book['cells']:
        cell['source'] = re.sub(r'#\| code-(fold|summary): .*\n', '', ''.join(cell['source']))
        for out in cell.get('outputs', []):
            if 'show_doc(' in cell['source'] and 'text/markdown' in out.get('data', {}):
                text = ''.join(out['data']['text/markdown'])
                out['data']['text/markdown'] = re.sub(r'```python\n.*?\n```\n\n?', '', text, flags=re.S)
    return book


def place(source, folder):
    "Copy a processed project, each notebook under its page's name, with relative links, so that the site can be moved"
    from nbdev.config import get_config
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns('_docs', 'book'))
    shutil.copyfile(ROOT / 'CHANGELOG.md', folder.parent / 'CHANGELOG.md')
    cfg, pages = get_config(), page_names(folder)
    for p in [p for p in folder.rglob('*') if p.suffix in ('.ipynb', '.yml', '.qmd')]:
        text = p.read_text(encoding='utf-8')
        for old, new in pages.items(): text = re.sub(rf'\b{re.escape(old.name)}\b', f'{new}.ipynb', text)
        if p.suffix == '.ipynb':
            up = '../'*(len(p.relative_to(folder).parts) - 1)
            book = json.loads(text.replace(f'{cfg.doc_host}{cfg.doc_baseurl}/', up))
            text = json.dumps(without_repeats(book))
        p.write_text(text, encoding='utf-8')
    for old, new in pages.items(): old.rename(old.with_name(f'{new}.ipynb'))


def make(out=ROOT / '_docs'):
    "Build the site and return the renderer's warnings, except those that only concern Quarto"
    from nbdev.serve import proc_nbs
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / 'site'
        place(Path(proc_nbs()), folder)
        no_page = make_web.place(folder)
        smalldocs = Path(sys.executable).with_name('smalldocs')
        done = subprocess.run([smalldocs, 'render', folder, '--quiet'], capture_output=True, text=True)
        if done.returncode: sys.exit(done.stdout + done.stderr)
        for css in folder.rglob('_docs/**/*.css'): # themes fetch fonts from a server, and look good without them
            text = re.sub(r'@import url\(https?:[^)]*\);', '', css.read_text(encoding='utf-8'))
            css.write_text(text, encoding='utf-8')
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / '_docs', out)
        if no_page: print(f'the site has no page Try it: {no_page}')
        else: make_web.finish(out)
    return [line for line in (done.stdout + done.stderr).splitlines() if not any(e in line for e in EXPECTED)]


if __name__ == '__main__':
    print(*make(), sep='\n', file=sys.stderr)
    print(f'{sum(1 for _ in (ROOT / "_docs").rglob("*.html"))} pages in _docs/')
    if '--serve' in sys.argv:
        print('http://localhost:8000, until Ctrl-C', flush=True)
        where = ['--bind', '127.0.0.1', '--directory', ROOT / '_docs']
        subprocess.run([sys.executable, '-m', 'http.server', '8000', *where])
