"""Train the ladder: a family of small Llamas on the bottle, from 20 thousand to 3 million parameters.

    python -m utils.pretrain                       all rungs, the smallest first; an interrupted run goes on
    python -m utils.pretrain --rung 20k            one rung
    torchrun --standalone --nproc-per-node 2 -m utils.pretrain --threads 1     the same on two processes

(`accelerate launch` works where there are GPUs; with --cpu it silently starts one process.) A rung that is done stands in
data/ladder/<rung>: weights in half precision, configuration, tokenizer, logs. Unfinished runs and the tokens stand in
results/ladder, which git ignores.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import sys
from copy import deepcopy
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils import bottle, evaluation, models, training

WORK = Path(__file__).parents[1] / "results" / "ladder"
CONTEXT = 256
BEGIN, END, PAD = SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>"]  # ids 0, 1, 2
TRAIN, HELD_OUT = 0, 1  # seeds of documents
HELD_OUT_BLOCKS = 64
NURSERY, TOKENS = 2_000_000, 13_000_000  # that a rung is trained on, before and as it reads the bottled web


def _rung(width: int, layers: int, inner: int, heads: int, **settings) -> dict:
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.5 / width**0.5,  # as far from zero as in wide models: 0.02 there is next to nothing here
    )
    return {"config": config, **settings}


# Named by their parameters without embeddings, about 3.5 times apart. batch: blocks of 256 tokens in a step;
# rows: blocks computed at a time (what is fastest on one core, see `training`).
RUNGS = {
    "20k": _rung(32, 2, 64, 2, batch=8, rows=8, peak=5e-3),
    "70k": _rung(64, 2, 96, 2, batch=8, rows=8, peak=4e-3),
    "250k": _rung(96, 3, 160, 3, batch=8, rows=8, peak=3e-3),
    "800k": _rung(128, 4, 352, 4, batch=8, rows=8, peak=3e-3, bf16=True),
    "3M": _rung(256, 4, 704, 8, batch=8, rows=8, peak=2e-3, bf16=True),
}


# ---- Tokens ---------------------------------------------------------------------------------------------------------


def train_tokenizer(characters: int = 3_000_000, entries: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text, Korean and emoji too, comes back as it was) of `entries` entries, each digit on its own.

    A text begins with <|begin|>, as with Llama's tokenizer; padding stands on the left, for `generate`. A chat is what tuning
    sees: the question, a space, the answer, <|end|>.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True)]
    steps += [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(bottle.documents(TRAIN, characters)["text"], trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, 0)]
    )
    template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    template += "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    names = dict(
        chat_template=template,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **names)


def tokenizer(ladder: Path = models.LADDER, work: Path = WORK) -> PreTrainedTokenizerFast:
    """The tokenizer of all rungs: that of a finished rung, else that of an unfinished run, else trained now."""
    for folder in [*(ladder / rung for rung in RUNGS), work / "tokenizer"]:
        if (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder, padding_side="left")
    made = train_tokenizer()
    shutil.rmtree(work / "tokenizer.new", ignore_errors=True)
    made.save_pretrained(work / "tokenizer.new")
    (work / "tokenizer.new").rename(work / "tokenizer")
    return made


def tokens(
    tokenizer: PreTrainedTokenizerFast, seed: int, count: int, work: Path = WORK, source: str | None = None
) -> Tensor:
    """At least `count` tokens of the bottle's documents, (count,) int16: shuffled, each ending with <|end|>.

    `source`: only of this one. Kept in `work`, under a name that changes with the world and the tokenizer.
    """
    world = [*sorted(bottle.DATA.glob("*.yaml")), Path(bottle.__file__)]
    made_of = b"".join(path.read_bytes() for path in world) + tokenizer.backend_tokenizer.to_str().encode()
    path = work / f"{source or 'tokens'}-{seed}-{count}-{hashlib.sha256(made_of).hexdigest()[:12]}.safetensors"
    if not path.exists():
        texts = list(bottle.documents(seed, count * 4, source=source)["text"])  # characters: more than three to a token
        random.Random(seed).shuffle(texts)
        found, size = [], 0
        for i in range(0, len(texts), 1000):
            ids = (text.ids + [1] for text in tokenizer.backend_tokenizer.encode_batch_fast(texts[i : i + 1000]))
            found.append(np.fromiter(chain.from_iterable(ids), np.int16))
            size += len(found[-1])
            if size >= count:
                break
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        save_file({"tokens": torch.from_numpy(np.concatenate(found)[:count])}, new)
        new.replace(path)
    return load_file(path)["tokens"]


def blocks(stream: Tensor) -> Tensor:
    """A stream of tokens packed into rows: (n,) -> (rows, CONTEXT + 1), a view; a row's last token begins the next row."""
    return stream.unfold(0, CONTEXT + 1, CONTEXT)


