"""Score texts and say how sure a score is."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel


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
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
        scores.append(-loss)
    return torch.cat(scores)


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
