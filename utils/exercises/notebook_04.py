"""The exercises of notebooks/04_reward_modeling.ipynb."""

import numpy as np
import torch
from torch import Tensor

from utils.exercises import _logits, exercise, mistake

# The Bradley-Terry loss -----------------------------------------------------------------------------------------------


def _rewards() -> list[tuple]:
    """Rewards of preferred and other replies; the last pair of examples needs a stable logarithm."""
    chosen, rejected = _logits(2, 5, seed=6)
    return [
        (chosen, rejected),
        (chosen[:2] - 1, rejected[:2]),
        (torch.tensor([-200.0, 1.0]), torch.tensor([200.0, 0.0])),
    ]


@exercise(_rewards)
def bradley_terry(chosen, rejected):
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


@mistake("bradley_terry", "Chosen and rejected are swapped: the loss must fall when the chosen reply's reward rises.")
def _(chosen, rejected):
    return -torch.nn.functional.logsigmoid(rejected - chosen).mean()


@mistake("bradley_terry", "The sign is missing: a loss is the negative logarithm, so it is never below 0.")
def _(chosen, rejected):
    return torch.nn.functional.logsigmoid(chosen - rejected).mean()


@mistake("bradley_terry", "You return the mean probability: take its logarithm, and minus that.")
def _(chosen, rejected):
    return torch.sigmoid(chosen - rejected).mean()


@mistake("bradley_terry", "You average the probabilities first: average the logarithms, one for each pair.")
def _(chosen, rejected):
    return -torch.sigmoid(chosen - rejected).mean().log()


@mistake("bradley_terry", "You sum over the pairs: take the mean, or the learning rate would depend on their number.")
def _(chosen, rejected):
    return -torch.nn.functional.logsigmoid(chosen - rejected).sum()


@mistake("bradley_terry", "You return a loss for each pair: take the mean over the pairs.")
def _(chosen, rejected):
    return -torch.nn.functional.logsigmoid(chosen - rejected)


@mistake(
    "bradley_terry", "You push each reward by itself: only the difference of a pair's two rewards means something."
)
def _(chosen, rejected):
    log = torch.nn.functional.logsigmoid
    return -(log(chosen) + log(-rejected)).mean()


@mistake(
    "bradley_terry",
    "sigmoid of -400 is 0 in the computer, and its logarithm -inf: use logsigmoid, which never overflows.",
)
def _(chosen, rejected):
    return -torch.sigmoid(chosen - rejected).log().mean()


# Pairs from a ranking -------------------------------------------------------------------------------------------------


@exercise(lambda: [([2, 0, 1],), ([3, 1, 0, 2],), ([1, 0],)])
def pairs_from_ranking(ranking):
    return [(better, worse) for i, better in enumerate(ranking) for worse in ranking[i + 1 :]]


@mistake("pairs_from_ranking", "Each pair is turned around: the better reply comes first.")
def _(ranking):
    return [(worse, better) for i, better in enumerate(ranking) for worse in ranking[i + 1 :]]


@mistake(
    "pairs_from_ranking",
    "You pair neighbours only: a ranking says how any two of its replies compare, K (K - 1) / 2 pairs.",
)
def _(ranking):
    return list(zip(ranking, ranking[1:], strict=False))


@mistake("pairs_from_ranking", "You pair the best with the others only: the others are ranked among themselves, too.")
def _(ranking):
    return [(ranking[0], worse) for worse in ranking[1:]]


@mistake("pairs_from_ranking", "You pair a reply with itself: let the second index begin one further.")
def _(ranking):
    return [(better, worse) for i, better in enumerate(ranking) for worse in ranking[i:]]


@mistake("pairs_from_ranking", "Both orders of every pair are in your list: the better one first, once.")
def _(ranking):
    return [(a, b) for a in ranking for b in ranking if a != b]


@mistake(
    "pairs_from_ranking",
    "You return places in the ranking, or sort it: its own order says which reply is better, return the replies' numbers.",
)
def _(ranking):
    return [(i, j) for i in range(len(ranking)) for j in range(i + 1, len(ranking))]


# Agreement between labellers ------------------------------------------------------------------------------------------


def _votes() -> list[tuple]:
    """Votes (comparisons, labellers): 1 or 2 for the preferred reply, 0 where somebody was not asked."""
    return [
        (torch.tensor([[1, 1, 2], [2, 2, 2], [1, 2, 0], [0, 1, 1], [2, 0, 0]]),),
        (torch.tensor([[1, 1], [2, 1], [2, 2], [0, 2], [1, 2], [1, 1]]),),
        (torch.tensor([[1, 2, 2, 1], [0, 0, 1, 1], [2, 1, 0, 1]]),),
    ]


def _agreement(votes: Tensor, missing=False, itself=False, each=False, first=False) -> float:
    """The exercise, with a mistake in it."""
    same, number = [], []
    for row in votes.tolist():
        pairs = [(i, j) for i in range(len(row)) for j in range(len(row)) if (i < j or itself)]
        pairs = [(i, j) for i, j in pairs if missing or (row[i] and row[j])]
        if first:
            pairs = [pair for pair in pairs if pair == (0, 1)]
        same.append(sum(row[i] == row[j] for i, j in pairs))
        number.append(len(pairs))
    if each:
        return float(np.mean([s / n for s, n in zip(same, number, strict=True) if n]))
    return sum(same) / sum(number)


@exercise(_votes)
def agreement(votes):
    first, second = torch.combinations(torch.arange(votes.shape[1])).T
    a, b = votes[:, first], votes[:, second]
    both = (a > 0) & (b > 0)
    return ((a == b) & both).sum().item() / both.sum().item()


@mistake("agreement", "Who was not asked (0) counts: leave out pairs of labellers of whom one gave no vote.")
def _(votes):
    return _agreement(votes, missing=True)


@mistake("agreement", "You divide by all pairs: divide by those of whom both voted.")
def _(votes):
    pairs = len(votes) * votes.shape[1] * (votes.shape[1] - 1) / 2
    voted = sum(sum(bool(i) for i in row) * (sum(bool(i) for i in row) - 1) / 2 for row in votes.tolist())
    return _agreement(votes) * voted / pairs


@mistake(
    "agreement", "You compare every labeller with himself too, who always agrees: only pairs of two different ones."
)
def _(votes):
    return _agreement(votes, itself=True)


@mistake("agreement", "You average within each comparison first: count all pairs of votes together.")
def _(votes):
    return _agreement(votes, each=True)


@mistake("agreement", "You compare the first two labellers only: take all pairs of labellers.")
def _(votes):
    return _agreement(votes, first=True)


@mistake("agreement", "You count the comparisons on which all agree: count pairs of labellers.")
def _(votes):
    return float(np.mean([len({vote for vote in row if vote}) == 1 for row in votes.tolist()]))


@mistake("agreement", "You return the share that disagrees: 1 minus it.")
def _(votes):
    return 1 - _agreement(votes)


@mistake("agreement", "You return a count: divide by the number of pairs of votes.")
def _(votes):
    return float(((votes[:, :, None] == votes[:, None]) & (votes[:, :, None] > 0)).triu(1).sum())
