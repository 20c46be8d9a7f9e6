"""The exercises of notebooks/06_decoding.ipynb."""

import torch
from torch import Tensor

from utils.exercises import _logits, exercise, mistake

# Temperature ----------------------------------------------------------------------------------------------------------


@exercise(lambda: [(_logits(1, 4), 0.5), (_logits(2, 5, seed=1), 2.0), (_logits(3, 8, seed=2), 1.3)])
def temperature(logits, temperature):
    return (logits / temperature).softmax(-1)


@mistake("temperature", "You multiply by the temperature: a high temperature must flatten the distribution, so divide.")
def _(logits, temperature):
    return (logits * temperature).softmax(-1)


@mistake("temperature", "You return logits: turn them into probabilities with softmax.")
def _(logits, temperature):
    return logits / temperature


@mistake("temperature", "The temperature has no effect yet: divide the logits by it before the softmax.")
def _(logits, temperature):
    return logits.softmax(-1)


@mistake(
    "temperature", "You divide after the softmax: the row no longer sums to 1. Divide the logits, then take softmax."
)
def _(logits, temperature):
    return logits.softmax(-1) / temperature


@mistake("temperature", "Your softmax runs over the batch (dim 0): it must run over the vocabulary (dim -1).")
def _(logits, temperature):
    return (logits / temperature).softmax(0)


@mistake("temperature", "You return log-probabilities: use softmax, not log_softmax.")
def _(logits, temperature):
    return (logits / temperature).log_softmax(-1)


# Top-k ----------------------------------------------------------------------------------------------------------------


@exercise(lambda: [(_logits(1, 6), 2), (_logits(3, 7, seed=1), 3), (_logits(2, 20, seed=2), 1)])
def top_k(logits, k):
    smallest = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def _keep(logits: Tensor, k: int, largest: bool = True) -> Tensor:
    index = logits.topk(k, largest=largest).indices
    return torch.full_like(logits, -torch.inf).scatter(-1, index, logits.gather(-1, index))


@mistake("top_k", "You keep the k least likely tokens: keep the k largest logits.")
def _(logits, k):
    return _keep(logits, k, largest=False)


@mistake("top_k", "You keep one token too many: the k-th largest logit is the last one that stays.")
def _(logits, k):
    return _keep(logits, k + 1)


@mistake("top_k", "You keep one token too few: the k-th largest logit itself must stay (compare with <, not <=).")
def _(logits, k):
    return logits.masked_fill(logits <= logits.topk(k).values[:, -1:], -torch.inf)


@mistake("top_k", "A cut token still has a chance: after softmax a logit of 0 is not a probability of 0. Use -inf.")
def _(logits, k):
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], 0.0)


@mistake("top_k", "One threshold serves the whole batch: each row needs the k-th largest of its own logits.")
def _(logits, k):
    return logits.masked_fill(logits < logits.flatten().topk(k).values[-1], -torch.inf)


@mistake("top_k", "You return the k values only: keep the shape (batch, vocabulary), with -inf where a token is cut.")
def _(logits, k):
    return logits.topk(k).values


# Nucleus (top-p) ------------------------------------------------------------------------------------------------------


@exercise(lambda: [(_logits(1, 6), 0.7), (_logits(3, 7, seed=1), 0.9), (_logits(2, 20, seed=2), 0.5)])
def nucleus(logits, p):
    probabilities, order = logits.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    cut = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(cut, -torch.inf)


def _cut(logits: Tensor, order: Tensor, cut: Tensor, fill: float = -torch.inf) -> Tensor:
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), fill)


@mistake("nucleus", "You drop the token that takes the sum across p: with it the set holds at least p, so it stays.")
def _(logits, p):
    probabilities, order = logits.softmax(-1).sort(descending=True)
    cut = probabilities.cumsum(-1) > p
    return _cut(logits, order, cut)


