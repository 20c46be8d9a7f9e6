"""Run every notebook in order and print the claims: `python -m utils.course` (`make course`).

One line a notebook: name, seconds, peak memory. Executed copies go to results/notebooks/; with `--in-place` they replace
the notebooks, for a commit; `--fetch` only downloads. The exit status is 1 if a cell fails.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from utils import claims

REPO = Path(__file__).parents[1]


def run(notebook: Path, into: Path) -> tuple[float, float, str]:
    """Execute a notebook into a folder: (seconds, peak memory in GB or NaN where the system does not say, error or "")."""
    command = [
        sys.executable,
        "-m",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        str(notebook),
        "--output-dir",
        str(into),
    ]
    options = ["--ExecutePreprocessor.record_timing=False", "--ExecutePreprocessor.store_widget_state=False"]
    options += ["--Exporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    output = process.stderr.read()
    memory = float("nan")
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        memory = usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    error = re.sub(r"\x1b\[[0-9;]*m", "", output)[-3000:] if process.wait() else ""
    return time.perf_counter() - start, memory, error


def fetch() -> None:
    """Download, once, what the notebooks and the tests read: after it no network is needed."""
    from utils import benchmarks, models

    models.load("smollm2")
    models.minilm()
    for name in ("squad", "kolaw", "alpaca_eval", "humaneval"):
        benchmarks.load(name)


def main(in_place: bool = False) -> int:
    """Run the course; 1 if a notebook failed, else 0."""
    start = time.perf_counter()
    # in a process of its own: a notebook's peak memory cannot be measured below that of the process that starts it
    fetched = subprocess.run([sys.executable, "-m", "utils.course", "--fetch"])
    if fetched.returncode:
        return 1
    print(f"{'models and data':30} {time.perf_counter() - start:6.0f} s", flush=True)
    failed = []
    for notebook in sorted((REPO / "notebooks").glob("*.ipynb")):
        print(f"{notebook.stem:30} ", end="", flush=True)
        seconds, memory, error = run(notebook, notebook.parent if in_place else claims.RESULTS / "notebooks")
        print(f"{seconds:6.0f} s  {memory:4.1f} GB  {'FAILED' if error else 'done'}", flush=True)
        if error:
            failed.append(notebook.stem)
            print(error)
    print(f"\n{claims.plain_table(claims.local_results())}")
    if failed:
        print(f"\nA cell failed in {', '.join(failed)}: its error stands above.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(fetch() if "--fetch" in sys.argv[1:] else main("--in-place" in sys.argv[1:]))
