"""Run notebooks in place and keep their outputs, less those of bars and widgets: `python tests/run_notebooks.py
NOTEBOOK…`"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def left_by_a_bar(output):
    html = ''.join(output.get('data', {}).get('text/html', 'x'))
    return not html.replace('<div></div>', '').strip() or 'progress' in html and '<table' not in html


def without_widgets(book):
    "Remove the state of widgets (megabytes for a viewer), useless without a kernel; keep the pictures in their place"
    book.metadata.pop('widgets', None)
    for output in (o for cell in book.cells if cell.cell_type == 'code' for o in cell.outputs):
        if 'image/png' in output.get('data', {}): output['data'].pop('application/vnd.jupyter.widget-view+json', None)


def run(path):
    "Execute one notebook in its own folder; an error in a cell stops the run"
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=1200, kernel_name='python3',
                   resources={'metadata': {'path': str(path.parent)}}).execute()
    for cell in book.cells:
        if cell.cell_type == 'code':
            cell.outputs = [o for o in cell.outputs if not left_by_a_bar(o)]
    without_widgets(book)
    nbformat.write(book, path)


if __name__ == '__main__':
    for name in sys.argv[1:]:
        run(Path(name))
        print(name)