@mistake("nucleus", "You cut the nucleus and keep the tail: turn the comparison around.")
def _(logits, p):
    probabilities, order = logits.softmax(-1).sort(descending=True)
    return _cut(logits, order, probabilities.cumsum(-1) - probabilities < p)


@mistake("nucleus", "Your mask is in sorted order but the logits are not: scatter it back to the vocabulary's order.")
def _(logits, p):
    probabilities = logits.softmax(-1).sort(descending=True).values
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -torch.inf)


@mistake("nucleus", "You sort from the least likely token up: the nucleus starts with the likeliest (descending=True).")
def _(logits, p):
    probabilities, order = logits.softmax(-1).sort()
    return _cut(logits, order, probabilities.cumsum(-1) - probabilities >= p)


@mistake("nucleus", "You sum logits, not probabilities: take the softmax first.")
def _(logits, p):
    values, order = logits.sort(descending=True)
    return _cut(logits, order, values.cumsum(-1) - values >= p)


@mistake("nucleus", "You keep the tokens whose own probability is at least p: it is their running sum that counts.")
def _(logits, p):
    return logits.masked_fill(logits.softmax(-1) < p, -torch.inf)


@mistake("nucleus", "A cut token still has a chance: after softmax a logit of 0 is not a probability of 0. Use -inf.")
def _(logits, p):
    probabilities, order = logits.softmax(-1).sort(descending=True)
    return _cut(logits, order, probabilities.cumsum(-1) - probabilities >= p, 0.0)


# One step of beam search ----------------------------------------------------------------------------------------------


def _beams() -> list[tuple]:
    """Beams with scores that matter, one of which holds most of the best continuations."""
    return [
        (torch.tensor([-1.0, -2.0]), _logits(2, 5, seed=3).log_softmax(-1)),
        (torch.tensor([-4.0, -0.5, -1.0]), _logits(3, 7, seed=4).log_softmax(-1)),
        (torch.tensor([-0.1, -3.0, -0.2, -2.0]), _logits(4, 9, seed=5).log_softmax(-1)),
    ]


@exercise(_beams)
def beam_step(scores, log_probs):
    total = scores[:, None] + log_probs
    best, index = total.flatten().topk(len(scores))
    return best, index // log_probs.shape[1], index % log_probs.shape[1]


@mistake("beam_step", "You forget the scores that the beams already have: add them to the new log-probabilities.")
def _(scores, log_probs):
    best, index = log_probs.flatten().topk(len(scores))
    return best, index // log_probs.shape[1], index % log_probs.shape[1]


@mistake("beam_step", "You take the best token of every beam: the beams compete, so take the best over all of them.")
def _(scores, log_probs):
    best, token = (scores[:, None] + log_probs).max(-1)
    return best, torch.arange(len(scores)), token


@mistake("beam_step", "Beam and token are swapped: the beam is index // vocabulary, the token index % vocabulary.")
def _(scores, log_probs):
    best, index = (scores[:, None] + log_probs).flatten().topk(len(scores))
    return best, index % log_probs.shape[1], index // log_probs.shape[1]


@mistake(
    "beam_step", "You divide by the number of beams: the index runs over the vocabulary first, so divide by its size."
)
def _(scores, log_probs):
    best, index = (scores[:, None] + log_probs).flatten().topk(len(scores))
    return best, index // len(scores), index % len(scores)


@mistake("beam_step", "You keep the least likely continuations: the largest sums of log-probabilities are the best.")
def _(scores, log_probs):
    best, index = (scores[:, None] + log_probs).flatten().topk(len(scores), largest=False)
    return best, index // log_probs.shape[1], index % log_probs.shape[1]


@mistake("beam_step", "You multiply log-probabilities: probabilities multiply, their logarithms add.")
def _(scores, log_probs):
    best, index = (scores[:, None] * log_probs).flatten().topk(len(scores))
    return best, index // log_probs.shape[1], index % log_probs.shape[1]
