"""Run every notebook in order and print the claims: `python -m utils.course` (`make course`).

One line a notebook: name, seconds, peak memory. Executed copies go to results/notebooks/, each with a page to read, and
results/claims.html shows every claim. With `--in-place` they replace the notebooks, and their time and memory go to
data/times and README.md, for a commit; numbers ("06") run these notebooks only. `--fetch` only
downloads; `--pages` renews README.md's table and GLOSSARY.md; `--address OWNER/NAME` says where the course lives. The exit
status is 1 if a cell fails.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from datetime import datetime
from pathlib import Path

import nbformat
import yaml

from utils import claims, progress
from utils.slides import WIDGET

REPO = Path(__file__).parents[1]


def run(notebook: Path, into: Path) -> tuple[float, float, str]:
    """Execute a notebook into a folder: (seconds, peak memory in GB or NaN where the system does not say, error or "").

    In place, for a commit, seconds, memory and the seconds of its slow cells go to data/times.
    """
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
    options = ["--ExecutePreprocessor.record_timing=True", "--ExecutePreprocessor.store_widget_state=False"]
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
    seconds = time.perf_counter() - start
    if not error:
        cells = _tidy(into / notebook.name)
        if into == REPO / "notebooks":
            times = {"seconds": round(seconds), "memory": round(memory, 1), "cells": cells}
            progress.TIMES.mkdir(exist_ok=True)
            (progress.TIMES / f"{notebook.stem}.json").write_text(json.dumps(times, indent=1) + "\n")
    return seconds, memory, error


def _tidy(path: Path) -> dict[str, float]:
    """Take progress bars and times out of an executed notebook: cell id -> seconds, for the slow ones, slowest first."""
    notebook, seconds = nbformat.read(path, as_version=4), {}
    for cell in notebook.cells:
        times = cell.metadata.pop("execution", {})
        if {"iopub.execute_input", "shell.execute_reply"} <= set(times):
            start, end = (datetime.fromisoformat(times[k]) for k in ("iopub.execute_input", "shell.execute_reply"))
            seconds[cell.id] = round((end - start).total_seconds(), 1)
        if cell.cell_type == "code":  # a widget that a cell returns stays, one that it displays was a bar
            cell.outputs = [o for o in cell.outputs if o.output_type != "display_data" or WIDGET not in o.data]
    nbformat.write(notebook, path)
    return {id: s for id, s in sorted(seconds.items(), key=lambda item: -item[1]) if s > progress.SLOW}


def fetch() -> None:
    """Download, once, what the notebooks and the tests read: after it no network is needed."""
    from utils import benchmarks, models, slides

    slides.library()
    models.load("smollm2")
    models.minilm()
    for name in ("squad", "kolaw", "alpaca_eval", "humaneval"):
        benchmarks.load(name)


def readme(text: str) -> str:
    """README.md with link, number of claims, minutes and memory in every row of its table of notebooks."""

    def row(found: re.Match) -> str:
        number, topic = found[1], found[2].strip()
        path = next((REPO / "notebooks").glob(f"{number}_*.ipynb"), None)
        name = f"[{number}](notebooks/{path.name})" if path else number
        count = sum(claim["notebook"] == number for claim in claims.load().values())
        times = progress.TIMES / f"{path.stem}.json" if path else progress.TIMES
        took = json.loads(times.read_text()) if times.is_file() else None
        cost = f"{took['seconds'] / 60:.1f} | {took['memory']:.1f}" if took else "not yet measured |"
        return f"| {name} | {topic} | {count} | {cost} |"

    head, start, rest = text.partition(claims.START)
    return re.sub(r"^\| \[?(\d\d)\b[^|]*\|([^|]*)\|.*$", row, head, flags=re.M) + start + rest


def glossary() -> str:
    """GLOSSARY.md, from data/glossary.yaml."""
    lines = ["# Glossary (용어집)", "", "Made of `data/glossary.yaml` by `python -m utils.course --pages`.", ""]
    lines += ["| English | 한국어 | What it is | Notebook |", "|---|---|---|---|"]
    terms = yaml.safe_load((REPO / "data" / "glossary.yaml").read_text(encoding="utf-8"))
    for english, (korean, meaning, number) in terms.items():
        path = next((REPO / "notebooks").glob(f"{number}_*.ipynb"), None)
        link = f"[{number}]({path.name})" if path else number
        lines.append(f"| {english} | {korean} | {meaning} | {link} |")
    return "\n".join(lines) + "\n"


def pages() -> None:
    """Renew what is made of other files: README.md's table of notebooks, and GLOSSARY.md."""
    claims.README.write_text(readme(claims.README.read_text(encoding="utf-8")), encoding="utf-8")
    (REPO / "notebooks" / "GLOSSARY.md").write_text(glossary(), encoding="utf-8")


def address(new: str) -> None:
    """Give the course its place on GitHub ("owner/name"), in every file that names it; pyproject.toml holds it."""
    old = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["urls"]["Repository"].split(".com/")[1]
    for name in ("pyproject.toml", "README.md", "JUPYTERHUB.md", "colab.ipynb"):
        text = (REPO / name).read_text(encoding="utf-8")
        (REPO / name).write_text(text.replace(old, new), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run the course; 1 if a notebook failed, else 0."""
    start, in_place = time.perf_counter(), "--in-place" in arguments
    # in a process of its own: a notebook's peak memory cannot be measured below that of the process that starts it
    fetched = subprocess.run([sys.executable, "-m", "utils.course", "--fetch"])
    if fetched.returncode:
        return 1
    print(f"{'models and data':30} {time.perf_counter() - start:6.0f} s", flush=True)
    failed = []
    into = REPO / "notebooks" if in_place else claims.RESULTS / "notebooks"
    chosen = [a for a in arguments if a.isdigit()]
    for notebook in sorted((REPO / "notebooks").glob("*.ipynb")):
        if chosen and notebook.stem[:2] not in chosen:
            continue
        print(f"{notebook.stem:30} ", end="", flush=True)
        seconds, memory, error = run(notebook, into)
        print(f"{seconds:6.0f} s  {memory:4.1f} GB  {'FAILED' if error else 'done'}", flush=True)
        if error:
            failed.append(notebook.stem)
            print(error)
    print(f"\n{claims.plain_table(claims.local_results())}")
    if in_place:
        pages()
    else:
        subprocess.run([sys.executable, "-m", "utils.slides", "--read", str(into)], check=True)
        page = claims.RESULTS / "claims.html"
        page.write_text(claims.page(claims.local_results(), into), encoding="utf-8")
        print(f"\nEvery claim with its figure: {page}")
    if failed:
        print(f"\nA cell failed in {', '.join(failed)}: its error stands above.")
    return bool(failed)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--fetch"]:
            fetch()
        case ["--pages"]:
            pages()
        case ["--address", new]:
            address(new)
        case arguments:
            sys.exit(main(arguments))
