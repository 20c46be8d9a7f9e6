"""Prompting: build a prompt, let a model answer many of them, read the answers; and notebook 07's experiments.

The choices:
- A task is a template over an item's fields; examples are the same template with its answer (or its worked steps).
- Examples come from items that are not tested, and every 50 items have their own: no result hangs on one lucky draw.
- Where a task has options, the likeliest one is the answer; elsewhere the model writes, and the answer is read from it.
- What all prompts of a batch begin with (the examples) is read once; its keys and values are used for every row.
- A batch of replies is kept in the cache folder under a hash of the weights, the prompts and the options.
"""

import hashlib
import itertools
import json
import os
import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from tqdm.auto import tqdm

from utils import benchmarks, bottle, decoding, evaluation, flan, pretrain, wheels

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"
SETS = ("facts", "problems", "letters", "instructions", "korean")  # written for the course
ITEMS, EXAMPLES, GROUP = 200, 100, 50  # items tested, items to take examples from, items that share their examples


def questions(name: str) -> Dataset:
    """One of SETS as a 🤗 Dataset: question, answers, topic, difficulty, origin; steps or check where there are any."""
    return load_dataset("json", data_files=str(PROMPTS / f"{name}.jsonl"), split="train")


# ---- Prompts --------------------------------------------------------------------------------------------------------


def build(template: str, item: dict, examples: Sequence[dict] = (), instruction="", answer="answer", gap="\n\n") -> str:
    """The instruction, the examples with their answers, and the item without: the template filled with each one's fields.

    `answer`: the field that an example shows as its answer; "steps" makes a chain of thought of it.
    """
    shown = [f"{template.format(**example)} {example[answer]}" for example in examples]
    return gap.join([*filter(None, [instruction]), *shown, template.format(**item)])


def chat(tokenizer, prompt: str, system: str | None = None, examples: Sequence[tuple[str, str]] = ()) -> str:
    """A prompt as a user's turn in the model's own chat template, up to where the reply begins.

    `examples`: earlier turns, (user, assistant). Without a `system` message the template's own stands there, if it has one.
    """
    turns = [{"role": "system", "content": system}] if system else []
    for asked, said in examples:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    turns.append({"role": "user", "content": prompt})
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


# ---- Replies --------------------------------------------------------------------------------------------------------


