"""The bars of slow cells, and the times that they are made of."""

import json

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from utils import course, progress


def test_a_slow_cell_shows_a_bar_while_it_runs_and_only_it(tmp_path, monkeypatch):
    (tmp_path / "06_decoding.json").write_text(json.dumps({"cells": {"slow": 12.3}}))
    monkeypatch.setattr(progress, "TIMES", tmp_path)
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere/06_decoding.ipynb")
    shell = InteractiveShell()
    monkeypatch.setattr(progress, "get_ipython", lambda: shell)
    updated = []
    monkeypatch.setattr(progress, "display", lambda html, display_id: updated.append(html.data) or Handle(updated))
    for _ in range(2):  # the setup cell may run twice
        progress.watch()
    with capture_output():
        for id in ("quick", None, "slow"):
            shell.run_cell("1 + 1", cell_id=id)
        shell.run_cell("1 / 0", cell_id="slow")
    assert [bool(html) for html in updated] == [True, False] * 2 and "about 12 s" in updated[0]


class Handle:
    def __init__(self, updated):
        self.update = lambda html: updated.append(html.data)


def test_times_are_taken_out_of_the_notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell("pass", id=id) for id in ("quick", "slow", "slower", "never")]
    for cell, end in zip(cells, ("00:00:01", "00:00:09.25", "00:01:00"), strict=False):
        cell.metadata["execution"] = {
            "iopub.execute_input": "2026-01-01T00:00:00.000000Z",
            "shell.execute_reply": f"2026-01-01T{end}Z",
        }
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert list(course._tidy(tmp_path / "a.ipynb").items()) == [("slower", 60.0), ("slow", 9.2)]
    assert all(cell.metadata == {} for cell in nbformat.read(tmp_path / "a.ipynb", 4).cells)
