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
    if isinstance(b, tuple | list):
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


from utils.exercises import (  # noqa: E402, F401
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
    notebook_09,
)
