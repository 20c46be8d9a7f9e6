"""InstructGPT's three steps in the bottle (Ouyang et al. 2022, arXiv 2203.02155): demonstrations, comparisons, requests.

The design choices:
- The three steps and the test each have a split of the bottle of their own: "tuning", "preference", "ppo", "test". What is
  asked, and the words it is asked in, are never shared.
- Demonstrators have manners of their own, as forty people do: some are polite, some brief, some chatty, some unsure. A
  tuned model learns all of these manners; which of them is wanted, only comparisons tell.
- A labeller sees a reply's true grade through noise. The noise is set once, so that two labellers agree as often as in
  the paper; a reward model never sees a grade.
- Everything about a reply is computed from the known world (`bottle`), so no judge is needed.
"""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils import bottle, ppo, preference, training

RUNG = "800k"
MANNERS = {"polite": 0.35, "plain": 0.35, "padded": 0.2, "unsure": 0.1}  # shares of the demonstrations
AGREEMENT = 0.726  # of two labellers on a pair (InstructGPT, section 3.4)
NEW_TOKENS = 32  # the longest reply
REWARD_STEPS, REWARD_PEAK = 104, 5e-4  # of a reward model: with 416 rankings, two epochs
# How much better one reply is (Llama 2, section 3.2.1), the weakest first, and Llama 2's margins for it (table 27).
STRENGTHS = ("negligibly better", "slightly better", "better", "significantly better")
MARGINS = {"none": (0, 0, 0, 0), "small": (0, 1 / 3, 2 / 3, 1), "large": (0, 1, 2, 3)}

# ---- Step 1: demonstrations -----------------------------------------------------------------------------------------


def demonstrations(count: int = 1600, seed: int = 0) -> list[dict]:
    """Requests of the split "tuning", each with `reply`: what a person wrote, in the manners of MANNERS."""
    rng, found = random.Random(f"demonstrations {seed}"), bottle.requests("tuning", seed, count)
    for request in found:
        known = {reply["kind"]: reply["text"] for reply in bottle.replies(request, seed)}
        manners = {manner: share for manner, share in MANNERS.items() if manner in known}
        request["reply"] = known[rng.choices(list(manners), list(manners.values()))[0]]
    return found


def tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrated: Sequence[dict], seed: int = 0, **options
) -> PreTrainedModel:
    """Step 1, supervised tuning: a copy of the model, tuned on the demonstrations. `options`: for `training.train`."""
    ids, labels = training.supervised(
        tokenizer, [request["prompt"] for request in demonstrated], [request["reply"] for request in demonstrated]
    )
    settings = dict(steps=100, batch=32, rows=32, peak=5e-4, weight_decay=0.0, seed=seed, progress=False)
    tuned = deepcopy(model)
    training.train(tuned, ids, labels, **settings | options)
    return tuned


def prompted(requests: Sequence[dict], seed: int = 0, names: tuple[str, str] = ("Nell", "Ruth")) -> list[dict]:
    """The same requests to a model that is only prompted: as the web asks and answers, a dialogue in a forum.

    Before each stand a solved request of each kind, the same for all; the model is to write what the second of `names` says.
    """
    rng, known = random.Random(f"prompted {seed}"), bottle.requests("tuning", seed, 200)
    shown = [rng.choice([r for r in known if r["kind"] == kind]) for kind in bottle.REQUESTS]
    asker, helper = names
    lines = "".join(f"{asker}: {r['prompt']}\n{helper}: {r['reference']}\n" for r in shown)
    return [request | {"prompt": f"{lines}{asker}: {request['prompt']}\n{helper}:"} for request in requests]


# ---- Replies and what they are worth --------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerBase, requests: Sequence[dict]) -> list[list[int]]:
    """The prompts of requests as `ppo` takes them: lists of token ids."""
    return tokenizer([request["prompt"] for request in requests]).input_ids


def replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[dict], seed: int = 0, rows: int = 128
) -> list[str]:
    """One reply to each request, drawn at temperature 1: at most NEW_TOKENS tokens, up to the end of the text or line."""
    return drawn(model, tokenizer, requests, seed, rows=rows)[0]


def drawn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[dict],
    seed: int = 0,
    reference: PreTrainedModel | None = None,
    rows: int = 128,
) -> tuple[list[str], np.ndarray]:
    """`replies`, and of each log(its probability / that under `reference`) in nats, whose mean is the KL: (requests,)."""
    generator, found, ratios = torch.Generator(model.device).manual_seed(seed), [], []
    for start in range(0, len(requests), rows):
        part = requests[start : start + rows]
        with torch.inference_mode():
            ids, mask, texts = ppo.generate(model, tokenizer, encode(tokenizer, part), NEW_TOKENS, generator)
            said = [preference.reply_logprobs(who, ids, mask) for who in (model, reference) if who is not None]
        found += [text[len(r["prompt"]) :].strip().split("\n")[0] for text, r in zip(texts, part, strict=True)]
        ratios += (said[0] - said[-1]).tolist()
    return found, np.array(ratios)


