"The docs site in _docs/, from the same project that `nbdev_docs` hands to Quarto, rendered in pure Python: `python tests/make_docs.py`."
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make(out=ROOT / '_docs'):
    "Process the notebooks as nbdev does, render them, and put the site in its place; what the renderer said is returned"
    from nbdev.serve import proc_nbs
    cache = Path(proc_nbs())
    done = subprocess.run([str(Path(sys.executable).with_name('smalldocs')), 'render', str(cache), '--quiet'], capture_output=True, text=True)
    if done.returncode: sys.exit(done.stdout + done.stderr)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(cache / '_docs', out)
    return done.stdout + done.stderr


if __name__ == '__main__':
    print(make(), end='', file=sys.stderr)
    print(f'{sum(1 for _ in (ROOT / "_docs").rglob("*.html"))} pages in _docs/')
