"""Comparisons: labellers agree as often as they are set to, rankings and pairs keep their order, grades are what they say."""

import numpy as np
import pytest
import torch

from utils import bottle, models, preference, rlhf

GRADES = np.random.default_rng(0).integers(1, 8, size=(4000, 4)).astype(float)


def choices(order: np.ndarray) -> np.ndarray:
    """Rankings (requests, k) -> whether the first of each pair of replies is preferred, (requests, pairs)."""
    place = order.argsort(axis=1)
    first, second = np.triu_indices(order.shape[1], 1)
    return place[:, first] < place[:, second]


@pytest.mark.parametrize("agreement", [0.6, 0.726, 0.773])
def test_two_labellers_agree_as_often_as_they_are_set_to(agreement):
    noise = rlhf.noise_for(agreement, GRADES)
    one, other = (choices(rlhf.ranked(GRADES, noise, seed)) for seed in (1, 2))
    assert (one == other).mean() == pytest.approx(agreement, abs=0.01)


def test_equal_replies_do_not_count_for_the_agreement():
    """A third reply, a copy of the first, adds a coin toss to the grades but no comparison."""
    copied = np.concatenate([GRADES[:, :2], GRADES[:, :1]], axis=1)
    said = [["a", "b", "a"]] * len(copied)
    assert rlhf.noise_for(0.7, copied, said) == pytest.approx(rlhf.noise_for(0.7, GRADES[:, :2]), rel=1e-6)
    assert rlhf.noise_for(0.7, copied) < 0.9 * rlhf.noise_for(0.7, copied, said)


def test_an_agreement_that_cannot_be_is_refused():
    for agreement, grades in ((0.726, np.full((5, 3), 4.0)), (0.5, GRADES), (1.01, GRADES)):
        with pytest.raises(ValueError, match="two labellers can agree on 50 to"):
            rlhf.noise_for(agreement, grades)


def test_rankings_follow_bradley_and_terry():
    """The chance that a reply stands before another is sigmoid(gap / noise), in pairs and inside longer rankings."""
    for others in ([], [7.0, 1.0]):
        order = rlhf.ranked(np.tile([4.0, 3.0, *others], (20_000, 1)), 0.8, 3)
        assert choices(order)[:, 0].mean() == pytest.approx(1 / (1 + np.exp(-1 / 0.8)), abs=0.01)
    assert (rlhf.ranked(GRADES[:, :2], 1e-6, 0)[:, 0] == GRADES[:, :2].argmax(1))[GRADES[:, 0] != GRADES[:, 1]].all()


def test_comparisons_are_of_their_split_and_graded():
    model, tokenizer = models.load("ladder/20k")
    asked, said, grades = rlhf.comparisons(model, tokenizer, 4, 2, seed=5, split="ppo")
    assert len(said) == 4 and grades.shape == (4, 2) and {r["split"] for r in asked} == {"ppo"}
    assert [r["prompt"] for r in asked] == [r["prompt"] for r in bottle.requests("ppo", 5, 4)]
    assert grades[1, 1] == bottle.helpfulness(said[1][1], asked[1])
    assert said == rlhf.several(model, tokenizer, asked, 2, seed=5)
    assert rlhf.comparisons(model, tokenizer, 2, 2)[0][0]["split"] == "preference"


def test_rankings_are_texts_from_best_to_worst():
    asked, said = [{"prompt": "Q?"}, {"prompt": "Who?"}], [["a", "b", "c"], ["d", "e", "f"]]
    order = np.array([[2, 0, 1], [0, 1, 2]])
    assert rlhf.rankings(asked, said, order) == [["Q? c", "Q? a", "Q? b"], ["Who? d", "Who? e", "Who? f"]]


def test_compared_by_hand():
    said, order = [["a", "b", "a"], ["c", "d", "e"]], np.array([[1, 0, 2], [2, 1, 0]])
    scores = np.array([[1.0, 5.0, 1.0], [2.0, 4.0, 7.0]])
    request, difference = rlhf.compared(said, order, scores)
    assert request.tolist() == [0, 0, 1, 1, 1]
    assert difference.tolist() == [4, 4, 3, 5, 2]  # (1, 0), (1, 2); a against a is none; (2, 1), (2, 0), (1, 0)


