"""Scores and intervals."""

import math
from types import SimpleNamespace

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


def test_token_logprobs_are_exact_on_the_real_model(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of Korea is Seoul, and the river Han flows through it.", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].double()
    wanted = logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    assert (evaluation.token_logprobs(model, ids)[0] - wanted).abs().max() < 1e-5


def test_token_logprobs_does_not_see_the_padding():
    model = tiny(0)
    ids = torch.randint(3, 50, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    torch.testing.assert_close(
        evaluation.token_logprobs(model, padded, mask)[:, 3:], evaluation.token_logprobs(model, ids)
    )


def letters(text: str, **_) -> SimpleNamespace:
    """A tokenizer for tests: one token a letter."""
    return SimpleNamespace(input_ids=torch.tensor([[ord(letter) - 94 for letter in text]]))


TEXT = "".join(chr(97 + (7 * i * i + i) % 26) for i in range(61))


def guide(model, ids, context: int, stride: int) -> float:
    """The loop of transformers' guide to perplexity, each window's loss weighted with the tokens that it scored."""
    total = scored = previous = 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + context, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - previous)] = -100
        number = int((labels[:, 1:] != -100).sum())
        if number:
            total += number * model(ids[:, begin:end], labels=labels).loss.item()
        scored, previous = scored + number, end
        if end == ids.shape[1]:
            return math.exp(total / scored)


# 61 tokens: a last window that is whole (16, 5), short (16, 6 and 14), of one token (12, 12), longer than the text (64, 1)
@pytest.mark.parametrize(
    ("context", "stride"), [(16, 1), (16, 5), (16, 6), (16, 14), (16, 16), (12, 12), (64, 1), (61, 61)]
)
def test_perplexity_is_the_guides(context, stride):
    model = tiny(0)
    ours = evaluation.perplexity(model, letters, TEXT, stride, context)
    assert ours == pytest.approx(guide(model, letters(TEXT).input_ids, context, stride), rel=1e-5)


def test_perplexity_of_a_text_that_fits_is_exp_of_transformers_loss():
    model, ids = tiny(0), letters(TEXT).input_ids
    wanted = math.exp(model(ids, labels=ids).loss.item())
    assert evaluation.perplexity(model, letters, TEXT, stride=7) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("text", "stride", "word"), [("", 4, "0 tokens"), ("a", 4, "1 tokens"), ("abc", 0, "stride")])
def test_perplexity_refuses_what_has_none(text, stride, word):
    with pytest.raises(ValueError, match=word):
        evaluation.perplexity(tiny(0), letters, text, stride, context=8)
    with pytest.raises(ValueError, match="stride must be between 1 and the context, 8"):
        evaluation.perplexity(tiny(0), letters, "abc", 9, context=8)


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
