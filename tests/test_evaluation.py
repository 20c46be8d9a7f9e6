"""Scores and intervals."""

import numpy as np
import pytest
import torch

from tests.conftest import tiny
from utils import evaluation


def test_token_logprobs_is_transformers_loss():
    model = tiny(0)
    ids = torch.randint(3, 50, (5, 9))
    ours = evaluation.token_logprobs(model, ids, rows=2)
    assert ours.shape == (5, 8)
    assert -ours.mean().item() == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)


def test_token_logprobs_does_not_see_the_padding():
    model = tiny(0)
    ids = torch.randint(3, 50, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    torch.testing.assert_close(
        evaluation.token_logprobs(model, padded, mask)[:, 3:], evaluation.token_logprobs(model, ids)
    )


def test_bootstrap_ci_is_scipys():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(3, 2, 80)
    value, low, high = evaluation.bootstrap_ci(values)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_bootstrap_ci_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="at least one value"):
        evaluation.bootstrap_ci(values)
