"""Demonstrations, prompts and replies of the RLHF pipeline, and what replies are worth, against the world."""

from collections import Counter

import numpy as np
import pytest
import torch

from utils import bottle, models, preference, rlhf


@pytest.fixture(scope="module")
def smallest():
    return models.load("ladder/20k")


def test_demonstrations_have_the_manners_of_many_people():
    shown = rlhf.demonstrations(200, seed=3)
    assert {request["split"] for request in shown} == {"tuning"}
    kinds = Counter()
    for request in shown:
        known = {reply["text"]: reply["kind"] for reply in bottle.replies(request, 3)}
        kinds[known[request["reply"]]] += 1
    assert set(kinds) <= set(rlhf.MANNERS) and kinds["polite"] > kinds["padded"] > kinds["unsure"] > 0
    grades = [bottle.helpfulness(request["reply"], request) for request in shown]
    assert min(grades) >= 4 and max(grades) == 7  # nobody demonstrates a wrong, rude or harmful reply
    assert shown == rlhf.demonstrations(200, seed=3) != rlhf.demonstrations(200, seed=4)


def test_the_splits_share_no_words():
    asked = {split: bottle.requests(split, 0, 60) for split in ("tuning", "preference", "ppo", "test")}
    for split, requests in asked.items():
        others = [r for name, part in asked.items() if name != split for r in part]
        assert bottle.leaks(others, requests) == []


def test_a_prompted_model_sees_one_solved_request_of_each_kind():
    (asked,) = bottle.requests("test", 0, 1)
    (prompted,) = rlhf.prompted([asked], seed=1)
    lines = prompted["prompt"].split("\n")
    assert len(lines) == 2 * len(bottle.REQUESTS) + 2
    assert lines[-2] == f"Nell: {asked['prompt']}" and lines[-1] == "Ruth:"
    known = {r["prompt"]: r for r in bottle.requests("tuning", 1, 200)}
    shown = [known[line.removeprefix("Nell: ")] for line in lines[:-2:2]]
    assert [r["kind"] for r in shown] == list(bottle.REQUESTS)
    assert [f"Ruth: {r['reference']}" for r in shown] == lines[1:-2:2]
    assert {k: v for k, v in prompted.items() if k != "prompt"} == {k: v for k, v in asked.items() if k != "prompt"}


def test_replies_are_one_line_each_and_follow_the_seed(smallest):
    model, tokenizer = smallest
    asked = bottle.requests("test", 0, 7)
    said = rlhf.replies(model, tokenizer, asked, seed=1, rows=3)
    assert len(said) == 7 and not any("\n" in reply or reply != reply.strip() for reply in said)
    assert said == rlhf.replies(model, tokenizer, asked, seed=1, rows=3) != rlhf.replies(model, tokenizer, asked, 2)


def test_the_log_ratios_are_those_of_whole_replies(smallest):
    """Against the other model's log-probabilities, the reply read again; against itself 0."""
    model, tokenizer = smallest
    other = models.load("ladder/20k")[0]
    for weight in other.parameters():
        weight.data *= 1.05
    asked = bottle.requests("test", 0, 6)
    said, own = rlhf.drawn(model, tokenizer, asked, 1, model)
    assert own == pytest.approx(np.zeros(6), abs=1e-5) and said == rlhf.replies(model, tokenizer, asked, 1)
    _, ratios = rlhf.drawn(model, tokenizer, asked, 1, other)
    generator = torch.Generator().manual_seed(1)
    ids, mask, _ = rlhf.ppo.generate(model, tokenizer, rlhf.encode(tokenizer, asked), rlhf.NEW_TOKENS, generator)
    with torch.inference_mode():
        expected = [preference.reply_logprobs(m, ids, mask) for m in (model, other)]
    assert ratios == pytest.approx((expected[0] - expected[1]).numpy(), abs=1e-4) and abs(ratios).max() > 0.01


def test_gold_grades_the_text_behind_its_own_prompt():
    asked = bottle.requests("ppo", 0, 12)
    texts, grades = [], []
    for request in asked:
        for reply in bottle.replies(request):
            texts.append(rlhf.text(request, reply["text"]))
            grades.append(reply["grade"])
    assert rlhf.gold(asked)(texts) == grades and len(set(grades)) > 4


def test_measures_of_replies_whose_worth_is_known():
    asked = bottle.requests("test", 0, 60)
    said = {}
    for kind in ("polite", "plain", "wrong", "rude", "off topic", "harmful"):
        chosen = [(r, a["text"]) for r in asked for a in bottle.replies(r) if a["kind"] == kind]
        said[kind] = (
            rlhf.measures(*zip(*chosen, strict=True)),
            np.array([r["kind"] for r, _ in chosen]),
        )
    right, kinds = said["polite"]
    assert set(right["grade"]) == {7.0} and right["appropriate"].all() and not right["toxic"].any()
    assert (right["truthful"][kinds == "fact"] == 1).all() and np.isnan(right["truthful"][kinds != "fact"]).all()
    assert (right["hallucinated"][kinds == "untold"] == 0).all()
    assert np.isnan(right["hallucinated"][kinds != "untold"]).all()
    assert (right["refused"][kinds == "forbidden"] == 1).all() and (right["harmful"][kinds == "forbidden"] == 0).all()
    wrong, kinds = said["wrong"]
    assert (wrong["truthful"][kinds == "fact"] == 0).all() and (wrong["hallucinated"][kinds == "untold"] == 1).all()
    assert said["rude"][0]["toxic"].all() and not said["rude"][0]["appropriate"].any()
    assert said["harmful"][0]["harmful"].all() and not said["off topic"][0]["appropriate"].any()
    first = bottle.replies(asked[0])[0]["text"]
    assert rlhf.measures(asked[:1], [first])["words"] == [len(first.split())]


def test_tuning_copies_the_model_and_learns_the_manners(smallest):
    model, tokenizer = smallest
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    losses = []
    tuned = rlhf.tune(
        model,
        tokenizer,
        rlhf.demonstrations(64, 0),
        steps=12,
        log_every=1,
        measure=lambda m, step: losses.append(step) or {},
        measure_at=(1,),
    )
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    asked = rlhf.demonstrations(32, 1)
    ids, mask = preference.encode_replies(tokenizer, [r["prompt"] for r in asked], [f" {r['reply']}" for r in asked])
    with torch.inference_mode():
        plain, after = (preference.reply_logprobs(m, ids, mask).mean() for m in (model, tuned))
    assert after > plain + 1 and losses == [1, 12]
