"""The page *Try it*, which segments a CT in the browser: built for the docs site from web/, npm and `liverseg export`.

    python tests/make_web.py FOLDER      # the page's modules alone, to read or to test in Node
"""
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB, NAME = ROOT / 'web', 'try'
MOST = 12_000_000 # bytes of the network
VENDOR = {
    'ort.js': 'onnxruntime-web/dist/ort.wasm.min.mjs',
    'ort-threads.js': 'onnxruntime-web/dist/ort-wasm-simd-threaded.mjs',
    'ort.wasm': 'onnxruntime-web/dist/ort-wasm-simd-threaded.wasm', 'pako.js': 'pako/dist/pako.esm.mjs',
    'dcm2niix.js': '@niivue/dcm2niix/dist/dcm2niix.jpeg.js',
    'dcm2niix.wasm': '@niivue/dcm2niix/dist/dcm2niix.jpeg.wasm'}


def missing():
    "Why the page cannot be built here, or ''"
    if not (shutil.which('npm') and shutil.which('node')): return 'npm is not installed'
    if not find_spec('onnx'): return 'the package onnx is not installed'
    return ''


def fetch():
    "Install the pinned packages in web/node_modules, checked against package-lock.json; what went wrong, or ''"
    lock, mark = (WEB / 'package-lock.json').read_bytes(), WEB / 'node_modules/.liverseg'
    if mark.is_file() and mark.read_bytes() == lock: return ''
    command = ['npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund', '--fetch-retries=1']
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True)
    if done.returncode: return 'npm cannot fetch its packages (' + (done.stderr.strip().splitlines() or ['?'])[0] + ')'
    mark.write_bytes(lock)
    return ''


def licences():
    "The licences of what comes from npm, as text"
    told = json.loads((WEB / 'package-lock.json').read_text())['packages']
    names = [n for n in sorted(told) if n and any(n.endswith(v.rsplit('/dist', 1)[0]) for v in VENDOR.values())]
    parts = []
    for name in names:
        folder = WEB / name
        own = WEB / 'licences' / f'{Path(name).name}.txt' # for a package without one
        files = [*sorted(folder.glob('LICEN[CS]E*')), own]
        text = next((p.read_text() for p in files if p.is_file()), 'The package has no licence text.\n')
        parts.append(f"{name.removeprefix('node_modules/')} {told[name]['version']}, "
                     f"{told[name].get('license', '?')}\n\n{text}")
    return ('\n' + '-'*70 + '\n\n').join([(WEB / 'licences.txt').read_text(), *parts])


def network(folder):
    "Export the network that ships: its description and the SHA-256 of the file"
    from liverseg.models import read_meta
    from liverseg.liver import model_path
    from liverseg.save import export_onnx
    with tempfile.TemporaryDirectory() as tmp: raw = export_onnx(Path(tmp) / 'liver.onnx').read_bytes()
    if len(raw) > MOST: sys.exit(f'the network has {len(raw)} bytes, but the limit of the page is {MOST}')
    (folder / 'liver.onnx').write_bytes(raw)
    meta = read_meta(model_path('liver'))
    keep = ('arch', 'archs', 'size', 'window', 'bits', 'mean', 'std', 'flip', 'temperature', 'expected', 'licence',
            'sha256')
    told = {k: meta[k] for k in keep if k in meta}
    (folder / 'model.json').write_text(json.dumps(dict(told, onnx_sha256=hashlib.sha256(raw).hexdigest(),
                                                       onnx_bytes=len(raw)), indent=1))


def example(folder):
    "One synthetic scan, to try the page without a file"
    import nibabel as nib
    from liverseg.phantom import make_subject
    who = make_subject(7, (128, 128, 24))
    nib.Nifti1Image(who.hu, who.affine).to_filename(folder / 'example.nii.gz')


def stage(folder, with_network=True):
    "Copy the page's modules, npm packages, network and example into `folder`; why that failed, or ''"
    if why := missing() or fetch(): return why
    folder = Path(folder)
    shutil.copytree(WEB / 'src', folder, dirs_exist_ok=True)
    (folder / 'vendor').mkdir(exist_ok=True)
    for name, source in VENDOR.items(): shutil.copyfile(WEB / 'node_modules' / source, folder / 'vendor' / name)
    (folder / 'licences.txt').write_text(licences())
    if with_network: network(folder); example(folder)
    return ''


