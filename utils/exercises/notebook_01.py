"""The exercises of notebooks/01_foundation_models.ipynb."""

import math

import torch
from torch import Tensor

from utils.exercises import _logits, exercise, mistake

# The causal mask ------------------------------------------------------------------------------------------------------


def _texts() -> list[tuple]:
    """Which tokens are text and which padding, (batch, tokens): padding left, right, on both sides and nowhere."""
    rows = [
        [[0, 1, 1, 1], [1, 1, 1, 0]],
        [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]],
        [[1, 1, 1]],
    ]
    return [(torch.tensor(row, dtype=torch.bool),) for row in rows]


def _allowed(real: Tensor, shift: int = 0) -> Tensor:
    past = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril(shift)
    return past & real[:, None, :]


@exercise(_texts)
def causal_mask(real):
    return _allowed(real)


@mistake("causal_mask", "Your mask lets position 1 see position 2: no position may see a later one.")
def _(real):
    return _allowed(real, shift=1)


@mistake("causal_mask", "A position does not see itself in your mask: it must, the diagonal belongs to it.")
def _(real):
    return _allowed(real, shift=-1)


@mistake("causal_mask", "Your mask is upside down: row i is the position that looks, and it sees j with j <= i.")
def _(real):
    return torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).triu() & real[:, None, :]


@mistake("causal_mask", "The padding can be seen: only where `real[b, j]` is true is there anything to look at.")
def _(real):
    return _allowed(torch.ones_like(real))


@mistake(
    "causal_mask",
    "You use `real` for the rows: it is the position that is looked at, j, that must not be padding (real[:, None, :]).",
)
def _(real):
    return _allowed(torch.ones_like(real)) & real[:, :, None]


@mistake("causal_mask", "Every position sees the whole text, the later tokens too: only j <= i is allowed.")
def _(real):
    return real[:, None, :].expand(-1, real.shape[1], -1)


@mistake("causal_mask", "True and false are swapped: true is what a position may see.")
def _(real):
    return ~_allowed(real)


# Scaled dot-product attention -----------------------------------------------------------------------------------------


def _queries() -> list[tuple]:
    """Queries, keys and values (batch, heads, tokens, size) with a mask (batch, tokens, tokens)."""
    found = []
    for seed, (batch, heads, size), (real,) in zip(range(2), [(2, 2, 3), (3, 1, 5)], _texts()[:2], strict=True):
        q, k, v = (_logits(batch, heads, real.shape[1], size, seed=3 * seed + i) for i in range(3))
        allowed = _allowed(real) | torch.eye(real.shape[1], dtype=torch.bool)  # every position sees something
        found.append((q, k, v, allowed))
    return found


def _weights(q: Tensor, k: Tensor, allowed: Tensor, scale: float, axis: int = -1, fill: float = -torch.inf) -> Tensor:
    return ((q @ k.mT) * scale).masked_fill(~allowed[:, None], fill).softmax(axis)


@exercise(_queries)
def attention(q, k, v, allowed):
    return _weights(q, k, allowed, q.shape[-1] ** -0.5) @ v


@mistake("attention", "The scores are not scaled: divide them by the square root of the size of a head.")
def _(q, k, v, allowed):
    return _weights(q, k, allowed, 1.0) @ v


@mistake("attention", "You divide by the size of a head: it is its square root.")
def _(q, k, v, allowed):
    return _weights(q, k, allowed, 1 / q.shape[-1]) @ v


@mistake("attention", "You scale by the number of tokens: it is the size of a head, q's last dimension, that counts.")
def _(q, k, v, allowed):
    return _weights(q, k, allowed, q.shape[-2] ** -0.5) @ v


@mistake("attention", "softmax runs over the wrong axis: over the positions looked at, the last, each row sums to 1.")
def _(q, k, v, allowed):
    return _weights(q, k, allowed, q.shape[-1] ** -0.5, axis=-2).nan_to_num() @ v


