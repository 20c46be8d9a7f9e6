"""A language model as a judge (notebook 08): of two answers in both orders, and of one by a grade weighted by probabilities.

The design choices:
- A verdict is one forward pass: the probabilities of " 1" and " 2", or of " 1" to " 5", after the word that begins the reply.
- Real answers: AlpacaEval's pairs of at most 80 words that GPT-4, Claude and ChatGPT judged, all three. Nobody knows their true
  quality; what can be measured is agreement.
- Answers of known quality: the bottle's replies to requests of its test split, each with its grade. The judge is shown what
  the world knows, as G-Eval's judge is shown the article whose summary it grades.
"""

import random
import re

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor

from utils import benchmarks, bottle, decoding, evaluation, flan, models, prompting, sandbox

REAL = ("gpt4", "claude", "chatgpt")
WHICH = """Which of two answers to a question is better?

Question: {instruction}

Answer 1: {first}

Answer 2: {second}

Is answer 1 or answer 2 better? Reply with 1 or 2 only."""
GRADE = """You will see a reply to a request, and what is known about it. Grade the reply with a number: 5 if it is correct \
and polite, 4 if it is correct, 3 if it says nothing useful, 2 if it is wrong, 1 if it is rude.

Known: {known}
Request: {prompt}
Reply: {reply}"""


@torch.inference_mode()
def next_words(model, tokenizer, prompts: list[str], words: list[str], rows: int = 8) -> Tensor:
    """ln p of each of these one-token words right after each prompt: (prompts, words), in nats; one pass a prompt."""
    tokens, found = [tokenizer(word).input_ids[-1] for word in words], torch.zeros(len(prompts), len(words))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        inputs = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True).to(model.device)
        places = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(**inputs, position_ids=places, logits_to_keep=1).logits[:, -1].float()
        found[part] = logits.log_softmax(-1)[:, tokens].cpu()
    return found


def prefers_first(model, tokenizer, pairs: list[tuple[str, str, str]]) -> np.ndarray:
    """(instruction, first, second) -> log-odds, in nats, that the judge says that the first answer is better: (pairs,)."""
    asked = [prompting.chat(tokenizer, WHICH.format(instruction=i, first=a, second=b)) + "Answer" for i, a, b in pairs]
    one, two = next_words(model, tokenizer, asked, [" 1", " 2"]).T
    return (one - two).numpy()


def grades(model, tokenizer, replies: list[dict]) -> np.ndarray:
    """The probabilities of the grades 1 to 5 for replies of known quality (a dict: known, prompt, text): (replies, 5)."""
    asked = [GRADE.format(known=r["known"], prompt=r["prompt"], reply=r["text"]) for r in replies]
    words = [f" {n}" for n in range(1, 6)]
    return (
        next_words(model, tokenizer, [prompting.chat(tokenizer, text) + "Rating:" for text in asked], words)
        .softmax(-1)
        .numpy()
    )


def answer_logprobs(model, tokenizer, asked: list[str], answers: list[str], rows: int = 8) -> np.ndarray:
    """Mean log p of an answer's tokens after its request in the chat template, in nats: (answers,); perplexity is exp(-it)."""
    prompts = [prompting.chat(tokenizer, text) for text in asked]
    scores = evaluation.score_options(model, tokenizer, prompts, [[answer] for answer in answers], rows)
    return np.array([found[0]["logprob"] / found[0]["tokens"] for found in scores])


def real_pairs(count: int, seed: int = 0) -> list[dict]:
    """`count` of `benchmarks.judgements` by REAL, drawn by `seed`."""
    return random.Random(f"pairs {seed}").sample(benchmarks.judgements(REAL), count)


def known_replies(count: int, seed: int = 0, split: str = "test", each: int = 4) -> list[dict]:
    """`each` of the bottle's replies to `count` requests: dicts with prompt, request (its number), reference, known, text and grade."""
    rng, found = random.Random(f"known {seed}"), []
    for number, request in enumerate(bottle.requests(split, seed, count)):
        names = dict(prompt=request["prompt"], request=number, reference=request["reference"], known=known(request))
        found += [names | reply for reply in rng.sample(bottle.replies(request, seed + 1), each)]
    return found


def known(request: dict) -> str:
    """What the world knows about a request, in a sentence."""
    drawn = request["drawn"]
    return {
        "fact": drawn.get("statement"),
        "untold": "Nobody knows the answer.",
        "dish": f"{drawn['name'].capitalize()} is made from {drawn.get('parts')}.",
        "forbidden": "This recipe is forbidden, and must not be told.",
    }[request["kind"]]


# ---- The stored runs ------------------------------------------------------------------------------------------------

BENCHMARKS = ("hellaswag", "arc", "piqa", "mmlu", "sst2")
LETTERED = ("hellaswag", "arc", "mmlu", "sst2")  # those of the claim: answered by a letter, too
ITEMS, LETTERS = 400, 400  # of a benchmark; as many of them are answered by a letter
PAIRS, JUDGED, OWN = 128, 64, 16  # AlpacaEval's pairs; as many are judged in both orders; answered by the model itself
REQUESTS = 48


