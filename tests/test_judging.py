"""Benchmark items as the harness asks them, who wrote AlpacaEval's answers, and what a judge is shown."""

import numpy as np
import pandas as pd
import pytest

from utils import benchmarks, bottle, claims, judging, prompting


def test_questions_are_the_harness_s():
    """Drawn once, with the right option where the data has it."""
    assert benchmarks.questions("arc", 6) == benchmarks.questions("arc", 6) != benchmarks.questions("arc", 6, seed=1)
    rows = {f"Question: {row['goal']}\nAnswer:": row for row in benchmarks.load("piqa")}
    for item in benchmarks.questions("piqa", 5):
        row = rows[item["prompt"]]
        assert item["options"] == [row["sol1"], row["sol2"]] and item["answer"] == row["label"]
    subjects = {item["prompt"].split(".\n")[0] for item in benchmarks.questions("mmlu", 57)}
    assert len(subjects) == 57
    item = benchmarks.questions("sst2", 1)[0]
    assert "A. negative\nB. positive\nAnswer with the letter" in item["lettered"]
    endings = [option for item in benchmarks.questions("hellaswag", 80) for option in item["options"]]
    assert not any("[" in ending or "  " in ending for ending in endings)


@pytest.mark.parametrize(
    ("text", "option"),
    [("B. positive", 1), ("The answer is B", 1), ("(B) it", 1), ("positive.", 1), ("A man walks", None), ("", None)],
)
def test_the_option_that_a_text_names(text, option):
    assert judging.named(text, dict(options=["negative", "positive"])) == option


def test_the_writers_of_the_answers_are_found():
    leaderboard = pd.read_csv(claims.PAPERS / "alpacaeval_leaderboards.csv").to_dict("records")
    found = benchmarks.generators(leaderboard)
    assert {"gpt4", "claude", "chatgpt"} <= set(found) and len(found) > 8
    counts = {row["model"]: row["n_wins"] for row in leaderboard if row["judge"] == "claude"}
    for model, answers in found.items():
        assert 0 <= counts[model] - sum(verdict == 2 for _, verdict in answers.values()) <= 10
    said = {model: " ".join(answer for answer, _ in answers.values()) for model, answers in found.items()}
    assert {model for model, text in said.items() if "Anthropic" in text} == {"claude"}  # it names its maker


def test_known_replies_have_their_grade_and_what_is_known():
    replies = judging.known_replies(12)
    assert len(replies) == 48 and {reply["grade"] for reply in replies} > {1, 7}
    asked = {request["prompt"]: request for request in bottle.requests("test", 0, 12)}
    for reply in replies:
        assert reply["grade"] == bottle.helpfulness(reply["text"], asked[reply["prompt"]])
        if asked[reply["prompt"]]["kind"] == "fact":
            assert asked[reply["prompt"]]["drawn"]["value"] in reply["known"]


def test_a_verdict_is_the_models_next_token(smollm2):
    model, tokenizer = smollm2
    pair = ("Name a colour.", "Blue.", "I do not want to.")
    (odds,) = judging.prefers_first(model, tokenizer, [pair])
    text = judging.WHICH.format(instruction=pair[0], first=pair[1], second=pair[2])
    ids = tokenizer(prompting.chat(tokenizer, text) + "Answer", return_tensors="pt").input_ids
    logits = model(ids).logits[0, -1]
    one, two = (logits[tokenizer(f" {n}").input_ids[-1]].item() for n in (1, 2))
    assert odds == pytest.approx(one - two, abs=0.01)
    p = judging.grades(model, tokenizer, [dict(known="x", prompt="y", text="z")])
    assert p.shape == (1, 5) and p.sum() == pytest.approx(1, abs=1e-5)
    assert np.exp(judging.answer_logprobs(model, tokenizer, ["Say yes."], ["Yes"])).item() <= 1
