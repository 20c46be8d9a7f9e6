"""The verdicts follow from the rules alone, the claims are complete, and what is committed is up to date."""

import csv
import json
import math
import os
import re

import nbformat
import pytest
import yaml

from utils import claims, course, progress

SYLLABUS = """
one-model-many-tasks more-data-helps no-labels-needed attention-beats-recurrence

perplexity-identity bigger-is-better-zero-shot largest-still-underfits loss-is-a-power-law in-context-learning-emerges
emergence-depends-on-the-metric induction-appears-suddenly reasoning-emerges

base-model-ignores-instructions instruction-tuning-generalises more-clusters-help small-models-do-not-gain
instructions-beat-names template-count

reward-model-learns-preferences preferred-gets-higher-reward margin-helps two-rewards length-bias

rlhf-beats-sft safer-and-more-truthful step-three-needs-no-labels reward-is-over-optimised
kl-penalty-acts-like-early-stopping alignment-tax rejection-sampling-then-ppo dpo-needs-no-reward-model
grpo-needs-no-critic jailbroken

beam-beats-greedy-in-probability likelihood-is-not-quality nucleus-is-closest-to-human temperature-sets-entropy
top-k-mass-depends-on-context cache-makes-it-linear

few-shot-beats-zero-shot prompt-wording-matters example-order-matters chat-template-matters
chain-of-thought-helps-with-scale zero-shot-cot cot-generalises-to-longer self-consistency-helps

accuracy-needs-a-protocol rouge-misses-meaning perplexity-is-not-preference llm-judge-agrees-better position-bias
length-bias-of-judges self-preference arena-recovers-the-order contamination-inflates

images-become-tokens video-is-next-token-prediction self-instruct less-is-more retrieval-cuts-hallucination
confident-when-wrong jailbreak-success-rates ai-text-is-detectable
"""
BEAM, COUNT = "beam-beats-greedy-in-probability", "template-count"  # above 0; between -0.023 and 0.023
ABOVE, BELOW, BETWEEN = {"above": 1}, {"below": 1}, {"between": [0, 1]}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Results, committed results and README in a temporary folder."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(claims, "COMMITTED", tmp_path / "results.json")
    monkeypatch.setattr(claims, "README", tmp_path / "README.md")
    monkeypatch.setattr(claims, "PICTURE", tmp_path / "measured.png")
    claims.COMMITTED.write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("rule", "low", "high", "expected"),
    [
        (ABOVE, 1.1, 2, "holds"),
        (ABOVE, 1, 2, "undecided"),  # the threshold itself is not above it
        (ABOVE, 0, 2, "undecided"),
        (ABOVE, 0, 1, "does not hold here"),
        (BELOW, 0, 0.9, "holds"),
        (BELOW, 0, 1, "undecided"),
        (BELOW, 0, 2, "undecided"),
        (BELOW, 1, 2, "does not hold here"),
        (BETWEEN, 0, 1, "holds"),
        (BETWEEN, -0.1, 0.5, "undecided"),
        (BETWEEN, 0.5, 1.1, "undecided"),
        (BETWEEN, -1, 2, "undecided"),
        (BETWEEN, -1, 0, "undecided"),  # touches the range
        (BETWEEN, -1, -0.1, "does not hold here"),
        (BETWEEN, 1.1, 2, "does not hold here"),
    ],
)
def test_verdict_follows_from_rule_and_interval(rule, low, high, expected):
    assert {claims.verdict(rule, measured, low, high) for measured in (low, (low + high) / 2, high)} == {expected}


@pytest.mark.parametrize(("low", "high"), [(None, None), (2, None), (None, 4)])
def test_without_an_interval_nothing_is_decided(low, high):
    assert claims.verdict(ABOVE, 3, low, high) == "undecided"


@pytest.mark.parametrize(
    "numbers",
    [
        (math.nan, 0, 1),
        (0, math.nan, 1),
        (0, -1, math.inf),
        (2, 0, 1),
        (-1, 0, 1),
        (0, 1, None),
        (math.nan, None, None),
    ],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ValueError, match="finite|does not contain"):
        claims.verdict(ABOVE, *numbers)


def test_every_claim_of_the_syllabus_is_there_in_its_order():
    assert list(claims.load()) == SYLLABUS.split()
    chapters = [chapter.split() for chapter in SYLLABUS.split("\n\n")]
    assert [claim["notebook"] for claim in claims.load().values()] == [
        f"{i:02}" for i, c in enumerate(chapters, 1) for _ in c
    ]


