"""The stored runs are what their code makes, the course reports a cell that fails, and tests have no network."""

import socket
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset

from utils import (
    alignment,
    benchmarks,
    bottle,
    course,
    detection,
    evaluation,
    flan,
    judging,
    models,
    retrieval,
    rlhf,
    runs,
    synthetic,
)


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


FLAN = runs.RUNS / "flan.parquet"


@pytest.mark.skipif(not FLAN.exists(), reason="data/runs/flan.parquet is not there: python -m utils.runs flan makes it")
def test_a_stored_arm_of_instruction_tuning_is_made_again():
    stored = pd.read_parquet(FLAN).query("experiment == 'folds' and rung == '20k' and seed == 0")
    planned = next(p for p in runs.flan_plan() if p["experiment"] == "folds" and p["rung"] == "20k" and p["seed"] == 0)
    stored = stored[stored.held_out == ", ".join(planned["held_out"])].set_index("task")
    now = pd.DataFrame(runs.flan_arm(planned, *models.load("ladder/20k"))).set_index("task")
    assert list(now.index) == list(stored.index) and list(now["items"]) == list(stored["items"])
    assert now["loss"].to_numpy() == pytest.approx(stored["loss"].to_numpy(), rel=0.02)
    assert now["rank"].to_numpy() == pytest.approx(stored["rank"].to_numpy(), abs=0.03)


TEMPLATES = runs.RUNS / "templates.parquet"


@pytest.mark.skipif(
    not TEMPLATES.exists(), reason=f"{TEMPLATES.name} is not there: python -m utils.runs templates makes it"
)
def test_stored_scores_of_templates_are_made_again(smollm2):
    stored = pd.read_parquet(TEMPLATES)
    assert dict(stored.data.value_counts()) == dict.fromkeys(flan.REAL, 4 * 56)
    now = pd.DataFrame(flan.real_scores(*smollm2, "copa", 2))
    then = stored.query("data == 'copa' and item < 2").reset_index(drop=True)
    pd.testing.assert_frame_equal(now, then)


LORA = runs.RUNS / "lora.parquet"


@pytest.mark.skipif(not LORA.exists(), reason="data/runs/lora.parquet is not there: python -m utils.runs lora makes it")
def test_the_problems_before_lora_are_solved_again(smollm2):
    stored = pd.read_parquet(LORA)
    assert dict(stored.groupby(["step", "form"], sort=False).size()) == dict.fromkeys(
        [(0, "prompt"), (0, "shots"), (10, "prompt"), (50, "prompt"), (100, "prompt"), (150, "prompt")], 60
    )
    then = stored.query("step == 0 and form == 'prompt'").right[:3].tolist()
    assert flan.solved(*smollm2, flan.problems("test")[:3]) == then


RLHF = runs.RUNS / "rlhf-0.parquet"


