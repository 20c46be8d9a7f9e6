"""How fast the course's code is, beside the field's, in one run: `make bench`.

Prints values and ratios; nothing here is a test. The limit of batch 1 is reading the weights once for every token:
parameters x bytes over the memory bandwidth measured in the same run.
"""

import contextlib
import io
import platform
import resource
import statistics
import sys
import time
from functools import partial

import torch
import transformers

from utils import decoding, models, wheels

PROMPT, NEW = 32, 48


def seconds(work, repeats: int = 3) -> float:
    """Median seconds of `work()` over a few repeats, after one to warm up; a single repeat is not warmed up."""
    if repeats > 1:
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def row(*cells) -> None:
    print("  ".join(f"{cell:>14}" if i else f"{cell:<34}" for i, cell in enumerate(cells)), flush=True)


def without_cache(model, ids, new_tokens):
    with torch.inference_mode():
        for _ in range(new_tokens):
            logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def generate(model, ids, new_tokens, **options):
    mask = torch.ones_like(ids)
    options = {"do_sample": False} | options
    return model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)


def int8(model):
    """Dynamic int8 in all linear layers but `lm_head` and `down_proj`, which would ruin the model."""
    keep = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    keep = {name for name in keep if not name.endswith(("lm_head", "down_proj"))}
    config = {name: torch.ao.quantization.default_dynamic_qconfig for name in keep}
    return torch.ao.quantization.quantize_dynamic(model, config, dtype=torch.qint8)


def main() -> None:
    torch.manual_seed(0)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    models.load("smollm2")  # fetched and converted before anything is timed
    source = {"pretrained_model_name_or_path": wheels.cache() / "smollm2", "gguf_file": models.GGUF}
    with models.quiet(), contextlib.redirect_stderr(io.StringIO()):
        gguf = seconds(lambda: transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32), 1)
    ours = seconds(lambda: models.load("smollm2"))
    row("load the model", "seconds", "ratio")
    row("transformers, from GGUF", f"{gguf:.2f}", "1.0 x")
    row("models.load, after the first time", f"{ours:.2f}", f"{gguf / ours:.1f} x")

    model, _ = models.load("smollm2")
    big = torch.ones(64_000_000)
    bandwidth = 4 * len(big) / seconds(big.sum, 9) / 1e9
    size = sum(p.numel() for p in model.parameters()) * 4 / 1e9
    print(
        f"\nmemory bandwidth {bandwidth:.1f} GB/s, weights {size:.2f} GB: at most {bandwidth / size:.0f} passes a second\n"
    )

    row(f"tokens/s ({PROMPT} + {NEW} tokens)", "batch 1", "ratio", "of the limit", "batch 8", "ratio")
    ids = {n: torch.randint(100, 40_000, (n, PROMPT)) for n in (1, 8)}
    ways = {
        "generate, greedy": lambda ids: generate(model, ids, NEW),
        "decoding.greedy": lambda ids: decoding.greedy(model, ids, NEW, ignore_eos=True),
        "greedy without cache": lambda ids: without_cache(model, ids, NEW),
        "generate, top-p 0.95": lambda ids: generate(model, ids, NEW, do_sample=True, top_p=0.95, top_k=0),
        "decoding.sample, top-p 0.95": lambda ids: decoding.sample(model, ids, NEW, top_p=0.95, ignore_eos=True),
        "generate, 4 beams": lambda ids: generate(model, ids, NEW, num_beams=4),
        "decoding.beam_search, 4 beams": lambda ids: decoding.beam_search(model, ids, NEW, 4, ignore_eos=True),
    }
    base = {}
    for name, way in ways.items():
        speed = {n: n * NEW / seconds(partial(way, ids[n]), 1 if "without" in name else 3) for n in ids}
        base = speed if name.startswith("generate") else base
        limit = f"{speed[1] * size / bandwidth:.0%}"
        row(
            name,
            f"{speed[1]:.1f}",
            f"{speed[1] / base[1]:.2f} x",
            limit,
            f"{speed[8]:.1f}",
            f"{speed[8] / base[8]:.2f} x",
        )
    first = seconds(lambda: next(decoding.stream(model, ids[1], NEW, lambda logits, ids: logits.argmax(-1))))
    theirs = seconds(lambda: generate(model, ids[1], 1))
    print(f"\ntime to first token: {first:.3f} s, generate {theirs:.3f} s ({theirs / first:.2f} x)\n")

    row("the same model, decoding.greedy", "batch 1", "batch 8", "same tokens")
    reference = decoding.greedy(model, ids[8], NEW, ignore_eos=True)
    threads = torch.get_num_threads()
    variants = {f"fp32, {n} thread{'s' * (n > 1)}": (n, lambda: model) for n in sorted({1, threads})}
    variants["bf16"] = (threads, lambda: models.load("smollm2")[0].bfloat16())
    variants["int8, but lm_head and down_proj"] = (threads, lambda: int8(models.load("smollm2")[0]))
    for name, (n, make) in variants.items():
        torch.set_num_threads(n)
        variant = make()
        speed = {
            b: b * NEW / seconds(lambda v=variant, b=b: decoding.greedy(v, ids[b], NEW, ignore_eos=True), 1)
            for b in ids
        }
        same = (decoding.greedy(variant, ids[8], NEW, ignore_eos=True) == reference)[:, PROMPT:].float().mean()
        row(name, f"{speed[1]:.1f}", f"{speed[8]:.1f}", f"{same:.0%}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    print(f"\npeak memory of this run: {peak:.1f} GB")


if __name__ == "__main__":
    main()
