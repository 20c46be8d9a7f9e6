"""The arithmetic of scale: what training costs, and what loss to expect of it."""

import csv
import math
from functools import cache

from utils import claims

YEAR = 365 * 24 * 3600  # seconds
BYTES = {"weights": 2, "gradients": 2, "AdamW": 12}  # a parameter, in mixed precision: AdamW keeps three float32


def gpu_years(parameters: float, tokens: float, flop_per_second: float) -> float:
    """Years that one processor needs for 6 N D operations at this speed (Kaplan et al. 2020, §2.1)."""
    return 6 * parameters * tokens / flop_per_second / YEAR


@cache
def chinchilla(study: str = "Epoch refit") -> dict[str, float]:
    """E, A, B, alpha and beta of L(N, D) = E + A / N^alpha + B / D^beta, in nats a token, from data/papers/chinchilla.csv.

    `study`: "Chinchilla" (Hoffmann et al. 2022) or "Epoch refit" (Besiroglu et al. 2024, of the same points).
    Raises ValueError for another name.
    """
    with (claims.PAPERS / "chinchilla.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["study"] == study]
    found = {}
    for row in rows:
        names, values = row["quantity"].split(", "), row["value"].split(", ")
        if set(names) <= {"E", "A", "B", "alpha", "beta"}:
            found |= dict(zip(names, map(float, values), strict=True))
    if len(found) != 5:
        raise ValueError(f'No law of {study!r} in chinchilla.csv: name "Chinchilla" or "Epoch refit".')
    return found


def expected_loss(parameters: float, tokens: float, study: str = "Epoch refit") -> float:
    """Chinchilla's form: nats a token for a model of `parameters` trained on `tokens`."""
    law = chinchilla(study)
    return law["E"] + law["A"] / parameters ** law["alpha"] + law["B"] / tokens ** law["beta"]


def compute_optimal(flop: float, study: str = "Epoch refit") -> tuple[float, float]:
    """(parameters, tokens) with the smallest expected loss that 6 N D = `flop` allows (Hoffmann et al. 2022, Eq. 4)."""
    law = chinchilla(study)
    a, b = law["alpha"], law["beta"]
    ratio = (a * law["A"] / (b * law["B"])) ** (1 / (a + b))
    parameters = ratio * (flop / 6) ** (b / (a + b))
    return parameters, flop / 6 / parameters


def in_words(number: float) -> str:
    """A large number to read: 175 billion, 4.6 million, 1,230, 0.5; from 10^15 on as a power of ten."""
    if number >= 1e15:
        exponent = math.floor(math.log10(float(f"{number:.2e}")))
        return f"{number / 10**exponent:.2f} × 10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    for size, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if float(f"{number:.3g}") >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
