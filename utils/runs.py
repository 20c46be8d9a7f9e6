"""The long runs whose results the notebooks load: `python -m utils.runs decoders` makes data/runs/decoders.* again.

Each run writes a Parquet file and a log (command, seconds, machine, versions) beside it.
"""

import argparse
import hashlib
import itertools
import json
import platform
import random
import time
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import pyarrow.parquet
import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor

from utils import (
    alignment,
    benchmarks,
    bottle,
    decoding,
    detection,
    evaluation,
    flan,
    judging,
    models,
    pretrain,
    prompting,
    retrieval,
    rewards,
    rlhf,
    synthetic,
    vision,
)

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


# ---- Instruction tuning (notebook 03) -------------------------------------------------------------------------------

SEEDS = (0, 1, 2)
ABLATED = "800k"  # the rung of the ablations; "leave one out" is on the largest


def flan_plan() -> list[dict]:
    """Every arm of notebook 03: experiment, setting, rung, held_out, seed (which name it), and options for `flan.arm`."""
    plan = []

    def add(experiment, setting, rung, held_out, seeds=SEEDS, **options):
        names = dict(experiment=experiment, setting=str(setting), rung=rung)
        plan.extend(names | dict(held_out=out, seed=seed, **options) for out in held_out for seed in seeds)

    *smaller, top = pretrain.RUNGS
    for rung in smaller:
        add("untuned", "", rung, [[]], [0], asked=("prompt",))
    add("untuned", "", top, [[]], [0], asked=("prompt", "wild"), replies=flan.REPLIES)
    add("prompted", "", top, [[]], [0], asked=("prompted",), items=120, replies=flan.REPLIES)
    add("few-shot", "", top, [[]], asked=("shots",), items=60, replies=flan.REPLIES)
    add("leave one out", "", top, flan.LEFT_OUT, replies=flan.REPLIES)
    for rung in pretrain.RUNGS:
        add("folds", "", rung, flan.FOLDS)
    add("shuffled", "", ABLATED, flan.FOLDS, shuffled=True)
    for number in range(1, len(flan.ADDED)):
        add("clusters", number, ABLATED, flan.FOLDS[:1], chosen=flan.ADDED[:number])
    add("form", "named", ABLATED, flan.FOLDS, form="named", asked=("named", "prompt"))
    add("form", "bare", ABLATED, flan.FOLDS, form="bare")
    add("templates", 1, ABLATED, flan.FOLDS, templates=1)
    add("templates", 4, ABLATED, flan.FOLDS, SEEDS[:1], templates=4)  # shown; the claim compares 10 with 1
    add("all", "", ABLATED, [[]])
    tasks = bottle.clusters()
    for task in [task for cluster in flan.clusters() for task in tasks[cluster]]:
        add("one task", task, ABLATED, [[]], [0], chosen=[task], rows=flan.STEPS * flan.BATCH // 2)
    return plan


def flan_arm(planned: dict, model, tokenizer) -> list[dict]:
    """Run one arm of `flan_plan` on its rung's model: its rows, a task and way to ask each."""
    names = {key: planned[key] for key in ("experiment", "setting", "rung", "seed")}
    options = {key: value for key, value in planned.items() if key not in (*names, "held_out")}
    held_out, rung = planned["held_out"], pretrain.RUNGS[planned["rung"]]
    if planned["experiment"] in ("untuned", "prompted", "few-shot"):
        rows = flan.untuned(model, tokenizer, flan.clusters(), planned["seed"], **options)
    else:
        rows = flan.arm(model, tokenizer, held_out, planned["seed"], rung["peak"] / 10, **options)
    return [names | dict(held_out=", ".join(held_out)) | row for row in rows]


def every_arm() -> None:
    """Every arm of instruction tuning. An arm that is stored, for the same base weights, is not run again."""
    weights = {rung: _weights(rung) for rung in pretrain.RUNGS}
    loaded = lru_cache(lambda rung: models.load(f"ladder/{rung}"))

    def rows(planned: dict) -> list[dict]:
        found = flan_arm(planned, *loaded(planned["rung"]))
        return [row | {"base": weights[planned["rung"]]} for row in found]

    units = {_arm_name(plan | {"held_out": ", ".join(plan["held_out"])}): partial(rows, plan) for plan in flan_plan()}
    _go_on("flan", units, _arm_name, lambda row: row["base"] == weights[row["rung"]])


def _arm_name(row: dict) -> str:
    return " | ".join(str(row[key]) for key in ("experiment", "setting", "rung", "held_out", "seed"))


def _stored(name: str) -> tuple[list[dict], dict]:
    """The rows and the seconds of a run, as far as it has come."""
    if not (RUNS / f"{name}.parquet").exists():
        return [], {}
    rows = pyarrow.parquet.read_table(RUNS / f"{name}.parquet").to_pylist()
    return rows, json.loads((RUNS / f"{name}.json").read_text())["seconds"]


def _go_on(
    name: str,
    units: dict[str, Callable[[], list[dict]]],
    unit: str | Callable[[dict], str] = "unit",
    current: Callable[[dict], bool] = lambda row: True,
    command: str | None = None,
) -> None:
    """Make the rows of every unit that is not stored in data/runs/NAME yet, and write after each: a stopped run goes on.

    `unit`: which one a row belongs to (a column, which every row gets, or a function of the row). `current`: whether a
    stored row is of use.
    """
    of = unit if callable(unit) else itemgetter(unit)
    rows, seconds = _stored(name)
    rows = [row for row in rows if of(row) in units and current(row)]
    done = {of(row) for row in rows}
    seconds = {key: seconds[key] for key in done}
    for number, (key, make) in enumerate(units.items(), 1):
        if key not in done:
            start = time.perf_counter()
            rows += [row if callable(unit) else {unit: key} | row for row in make()]
            seconds[key] = round(time.perf_counter() - start, 1)
            print(f"{name}, {number}/{len(units)} {key}: {seconds[key]} s", flush=True)
            columns = dict.fromkeys(column for row in rows for column in row)
            _write(name, [columns | row for row in rows], seconds, command)


def templates() -> None:
    """SmolLM2 on 56 items of each of FLAN's data sets, through four templates each."""
    model, tokenizer = models.load("smollm2")
    _go_on("templates", {name: partial(flan.real_scores, model, tokenizer, name, 56) for name in flan.REAL}, "data")


def lora() -> None:
    """SmolLM2 learns two-step problems by LoRA: 60 test problems before, after 10, 50, 100 and 150 batches of 8."""
    model, tokenizer = models.load("smollm2")
    items = flan.problems("test")
    rng = random.Random("lora")
    examples = flan.problems("tuning", 100, 40)
    for item in items:
        shown = rng.sample(examples, 4)
        item["shots"] = "\n".join([e["prompt"] + e["cot"] for e in shown] + [item["prompt"]])
    rows, start = [], time.perf_counter()

    def measure(model, step, form="prompt"):
        right = flan.solved(model, tokenizer, items, form)
        rows.extend(dict(step=step, form=form, item=i, right=r) for i, r in enumerate(right))
        print(f"step {step}, {form}: {sum(right)} of {len(right)}, {time.perf_counter() - start:.0f} s", flush=True)
        return {}

    for form in ("prompt", "shots"):
        measure(model, 0, form)
    adapted = flan.with_lora(model)
    log = flan.tune_lora(adapted, tokenizer, 150, measure=measure, measure_at=(10, 50, 100))
    _write("lora", rows, {"all": round(time.perf_counter() - start), "training": log[-1]["seconds"]})


# ---- Reward models (notebook 04) ------------------------------------------------------------------------------------


def reward_models() -> None:
    """Every arm of `rewards.plan`. A stored arm, for the same base weights, is not run again."""
    weights = {rung: _weights(rung) for rung in pretrain.RUNGS}

    def rows(planned: dict) -> list[dict]:
        return [row | {"base": _bases(planned["rung"], weights)} for row in rewards.arm(planned)]

    key = lambda row: " | ".join(str(row[name]) for name in ("experiment", "setting", "rung", "seed"))  # noqa: E731
    units = {key(planned): partial(rows, planned) for planned in sorted(rewards.plan(), key=itemgetter("seed"))}
    _go_on("rewards", units, key, lambda row: row["base"] == _bases(row["rung"], weights))


def _weights(rung: str) -> str:
    """What names a rung's weights: the beginning of their hash."""
    return hashlib.sha256((models.LADDER / rung / "model.safetensors").read_bytes()).hexdigest()[:12]


def _bases(rung: str, weights: dict[str, str]) -> str:
    """The weights that an arm depends on: of the policy whose replies are compared, and of the reward model."""
    return f"{weights[rlhf.RUNG]} {weights[rung]}"


def judges() -> None:
    """Reward models on frozen MiniLM features of AlpacaEval's answers: by judge, number of pairs and split."""
    start = time.perf_counter()
    pairs = benchmarks.judgements(rewards.JUDGES)
    features = rewards.features(pairs)
    seconds = {"features": round(time.perf_counter() - start)}
    print(f"features of {len(pairs)} pairs: {seconds['features']} s", flush=True)
    rows = [row for judge in rewards.JUDGES for row in rewards.judged(pairs, features, judge)]
    _write("judges", rows, seconds | {"all": round(time.perf_counter() - start)})


# ---- Reinforcement learning from human feedback (notebook 05) -------------------------------------------------------

RLHF_COLUMNS = (
    "seed",
    "arm",
    "kind",
    "step",
    "item",
    "asked",
    "clothes",
    "reply",
    "grade",
    "toxic",
    "appropriate",
    "words",
)
RLHF_COLUMNS += ("truthful", "hallucinated", "harmful", "refused", "kl", f"proxy {alignment.RUNG}")
RLHF_COLUMNS += (
    f"proxy {alignment.SMALL}",
    "reward",
    "entropy",
    "length",
    "beta",
    "value_loss",
    "clipped",
    "seconds",
    "base",
)


def rlhf_arm(arm: str, steps: alignment.Steps) -> list[dict]:
    """Run one arm of notebook 05: its rows, all with RLHF_COLUMNS."""
    rows = (alignment.plan() | alignment.failures())[arm](steps)
    names = dict(seed=steps.seed, arm=arm, base=steps.weights)
    return [dict.fromkeys(RLHF_COLUMNS) | names | row for row in rows]


def every_rlhf_arm(seeds: tuple[int, ...] = SEEDS) -> None:
    """Every arm of notebook 05. A stored arm, for the same base weights, is not run again; seeds may run at the same time."""
    for seed in seeds:
        steps = alignment.Steps(seed, pretrain.WORK.parent / "rlhf")
        plan = [*alignment.plan(), *(alignment.failures() if seed == 0 else [])]
        units = {arm: partial(rlhf_arm, arm, steps) for arm in plan}
        _go_on(f"rlhf-{seed}", units, "arm", lambda row, of=steps: row["base"] == of.weights, f"rlhf --seed {seed}")


def aligned() -> None:
    """data/aligned: the tuned model and the PPO policy of seed 0, in half precision, for notebook 09."""
    steps = alignment.Steps(0, pretrain.WORK.parent / "rlhf")
    policy, _ = alignment.trained(steps, steps.rewards[alignment.RUNG])
    for name, model in (("sft", steps.tuned), ("ppo", policy)):
        with models.quiet():
            model.half().save_pretrained(models.ALIGNED / name)
            steps.tokenizer.save_pretrained(models.ALIGNED / name)


# ---- Evaluation (notebook 08) ---------------------------------------------------------------------------------------


def smollm2_scores() -> None:
    """SmolLM2 on the benchmarks of its model card, by likelihood and by the letter that it writes."""
    model, tokenizer = models.load("smollm2")
    units = {}
    for name in judging.BENCHMARKS:
        items = benchmarks.questions(name, judging.ITEMS)
        units[f"{name}, likelihood"] = partial(judging.by_likelihood, model, tokenizer, items)
        if name in judging.LETTERED:
            units[f"{name}, letter"] = partial(judging.by_letter, model, tokenizer, items[: judging.LETTERS])
    _go_on("benchmarks", units)


def smollm2_judges() -> None:
    """SmolLM2 as a judge: of the bottle's replies, of AlpacaEval's pairs, and of its own answers beside others'."""
    model, tokenizer = models.load("smollm2")
    pairs = judging.real_pairs(judging.PAIRS)
    replies = judging.known_replies(judging.REQUESTS)
    units = {
        "graded": partial(judging.graded_replies, model, tokenizer, replies),
        "likely": partial(judging.likely_pairs, model, tokenizer, pairs),
        "pairs": partial(judging.judged_pairs, model, tokenizer, pairs[: judging.JUDGED]),
        "own": partial(judging.own_answers, model, tokenizer, pairs[: judging.OWN]),
    }
    _go_on("judging", units)


def smollm2_code() -> None:
    """SmolLM2 completes the course's tiny code tasks (12 times each) and short problems of HumanEval (8 times each)."""
    model, tokenizer = models.load("smollm2")
    problems = judging.code_problems()
    tiny = [problem for problem in problems if problem["task_id"].startswith("tiny")]
    units = {
        "tiny": partial(judging.samples, model, tokenizer, tiny, 12, 48),
        "humaneval": partial(judging.samples, model, tokenizer, problems[len(tiny) :], 8, 64),
    }
    _go_on("code", units)


# ---- Prompting (notebook 07) ----------------------------------------------------------------------------------------


def prompts() -> None:
    """Every unit of `prompting.plan`."""
    load = lru_cache(models.load)
    key = lambda row: " | ".join(str(row[name]) for name in ("model", "experiment", "task", "setting", "part"))  # noqa: E731

    def rows(unit: dict) -> list[dict]:
        return [unit | row for row in prompting.measure(unit, *load(unit["model"]))]

    _go_on("prompts", {key(unit): partial(rows, unit) for unit in prompting.plan()}, key)


# ---- Applications and limits (notebook 09) --------------------------------------------------------------------------


def self_instruct() -> None:
    """A rung makes up tasks and is tuned on them: every arm, three clusters held out at a time, two seeds."""
    model, tokenizer = models.load(f"ladder/{synthetic.RUNG}")
    grader, _ = models.load(f"ladder/{synthetic.GRADER}")
    folds = {f"{', '.join(fold)} | {seed}": (fold, seed) for seed in (0, 1) for fold in flan.FOLDS}
    one = partial(synthetic.unit, model, grader, tokenizer)
    _go_on("self_instruct", {name: lambda f=f: [dict(seed=f[1]) | row for row in one(*f)] for name, f in folds.items()})


def looked_up() -> None:
    """Questions about the bottle, closed book and with passages, true and poisoned: SmolLM2, and a rung tuned either way."""
    chat, rung = models.load("smollm2"), models.load(f"ladder/{rlhf.RUNG}")
    units = {f"smollm2 | {way}": partial(retrieval.asked_chat, *chat, way) for way in retrieval.WAYS}
    for seed in SEEDS:
        for way in ("closed book", "passages"):
            units[f"{rlhf.RUNG} | {way} | {seed}"] = partial(retrieval.asked_rung, *rung, way == "passages", seed)
    _go_on("retrieval", units)


def detected() -> None:
    """Texts by people and by SmolLM2, drawn with and without a watermark, and paraphrased: log-probabilities of all tokens."""
    model, tokenizer = models.load("smollm2")
    stored = {}
    for row in _stored("decoders")[0]:
        if row["draw"] == 0:
            stored.setdefault(row["decoder"], []).append(row["tokens"])
    kinds = {name: partial(list, stored[name]) for name in ("human", "nucleus 0.95", "sampling", "temperature 0.7")}
    kinds["watermarked"] = partial(detection.write, model, tokenizer, paragraphs(tokenizer)[:, :PROMPT], NEW)

    def paraphrases() -> list[list[int]]:
        texts = [row["tokens"] for row in _stored("detection")[0] if row["unit"] == "watermarked"]
        return detection.paraphrase(model, tokenizer, texts)

    kinds["paraphrased"] = paraphrases
    _go_on("detection", {name: lambda make=make: detection.scored(model, make()) for name, make in kinds.items()})


def calibration() -> None:
    """How sure SmolLM2 is of its answers to ARC's questions (four options), by the options' text and by their letters."""
    model, tokenizer = models.load("smollm2")
    units = {}
    for name in ("arc_easy", "arc_challenge"):
        for form in ("text", "letter"):
            units[f"{name} | {form}"] = partial(evaluation.beliefs, model, tokenizer, arc(name), form)
    _go_on("calibration", units)


def arc(name: str, count: int = 120) -> list[dict]:
    """Every so many of ARC's questions with four options, `count` in all: dicts with question, options and answer (its place)."""
    rows = [row for row in benchmarks.load(name) if len(row["choices"]["text"]) == 4]
    rows = [rows[i * len(rows) // count] for i in range(count)]
    asked = [dict(question=row["question"], options=row["choices"]["text"]) for row in rows]
    return [item | {"answer": benchmarks.arc_answer(row)} for item, row in zip(asked, rows, strict=True)]


# ---- Pictures and clips (notebook 09) -------------------------------------------------------------------------------


def pictures() -> None:
    """The vision encoder, where it is not stored, and every arm of `vision.ARMS` on it."""
    encoded = (vision.WEIGHTS / "encoder.safetensors").exists()
    if not encoded:
        tokenizer = pretrain.tokenizer()
        scenes, drawn = vision.album("train", 8000, vision.TEST + 1)
        captions = [tokenizer(vision.caption(scene)).input_ids for scene in scenes]
        vision.keep("encoder", vision.train_encoder(drawn, captions)[0].state_dict())
    key = lambda row: f"{row['arm']} | {row['seed']}"  # noqa: E731
    arms = [dict(arm=arm, seed=seed) for arm, seed in itertools.product(vision.ARMS, SEEDS)]
    _go_on("pictures", {key(arm): partial(vision.arm, **arm) for arm in arms}, key, lambda row: encoded)


def clips() -> None:
    """A painter of clips with every seed; the weights and the codebook of seed 0 are kept."""

    def rows(seed: int) -> list[dict]:
        found, model, codes, _ = vision.clip_arm(seed)
        if seed == 0:
            weights = {key: tensor for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
            vision.keep("painter", weights | {"codes": torch.tensor(codes)})
        return found

    _go_on("clips", {f"seed {seed}": partial(rows, seed) for seed in SEEDS}, lambda row: f"seed {row['seed']}")


def _write(name: str, rows: list[dict], seconds: dict, run: str | None = None) -> None:
    """Write data/runs/NAME.*: the rows, and the log of the run (NAME, where it is not told)."""
    RUNS.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    log = {
        "command": f"python -m utils.runs {run or name}",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}",
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }
    Dataset.from_list(rows).to_parquet(str(RUNS / f"{name}.parquet.new"))
    (RUNS / f"{name}.parquet.new").replace(RUNS / f"{name}.parquet")
    (RUNS / f"{name}.json").write_text(json.dumps(log, indent=2) + "\n")


if __name__ == "__main__":
    known = {
        "decoders": decoders,
        "flan": every_arm,
        "templates": templates,
        "lora": lora,
        "rewards": reward_models,
        "judges": judges,
        "rlhf": every_rlhf_arm,
        "aligned": aligned,
        "benchmarks": smollm2_scores,
        "judging": smollm2_judges,
        "code": smollm2_code,
        "prompts": prompts,
        "self_instruct": self_instruct,
        "retrieval": looked_up,
        "detection": detected,
        "calibration": calibration,
        "pictures": pictures,
        "clips": clips,
    }
    parser = argparse.ArgumentParser(prog="python -m utils.runs", description=__doc__)
    parser.add_argument("name", choices=known, help="the run; a stopped one goes on")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--seed", type=int, action="append", help="of rlhf: only this one; may be repeated")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    known[given.name](*([given.seed] if given.name == "rlhf" and given.seed else []))