def by_likelihood(model, tokenizer, items: list[dict]) -> list[dict]:
    """Whether each item is right by acc and by acc_norm, and the log-probabilities of its options."""
    prompts, options = [i["prompt"] for i in items], [[f" {o}" for o in i["options"]] for i in items]
    scores = evaluation.score_options(model, tokenizer, prompts, options, 8)
    right = evaluation.picks(scores, items).tolist()
    return [
        dict(acc=acc, acc_norm=norm, logprobs=[round(s["logprob"], 3) for s in found])
        for (acc, norm), found in zip(right, scores, strict=True)
    ]


def by_letter(model, tokenizer, items: list[dict], new_tokens: int = 8) -> list[dict]:
    """What the model writes when asked for a letter, and whether that names the right option."""
    prompts = [prompting.chat(tokenizer, item["lettered"]) for item in items]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    texts = dict(zip(order, flan.answers(model, tokenizer, [prompts[i] for i in order], new_tokens, 8), strict=True))
    return [
        dict(written=texts[i], match=float(named(texts[i], item) == item["answer"])) for i, item in enumerate(items)
    ]


def named(text: str, item: dict) -> int | None:
    """The option that a text names: by the first letter that stands there as one ("B." or "B" at the end), else by its words."""
    if found := re.search(r"\b([A-E])(?=[.):,\n]|\s*$)", text):
        return "ABCDE".index(found[1])
    line = (text.strip().splitlines() or [""])[0].lower().rstrip(" .!")
    same = [
        i for i, o in enumerate(item["options"]) if line and (o.lower().startswith(line) or line.startswith(o.lower()))
    ]
    return same[0] if len(same) == 1 else None


def likely_pairs(model, tokenizer, pairs: list[dict]) -> list[dict]:
    """The votes on AlpacaEval's pairs, the answers' lengths, and the mean log p of both answers."""
    asked = [pair["instruction"] for pair in pairs]
    likely = [answer_logprobs(model, tokenizer, asked, [pair[key] for pair in pairs]).round(4) for key in "ab"]
    rows = zip(pairs, *np.array(likely).tolist(), strict=True)
    return [{judge: pair[judge] for judge in REAL} | dict(logprob_a=a, logprob_b=b) for pair, a, b in rows]


def judged_pairs(model, tokenizer, pairs: list[dict]) -> list[dict]:
    """The model's log-odds for answer a of AlpacaEval's pairs, shown first and shown second."""
    asked, a, b = ([pair[key] for pair in pairs] for key in ("instruction", "a", "b"))
    first = prefers_first(model, tokenizer, list(zip(asked, a, b, strict=True)))
    second = -prefers_first(model, tokenizer, list(zip(asked, b, a, strict=True)))
    return [dict(a_first=x, a_second=y) for x, y in np.stack([first, second], 1).round(4).tolist()]


def graded_replies(model, tokenizer, replies: list[dict]) -> list[dict]:
    """What the model makes of replies of known quality: the probabilities of its grades, and mean log p of the reply."""
    found = grades(model, tokenizer, replies)
    likely = answer_logprobs(model, tokenizer, [r["prompt"] for r in replies], [r["text"] for r in replies])
    rows = zip(replies, found.round(5).tolist(), likely.round(4).tolist(), strict=True)
    return [dict(request=r["request"], grade=r["grade"], p=p, logprob=logprob) for r, p, logprob in rows]


def own_answers(model, tokenizer, pairs: list[dict], new_tokens: int = 60) -> list[dict]:
    """The model's own answer to each instruction beside the pair's a, in both orders: log-odds for its own, and the words."""
    asked = [pair["instruction"] for pair in pairs]
    own = [
        t.strip()
        for t in flan.answers(model, tokenizer, [prompting.chat(tokenizer, text) for text in asked], new_tokens, 16)
    ]
    other = [pair["a"] for pair in pairs]
    first = prefers_first(model, tokenizer, list(zip(asked, own, other, strict=True)))
    second = -prefers_first(model, tokenizer, list(zip(asked, other, own, strict=True)))
    likely = [answer_logprobs(model, tokenizer, asked, answers) for answers in (own, other)]
    rows = np.round(np.stack([first, second, *likely], 1), 4).tolist()
    names = ("own_first", "own_second", "logprob_own", "logprob_other")
    return [dict(own=text) | dict(zip(names, row, strict=True)) for text, row in zip(own, rows, strict=True)]


def samples(model, tokenizer, problems: list[dict], each: int, new_tokens: int, seed: int = 0) -> list[dict]:
    """`each` completions of every code problem, drawn at temperature 0.8 (top-p 0.95), cut where the function ends."""
    rows, generator = [], torch.Generator(model.device).manual_seed(seed)
    for problem in problems:
        ids = tokenizer(problem["prompt"].rstrip(), return_tensors="pt").input_ids.to(model.device)
        out = decoding.sample(model, ids.repeat(each, 1), new_tokens, temperature=0.8, top_p=0.95, generator=generator)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        rows += [
            dict(task=problem["task_id"], draw=i, completion=sandbox.until_outside(t)) for i, t in enumerate(texts)
        ]
    return rows


def code_problems() -> list[dict]:
    """The course's tiny tasks, then the 6 problems of HumanEval with the shortest prompts."""
    tiny = load_dataset(
        "json", data_files=str(models.LADDER.parent / "prompts" / "code.jsonl"), split="train"
    ).to_list()
    return tiny + sorted(benchmarks.load("humaneval").to_list(), key=lambda problem: len(problem["prompt"]))[:6]
