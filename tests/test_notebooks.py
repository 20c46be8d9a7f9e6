"""What every committed notebook must be."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from utils import claims, course
from utils.slides import WIDGET

REPO = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


def is_widget(output) -> bool:
    """Whether an output is a widget to press (a progress bar is displayed, and no cell's result)."""
    return output.output_type == "execute_result" and WIDGET in output.get("data", {})


def shows(cell) -> bool:
    """Whether a cell's output is something to see without a kernel."""
    return any({"image/png", "text/html"} & set(output.get("data", {})) for output in cell.get("outputs", []))


def smallest_text(source: str) -> float:
    """Pixels of the smallest text of a cell's figure on a slide, where a picture has 1180 x 600 pixels; 18 if it has none."""
    size = re.search(r"plt\.subplots\(.*?figsize=\(([\d.]+), ([\d.]+)\)", source)
    wide, high = map(float, size.groups()) if size else (11, 4.5)
    points = min(map(int, re.findall(r"fontsize=(\d+)", source)), default=16)
    return points / 72 * min(1180 / wide, 600 / high) if "plt.subplots" in source else 18


def problems(notebook) -> list[str]:
    """What is wrong with a notebook, one line each."""
    found = []
    ids = [cell.id for cell in notebook.cells]
    found += [f"cell id {id!r} stands there twice" for id in set(ids) if ids.count(id) > 1]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not executed from top to bottom: run `make notebooks` and commit")
    if not any("live = claims.live = False" in cell.source for cell in code if cell.id == "setup"):
        found.append(
            "setup: no dial `live = claims.live = False` (True in a lecture: slow cells do a part of their work)"
        )
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.id != "setup" and re.search(r"^\s*(?:\w+, )*live(?:, \w+)* = ", cell.source, re.M):
            found.append(f"{cell.id}: `live` is the setup's dial, and no name for something else")
        if cell.source.count("\n") >= 25:
            found.append(f"{cell.id}: more than 25 lines")
        if (pixels := smallest_text(cell.source)) < 17.5:
            found.append(f"{cell.id}: text of {pixels:.0f} pixels on a slide cannot be read from the last row")
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{cell.id}: an error or a warning stands in its output")
            if len(str(output)) > 300_000:
                found.append(f"{cell.id}: an output above 300 kB")
            if output.output_type == "display_data" and WIDGET in output.data:
                found.append(f"{cell.id}: a progress bar that has ended stands in its output")
            if is_widget(output) and not shows(notebook.cells[place - 1]):
                found.append(f"{cell.id}: a widget without a picture or table in the cell before it")
            if "image/png" in output.get("data", {}) and not cell.metadata.get("alt"):
                found.append(f"{cell.id}: a picture without alt text (cell metadata `alt`)")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    assert problems(nbformat.read(path, as_version=4)) == []


def dangling(text: str) -> list[str]:
    """What a notebook's prose names and this repository does not have: links, files, functions, notebooks."""
    found = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not there(link)]
    found += [
        name
        for name in re.findall(r"`((?:data|utils|tests|notebooks|slides)/[^\s`]+)`", text)
        if not (REPO / name).exists()
    ]
    found += [name for name in re.findall(r"python -m (utils\.\w+)", text) if not importlib.util.find_spec(name)]
    for module, name in re.findall(r"`(?:utils\.)?(\w+)\.(\w+)[^`]*`", text):
        if (REPO / "utils" / f"{module}.py").exists() and not hasattr(importlib.import_module(f"utils.{module}"), name):
            found.append(f"{module}.{name}")
    numbers = {claim["notebook"] for claim in claims.load().values()}
    return found + [
        n for n in re.findall(r"[Nn]otebooks? (\d+)|\((\d\d)(?: to \d\d)?\)", text) if "".join(n) not in numbers
    ]


def there(link: str) -> bool:
    """Whether a link is to the web, or to a file (seen from the notebooks) and, after #, a heading or cell of it."""
    target, _, place = link.partition("#")
    path = REPO / "notebooks" / target
    if link.startswith("https://"):
        return True
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    return not place or f'"id": "{place.removeprefix("cell-id=")}"' in text or f'<a id="{place}">' in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_references_and_spelling(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert dangling(prose) == []
    files = re.findall(r"[\w/]+\.(?:csv|yaml|parquet)\b", "\n".join(cell.source for cell in cells))
    folders = (".", "data/papers", "data/runs", "data")
    assert [name for name in files if not any((REPO / folder / name).exists() for folder in folders)] == []
    spelling = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "-"], input=prose, capture_output=True, text=True, cwd=REPO
    )
    assert spelling.stdout == ""


def test_dangling_references_are_found():
    good = "[a](06_decoding.ipynb#cell-id=beam) [b](https://x.org) `data/claims.yaml` `python -m utils.runs flan` notebook 05 (03 to 05)"
    bad = "[a](99.ipynb) [c](06_decoding.ipynb#cell-id=nowhere) `data/none.csv` `python -m utils.none` `decoding.none` notebook 12"
    assert dangling(good) == [] and len(dangling(bad)) == 6


def test_every_widget_is_pressed_in_the_browser():
    pressed = (REPO / "tests" / "test_browser.py").read_text()
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if any(map(is_widget, cell.get("outputs", []))):
                assert path.stem in pressed and f'"{cell.id}"' in pressed, f"no test presses {cell.id} of {path.stem}"


def test_the_problems_are_found():
    small = "plt.subplots(1, 2, figsize=(13, 4))\naxes.legend(fontsize=13)\n"
    cell = nbformat.v4.new_code_cell(small + "x, live = 1, 2\n" * 26, execution_count=2)
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="warning"),
        nbformat.v4.new_output("execute_result", data={"image/png": "x" * 400_000, WIDGET: {}}),
        nbformat.v4.new_output("display_data", data={WIDGET: {}}),
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell(), cell, nbformat.v4.new_markdown_cell(), cell]
    assert len(problems(notebook)) == 2 + 1 + 2 * 8


def test_the_glossary_is_bilingual_and_used():
    terms = yaml.safe_load((REPO / "data" / "glossary.yaml").read_text(encoding="utf-8"))
    assert (REPO / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8") == course.glossary(), (
        "run `python -m utils.course --pages`"
    )
    assert dangling(course.glossary()) == []
    assert list(terms) == sorted(terms, key=str.lower)
    for english, (korean, meaning, number) in terms.items():
        assert meaning and (re.search("[가-힣]", korean) or korean == english), english
        for path in (path for path in NOTEBOOKS if path.stem.startswith(number)):
            text = "".join(
                cell.source + str(cell.get("outputs", "")) for cell in nbformat.read(path, as_version=4).cells
            )
            words = english.lower().split()[0][:7], english.lower().rpartition("(")[2].rstrip(")")
            assert any(word in text.lower() for word in words), f"{path.stem} does not speak of {english}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_links_to_the_glossary(path):
    assert any("](GLOSSARY.md)" in cell.source for cell in nbformat.read(path, as_version=4).cells)
