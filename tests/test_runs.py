"""The stored runs are what their code makes, the course reports a cell that fails, and tests have no network."""

import socket
import subprocess
import sys

import nbformat
import pytest
from datasets import load_dataset

from utils import course, evaluation, runs


def test_a_stored_slice_is_made_again(smollm2):
    model, tokenizer = smollm2
    stored = load_dataset("parquet", data_files=str(runs.RUNS / "decoders.parquet"), split="train").to_pandas()
    human = runs.paragraphs(tokenizer)
    written = stored[stored.decoder == "human"]
    assert human[:, runs.PROMPT :].tolist() == [list(tokens) for tokens in written.tokens]
    scores = evaluation.token_logprobs(model, human[:2])[:, runs.PROMPT - 1 :].sum(1)
    assert scores.tolist() == pytest.approx(written.log_probability[:2].tolist(), abs=0.05)
    now = runs.continue_texts(model, "greedy", human[:2, : runs.PROMPT], 15)[:, runs.PROMPT :]
    assert now.tolist() == [list(tokens[:15]) for tokens in stored[stored.decoder == "greedy"].tokens[:2]]
    number = {"human": 48, "greedy": 48, "beam search (4)": 48}
    assert dict(stored.decoder.value_counts()) == {name: number.get(name, 144) for name in ["human", *runs.DECODERS]}


def test_a_failing_cell_is_reported(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    seconds, memory, error = course.run(tmp_path / "bad.ipynb", tmp_path / "out")
    assert "ZeroDivisionError" in error and seconds > 0 and not (tmp_path / "out" / "bad.ipynb").exists()


def test_a_notebook_that_works_is_timed_and_written(tmp_path):
    code = "bytearray(300_000_000)[-1]\nprint(1, flush=True)\nprint(2)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "good.ipynb")
    seconds, memory, error = course.run(tmp_path / "good.ipynb", tmp_path / "out")
    (cell,) = nbformat.read(tmp_path / "out" / "good.ipynb", as_version=4).cells
    assert not error and memory > 0.3 and [output.text for output in cell.outputs] == ["1\n2\n"]


CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"


def test_the_network_is_closed_here_and_in_what_tests_start():
    with pytest.raises(OSError, match="closed in tests"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    child = subprocess.run([sys.executable, "-c", CONNECT], capture_output=True, text=True)
    assert "closed in tests" in child.stderr
