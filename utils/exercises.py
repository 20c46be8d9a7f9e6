"""Check a student's function: `check(temperature)` compares it with the reference of the same name.

Every exercise has a reference, examples to run it on, and the mistakes people make with it, each a function of its
own with the sentence that names it. A wrong answer is compared with what each mistake gives, and its sentence is shown.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor


@dataclass
class Result:
    """What `check` found: `passed`, and `message` to read."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.message}"

    def _repr_html_(self) -> str:
        colour = "#0072B2" if self.passed else "#D55E00"
        style = f"border-left:6px solid {colour};padding:.4em .8em;font-size:1.1em"
        return f'<div style="{style}">{escape(repr(self))}</div>'


@dataclass
class Exercise:
    reference: Callable
    examples: Callable[[], list[tuple]]
    mistakes: dict[str, Callable] = field(default_factory=dict)


EXERCISES: dict[str, Exercise] = {}


def exercise(examples: Callable[[], list[tuple]]) -> Callable:
    """Make the decorated function the reference solution of the exercise with its name."""

    def add(reference: Callable) -> Callable:
        EXERCISES[reference.__name__] = Exercise(reference, examples)
        return reference

    return add


def mistake(name: str, message: str) -> Callable:
    """Add the decorated function to the mistakes of the exercise `name`."""

    def add(wrong: Callable) -> Callable:
        EXERCISES[name].mistakes[message] = wrong
        return wrong

    return add


def check(student: Callable) -> Result:
    """Compare a function with the reference of the same name; nothing that it does stops the notebook."""
    name = getattr(student, "__name__", str(student))
    if name not in EXERCISES:
        raise ValueError(f"There is no exercise {name!r}: keep the function's name, one of {', '.join(EXERCISES)}.")
    task = EXERCISES[name]
    examples = task.examples()
    answers = []
    for arguments in examples:
        try:
            answer = student(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
        except NotImplementedError:
            answer = ...
        except Exception as error:
            return Result(
                False, f"{name} stopped with {type(error).__name__}: {error} (called with {_show(arguments)})."
            )
        if answer is ... or answer is None:
            return Result(False, f"{name} is not attempted yet: replace the `...`, and end with `return`.")
        answers.append(answer)
    wanted = [task.reference(*arguments) for arguments in examples]
    if all(map(_same, answers, wanted)):
        return Result(True, f"{name} is right: {len(examples)} examples give what they should.")
    for message, wrong in task.mistakes.items():
        if all(_same(answer, wrong(*arguments)) for answer, arguments in zip(answers, examples, strict=True)):
            return Result(False, message)
    i = next(i for i in range(len(examples)) if not _same(answers[i], wanted[i]))
    return Result(
        False, f"{name} is not right yet: for {_show(examples[i])} it gave {_show(answers[i])}, not {_show(wanted[i])}."
    )


def _same(a, b) -> bool:
    if isinstance(b, tuple):
        return isinstance(a, tuple | list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(b, Tensor):
        return (
            isinstance(a, Tensor)
            and a.shape == b.shape
            and torch.allclose(a.double(), b.double(), 1e-4, 1e-6, equal_nan=True)
        )
    if isinstance(b, float):
        return isinstance(a, int | float | np.number) and math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12)
    return not isinstance(a, Tensor) and bool(np.all(a == b))


def _show(value) -> str:
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_show, value)) + ")"
    if isinstance(value, Tensor):
        numbers = f" {[round(x, 3) for x in value.flatten().tolist()]}" if value.numel() <= 12 else ""
        return f"a tensor {tuple(value.shape)}{numbers}"
    if isinstance(value, SimpleNamespace):
        return "a config with " + ", ".join(f"{name} {number}" for name, number in vars(value).items())
    if isinstance(value, np.ndarray) and value.size <= 12:
        return str(value.tolist())
    return repr(value)[:80]


def _logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# 02 Scaling: fit a power law ------------------------------------------------------------------------------------------


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


