"""The exercises of notebooks/03_instruction_tuning.ipynb."""

import torch
from torch import Tensor

from utils.exercises import _logits, exercise, mistake

# Write a template -----------------------------------------------------------------------------------------------------


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


# Mask the prompt ------------------------------------------------------------------------------------------------------


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


# Rank classification --------------------------------------------------------------------------------------------------


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
