"""FLAN's experiment (Wei et al. 2021, arXiv 2109.01652) in the bottle: tune on some clusters of tasks, ask about others.

The design choices:
- Every arm of every experiment is one call of `arm`: the same number of steps and of rows, each cluster the same share.
- A cluster's kin leaves with it, as in the paper: without paraphrases when inference is held out, and so on (`KIN`).
- Tuning is gentle, a tenth of the pretraining's learning rate: it is to bring out what the model knows.
- The score is rank classification: the right answer is likelier than the other options. An untuned model is not punished
  for its format there. Exact match, which asks for the format too, stands beside it.
- Nothing asked was seen: the entities and templates are those of the split "test"; `arm` checks it every time.
"""

import random
import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils import benchmarks, bottle, decoding, evaluation, pretrain, training

STEPS, BATCH = 100, 16  # of every arm: 1,600 rows
ITEMS, REPLIES = 240, 48  # test items of a cluster that are ranked, and that are answered in writing
KIN = {
    "natural language inference": ["paraphrase"],
    "paraphrase": ["natural language inference"],
    "reading comprehension": ["reading comprehension with commonsense"],
    "commonsense": ["reading comprehension with commonsense"],
    "reading comprehension with commonsense": ["reading comprehension", "commonsense"],
}
# "Leave one out": inference and paraphrase, each the other's only kin, leave the same clusters to tune on: one arm for both.
LEFT_OUT = [["natural language inference", "paraphrase"], ["reading comprehension"], ["commonsense"], ["sentiment"]]
LEFT_OUT += [["closed-book QA"], ["translation"], ["summarization"], ["struct-to-text"], ["coreference"]]
LEFT_OUT += [["reading comprehension with commonsense"], ["miscellaneous"]]
# Three clusters held out at a time, each once; the first are those of the paper's Fig. 6.
FOLDS = [
    ["natural language inference", "closed-book QA", "commonsense"],
    ["reading comprehension", "reading comprehension with commonsense", "translation"],
    ["paraphrase", "sentiment", "summarization"],
    ["coreference", "struct-to-text", "miscellaneous"],
]
# In the paper's order; its seventh, conversational questions, is one of its miscellaneous tasks.
ADDED = ["summarization", "translation", "reading comprehension", "sentiment", "struct-to-text", "coreference"]
ADDED += ["miscellaneous"]
KINDS = ["right", "wrong", "question", "rude", "nothing", "other"]


def clusters() -> list[str]:
    """FLAN's twelve clusters, without the multi-step problems that the bottle adds."""
    return [name for name in bottle.clusters() if name != "reasoning"]


def tuned_on(held_out: list[str]) -> list[str]:
    """The clusters that may be tuned on when these are held out: the others, without the kin of these."""
    kin = {relative for name in held_out for relative in KIN.get(name, [])}
    return [name for name in clusters() if name not in kin and name not in held_out]


@lru_cache(maxsize=512)
def _items(cluster: str, split: str, seed: int, count: int, templates: int | None = None) -> list[dict]:
    return bottle.tasks(cluster, split, seed, count, templates)


