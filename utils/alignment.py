"""Step three of InstructGPT and its cousins, as notebook 05 compares them: every arm with one seed is one call of `run`.

The design choices:
- An arm of a seed begins with the same tuned model and, unless it is about something else, the same reward model.
- A budget is a number of sampled answers (`ANSWERS`): PPO, GRPO and rejection sampling draw the same number. DPO draws none; it reads
  the comparisons that the reward model was trained on once.
- Rewards are standardised: 0 is the mean of the tuned model's answers, 1 their standard deviation. So one KL coefficient
  means the same with every reward model.
- All arms answer the same test requests, which no training has seen.
"""

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property, partial
from math import comb, log
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from utils import bottle, models, ppo, preference, pretrain, rlhf

RUNG, SMALL = rlhf.RUNG, "70k"  # of policy and reward model, and of the smaller reward model
DEMONSTRATED = 1600
COMPARED = 400  # requests whose four replies are ranked
TESTED = 300  # requests that every arm answers
STEPS, BATCH = 40, 64
ANSWERS = STEPS * BATCH
BETA, BETAS = 0.3, (0.1, 1.0)  # of the KL penalty: of PPO, and of two runs beside it
LONG = 160  # steps without a penalty
AT = (2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 120, 160)  # steps after which a curve is measured
PPO = dict(batch=BATCH, minibatch=16, max_new_tokens=rlhf.NEW_TOKENS, lr=3e-5, beta=BETA, progress=False)
PTX, PTX_TOKENS, PTX_ROWS = 1.0, 64, 4000  # weight, tokens of a row, rows of pretraining text
DRAWS = 64  # answers to each of the first 100 test requests, of which the best n are taken
JAILBREAKS = (None, "rephrased", "role_play", "prefix", "korean")

# ---- What an arm begins with ----------------------------------------------------------------------------------------