# 02 Scaling: the parameters of a config -------------------------------------------------------------------------------


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


# 02 Scaling: the compute of training ----------------------------------------------------------------------------------


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


# 06 Decoding: temperature ---------------------------------------------------------------------------------------------


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


# 06 Decoding: top-k ---------------------------------------------------------------------------------------------------


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


# 06 Decoding: nucleus (top-p) -----------------------------------------------------------------------------------------


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


# 06 Decoding: one step of beam search ---------------------------------------------------------------------------------


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


# 03 Instruction tuning: write a template ------------------------------------------------------------------------------


def _inferences() -> list[tuple]:
    """Items of natural language inference; the right answer is not always the first option."""
    return [
        ({"premise": "Bob has a dog.", "hypothesis": "Bob has a pet", "options": ["yes", "no"], "answer": "yes"},),
        (
            {
                "premise": "Ann lives in Rome.",
                "hypothesis": "Ann lives in Oslo",
                "options": ["yes", "no"],
                "answer": "no",
            },
        ),
        ({"premise": "It rains.", "hypothesis": "It is May", "options": ["yes", "no", "maybe"], "answer": "maybe"},),
    ]


def _template(item: dict, question: str = 'Can we conclude that "{hypothesis}"?', end: str = "") -> str:
    lines = [item["premise"], question.format(**item), "Options: " + ", ".join(item["options"]), "Answer:"]
    return "\n".join(lines) + end


@exercise(_inferences)
def template(item):
    options = ", ".join(item["options"])
    return f'{item["premise"]}\nCan we conclude that "{item["hypothesis"]}"?\nOptions: {options}\nAnswer:'


@mistake("template", "Your prompt gives the answer away: the model is to write it after `Answer:`.")
def _(item):
    return _template(item, end=" " + item["answer"])


@mistake(
    "template", "Your prompt ends in a space: the answer brings its own, and two are other tokens than were tuned on."
)
def _(item):
    return _template(item, end=" ")


@mistake("template", "Your prompt ends in a line break: the answer follows `Answer:` after a space.")
def _(item):
    return _template(item, end="\n")


@mistake("template", "Premise and hypothesis are swapped: what is known comes first, what may follow is asked.")
def _(item):
    return _template(item | {"premise": item["hypothesis"], "hypothesis": item["premise"]})


@mistake("template", "The right answer always comes first among your options: that gives it away. Keep their order.")
def _(item):
    return _template(item | {"options": sorted(item["options"], key=lambda option: option != item["answer"])})


@mistake("template", "The options are missing: a line `Options: yes, no` says which answers count.")
def _(item):
    return _template(item).replace("Options: " + ", ".join(item["options"]) + "\n", "")


# 03 Instruction tuning: mask the prompt -------------------------------------------------------------------------------


def _padded_rows() -> list[tuple]:
    """Rows (3, 8) of prompt, answer and padding (2); an answer may hold the padding's number, as a token may."""
    ids = torch.arange(10, 34).view(3, 8)
    prompt, length = torch.tensor([3, 5, 1]), torch.tensor([6, 8, 4])
    padded = ids.where(torch.arange(8) < length[:, None], 2)
    return [(padded, prompt, length), (padded[:1].clone(), torch.tensor([2]), torch.tensor([6]))]


def _labels(ids: Tensor, first, last, hidden: int = -100) -> Tensor:
    places = torch.arange(ids.shape[1])
    return ids.where((places >= first[:, None]) & (places < last[:, None]), hidden)


@exercise(_padded_rows)
def mask_prompt(ids, prompt, length):
    places = torch.arange(ids.shape[1])
    learned = (places >= prompt[:, None]) & (places < length[:, None])
    return ids.masked_fill(~learned, -100)


@mistake("mask_prompt", "The padding is learned: mask what comes after `length`, too.")
def _(ids, prompt, length):
    return _labels(ids, prompt, torch.full_like(length, ids.shape[1]))