@pytest.mark.skipif(
    not RLHF.exists(), reason="data/runs/rlhf-0.parquet is not there: python -m utils.runs rlhf makes it"
)
def test_stored_arms_of_rlhf_are_made_again():
    """The base model's replies, word for word; the tuned model's, and the first steps of PPO, as good as stored."""
    stored = pd.read_parquet(RLHF)
    steps = alignment.Steps(0)
    assert set(stored.base) == {steps.weights}
    assert {*alignment.plan(), *alignment.failures()} == set(stored.arm)
    then = stored[stored.kind == "reply"]
    now = rlhf.replies(steps.base, steps.tokenizer, steps.test[:128], 0, rows=128)
    assert np.mean([a == b for a, b in zip(now, then[then.arm == "base"].reply, strict=False)]) > 0.95
    now = rlhf.measures(steps.test, rlhf.replies(steps.tuned, steps.tokenizer, steps.test))["grade"].mean()
    assert now == pytest.approx(then[(then.arm == "SFT") & then.clothes.isna()].grade.mean(), abs=0.4)
    rows = pd.DataFrame(alignment.learned(steps, steps=3)).query("kind == 'log'")
    first = stored[(stored.arm == "PPO") & (stored.kind == "log")].head(3)
    assert rows.length.to_numpy() == pytest.approx(first.length.to_numpy(), rel=0.25)
    assert rows.grade.to_numpy() == pytest.approx(first.grade.to_numpy(), abs=1.2)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    made = []

    def unit(name: str, base: str = "new") -> list[dict]:
        made.append(name)
        if made == ["a", "b"]:
            raise KeyboardInterrupt
        return [dict(unit=name, base=base)]

    units = {name: lambda name=name: unit(name) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        runs._go_on("r", units, "unit")
    runs._go_on("r", units, "unit")
    assert made == ["a", "b", "b", "c"]
    assert pd.read_parquet(tmp_path / "r.parquet").unit.tolist() == ["a", "b", "c"]
    runs._go_on(
        "r", {name: units[name] for name in "ab"}, "unit", lambda row: row["unit"] != "a"
    )  # c is asked for no more
    assert made[4:] == ["a"] and pd.read_parquet(tmp_path / "r.parquet").unit.tolist() == ["b", "a"]


def rerun(name: str) -> pd.DataFrame:
    """The rows of a stored run, or skip."""
    path = runs.RUNS / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there: python -m utils.runs {name} makes it")
    return pd.read_parquet(path)


def test_stored_beliefs_are_made_again(smollm2):
    stored = rerun("calibration")
    for form in ("text", "letter"):
        rows = evaluation.beliefs(*smollm2, runs.arc("arc_challenge")[:3], form)
        wanted = stored[stored.unit == f"arc_challenge | {form}"].head(3)
        assert [row["sure"] for row in rows] == pytest.approx(wanted.sure.tolist(), abs=2e-3)
        assert [row["right"] for row in rows] == wanted.right.tolist()


def test_stored_answers_from_passages_are_made_again(smollm2):
    stored = rerun("retrieval")
    for way in ("closed book", "a passage lies"):
        rows = retrieval.asked_chat(*smollm2, way, retrieval.questions()[:4])
        wanted = stored[stored.unit == f"smollm2 | {way}"].head(4)
        assert [row["reply"] for row in rows] == wanted.reply.tolist()
        assert [row["judged"] for row in rows] == wanted.judged.tolist()


def test_stored_texts_to_tell_apart_are_scored_again(smollm2):
    model, tokenizer = smollm2
    stored = rerun("detection")
    human = stored[stored.unit == "human"].head(2)
    rows = detection.scored(model, [list(tokens) for tokens in human.tokens])
    for row, wanted in zip(rows, human.logprobs, strict=True):
        assert row["logprobs"] == pytest.approx(wanted, abs=0.02)
    marked = [list(tokens) for tokens in stored[stored.unit == "watermarked"].tokens]
    z = [detection.z_score(green) for green in detection.greens(marked, model.config.vocab_size)]
    assert np.mean(z) > 4 and len(z) == 48


def test_a_stored_arm_of_self_instruct_is_made_again():
    stored = rerun("self_instruct")
    model, tokenizer = models.load(f"ladder/{synthetic.RUNG}")
    fold = flan.FOLDS[0]
    rows = pd.DataFrame(synthetic.score(model, tokenizer, fold))
    wanted = stored[(stored.unit == f"{', '.join(fold)} | 0") & (stored.arm == "before")]
    assert rows.rouge.tolist() == pytest.approx(wanted.rouge.tolist(), abs=0.02)


@pytest.mark.parametrize("name, arm", [("aligned/sft", "SFT"), ("aligned/ppo", "PPO")])
def test_the_aligned_models_are_those_of_the_stored_run(name, arm):
    """They reply as the stored arm of seed 0 does at its end, up to what half precision changes."""
    stored = pd.read_parquet(RLHF).query("arm == @arm and kind == 'reply' and clothes.isna()").tail(alignment.TESTED)
    model, tokenizer = models.load(name)
    asked = bottle.requests("test", 0, alignment.TESTED)
    now = rlhf.measures(asked, rlhf.drawn(model, tokenizer, asked, 0, model)[0])["grade"].mean()
    assert now == pytest.approx(stored.grade.mean(), abs=0.25)


BENCHMARKS, JUDGING = runs.RUNS / "benchmarks.parquet", runs.RUNS / "judging.parquet"


@pytest.mark.skipif(
    not BENCHMARKS.exists(), reason=f"{BENCHMARKS.name} is not there: python -m utils.runs benchmarks makes it"
)
def test_stored_scores_of_benchmarks_are_made_again(smollm2):
    stored = pd.read_parquet(BENCHMARKS)
    wanted = {f"{name}, likelihood": judging.ITEMS for name in judging.BENCHMARKS}
    wanted |= {f"{name}, letter": judging.LETTERS for name in judging.LETTERED}
    assert dict(stored.unit.value_counts()) == wanted
    items = benchmarks.questions("arc", judging.ITEMS)[:4]
    now = pd.DataFrame(judging.by_likelihood(*smollm2, items))
    then = stored[stored.unit == "arc, likelihood"].head(4)
    assert now.acc.tolist() == then.acc.tolist() and now.acc_norm.tolist() == then.acc_norm.tolist()
    assert np.concatenate(now.logprobs) == pytest.approx(np.concatenate(then.logprobs.tolist()), abs=0.02)
    letters = stored[stored.unit == "arc, letter"].head(2)
    assert [row["written"] for row in judging.by_letter(*smollm2, items[:2])] == letters.written.tolist()


@pytest.mark.skipif(not JUDGING.exists(), reason=f"{JUDGING.name} is not there: python -m utils.runs judging makes it")
def test_stored_judgements_are_made_again(smollm2):
    stored = pd.read_parquet(JUDGING)
    sizes = {"graded": 4 * judging.REQUESTS, "likely": judging.PAIRS, "pairs": judging.JUDGED}
    sizes |= {"own": judging.OWN}
    assert dict(stored.unit.value_counts()) == sizes
    pairs = judging.real_pairs(judging.PAIRS)[:2]
    for unit, make in (("pairs", judging.judged_pairs), ("likely", judging.likely_pairs)):
        now, then = pd.DataFrame(make(*smollm2, pairs)), stored[stored.unit == unit].head(2)
        for column in now.columns:
            assert now[column].tolist() == pytest.approx(then[column].tolist(), abs=0.02)
    now = pd.DataFrame(judging.graded_replies(*smollm2, judging.known_replies(judging.REQUESTS)[:4]))
    assert np.stack(now.p) == pytest.approx(np.stack(stored[stored.unit == "graded"].p.head(4).tolist()), abs=0.01)


CODE = runs.RUNS / "code.parquet"


@pytest.mark.skipif(not CODE.exists(), reason=f"{CODE.name} is not there: python -m utils.runs code makes it")
def test_stored_completions_are_drawn_again(smollm2):
    stored = pd.read_parquet(CODE)
    assert set(stored.task) == {problem["task_id"] for problem in judging.code_problems()}
    now = pd.DataFrame(judging.samples(*smollm2, judging.code_problems()[:1], 12, 48))
    then = stored[stored.task == now.task[0]]
    assert len(then) == 12 and sum(now.completion.to_numpy() == then.completion.to_numpy()) >= 10
