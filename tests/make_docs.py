"""The docs site, from the same project that `nbdev_docs` hands to Quarto, rendered in pure Python:

    python tests/make_docs.py            # in _docs/
    python tests/make_docs.py --serve    # and served at http://localhost:8000
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
EXPECTED = 'output-file is not read', 'format commonmark is not built', 'keep-md is ignored' # Quarto's alone, or done here


def page_names(folder):
    "Notebook to page, as each says in its front matter: Quarto gives `tta.html` to `04_tta.ipynb`"
    found = {}
    for p in sorted(folder.rglob('*.ipynb')):
        front = ''.join(json.loads(p.read_text(encoding='utf-8'))['cells'][0]['source'])
        if name := re.search(r'^output-file: (\S+)\.html$', front, re.M): found[p] = name[1]
    return found


def said_once(book):
    "The code of a function is on the page, with its types and comments: no signature above it, and nothing to unfold"
    for cell in book['cells']:
        cell['source'] = re.sub(r'#\| code-(fold|summary): .*\n', '', ''.join(cell['source']))
        for out in cell.get('outputs', []):
            if 'show_doc(' in cell['source'] and 'text/markdown' in out.get('data', {}):
                out['data']['text/markdown'] = re.sub(r'```python\n.*?\n```\n\n?', '', ''.join(out['data']['text/markdown']), flags=re.S)
    return book


def place(source, folder):
    "Copy a processed project, each notebook under its page's name, links between pages relative, so that the site works anywhere"
    from nbdev.config import get_config
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns('_docs', 'book'))
    shutil.copyfile(ROOT / 'CHANGELOG.md', folder.parent / 'CHANGELOG.md')
    cfg, pages = get_config(), page_names(folder)
    for p in [p for p in folder.rglob('*') if p.suffix in ('.ipynb', '.yml', '.qmd')]:
        text = p.read_text(encoding='utf-8')
        for old, new in pages.items(): text = re.sub(rf'\b{re.escape(old.name)}\b', f'{new}.ipynb', text)
        text = text.replace(f'{cfg.doc_host}{cfg.doc_baseurl}/', '../'*(len(p.relative_to(folder).parts) - 1)) if p.suffix == '.ipynb' else text
        p.write_text(json.dumps(said_once(json.loads(text))) if p.suffix == '.ipynb' else text, encoding='utf-8')
    for old, new in pages.items(): old.rename(old.with_name(f'{new}.ipynb'))


def make(out=ROOT / '_docs'):
    "Build the site; the renderer's warnings are returned, less those that are meant for Quarto"
    from nbdev.serve import proc_nbs
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / 'site'
        place(Path(proc_nbs()), folder)
        no_page = make_web.place(folder)
        done = subprocess.run([str(Path(sys.executable).with_name('smalldocs')), 'render', str(folder), '--quiet'], capture_output=True, text=True)
        if done.returncode: sys.exit(done.stdout + done.stderr)
        for css in folder.rglob('_docs/**/*.css'): # themes fetch their fonts from a server, and look well with the reader's own
            css.write_text(re.sub(r'@import url\(https?:[^)]*\);', '', css.read_text(encoding='utf-8')), encoding='utf-8')
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
        subprocess.run([sys.executable, '-m', 'http.server', '8000', '--bind', '127.0.0.1', '--directory', str(ROOT / '_docs')])
