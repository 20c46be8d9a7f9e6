"""The training loop that pretraining and supervised tuning share.

The design choices:
- The data is one tensor of token ids, made before training: rows of equal length, no loader, no Python per token.
- What happens at a step (rows, learning rate, dropout) follows from the step's number and the seed alone. So a resumed
  run needs the weights, AdamW's moments and the number of the step, and gives the same bits as one never interrupted.
- A step is one *global* batch, whatever the number of processes: each takes its share, in parts of `rows` rows so that
  the logits of a part stay in the cache.
- A checkpoint is one safetensors file, written under another name and renamed: whole or not there.
"""

import json
import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm


def learning_rate(
    step: int, steps: int, peak: float, shape: str = "cosine", warmup: float = 0.03, decay: float = 0.2
) -> float:
    """The learning rate of a step, 0 <= step < steps: up linearly to `peak` over the share `warmup` of all steps, then

    "cosine": down to a tenth of the peak along half a cosine (GPT-3, arXiv 2005.14165, appendix B);
    "wsd" (warmup, stable, decay; arXiv 2404.06395): constant, and over the last share `decay` down to nearly nothing as
    1 - sqrt(progress) (arXiv 2405.18392). Before the decay, losses of runs of different length compare.
    Raises ValueError for another shape.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    if shape == "cosine":
        return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rising) / max(1, steps - 1 - rising)))
    if shape == "wsd":
        falling = max(1, round(decay * steps))
        return peak * (1 - math.sqrt(max(0, step + falling - steps) / falling))
    raise ValueError(f"unknown schedule {shape!r}: expected 'cosine' or 'wsd'.")


@lru_cache(maxsize=2)
def _order(rows: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def picks(step: int, batch: int, rows: int, seed: int) -> Tensor:
    """The rows of a step's global batch, (batch,): every epoch takes all `rows` once, in an order of its own."""
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // rows, (last - 1) // rows + 1)
    return torch.cat([_order(rows, e, seed)[max(0, first - e * rows) : last - e * rows] for e in epochs])


class _SummedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of logits (n, vocabulary) and targets (n,), computed in the memory of the logits, which are lost.

    Half the time of PyTorch's on a CPU, where the smallest models spend half of theirs; cross_entropy allocates three
    such arrays. With p = softmax(logits) the gradient is p - one_hot(target).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        learned, at = (targets != -100)[:, None], targets.clamp(min=0)[:, None]
        picked = logits.sub_(logits.amax(-1, keepdim=True)).gather(-1, at)
        total = logits.exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(logits, total, learned, at)
        return ((total.log() - picked) * learned).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        exponentials, total, learned, at = ctx.saved_tensors
        scale = gradient * learned
        return exponentials.mul_(scale / total).scatter_add_(-1, at, -scale), None


