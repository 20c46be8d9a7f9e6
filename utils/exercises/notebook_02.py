"""The exercises of notebooks/02_scaling.ipynb."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from utils.exercises import exercise, mistake

# Fit a power law ------------------------------------------------------------------------------------------------------


def _losses() -> list[tuple]:
    """Losses that lie near a power law: (n, loss)."""
    n = np.array([2e4, 8e4, 3e5, 1.2e6, 5e6])
    wobble = np.array([1.0, 1.01, 0.98, 1.02, 0.99])
    return [(n, (8.8e13 / n) ** 0.076 * wobble), (n[:3] * 1e3, 12 * n[:3] ** -0.3), (n[1:], (5.4e13 / n[1:]) ** 0.095)]


@exercise(_losses)
def fit_power_law(n, loss):
    slope, intercept = np.polyfit(np.log(n), np.log(loss), 1)
    return -slope, np.exp(-intercept / slope)


@mistake("fit_power_law", "Your exponent has the wrong sign: the line falls, so the exponent is minus its slope.")
def _(n, loss):
    slope, intercept = np.polyfit(np.log(n), np.log(loss), 1)
    return slope, np.exp(-intercept / slope)


@mistake("fit_power_law", "You take the logarithm of n only: a power law is a line where the loss is logarithmic too.")
def _(n, loss):
    slope, intercept = np.polyfit(np.log(n), loss, 1)
    return -slope, np.exp(-intercept / slope)


@mistake("fit_power_law", "You fit a line to n and loss as they are: take the logarithm of both.")
def _(n, loss):
    slope, intercept = np.polyfit(n, loss, 1)
    with np.errstate(over="ignore"):
        return -slope, np.exp(-intercept / slope)


@mistake(
    "fit_power_law", "Your constant is the loss at n = 1, exp(intercept): in (constant / n) ** exponent it is an n."
)
def _(n, loss):
    slope, intercept = np.polyfit(np.log(n), np.log(loss), 1)
    return -slope, np.exp(intercept)


@mistake("fit_power_law", "Your constant has the wrong sign inside exp: at n = constant the line crosses log loss = 0.")
def _(n, loss):
    slope, intercept = np.polyfit(np.log(n), np.log(loss), 1)
    return -slope, np.exp(intercept / slope)


@mistake("fit_power_law", "Your constant is still a logarithm: return exp of it.")
def _(n, loss):
    slope, intercept = np.polyfit(np.log(n), np.log(loss), 1)
    return -slope, -intercept / slope


@mistake("fit_power_law", "You regress log n on log loss: it is the loss that depends on n, so fit log loss to log n.")
def _(n, loss):
    slope, intercept = np.polyfit(np.log(loss), np.log(n), 1)
    return -1 / slope, np.exp(intercept)


# The parameters of a config -------------------------------------------------------------------------------------------


def _configs() -> list[tuple]:
    """SmolLM2-135M's config, and two others: one without tied embeddings, one without grouped heads."""
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    rows = [(49152, 576, 1536, 30, 9, 3, True), (1024, 64, 172, 4, 8, 2, False), (2000, 96, 256, 3, 6, 6, True)]
    return [(SimpleNamespace(**dict(zip([*names.split(), "tie_word_embeddings"], row, strict=True))),) for row in rows]


def _parts(config) -> dict[str, int]:
    """The parameters of a Llama by kind."""
    d, layers = config.hidden_size, config.num_hidden_layers
    head = d // config.num_attention_heads
    return {
        "embedding": config.vocab_size * d,
        "output": 0 if config.tie_word_embeddings else config.vocab_size * d,
        "queries": layers * 2 * d * d,  # with the output projection
        "keys": layers * 2 * d * config.num_key_value_heads * head,  # with the values
        "mlp": layers * 3 * d * config.intermediate_size,
        "norms": layers * 2 * d + d,
    }


@exercise(_configs)
def count_parameters(config):
    return sum(_parts(config).values())


@mistake(
    "count_parameters",
    "You forget that keys and values have fewer heads: their width is the kv heads times the head size.",
)
def _(config):
    return sum((_parts(config) | {"keys": _parts(config)["queries"]}).values())


@mistake("count_parameters", "You count the output matrix twice: with tied embeddings it is the embedding itself.")
def _(config):
    return sum((_parts(config) | {"output": _parts(config)["embedding"]}).values())


@mistake("count_parameters", "You forget the output matrix: without tied embeddings it has parameters of its own.")
def _(config):
    return sum((_parts(config) | {"output": 0}).values())


@mistake("count_parameters", "You count two matrices in the MLP: a Llama's has three (gate, up and down).")
def _(config):
    return sum((_parts(config) | {"mlp": _parts(config)["mlp"] // 3 * 2}).values())


@mistake("count_parameters", "You forget the norms: two vectors of hidden_size in each layer, and one at the end.")
def _(config):
    return sum((_parts(config) | {"norms": 0}).values())


@mistake("count_parameters", "You forget the norm after the last layer.")
def _(config):
    return sum(_parts(config).values()) - config.hidden_size


@mistake(
    "count_parameters",
    "You forget the output projection of attention: it has hidden_size times hidden_size parameters.",
)
def _(config):
    return sum((_parts(config) | {"queries": _parts(config)["queries"] // 2}).values())


@mistake("count_parameters", "You count one layer only: multiply by num_hidden_layers.")
def _(config):
    return sum(_parts(SimpleNamespace(**vars(config) | {"num_hidden_layers": 1})).values())


@mistake("count_parameters", "You forget the embedding: vocab_size times hidden_size.")
def _(config):
    return sum((_parts(config) | {"embedding": 0}).values())


@mistake(
    "count_parameters",
    "You use GPT's rule 12 n_layer d_model²: a Llama's MLP and its keys and values have other widths.",
)
def _(config):
    parts = _parts(config)
    return 12 * config.num_hidden_layers * config.hidden_size**2 + parts["embedding"] + parts["output"]


# The compute of training ----------------------------------------------------------------------------------------------


@exercise(lambda: [(174.6e9, 300e9, 28e12), (134.5e6, 2e12, 312e12), (1e6, 3e7, 5e10)])
def training_compute(parameters, tokens, flop_per_second):
    flop = 6 * parameters * tokens
    return float(flop), flop / flop_per_second / (365 * 24 * 3600)


def _compute(factor: float = 6, seconds: float = 365 * 24 * 3600, inverse: bool = False) -> Callable:
    """`training_compute` with a mistake in it."""

    def wrong(parameters, tokens, flop_per_second):
        flop = float(factor * parameters * tokens)
        return flop, (flop_per_second / flop if inverse else flop / flop_per_second) / seconds

    return wrong


for _message, _wrong in {
    "You count the forward pass only (2 per parameter and token): the backward pass costs twice as much again.": _compute(
        2
    ),
    "You count a multiplication and an addition as one: they are two operations, so 6 per parameter and token.": _compute(
        3
    ),
    "You forget the forward pass: 2 per parameter and token forward, 4 backward.": _compute(4),
    "You count each parameter once for each token: it takes 6 operations.": _compute(1),
    "Your years are seconds: divide by 365 * 24 * 3600.": _compute(seconds=1),
    "Your years are hours: divide by 24 and by 365 too.": _compute(seconds=3600),
    "Your years are days: divide by 365 too.": _compute(seconds=24 * 3600),
    "Your years are turned around: divide the operations by those of a second.": _compute(inverse=True),
}.items():
    mistake("training_compute", _message)(_wrong)