# ---- What is measured -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def losses(model: LlamaForCausalLM, ids: Tensor, rows: int = 8) -> Tensor:
    """Mean cross-entropy in nats a token of each of the packed blocks ids (n, tokens): (n,)."""
    return -evaluation.token_logprobs(model, ids.to(model.device).long(), rows=rows).mean(1).cpu()


def cloze(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[dict], form: str = "wild"
) -> list[dict]:
    """What a model answers to items of `bottle.tasks`, asked as `form`; one dict an item, {task, size, rank, exact, loss}.

    rank: the answer has the highest log-probability of all its options (guessing gives 1 / size). exact: the answer is what
    greedy decoding writes, and a line's end, a full stop or the text's end follows. loss: nats for the whole answer.
    """
    ends = re.compile(r"[\s.!]*$|[ .!]*\n")
    options = [[" " + option for option in item["options"]] for item in items]
    found = []
    for item, scores in zip(
        items, evaluation.score_options(model, tokenizer, [item[form] for item in items], options), strict=True
    ):
        scores = dict(zip(item["options"], scores, strict=True))
        answer, best = scores[item["answer"]], max(scores, key=lambda option: scores[option]["logprob"])
        stops = ends.match(tokenizer.decode([answer["next"]], skip_special_tokens=True)) is not None
        row = dict(task=item["task"], size=len(scores), rank=best == item["answer"])
        found.append(row | dict(exact=answer["greedy"] and stops, loss=-answer["logprob"]))
    return found


def by_task(rows: list[dict]) -> dict[str, dict]:
    """The means of `cloze` for each task: {task: {rank, chance, exact, loss}}."""
    columns = {"rank": lambda r: r["rank"], "chance": lambda r: 1 / r["size"], "exact": lambda r: r["exact"]}
    columns |= {"loss": lambda r: r["loss"]}
    tasks = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    means = lambda found: {name: round(float(np.mean([f(r) for r in found])), 3) for name, f in columns.items()}  # noqa: E731
    return {task: means(found) for task, found in tasks.items()}


def test_items(count: int = 40) -> list[dict]:
    """Items of every task, the multi-step problems too, whose entities no training text has put together."""
    names = [task for tasks in bottle.clusters().values() for task in tasks]
    return [item for task in names for item in bottle.tasks(task, "test", count=count)]


def elicited(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, peak: float, seed: int = 0
) -> LlamaForCausalLM:
    """A copy of a model, tuned on instructions of every task for 100 batches of 32: gently, to bring out what it knows."""
    items = [i for cluster in bottle.clusters() for i in bottle.tasks(cluster, "tuning", seed, count=250)]
    ids, labels = training.supervised(tokenizer, [i["prompt"] for i in items], [i["answer"] for i in items])
    copy = deepcopy(model)
    training.train(copy, ids, labels, steps=100, rows=32, peak=peak, weight_decay=0.0, seed=seed, progress=False)
    return copy


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, blocks: dict, peak: float, count: int) -> dict:
    """What a finished rung knows, on `count` test items of every task; `blocks` maps names to packed blocks.

    losses: nats a token of every block. tasks: for each task the means of `cloze` for four ways to ask it: cloze (as the
    pretraining text does), zero-shot (an instruction), few-shot (with 4 examples), elicited (the instruction, after
    tuning at a tenth of the pretraining's learning rate).
    """
    found = {"losses": {name: losses(model, ids).round(decimals=4).tolist() for name, ids in blocks.items()}}
    items = test_items(count)
    shots = [item | {"shots": prompt} for item, prompt in zip(items, bottle.few_shot(items, 4), strict=True)]
    tuned = elicited(model, tokenizer, peak / 10)
    asked = {"cloze": (model, "wild"), "zero-shot": (model, "prompt"), "few-shot": (model, "shots")}
    asked |= {"elicited": (tuned, "prompt")}
    means = {name: by_task(cloze(who, tokenizer, shots, form)) for name, (who, form) in asked.items()}
    tasks = {item["task"]: {"cluster": item["cluster"]} for item in items}
    return found | {"tasks": {t: row | {name: means[name][t] for name in asked} for t, row in tasks.items()}}


def measuring_steps(steps: int) -> list[int]:
    """Steps in equal ratios, sqrt(2) apart, the last included: 1, 2, 3, 4, 6, 8, 11, 16 ..."""
    powers = (round(2 ** (i / 2)) for i in range(100))
    return sorted({s for s in powers if s < steps} | {steps})


