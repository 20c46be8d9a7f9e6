"""Score texts and say how sure a score is."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def token_logprobs(model: PreTrainedModel, ids: Tensor, attention_mask: Tensor | None = None, rows: int = 8) -> Tensor:
    """log p(token | the tokens before it), in nats: ids (batch, tokens) -> (batch, tokens - 1), `rows` texts at a time.

    Padding on either side needs `attention_mask` (batch, tokens); the value of a padded token means nothing.
    """
    scores = []
    for start in range(0, len(ids), rows):
        part = ids[start : start + rows]
        mask = None if attention_mask is None else attention_mask[start : start + rows]
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(part, attention_mask=mask, position_ids=positions).logits[:, :-1].float()
        # cross_entropy adds up the vocabulary in single precision, one after another: 1e-4 nats too little of every token
        scores.append(logits.gather(-1, part[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1))
    return torch.cat(scores)


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, stride: int, context: int | None = None
) -> float:
    """exp of the mean of -log p(token | the tokens before it in its window) over the tokens of `text`.

    Windows of `context` tokens (the most the model reads, if None) begin every `stride` tokens, and each scores what no
    window before it did: a token is scored once, with at least `context - stride` tokens before it. A token that begins a
    window has none and is not scored: the first, and with stride = context the first of every window. These are the
    windows of transformers' guide "Perplexity of fixed-length models", whose mean counts a token too few in each window
    but the first. Raises ValueError for a text below two tokens and for a stride that is not between 1 and `context`.
    """
    context = context or model.config.max_position_embeddings
    if not 1 <= stride <= context:
        raise ValueError(f"The stride must be between 1 and the context, {context} tokens; it is {stride}.")
    ids = tokenizer(text, return_tensors="pt").input_ids[0].to(model.device).long()  # an empty text gives floats
    if len(ids) < 2:
        raise ValueError(
            f"The text has {len(ids)} tokens: perplexity needs at least two, for the first has no context."
        )
    windows = ids.unfold(0, min(context, len(ids)), stride)  # (windows, context): the whole ones
    scores = token_logprobs(model, windows, rows=max(1, 1024 // windows.shape[1]))  # (windows, context - 1)
    parts = [scores[0], scores[1:, -stride:].flatten()]
    begin, end = len(windows) * stride, (len(windows) - 1) * stride + windows.shape[1]
    if end < len(ids) and begin < len(ids) - 1:  # the last window is shorter
        parts.append(token_logprobs(model, ids[None, begin:])[0, -(len(ids) - end) :])
    return math.exp(-torch.cat(parts).double().mean())


def bootstrap_ci(
    values, statistic: Callable = np.mean, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(statistic, low, high): the percentile bootstrap interval over the first axis of `values` (n, ...).

    `statistic` maps an array like `values` to a number; the n items are drawn with replacement (Efron 1979).
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("bootstrap_ci needs at least one value, all of them finite.")
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    results = [statistic(values[draw]) for draw in draws]
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(values)), float(low), float(high)


def shared_prefix(rows: list[list[int]], least: int = 16) -> int:
    """How many tokens all rows begin with, each keeping one of its own; 0 where these are fewer than `least`."""
    shared = min(len(os.path.commonprefix(rows)), min(map(len, rows), default=1) - 1)
    return shared if shared >= least else 0


@torch.inference_mode()
def score_options(
    model: PreTrainedModel, tokenizer, prompts: list[str], options: list[list[str]], rows: int = 32
) -> list[list[dict]]:
    """What the model gives every possible continuation of every prompt; for each prompt a list of dicts, one an option.

    An option begins with its space (" Paris"). logprob: of the whole option, in nats. tokens: its length. greedy: whether
    it is what greedy decoding writes. next: the token that greedy decoding writes after it.
    Prompts whose options are about equally long are read together, `rows` at a time, each once for all of its options (their keys and
    values are kept); a beginning that all prompts share is read once for all. Tokens are split between prompt and option as lm-evaluation-harness does.
    Raises ValueError for an option without tokens, or a text longer than the model's context.
    """
    scores: list[list[dict]] = [[] for _ in prompts]
    asked = tokenizer(prompts).input_ids if prompts else []
    whole = [prompt + option for prompt, given in zip(prompts, options, strict=True) for option in given]
    ends = iter(tokenizer(whole).input_ids if whole else [])
    encoded = []
    for prompt, ids, given in zip(prompts, asked, options, strict=True):
        encoded.append((ids, [next(ends)[len(ids) :] for _ in given]))
        if not all(encoded[-1][1]):
            raise ValueError(f"An option of {prompt[-60:]!r} adds no token to it: {given}.")
        if (size := len(ids) + max(map(len, encoded[-1][1]))) > model.config.max_position_embeddings:
            raise ValueError(f"{size} tokens exceed the context of {model.config.max_position_embeddings}: {prompt!r}.")
    shared = shared_prefix([ids for ids, _ in encoded])
    if shared:
        first = torch.tensor([encoded[0][0][:shared]], device=model.device)
        prefix = model(first, use_cache=True, logits_to_keep=1).past_key_values
    encoded = [(ids[shared:], texts) for ids, texts in encoded]
    order = sorted(range(len(prompts)), key=lambda i: (max(map(len, encoded[i][1])), len(encoded[i][0])))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        longest = max(len(encoded[i][0]) for i in part)
        ids = torch.tensor([[0] * (longest - len(encoded[i][0])) + encoded[i][0] for i in part])
        mask = [[1] * shared + [0] * (longest - len(encoded[i][0])) + [1] * len(encoded[i][0]) for i in part]
        mask = torch.tensor(mask)
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        inputs = dict(input_ids=ids, attention_mask=mask, position_ids=places)
        inputs = {name: t.to(model.device) for name, t in inputs.items()}
        past = deepcopy(prefix) if shared else None
        if shared:
            past.batch_repeat_interleave(len(part))
        read = model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
        # one row an option, padded on the right: (options of the part, longest option)
        row = torch.tensor([r for r, i in enumerate(part) for _ in encoded[i][1]], device=model.device)
        texts = [option for i in part for option in encoded[i][1]]
        wide = max(map(len, texts))
        ids = torch.tensor([text + [0] * (wide - len(text)) for text in texts], device=model.device)
        cache = read.past_key_values
        cache.batch_select_indices(row)
        mask = torch.cat([inputs["attention_mask"][row], torch.ones_like(ids)], dim=1)
        places = inputs["position_ids"][row, -1:] + 1 + torch.arange(wide, device=model.device)
        logits = model(ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True).logits
        logits = torch.cat([read.logits[row], logits], dim=1).float()  # (options, 1 + longest, vocabulary)
        chosen = logits.argmax(-1)
        found = logits[:, :-1].gather(-1, ids[..., None])[..., 0] - logits[:, :-1].logsumexp(-1)
        same = chosen[:, :-1] == ids
        for k, (r, text) in enumerate(zip(row.tolist(), texts, strict=True)):
            n = len(text)
            score = dict(logprob=found[k, :n].sum().item(), tokens=n, greedy=same[k, :n].all().item())
            scores[part[r]].append(score | dict(next=chosen[k, n].item()))
    return scores


def picks(scores: list[list[dict]], items: list[dict]) -> np.ndarray:
    """Whether each item's right option has the highest score, from `score_options`: (items, 2), 0 or 1.

    The two scores are lm-evaluation-harness's. acc: log p(option). acc_norm: log p(option) / its number of characters.
    """
    right = []
    for found, item in zip(scores, items, strict=True):
        logprobs = np.array([score["logprob"] for score in found])
        lengths = [len(option) for option in item["options"]]
        right.append([np.argmax(by) == item["answer"] for by in (logprobs, logprobs / lengths)])
    return np.array(right, dtype=float)


def score_choices(model: PreTrainedModel, tokenizer, items: list[dict], rows: int = 16) -> tuple[float, float]:
    """Multiple choice by likelihood: (acc, acc_norm), as lm-evaluation-harness gives them.

    An item is a dict: prompt, options (texts that go behind the prompt, after a space) and answer (the right one's index).
    """
    prompts, options = [i["prompt"] for i in items], [[f" {o}" for o in i["options"]] for i in items]
    acc, acc_norm = picks(score_options(model, tokenizer, prompts, options, rows), items).mean(0)
    return float(acc), float(acc_norm)


def choice_probabilities(
    model: PreTrainedModel, tokenizer, prompts: list[str], options: list[list[str]]
) -> list[np.ndarray]:
    """How a model shares its belief among the options of each prompt: for each an array (options,) that sums to 1."""
    found = score_options(model, tokenizer, prompts, options)
    logprobs = [torch.tensor([score["logprob"] for score in scores]) for scores in found]
    return [values.softmax(-1).numpy() for values in logprobs]


def beliefs(model: PreTrainedModel, tokenizer, items: list[dict], form: str = "text") -> list[dict]:
    """How sure a model is of multiple-choice answers: dicts with sure (its probability for its own answer) and right.

    An item has question, options and answer (a place). "text": the options' words follow the question; "letter": they stand
    in it, and A, B, C ... follow.
    """
    letters = [[f" {'ABCDEFGH'[i]}" for i in range(len(item["options"]))] for item in items]
    asked = [f"Question: {item['question']}\n" for item in items]
    if form == "letter":
        lines = [zip(names, item["options"], strict=True) for names, item in zip(letters, items, strict=True)]
        asked = [q + "".join(f"{n[1:]}. {o}\n" for n, o in pairs) for q, pairs in zip(asked, lines, strict=True)]
    options = letters if form == "letter" else [[f" {o}" for o in item["options"]] for item in items]
    found = choice_probabilities(model, tokenizer, [q + "Answer:" for q in asked], options)
    return [
        dict(item=i, sure=round(float(p.max()), 4), right=bool(p.argmax() == item["answer"]))
        for i, (item, p) in enumerate(zip(items, found, strict=True))
    ]


# ---- Overlap with a reference ---------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words that ROUGE counts: runs of letters and digits, in small letters (Korean ones too, unlike rouge-score)."""
    return re.findall(r"[^\W_]+", text.lower())


def _f1(shared: int, written: int, wanted: int) -> float:
    return 2 * shared / (written + wanted) if shared else 0.0


def rouge_n(prediction: str, reference: str, n: int = 1) -> float:
    """ROUGE-n (Lin 2004): the F1 of shared n-grams, each counted as often as in the text that has it less often."""
    grams = [Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in map(words, (prediction, reference))]
    return _f1((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


def rouge_l(a: str, b: str) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words, the same for (b, a).

    One bit a word of `a` and a few operations for each of `b` (Hyyrö 2004), so that all pairs of a data set can be compared.
    """
    a, b = words(a), words(b)
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = (1 << len(a)) - 1
    for word in b:
        match = row & places.get(word, 0)
        row = (row + match) | (row - match)
    return _f1(len(a) - (row & ((1 << len(a)) - 1)).bit_count(), len(a), len(b))


# ---- Arenas ---------------------------------------------------------------------------------------------------------

ELO = 400 / math.log(10)  # a rating's points for a nat: ten to one is 400 points


def strengths(wins: np.ndarray) -> np.ndarray:
    """Bradley and Terry's strengths in nats, mean 0: wins (models, models), [i, j] how often i beat j -> (models,).

    The maximum of the likelihood, by Newton's method. Raises ValueError where there is none: some models never lose to the others.
    """
    wins = np.asarray(wins, dtype=float)
    m = len(wins)
    reach = np.linalg.matrix_power((wins > 0) + np.eye(m), m) > 0
    if not reach.all():
        raise ValueError("Some models have won or lost every vote against the others: their ratings are infinite.")
    theta, votes = np.zeros(m), wins + wins.T
    for _ in range(100):
        p = 1 / (1 + np.exp(theta[None] - theta[:, None]))  # [i, j]: i beats j
        gradient, weight = (wins - votes * p).sum(1), votes * p * (1 - p)
        step = np.linalg.solve(np.diag(weight.sum(1)) - weight + 1 / m, gradient)  # + 1/m: fixes the mean at 0
        theta = theta + step / max(1, np.abs(step).max())
        if np.abs(step).max() < 1e-10:
            break
    return theta - theta.mean()


def bradley_terry_ratings(battles, prior: float = 0.0) -> dict[str, float]:
    """Ratings on Elo's scale, mean 1000, the best first: battles (a, b, score), score 1 where a won, 0 where b did, 0.5 a tie.

    `prior`: draws added between any two models, so that one which never lost has a rating too.
    """
    names = sorted({name for a, b, _ in battles for name in (a, b)})
    wins = np.full((len(names), len(names)), prior / 2) - np.eye(len(names)) * prior / 2
    for a, b, score in battles:
        i, j = names.index(a), names.index(b)
        wins[i, j] += score
        wins[j, i] += 1 - score
    ratings = dict(zip(names, (1000 + ELO * strengths(wins)).tolist(), strict=True))
    return dict(sorted(ratings.items(), key=lambda pair: -pair[1]))


def elo(battles, k: float = 16.0) -> dict[str, float]:
    """Elo's ratings after these battles, in their order: each moves winner and loser by k times the surprise."""
    ratings: dict[str, float] = {}
    for a, b, score in battles:
        x, y = ratings.setdefault(a, 1000.0), ratings.setdefault(b, 1000.0)
        move = k * (score - 1 / (1 + 10 ** ((y - x) / 400)))
        ratings[a], ratings[b] = x + move, y - move
    return ratings


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that at least one of k solutions passes, where `passed` of `samples` did: unbiased (Chen et al. 2021)."""
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and the number of samples, {samples}; it is {k}.")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