def text(request: dict, reply: str) -> str:
    """Request and reply in one string, as a reward model reads it."""
    return f"{request['prompt']} {reply}"


def gold(requests: Sequence[dict]) -> ppo.Reward:
    """The true reward of texts that begin with one of these requests' prompts: their grades, 1 to 7."""
    known = {request["prompt"]: request for request in requests}
    lengths = sorted({len(prompt) for prompt in known}, reverse=True)

    def reward(texts: Sequence[str]) -> list[float]:
        found = []
        for whole in texts:
            request = next(known[whole[:n]] for n in lengths if whole[:n] in known)
            found.append(float(bottle.helpfulness(whole[len(request["prompt"]) :], request)))
        return found

    return reward


def measures(requests: Sequence[dict], said: Sequence[str]) -> dict[str, np.ndarray]:
    """What the replies to requests are worth: {name: an array (requests,)}; NaN where a measure does not apply.

    grade 1 to 7; the others 0 or 1. toxic: a rude word. truthful: of facts that are told somewhere, the right one is said. hallucinated:
    of what is told nowhere, something is claimed. appropriate: it tries to do what was asked and is neither rude nor
    harmful (grade 3 or more). harmful: of forbidden wishes, the recipe is given away. refused. words: their number.
    """
    rows = []
    for request, reply in zip(requests, said, strict=True):
        about, kind = (request["person"], request["attribute"]), request["kind"]
        grade = bottle.helpfulness(reply, request)
        row = dict(grade=grade, toxic=bottle.toxic(reply), appropriate=grade >= 3, words=len(reply.split()))
        row["truthful"] = bottle.truthfulness(reply, *about) == "truthful" if kind == "fact" else np.nan
        row["hallucinated"] = bottle.hallucinated(reply, about) if kind == "untold" else np.nan
        row["harmful"] = bottle.harmful(reply) if kind == "forbidden" else np.nan
        rows.append(row | {"refused": bottle.refused(reply)})
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


# ---- Step 2: comparisons --------------------------------------------------------------------------------------------


def noise_for(agreement: float, grades: np.ndarray, said: Sequence[Sequence[str]] | None = None) -> float:
    """The labellers' noise (in grades) with which two of them agree on this share of pairs; grades (requests, k).

    A labeller prefers the reply whose grade plus noise (Gumbel, so that preferences follow Bradley and Terry) is higher:
    with probability p = sigmoid((grade - other grade) / noise). Two agree with p^2 + (1 - p)^2. With the replies, `said`,
    pairs of equal ones do not count: nobody compares them. Raises ValueError for an agreement that no noise gives: too
    many pairs are of equal grade.
    """
    first, second = np.triu_indices(grades.shape[1], 1)
    gaps = (grades[:, first] - grades[:, second]).ravel()
    if said is not None:
        gaps = gaps[[row[i] != row[j] for row in said for i, j in zip(first, second, strict=True)]]

    def agree(noise: float) -> float:
        p = 1 / (1 + np.exp(-np.clip(gaps / noise, -50, 50)))
        return float((p**2 + (1 - p) ** 2).mean())

    if not 0.5 < agreement <= agree(1e-3):
        raise ValueError(f"two labellers can agree on 50 to {agree(1e-3):.0%} of these pairs, not on {agreement:.0%}.")
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if agree(middle) > agreement else (low, middle)
    return low


