"""Score texts and say how sure a score is."""

import math
from collections.abc import Callable

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


@torch.inference_mode()
def score_options(
    model: PreTrainedModel, tokenizer, prompts: list[str], options: list[list[str]], rows: int = 32
) -> list[list[dict]]:
    """What the model gives every possible continuation of every prompt; for each prompt a list of dicts, one an option.

    An option begins with its space (" Paris"). logprob: of the whole option, in nats. tokens: its length. greedy: whether
    it is what greedy decoding writes. next: the token that greedy decoding writes after it.
    Prompts of about the same length are read together, `rows` at a time, each once for all of its options (their keys and
    values are kept). Tokens are split between prompt and option as lm-evaluation-harness does.
    Raises ValueError for an option without tokens, or a text longer than the model's context.
    """
    scores: list[list[dict]] = [[] for _ in prompts]
    encoded = []
    for prompt, given in zip(prompts, options, strict=True):
        ids = tokenizer(prompt).input_ids
        encoded.append((ids, [tokenizer(prompt + option).input_ids[len(ids) :] for option in given]))
        if not all(encoded[-1][1]):
            raise ValueError(f"An option of {prompt[-60:]!r} adds no token to it: {given}.")
        if (size := len(ids) + max(map(len, encoded[-1][1]))) > model.config.max_position_embeddings:
            raise ValueError(f"{size} tokens exceed the context of {model.config.max_position_embeddings}: {prompt!r}.")
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i][0]))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        longest = max(len(encoded[i][0]) for i in part)
        ids = torch.tensor([[0] * (longest - len(encoded[i][0])) + encoded[i][0] for i in part])
        mask = torch.tensor([[0] * (longest - len(encoded[i][0])) + [1] * len(encoded[i][0]) for i in part])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs = dict(input_ids=ids, attention_mask=mask, position_ids=places)
        inputs = {name: t.to(model.device) for name, t in inputs.items()}
        read = model(**inputs, use_cache=True, logits_to_keep=1)
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


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L."""
    import re

    a, b = (re.findall(r"[a-z0-9]+", t.lower()) for t in (candidate, reference))
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            row[j], before = (before + 1 if word == other else max(row[j], row[j - 1])), row[j]
    return 2 * row[-1] / (len(a) + len(b))
