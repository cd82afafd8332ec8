"Make README.md from the processed nbs/index.ipynb: `python tests/make_readme.py` writes it, `readme()` returns it."
import re
import sys
import tempfile
from pathlib import Path

import yaml
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb

ROOT = Path(__file__).resolve().parents[1]


def readme():
    "The text of README.md, with the front matter's title as heading, and links and pictures relative to the top folder"
    with tempfile.TemporaryDirectory() as d:
        processed = Path(d) / 'index.ipynb'
        exec_nb(ROOT / 'nbs/index.ipynb', processed, FilterDefaults)
        text, _ = MarkdownExporter().from_filename(str(processed))
    front, body = re.match(r'\s*---\n(.*?)\n---\n(.*)', text, re.S).groups()
    meta = yaml.safe_load(front)
    body = re.sub(r'<!-- WARNING: .*? -->\n*', '', body)
    body = body.replace('](../', '](').replace('src="../', 'src="')
    body = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', body)
    head = '<!-- made from nbs/index.ipynb by `make readme`: edit it there -->\n\n'
    return f"{head}# {meta['title']}\n\n> {meta['description']}\n\n{body.strip()}\n"


if __name__ == '__main__':
    text = readme()
    (ROOT / 'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {len(text.split())} words', file=sys.stderr)
