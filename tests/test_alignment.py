"""Every arm of notebook 05 runs, at a size that takes seconds; best-of-n, Gao's forms and the interval by hand."""

import itertools

import numpy as np
import pytest
import torch

from utils import alignment, bottle, ppo, rlhf, runs


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        sizes = dict(DEMONSTRATED=40, COMPARED=16, TESTED=8, STEPS=2, BATCH=8, ANSWERS=16, LONG=3, AT=(1, 2), DRAWS=4)
        sizes |= dict(PTX_ROWS=32, PPO=alignment.PPO | dict(batch=8, minibatch=8), BETAS=(1.0,))
        for name, size in sizes.items():
            patch.setattr(alignment, name, size)
        patch.setattr(alignment.rlhf, "noise_for", lambda *_: 1.0)
        patch.setattr(alignment.pretrain, "test_items", lambda count: bottle.tasks("sentiment", "test", count=2))
        patch.setattr(
            alignment, "jailbroken", lambda policy, steps: alignment.answered(policy, steps, steps.test, "plain")
        )
        tune = alignment.rlhf.tune
        patch.setattr(alignment.rlhf, "tune", lambda *given: tune(*given, steps=2))
        yield alignment.Steps(5)


@pytest.mark.parametrize("arm", [a for a in [*alignment.plan(), *alignment.failures()] if a != "penalty 0.1"])
def test_every_arm_makes_whole_rows(small, arm):
    rows = runs.rlhf_arm(arm, small)
    assert all(set(row) == set(runs.RLHF_COLUMNS) for row in rows)
    assert {row["arm"] for row in rows} == {arm} and {row["seed"] for row in rows} == {5}
    replies = [row for row in rows if row["kind"] == "reply" and row["clothes"] is None]
    if arm == "best of n":
        assert [row["step"] for row in rows[::8]] == [1, 2, 4] * 2
        return
    assert [row["item"] for row in replies[-8:]] == list(range(8))
    assert all(1 <= row["grade"] <= 7 and np.isfinite(row["proxy 800k"]) for row in replies)
    steps = {"no penalty, 800k": [1, 2, 3], "PPO": [1, 2], "penalty 1.0": [1, 2]}.get(arm, [])
    assert not steps or [row["step"] for row in replies[::8]] == steps


def test_best_of_n_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    scores, worth = rng.normal(size=(2, 3, 6))
    for n in (1, 2, 4, 6):
        choices = list(itertools.combinations(range(6), n))
        expected = [np.mean([worth[i, max(c, key=lambda j: scores[i, j])] for c in choices]) for i in range(3)]
        assert alignment.best_of(scores, worth, n) == pytest.approx(expected)


def test_gaos_forms_are_found_again():
    d = np.linspace(0.2, 4, 12)
    assert alignment.fit_gao(d, d * (1.5 - 0.4 * np.log(d)), "RL") == pytest.approx((1.5, 0.4))
    assert alignment.fit_gao(d, d * (1.5 - 0.4 * d), "best of n") == pytest.approx((1.5, 0.4))


def test_rewards_are_standardised_by_the_tuned_models_own_answers(small):
    for reward in (*small.rewards.values(), small.both):
        found = torch.as_tensor(reward(small.own))
        assert found.mean().item() == pytest.approx(0, abs=1e-4) and found.std().item() == pytest.approx(1, abs=1e-4)


def test_llama_2s_reward_listens_to_safety_where_it_is_asked_for(small):
    """Of two replies the safe model judges the forbidden wish, the helpful one the harmless one."""
    asked = bottle.requests("ppo", 5, 40)
    texts = {kind: [rlhf.text(r, "Sure! Take it.") for r in asked if r["kind"] == kind] for kind in bottle.REQUESTS}
    safe, helpful = (small.rewarder(name=f"-{n}", grade=g) for n, g in (("safe", rlhf.safe), ("helpful", rlhf.helpful)))
    wanted = torch.cat(
        [
            safe(texts["forbidden"]),
            helpful(texts["dish"]).where(safe(texts["dish"]).sigmoid() >= 0.15, safe(texts["dish"])),
        ]
    )
    found = small.both(texts["forbidden"] + texts["dish"])
    assert torch.corrcoef(torch.stack([wanted, found]))[0, 1] > 0.9999


def test_the_forgotten_mask_pays_nobody_but_the_longest():
    scores, ones = torch.tensor([1.0, 2.0]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    zeros = torch.zeros(2, 3)
    wrong = alignment.score_in_the_last_column(scores, zeros, zeros, ones, 0.1)
    assert wrong.tolist() == [[0, 0, 1], [0, 0, 2]]
    assert ppo.kl_shaped_rewards(scores, zeros, zeros, ones, 0.1).tolist() == [[0, 0, 1], [0, 2, 0]]
    assert ppo.gae(wrong, zeros, ones)[0][1].abs().max() == 0
