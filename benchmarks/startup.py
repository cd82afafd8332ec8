"""How long it takes to start: CPU seconds of fresh processes, one thread each, the median over several rounds.

    python benchmarks/startup.py

Each task runs in a process of its own, in turn, so that other work on the machine affects all of them alike. Beside
the seconds are the heavy libraries that the process had loaded at its end.
"""

import argparse, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

from common import machine

HEAVY = ('torch', 'fastai', 'torchvision', 'timm', 'matplotlib', 'pydicom', 'onnxruntime', 'pandas')
LOAD = 'from liverseg.predict import Segmenter; Segmenter.load({!r}, "cpu")'
REFUSE = ('import sys; sys.argv = ["liverseg", "predict", {!r}, "mask.nii.gz"]\nfrom liverseg.cli import main\n'
          'try: main()\nexcept SystemExit as e: assert e.code == 1')
TELL = ('import json, resource, sys\nused = resource.getrusage(resource.RUSAGE_SELF)\n'
        f'print(json.dumps([used.ru_utime + used.ru_stime, [m for m in {HEAVY} if m in sys.modules]]))')


def tasks(folder):
    "Name to code"
    from liverseg.save import export_onnx
    onnx = str(export_onnx(folder / 'liver.onnx'))
    (folder / 'wrong.nii.gz').write_bytes(b'no scan')
    return {'nothing': '', 'import torch': 'import torch', 'import fastai.vision.all': 'import fastai.vision.all',
            'import liverseg.predict': 'import liverseg.predict', 'a model folder, ready': LOAD.format('liver'),
            'an ONNX file, ready': LOAD.format(onnx),
            'a wrong file, refused': REFUSE.format(str(folder / 'wrong.nii.gz'))}


def once(code, folder):
    "CPU seconds and heavy libraries of one process"
    env = dict(os.environ, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'{code}\n{TELL}'], capture_output=True, text=True,
                          cwd=folder, env=env, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder, found = Path(tmp), {}
        work = tasks(folder)
        for _ in range(args.rounds):
            for name, code in work.items(): found.setdefault(name, []).append(once(code, folder))
    seconds = {name: statistics.median(s for s, _ in runs) for name, runs in found.items()}
    print(machine())
    for name, runs in found.items():
        more = (f"  torch + {seconds[name] - seconds['import torch']:.2f}" if 'torch' in runs[0][1]
                and name != 'import torch' else '')
        print(f'{name:26} {seconds[name]:6.2f} s{more}   {" ".join(runs[0][1])}')


if __name__ == '__main__': main()