@mistake(
    "mask_prompt",
    "The prompt is learned: the model would be tuned to write instructions. Mask the first `prompt` tokens.",
)
def _(ids, prompt, length):
    return _labels(ids, torch.zeros_like(prompt), length)


@mistake("mask_prompt", "The answer's first token is masked: it stands at place `prompt`, so compare with >=.")
def _(ids, prompt, length):
    return _labels(ids, prompt + 1, length)


@mistake("mask_prompt", "The prompt's last token is learned: the answer begins at place `prompt`, not one before.")
def _(ids, prompt, length):
    return _labels(ids, prompt - 1, length)


@mistake(
    "mask_prompt", "The answer's last token is masked: it is the end of the text, without which the model never stops."
)
def _(ids, prompt, length):
    return _labels(ids, prompt, length - 1)


@mistake("mask_prompt", "Your mask is turned around: it hides the answer and leaves prompt and padding.")
def _(ids, prompt, length):
    return ids.where(_labels(ids, prompt, length) == -100, -100)


@mistake("mask_prompt", "You shift the labels: labels stand where the ids stand, the loss shifts them itself.")
def _(ids, prompt, length):
    return _labels(ids, prompt, length).roll(-1, dims=1)


@mistake("mask_prompt", "You mask with 0, which is a token: the loss leaves out -100 only.")
def _(ids, prompt, length):
    return _labels(ids, prompt, length, hidden=0)


# 03 Instruction tuning: rank classification ---------------------------------------------------------------------------


def _options() -> list[tuple]:
    """Logits (options, tokens, vocabulary), ids (options, tokens), the prompt's length and that of each row."""
    found = []
    for seed, prompt, length in ((0, 2, [6, 4, 3]), (1, 3, [4, 7])):
        logits = _logits(len(length), max(length) + 1, 9, seed=seed)
        ids = torch.randint(9, logits.shape[:2], generator=torch.Generator().manual_seed(seed))
        found.append((logits, ids, prompt, torch.tensor(length)))
    return found


def _summed(logits: Tensor, ids: Tensor, first: int, length: Tensor, shift: int = 1, mean: bool = False) -> Tensor:
    places = torch.arange(shift, ids.shape[1])
    chosen = logits[:, : len(places)].gather(-1, ids[:, shift:, None])[..., 0]
    learned = (places >= first) & (places < length[:, None])
    total = (chosen * learned).sum(1)
    return total / learned.sum(1) if mean else total


@exercise(_options)
def option_scores(logits, ids, prompt, length):
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    places = torch.arange(1, ids.shape[1])
    learned = (places >= prompt) & (places < length[:, None])
    return (log_p * learned).sum(1)


@mistake(
    "option_scores",
    "You look up a token in the logits at its own place: those at place t - 1 predict the token at place t.",
)
def _(logits, ids, prompt, length):
    return _summed(logits.log_softmax(-1), ids, prompt, length, shift=0)


@mistake("option_scores", "The padding counts: leave out what comes after each row's length, or short options lose.")
def _(logits, ids, prompt, length):
    return _summed(logits.log_softmax(-1), ids, prompt, torch.full_like(length, ids.shape[1]))


@mistake("option_scores", "The prompt counts: score the option alone, from place `prompt` on.")
def _(logits, ids, prompt, length):
    return _summed(logits.log_softmax(-1), ids, 0, length)


@mistake("option_scores", "The option's first token is left out: it stands at place `prompt`.")
def _(logits, ids, prompt, length):
    return _summed(logits.log_softmax(-1), ids, prompt + 1, length)


@mistake("option_scores", "You sum logits: they are no log-probabilities until log_softmax.")
def _(logits, ids, prompt, length):
    return _summed(logits, ids, prompt, length)


@mistake("option_scores", "You sum probabilities: those of a whole option multiply, so sum their logarithms.")
def _(logits, ids, prompt, length):
    return _summed(logits.softmax(-1), ids, prompt, length)


