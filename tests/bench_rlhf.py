"""How fast PPO and GRPO are, in one run beside TRL's GRPO: `python -m tests.bench_rlhf`.

The same policy, reward model (not trained: its work is the same), prompts, batch (64 replies of at most 32 tokens, groups of 8, four
updates on 16 replies each, KL to a reference) and AdamW for all, one thread. Seconds are CPU seconds of the one
thread, which other work on the machine disturbs less; they take turns, and the median counts.

TRL's PPO left the library with 1.13. To have it in the table:
    pip install --no-deps --target old trl==1.12.0; PYTHONPATH=old python -m tests.bench_rlhf
"""

import contextlib
import importlib.util
import statistics
import tempfile
import time
from copy import deepcopy

import torch
import transformers
import trl
from datasets import Dataset

from tests.bench import row
from utils import alignment, bottle, models, ppo, preference, rlhf

STEPS, ROUNDS, GROUP = 4, 3, 8


def ours(policy, tokenizer, score, prompts, group) -> float:
    """Replies a second, the first step left out."""
    ends = []
    options = alignment.PPO | dict(group=group, watch=lambda log: ends.append(time.process_time()))
    ppo.train(policy, tokenizer, tokenizer(prompts).input_ids, score, steps=STEPS + 1, **options)
    return STEPS * alignment.BATCH / (ends[-1] - ends[0])


def trls(policy, tokenizer, score, prompts) -> float:
    clock, parts = PerBatch(), alignment.BATCH // alignment.PPO["minibatch"]

    def reward(prompts, completions, **_):
        return score([prompt + reply for prompt, reply in zip(prompts, completions, strict=True)]).tolist()

    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(f"{folder}/policy")
        options = dict(
            use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no"
        )
        options |= dict(
            per_device_train_batch_size=alignment.PPO["minibatch"], steps_per_generation=parts, log_level="error"
        )
        options |= dict(num_generations=GROUP, max_completion_length=rlhf.NEW_TOKENS, beta=alignment.BETA)
        options |= dict(learning_rate=alignment.PPO["lr"], max_steps=(STEPS + 1) * parts, optim="adamw_torch_fused")
        trainer = trl.GRPOTrainer(
            f"{folder}/policy",
            reward,
            args=trl.GRPOConfig(folder, **options),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # prints a line at the end
        trainer.train()
    return STEPS * alignment.BATCH / (clock.ends[-1] - clock.ends[parts - 1])


def trls_ppo(policy, tokenizer, judge, prompts) -> float:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    clock = PerBatch()
    with tempfile.TemporaryDirectory() as folder:
        options = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True)
        options |= dict(save_strategy="no", logging_strategy="no", num_sample_generations=0, log_level="error")
        options |= dict(
            per_device_train_batch_size=alignment.BATCH, num_ppo_epochs=1, stop_token="eos", temperature=1.0
        )
        options |= dict(num_mini_batches=alignment.BATCH // alignment.PPO["minibatch"], optim="adamw_torch_fused")
        options |= dict(response_length=rlhf.NEW_TOKENS, kl_coef=alignment.BETA, learning_rate=alignment.PPO["lr"])
        trainer = PPOTrainer(
            PPOConfig(folder, total_episodes=(STEPS + 1) * alignment.BATCH, **options),
            tokenizer,
            policy,
            deepcopy(policy),
            judge,
            Dataset.from_list([{"input_ids": ids} for ids in tokenizer(prompts).input_ids]),
            deepcopy(judge),  # the value model
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with contextlib.redirect_stdout(None):
            trainer.train()
    return STEPS * alignment.BATCH / (clock.ends[-1] - clock.ends[0])


class PerBatch(transformers.TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **_):
        self.ends.append(time.process_time())


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    base, tokenizer = models.load(f"ladder/{rlhf.RUNG}")
    tuned = rlhf.tune(
        base, tokenizer, rlhf.demonstrations(320), steps=20
    )  # so that replies end as they do in the course
    judge = preference.reward_model(tuned)
    score = lambda texts: preference.score(judge, tokenizer, texts)  # noqa: E731
    prompts = [request["prompt"] for request in bottle.requests("ppo", 0, 400)]
    ways = {
        "PPO": lambda policy: ours(policy, tokenizer, score, prompts, 1),
        "GRPO": lambda policy: ours(policy, tokenizer, score, prompts, GROUP),
        "TRL's GRPO": lambda policy: trls(policy, tokenizer, score, prompts),
    }
    if importlib.util.find_spec("trl.experimental.ppo"):
        ways["TRL's PPO"] = lambda policy: trls_ppo(policy, tokenizer, judge, prompts)
    speeds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            speeds[name].append(way(deepcopy(tuned)))
    median = {name: statistics.median(found) for name, found in speeds.items()}
    ratios = [(a, b) for a, b in (("PPO", "TRL's GRPO"), ("GRPO", "TRL's GRPO"), ("PPO", "TRL's PPO")) if b in median]
    row("replies/s, one thread", *ways, *(f"{a} / {b}" for a, b in ratios))
    said = [f"{median[a] / median[b]:.2f} x" for a, b in ratios]
    row(rlhf.RUNG, *(f"{speed:.0f}" for speed in median.values()), *said)


if __name__ == "__main__":
    main()
