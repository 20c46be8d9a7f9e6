"""Notebook 04's experiments: sums by hand, nothing held out is seen, and what is stored is made again."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from utils import benchmarks, bottle, models, pretrain, rewards, rlhf, runs


def test_every_arm_has_a_name_of_its_own():
    names = [tuple(arm[key] for key in ("experiment", "setting", "rung", "seed")) for arm in rewards.plan()]
    assert len(set(names)) == len(names)
    assert {rung for _, _, rung, _ in names} == set(pretrain.RUNGS)


def test_sums_by_hand():
    request, difference, strength = np.array([0, 0, 1, 0]), np.array([1.0, 0.0, -2.0, 3.0]), np.array([0, 0, 1, 2])
    rows = rewards.sums("pairs", request, difference, strength)
    assert [(r["request"], r["strength"], r["pairs"], r["right"], r["difference"]) for r in rows] == [
        (0, 0, 2, 1.5, 1.0),
        (0, 2, 1, 1.0, 3.0),
        (1, 1, 1, 0.0, -2.0),
    ]
    assert rows[0]["loss"] == pytest.approx(np.log1p(np.exp(-1)) + np.log(2), abs=1e-3)
    frame = pd.DataFrame([row | {"seed": seed} for seed in (0, 1) for row in rows])
    values = rewards.totals(frame)
    assert values.shape == (2, 2, 2)
    assert rewards.share(values) == pytest.approx(2.5 / 4)
    assert rewards.share(rewards.totals(frame, "difference")) == pytest.approx(2 / 4)


def test_nothing_held_out_is_seen():
    """Neither who and what is asked about, nor the words of the request."""
    learned = bottle.requests("preference", 0, rewards.ASKED)
    held_out = bottle.requests("test", 0, rewards.HELD_OUT)
    assert len(held_out) == rewards.HELD_OUT
    for key in ("entities", "template", "prompt"):
        assert not {str(r[key]) for r in learned} & {str(r[key]) for r in held_out}


@pytest.fixture
def small(monkeypatch):
    """The experiments on the smallest rung, with few requests and steps."""
    monkeypatch.setattr(rlhf, "RUNG", "20k")
    for name, value in dict(ASKED=16, HELD_OUT=12, WRITTEN=16).items():
        monkeypatch.setattr(rewards, name, value)
    model, tokenizer = models.load("ladder/20k")
    monkeypatch.setattr(rewards, "policy", lambda *_: (model, tokenizer))
    monkeypatch.setattr(rewards, "labeller_noise", lambda *_: 1.0)  # untuned, it writes too many replies of equal grade
    rewards.collected.cache_clear()
    yield
    rewards.collected.cache_clear()


@pytest.mark.parametrize("experiment", ["margin", "k", "agreement", "length", "batch", "kinds"])
def test_every_kind_of_arm_runs(small, experiment):
    for planned in {arm["setting"]: arm for arm in rewards.plan() if arm["experiment"] == experiment}.values():
        rows = rewards.arm(planned | ({} if experiment == "kinds" else {"steps": 2}))
        pairs = pd.DataFrame(rows).query("measure == 'pairs'")
        assert {row["setting"] for row in rows} == {planned["setting"]}
        assert (pairs.right <= pairs.pairs).all() and pairs.pairs.sum() <= 6 * rewards.HELD_OUT * len(set(pairs.kind))
        assert {row["measure"] for row in rows} == {"pairs"} | ({"longer"} if experiment != "kinds" else set())


def test_pairs_apart_are_the_pairs_of_the_rankings(small, monkeypatch):
    seen = []

    def train(policy, tokenizer, texts, seed=0, **options):
        seen.append((texts, options["margins"]))
        raise InterruptedError

    monkeypatch.setattr(rlhf, "train_reward", train)
    for apart in (False, True):
        with pytest.raises(InterruptedError):
            rewards.train_and_measure("20k", 0, margin="large", k=3, apart=apart)
    (whole, margins), (pairs, single) = seen
    assert len(pairs) == 3 * len(whole)
    assert pairs[:3] == [[whole[0][0], whole[0][1]], [whole[0][0], whole[0][2]], [whole[0][1], whole[0][2]]]
    assert torch.equal(torch.cat(single), torch.cat(margins)) and torch.cat(margins).max() == 3


def test_labellers_who_like_words_rank_longer_replies_higher(small, monkeypatch):
    words = []

    def train(policy, tokenizer, texts, seed=0, **options):
        words.append(np.mean([len(row[0].split()) - len(row[-1].split()) for row in texts]))
        raise InterruptedError

    monkeypatch.setattr(rlhf, "train_reward", train)
    for worth in (0.0, 2.0):
        with pytest.raises(InterruptedError):
            rewards.train_and_measure("20k", 0, words=worth)
    assert words[1] > words[0] + 3


PAIRS = [dict(instruction=f"i{n // 3}", a="x", b="y y", lengths=(1, 2), gpt4=n % 2, claude=1) for n in range(1500)]


def test_a_split_shares_no_instruction():
    learn, held = rewards.split(PAIRS, 1)
    assert len(learn) + len(held) == len(PAIRS) and rewards.TEST <= len(held) < rewards.TEST + 3
    assert not {PAIRS[i]["instruction"] for i in learn} & {PAIRS[i]["instruction"] for i in held}
    assert held.tolist() != rewards.split(PAIRS, 2)[1].tolist()


def test_a_linear_reward_learns_what_a_judge_likes():
    """Features whose first number decides GPT-4's votes, and the second Claude's."""
    features = torch.randn(len(PAIRS), 2, 5, generator=torch.Generator().manual_seed(0))
    votes = (features[:, 1] > features[:, 0]).long()
    pairs = [pair | dict(gpt4=int(v[0]), claude=int(v[1])) for pair, v in zip(PAIRS, votes, strict=True)]
    rows = rewards.judged(pairs, features, "gpt4")
    last = [row for row in rows if row["pairs"] == max(rewards.SHARES)]
    assert all(row["right"] > 0.95 and 0.4 < row["other"] < 0.6 for row in last) and len(last) == rewards.SPLITS


REWARDS, JUDGES = runs.RUNS / "rewards.parquet", runs.RUNS / "judges.parquet"


@pytest.mark.skipif(not REWARDS.exists(), reason=f"{REWARDS.name} is not there: python -m utils.runs rewards makes it")
def test_a_stored_arm_is_made_again():
    stored = pd.read_parquet(REWARDS).query("experiment == 'size' and rung == '20k' and seed == 0")
    planned = next(a for a in rewards.plan() if a["experiment"] == "size" and a["rung"] == "20k" and a["seed"] == 0)
    now = pd.DataFrame(rewards.arm(planned))
    assert now.pairs.sum() == pytest.approx(stored.pairs.sum(), rel=0.03)
    for value in ("right", "difference"):
        then = rewards.share(rewards.totals(stored.query("measure == 'pairs'"), value))
        again = rewards.share(rewards.totals(now.query("measure == 'pairs'"), value))
        assert again == pytest.approx(then, abs=0.05)


@pytest.mark.skipif(not JUDGES.exists(), reason=f"{JUDGES.name} is not there: python -m utils.runs judges makes it")
def test_a_stored_reward_of_real_answers_is_made_again():
    few = min(rewards.SHARES)
    stored = pd.read_parquet(JUDGES).query(f"judge == 'gpt4' and split == 0 and pairs == {few}").weights.iloc[0]
    pairs = benchmarks.judgements(rewards.JUDGES)
    some = [pairs[i] for i in rewards.split(pairs, 0)[0][:few]]
    weights = rewards.linear(rewards.features(some), np.array([pair["gpt4"] for pair in some]))
    assert weights.tolist() == pytest.approx(list(stored), abs=1e-3)
    assert json.loads((runs.RUNS / "judges.json").read_text())["command"].endswith("judges")
