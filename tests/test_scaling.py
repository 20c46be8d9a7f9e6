"""The arithmetic of scale."""

import pytest
from scipy.optimize import minimize_scalar

from utils import scaling


@pytest.mark.parametrize("study", ["Chinchilla", "Epoch refit"])
def test_compute_optimal_has_the_smallest_loss(study):
    flop = 5.76e23
    parameters, tokens = scaling.compute_optimal(flop, study)
    assert 6 * parameters * tokens == pytest.approx(flop)
    found = minimize_scalar(lambda x: scaling.expected_loss(10**x, flop / 6 / 10**x, study), bounds=(8, 13))
    assert 10**found.x == pytest.approx(parameters, rel=1e-3)


def test_chinchilla_is_the_papers():
    assert scaling.chinchilla("Chinchilla") == {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    assert scaling.chinchilla()["A"] == 482.01
    with pytest.raises(ValueError, match="No law of 'Gopher'"):
        scaling.chinchilla("Gopher")


def test_gpu_years_are_those_of_the_estimate_for_gpt3():
    assert scaling.gpu_years(174.6e9, 300e9, 28e12) == pytest.approx(355, rel=0.005)  # Lambda Labs 2020


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (3.14e23, "3.14 × 10²³"),
        (9.999e23, "1.00 × 10²⁴"),
        (174.6e9, "175 billion"),
        (999.9e6, "1 billion"),
        (1234.5, "1,234"),
        (0.5, "0.5"),
        (0, "0"),
    ],
)
def test_in_words(number, words):
    assert scaling.in_words(number) == words