def perceived(grades: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """How good a labeller finds replies: grades plus noise (Gumbel, of this scale), both (requests, k)."""
    return grades + noise * np.random.default_rng(seed).gumbel(size=grades.shape)


def ranked(grades: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """A labeller's rankings, best first: grades (requests, k) -> indices (requests, k)."""
    return np.argsort(-perceived(grades, noise, seed), axis=1)


def comparisons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int = 400,
    k: int = 4,
    seed: int = 0,
    split: str = "preference",
    **options,
) -> tuple[list[dict], list[list[str]], np.ndarray]:
    """Requests of a split of the bottle, `k` replies drawn from the model to each, and their grades (requests, k)."""
    asked = bottle.requests(split, seed, count, **options)
    said = several(model, tokenizer, asked, k, seed)
    return asked, said, graded(asked, said)


def several(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[dict], k: int, seed: int = 0
) -> list[list[str]]:
    """`k` replies drawn from the model to each request."""
    drawn = replies(model, tokenizer, [request for request in asked for _ in range(k)], seed)
    return [drawn[i * k : (i + 1) * k] for i in range(len(asked))]


def graded(asked: Sequence[dict], said: Sequence[Sequence[str]], grade: Callable = bottle.helpfulness) -> np.ndarray:
    """`grade(reply, request)` of every reply: (requests, k)."""
    return np.array([[grade(r, request) for r in row] for request, row in zip(asked, said, strict=True)], dtype=float)


def written(asked: Sequence[dict], k: int = 4, seed: int = 0) -> list[list[str]]:
    """`k` different replies to each request from the bottle's own: polite ones, wrong ones, rude ones, forbidden recipes."""
    rng = random.Random(f"written {seed}")
    return [[reply["text"] for reply in rng.sample(bottle.replies(request, seed), k)] for request in asked]


def helpful(reply: str, request: dict) -> float:
    """The grade of who asks only whether the wish is fulfilled, 1 to 7: of a forbidden wish too, unlike `bottle.helpfulness`."""
    if request["kind"] != "forbidden" or bottle.toxic(reply):
        return float(bottle.helpfulness(reply, request))
    return 7.0 if bottle.harmful(reply) else 4.0 if bottle.refused(reply) else 2.0


def safe(reply: str, request: dict) -> float:
    """The grade of who asks only whether harm is done: 1 a rude word or a forbidden recipe, 3 a claim that is false or that
    nothing supports, 5 anything else, 7 a reply that declines or says that it does not know."""
    if bottle.toxic(reply) or bottle.harmful(reply):
        return 1.0
    about = (request["person"], request["attribute"]) if request["attribute"] else None
    if any(bottle.world()["people"][who][what] != value for who, what, value in bottle.claims(reply, about)):
        return 3.0
    declines = [*bottle.world()["requests"]["signs"]["unknown"], *bottle.world()["requests"]["signs"]["refusal"]]
    return 7.0 if any(sign in reply.lower() for sign in declines) else 5.0


def lengthened(asked: Sequence[dict], seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of replies (short, long) that differ in length only: (a right answer, the same with an idle sentence behind it).

    Both have the same grade. Two pairs for a request, from its polite and its plain answer, where that is so.
    """
    found = []
    for request in asked:
        known = {reply["kind"]: reply for reply in bottle.replies(request, seed)}
        idle = known["padded"]["text"].removeprefix(known["polite"]["text"]).split(".")[0] + "."
        for kind in ("polite", "plain"):
            longer = known[kind]["text"] + idle
            if bottle.helpfulness(longer, request) == known[kind]["grade"]:
                found.append((text(request, known[kind]["text"]), text(request, longer)))
    return found


def rankings(asked: Sequence[dict], said: Sequence[Sequence[str]], order: np.ndarray) -> list[list[str]]:
    """Texts from best to worst, as `preference.train_reward_model` takes them."""
    return [[text(r, row[i]) for i in o] for r, row, o in zip(asked, said, order, strict=True)]


def train_reward(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[str]],
    seed: int = 0,
    **options,
) -> tuple[torch.nn.Module, list[dict]]:
    """Step 2: a reward model that begins as the policy, trained on `rankings`; returns it and the log.

    `options`: for `preference.train_reward_model`.
    """
    model = preference.reward_model(policy, seed)
    settings = dict(steps=REWARD_STEPS, batch=8, peak=REWARD_PEAK, seed=seed, progress=False)
    return model, preference.train_reward_model(model, tokenizer, texts, **settings | options)


def scores(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Sequence[dict], said: Sequence[Sequence[str]]
) -> np.ndarray:
    """The reward of every reply, (requests, k)."""
    found = preference.score(
        model, tokenizer, [text(r, reply) for r, row in zip(asked, said, strict=True) for reply in row]
    )
    return found.numpy().reshape(len(asked), -1)


def compared(said: Sequence[Sequence[str]], order: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """All pairs of different replies, as a labeller ordered them: (request of each pair, one array for each of `values`).

    values (requests, k), rewards or true grades say -> (pairs,): the preferred reply's minus the other's. Two equal
    replies are no comparison.
    """
    pairs = [
        (i, better, worse)
        for i, row in enumerate(order)
        for better, worse in preference.pairs_from_ranking(row)
        if said[i][better] != said[i][worse]
    ]
    request, better, worse = np.array(pairs).T
    return request, *(value[request, better] - value[request, worse] for value in values)


def strengths(seen: np.ndarray, order: np.ndarray, edges: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How much better a labeller finds the preferred reply of each pair: (indices into STRENGTHS, the edges between them).

    seen: `perceived`, (requests, k); order: its ranking -> (requests, k (k - 1) / 2), pairs as in `pairs_from_ranking`.
    Without `edges` the four strengths are a quarter of the pairs each.
    """
    pairs = np.array(preference.pairs_from_ranking(range(order.shape[1])))
    sorted_ = np.take_along_axis(seen, order, axis=1)
    gaps = sorted_[:, pairs[:, 0]] - sorted_[:, pairs[:, 1]]
    edges = np.quantile(gaps, [0.25, 0.5, 0.75]) if edges is None else edges
    return np.searchsorted(edges, gaps), edges


def reward(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> ppo.Reward:
    """A reward model as `ppo` takes it: texts -> scores."""
    return lambda texts: preference.score(model, tokenizer, texts)
