"""Scores and intervals."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import tiny
from utils import benchmarks, bottle, evaluation, flan, models


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

    def __call__(self, texts):
        if isinstance(texts, str):
            return SimpleNamespace(input_ids=[3 + ord(c) % 47 for c in texts])
        return SimpleNamespace(input_ids=[self(text).input_ids for text in texts])


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


# ---- Multiple choice, perplexity and exact match are lm-evaluation-harness's -----------------------------------------

CHOICE = """task: TASK
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
"""
BY_LIKELIHOOD = """output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""
WRITTEN = """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
filter_list: [{name: first, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""


def harness(folder, name: str, task: str, rows: list[dict], model) -> dict:
    """What lm-evaluation-harness gives for these rows."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = (CHOICE + task).replace("TASK", name).replace("FILE", str(folder / f"{name}.jsonl"))
    (folder / f"{name}.yaml").write_text(text)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model, tasks=[name], task_manager=manager, bootstrap_iters=0, batch_size=4)["results"][name]


@pytest.fixture(scope="module")
def wrapped():
    """A ladder model for the harness, with its model and tokenizer."""
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = models.load("ladder/70k")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), model, tokenizer


def test_score_choices_is_the_harness(tmp_path, wrapped):
    lm, model, tokenizer = wrapped
    items = [i for c in ("sentiment", "commonsense") for i in bottle.tasks(c, "test", count=30) if i["options"]]
    rows = [dict(prompt=i["wild"], options=i["options"], answer=i["options"].index(i["answer"])) for i in items]
    rows += [{k: i[k] for k in ("prompt", "options", "answer")} for i in benchmarks.questions("arc", 40)]
    theirs = harness(tmp_path, "choices", BY_LIKELIHOOD, rows, lm)
    ours = evaluation.score_choices(model, tokenizer, rows)
    assert ours == pytest.approx((theirs["acc,none"], theirs["acc_norm,none"]), abs=1e-6)
    assert ours[0] != ours[1]


def test_perplexity_is_the_harness(tmp_path, wrapped):
    """The harness counts bytes, scores the first token behind BOS, and reads a text that fits in one window."""
    lm, model, tokenizer = wrapped
    text = next(iter(bottle.documents(5, 3000)))["text"][:900]
    theirs = harness(tmp_path, "rolling", ROLLING, [dict(text=text)], lm)["byte_perplexity,none"]
    nats = math.log(evaluation.perplexity(model, tokenizer, tokenizer.bos_token + text, 256, 1024))
    tokens = len(tokenizer(text).input_ids)
    assert math.exp(nats * tokens / len(text.encode())) == pytest.approx(theirs, rel=1e-4)


def test_exact_match_is_the_harness(tmp_path, wrapped):
    lm, model, tokenizer = wrapped
    prompts = [item["wild"] for item in bottle.tasks("sentiment", "test", count=12)]
    written = [text.split("\n")[0].replace(" ", "") for text in flan.answers(model, tokenizer, prompts, 6)]
    rows = [
        dict(prompt=p, target=w if i % 3 else "else") for i, (p, w) in enumerate(zip(prompts, written, strict=True))
    ]
    theirs = harness(tmp_path, "written", WRITTEN, rows, lm)["exact_match,first"]
    assert theirs == pytest.approx(np.mean([row["target"] == w for row, w in zip(rows, written, strict=True)]))
    assert 0.5 < theirs < 0.8


# ---- ROUGE, ratings, pass@k ------------------------------------------------------------------------------------------

TEXTS = [
    "",
    "The cat sat on the mat.",
    "the cat lay on the mat",
    "A mat, a mat, a MAT on a cat!",
    "on 24 mats the cat_sat",
]


def test_rouge_is_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for a in TEXTS:
        for b in TEXTS:
            theirs = [value.fmeasure for value in scorer.score(b, a).values()]
            ours = [evaluation.rouge_n(a, b), evaluation.rouge_n(a, b, 2), evaluation.rouge_l(a, b)]
            assert ours == pytest.approx(theirs), (a, b)
    assert evaluation.rouge_n(TEXTS[1], TEXTS[2]) == pytest.approx(5 / 6)
    assert evaluation.rouge_l("고양이가 방석에 앉았다", "고양이가 방석에 누웠다") == pytest.approx(2 / 3)


def battles(count: int, seed: int = 0) -> list[tuple]:
    rng, true = np.random.default_rng(seed), {"a": 0.9, "b": 0.2, "c": -0.4, "d": -0.7}
    pairs = [rng.choice(list(true), 2, replace=False) for _ in range(count)]
    return [(x, y, float(rng.random() < 1 / (1 + math.exp(true[y] - true[x])))) for x, y in pairs]


def test_bradley_terry_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    votes = battles(300)
    x = np.array([[(n == a) - (n == b) for n in "abcd"] for a, b, _ in votes], dtype=float)
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x, [s for *_, s in votes])
    theirs = evaluation.ELO * (fit.coef_[0] - fit.coef_[0].mean()) + 1000
    ours = evaluation.bradley_terry_ratings(votes)
    assert list(ours) == sorted(ours, key=lambda name: -ours[name])
    assert [ours[name] for name in "abcd"] == pytest.approx(theirs, abs=0.05)
    turned = [(b, a, 1 - score) for a, b, score in votes]
    assert evaluation.bradley_terry_ratings(turned) == pytest.approx(ours)


def test_who_never_loses_has_no_rating_but_with_a_prior():
    with pytest.raises(ValueError, match="infinite"):
        evaluation.bradley_terry_ratings([("a", "b", 1), ("b", "c", 1), ("c", "b", 1)])
    ratings = evaluation.bradley_terry_ratings([("a", "b", 1)], prior=1)
    assert ratings == pytest.approx({"a": 1000 + 200 * math.log10(3), "b": 1000 - 200 * math.log10(3)})


def test_elo_moves_by_the_surprise():
    assert evaluation.elo([("a", "b", 1)], k=32) == {"a": 1016, "b": 984}
    one, two = evaluation.elo([("a", "b", 1), ("a", "b", 0.5)], k=32).values()
    assert one + two == pytest.approx(2000) and one == pytest.approx(1016 - 32 * (1 / (1 + 10 ** (-32 / 400)) - 0.5))


def test_pass_at_k_is_the_mean_over_all_choices():
    from itertools import combinations

    for passed in range(6):
        for k in range(1, 6):
            drawn = [any(i < passed for i in choice) for choice in combinations(range(5), k)]
            assert evaluation.pass_at_k(5, passed, k) == pytest.approx(np.mean(drawn))
    with pytest.raises(ValueError, match="between 1 and the number of samples, 5"):
        evaluation.pass_at_k(5, 1, 6)
