"""The long runs whose results the notebooks load: `python -m utils.runs decoders` makes data/runs/decoders.* again.

Each run writes a Parquet file and a log (command, seconds, machine, versions) beside it.
"""

import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from utils import benchmarks, decoding, evaluation, models

RUNS = Path(__file__).parents[1] / "data" / "runs"
PROMPT, NEW = 32, 200  # tokens of a Wikipedia paragraph that are given, and that a decoder (or the writer) adds

DECODERS = {
    "greedy": {},
    "beam search (4)": {"num_beams": 4},
    "sampling": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-k 40": {"top_k": 40},
    "nucleus 0.95": {"top_p": 0.95},
    "min-p 0.1": {"min_p": 0.1},
}


def paragraphs(tokenizer, number: int = 48) -> Tensor:
    """The beginnings of `number` Wikipedia paragraphs (SQuAD's), (number, PROMPT + NEW) tokens, subjects in turn."""
    subjects: dict[str, dict] = {}
    for row in benchmarks.load("squad"):
        title, text = row["query"].removeprefix("Title: ").split("\nQuestion:")[0].split("\nBackground: ", 1)
        ids = tokenizer(text).input_ids
        if len(ids) >= PROMPT + NEW:
            subjects.setdefault(title, {})[text] = ids[: PROMPT + NEW]
    lists = [list(texts.values()) for texts in subjects.values()]
    turns = [texts[turn] for turn in range(max(map(len, lists))) for texts in lists if turn < len(texts)]
    return torch.tensor(turns[:number])


def continue_texts(model, decoder: str, prompts: Tensor, new_tokens: int, copies: int = 1, seed: int = 0) -> Tensor:
    """prompts (n, tokens) -> (copies * n, tokens + new_tokens), copy after copy, by one of DECODERS."""
    options = DECODERS[decoder]
    if decoder == "greedy":
        return decoding.greedy(model, prompts, new_tokens)
    if "num_beams" in options:
        return decoding.beam_search(model, prompts, new_tokens, **options)
    generator = torch.Generator(prompts.device).manual_seed(seed)
    return decoding.sample(model, prompts.repeat(copies, 1), new_tokens, generator=generator, **options)


def decoders() -> None:
    """Every decoder continues 48 Wikipedia paragraphs by up to 200 tokens; those that draw, 3 times."""
    model, tokenizer = models.load("smollm2")
    human = paragraphs(tokenizer).to(model.device)
    rows = _rows(model, "human", human, human)
    seconds = {}
    for decoder in DECODERS:
        start = time.perf_counter()
        texts = continue_texts(model, decoder, human[:, :PROMPT], NEW, copies=3)
        seconds[decoder] = round(time.perf_counter() - start)
        rows += _rows(model, decoder, texts, human)
        print(f"{decoder}: {len(texts)} texts, {seconds[decoder]} s", flush=True)
    _write("decoders", rows, seconds)


def _rows(model, decoder: str, texts: Tensor, human: Tensor) -> list[dict]:
    """One row a text: the tokens after the prompt, without padding, and their log-probability under the model."""
    logprobs = evaluation.token_logprobs(model, texts)[:, PROMPT - 1 :]
    rows = []
    for i, (text, scores) in enumerate(zip(texts[:, PROMPT:].tolist(), logprobs.tolist(), strict=True)):
        eos = model.generation_config.eos_token_id
        length = text.index(eos) if eos in text else len(text)
        draw, prompt = divmod(i, len(human))
        rows.append(
            {
                "decoder": decoder,
                "draw": draw,
                "prompt": prompt,
                "tokens": text[:length],
                "log_probability": round(sum(scores[:length]), 3),
            }
        )
    return rows


def _write(name: str, rows: list[dict], seconds: dict) -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    log = {
        "command": f"python -m utils.runs {name}",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}",
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }
    Dataset.from_list(rows).to_parquet(str(RUNS / f"{name}.parquet.new"))
    (RUNS / f"{name}.parquet.new").replace(RUNS / f"{name}.parquet")
    (RUNS / f"{name}.json").write_text(json.dumps(log, indent=2) + "\n")


if __name__ == "__main__":
    known = {"decoders": decoders}
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        sys.exit(f"Usage: python -m utils.runs [{'|'.join(known)}]")
    known[sys.argv[1]]()
