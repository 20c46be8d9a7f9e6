"""Every arm of notebook 05 runs, at a size that takes seconds; best-of-n, Gao's forms and the interval by hand."""


import numpy as np
import pytest

from utils import alignment, bottle, runs


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        sizes = dict(DEMONSTRATED=40, COMPARED=16, TESTED=8, STEPS=2, BATCH=8, ANSWERS=16, LONG=2, AT=(1,), DRAWS=4)
        sizes |= dict(PTX_ROWS=32, PPO=alignment.PPO | dict(batch=8, minibatch=8), BETAS=(0.1,))
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


@pytest.mark.parametrize("arm", [*alignment.plan(), *alignment.failures()])
def test_every_arm_makes_whole_rows(small, arm):
    if arm.startswith("penalty") and arm != "penalty 0.1":
        pytest.skip("as penalty 0.1")
    rows = runs.rlhf_arm(arm, small)
    assert all(set(row) == set(runs.RLHF_COLUMNS) for row in rows)
    assert {row["arm"] for row in rows} == {arm} and {row["seed"] for row in rows} == {5}
    replies = [row for row in rows if row["kind"] == "reply" and row["clothes"] is None]
    if arm == "best of n":
        assert [row["step"] for row in rows[::8]] == [1, 2, 4] * 2
        return
    assert [row["item"] for row in replies[-8:]] == list(range(8))
    assert all(1 <= row["grade"] <= 7 and np.isfinite(row["proxy 800k"]) for row in replies)
    if arm.startswith(("no penalty", "penalty")):
        assert [row["step"] for row in replies] == [1] * 8 + [2] * 8
