"""Run code that nobody has read: what a model wrote, against tests (Chen et al. 2021, arXiv 2107.03374, section 2.3).

The design choices:
- A process of its own, in an empty temporary folder, without the environment's variables and third-party packages (`python -I -S`).
- The system limits it: processor seconds, memory, file size, number of processes; the parent ends the whole session when time is up.
- Inside, an audit hook (PEP 578) refuses what a function on numbers and texts never needs: sockets, other processes, threads of
  C code, files outside the folder.
- To pass, the tests must have run to the end: a secret word is printed behind them, so that leaving early is not passing.

This stops accidents and simple mischief, in a classroom. A program that attacks the interpreter itself needs a container or
a virtual machine around it.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile

GUARD = r"""
import os, sys, resource
word, seconds, megabytes, program = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.stdin.read()
del sys.argv[1:]
limits = dict(RLIMIT_CPU=seconds, RLIMIT_AS=megabytes * 2**20, RLIMIT_FSIZE=2**20, RLIMIT_NOFILE=32, RLIMIT_CORE=0, RLIMIT_NPROC=64)
for name, limit in limits.items():
    try:
        resource.setrlimit(getattr(resource, name), (limit, limit))
    except (ValueError, OSError):  # macOS knows no limit of memory
        pass
here = os.path.realpath(".") + os.sep
readable = tuple(os.path.realpath(path) + os.sep for path in (sys.base_prefix, sys.prefix, here))
refused = ("socket.", "subprocess.", "ctypes.", "os.", "shutil.", "resource.", "signal.", "pty.", "mmap.", "winreg.", "_thread.",
           "ensurepip.", "webbrowser.", "urllib.", "ftplib.", "smtplib.", "sqlite3.", "fcntl.", "syslog.", "faulthandler.", "gc.")
allowed = ("os.listdir", "os.scandir", "os.walk", "os.fspath")
modules = {"ctypes", "_ctypes", "_posixsubprocess", "multiprocessing", "_multiprocessing", "_socket", "cffi", "_testcapi", "_xxsubinterpreters"}

def guard(event, arguments, inside=str.startswith, real=os.path.realpath, text=os.fsdecode, number=int):
    if event == "open" and not isinstance(arguments[0], number):
        path, mode, flags = arguments
        wants = any(c in (mode or "") for c in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not inside(real(text(path)), here if wants else readable):
            raise PermissionError(f"the file {text(path)!r} is out of reach here")
    elif event == "import" and arguments[0] in modules or (inside(event, refused) and event not in allowed):
        raise PermissionError(f"{event} {arguments[0] if event == 'import' else ''} is refused here".replace("  ", " "))

sys.addaudithook(guard)
exec(compile(program, "program", "exec"), {"__name__": "__main__"})
sys.stdout.write("\n" + word)
"""


def run(program: str, seconds: int = 2, megabytes: int = 512) -> tuple[bool, str]:
    """Run a program to its end: (whether it got there, else why not, in a few words)."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = [sys.executable, "-I", "-S", "-c", GUARD, word, str(seconds), str(megabytes)]
        streams = dict(stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=folder, env={}, start_new_session=True)
        process = subprocess.Popen(command, **streams)
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=2 * seconds + 3)
        except subprocess.TimeoutExpired:
            return False, "time is up"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # whatever it may have left running
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said, error = (_end(stream) for stream in (out, err))
    if process.returncode == 0:
        return (True, "passed") if said.endswith(word) else (False, "left before the tests were through")
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return False, "time is up"
    return False, error.strip().splitlines()[-1][:200] if error.strip() else f"signal {-process.returncode}"


def _end(stream, size: int = 2000) -> str:
    """The last characters of what was written to a file, however long it is."""
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
    return stream.read().decode("utf-8", "replace")


def passes(problem: dict, completion: str, **limits) -> tuple[bool, str]:
    """Whether a completion of a HumanEval problem passes its tests, and why not. problem: prompt, test and entry_point."""
    parts = [problem["prompt"] + completion, problem["test"], f"check({problem['entry_point']})"]
    return run("\n\n".join(parts), **limits)


def until_outside(text: str) -> str:
    """A completion cut where the function ends: before the first line that is not indented."""
    kept = []
    for line in text.split("\n"):
        if line.strip() and not line.startswith((" ", "\t")) and kept:
            break
        kept.append(line)
    return "\n".join(kept)
