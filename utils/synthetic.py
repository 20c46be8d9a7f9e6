"""Self-Instruct (Wang et al. 2023, arXiv 2212.10560) in the bottle: a model makes up the tasks that it is then tuned on.

The design choices:
- `SEEDS` solved examples are all that people wrote. The base model reads a few of them as questions and answers, the way the
  web asks, and writes on: new prompts with answers, right or wrong.
- The filter is the paper's: a prompt too like one that is kept already (ROUGE-L above 0.7), too short or too long, goes.
- AlpaGasus (arXiv 2307.08701): a stronger model judges every example, and those it finds right are kept. The grader is a larger
  rung, and finds right what it would answer itself.
- Every arm is tuned for the same number of steps, and asked about clusters of tasks of which no seed, nor its kin, was one.
"""

import random
import re
from collections import Counter

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils import bottle, decoding, evaluation, flan, pretrain

RUNG, GRADER = "800k", "3M"
SEEDS, SHOWN = 48, 5  # examples that people wrote; of these, how many the model reads before it writes one
MADE = 1024  # tries
ALIKE = 0.7  # ROUGE-L with a kept prompt above which one is left out
ARMS = ("before", "seeds", "all", "filtered", "best", "human")
NEW_TOKENS, ROWS = 56, 256


def seeds(held_out: list[str], seed: int) -> list[dict]:
    """What people wrote: SEEDS items of the clusters that may be tuned on when these are held out, cluster after cluster."""
    return flan.mixture(flan.tuned_on(held_out), seed, SEEDS)


def _shown(items: list[dict]) -> str:
    return "".join(f"Q: {item['prompt']}\nA: {item['answer']}\n" for item in items) + "Q:"


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: list[dict], count: int = MADE, seed: int = 0
) -> list[dict]:
    """New examples in the manner of the `given` ones: dicts with prompt and answer, at most `count`; sampled at temperature 1."""
    rng, generator, texts = random.Random(f"self-instruct {seed}"), torch.Generator().manual_seed(seed), []
    for start in range(0, count, ROWS):
        prompts = [_shown(rng.sample(given, SHOWN)) for _ in range(min(ROWS, count - start))]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        out = decoding.sample(
            model, batch.input_ids, NEW_TOKENS, generator=generator, attention_mask=batch.attention_mask
        )
        texts += tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    found = [re.match(r" ?(\S.*?)\nA:(?: |(?=\n))(.*?)\n", text, re.S) for text in texts]
    return [dict(prompt=m[1].strip(), answer=m[2].strip()) for m in found if m and m[2].strip() and "Q:" not in m[1]]


def different(made: list[dict], given: list[dict]) -> list[dict]:
    """Self-Instruct's filter: prompts of 3 to 60 words, none of which is too like a given or an earlier kept one."""
    known, kept = [item["prompt"] for item in given], []
    for item in made:
        words = item["prompt"].split()
        if 3 <= len(words) <= 60 and not any(alike(item["prompt"], other) for other in known):
            known.append(item["prompt"])
            kept.append(item)
    return kept


def alike(a: str, b: str) -> bool:
    """Whether ROUGE-L of two prompts is above ALIKE. No common subsequence is longer than the words they share: most pairs
    are told apart by these alone."""
    one, other = (Counter(re.findall("[a-z0-9]+", text.lower())) for text in (a, b))
    shared = 2 * (one & other).total() > ALIKE * (one.total() + other.total())
    return shared and evaluation.rouge_l(a, b) > ALIKE


def best(grader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict]) -> list[dict]:
    """The items whose answer the grader would give itself, word for word."""
    prompts = [f"Q: {item['prompt']}\nA:" for item in items]
    scores = evaluation.score_options(grader, tokenizer, prompts, [[f" {item['answer']}"] for item in items], rows=128)
    return [item for item, (score,) in zip(items, scores, strict=True) if score["greedy"]]


def tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[dict], seed: int) -> PreTrainedModel:
    """A copy of the model, tuned on the items as often as it takes to fill notebook 03's steps."""
    rng, rows = random.Random(f"tune {seed}"), []
    while len(rows) < flan.STEPS * flan.BATCH:
        rows += rng.sample(items, len(items))
    return flan.tune(model, tokenizer, rows[: flan.STEPS * flan.BATCH], pretrain.RUNGS[RUNG]["peak"] / 10, seed)


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: list[str], count: int = 60
) -> list[dict]:
    """ROUGE-L of the model's written replies to test items of these clusters, one dict a cluster; and the share exactly right.

    What is exactly right scores 1 in any script: the words of ROUGE-L are of Latin letters, some answers are Korean.
    """
    rows = []
    for cluster in held_out:
        items = flan.test_items([cluster], count)
        said = [text.strip().split("\n")[0] for text in flan.answers(model, tokenizer, [i["prompt"] for i in items])]
        exact = [bottle.correct(text, item) for text, item in zip(said, items, strict=True)]
        rouge = [evaluation.rouge_l(text, item["answer"]) for text, item in zip(said, items, strict=True)]
        means = np.mean([np.maximum(rouge, exact), exact], axis=1).round(4).tolist()
        rows.append(dict(cluster=cluster, rouge=means[0], exact=means[1]))
    return rows


def unit(
    model: PreTrainedModel, grader: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: list[str], seed: int
) -> list[dict]:
    """Every arm with one seed and these clusters held out: dicts with arm, examples, cluster, rouge and exact."""
    given = seeds(held_out, seed)
    made = generate(model, tokenizer, given, seed=seed)
    kept = different(made, given)
    arms = dict(seeds=given, all=made, filtered=kept, best=best(grader, tokenizer, kept))
    arms["human"] = flan.mixture(flan.tuned_on(held_out), seed)
    rows = [dict(arm="before", examples=0) | row for row in score(model, tokenizer, held_out)]
    for arm, items in arms.items():
        tuned = tune(model, tokenizer, items, seed)
        rows += [dict(arm=arm, examples=len(items)) | row for row in score(tuned, tokenizer, held_out)]
    return rows
