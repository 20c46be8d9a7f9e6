"""The exercises of notebooks/08_evaluation.ipynb."""

import math

import numpy as np
import torch
from torch import Tensor

from utils.exercises import exercise, mistake

# ROUGE-1 --------------------------------------------------------------------------------------------------------------


def _sentences() -> list[tuple]:
    """A prediction and a reference: repeated words, capital letters, different lengths, nothing shared."""
    pairs = [("The cat sat on the mat", "the cat lay on the mat"), ("the the the dog", "the dog ran to the old house")]
    return [*pairs, ("a b c", "d e"), ("It rains in Busan Busan", "In Busan it rains today and tomorrow")]


def _shared(prediction: str, reference: str, clip=min, lower=True) -> tuple[float, float]:
    """(precision, recall) of the shared words; `clip`(count in the prediction, count in the reference)."""
    a, b = (text.lower().split() if lower else text.split() for text in (prediction, reference))
    shared = sum(clip(a.count(word), b.count(word)) for word in set(a) & set(b))
    return shared / len(a), shared / len(b)


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@exercise(_sentences)
def rouge_1(prediction, reference):
    return _harmonic(*_shared(prediction, reference))


@mistake("rouge_1", "This is the precision: ROUGE-1 is the F1 of precision and recall.")
def _(prediction, reference):
    return _shared(prediction, reference)[0]


@mistake("rouge_1", "This is the recall: ROUGE-1 here is the F1 of precision and recall.")
def _(prediction, reference):
    return _shared(prediction, reference)[1]


@mistake("rouge_1", "You take the plain mean of precision and recall: F1 is the harmonic one, 2 P R / (P + R).")
def _(prediction, reference):
    return sum(_shared(prediction, reference)) / 2


@mistake("rouge_1", "A repeated word counts too often: at most as often as the other text has it.")
def _(prediction, reference):
    a, b = prediction.lower().split(), reference.lower().split()
    return _harmonic(sum(word in b for word in a) / len(a), sum(word in a for word in b) / len(b))


@mistake("rouge_1", "You count different words only: a word that both texts have twice counts twice.")
def _(prediction, reference):
    a, b = set(prediction.lower().split()), set(reference.lower().split())
    return _harmonic(len(a & b) / len(a), len(a & b) / len(b))


@mistake("rouge_1", "Capital letters must not matter.")
def _(prediction, reference):
    return _harmonic(*_shared(prediction, reference, lower=False))


# The bootstrap --------------------------------------------------------------------------------------------------------


def _resampled() -> list[tuple]:
    """Values (n,), the drawn places (resamples, n) and the level."""
    rng = np.random.default_rng(0)
    values = rng.gamma(1.0, 2.0, 40)
    return [(values, rng.integers(40, size=(300, 40)), 0.95), (values[:9] - 3, rng.integers(9, size=(200, 9)), 0.8)]


def _tails(values, level: float) -> tuple[float, float]:
    return tuple(float(x) for x in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))


@exercise(_resampled)
def bootstrap_interval(values, draws, level):
    return _tails(values[draws].mean(1), level)


@mistake("bootstrap_interval", "These are quantiles of the values themselves: take those of the resampled means.")
def _(values, draws, level):
    return _tails(values, level)


@mistake("bootstrap_interval", "You average over the resamples (axis 0): each resample, a row, has a mean of its own.")
def _(values, draws, level):
    return _tails(values[draws].mean(0), level)


@mistake("bootstrap_interval", "Each tail is too wide: cut (1 - level) / 2 on each side, not 1 - level.")
def _(values, draws, level):
    means = values[draws].mean(1)
    return float(np.quantile(means, 1 - level)), float(np.quantile(means, level))


@mistake("bootstrap_interval", "You average the drawn places, not the values that stand there: values[draws].")
def _(values, draws, level):
    return _tails(draws.mean(1), level)


@mistake("bootstrap_interval", "Low and high are swapped.")
def _(values, draws, level):
    return _tails(values[draws].mean(1), level)[::-1]


@mistake(
    "bootstrap_interval",
    "This is the normal approximation: take quantiles of the resampled means, whatever their shape.",
)
def _(values, draws, level):
    means = values[draws].mean(1)
    reach = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64))) * means.std()
    return values.mean() - reach, values.mean() + reach


# Fit Bradley and Terry's model ----------------------------------------------------------------------------------------


def _tournaments() -> list[tuple]:
    """wins (models, models): [i, j] how often i beat j; nobody is unbeaten, and some pairs never met."""
    one = torch.tensor([[0, 7, 9, 4], [3, 0, 6, 0], [1, 4, 0, 5], [2, 0, 3, 0]])
    return [(one.double(),), (torch.tensor([[0, 30, 2], [10, 0, 9], [1, 12, 0]]).double(),)]


def _ratings(wins: Tensor, rounds: int = 2000) -> Tensor:
    """Zermelo's iteration (1929): strengths, their geometric mean 1."""
    votes, p = wins + wins.T, torch.ones(len(wins), dtype=torch.float64)
    for _ in range(rounds):
        p = wins.sum(1) / (votes / (p[:, None] + p)).sum(1)
        p = p / p.log().mean().exp()
    return p


@exercise(_tournaments)
def bradley_terry_fit(wins):
    return _ratings(wins).log()


@mistake("bradley_terry_fit", "The table is read the wrong way round: wins[i, j] says how often i beat j.")
def _(wins):
    return _ratings(wins.T).log()


@mistake(
    "bradley_terry_fit",
    "These are the log-odds of each model's wins, whoever it met: a win over a strong one must count more.",
)
def _(wins):
    odds = (wins.sum(1) / wins.sum(0)).log()
    return odds - odds.mean()


@mistake("bradley_terry_fit", "The ratings' mean must be 0: only their differences are determined.")
def _(wins):
    return _ratings(wins).log() - _ratings(wins).log()[0]


@mistake("bradley_terry_fit", "These are strengths, not ratings: take their logarithm.")
def _(wins):
    return _ratings(wins)


@mistake("bradley_terry_fit", "One round is not enough: repeat until nothing changes.")
def _(wins):
    return _ratings(wins, 1).log()


@mistake("bradley_terry_fit", "These are points on Elo's scale: the ratings are asked in nats.")
def _(wins):
    return _ratings(wins).log() * 400 / math.log(10)