@mistake(
    "attention",
    "You mask after softmax: the rows no longer sum to 1. Set the hidden scores to -inf before it.",
)
def _(q, k, v, allowed):
    return (_weights(q, k, torch.ones_like(allowed), q.shape[-1] ** -0.5) * allowed[:, None]) @ v


@mistake("attention", "Hidden scores of 0 still get weight, for e to the 0 is 1: set them to -inf.")
def _(q, k, v, allowed):
    return _weights(q, k, allowed, q.shape[-1] ** -0.5, fill=0.0) @ v


@mistake("attention", "The mask has no effect: positions see what they must not.")
def _(q, k, v, allowed):
    return _weights(q, k, torch.ones_like(allowed), q.shape[-1] ** -0.5) @ v


@mistake("attention", "The mask is used the wrong way round: hide what is not `allowed`.")
def _(q, k, v, allowed):
    return _weights(q, k, ~allowed, q.shape[-1] ** -0.5) @ v


@mistake("attention", "You return the weights: the values are still to be mixed by them, weights @ v.")
def _(q, k, v, allowed):
    return _weights(q, k, allowed, q.shape[-1] ** -0.5)


# The loss of the next token -------------------------------------------------------------------------------------------


def _sequences() -> list[tuple]:
    """Logits (batch, tokens, vocabulary) with ids (batch, tokens)."""
    ids = [
        torch.randint(9, shape, generator=torch.Generator().manual_seed(seed))
        for seed, shape in enumerate([(2, 5), (1, 7)])
    ]
    return [(_logits(*row.shape, 9, seed=seed), row) for seed, row in enumerate(ids)]


def _picked(scores: Tensor, ids: Tensor) -> Tensor:
    return scores.gather(-1, ids[..., None])[..., 0]


@exercise(_sequences)
def next_token_loss(logits, ids):
    return -_picked(logits[:, :-1].log_softmax(-1), ids[:, 1:]).mean()


@mistake(
    "next_token_loss",
    "Logits and targets stand at the same place: the logits at place t predict the token at place t + 1.",
)
def _(logits, ids):
    return -_picked(logits.log_softmax(-1), ids).mean()


@mistake("next_token_loss", "You shift the wrong way: your logits are compared with the token before.")
def _(logits, ids):
    return -_picked(logits[:, 1:].log_softmax(-1), ids[:, :-1]).mean()


@mistake(
    "next_token_loss",
    "The last logits are compared with the first token (roll goes round): after the last there is nothing to predict.",
)
def _(logits, ids):
    return -_picked(logits.log_softmax(-1), ids.roll(-1, 1)).mean()


@mistake("next_token_loss", "The sign is wrong: a loss is minus the log-probability.")
def _(logits, ids):
    return _picked(logits[:, :-1].log_softmax(-1), ids[:, 1:]).mean()


@mistake("next_token_loss", "You take the sum: the loss is the mean over the predicted tokens.")
def _(logits, ids):
    return -_picked(logits[:, :-1].log_softmax(-1), ids[:, 1:]).sum()


@mistake("next_token_loss", "softmax is missing: logits are no log-probabilities until log_softmax.")
def _(logits, ids):
    return -_picked(logits[:, :-1], ids[:, 1:]).mean()


@mistake("next_token_loss", "The logarithm is missing: you take the mean of minus the probabilities.")
def _(logits, ids):
    return -_picked(logits[:, :-1].softmax(-1), ids[:, 1:]).mean()


@mistake("next_token_loss", "softmax twice: cross_entropy takes logits and does the softmax itself.")
def _(logits, ids):
    return -_picked(logits[:, :-1].softmax(-1).log_softmax(-1), ids[:, 1:]).mean()


@mistake("next_token_loss", "Your loss is in bits (log2): the course counts in nats, the natural logarithm.")
def _(logits, ids):
    return -_picked(logits[:, :-1].log_softmax(-1), ids[:, 1:]).mean() / math.log(2)


@mistake("next_token_loss", "softmax runs over the positions: the vocabulary is the last dimension.")
def _(logits, ids):
    return -_picked(logits[:, :-1].log_softmax(1), ids[:, 1:]).mean()