@mistake(
    "option_scores",
    "You take the mean over the tokens: rank classification takes the sum, the option's log-probability.",
)
def _(logits, ids, prompt, length):
    return _summed(logits.log_softmax(-1), ids, prompt, length, mean=True)


# 01 Foundation models: the causal mask --------------------------------------------------------------------------------


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


# 01 Foundation models: scaled dot-product attention -------------------------------------------------------------------


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


# 01 Foundation models: the loss of the next token ---------------------------------------------------------------------


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


# 04 Reward modeling: the Bradley-Terry loss ---------------------------------------------------------------------------


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


# 04 Reward modeling: pairs from a ranking -----------------------------------------------------------------------------


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


# 04 Reward modeling: agreement between annotators ---------------------------------------------------------------------


def _votes() -> list[tuple]:
    """Votes (comparisons, annotators): 1 or 2 for the preferred reply, 0 where somebody was not asked."""
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


@mistake("agreement", "Who was not asked (0) counts: leave out pairs of annotators of whom one gave no vote.")
def _(votes):
    return _agreement(votes, missing=True)


@mistake("agreement", "You divide by all pairs: divide by those of whom both voted.")
def _(votes):
    pairs = len(votes) * votes.shape[1] * (votes.shape[1] - 1) / 2
    voted = sum(sum(bool(i) for i in row) * (sum(bool(i) for i in row) - 1) / 2 for row in votes.tolist())
    return _agreement(votes) * voted / pairs


@mistake(
    "agreement", "You compare every annotator with himself too, who always agrees: only pairs of two different ones."
)
def _(votes):
    return _agreement(votes, itself=True)


@mistake("agreement", "You average within each comparison first: count all pairs of votes together.")
def _(votes):
    return _agreement(votes, each=True)


@mistake("agreement", "You compare the first two annotators only: take all pairs of annotators.")
def _(votes):
    return _agreement(votes, first=True)


@mistake("agreement", "You count the comparisons on which all agree: count pairs of annotators.")
def _(votes):
    return float(np.mean([len({vote for vote in row if vote}) == 1 for row in votes.tolist()]))


@mistake("agreement", "You return the share that disagrees: 1 minus it.")
def _(votes):
    return 1 - _agreement(votes)


@mistake("agreement", "You return a count: divide by the number of pairs of votes.")
def _(votes):
    return float(((votes[:, :, None] == votes[:, None]) & (votes[:, :, None] > 0)).triu(1).sum())


# 05 RLHF: KL-shaped rewards -------------------------------------------------------------------------------------------