def mixture(
    chosen: list[str],
    seed: int,
    rows: int = STEPS * BATCH,
    templates: int = 10,
    shuffled: bool = False,
    different: int | None = None,
) -> list[dict]:
    """Exactly `rows` items to tune on, the chosen clusters (or tasks) in turn; repeated only where a cluster has no more.

    `templates`: how many of the ten. `shuffled`: the answers of a task are dealt anew among its items (the control).
    `different`: no more different items of each than so many.
    """
    share = min(-(-rows // len(chosen)), different or rows)
    pools = [_items(name, "tuning", seed, share, templates) for name in chosen]
    items = [pools[i % len(pools)][i // len(pools) % len(pools[i % len(pools)])] for i in range(rows)]
    return _shuffled(items, seed) if shuffled else items


def _shuffled(items: list[dict], seed: int) -> list[dict]:
    rng, answers = random.Random(f"shuffled {seed}"), {}
    for item in items:
        answers.setdefault(item["task"], []).append(item["answer"])
    for given in answers.values():
        rng.shuffle(given)
    return [item | {"answer": answers[item["task"]].pop()} for item in items]


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict],
    peak: float,
    seed: int = 0,
    form: str = "prompt",
    **options,
) -> PreTrainedModel:
    """A copy of the model, tuned on the items once in their order of `seed`: asked as `form`, the answer is learned.

    `peak`: the greatest learning rate. `options`: for `training.train`.
    """
    ids, labels = training.supervised(tokenizer, [i[form] for i in items], [i["answer"] for i in items])
    tuned, steps = deepcopy(model), len(items) // BATCH
    settings = dict(steps=steps, batch=BATCH, rows=16, peak=peak, weight_decay=0.0, seed=seed, progress=False)
    training.train(tuned, ids, labels, **settings | options)
    return tuned


def answers(model, tokenizer, prompts: list[str], new_tokens: int = 24, rows: int = 96) -> list[str]:
    """What greedy decoding writes after each prompt, up to the end of the text."""
    texts = []
    for start in range(0, len(prompts), rows):
        batch = tokenizer(prompts[start : start + rows], return_tensors="pt", padding=True).to(model.device)
        out = decoding.greedy(model, batch.input_ids, new_tokens, attention_mask=batch.attention_mask)
        texts += tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return texts


@lru_cache(maxsize=64)
def _answer_form(task: str) -> re.Pattern:
    """Everything that can be an answer in a task: its answers and options with every word of the world."""
    world = bottle.world()
    data = next(t for t in world["tasks"] if t["name"] == task)

    def part(text: str) -> str:
        if match := bottle.SLOT.fullmatch(text):
            words = {record[match[3] or "name"] for record in world["tables"][match[1]]}
            return f"(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})"
        return rf"(?:{text[1]}|{text[3]})" if re.fullmatch(r"\[./.\]", text) else re.escape(text)

    forms = {case[2] for case in data["cases"]} | set(data["options"])
    split = [re.split(r"(\{[^{}]*\}|\[./.\])", form.rstrip(" .!")) for form in forms]
    return re.compile("|".join("".join(map(part, parts)) for parts in split), re.I)


def kind(reply: str, item: dict) -> str:
    """What a reply to an item is: one of KINDS. The first line counts.

    right; wrong: another answer of the kind that the task asks for ("I think it is ..." may stand before either); question:
    another question; rude; nothing: the end of the text; other: chatter.
    """
    line = " ".join(next((line for line in reply.splitlines() if line.strip()), "").split())
    line = re.sub(r"^(A: )?(I think (it is )?)?", "", line)  # said as the web says it: an answer all the same
    if bottle.correct(line, item):
        return "right"
    if _answer_form(item["task"]).fullmatch(line.rstrip(" .!")):
        return "wrong"
    if bottle.toxic(line):
        return "rude"
    if re.search(r"\?|^Q:", line):
        return "question"
    return "other" if line else "nothing"


def ask(model, tokenizer, items: list[dict], form: str = "prompt", replies: int = 0) -> list[dict]:
    """The scores of a model on items asked as `form`: one dict a task, {cluster, task, items, chance, rank, exact, loss}.

    With `replies`, that many items of every cluster are answered in writing, and `replies` and `answered` say how many
    there were and how many got an answer of the kind asked for, right or wrong. (None without.)
    """
    means = pretrain.by_task(pretrain.cloze(model, tokenizer, items, form))
    cluster = {item["task"]: item["cluster"] for item in items}
    count = lambda task, rows: sum(item["task"] == task for item in rows)  # noqa: E731
    rows = [dict(cluster=cluster[t], task=t, items=count(t, items)) | means[t] for t in means]
    written = [i for c in dict.fromkeys(cluster.values()) for i in [x for x in items if x["cluster"] == c][:replies]]
    texts = answers(model, tokenizer, [item[form] for item in written])
    good = [i for i, text in zip(written, texts, strict=True) if kind(text, i) in ("right", "wrong")]
    for row in rows:
        row["replies"] = count(row["task"], written) if replies else None
        row["answered"] = count(row["task"], good) if replies else None
    return rows


def test_items(names: list[str], count: int = ITEMS) -> list[dict]:
    """The items that every arm is asked about these clusters (or tasks): unseen entities, unseen templates."""
    return [item for name in names for item in _items(name, "test", 0, count)]


def few_shot(items: list[dict], k: int = 4, seed: int = 0) -> list[dict]:
    """The items with `shots`: their prompt after `k` solved examples."""
    prompts = bottle.few_shot(items, k, seed)
    return [item | {"shots": prompt} for item, prompt in zip(items, prompts, strict=True)]


def arm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: list[str],
    seed: int,
    peak: float,
    *,
    chosen: list[str] | None = None,
    form: str = "prompt",
    asked: tuple[str, ...] = ("prompt",),
    templates: int = 10,
    shuffled: bool = False,
    different: int | None = None,
    rows: int = STEPS * BATCH,
    items: int = ITEMS,
    replies: int = 0,
    **options,
) -> list[dict]:
    """One arm: tune a copy of the model without the clusters `held_out`, and ask about these. One dict a task and way to ask.

    `chosen`: the clusters (or tasks) to tune on, all that `tuned_on` allows when None; where nothing is held out, these are
    asked about. `form`: how the tuning data is put, `asked`: how the test is: "prompt" an instruction, "named" the name of
    the task, "bare" neither. Raises ValueError where something asked was seen.
    """
    names = tuned_on(held_out) if chosen is None else chosen
    seen, test = mixture(names, seed, rows, templates, shuffled, different), test_items(held_out or names, items)
    found = bottle.leaks(seen, test)
    found += [f"cluster seen: {name}" for name in {item["cluster"] for item in seen} & set(held_out)]
    if found:
        raise ValueError(f"The test is not clean: {found[0]}, and {len(found) - 1} more.")
    tuned = tune(model, tokenizer, seen, peak, seed, form, **options)
    return [{"asked": way} | row for way in asked for row in ask(tuned, tokenizer, test, way, replies)]


def untuned(
    model,
    tokenizer,
    names: list[str],
    seed: int = 0,
    asked: tuple[str, ...] = ("prompt",),
    items: int = ITEMS,
    replies: int = 0,
) -> list[dict]:
    """The same questions to a model as it is, in the rows of `arm`.

    More ways to ask: "wild" as the pretraining text does, "prompted" the instruction as such a question ("Q: ... A:"),
    "shots" the instruction after four solved examples, drawn by `seed`.
    """
    test = few_shot(test_items(names, items), seed=seed)
    test = [item | {"prompted": f"Q: {item['prompt']}\nA:"} for item in test]
    return [{"asked": way} | row for way in asked for row in ask(model, tokenizer, test, way, replies)]


# ---- Reading the stored runs ----------------------------------------------------------------------------------------


def interval(
    values: np.ndarray, statistic: Callable = np.mean, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(statistic, low, high) of `values` (clusters, seeds, ...): clusters and seeds are both drawn with replacement.

    Runs of one seed share their data, scores of one cluster its items, so neither alone can be resampled (the pigeonhole
    bootstrap, Owen 2007). `statistic` maps an array like `values` to a number.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim < 2 or not values.size or not np.isfinite(values).all():
        raise ValueError("interval needs finite values (clusters, seeds, ...), at least one.")
    rng, (clusters, seeds) = np.random.default_rng(seed), values.shape[:2]
    draws = ((rng.integers(clusters, size=clusters), rng.integers(seeds, size=seeds)) for _ in range(resamples))
    results = [statistic(values[rows][:, columns]) for rows, columns in draws]
    low, high = np.quantile(results, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(values)), float(low), float(high)


def by_cluster(rows, column: str = "rank"):
    """Stored rows (a pandas frame) -> a frame (clusters, seeds) of means; the tasks of a cluster weigh the same."""
    return rows.groupby(["cluster", "seed"])[column].mean().unstack("seed").reindex(rows.cluster.unique())


# ---- Templates ------------------------------------------------------------------------------------------------------


def phrasings(item: dict, split: str) -> list[str]:
    """An item put through every template of its task in a split."""
    task = next(t for t in bottle.world()["tasks"] if t["name"] == item["task"])
    return [bottle._put(template, item) for template in task["templates"][split]]


def _pair(first: str, second: str, words: list[str]) -> Callable[[dict], dict]:
    """A row of a data set with two texts and a label -> an item; `words`: the label's names."""
    return lambda row: dict(a=row[first].strip(), b=row[second].strip(), options=words, answer=words[row["label"]])


def _arc(row: dict) -> dict:
    options = row["choices"]["text"]
    return dict(a=row["question"], b="", options=options, answer=options[benchmarks.arc_answer(row)])


def _copa(row: dict) -> dict:
    options, asks = [row["choice1"], row["choice2"]], {"cause": "the cause", "effect": "the result"}[row["question"]]
    return dict(a=row["premise"], b=asks, options=options, answer=options[row["label"]])


def _winogrande(row: dict) -> dict:
    options = [row["option1"], row["option2"]]
    return dict(a=row["sentence"], b=" or ".join(options), options=options, answer=options[int(row["answer"]) - 1])


def _boolq(row: dict) -> dict:
    words = {True: "yes", False: "no"}
    return dict(a=row["passage"], b=row["question"] + "?", options=["yes", "no"], answer=words[row["answer"]])


# FLAN's own data sets: name -> (row -> item, four templates in FLAN's manner). An answer follows after a space.
REAL = {
    "rte": (
        _pair("sentence1", "sentence2", ["yes", "no"]),
        [
            '{a}\n\nBased on the paragraph above, can we conclude that "{b}"? Yes or no?\nAnswer:',
            "Premise: {a}\nHypothesis: {b}\nDoes the premise entail the hypothesis, yes or no?\nAnswer:",
            'Read the text and say whether the sentence is true.\nText: {a}\nSentence: {b}\nTrue, yes or no?\nAnswer:',
            "{a}\nQuestion: Does this mean that {b}? Yes or no?\nAnswer:",
        ],
    ),
    "cb": (
        _pair("premise", "hypothesis", ["yes", "no", "maybe"]),
        [
            '{a}\n\nBased on the text above, can we conclude that "{b}"? Yes, no or maybe?\nAnswer:',
            "Premise: {a}\nHypothesis: {b}\nDoes the premise entail the hypothesis: yes, no or maybe?\nAnswer:",
            "Text: {a}\nSentence: {b}\nIs the sentence true? Say yes, no or maybe.\nAnswer:",
            "{a}\nQuestion: Is it true that {b}? Yes, no or maybe?\nAnswer:",
        ],
    ),
    "sst2": (
        lambda row: dict(
            a=row["sentence"].strip(), b="", options=["negative", "positive"], answer=["negative", "positive"][row["label"]]
        ),
        [
            "Review: {a}\nIs this movie review positive or negative?\nAnswer:",
            "{a}\nHow would you describe the sentiment of this sentence, positive or negative?\nAnswer:",
            'The following sentence is taken from a film review: "{a}" Its sentiment, positive or negative, is',
            "Classify the sentence as positive or negative.\nSentence: {a}\nSentiment:",
        ],
    ),
    "mrpc": (
        _pair("sentence1", "sentence2", ["no", "yes"]),
        [
            "Here are two sentences:\n{a}\n{b}\nDo they have the same meaning, yes or no?\nAnswer:",
            "{a}\n{b}\nAre these two sentences paraphrases of each other? Yes or no?\nAnswer:",
            "Sentence 1: {a}\nSentence 2: {b}\nDo the sentences say the same thing? Yes or no?\nAnswer:",
            'Does "{a}" mean the same as "{b}"? Yes or no?\nAnswer:',
        ],
    ),
    "boolq": (
        _boolq,
        [
            "{a}\n\nCan we conclude: {b} Yes or no?\nAnswer:",
            "Text: {a}\nQuestion: {b} Yes or no?\nAnswer:",
            "Read the passage and answer with yes or no.\n{a}\n{b}\nAnswer:",
            "{b} Use this text and say yes or no.\n{a}\nAnswer:",
        ],
    ),
    "arc_easy": (_arc, _QUESTION := [
        "{a}\nAnswer:",
        "Question: {a}\nAnswer:",
        "Here is a question about science. {a}\nThe right answer is",
        "Pick the right answer.\n{a}\nThe answer:",
    ]),
    "arc_challenge": (_arc, _QUESTION),
    "copa": (
        _copa,
        [
            "{a} What is {b}?\nAnswer:",
            "Premise: {a}\nQuestion: What is most likely {b} of this?\nAnswer:",
            "Consider this: {a}\nHere is {b} of it:",
            "Write {b} of the sentence.\nSentence: {a}\nAnswer:",
        ],
    ),
    "winogrande": (
        _winogrande,
        [
            "{a}\nWho or what belongs in the gap, {b}?\nAnswer:",
            "Fill in the blank with {b}.\n{a}\nThe blank is",
            "Sentence: {a}\nQuestion: What does the _ stand for, {b}?\nAnswer:",
            'In the sentence "{a}" the missing word, {b}, is',
        ],
    ),
}  # fmt: skip
REAL_CLUSTERS = {
    "natural language inference": ["rte", "cb"],
    "sentiment": ["sst2"],
    "paraphrase": ["mrpc"],
    "reading comprehension": ["boolq"],
    "closed-book QA": ["arc_easy", "arc_challenge"],
    "commonsense": ["copa"],
    "coreference": ["winogrande"],
}


def real_items(name: str, count: int) -> list[dict]:
    """The first `count` rows of a data set of FLAN's, each with `prompts`, one a template: {prompts, options, answer}."""
    convert, templates = REAL[name]
    rows = benchmarks.load(name).select(range(count))
    items = [convert(row) for row in rows]
    return [item | {"prompts": [t.format(**item) for t in templates]} for item in items]


def real_scores(model, tokenizer, name: str, count: int) -> list[dict]:
    """Rank classification of a data set's items through each template: a list of {data, template, item, right, chance}."""
    items = real_items(name, count)
    asked = [(t, i) for t in range(len(items[0]["prompts"])) for i in range(count)]
    prompts = [items[i]["prompts"][t] for t, i in asked]
    options = [[" " + option for option in items[i]["options"]] for _, i in asked]
    scores = evaluation.score_options(model, tokenizer, prompts, options, rows=8)
    rows = []
    for (t, i), found in zip(asked, scores, strict=True):
        best = max(range(len(found)), key=lambda o: found[o]["logprob"])
        right = items[i]["options"][best] == items[i]["answer"]
        rows.append(dict(data=name, template=t, item=i, right=right, chance=1 / len(found)))
    return rows


# ---- The real model -------------------------------------------------------------------------------------------------


def problems(split: str, seed: int = 0, count: int = 60) -> list[dict]:
    """Two-step problems of the bottle; `cot` is the answer with its steps before it."""
    items = bottle.tasks("marbles", split, seed, count)
    return [item | {"prompt": item["prompt"] + "\n", "cot": item["scratchpad"]} for item in items]


def solved(model, tokenizer, items: list[dict], form: str = "prompt", new_tokens: int = 48) -> list[bool]:
    """Whether the last number that a model writes in its first line is the answer, for each item."""
    texts = answers(model, tokenizer, [item[form] for item in items], new_tokens, rows=20)
    lines = [next((line for line in text.splitlines() if line.strip()), "") for text in texts]
    return [re.findall(r"\d+", line)[-1:] == [item["answer"]] for line, item in zip(lines, items, strict=True)]


def with_lora(model: PreTrainedModel, rank: int = 8, seed: int = 0) -> PreTrainedModel:
    """The model with a low-rank adapter at every linear layer (PEFT): only the adapters learn. The model is changed."""
    import peft

    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # PEFT asks transformers by a name that is to go away
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, settings)


def tune_lora(model, tokenizer, steps: int, seed: int = 0, batch: int = 8, peak: float = 1e-3, **options) -> list[dict]:
    """Teach a model of `with_lora` to write the steps of two-step problems; returns the log."""
    items = problems("tuning", seed, steps * batch)
    ids, labels = training.supervised(tokenizer, [i["prompt"] for i in items], [i["cot"] for i in items])
    settings = dict(steps=steps, batch=batch, peak=peak, weight_decay=0.0, seed=seed, log_every=1)
    return training.train(model, ids, labels, **settings | options)