def fingerprint(model) -> str:
    """What names a model's weights: a hash of every tensor's name, shape, sum and greatest and least value."""
    parts = [model.config.to_json_string()]
    for name, weight in model.state_dict().items():
        least, most = weight.aminmax()
        parts.append(f"{name} {tuple(weight.shape)} {weight.sum().item():.9g} {least.item():.9g} {most.item():.9g}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def remembered(make: Callable[[], list], **key) -> list:
    """`make()`, or what it gave the last time for the same `key`; kept as JSON in the cache folder.

    Any change of the key is another file, so nothing is stale; a file appears whole or not at all.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = wheels.cache() / "replies" / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(found), encoding="utf-8")
    new.replace(file)
    return found


def generate(
    model, tokenizer, prompts: Sequence[str], new_tokens: int, *, stop: Sequence[str] = (), temperature: float = 0.0,
    seed: int = 0, rows: int = 50, shared: bool = True, cache: bool = True, progress: bool = False, **options,
) -> list[str]:  # fmt: skip
    """What the model writes after each prompt, up to a stop string (not one that it begins with); greedy at temperature 0, else drawn by `seed`.

    `rows` prompts at a time, of about the same length. `shared`: what all prompts of a batch begin with is read once.
    `cache`: replies are remembered. `options`: for `decoding.sample` or `greedy`.
    """
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    replies, weights = [""] * len(prompts), fingerprint(model) if cache else ""
    settings = dict(new_tokens=new_tokens, stop=list(stop), temperature=temperature, **options)
    for start in tqdm(range(0, len(order), rows), unit="batch", disable=not progress, leave=False):
        part = order[start : start + rows]
        make = lambda part=part, start=start: _write(  # noqa: E731
            model, tokenizer, [ids[i] for i in part], shared, seed + start, **settings
        )
        key = dict(model=weights, prompts=[prompts[i] for i in part], seed=temperature and seed + start, **settings)
        for i, reply in zip(part, remembered(make, **key) if cache else make(), strict=True):
            replies[i] = reply
    return replies


def _write(model, tokenizer, ids: list[list[int]], shared, seed, new_tokens, stop, temperature, **options) -> list[str]:
    """The replies to a batch of prompts, given as tokens."""
    known = evaluation.shared_prefix(ids) if shared else 0
    longest = max(map(len, ids)) - known
    pad = tokenizer.pad_token_id or 0
    own = torch.tensor([[pad] * (longest + known - len(row)) + row[known:] for row in ids], device=model.device)
    mask = torch.tensor([[0] * (longest + known - len(row)) + [1] * (len(row) - known) for row in ids])
    options["attention_mask"] = mask.to(model.device)
    if known:
        options["prefix"] = torch.tensor([ids[0][:known]], device=model.device)
    if stop:
        options["stop"] = _stop_at(tokenizer, stop, longest)
    if temperature:
        generator = torch.Generator(model.device).manual_seed(seed)
        out = decoding.sample(model, own, new_tokens, temperature, generator=generator, **options)
    else:
        out = decoding.greedy(model, own, new_tokens, **options)
    texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return [re.split("|".join(map(re.escape, stop)), text.lstrip())[0] if stop else text for text in texts]


def _stop_at(tokenizer, strings: Sequence[str], prompt_length: int) -> Callable:
    """`decoding.stop_at`, but a string at the very beginning ends nothing: many replies begin on a new line."""

    def stop(ids: torch.Tensor) -> torch.Tensor:
        texts = tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=True)
        return torch.tensor([any(s in text.lstrip() for s in strings) for text in texts], device=ids.device)

    return stop


# ---- Answers --------------------------------------------------------------------------------------------------------


def number(text: str) -> str | None:
    """The number that a reply gives as its answer: the first after the last "answer is", else the last one in it.

    As text, without thousands' commas and a decimal part of zeros; None where there is no number.
    """
    _, said, rest = text.rpartition("answer is")
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", rest if said else text)
    if not found:
        return None
    return re.sub(r"\.0+$", "", found[0 if said else -1].replace(",", ""))


def plain(text: str) -> str:
    """A text for comparing: lower case, no accents, punctuation and articles, single spaces (as TriviaQA scores)."""
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    text = "".join(" " if c in string.punctuation + "‘’“”´`" else c for c in unicodedata.normalize("NFC", text))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def contains(reply: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the reply, in whole words; Korean answers may have a particle behind them."""
    text = f" {plain(reply)} "
    return any(
        f" {a}" in text if re.search("[가-힣]", a) else f" {a} " in text for a in filter(None, map(plain, answers))
    )


def follows(reply: str, check: str) -> bool:
    """Whether a reply keeps the constraint of an instruction, such as "words at most: 5" or "json: name age"."""
    kind, _, value = check.partition(": ")
    reply = reply.strip()
    words = re.findall(r"\w+", reply.lower())
    if kind == "json":
        try:
            return set(json.loads(reply)) == set(value.split())
        except (ValueError, TypeError):
            return False
    return (
        bool(reply)
        and {
            "starts": lambda: reply.startswith(value),
            "ends": lambda: reply.endswith(value),
            "lower": lambda: reply == reply.lower(),
            "upper": lambda: reply == reply.upper(),
            "words at most": lambda: len(reply.split()) <= int(value),
            "contains": lambda: value in words,
            "without": lambda: value not in words,
            "items": lambda: "\n" not in reply and len([x for x in reply.split(",") if x.strip()]) == int(value),
            "exactly": lambda: words == [value],
        }[kind]()
    )


def majority(answers: Sequence[str | None]) -> str | None:
    """The commonest answer; of equally common ones the one that came first; chains without an answer have no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.get) if votes else None


# ---- Tasks ----------------------------------------------------------------------------------------------------------

ASK = "Question: {a}\nAnswer:"
TASKS = {  # real ones first; an answer follows after a space
    "sst2": "Review: {a}\nSentiment:",
    "imdb": "Review: {a}\nSentiment:",
    "boolq": "{a}\nQuestion: {b}\nAnswer:",
    "arc_easy": ASK,
    "mmlu": ASK,
    "triviaqa": ASK,
    "gsm8k": ASK,
    "facts": ASK,
    "problems": ASK,
}
LONGEST = {"imdb": 60, "boolq": 60, "mmlu": 30, "gsm8k": 40}  # words of an item: longer ones take too long here


def _imdb(row: dict) -> dict:
    text = re.sub(r"\s*<.*?>\s*", " ", row["review"])
    return dict(a=text, b="", options=["negative", "positive"], answer=row["sentiment"])


def _mmlu(row: dict) -> dict:
    return dict(a=row["question"], b="", options=row["choices"], answer=row["choices"][int(row["answer"])])


def _triviaqa(row: dict) -> dict:
    return dict(a=row["question"], b="", answer=row["answer"]["value"], answers=row["answer"]["aliases"])


def _gsm8k(row: dict) -> dict:
    steps, _, answer = re.sub("<<.*?>>", "", row["answer"]).partition("\n#### ")
    steps = f"{' '.join(steps.split())} The answer is {answer}."
    return dict(a=row["question"], b="", answer=answer.replace(",", ""), steps=steps, number=True)


def _written(row: dict) -> dict:
    return dict(a=row["question"], b="", answer=row["answers"][0], number=row["topic"] == "word problems") | row


_CONVERT = {"imdb": _imdb, "mmlu": _mmlu, "triviaqa": _triviaqa, "gsm8k": _gsm8k}


@lru_cache
def items(name: str, difficulty: str | None = None) -> tuple[list[dict], list[dict]]:
    """A task's items: (those that are tested, others to take examples from); never more than ITEMS and EXAMPLES.

    Of a real set: the first that are not longer than LONGEST in an order shuffled once. Of the course's: all but the last
    20 of each difficulty. An item has a (and b), answer, and options, or the answers that are right, or number (True).
    """
    if name in SETS:
        groups: dict[str, list] = {}
        for row in map(_written, questions(name)):
            if difficulty in (None, row["difficulty"]):
                groups.setdefault(row["difficulty"], []).append(row)
        return [r for g in groups.values() for r in g[:-20]][:ITEMS], [r for g in groups.values() for r in g[-20:]]
    convert = _CONVERT.get(name) or flan.REAL[name][0]
    rows, chosen = benchmarks.load(name), []
    for i in random.Random(name).sample(range(len(rows)), len(rows)):
        item = convert(rows[i])
        if len(item["a"].split()) <= LONGEST.get(name, 100):
            chosen.append(item)
        if len(chosen) == ITEMS + EXAMPLES:
            break
    return chosen[:ITEMS], chosen[ITEMS:]


def examples(pool: Sequence[dict], k: int, seed) -> list[dict]:
    """`k` items of a pool, drawn by a seed."""
    return random.Random(f"examples {seed}").sample(list(pool), k)


def answer(model, tokenizer, prompts: list[str], asked: list[dict], new_tokens: int = 12, **options) -> list[dict]:
    """The model's answer to each item, asked by its prompt: {"said", "right"}. `options`: for `generate`."""
    if "options" in asked[0]:
        given = [[" " + option for option in item["options"]] for item in asked]
        found = evaluation.score_options(model, tokenizer, prompts, given, rows=4)
        best = [max(range(len(f)), key=lambda o, f=f: f[o]["logprob"]) for f in found]
        said = [item["options"][b] for item, b in zip(asked, best, strict=True)]
        return [dict(said=s, right=s == item["answer"]) for s, item in zip(said, asked, strict=True)]
    replies = generate(model, tokenizer, prompts, new_tokens, **dict(stop=["\n"]) | options)
    return [dict(said=reply, right=is_right(reply, item)) for reply, item in zip(replies, asked, strict=True)]


def is_right(reply: str, item: dict) -> bool:
    """Whether a reply answers an item: its number, its text, or (an instruction) whether the constraint is kept.

    The first paragraph counts: what follows may be a question that the model made up.
    """
    reply = reply.strip().split("\n\n")[0]
    if item.get("check"):
        return follows(reply, item["check"])
    if item.get("number"):
        return number(reply) == item["answer"]
    return contains(reply, item["answers"])


def shots(template: str, asked: list[dict], pool: Sequence[dict], k: int, seed=0, **options) -> list[str]:
    """A prompt for each item after `k` examples of the pool; every GROUP items have their own. `options`: for `build`."""
    drawn = [examples(pool, k, f"{seed} {i // GROUP}") for i in range(len(asked))]
    return [build(template, item, shown, **options) for item, shown in zip(asked, drawn, strict=True)]


def in_groups(model, tokenizer, prompts: list[str], asked: list[dict], **options) -> list[dict]:
    """`answer`, GROUP items at a time: their prompts begin with the same examples, which are read once."""
    starts = range(0, len(asked), GROUP)
    parts = [(prompts[i : i + GROUP], asked[i : i + GROUP]) for i in starts]
    return [row for p, a in parts for row in answer(model, tokenizer, p, a, **options)]


# ---- The experiments of notebook 07 ---------------------------------------------------------------------------------

WORDINGS = {
    "sst2": [
        *flan.REAL["sst2"][1],
        "Review: {a}\nSentiment:",
        "{a}\nSentiment (negative or positive):",
        "Text: {a}\nThe feeling of this text is",
        "{a} All in all, the critic's opinion was",
        "Is the following negative or positive?\n{a}\nIt is",
        "Input: {a}\nOutput:",
    ],
    "facts": [
        "Question: {a}\nAnswer:",
        "Q: {a}\nA:",
        "{a}\n",
        "{a} The answer is",
        "Please answer this question.\n{a}\nAnswer:",
        "Quiz. {a} Correct answer:",
        "Teacher: {a}\nStudent:",
        "Here is a question: {a} And here is its answer:",
    ],
}
TRIGGERS = ["", "Let's think step by step.", "Don't think. Just feel.", "Abrakadabra!"]
SMOLLM2, BASE, LADDER = "smollm2", "gemma-3-270m", [f"ladder/{rung}" for rung in pretrain.RUNGS]
CHAIN = {"problems": 40, "gsm8k": 96, "2 words": 48, "4 words": 80}  # tokens that a worked solution may take
BOTTLE = {task: task for task in ("marbles", "long_marbles", "two_letters")} | {
    "four_letters": "two_letters"
}  # examples
CHAINS, TEMPERATURE, PART, HALF = 10, 0.7, 50, 25  # chains that vote; items of a unit, and of one with votes


def plan() -> list[dict]:
    """The units of the stored run: model, experiment, task, setting, part (which fifty items); the first fifty come first."""
    units, once, all_ = [], (0,), (0, 1, 2, 3)

    def add(experiment, task, settings, parts=all_, model=SMOLLM2):
        names = dict(model=model, experiment=experiment, task=task)
        units.extend(names | dict(setting=str(s), part=part) for part in parts for s in settings)

    for rung in LADDER:
        for task in BOTTLE:
            add("ladder", task, ["direct", "steps"], once, rung)
    for rung in LADDER[-3:]:
        add("ladder votes", "marbles", ["steps"], once, rung)
    add("order", "sst2", range(20))
    add("wording", "sst2", range(len(WORDINGS["sst2"])))
    add("few-shot", "problems", (0, 4))
    add("steps", "problems", ["steps"])
    add("few-shot", "gsm8k", (0, 4))
    for words in ("4 words", "2 words"):
        add("letters", words, ["direct", "steps"], all_[:2])
    add("wording", "facts", range(len(WORDINGS["facts"])), all_[:3])
    for task in ("facts", "instructions"):
        add("chat", task, ["plain", "chat"], all_[:1] if task == "instructions" else all_[:3])
    add("trigger", "problems", TRIGGERS)
    add("votes", "problems", ["steps"])
    for task in ("facts", "sst2", "triviaqa"):
        add("few-shot", task, (0, 1, 4), all_[:3] if task == "facts" else all_)
    for task in ("arc_easy", "imdb", "boolq", "mmlu"):
        add("few-shot", task, (0, 4))
    add("chat", "korean", ["plain", "chat"], once)
    add("steps", "gsm8k", ["steps"])
    add("trigger", "gsm8k", TRIGGERS[:2])
    for task in ("facts", "sst2"):
        add("few-shot", task, (0, 1, 4), all_[:2], BASE)
    return sorted(units, key=lambda unit: unit["part"])


def orders(number: int = 20) -> list[list[dict]]:
    """Four reviews, two of each sentiment, in `number` orders."""
    pool = items("sst2")[1]
    four = [x for label in ("negative", "positive") for x in [i for i in pool if i["answer"] == label][:2]]
    return random.Random("orders").sample(list(itertools.permutations(four)), number)


def measure(unit: dict, model, tokenizer, count: int = PART, **options) -> list[dict]:
    """Run one unit of `plan` on its items (the first `count`): a list of {item, draw, said, right}."""
    experiment, task, setting, part = (unit[key] for key in ("experiment", "task", "setting", "part"))
    options, start, size = dict(cache=False) | options, part * PART, min(count, PART)
    if experiment.startswith("ladder"):
        return _on_the_ladder(unit, model, tokenizer, 2 * count, **options)
    name, words = ("letters", (task, "2 words")) if experiment == "letters" else (task, (None, None))
    asked, pool = items(name, words[0])[0][start : start + size], items(name, words[1])[1]
    if task == "problems":
        pool = [example for example in pool if example["difficulty"] == asked[0]["difficulty"]]
    if experiment == "votes":
        return _draw(model, tokenizer, asked[:HALF], pool, CHAIN[task], part, **options)
    if experiment == "trigger":
        rows = triggered(model, tokenizer, asked, setting, 72, **options)
    else:
        new_tokens = CHAIN[task] if setting == "steps" else 24 if experiment == "chat" else 12
        options |= dict(new_tokens=new_tokens, stop=[] if experiment == "chat" else ["\n"])
        rows = in_groups(model, tokenizer, _asked(unit, tokenizer, asked, pool), asked, **options)
    return [dict(item=start + i, draw=0) | row for i, row in enumerate(rows)]


def _asked(unit: dict, tokenizer, asked: list[dict], pool: list[dict]) -> list[str]:
    """The prompts of a unit: other words, another order, plain or in the chat template, or after examples."""
    experiment, task, setting = unit["experiment"], unit["task"], unit["setting"]
    if experiment == "wording":
        return [build(WORDINGS[task][int(setting)], item) for item in asked]
    if experiment == "order":
        return [build(TASKS[task], item, orders()[int(setting)]) for item in asked]
    if experiment == "chat":
        return [chat(tokenizer, item["a"]) if setting == "chat" else item["a"] + "\n" for item in asked]
    shown, k = "steps" if setting == "steps" else "answer", int(setting) if experiment == "few-shot" else 4
    return shots(TASKS.get(task, ASK), asked, pool, k, unit["part"], answer=shown)


def _draw(model, tokenizer, asked: list[dict], pool: list[dict], new_tokens: int, part: int, **options) -> list[dict]:
    """The greedy chain of every item and CHAINS drawn ones, after the same worked examples."""
    prompts = shots(ASK, asked, pool, 4, f"votes {part}", answer="steps")
    settings = dict(new_tokens=new_tokens, stop=["\n"]) | options
    greedy = answer(model, tokenizer, prompts, asked, **settings)
    drawn = generate(model, tokenizer, prompts * CHAINS, temperature=TEMPERATURE, **settings)
    return _votes(greedy, drawn, asked, part * PART)


def _votes(greedy: list[dict], drawn: list[str], asked: list[dict], start: int = 0) -> list[dict]:
    """The greedy chain of every item (draw 0) and the drawn ones (1, 2, ...), copy after copy."""
    rows = [dict(item=start + i, draw=0) | row for i, row in enumerate(greedy)]
    for place, text in enumerate(drawn):
        draw, i = divmod(place, len(asked))
        right = is_right(text, asked[i]) if "task" not in asked[i] else bottle.correct(text, asked[i])
        rows.append(dict(item=start + i, draw=draw + 1, said=text, right=right))
    return rows


def triggered(model, tokenizer, asked: list[dict], trigger: str, new_tokens: int, **options) -> list[dict]:
    """Kojima's zero-shot chain of thought: let the model write after the trigger, then ask for the number."""
    prompts = [f"Q: {item['a']}\nA:" + (f" {trigger}" if trigger else "") for item in asked]
    chains = generate(model, tokenizer, prompts, new_tokens, stop=["\nQ:"], **options) if trigger else [""] * len(asked)
    close = "\nTherefore, the answer (arabic numerals) is" if trigger else " The answer (arabic numerals) is"
    prompts = [prompt + chain.rstrip() + close for prompt, chain in zip(prompts, chains, strict=True)]
    said = generate(model, tokenizer, prompts, 8, stop=["\n"], **options)
    right = [number("answer is" + s) == item["answer"] for s, item in zip(said, asked, strict=True)]
    return [dict(said=f"{c} => {s}", right=r) for c, s, r in zip(chains, said, right, strict=True)]


def _on_the_ladder(unit: dict, model, tokenizer, count: int, k: int = 2, **options) -> list[dict]:
    """Problems of the bottle after `k` solved ones, asked as its text does: for the answer at once, or for the steps."""
    asked = bottle.tasks(unit["task"], "test", 0, count)
    pool = bottle.tasks(BOTTLE[unit["task"]], "tuning", 0, 40)
    form, shown = ("wild", "answer") if unit["setting"] == "direct" else ("wild_steps", "scratchpad")
    prompts = shots(f"{{{form}}}", asked, pool, k, answer=shown, gap="\n")
    settings = dict(new_tokens=72, stop=["\n"]) | options
    texts = generate(model, tokenizer, prompts, **settings)
    greedy = [dict(said=t, right=bottle.correct(t, item)) for t, item in zip(texts, asked, strict=True)]
    if unit["experiment"] == "ladder":
        return [dict(item=i, draw=0) | row for i, row in enumerate(greedy)]
    drawn = generate(model, tokenizer, prompts * 2 * CHAINS, temperature=TEMPERATURE, **settings)
    return _votes(greedy, drawn, asked)