def _episodes(count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """`count` arrays (3, 6) of random numbers, and a mask of rows with 6, 3 and 1 tokens."""
    drawn = torch.randn(count, 3, 6, generator=torch.Generator().manual_seed(seed))
    return list(drawn), (torch.arange(6) < torch.tensor([[6], [3], [1]])).float()


def _shaped() -> list[tuple]:
    """Scores (batch,), log-probabilities of policy and reference (batch, tokens), mask, beta."""
    found = []
    for seed, beta in ((0, 0.1), (1, 0.5)):
        (scores, policy, reference), mask = _episodes(3, seed)
        found.append((scores[:, 0], policy - 2, reference - 2, mask, beta))
    return found


def _add_score(rewards: Tensor, scores: Tensor, at: Tensor) -> Tensor:
    rewards = rewards.clone()
    rewards[torch.arange(len(rewards)), at] += scores
    return rewards


@exercise(_shaped)
def shaped_rewards(scores, logprobs, reference_logprobs, mask, beta):
    rewards = -beta * (logprobs - reference_logprobs) * mask
    return _add_score(rewards, scores, mask.sum(1).long() - 1)


@mistake("shaped_rewards", "The KL has the wrong sign: a token likelier than under the reference costs, so -beta.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    return shaped_rewards(scores, logprobs, reference_logprobs, mask, -beta)


@mistake(
    "shaped_rewards", "The score stands in the last column, which is padding in short rows: add it at the last token."
)
def _(scores, logprobs, reference_logprobs, mask, beta):
    return _add_score(-beta * (logprobs - reference_logprobs) * mask, scores, torch.full((len(mask),), -1))


@mistake("shaped_rewards", "The padding has rewards: multiply the KL by the mask.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    return _add_score(-beta * (logprobs - reference_logprobs), scores, mask.sum(1).long() - 1)


@mistake("shaped_rewards", "The score is added at every token: it is given once, at the last one.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    return (scores[:, None] - beta * (logprobs - reference_logprobs)) * mask


@mistake("shaped_rewards", "The score is one token late: of n tokens the last has the index n - 1.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    rewards = -beta * (logprobs - reference_logprobs) * mask
    return _add_score(rewards, scores, mask.sum(1).long() % mask.shape[1])


@mistake("shaped_rewards", "The KL of the whole row stands at its last token: give every token its own.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    whole = (-beta * (logprobs - reference_logprobs) * mask).sum(1)
    return _add_score(torch.zeros_like(logprobs), scores + whole, mask.sum(1).long() - 1)


# 05 RLHF: generalised advantage estimation ----------------------------------------------------------------------------


def _valued() -> list[tuple]:
    """Rewards, values, mask (batch, tokens), gamma, lam."""
    found = []
    for seed, gamma, lam in ((0, 1.0, 0.95), (1, 0.9, 0.5)):
        (rewards, values), mask = _episodes(2, seed)
        found.append((rewards * mask, values, mask, gamma, lam))
    return found


def _backwards(
    rewards, values, mask, gamma, lam, decay=None, bootstrap=False, detached=False, forwards=False
) -> Tensor:
    advantages, following = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    decay = gamma * lam if decay is None else decay
    if not bootstrap:
        values = values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = rewards - values + (0 if detached else gamma * after)
    places = range(values.shape[1])
    for t in places if forwards else reversed(places):
        following = (delta[:, t] + decay * following) * mask[:, t]
        advantages[:, t] = following
    return advantages


@exercise(_valued)
def gae(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam)


@mistake("gae", "Behind the last token you still expect the value of the padding: multiply the values by the mask.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, bootstrap=True)


@mistake("gae", "You run forwards: the advantage at t needs the one at t + 1, so begin at the end.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, forwards=True)


@mistake("gae", "The value of the next token is missing in delta: reward + gamma * next value - value.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, detached=True)


@mistake("gae", "You decay by lam alone: it is gamma * lam.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, decay=lam)


@mistake("gae", "You decay by gamma alone, as if lam were 1: it is gamma * lam.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, decay=gamma)


@mistake("gae", "You return advantages + values: those are the returns, which the critic learns.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam) + values * mask


@mistake("gae", "You stop at delta: add gamma * lam times the advantage that follows.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, decay=0.0)


# 05 RLHF: PPO's clipped objective -------------------------------------------------------------------------------------


def _ratios() -> list[tuple]:
    """New and old log-probabilities, advantages, mask (batch, tokens), clip."""
    found = []
    for seed, clip in ((0, 0.2), (3, 0.1)):
        (new, old, advantages), mask = _episodes(3, seed)
        found.append((new * 0.4 - 2, old * 0.4 - 2, advantages * mask, mask, clip))
    return found


def _objective(new, old, advantages, mask, clip, pick=torch.min, sign=-1, whole=False) -> Tensor:
    ratio = (new - old).exp()
    terms = pick(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return sign * (terms.mean() if whole else (terms * mask).sum() / mask.sum())


@exercise(_ratios)
def clipped_loss(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip)


@mistake("clipped_loss", "This is the objective, which rises: a loss falls, so it needs a minus.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, sign=1)


@mistake("clipped_loss", "You take the larger of the two: PPO takes the smaller, the pessimistic one.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, pick=torch.max)


@mistake("clipped_loss", "Only the clipped ratio counts: without the minimum a bad step is not taken back.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, pick=lambda plain, clipped: clipped)


@mistake("clipped_loss", "Nothing is clipped: take the minimum with the ratio between 1 - clip and 1 + clip.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, pick=lambda plain, clipped: plain)


@mistake("clipped_loss", "The ratio is upside down: new over old, so exp(new - old).")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(old_logprobs, logprobs, advantages, mask, clip)


@mistake("clipped_loss", "The padding is in the mean: divide by the number of unmasked tokens.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, whole=True)


# 05 RLHF: DPO ---------------------------------------------------------------------------------------------------------


def _preferred() -> list[tuple]:
    """Log-probabilities of whole replies (pairs,): chosen and rejected under the policy, then under the reference; beta."""
    found = []
    for seed, beta in ((0, 0.1), (1, 0.5)):
        four = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) - 10
        found.append((*four, beta))
    return found


def _sigmoid_loss(x: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(x).mean()


@exercise(_preferred)
def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return _sigmoid_loss(beta * (chosen - rejected))


@mistake("dpo_loss", "Chosen and rejected are swapped: the loss must fall when the chosen reply becomes likelier.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return dpo_loss(policy_rejected, policy_chosen, reference_rejected, reference_chosen, beta)


@mistake("dpo_loss", "The reference is missing: the reward is beta * log(policy / reference).")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return _sigmoid_loss(beta * (policy_chosen - policy_rejected))


@mistake("dpo_loss", "beta is missing.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, 1.0)


@mistake("dpo_loss", "The reference has the wrong sign: subtract its log-probabilities.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return dpo_loss(policy_chosen, policy_rejected, -reference_chosen, -reference_rejected, beta)


@mistake("dpo_loss", "You sum over the pairs: take the mean.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    each = dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return each * len(policy_chosen)


@mistake("dpo_loss", "The logarithm is missing: -log sigmoid, not -sigmoid.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return -(beta * (chosen - rejected)).sigmoid().mean()


# 05 RLHF: GRPO's advantages -------------------------------------------------------------------------------------------


def _groups() -> list[tuple]:
    """Rewards (groups * size,), a group together, and the size."""
    drawn = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    return [(drawn[0] + torch.arange(12), 4), (3 * drawn[1], 3)]


def _scaled(groups: Tensor, mean: Tensor, deviation: Tensor | float) -> Tensor:
    return ((groups - mean) / (deviation + 1e-4)).flatten()


@exercise(_groups)
def group_advantages(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, groups.mean(1, keepdim=True), groups.std(1, keepdim=True))


@mistake("group_advantages", "You compare all replies with each other: a group is the replies to one prompt.")
def _(rewards, size):
    return _scaled(rewards, rewards.mean(), rewards.std())


@mistake("group_advantages", "Your groups run across: replies to one prompt stand together, so view(-1, size).")
def _(rewards, size):
    groups = rewards.view(size, -1)
    return _scaled(groups, groups.mean(0, keepdim=True), groups.std(0, keepdim=True))


@mistake(
    "group_advantages", "You take mean and deviation over the groups (dim 0): take them within each group (dim 1)."
)
def _(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, groups.mean(0, keepdim=True), groups.std(0, keepdim=True))


@mistake("group_advantages", "You centre without scaling: divide by the group's standard deviation.")
def _(rewards, size):
    groups = rewards.view(-1, size)
    return (groups - groups.mean(1, keepdim=True)).flatten()


@mistake(
    "group_advantages", "You scale without centring: subtract the group's mean, the baseline in place of a critic."
)
def _(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, torch.zeros(()), groups.std(1, keepdim=True))


@mistake("group_advantages", "You divide by the variance: divide by its square root.")
def _(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, groups.mean(1, keepdim=True), groups.var(1, keepdim=True))


# 09 Applications and limits: retrieve by embedding --------------------------------------------------------------------


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


# 09 Applications and limits: the watermark's z-score ------------------------------------------------------------------


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
