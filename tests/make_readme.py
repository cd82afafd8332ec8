"README.md from the processed nbs/index.ipynb: `python tests/make_readme.py` writes it, `readme()` returns it."
import re
import sys
from pathlib import Path

from nbconvert import MarkdownExporter
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]


def readme():
    "The text of README.md: the front matter's title as heading, links and pictures as seen from the top folder"
    cache = proc_nbs(force=True, file_re='index', n_workers=0)
    text, _ = MarkdownExporter().from_filename(str(cache / 'index.ipynb'))
    front, body = re.match(r'\s*---\n(.*?)\n---\n(.*)', text, re.S).groups()
    meta = dict(line.split(': ', 1) for line in front.splitlines() if ': ' in line)
    body = body.replace('](../', '](').replace('src="../', 'src="')
    body = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', body)
    head = '<!-- made from nbs/index.ipynb by `make readme`: edit it there -->\n\n'
    return f"{head}# {meta['title']}\n\n> {meta['description']}\n\n{body.strip()}\n"


if __name__ == '__main__':
    text = readme()
    (ROOT / 'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {len(text.split())} words', file=sys.stderr)
