"""The experiments of notebook 04: what a reward model learns from comparisons, one arm at a time.

The design choices:
- Every arm is one call of `arm`: the same policy, comparisons and held-out pairs for all arms of a seed, so that arms differ in
  one thing only. The number of steps is the same too, unless the arm is about it.
- Held out are requests of the split "test" (other people, other words), the policy's own replies to them, and labellers
  of their own with the same noise. All seeds share these requests, so requests and seeds can both be resampled.
- A row holds sums over the pairs of a request, as many rows as its pairs have strengths; accuracy is `right` over `pairs`.
"""

from functools import lru_cache

import numpy as np
import torch

from utils import bottle, models, preference, pretrain, rlhf

ASKED, K = 416, 6  # requests whose replies are compared (all that the split has), and replies in a ranking
HELD_OUT, TESTED = 200, 4  # held-out requests, and replies to each
WRITTEN = 304  # requests for the two kinds of labellers, with TESTED of the bottle's own replies each
LABELLERS = 1000  # added to a seed for the held-out labellers
SEEDS = (0, 1, 2)
MANY = (0, 1, 2, 3, 4)  # for the claims that compare arms of one size


def plan() -> list[dict]:
    """Every arm: experiment, setting, rung and seed, which name it, and options for `arm`."""
    found = []

    def add(experiment, setting="", rung=rlhf.RUNG, seeds=SEEDS, **options):
        names = dict(experiment=experiment, setting=str(setting), rung=rung)
        found.extend(names | dict(seed=seed) | options for seed in seeds)

    for margin in rlhf.MARGINS:  # "none" is the plain reward model
        add("margin", margin, seeds=MANY, margin=margin)
    for rung in pretrain.RUNGS:
        if rung != rlhf.RUNG:
            add("size", rung, rung)
    for asked in (52, 208):
        add("rankings", asked, asked=asked)
    for k in (2, 4):
        add("k", k, k=k)
    for agreement in (0.773, 1.0):
        add("agreement", agreement, agreement=agreement)
    add("length", "labellers like long replies", words=0.2)
    for epochs in (1, 5):
        add("batch", f"a ranking in one element, epochs: {epochs}", steps=epochs * ASKED // 8, seeds=SEEDS[:2])
    pairs = ASKED * K * (K - 1) // 2
    add("batch", "pairs as separate examples, epochs: 1", apart=True, batch=24, steps=pairs // 24, seeds=SEEDS[:2])
    for kind in ("helpful", "safe", "both"):
        add("kinds", kind)
    return found


@lru_cache(maxsize=3)
def policy(rung: str, seed: int) -> tuple:
    """(model, tokenizer) of a rung after step 1."""
    base, tokenizer = models.load(f"ladder/{rung}")
    bf16 = pretrain.RUNGS[rung].get("bf16", False)
    return rlhf.tune(base, tokenizer, rlhf.demonstrations(seed=seed), seed, bf16=bf16), tokenizer


@lru_cache(maxsize=1)
def collected(seed: int) -> dict:
    """What a seed's arms share: "train" and "held out", each (asked, said, grades), drawn from the policy of step 1."""
    model, tokenizer = policy(rlhf.RUNG, seed)
    asked = bottle.requests("test", 0, HELD_OUT)
    said = rlhf.several(model, tokenizer, asked, TESTED, seed)
    train = rlhf.comparisons(model, tokenizer, ASKED, K, seed)
    return {"train": train, "held out": (asked, said, rlhf.graded(asked, said))}


def arm(planned: dict) -> list[dict]:
    """Run one arm of `plan`: its rows."""
    names = {key: planned[key] for key in ("experiment", "setting", "rung", "seed")}
    options = {key: value for key, value in planned.items() if key not in names}
    found = (
        kinds(names) if names["experiment"] == "kinds" else train_and_measure(names["rung"], names["seed"], **options)
    )
    return [names | row for row in found]


def train_and_measure(
    rung: str,
    seed: int,
    margin: str = "none",
    asked: int = ASKED,
    k: int = K,
    agreement: float = rlhf.AGREEMENT,
    words: float = 0.0,
    apart: bool = False,
    **options,
) -> list[dict]:
    """A reward model of this rung, trained on `asked` rankings of `k` replies, and what it makes of the held-out pairs.

    `words`: how many grades a further word is worth to the labellers; `apart`: every pair is an example of its own.
    """
    model, tokenizer = policy(rung, seed)
    requests, said, grades = collected(seed)["train"]
    requests, said, grades = requests[:asked], [row[:k] for row in said[:asked]], grades[:asked, :k]
    noise = labeller_noise(agreement, grades, said)
    liked = grades + words * np.array([[len(reply.split()) for reply in row] for row in said])
    seen = rlhf.perceived(liked, noise, seed)
    order = np.argsort(-seen, axis=1)
    levels, edges = rlhf.strengths(seen, order)
    margins = torch.tensor(rlhf.MARGINS[margin])[torch.from_numpy(levels)]
    texts = rlhf.rankings(requests, said, order)
    if apart:
        texts = [[row[i], row[j]] for row in texts for i, j in preference.pairs_from_ranking(range(k))]
        margins = margins.reshape(-1, 1)
    reward, log = rlhf.train_reward(model, tokenizer, texts, seed, margins=list(margins), **options)
    last = log[-min(len(log), 20) :]
    told = {f"train_{name}": float(np.mean([line[name] for line in last])) for name in ("loss", "accuracy")}
    rows = held_out(reward, tokenizer, seed, agreement, edges) + longer(reward, tokenizer)
    return [told | row for row in rows]


def labeller_noise(agreement: float, grades: np.ndarray, said: list[list[str]]) -> float:
    """`rlhf.noise_for`; almost none where labellers always agree (but on replies of equal grade)."""
    return 1e-3 if agreement == 1 else rlhf.noise_for(agreement, grades, said)


def held_out(model, tokenizer, seed: int, agreement: float, edges: np.ndarray) -> list[dict]:
    """What a reward model makes of the held-out labellers' pairs: a row for each request and strength of preference."""
    asked, said, grades = collected(seed)["held out"]
    seen = rlhf.perceived(grades, labeller_noise(agreement, grades, said), LABELLERS + seed)
    order = np.argsort(-seen, axis=1)
    request, difference, strength = rlhf.compared(said, order, rlhf.scores(model, tokenizer, asked, said), seen)
    return sums("pairs", request, difference, np.searchsorted(edges, strength))


def longer(model, tokenizer) -> list[dict]:
    """The longer reply's reward minus the shorter one's, of pairs that differ in length only: rows as of `held_out`."""
    pairs = rlhf.lengthened(bottle.requests("test", 0, HELD_OUT))
    short, long = (preference.score(model, tokenizer, texts) for texts in zip(*pairs, strict=True))
    return sums("longer", np.arange(len(pairs)), (long - short).numpy(), np.zeros(len(pairs), dtype=int))


def sums(measure: str, request: np.ndarray, difference: np.ndarray, strength: np.ndarray, kind: str = "") -> list[dict]:
    """Sums over the pairs of each request and strength: pairs, right (a tie is half right), difference, loss (nats)."""
    right, loss = (np.sign(difference) + 1) / 2, np.logaddexp(0, -difference)
    rows = []
    for i, s in sorted(set(zip(request.tolist(), strength.tolist(), strict=True))):
        chosen = (request == i) & (strength == s)
        row = dict(measure=measure, kind=kind, request=i, strength=s, pairs=int(chosen.sum()))
        totals = dict(right=right, difference=difference, loss=loss)
        rows.append(row | {name: round(float(values[chosen].sum()), 4) for name, values in totals.items()})
    return rows


def kinds(names: dict) -> list[dict]:
    """Labellers who ask for help only, labellers who ask for safety only: a model for one of them, or one for both.

    Both kinds rank the same replies. The model for both sees twice the comparisons in twice the steps, so each comparison
    as often as the others see theirs.
    """
    seed, (model, tokenizer) = names["seed"], policy(names["rung"], names["seed"])
    judged = {"helpful": rlhf.helpful, "safe": rlhf.safe}
    wanted = list(judged) if names["setting"] == "both" else [names["setting"]]

    def ranked(split: str, count: int, seed: int, number: int, kind: str) -> tuple:
        asked = bottle.requests(split, number, count)
        said = rlhf.written(asked, TESTED, seed)
        grades = rlhf.graded(asked, said, judged[kind])
        return (
            asked,
            said,
            rlhf.ranked(grades, rlhf.noise_for(rlhf.AGREEMENT, grades), seed + list(judged).index(kind) * 100),
        )

    texts = [row for kind in wanted for row in rlhf.rankings(*ranked("preference", WRITTEN, seed, seed, kind))]
    reward, _ = rlhf.train_reward(model, tokenizer, texts, seed, steps=2 * len(texts) // 8)
    rows = []
    for kind in judged:
        asked, said, order = ranked("test", HELD_OUT, LABELLERS + seed, 0, kind)
        request, difference = rlhf.compared(said, order, rlhf.scores(reward, tokenizer, asked, said))
        forbidden = np.array([asked[i]["kind"] == "forbidden" for i in request], dtype=int)
        rows += sums("pairs", request, difference, forbidden, kind)  # here the strength tells forbidden wishes apart
    return rows


def totals(rows, value: str = "right") -> np.ndarray:
    """Rows of one arm as an array (requests, seeds, 2): the sum of `value` and the number of pairs, 0 where none is."""
    wide = rows.pivot_table(index="request", columns="seed", values=[value, "pairs"], aggfunc="sum", fill_value=0)
    return np.stack([wide[value].to_numpy(float), wide["pairs"].to_numpy(float)], axis=2)


def share(values: np.ndarray) -> float:
    """`totals` -> the mean over all pairs: of `right`, the accuracy."""
    return float(values[..., 0].sum() / values[..., 1].sum())


# ---- Real judgements ------------------------------------------------------------------------------------------------

JUDGES = ("gpt4", "claude")  # of AlpacaEval's judges those who judged most pairs
SHARES = (100, 300, 1000, 2000)  # pairs to learn from
TEST, SPLITS = 600, 5  # held-out pairs, and how often the instructions are split anew
RIDGE = 1.0


def features(pairs: list[dict]) -> torch.Tensor:
    """MiniLM's embedding of instruction and answer: (pairs, 2, 384), a's and b's."""
    texts = [f"{pair['instruction']}\n{pair[answer]}" for pair in pairs for answer in ("a", "b")]
    return models.sentence_embeddings(texts).view(len(pairs), 2, -1)


def split(pairs: list[dict], number: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices to learn from, held-out ones) of the split with this number: no instruction is on both sides."""
    rng, instructions = np.random.default_rng(number), sorted({pair["instruction"] for pair in pairs})
    place = dict(zip(instructions, rng.permutation(len(instructions)), strict=True))
    order = sorted(range(len(pairs)), key=lambda i: (place[pairs[i]["instruction"]], i))
    first = next(
        i
        for i in range(TEST, len(order))
        if place[pairs[order[i]]["instruction"]] != place[pairs[order[i - 1]]["instruction"]]
    )
    return rng.permutation(order[first:]), np.array(order[:first])


def linear(features: torch.Tensor, votes: np.ndarray, ridge: float = RIDGE) -> torch.Tensor:
    """The reward's weights (d,): features (pairs, 2, d) of a and b, votes (pairs,) 0 or 1."""
    rows = torch.arange(len(votes))
    votes = torch.as_tensor(votes)
    return preference.linear_reward(features[rows, votes] - features[rows, 1 - votes], ridge)


def judged(pairs: list[dict], features: torch.Tensor, judge: str) -> list[dict]:
    """Rewards learned from a judge's votes: for each split and number of pairs, what they make of the held-out pairs.

    right: the share of the held-out pairs where the judge's answer has the higher reward; other: the same against the
    other judge; longer: the share where the longer answer has it; judge_longer: where the judge prefers the longer.
    """
    votes = {name: np.array([pair[name] for pair in pairs]) for name in JUDGES}
    lengths = np.array([pair["lengths"] for pair in pairs])
    (other,) = set(JUDGES) - {judge}
    rows = []
    for number in range(SPLITS):
        learn, held = split(pairs, number)
        uneven = lengths[held, 0] != lengths[held, 1]
        long = (lengths[held, 1] > lengths[held, 0])[uneven]
        for count in SHARES:
            weights = linear(features[learn[:count]], votes[judge][learn[:count]])
            chosen = ((features[held, 1] - features[held, 0]).double() @ weights > 0).numpy()
            row = dict(judge=judge, split=number, pairs=count, held_out=len(held))
            row |= dict(
                right=float((chosen == votes[judge][held]).mean()), other=float((chosen == votes[other][held]).mean())
            )
            row |= dict(longer=float((chosen[uneven] == long).mean()))
            row |= dict(judge_longer=float((votes[judge][held][uneven] == long).mean()))
            rows.append(row | dict(weights=weights.tolist() if count in (min(SHARES), max(SHARES)) else []))
    return rows
