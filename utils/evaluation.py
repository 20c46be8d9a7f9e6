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