def test_every_paper_table_exists_and_names_sources():
    folder = claims.REPO / "data" / "papers"
    for file in folder.glob("*.csv"):
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert rows and all(row["confidence"] for row in rows), file.name
    for id, claim in claims.load().items():
        assert claim["paper"]["source"] and (folder / claim["paper"].get("file", "")).exists(), id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(extra="x"), "expected the keys"),
        (lambda c: c.pop("metric"), "expected the keys"),
        (lambda c: c["paper"].pop("confidence"), "paper: expected the keys"),
        (lambda c: c.update(paper="Table 1"), "paper: expected the keys"),
        (lambda c: c["paper"].update(confidence="sure"), "one of checked, recalled, derived"),
        (lambda c: c.update(notebook=6), "notebook must be a text"),
        (lambda c: c.update(id=COUNT), "unique"),
        *[
            (lambda c, rule=rule: c.update(rule=rule), "expected {above: t}")
            for rule in (
                {"over": 1},
                {"above": "1"},
                {"above": math.nan},
                {"above": [1]},
                {"between": [1, 0]},
                {"between": 1},
                {},
                0,
            )
        ],
    ],
)
def test_a_wrong_claim_is_named(elsewhere, monkeypatch, change, message):
    entries = [claims.load()[COUNT], claims.load()[BEAM]]
    change(entries[1])
    (elsewhere / "claims.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    monkeypatch.setattr(claims, "CLAIMS", elsewhere / "claims.yaml")
    with pytest.raises(ValueError, match=f"^Claim ({BEAM}|{COUNT})[^\n]*{message}"):
        claims.load()


def test_a_file_that_is_no_list_of_claims_is_refused(elsewhere, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", elsewhere / "claims.yaml")
    for text in ("", "a: [", "- one", "id: x"):
        claims.CLAIMS.write_text(text)
        with pytest.raises(ValueError, match=r"data/claims.yaml"):
            claims.load()


def test_record_writes_and_overwrites(elsewhere):
    claims.record(BEAM, 1, 0.5, 1.5)
    claims.record(BEAM, -1, -2, -0.5, seeds=range(3), note="three prompts")
    written = json.loads((claims.RESULTS / f"{BEAM}.json").read_text(encoding="utf-8"))
    assert [written[key] for key in ("measured", "low", "high", "verdict", "seeds")] == [
        -1,
        -2,
        -0.5,
        "does not hold here",
        [0, 1, 2],
    ]
    assert (
        written["note"] == "three prompts"
        and written["machine"]["cores"] == os.cpu_count()
        and written["machine"]["cpu"]
    )
    assert written["python"] and written["torch"] and written["transformers"] and written["date"]


def test_in_a_lecture_nothing_is_recorded(elsewhere, monkeypatch):
    monkeypatch.setattr(claims, "live", True)
    assert "not recorded" in str(claims.record(BEAM, 1, 0.5, 1.5)) and claims.local_results() == {}


def test_a_failing_write_leaves_the_old_result_and_nothing_else(elsewhere, monkeypatch):
    claims.record(BEAM, 1, 0.5, 1.5)

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        claims.record(BEAM, 2, 1.5, 2.5)
    assert [path.name for path in claims.RESULTS.iterdir()] == [f"{BEAM}.json"]
    assert claims.local_results()[BEAM]["measured"] == 1


def test_refused_measurements_write_nothing(elsewhere):
    with pytest.raises(ValueError, match=f"did you mean [^\n]*{BEAM}"):
        claims.record("beam-beats-greedy", 1)
    with pytest.raises(ValueError, match="does not contain"):
        claims.record(BEAM, 1, 2, 3)
    assert not claims.RESULTS.exists()


def test_the_card_says_everything_and_escapes_it(elsewhere):
    card = claims.record(BEAM, 3.1234, 2.5, 3.75, seeds=[1, 2], note="<script>alert(1)</script>")
    claim = claims.load()[BEAM]
    for text in (card._repr_html_(), repr(card)):
        for part in (
            *claim["statement"].values(),
            claim["paper"]["figure"],
            "3.12 [2.50, 3.75]",
            "seeds: 2",
            "✓ holds",
            "above 0",
        ):
            assert part in text
    assert "<script" not in card._repr_html_() and "&lt;script&gt;" in card._repr_html_()


def test_overview_lists_the_notebooks_claims():
    card = claims.overview("06")
    assert [row[0].split("\n")[-1] for row in card.rows[1:]] == [
        c["id"] for c in claims.load().values() if c["notebook"] == "06"
    ]
    assert "above 0.31" in repr(card) and "above 0.31" in card._repr_html_()
    with pytest.raises(ValueError, match="01, 02, 03"):
        claims.overview("6")


def test_numbers_have_three_significant_digits():
    shown = [claims.number(x) for x in (0.3, 12.34, 123.4, 999.96, 1234, -0.0012344, 0, 2.5e-7, 1.5e7)]
    assert shown == ["0.300", "12.3", "123", "1,000", "1,230", "-0.00123", "0.00", "2.50e-07", "1.50e+07"]


def test_the_table_is_markdown_whatever_a_claim_says(elsewhere, capsys):
    claims.record(COUNT, 0.01, -0.01, 0.02)
    lines = claims.table(claims.local_results()).splitlines()
    assert len(lines) == 2 + len(claims.load()) and {line.replace(r"\|", "").count("|") for line in lines} == {6}
    assert (
        sum("✓ holds" in line for line in lines) == 1
        and sum(claims.UNMEASURED in line for line in lines) == len(lines) - 3
    )
    assert claims.main([]) is None
    assert "1 holds, 0 does not hold here, 0 undecided" in capsys.readouterr().out


def test_check_names_each_claim_that_differs(elsewhere):
    assert claims.main(["--check"]) is None
    claims.record(BEAM, 1, 0.5, 1.5)
    claims.COMMITTED.write_text(json.dumps({BEAM: {"verdict": "holds"}}))
    assert claims.main(["--check"]) is None
    claims.COMMITTED.write_text(json.dumps({BEAM: {"verdict": "undecided"}, COUNT: {"verdict": "holds"}}))
    differences = claims.main(["--check"]).splitlines()
    assert [line.split(":")[0] for line in differences] == [BEAM, COUNT]
    claims.COMMITTED.write_text("{}")
    assert BEAM in claims.main(["--check"])
    claims.COMMITTED.write_text("<<<<<<< HEAD")
    assert "damaged" in claims.main(["--check"])


def test_accept_merges_and_renews_the_readme(elsewhere):
    claims.record(BEAM, 1, 0.5, 1.5)
    for text in (None, f"{claims.START} no end", f"{claims.END} reversed {claims.START}"):
        if text:
            claims.README.write_text(text)
        assert "README.md has no lines" in claims.main(["--accept"])
        assert claims.COMMITTED.read_text() == "{}"
    old = claims.local_results()[BEAM] | {"verdict": "undecided", "low": -1}
    claims.COMMITTED.write_text(json.dumps({COUNT: old, BEAM: old, "gone": old}))
    claims.README.write_text(f"before\n{claims.START}stale{claims.END}\nafter")
    assert claims.main(["--accept"]) is None
    committed = json.loads(claims.COMMITTED.read_text(encoding="utf-8"))
    assert [(id, result["verdict"]) for id, result in committed.items()] == [(COUNT, "undecided"), (BEAM, "holds")]
    assert claims.README.read_text(encoding="utf-8") == f"before\n{claims.readme_block()}\nafter"
    assert "1.00 [0.500, 1.50] | ✓ holds" in claims.readme_block()


def test_committed_verdicts_follow_from_the_rules_of_today():
    known = claims.load()
    for id, result in json.loads(claims.COMMITTED.read_text(encoding="utf-8")).items():
        assert result["verdict"] == claims.verdict(
            known[id]["rule"], result["measured"], result["low"], result["high"]
        ), id


def test_the_readme_shows_the_committed_results():
    assert claims.readme_block() in claims.README.read_text(encoding="utf-8"), "run python -m utils.claims --accept"


def test_the_page_shows_every_claim_with_figure_and_link(elsewhere, tmp_path):
    code = nbformat.v4.new_code_cell
    plot, other = (code(f"plot({i})", outputs=[]) for i in range(2))
    for cell, data in ((other, "b3RoZXI="), (plot, "cGxvdA==")):
        cell.outputs = [nbformat.v4.new_output("display_data", data={"image/png": data})]
    plot.metadata["alt"] = 'a "curve" & more'
    section = nbformat.v4.new_markdown_cell("## Section")
    cells = [other, section, plot, code(f'claims.record("{BEAM}", 1, 0.5, 1.5)', id="the-claim"), code("end()")]
    (folder := tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "06_decoding.ipynb")
    claims.record(BEAM, 1, 0.5, 1.5)
    page = claims.page(claims.local_results(), folder)
    assert [page.count(f'<article id="{id}">') for id in claims.load()] == [1] * len(claims.load())
    assert page.count('href="notebooks/06_decoding.html#cell-id=the-claim"') == 1 == page.count("href=")
    assert "cGxvdA==" in page and "b3RoZXI=" not in page and "a &quot;curve&quot; &amp; more" in page
    assert "1.00 [0.500, 1.50]" in page and page.count("✓ holds") == 1 and "http" not in page


def test_the_readme_shows_the_notebooks_with_their_time_and_memory(tmp_path, monkeypatch):
    text = claims.README.read_text(encoding="utf-8")
    assert course.readme(text) == text, "run `make notebooks`"
    monkeypatch.setattr(progress, "TIMES", tmp_path)
    (tmp_path / "06_decoding.json").write_text('{"seconds": 90, "memory": 2.04, "cells": {}}')
    assert re.search(
        r"^\| \[06\]\(notebooks/06_decoding.ipynb\) \| Decoding.* \| 6 \| 1.5 \| 2.0 \|$", course.readme(text), re.M
    )