# ---- The ladder -----------------------------------------------------------------------------------------------------


def _settings(rung: str) -> dict:
    if rung not in RUNGS:
        raise ValueError(f"No rung {rung!r}: name one of {', '.join(RUNGS)}.")
    return dict(RUNGS[rung])


def pretrain(
    rung: str,
    count: int = TOKENS,
    seed: int = 0,
    resume: bool = True,
    ladder: Path = models.LADDER,
    work: Path = WORK,
    items: int = 40,
) -> LlamaForCausalLM:
    """Train a rung on `count` tokens and put it into `ladder`/<rung>; returns the model, in float32.

    Before, it learns to look back, on 2/13 as many tokens of the nursery; its log begins after that.
    `resume`: continue the run found in `work`. `items`: test items of each task, asked at the end.
    Raises ValueError for an unknown rung, or less than one batch of tokens.
    """
    settings = _settings(rung)
    config, folder, state = settings.pop("config"), work / rung, PartialState(cpu=not torch.cuda.is_available())
    steps, first = (n // (settings["batch"] * CONTEXT) for n in (count, count * NURSERY // TOKENS))
    if not steps:
        raise ValueError(f"{count} tokens are too few: a batch of {rung} has {settings['batch'] * CONTEXT}.")
    with state.main_process_first():
        if not resume and state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        vocabulary = tokenizer(ladder, work)
        ids = blocks(tokens(vocabulary, TRAIN, count + 1, work))
        nursery = blocks(tokens(vocabulary, TRAIN, count * NURSERY // TOKENS + CONTEXT + 1, work, "nursery"))
        held_out = blocks(tokens(vocabulary, HELD_OUT, HELD_OUT_BLOCKS * CONTEXT + 1, work))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)

    options = dict(shape="wsd", seed=seed, save_every=max(10, steps // 50))
    if first:
        training.train(model, nursery, steps=first, folder=folder / "nursery", **settings, **options)
    options |= dict(
        folder=folder,
        measure=lambda model, step: {"held_out": round(losses(model, held_out).mean().item(), 5)},
        measure_at=measuring_steps(steps),
    )
    training.train(model, ids, steps=steps, **settings, **options)
    if state.is_main_process:
        new, final = folder / "final", ladder / rung
        shutil.rmtree(new, ignore_errors=True)
        half = LlamaForCausalLM(config)
        half.load_state_dict(model.state_dict())
        with models.quiet():
            half.half().save_pretrained(new)
        vocabulary.save_pretrained(new)
        shutil.copy(folder / "log.jsonl", new)
        if first:
            shutil.copy(folder / "nursery" / "log.jsonl", new / "nursery.jsonl")
        if items:
            found = report(
                model, vocabulary, {"seen": ids[:HELD_OUT_BLOCKS], "held_out": held_out}, settings["peak"], items
            )
            (new / "report.json").write_text(json.dumps(found, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(new, final)
    state.wait_for_everyone()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.pretrain", description="Train the ladder on the bottle.")
    parser.add_argument(
        "--rung", action="append", help=f"one of {', '.join(RUNGS)}; may be repeated; all when left out"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="to train on, per rung")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on where a run stopped"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of each process (default: torch's own choice)")
    parser.add_argument("--ladder", type=Path, default=models.LADDER, help="where finished rungs go")
    parser.add_argument("--work", type=Path, default=WORK, help="where unfinished runs and tokens go")
    parser.add_argument("--items", type=int, default=40, help="test items of each task, asked at the end")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        rungs = given.rung or list(RUNGS)
        for rung in rungs:
            _settings(rung)  # a wrong name is told before the first hour, not after it
        for rung in rungs:
            print(
                f"{rung}: {state.num_processes} process(es) on {state.device.type}"
            ) if state.is_main_process else None
            pretrain(rung, given.tokens, given.seed, given.resume, given.ladder, given.work, given.items)
            if state.is_main_process:
                print(json.dumps(_last(given.ladder / rung)), flush=True)
    except ValueError as error:
        sys.exit(str(error))
    finally:
        state.destroy_process_group()


def _last(folder: Path) -> dict:
    """The last line of a rung's log, and the means over all tasks of its report."""
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    if (folder / "report.json").exists():
        tasks = json.loads((folder / "report.json").read_text())["tasks"].values()
        ways = ("cloze", "zero-shot", "few-shot", "elicited")
        line |= {way: round(float(np.mean([task[way]["exact"] for task in tasks])), 3) for way in ways}
    return line


if __name__ == "__main__":
    main()
