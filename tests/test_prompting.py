"""Prompts, replies and their reading; the question sets written for the course; the stored run."""

import pathlib
import re
import runpy

import pandas as pd
import pytest
import torch

from tests.conftest import tiny, words
from utils import evaluation, prompting, runs


@pytest.fixture
def replies(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("LLM_MEASURED_CACHE", str(tmp_path))
    return tmp_path / "replies"


def test_build():
    shown = [dict(a="1 + 1", answer="2", steps="It is 2."), dict(a="1 + 2", answer="3", steps="It is 3.")]
    asked, template = dict(a="2 + {2}"), "Q: {a}\nA:"
    assert prompting.build(template, asked) == "Q: 2 + {2}\nA:"
    few = "Add.\n\nQ: 1 + 1\nA: 2\n\nQ: 1 + 2\nA: 3\n\nQ: 2 + {2}\nA:"
    assert prompting.build(template, asked, shown, "Add.") == few
    worked = "Q: 1 + 1\nA: It is 2.\nQ: 2 + {2}\nA:"
    assert prompting.build(template, asked, shown[:1], answer="steps", gap="\n") == worked


def test_chat_is_the_models_template(smollm2):
    tokenizer = smollm2[1]
    turns = [
        dict(role="system", content="Be brief."),
        dict(role="user", content="Hi"),
        dict(role="assistant", content="Yo"),
    ]
    turns.append(dict(role="user", content="Bye"))
    ours = prompting.chat(tokenizer, "Bye", "Be brief.", [("Hi", "Yo")])
    assert ours == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


SHARED = "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18"
TEXTS = [f"{SHARED} {own}" for own in ("w20", "w21 w22 w23", "w24 w25", "w26 w27 w28 w29 w30")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_beginning_read_once_gives_the_same_tokens(temperature):
    options = dict(new_tokens=20, temperature=temperature, rows=3, cache=False)
    model, tokenizer = tiny(1), words()
    ids = [tokenizer(text).input_ids for text in TEXTS]
    assert evaluation.shared_prefix(ids) == 17  # with <b>
    once = prompting.generate(model, tokenizer, TEXTS, **options)
    assert once == prompting.generate(model, tokenizer, TEXTS, shared=False, **options)
    assert len(set(once)) > 1


def test_generate_is_transformers(smollm2):
    model, tokenizer = smollm2
    test, pool = prompting.items("facts")
    prompts = prompting.shots(prompting.ASK, test[:4], pool, 2)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch.input_ids.shape[1] :]
    texts = [text.lstrip().split("\n")[0] for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
    assert prompting.generate(model, tokenizer, prompts, 8, stop=["\n"], cache=False) == texts


def test_scores_after_a_shared_beginning_are_the_same():
    model, tokenizer = tiny(2), words()
    options = [[" w31 w32", " w33"]] * 4
    together = evaluation.score_options(model, tokenizer, TEXTS, options)
    alone = [evaluation.score_options(model, tokenizer, [t], [o])[0] for t, o in zip(TEXTS, options, strict=True)]
    for a, b in zip(sum(together, []), sum(alone, []), strict=True):
        assert a.pop("logprob") == pytest.approx(b.pop("logprob"), abs=1e-4) and a == b


def test_replies_are_remembered_and_never_stale(replies, monkeypatch):
    model, tokenizer, asked = tiny(1), words(), []
    write = prompting._write
    monkeypatch.setattr(prompting, "_write", lambda *a, **k: asked.append(1) or write(*a, **k))
    first = prompting.generate(model, tokenizer, TEXTS, 5)
    assert prompting.generate(model, tokenizer, TEXTS, 5) == first and len(asked) == 1
    prompting.generate(model, tokenizer, [*TEXTS[:3], TEXTS[3] + " w4"], 5)
    prompting.generate(model, tokenizer, TEXTS, 6)
    prompting.generate(model, tokenizer, TEXTS, 5, temperature=1.0, seed=1)
    prompting.generate(model, tokenizer, TEXTS, 5, temperature=1.0, seed=2)
    assert len(asked) == 5
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3  # another model now
    prompting.generate(model, tokenizer, TEXTS, 5)
    assert len(asked) == 6 and len(list(replies.iterdir())) == 6


def test_an_interrupted_write_leaves_nothing_half_written(replies, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        prompting.remembered(lambda: [1, 2], key="a")
    assert not list(replies.glob("*.json"))
    monkeypatch.undo()
    monkeypatch.setenv("LLM_MEASURED_CACHE", str(replies.parent))
    assert prompting.remembered(lambda: [3], key="a") == [3] == prompting.remembered(lambda: [4], key="a")


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("2 + 3 = 5. The answer is 5.", "5"),
        ("The answer is 12. Question: 3 pens", "12"),
        ("It costs $1,250.00 in all", "1250"),
        ("so -2", "-2"),
        ("3.5 metres", "3.5"),
        ("none", None),
    ],
)
def test_number(reply, number):
    assert prompting.number(reply) == number


@pytest.mark.parametrize(
    ("reply", "answers", "right"),
    [
        ("The capital is Brasília.", ["Brasilia"], True),
        ("It is the Nile!", ["Nile"], True),
        ("Manilan food", ["Manila"], False),
        ("a", ["A"], False),  # an answer that is only an article can never be found
        ("정답은 서울입니다.", ["서울"], True),
        ("부산", ["서울"], False),
    ],
)
def test_contains(reply, answers, right):
    assert prompting.contains(reply, answers) == right


@pytest.mark.parametrize(
    ("reply", "check"),
    [
        ("today", "starts: Today"),
        ("That is all. Bye", "ends: That is all."),
        ("one Two", "lower"),
        ("ONE two", "upper"),
        ("a b c d e f", "words at most: 5"),
        ("bluer", "contains: blue"),
        ("The end", "without: the"),
        ("a, b", "items: 3"),
        ('{"name": 1}', "json: name age"),
        ("not json", "json: name age"),
        ("Yes, it is.", "exactly: yes"),
        ("", "lower"),
    ],
)
def test_what_does_not_follow(reply, check):
    assert not prompting.follows(reply, check)


def test_majority():
    assert prompting.majority(["1", None, "2", "2", None, None]) == "2"
    assert prompting.majority(["3", "1", "1", "3"]) == "3"
    assert prompting.majority([None]) is None


@pytest.mark.parametrize("name", prompting.SETS)
def test_question_sets(name):
    rows = prompting.questions(name).to_list()
    assert len(rows) >= 100 and len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert {"question", "answers", "topic", "difficulty", "origin"} <= set(row)
        assert row["answers"] and all(isinstance(a, str) and a.strip() for a in row["answers"])
        assert all(isinstance(row[key], str) and row[key] for key in ("question", "topic", "difficulty", "origin"))
        if "check" in row:
            assert prompting.follows(row["answers"][0], row["check"]), row
        if row["topic"] == "word problems":
            *sums, last = row["steps"].split(". ")
            for a, sign, b, c in (re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", step).groups() for step in sums):
                assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(c)
            assert c == row["answers"][0] and last == f"The answer is {c}."
            assert set(re.findall(r"\d+", sums[0])[:2]) <= set(re.findall(r"\d+", row["question"]))
        if row["topic"] == "last letters":
            names = re.search('"(.*)"', row["question"])[1].split()
            assert row["answers"] == ["".join(n[-1] for n in names)] and f"{len(names)} words" == row["difficulty"]


def test_the_generated_sets_are_made_again(tmp_path):
    make = runpy.run_path(str(prompting.PROMPTS / "make.py"))
    make["write"].__globals__["HERE"] = tmp_path
    for name, makers in {"problems": ("problem", ("easy", "hard")), "letters": ("letters", (2, 4))}.items():
        make["write"](name, [(make[makers[0]], argument) for argument in makers[1]])
        assert (tmp_path / f"{name}.jsonl").read_text() == (prompting.PROMPTS / f"{name}.jsonl").read_text()


@pytest.mark.parametrize("name", ["facts", "problems", "letters", "korean"])
def test_no_example_is_tested(name):
    test, pool = prompting.items(name)
    assert not {i["a"] for i in test} & {i["a"] for i in pool}
    assert len(test) >= 80 and len(pool) >= 20


STORED = runs.RUNS / "prompts.parquet"


@pytest.mark.skipif(not STORED.exists(), reason=f"{STORED.name} is not there: python -m utils.runs prompts makes it")
@pytest.mark.parametrize(("experiment", "task", "setting"), [("few-shot", "sst2", "4"), ("chat", "facts", "chat")])
def test_a_stored_unit_is_made_again(smollm2, experiment, task, setting):
    stored = pd.read_parquet(STORED)
    unit = dict(model="smollm2", experiment=experiment, task=task, setting=setting, part=0)
    then = stored[(stored[list(unit)] == pd.Series(unit)).all(axis=1)].sort_values("item")
    now = prompting.measure(unit, *smollm2, count=6)
    assert sum(row["said"] == said for row, said in zip(now, then.said, strict=False)) >= 5
    assert len(then) == prompting.PART


@pytest.mark.skipif(not STORED.exists(), reason=f"{STORED.name} is not there: python -m utils.runs prompts makes it")
def test_the_stored_run_is_the_plans():
    names = ["model", "experiment", "task", "setting", "part"]
    found = set(map(tuple, pd.read_parquet(STORED)[names].drop_duplicates().values.tolist()))
    planned = {tuple(unit[name] for name in names) for unit in prompting.plan()}
    assert found <= planned