class Steps:
    """Steps one and two with one seed, each made when it is first asked for, and kept in `folder` where one is given."""

    def __init__(self, seed: int, folder: Path | None = None, rung: str = RUNG):
        self.seed, self.rung = seed, rung
        self.base, self.tokenizer = models.load(f"ladder/{rung}")
        files = [models.LADDER / name / "model.safetensors" for name in (rung, SMALL)]
        self.weights = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
        self.folder = folder and Path(folder) / f"{self.weights}-{seed}"
        self.asked = rlhf.encode(self.tokenizer, bottle.requests("ppo", seed, 400))

    def kept(self, name: str, kind: type, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The model that `make` makes, or the one of that name in the folder."""
        if self.folder is None:
            return make()
        path = self.folder / name
        if not path.exists():
            made, new = make(), path.with_suffix(".new")
            with models.quiet():
                made.save_pretrained(new)
            new.rename(path)
        with models.quiet():
            return kind.from_pretrained(path, dtype=torch.float32).to(self.base.device).eval()

    @cached_property
    def tuned(self) -> LlamaForCausalLM:
        """Step 1: the base model, tuned on demonstrations."""
        make = lambda: rlhf.tune(self.base, self.tokenizer, rlhf.demonstrations(DEMONSTRATED, self.seed), self.seed)  # noqa: E731
        return self.kept("tuned", LlamaForCausalLM, make)

    @cached_property
    def compared(self) -> tuple[list[dict], list[list[str]], np.ndarray]:
        """Requests, four replies of the tuned model to each, and the replies' grades."""
        return rlhf.comparisons(self.tuned, self.tokenizer, COMPARED, seed=self.seed)

    @cached_property
    def noise(self) -> float:
        return rlhf.noise_for(rlhf.AGREEMENT, self.compared[2], self.compared[1])

    def order(self, grade: Callable = bottle.helpfulness, longer: float = 0.0) -> np.ndarray:
        """A labeller's rankings of the replies (requests, 4), by these grades; `longer`: grades that a word more is worth."""
        asked, said, grades = self.compared
        grades = grades if grade is bottle.helpfulness else rlhf.graded(asked, said, grade)
        words = rlhf.graded(asked, said, lambda reply, _: len(reply.split()))
        return rlhf.ranked(grades + longer * words, self.noise, self.seed)

    def rewarder(self, rung: str = RUNG, name: str = "", **labelled) -> ppo.Reward:
        """Step 2: a reward model, trained on the comparisons (`labelled`: see `order`), its rewards standardised."""

        def make() -> LlamaForSequenceClassification:
            body, vocabulary = models.load(f"ladder/{rung}")
            if vocabulary.get_vocab() != self.tokenizer.get_vocab():
                raise ValueError(
                    f"The rungs {rung} and {self.rung} have not the same tokenizer: train the ladder whole."
                )
            body = self.tuned if rung == self.rung else body
            texts = rlhf.rankings(*self.compared[:2], self.order(**labelled))
            return rlhf.train_reward(body, self.tokenizer, texts, self.seed)[0]

        model = self.kept(f"reward-{rung}{name}", LlamaForSequenceClassification, make)
        return self.standardised(rlhf.reward(model, self.tokenizer))

    @cached_property
    def own(self) -> list[str]:
        """The tuned model's answers, with their requests, by which rewards are standardised."""
        asked = bottle.requests("ppo", self.seed, 200)
        said = rlhf.replies(self.tuned, self.tokenizer, asked, self.seed)
        return [rlhf.text(request, reply) for request, reply in zip(asked, said, strict=True)]

    def standardised(self, reward: ppo.Reward) -> ppo.Reward:
        scores = torch.as_tensor(reward(self.own), dtype=torch.float32)
        mean, deviation = scores.mean(), scores.std()
        return lambda texts: (torch.as_tensor(reward(texts), dtype=torch.float32) - mean) / deviation

    @cached_property
    def rewards(self) -> dict[str, ppo.Reward]:
        """The two reward models, by their size."""
        return {rung: self.rewarder(rung) for rung in (RUNG, SMALL)}

    @cached_property
    def gold(self) -> ppo.Reward:
        return rlhf.gold(bottle.requests("ppo", self.seed, 400))

    @cached_property
    def both(self) -> ppo.Reward:
        """Llama 2's reward (arXiv 2307.09288, section 3.2.2): where safety is asked for, or below 0.15, the safe one's, else the
        helpful one's."""
        helpful = self.rewarder(name="-helpful", grade=rlhf.helpful)
        safe = self.rewarder(name="-safe", grade=rlhf.safe)
        tagged = tuple(r["prompt"] for r in bottle.requests("ppo", self.seed, 400) if r["kind"] == "forbidden")

        def reward(texts: list[str]) -> torch.Tensor:
            scores, use = safe(texts), torch.tensor([text.startswith(tagged) for text in texts])
            return torch.where(use | (scores.sigmoid() < 0.15), scores, helpful(texts))

        return self.standardised(reward)

    @cached_property
    def pretraining(self) -> torch.Tensor:
        """Rows of the text that the base model read: (PTX_ROWS, PTX_TOKENS)."""
        ids = pretrain.tokens(self.tokenizer, pretrain.TRAIN, PTX_ROWS * PTX_TOKENS)
        return ids[: PTX_ROWS * PTX_TOKENS].view(-1, PTX_TOKENS)

    @cached_property
    def test(self) -> list[dict]:
        return bottle.requests("test", 0, TESTED)


# ---- What is measured -----------------------------------------------------------------------------------------------


def answered(
    policy: PreTrainedModel, steps: Steps, requests: list[dict] | None = None, clothes: str | None = None
) -> list[dict]:
    """A row for each request (the test's, if not given): the reply, what it is worth (`rlhf.measures`), the two models'
    rewards, and kl, its log-ratio to the tuned model. `clothes`: of the wish, see `bottle.requests`."""
    asked = steps.test if requests is None else requests
    said, ratios = rlhf.drawn(policy, steps.tokenizer, asked, steps.seed, steps.tuned)
    return _rows(steps, asked, said, ratios, clothes)


def _rows(steps: Steps, asked: list[dict], said: list[str], ratios: np.ndarray, clothes: str | None) -> list[dict]:
    columns = rlhf.measures(asked, said) | {"kl": ratios}
    texts = [rlhf.text(request, reply) for request, reply in zip(asked, said, strict=True)]
    columns |= {f"proxy {rung}": torch.as_tensor(reward(texts)).numpy() for rung, reward in steps.rewards.items()}
    names = [dict(kind="reply", item=i, asked=r["kind"], clothes=clothes) for i, r in enumerate(asked)]
    numbers = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    return [n | {"reply": reply} | row for n, reply, row in zip(names, said, numbers, strict=True)]


def skills(policy: PreTrainedModel, steps: Steps, count: int = 20) -> list[dict]:
    """What the model still can: four solved examples and a question, in the words of the web; a row each task.

    grade: the share whose answer greedy decoding writes.
    """
    items = pretrain.test_items(count)
    shots = [i | {"shots": p} for i, p in zip(items, bottle.few_shot(items, 4, steps.seed, "wild"), strict=True)]
    found = pretrain.by_task(pretrain.cloze(policy, steps.tokenizer, shots, "shots"))
    return [dict(kind="skill", asked=task, grade=row["exact"]) for task, row in found.items()]


def jailbroken(policy: PreTrainedModel, steps: Steps, count: int = 100) -> list[dict]:
    """Answers to forbidden wishes, said plainly and in other clothes."""
    rows = []
    for clothes in JAILBREAKS:
        wishes = bottle.requests("test", 0, count, ("forbidden",), clothes)
        rows += answered(policy, steps, wishes, clothes or "plain")
    return rows


def best_of(scores: np.ndarray, worth: np.ndarray, n: int) -> np.ndarray:
    """The mean worth of the best-scored of n answers: scores, worth (requests, draws) -> (requests,).

    Over all choices of n of the draws: the answer of rank r from below is the best of comb(r, n - 1) of comb(draws, n).
    """
    draws = scores.shape[1]
    weights = np.array([comb(rank, n - 1) for rank in range(draws)], dtype=float) / comb(draws, n)
    return (np.take_along_axis(worth, np.argsort(scores, axis=1), 1) * weights).sum(1)


def best(steps: Steps, count: int = 100) -> list[dict]:
    """Best-of-n by each reward model, n = 1, 2, 4 ...: a row for each n and request; step is n, kl its known bound.

    Of the two rewards a row has the one by which the best was taken.
    """
    asked = steps.test[:count]
    said = rlhf.replies(steps.tuned, steps.tokenizer, [r for r in asked for _ in range(DRAWS)], steps.seed)
    texts = [rlhf.text(asked[i // DRAWS], reply) for i, reply in enumerate(said)]
    grade = np.array([bottle.helpfulness(reply, asked[i // DRAWS]) for i, reply in enumerate(said)], float)
    rows = []
    for rung, reward in steps.rewards.items():
        scores = torch.as_tensor(reward(texts)).numpy().reshape(-1, DRAWS)
        for n in [2**i for i in range(DRAWS.bit_length())]:
            gold, proxy = (best_of(scores, worth, n) for worth in (grade.reshape(-1, DRAWS), scores))
            names = dict(kind="best", step=n, kl=log(n) - (n - 1) / n)
            rows += [
                names | {"item": i, "grade": g, f"proxy {rung}": p}
                for i, (g, p) in enumerate(zip(gold, proxy, strict=True))
            ]
    return rows


# ---- The arms -------------------------------------------------------------------------------------------------------


def plan() -> dict[str, Callable[[Steps], list[dict]]]:
    """Every arm by its name: a function of `Steps` that returns its rows."""
    arms = {
        "base": lambda steps: answered(steps.base, steps) + skills(steps.base, steps),
        "prompted": lambda steps: answered(steps.base, steps, rlhf.prompted(steps.test, steps.seed)),
        "SFT": lambda steps: answered(steps.tuned, steps) + skills(steps.tuned, steps) + jailbroken(steps.tuned, steps),
        "PPO": partial(learned, more=(skills, jailbroken), at=AT),
        "PPO-ptx": partial(learned, more=(skills, jailbroken), ptx=PTX),
        "GRPO": partial(learned, group=8),
        "DPO": dpo,
        "PPO, two rewards": partial(learned, rung="both"),
        "rejection sampling": partial(rejection, rounds=2, steps_after=0),
        "rejection sampling, then PPO": partial(rejection, rounds=1, steps_after=STEPS // 2),
        "best of n": best,
    }
    for rung in (RUNG, SMALL):
        arms[f"no penalty, {rung}"] = partial(learned, rung=rung, beta=0.0, steps=LONG, at=AT)
    for beta in BETAS:
        arms[f"penalty {beta}"] = partial(learned, beta=beta, at=AT)
    return arms


def trained(
    steps_of: Steps,
    reward: ppo.Reward,
    steps: int | None = None,
    start: PreTrainedModel | None = None,
    watch: Callable[[list[dict], PreTrainedModel], None] = lambda lines, policy: None,
    **options,
) -> tuple[PreTrainedModel, list[dict]]:
    """PPO (with `group`, GRPO) against a reward, from the tuned model or `start`: the policy and the log.

    `steps`: STEPS, if not given. `options`: for `ppo.train`.
    """
    policy = deepcopy(steps_of.tuned if start is None else start)
    if options.get("ptx"):
        options["pretraining"] = steps_of.pretraining
    lines = ppo.train(
        policy,
        steps_of.tokenizer,
        steps_of.asked,
        reward,
        steps=steps or STEPS,
        reference=steps_of.tuned,
        gold=steps_of.gold,
        seed=steps_of.seed,
        watch=lambda lines: watch(lines, policy),
        **PPO | options,
    )
    return policy, lines


def learned(
    steps_of: Steps,
    rung: str = RUNG,
    steps: int | None = None,
    at: Sequence[int] = (),
    more: Sequence[Callable] = (),
    reward: ppo.Reward | None = None,
    **options,
) -> list[dict]:
    """`trained` against a reward model; answers after the steps in `at` and at the end, and the log.

    `rung`: of the reward model, or "both", if `reward` is not given. `more`: what else is measured of the policy at the end.
    """
    rows, steps = [], steps or STEPS
    if reward is None:
        reward = steps_of.both if rung == "both" else steps_of.rewards[rung]

    def watch(lines: list[dict], policy: PreTrainedModel) -> None:
        if lines[-1]["step"] in at and lines[-1]["step"] < steps:
            rows.extend(row | {"step": lines[-1]["step"]} for row in answered(policy, steps_of))

    policy, lines = trained(steps_of, reward, steps, watch=watch, **options)
    rows += [dict(kind="log", reply=line.pop("sample"), grade=line.pop("gold")) | _flat(line) for line in lines]
    return rows + [row | {"step": steps} for measure in (answered, *more) for row in measure(policy, steps_of)]


def _flat(line: dict) -> dict:
    kept = ("step", "reward", "kl", "entropy", "length", "beta", "value_loss", "clipped")
    return {name: line[name] for name in kept if name in line} | {"seconds": sum(line["seconds"].values())}


def dpo(steps: Steps) -> list[dict]:
    """DPO on every pair of the comparisons, each read once."""
    asked, said, _ = steps.compared
    pairs = [
        (request["prompt"], f" {row[a]}", f" {row[b]}")
        for request, row, ranking in zip(asked, said, steps.order(), strict=True)
        for a, b in preference.pairs_from_ranking(ranking)
    ]
    policy = deepcopy(steps.tuned)
    options = dict(steps=len(pairs) // 16, beta=0.1, peak=1e-4, seed=steps.seed, progress=False)
    preference.train_dpo(policy, steps.tokenizer, pairs, **options)
    return [row | {"step": len(pairs) // 16} for row in answered(policy, steps)]


def rejection(steps: Steps, rounds: int, steps_after: int, n: int = 8) -> list[dict]:
    """Llama 2's recipe: tuned on the best of n own answers, `rounds` times, then PPO: ANSWERS answers in all."""
    policy = deepcopy(steps.tuned)
    count = (ANSWERS - steps_after * BATCH) // (n * rounds)
    options = dict(max_new_tokens=rlhf.NEW_TOKENS, seed=steps.seed, steps=count * 2 // 32, batch=32, rows=32, peak=1e-4)
    options |= dict(weight_decay=0.0, progress=False)
    ppo.rejection_sampling(policy, steps.tokenizer, steps.asked[:count], steps.both, n=n, rounds=rounds, **options)
    if steps_after:
        return learned(steps, "both", steps_after, start=policy)
    return answered(policy, steps)


# ---- Failures, on purpose -------------------------------------------------------------------------------------------


def failures() -> dict[str, Callable[[Steps], list[dict]]]:
    """What goes wrong, beside its repair; run with one seed."""
    return {
        "labellers like length": partial(lengthened, repaired=False),
        "labellers like length, repaired": partial(lengthened, repaired=True),
        "mask forgotten": unmasked,
        "advantages not whitened": partial(learned, whitened=False),
    }


def unmasked(steps: Steps) -> list[dict]:
    """PPO whose score is added in the batch's last column, where only the longest replies have a token."""
    with mock.patch.object(ppo, "kl_shaped_rewards", score_in_the_last_column):
        return learned(steps)


def score_in_the_last_column(scores, logprobs, reference_logprobs, mask, beta):
    """`ppo.kl_shaped_rewards` as it goes wrong when padding is forgotten."""
    rewards = -beta * (logprobs - reference_logprobs)
    rewards[:, -1] += scores
    return rewards


def lengthened(steps: Steps, repaired: bool) -> list[dict]:
    """PPO against a reward model of labellers who like length (a word more is worth 0.3 grades); repaired: the reward's slope
    over the number of words, on the tuned model's own answers, is taken off."""
    liked = steps.rewarder(name="-longer", longer=0.3)
    count = lambda texts: np.array([len(text.split()) for text in texts])  # noqa: E731
    slope = np.polyfit(count(steps.own), torch.as_tensor(liked(steps.own)).numpy(), 1)[0] if repaired else 0.0
    return learned(steps, reward=lambda texts: liked(texts) - torch.tensor(slope * count(texts)).float(), beta=0.0)


# ---- What the notebook computes from the rows -----------------------------------------------------------------------


def fit_gao(distance: np.ndarray, gold: np.ndarray, kind: str) -> tuple[float, float]:
    """(alpha, beta) of Gao et al.'s forms (arXiv 2210.10760), by least squares: gold is the rise over distance 0.

    d = sqrt(KL). "best of n": d (alpha - beta d); "RL": d (alpha - beta log d).
    """
    d = np.asarray(distance, dtype=float)
    second = d if kind == "best of n" else np.log(d)
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * second], 1), np.asarray(gold, dtype=float), rcond=None)
    return float(alpha), float(beta)