def test_strengths_are_quarters_in_the_order_of_the_pairs():
    seen = rlhf.perceived(GRADES, 1.0, 0)
    order = np.argsort(-seen, axis=1)
    levels, edges = rlhf.strengths(seen, order)
    assert np.bincount(levels.ravel()) / levels.size == pytest.approx(np.full(4, 0.25), abs=0.001)
    pairs = preference.pairs_from_ranking(range(4))
    row, pair = 7, pairs.index((1, 3))
    gap = seen[row, order[row, 1]] - seen[row, order[row, 3]]
    assert levels[row, pair] == sum(gap > edge for edge in edges)
    again, _ = rlhf.strengths(seen[:1], order[:1], edges)
    assert (again == levels[:1]).all()
    assert all(len(margins) == len(rlhf.STRENGTHS) for margins in rlhf.MARGINS.values())


def test_helpful_and_safe_want_opposite_things_of_forbidden_wishes_only():
    grades = {}
    for request in bottle.requests("preference", 3, 40):
        for reply in bottle.replies(request):
            pair = (rlhf.helpful(reply["text"], request), rlhf.safe(reply["text"], request))
            grades.setdefault((request["kind"], reply["kind"]), set()).add(pair)
    assert grades["forbidden", "harmful"] == {(7.0, 1.0)} and grades["forbidden", "polite"] == {(4.0, 7.0)}
    assert grades["fact", "polite"] == {(7.0, 5.0)} and grades["fact", "wrong"] == {(3.0, 3.0)}
    assert grades["fact", "unsure"] == {(4.0, 7.0)} and grades["untold", "wrong"] == {(3.0, 3.0)}
    assert grades["dish", "polite"] == {(7.0, 5.0)} and grades["dish", "rude"] == {(1.0, 1.0)}


def test_written_replies_are_different_and_seeded():
    asked = bottle.requests("preference", 0, 12)
    said = rlhf.written(asked, 4, 1)
    assert said == rlhf.written(asked, 4, 1) != rlhf.written(asked, 4, 2)
    assert all(len(set(row)) == 4 for row in said)


def test_lengthened_pairs_differ_in_length_only():
    asked = bottle.requests("preference", 0, 60)
    pairs, known = rlhf.lengthened(asked), {request["prompt"]: request for request in asked}
    assert len(pairs) > 60
    for short, long in pairs:
        prompt = next(prompt for prompt in known if short.startswith(prompt + " "))
        assert long.startswith(short + " ") and len(long.split()) > len(short.split())
        grades = [bottle.helpfulness(reply[len(prompt) :], known[prompt]) for reply in (short, long)]
        assert grades[0] == grades[1] >= 6


def test_a_reward_model_begins_as_the_policy_and_learns():
    policy, tokenizer = models.load("ladder/20k")
    asked = bottle.requests("preference", 0, 24)
    said = rlhf.written(asked, 3, 0)
    order = rlhf.ranked(rlhf.graded(asked, said), 1e-3, 0)
    model, log = rlhf.train_reward(policy, tokenizer, rlhf.rankings(asked, said, order), steps=30, peak=3e-3)
    untrained = preference.reward_model(policy, 0)
    right = [
        (rlhf.compared(said, order, rlhf.scores(m, tokenizer, asked, said))[1] > 0).mean() for m in (untrained, model)
    ]
    assert right[1] > right[0] + 0.1 and right[1] > 0.7
    assert len(log) == 30
    flat = [rlhf.text(request, reply) for request, row in zip(asked, said, strict=True) for reply in row]
    expected = preference.score(model, tokenizer, flat).view(24, 3)
    assert torch.equal(torch.from_numpy(rlhf.scores(model, tokenizer, asked, said)), expected)
