"""Scores and intervals."""

import numpy as np
import pytest
import torch

from tests.conftest import tiny
from utils import evaluation


def test_token_logprobs_is_transformers_loss():
    model = tiny(0)
    ids = torch.randint(3, 50, (5, 9))
    ours = evaluation.token_logprobs(model, ids, rows=2)
    assert ours.shape == (5, 8)
    assert -ours.mean().item() == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)


def test_token_logprobs_does_not_see_the_padding():
    model = tiny(0)
    ids = torch.randint(3, 50, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    torch.testing.assert_close(
        evaluation.token_logprobs(model, padded, mask)[:, 3:], evaluation.token_logprobs(model, ids)
    )


def test_bootstrap_ci_is_scipys():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(3, 2, 80)
    value, low, high = evaluation.bootstrap_ci(values)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_bootstrap_ci_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="at least one value"):
        evaluation.bootstrap_ci(values)


class Letters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text):
        return type("Encoded", (), {"input_ids": [3 + ord(c) % 47 for c in text]})


def test_score_options_is_token_logprobs_and_greedy_is_generate():
    """Prompts of different length in one batch, options of different length: as if each stood alone."""
    model, tokenizer = tiny(0), Letters()
    prompts, options = ["abcabc", "a", "hello you"], [[" x", " yes", " n"], [" b"], [" ab", " cd"]]
    written = [
        model.generate(torch.tensor([tokenizer(p).input_ids]), max_new_tokens=4, do_sample=False) for p in prompts
    ]
    scores = evaluation.score_options(model, tokenizer, prompts, options, rows=2)
    for prompt, given, found, out in zip(prompts, options, scores, written, strict=True):
        assert len(given) == len(found)
        for option, score in zip(given, found, strict=True):
            ids = torch.tensor([tokenizer(prompt + option).input_ids])
            n = len(option)
            assert score["logprob"] == pytest.approx(
                evaluation.token_logprobs(model, ids)[0, -n:].sum().item(), abs=1e-4
            )
            assert score["tokens"] == n
            assert score["greedy"] == torch.equal(ids[0], out[0, : ids.shape[1]])
            assert score["next"] == model(ids).logits[0, -1].argmax().item()


def test_score_options_finds_what_greedy_writes():
    model = tiny(0)
    letters = {3 + ord(c) % 47: c for c in map(chr, range(33, 33 + 47))}
    ids = Letters()("abcabc").input_ids
    out = model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)[0, len(ids) :].tolist()
    text = "".join(letters.get(i, "?") for i in out)
    (scores,) = evaluation.score_options(model, Letters(), ["abcabc"], [[text, text[::-1] + "!"]])
    assert scores[0]["greedy"] and not scores[1]["greedy"]


@pytest.mark.parametrize("options, message", [([""], "adds no token"), (["x" * 3000], "exceed the context")])
def test_score_options_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.score_options(tiny(0), Letters(), ["ab"], [options])