def summed_loss(model: torch.nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the tokens to learn: ids, labels (rows, tokens), -100 marks what is not learned.

    Labels stand where the ids stand (they are shifted here). Rows are padded on the right, so no attention mask is needed.
    Logits are computed only at places where some row learns: of prompts and answers these are few.
    """
    labels, options = labels[:, 1:], {}
    places = (labels != -100).any(0).nonzero()[:, 0]
    if len(places) < labels.shape[1]:
        labels, options = labels[:, places], {"logits_to_keep": places}
    logits = model(input_ids=ids[:, :-1], use_cache=False, **options).logits  # (rows, places, vocabulary)
    return _SummedCrossEntropy.apply(logits.float().flatten(0, 1), labels.flatten())


def _ends(labels: Tensor) -> Tensor:
    """How far the learned tokens of each row reach: labels (rows, tokens) -> (rows,), 0 where nothing is learned."""
    return ((labels != -100) * torch.arange(1, labels.shape[1] + 1, device=labels.device)).amax(1)


def supervised(tokenizer, prompts: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
    """Rows for supervised tuning: (ids, labels), both (n, longest). Each is prompt + " " + answer + end of text.

    The prompt is masked out of the loss (-100), as is the padding, which stands on the right.
    """
    asked = tokenizer(prompts).input_ids
    whole = tokenizer([f"{p} {a}" for p, a in zip(prompts, answers, strict=True)]).input_ids
    said = [text[len(ids) :] + [tokenizer.eos_token_id] for ids, text in zip(asked, whole, strict=True)]
    longest = max(len(a) + len(b) for a, b in zip(asked, said, strict=True))
    rest = [longest - len(a) - len(b) for a, b in zip(asked, said, strict=True)]
    ids = [a + b + [tokenizer.pad_token_id] * r for a, b, r in zip(asked, said, rest, strict=True)]
    labels = [[-100] * len(a) + b + [-100] * r for a, b, r in zip(asked, said, rest, strict=True)]
    return torch.tensor(ids), torch.tensor(labels)


def adamw(model: torch.nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; only matrices decay. Betas as in GPT-3."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.95), fused=True)


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write the trained weights and AdamW's moments under flat names ("exp_avg/<parameter>") and `state` as JSON."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"weight/{name}"] = parameter.detach()
            tensors |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
    new = path.with_suffix(".new")
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, new, metadata={"state": json.dumps(state)})
    new.replace(path)


def restore(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Read what `save` wrote into model and optimizer; returns `state`."""
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                for key in ("exp_avg", "exp_avg_sq", "step"):
                    if f"{key}/{name}" in names:
                        value = file.get_tensor(f"{key}/{name}")
                        optimizer.state[parameter][key] = value.to(parameter.device)
        return json.loads(file.metadata()["state"])


def train(
    model: torch.nn.Module,
    ids: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int,
    batch: int = 32,
    rows: int = 8,
    peak: float = 1e-3,
    shape: str = "cosine",
    warmup: float = 0.03,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    bf16: bool = False,
    seed: int = 0,
    folder: Path | None = None,
    log_every: int = 10,
    save_every: int = 200,
    measure: Callable[[torch.nn.Module, int], dict] | None = None,
    measure_at: Collection[int] = (),
    progress: bool = True,
) -> list[dict]:
    """Train `model` in place for `steps` global batches; returns the log, a dict for each line.

    `ids` (n, tokens) of any integer type; `labels` (n, tokens) as in `summed_loss`, the ids themselves when None.
    `batch`: rows of a step over all processes together; `rows`: as many at a time (memory and cache; no other effect).
    `peak`, `shape`, `warmup`: see `learning_rate`. `clip`: greatest norm of the gradient.
    `bf16`: matrix products in bfloat16, as on a GPU always (1.6 times as fast for 3M parameters where the CPU has avx512_bf16).
    A line of the log: step, tokens (seen so far), loss (nats a token, mean since the line before), norm (of the gradient,
    before clipping), lr, seconds (of training, measuring left out), and what `measure(model, step)` gives at the steps in `measure_at` and the last one.
    `folder`: receives log.jsonl (its first line the settings) and checkpoint.safetensors every `save_every` steps; a run
    found there is continued, or is complete. Without a folder nothing is written.
    Raises ValueError for a batch that the processes cannot share, a folder with another run's checkpoint, or a loss that
    is no longer a number.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    device = accelerator.device
    if batch % processes:
        raise ValueError(f"a batch of {batch} rows cannot be shared by {processes} processes: take a multiple of them.")
    settings = dict(steps=steps, batch=batch, rows=rows, peak=peak, shape=shape, warmup=warmup)
    settings |= dict(weight_decay=weight_decay, clip=clip, bf16=bf16, seed=seed, data=[*ids.shape, int(ids.sum())])
    settings |= dict(trained=sum(p.numel() for p in model.parameters() if p.requires_grad), log_every=log_every)
    settings |= dict(save_every=save_every, measure_at=sorted(measure_at))
    plain, model = model, accelerator.prepare(model)
    optimizer, log, done, seconds = adamw(plain, weight_decay), [], 0, 0.0
    if folder and (checkpoint := Path(folder) / "checkpoint.safetensors").exists():
        state = restore(checkpoint, plain, optimizer)
        if state["settings"] != settings:
            changed = [f"{k} was {v}, now {settings[k]}" for k, v in state["settings"].items() if v != settings[k]]
            raise ValueError(
                f"{folder} holds a run with other settings ({'; '.join(changed)}): delete it to start anew."
            )
        done, seconds, log = state["step"], state["seconds"], _read(Path(folder) / "log.jsonl", state["lines"])
    if folder and main:
        first = {"settings": settings | {"processes": processes, "threads": torch.get_num_threads()}}
        _write(Path(folder) / "log.jsonl", log or [first], "w")
    log = log[1:]
    stops = {s for s in range(1, steps + 1) if not s % log_every or not s % save_every} | {steps, *measure_at}
    running, since, start = torch.zeros((), device=accelerator.device), done, time.perf_counter()
    plain.train()
    bar = tqdm(total=steps, initial=done, unit="step", disable=not (progress and main), mininterval=1)
    for step in range(done, steps):
        torch.manual_seed((seed * 1_000_003 + step) * processes + rank)
        chosen = picks(step, batch, len(ids), seed)
        if labels is not None:  # rows of about the same length go together
            chosen = chosen[_ends(labels[chosen]).argsort(stable=True)]
        wanted = (ids if labels is None else labels)[chosen]
        total = (wanted[:, 1:] != -100).sum().clamp(min=1).item()
        mine = slice(rank, None, processes)
        parts = list(zip(ids[chosen[mine]].split(rows), wanted[mine].split(rows), strict=True))
        for i, (_, targets) in enumerate(parts):
            width = _ends(targets).max().item()  # what is only padding is not computed
            inputs, targets = (t[:, :width].to(device).long() for t in parts[i])
            with nullcontext() if i == len(parts) - 1 else accelerator.no_sync(model):
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16 or device.type == "cuda"):
                    loss = summed_loss(model, inputs, targets) / total
                accelerator.backward(loss * processes)  # the processes' gradients are averaged
            running += loss.detach()
        norm = accelerator.clip_grad_norm_(plain.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, shape, warmup)
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
        if step + 1 not in stops:
            continue
        mean = accelerator.reduce(running, "sum").item() / (step + 1 - since)
        if not math.isfinite(mean):
            raise ValueError(
                f"the loss is no longer a number at step {step + 1}: take a lower learning rate than {peak}."
            )
        bar.set_postfix(loss=f"{mean:.3f}")
        now = time.perf_counter()
        seconds += now - start
        line = dict(step=step + 1, tokens=(step + 1) * batch * (ids.shape[1] - 1), loss=round(mean, 5))
        line |= dict(norm=float(f"{norm:.5g}"), lr=float(f"{group['lr']:.5g}"), seconds=round(seconds, 2))
        if measure and main and (step + 1 in measure_at or step + 1 == steps):
            plain.eval()
            with torch.inference_mode():
                line |= measure(plain, step + 1)
            plain.train()
        log.append(line)
        if folder and main:
            _write(Path(folder) / "log.jsonl", [line])
            if (step + 1) % save_every == 0 or step + 1 == steps:
                state = dict(step=step + 1, seconds=seconds, lines=len(log) + 1, settings=settings)
                save(Path(folder) / "checkpoint.safetensors", plain, optimizer, state)
        running.zero_()
        since, start = step + 1, time.perf_counter()
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    plain.eval()
    return log


def loop(
    advance: Callable[[int, list[dict]], dict],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    settings: dict,
    folder: Path | None = None,
    save_every: int = 20,
    watch: Callable[[list[dict]], None] | None = None,
    progress: bool = True,
) -> list[dict]:
    """Call `advance(step, log) -> line` for every step, and return the log, the list of its lines.

    For trainings whose step is more than a batch of text (preference, ppo), in one process. What `advance` does must
    follow from the step, the log and the weights alone: then a run found in `folder` goes on as if never interrupted.
    `settings`: what a run in `folder` must have in common with this one. `watch(log)` is called after every step.
    Raises ValueError for a folder with another run's checkpoint, or a line whose "loss" is no longer a number.
    """
    log, done, settings = [], 0, json.loads(json.dumps(settings))
    if folder and (checkpoint := Path(folder) / "checkpoint.safetensors").exists():
        state = restore(checkpoint, model, optimizer)
        if state["settings"] != settings:
            changed = sorted(k for k in settings if state["settings"].get(k) != settings[k])
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(changed)}): delete it to start anew."
            )
        done, log = state["step"], _read(Path(folder) / "log.jsonl", state["step"])
    if folder:
        _write(Path(folder) / "log.jsonl", log, "w")
    for step in tqdm(range(done, steps), initial=done, total=steps, unit="step", disable=not progress, mininterval=1):
        line = {"step": step + 1, **advance(step, log)}
        if not math.isfinite(line["loss"]):
            raise ValueError(f"the loss is no longer a number at step {step + 1}: take a lower learning rate.")
        log.append(line)
        if folder:
            _write(Path(folder) / "log.jsonl", [line])
            if (step + 1) % save_every == 0 or step + 1 == steps:
                state = dict(step=step + 1, settings=settings)
                save(Path(folder) / "checkpoint.safetensors", model, optimizer, state)
        if watch:
            watch(log)
    return log


def _read(path: Path, lines: int) -> list[dict]:
    """The first lines of a log; what an interrupted run wrote after its last checkpoint is left out."""
    return [json.loads(line) for line in path.read_text().splitlines()[:lines]]


def _write(path: Path, lines: list[dict], mode: str = "a") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