def place(project):
    "Add the page and links to it to a project before it is rendered; why that failed, or ''"
    if why := missing() or fetch(): return why
    project = Path(project)
    shutil.copyfile(WEB / 'try.qmd', project / f'{NAME}.qmd')
    (project / NAME).mkdir(exist_ok=True)
    (project / NAME / 'licences.txt').write_text(licences(), encoding='utf-8')
    for name, before, line in (('sidebar.yml', '    - index.ipynb\n', f'    - {NAME}.qmd\n'),
                               ('_quarto.yml', '    left:\n', f'    - text: Try it\n      href: {NAME}.qmd\n')):
        text = (project / name).read_text(encoding='utf-8')
        if before not in text: sys.exit(f'{name}: has no place for a link to the page Try it')
        (project / name).write_text(text.replace(before, before + line, 1), encoding='utf-8')
    home = project / 'index.ipynb'
    book = json.loads(home.read_text(encoding='utf-8'))
    link = f'**[Try it]({NAME}.qmd)**: drop a CT and see its liver in your browser; nothing leaves your computer.'
    book['cells'].insert(1, dict(cell_type='markdown', id='try', metadata={}, source=link))
    home.write_text(json.dumps(book), encoding='utf-8')
    return ''


def finish(out):
    "Put what the page needs into a rendered site, and a service worker that lists all of it"
    out = Path(out)
    stage(out / NAME)
    page = (out / f'{NAME}.html').read_text(encoding='utf-8')
    link = r'(?:src|href)="([^":]+\.(?:css|js|mjs|json|svg|png|ico|woff2?)(?:\?[^"]*)?)"'
    linked = {u.split('?')[0].split('#')[0] for u in re.findall(link, page)}
    fonts = [p.relative_to(out).as_posix() for p in (out / 'site_libs').rglob('*') if p.suffix in ('.woff', '.woff2')]
    ours = [p.relative_to(out).as_posix() for p in (out / NAME).rglob('*') if p.is_file()]
    files = sorted({f'{NAME}.html', *ours, *fonts, *(u.removeprefix('./') for u in linked)})
    files = [f for f in files if (out / f).is_file()]
    mark = hashlib.sha256(b''.join(f.encode() + (out / f).read_bytes() for f in files)).hexdigest()[:16]
    worker = (WEB / 'sw.js').read_text(encoding='utf-8').replace('@VERSION@', mark)
    worker = worker.replace('/*FILES*/[]', json.dumps(files))
    (out / f'{NAME}-sw.js').write_text(worker, encoding='utf-8')


def alone(out):
    "Build the page as a site of its own with the same theme, for tests; why that failed, or ''"
    with tempfile.TemporaryDirectory() as tmp:
        project = Path(tmp) / 'site'
        project.mkdir()
        for name in ('_quarto.yml', 'styles.css', 'favicon.svg', 'nbdev.yml'):
            shutil.copyfile(ROOT / 'nbs' / name, project / name)
        (project / 'sidebar.yml').write_text('website:\n  sidebar:\n    contents:\n    - index.ipynb\n')
        book = dict(nbformat=4, nbformat_minor=5, metadata={},
                    cells=[dict(cell_type='markdown', id='home', metadata={}, source='# liverseg')])
        for name in ('index', 'predict'): (project / f'{name}.ipynb').write_text(json.dumps(book))
        if why := place(project): return why
        subprocess.run([str(Path(sys.executable).with_name('smalldocs')), 'render', str(project), '--quiet'],
                       capture_output=True, check=True)
        shutil.copytree(project / '_docs', out)
    for css in Path(out).rglob('*.css'):
        css.write_text(re.sub(r'@import url\(https?:[^)]*\);', '', css.read_text(encoding='utf-8')), encoding='utf-8')
    finish(out)
    return ''


if __name__ == '__main__':
    if why := stage(sys.argv[1]): sys.exit(f'the page Try it cannot be built: {why}')
