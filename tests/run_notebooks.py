"""Run notebooks in place and keep their outputs, without what progress bars and widgets leave behind: `python
tests/run_notebooks.py NOTEBOOK…`"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def left_by_a_bar(output):
    html = ''.join(output.get('data', {}).get('text/html', 'x'))
    return not html.replace('<div></div>', '').strip() or 'progress' in html and '<table' not in html


def without_widgets(book):
    "A widget lives as long as its kernel: its state (megabytes, for a viewer) goes, the picture in its place stays"
    book.metadata.pop('widgets', None)
    for output in (o for cell in book.cells if cell.cell_type == 'code' for o in cell.outputs):
        if 'image/png' in output.get('data', {}): output['data'].pop('application/vnd.jupyter.widget-view+json', None)


def run(path):
    "Execute one notebook in its own folder; an error in a cell ends the run"
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
