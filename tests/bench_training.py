"""How fast the training loop is, in one run beside a plain loop and 🤗 Trainer: `python -m tests.bench_training [rung ...]`.

The same model, data, batch (8 rows of 256 tokens) and AdamW for all three, one thread. The plain loop is nanoGPT's: the
whole batch at once, the model's own loss. "of the matrix rate": 6 x parameters x tokens/s (the arithmetic of the matrix
products, attention left out) over this machine's rate for a product of two 2048 x 2048 matrices. Seconds are CPU
seconds of the one thread, which other work on the machine disturbs less; the three take turns, and the median counts.
"""

import statistics
import sys
import tempfile
import time

import torch
import transformers
from transformers import LlamaForCausalLM

from tests.bench import row
from utils import pretrain, training

BATCH, STEPS, ROUNDS = 8, 12, 3


def loop(model, ids, rows) -> float:
    clock = dict(measure=lambda model, step: {"cpu": time.process_time()}, measure_at=[1])
    log = training.train(model, ids, steps=STEPS + 1, batch=BATCH, rows=rows, progress=False, **clock)
    return STEPS * BATCH * pretrain.CONTEXT / (log[-1]["cpu"] - log[0]["cpu"])


def plain(model, ids, rows) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()
    for step in range(STEPS + 1):
        if step == 1:
            start = time.process_time()
        part = ids[torch.randint(len(ids), (BATCH,))].long()[:, :-1]
        model(input_ids=part, labels=part).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return STEPS * BATCH * pretrain.CONTEXT / (time.process_time() - start)


class Clock(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 1:
            self.start = time.process_time()
        self.seconds = time.process_time() - self.start


def trainer(model, ids, rows) -> float:
    clock, items = Clock(), [{"input_ids": r, "labels": r} for r in ids[:, :-1].long()]
    with tempfile.TemporaryDirectory() as folder:
        options = dict(per_device_train_batch_size=BATCH, max_steps=STEPS + 1, use_cpu=True, report_to=[])
        options |= dict(
            disable_tqdm=True, log_level="error", save_strategy="no", logging_strategy="no", optim="adamw_torch_fused"
        )
        arguments = transformers.TrainingArguments(folder, **options)
        trainer = transformers.Trainer(model, arguments, train_dataset=items, callbacks=[clock])
        trainer.remove_callback(transformers.PrinterCallback)  # prints a line at the end
        trainer.train()
    return STEPS * BATCH * pretrain.CONTEXT / clock.seconds


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    ids = pretrain.blocks(torch.randint(3, 2048, (500_001,), dtype=torch.int16))
    a = torch.randn(2048, 2048)
    a @ a
    row("tokens/s, one thread", "ours", "plain loop", "ratio", "Trainer", "ratio", "of matrix rate")
    for rung in sys.argv[1:] or pretrain.RUNGS:
        settings = pretrain.RUNGS[rung]
        speeds, rates = {way: [] for way in (loop, plain, trainer)}, []
        for _ in range(ROUNDS):
            start = time.process_time()
            a @ a
            rates.append(2 * 2048**3 / (time.process_time() - start))
            for way, found in speeds.items():
                torch.manual_seed(0)
                model = LlamaForCausalLM(settings["config"])
                found.append(way(model, ids, settings["rows"]))
        ours, theirs, hf = (statistics.median(found) for found in speeds.values())
        share = 6 * model.num_parameters() * ours / statistics.median(rates)
        ratios = f"{ours / theirs:.2f} x", f"{hf:.0f}", f"{ours / hf:.2f} x", f"{share:.0%}"
        row(rung, f"{ours:.0f}", f"{theirs:.0f}", *ratios)


if __name__ == "__main__":
    main()
