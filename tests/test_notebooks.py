"""What every committed notebook must be."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def problems(notebook) -> list[str]:
    """What is wrong with a notebook, one line each."""
    found = []
    ids = [cell.id for cell in notebook.cells]
    found += [f"cell id {id!r} stands there twice" for id in set(ids) if ids.count(id) > 1]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not executed from top to bottom: run `make notebooks` and commit")
    for cell in code:
        if cell.source.count("\n") >= 25:
            found.append(f"{cell.id}: more than 25 lines")
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{cell.id}: an error or a warning stands in its output")
            if len(str(output)) > 300_000:
                found.append(f"{cell.id}: an output above 300 kB")
            if "image/png" in output.get("data", {}) and not cell.metadata.get("alt"):
                found.append(f"{cell.id}: a picture without alt text (cell metadata `alt`)")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    assert problems(nbformat.read(path, as_version=4)) == []


def test_the_problems_are_found():
    cell = nbformat.v4.new_code_cell("x = 1\n" * 26, execution_count=2)
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="warning"),
        nbformat.v4.new_output("display_data", data={"image/png": "x" * 400_000}),
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [cell, cell]
    assert len(problems(notebook)) == 1 + 1 + 2 * 4
