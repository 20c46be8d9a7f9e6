"""Code that nobody has read: what is right passes, and what is hostile is stopped without harm."""

import os
import time

import pytest

from utils import benchmarks, sandbox


@pytest.mark.parametrize("row", range(0, 164, 41))
def test_the_reference_passes_and_a_broken_one_does_not(row):
    problem = benchmarks.load("humaneval")[row]
    assert sandbox.passes(problem, problem["canonical_solution"]) == (True, "passed")
    passed, why = sandbox.passes(problem, "    return None\n")
    assert not passed and "Error" in why


HOSTILE = {
    "while True: pass": "time is up",
    "import time\ntime.sleep(60)": "time is up",
    "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass": "time is up",
    "x = [0] * 10**10": "MemoryError",
    "x = [1]\nwhile True: x += x": "MemoryError",
    "import os\nwhile True: os.fork()": "os.fork is refused",
    "import posix\nposix.fork()": "os.fork is refused",
    "import os\nos.system('echo hello')": "os.system is refused",
    "import subprocess\nsubprocess.run(['echo'])": "refused",
    "import multiprocessing": "refused",
    "import _posixsubprocess": "refused",
    "import ctypes": "refused",
    "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)": "refused",
    "import urllib.request\nurllib.request.urlopen('http://192.0.2.1')": "refused",
    "open(HOME + '/planted', 'w')": "out of reach",
    "open('../planted', 'w')": "out of reach",
    "open('/etc/passwd').read()": "out of reach",
    "import os\nos.remove(HOME + '/kept')": "os.remove is refused",
    "import os\nos.kill(os.getppid(), 9)": "os.kill is refused",
    "import os\nos.symlink(HOME, 'link')\nopen('link/planted', 'w')": "os.symlink is refused",
    "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))": "refused",
    "open('big', 'w').write('x' * 10**7)": "File too large",
    "while True: print('x' * 10**6)": "File too large",
    "raise SystemExit(0)": "left before",
    "import os\nos._exit(0)": "left before",
    "import sys\nprint(sys.argv)\nraise ValueError('no secret here' if len(sys.argv) == 1 else 'told')": "no secret here",
    "def f(): f()\nf()": "RecursionError",
    "x = (": "SyntaxError",
}


@pytest.mark.parametrize("program", HOSTILE, ids=lambda text: text.replace("\n", "; ")[:50])
def test_hostile_code_is_stopped(program, tmp_path):
    (tmp_path / "kept").write_text("kept")
    start, here = time.perf_counter(), os.getpid()
    passed, why = sandbox.run(f"HOME = {str(tmp_path)!r}\n{program}", seconds=1, megabytes=256)
    assert not passed and HOSTILE[program] in why
    assert time.perf_counter() - start < 8 and os.getpid() == here
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_it_sees_no_secret_of_the_environment_and_may_use_a_file_of_its_own(monkeypatch):
    monkeypatch.setenv("A_SECRET", "told")
    program = "import os, math, re, json, collections\nassert 'A_SECRET' not in os.environ\n"
    program += (
        "with open('notes', 'w') as f: f.write('x')\nassert open('notes').read() == 'x' and not os.listdir('.')[1:]"
    )
    assert sandbox.run(program) == (True, "passed")


def test_threads_do_not_outlive_it():
    start = time.perf_counter()
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    passed, why = sandbox.run(program, seconds=1)
    assert (not passed) and time.perf_counter() - start < 8


def test_a_completion_ends_with_its_function():
    assert sandbox.until_outside("    x = 1\n\n    return x\n\nprint(5)\n    z") == "    x = 1\n\n    return x\n"
    assert sandbox.until_outside(" x\n# note") == " x"
