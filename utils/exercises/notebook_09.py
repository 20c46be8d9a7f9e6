"""The exercises of notebooks/09_applications_and_limits.ipynb."""

import math

import torch
from torch import Tensor

from utils.exercises import _logits, exercise, mistake

# Retrieve by embedding ------------------------------------------------------------------------------------------------


def _passages() -> list[tuple]:
    """A query (width,), passages (n, width) of different lengths, and how many to find."""
    drawn, lengths = _logits(9, 4, seed=9), torch.tensor([0.1, 5, 1, 3, 0.5, 9, 2, 0.3])
    query, passages = drawn[0], drawn[1:]
    return [(query, lengths[:, None] * passages, 3), (passages[0], passages, 2), (-query, passages, 1)]


def _cosines(query: Tensor, passages: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(passages, query[None], dim=1)


@exercise(_passages)
def retrieve(query, passages, k):
    return _cosines(query, passages).topk(k).indices


@mistake("retrieve", "You compare by the dot product alone: a long vector wins then; divide by both lengths.")
def _(query, passages, k):
    return (passages @ query).topk(k).indices


@mistake("retrieve", "The order is turned around: the most similar passage comes first.")
def _(query, passages, k):
    return (-_cosines(query, passages)).topk(k).indices


@mistake("retrieve", "You found the right passages but list the least similar of them first.")
def _(query, passages, k):
    return _cosines(query, passages).topk(k).indices.flip(0)


@mistake("retrieve", "You return the similarities: return the places of the passages.")
def _(query, passages, k):
    return _cosines(query, passages).topk(k).values


@mistake("retrieve", "You return every passage: only the first k.")
def _(query, passages, k):
    return _cosines(query, passages).argsort(descending=True)


@mistake("retrieve", "You normalise along the wrong axis: each passage, a row, is to have length 1 (dim=1).")
def _(query, passages, k):
    return (torch.nn.functional.normalize(passages, dim=0) @ query).topk(k).indices


@mistake("retrieve", "You take the nearest by distance: the direction counts, not the length, so use the cosine.")
def _(query, passages, k):
    return (passages - query).norm(dim=1).topk(k, largest=False).indices


# The watermark's z-score ----------------------------------------------------------------------------------------------


def _green() -> list[tuple]:
    """Which tokens of a text are green, and the share of the vocabulary that is."""
    drawn = torch.rand(200, generator=torch.Generator().manual_seed(0))
    return [(drawn < 0.5, 0.25), (drawn[:30] < 0.25, 0.25), (drawn[:64] < 0.8, 0.5)]


@exercise(_green)
def watermark_z(green, gamma):
    n = len(green)
    return (green.sum().item() - gamma * n) / math.sqrt(n * gamma * (1 - gamma))


@mistake("watermark_z", "You divide by the variance: divide by its square root.")
def _(green, gamma):
    n = len(green)
    return (green.sum().item() - gamma * n) / (n * gamma * (1 - gamma))


@mistake("watermark_z", "You expect half of the tokens to be green: without a watermark it is the share gamma.")
def _(green, gamma):
    n = len(green)
    return (green.sum().item() - n / 2) / math.sqrt(n * gamma * (1 - gamma))


@mistake("watermark_z", "Nothing is subtracted: what counts is how many more are green than chance gives, gamma n.")
def _(green, gamma):
    return green.sum().item() / math.sqrt(len(green) * gamma * (1 - gamma))


@mistake(
    "watermark_z",
    "You mix a share with the deviation of a count: for the share, divide by sqrt(gamma (1 - gamma) / n).",
)
def _(green, gamma):
    return (green.float().mean().item() - gamma) / math.sqrt(len(green) * gamma * (1 - gamma))


@mistake("watermark_z", "The number of tokens is missing under the root: the deviation of a count grows with sqrt(n).")
def _(green, gamma):
    return (green.sum().item() - gamma * len(green)) / math.sqrt(gamma * (1 - gamma))


@mistake("watermark_z", "The variance of a yes-or-no draw is gamma (1 - gamma), not gamma.")
def _(green, gamma):
    return (green.sum().item() - gamma * len(green)) / math.sqrt(len(green) * gamma)


@mistake("watermark_z", "The sign is turned around: more green tokens than expected give a positive score.")
def _(green, gamma):
    n = len(green)
    return (gamma * n - green.sum().item()) / math.sqrt(n * gamma * (1 - gamma))
