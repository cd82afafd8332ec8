"Imports go down only: of the rooms about scans on disk, each imports rooms before it, at the top of the module."
import ast

import pytest

from conftest import ROOT

ROOMS = ['work', 'volume', 'nifti', 'archive', 'dicom', 'cases', 'layouts', 'download']


def imports(room, anywhere):
    "The rooms of the package that a module imports: at its top, or anywhere in it"
    tree = ast.parse((ROOT / f'liverseg/{room}.py').read_text(encoding='utf-8'))
    for n in ast.walk(tree) if anywhere else tree.body:
        if isinstance(n, ast.ImportFrom) and n.level: yield from [n.module] if n.module else [a.name for a in n.names]


@pytest.mark.parametrize('room', ROOMS)
def test_imports_go_down(room):
    assert set(imports(room, True)) <= {*ROOMS[:ROOMS.index(room)], '__version__'}


@pytest.mark.parametrize('room', ROOMS)
def test_no_room_is_imported_inside_a_function(room):
    assert sorted(imports(room, True)) == sorted(imports(room, False))
