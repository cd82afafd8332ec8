"""Damaged and dishonest files by the thousand: each gets a right answer or one sentence, in little time and memory.

A case is drawn from its kind, seed and number alone, and runs in a process of its own. Run one again, or many:

    python tests/fuzz/fuzz.py nifti --seed 1 --case 17
    python tests/fuzz/fuzz.py all --seed 1 --cases 1000
"""
import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # a forked process has no threads to ask
os.environ.setdefault('ARROW_DEFAULT_MEMORY_POOL', 'system') # Arrow's own asks for more address space than it uses
import numpy as np
import torch
from kinds import KINDS

from liverseg.work import BadInput

SECONDS, MEMORY = 20, 2**30 # what a case may take: CPU seconds, and bytes beside what is mapped already
torch.set_num_threads(1)


def content(folder):
    "What lies below a folder, links not followed, without what was remembered of slices"
    return {str(p): p.read_bytes() if p.is_file() else b'' for p in sorted(folder.rglob('*'))
            if not p.is_symlink() and p.name != '.checked.json'}


def judge(make, base, rng, case, box, doing):
    "'right' or 'sentence'; anything else is a failure, and says what"
    (box / 'in').mkdir(), (box / 'tmp').mkdir()
    func = make(rng, base, box / 'in', case) # what a command does with the input; fails if the answer is wrong
    doing.append(getattr(func, 'fault', 'bytes at random'))
    before, said = content(box / 'in'), 'right'
    try: func(box / 'out')
    except BadInput as e:
        said = 'sentence'
        print(e, flush=True)
        for line in str(e).splitlines():
            if '/' not in line or not all(c.isprintable() or c == '\u3000' for c in line) or len(line) > 1100:
                return f'a sentence that names no file, or is none: {line[:2000]!r}'
    if content(box / 'in') != before: return 'the input was changed'
    # ONNX Runtime leaves an empty .ses
    if left := [p.relative_to(box) for p in box.rglob('*') if p.parent == box and p.name not in ('in', 'out', 'tmp')
                or p.parent == box/'tmp' and p.name != '.ses' or '.part' in p.name
                or p.name.endswith(('.lock', '.old', '.half'))]:
        return f'left behind: {left[0]}'
    if said == 'sentence' and (box / 'out').exists() and not getattr(func, 'may_leave', False):
        return 'a sentence, and yet something was written'
    must = getattr(func, 'must', None)
    return said if must in (None, said) else f'a {said}, where only a {must} is right'


def child(make, base, rng, case, box, pipe):
    "Run a case under limits and send what came of it"
    quiet = os.open(box.with_suffix('.log'), os.O_WRONLY | os.O_CREAT)
    os.dup2(quiet, 1), os.dup2(quiet, 2), os.chdir(box)
    sys.stdout = sys.stderr = open(quiet, 'w', errors='backslashreplace') # pytest's own would be shared
    mapped = (int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
              if Path('/proc/self/statm').exists() else 2**36)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ['TMPDIR'] = tempfile.tempdir = str(box / 'tmp')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            said = judge(make, base, rng, case, box, doing := [])
    except BaseException: said = traceback.format_exc()[-3500:]
    if said not in ('right', 'sentence'): said = f'{doing[0] if doing else "while it was made"}: {said}'
    os.write(pipe, said.encode(errors='backslashreplace')[:4000])
    os._exit(0)


def run_case(kind, seed, case, base, show=False):
    "'right', 'sentence', or what went wrong"
    top = Path(tempfile.mkdtemp(prefix='fuzz'))
    box, (end, pipe) = top / 'box', os.pipe()
    box.mkdir()
    if not (pid := os.fork()):
        child(KINDS[kind][1], base, np.random.default_rng([sum(kind.encode()), seed, case]), case, box, pipe)
    os.close(pipe)
    if not select.select([end], [], [], 3*SECONDS)[0]: os.kill(pid, signal.SIGKILL)
    said = os.read(end, 4096).decode()
    os.close(end)
    _, status = os.waitpid(pid, 0)
    if not said: said = f'ended by signal {os.WTERMSIG(status)}' if os.WIFSIGNALED(status) else f'exit status {status}'
    if show: print((top / 'box.log').read_text(errors='replace'))
    elsewhere = [p.name for p in top.iterdir() if p.name not in ('box', 'box.log')]
    shutil.rmtree(top, ignore_errors=True)
    return f'written outside: {elsewhere[0]}' if elsewhere else said


def run_cases(kind, seed, cases, show=False, say=lambda line: None):
    "How often each answer came, and what failed, with the command that runs it again"
    answers, failed = Counter(), []
    with tempfile.TemporaryDirectory(prefix='fuzz') as folder:
        base = KINDS[kind][0](Path(folder))
        for case in cases:
            said = run_case(kind, seed, case, base, show)
            answers[said if said in ('right', 'sentence') else 'failed'] += 1
            if said not in ('right', 'sentence'):
                failed.append(f'python tests/fuzz/fuzz.py {kind} --seed {seed} --case {case}\n{said}'); say(failed[-1])
    return answers, failed


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('kind', choices=['all', *KINDS])
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--case', type=int)
    p.add_argument('--cases', type=int, default=100)
    args, bad = p.parse_args(), 0
    for kind in KINDS if args.kind == 'all' else [args.kind]:
        answers, failed = run_cases(kind, args.seed, range(args.cases) if args.case is None else [args.case],
                                    args.case is not None, partial(print, flush=True))
        print(kind, json.dumps(answers), flush=True)
        bad += len(failed)
    sys.exit(bad > 0)
