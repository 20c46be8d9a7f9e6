"""Reinforcement learning from a reward: PPO and GRPO, best-of-n and rejection sampling.

All take a policy (a causal language model), its tokenizer, prompts as lists of token ids, and `reward(texts)`, which
gives a score to each text (prompt and reply in one string, special tokens left out): a reward model
(`preference.score`), the world's own grades, or any function. Every reply is one episode, every token one action.

The design choices:
- Rows are prompt, reply, padding (right), so that no attention mask is needed; logits are computed for reply tokens only.
- Arrays are (batch, tokens - 1): what stands at t belongs to the choice of token t + 1. `mask` marks the reply's tokens.
- What happens at a step follows from the step's number and the seed: a resumed run gives the same bits.
- Dropout stays off, so the ratio of new to old probability starts at exactly 1.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils import decoding, preference, training

Reward = Callable[[list[str]], Sequence[float] | Tensor]

# ---- Advantages and losses ------------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean where mask is not 0: both (batch, tokens) -> a number. What stands elsewhere, NaN too, has no effect."""
    mask = mask.bool()
    return values.where(mask, 0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all unmasked values, 0 elsewhere: both (batch, tokens) -> (batch, tokens)."""
    mask = mask.bool()
    centred = (values - masked_mean(values, mask)).where(mask, 0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def kl_estimators(logprobs: Tensor, reference_logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three estimates of KL(policy || reference) from tokens that the policy drew, each with the shape of the inputs.

    With r = reference / policy: k1 = -log r, unbiased; k2 = (log r)^2 / 2, biased, of low variance; k3 = r - 1 - log r,
    unbiased and never negative (Schulman 2020, joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference_logprobs - logprobs
    return -log_ratio, log_ratio.square() / 2, log_ratio.expm1() - log_ratio


def kl_shaped_rewards(
    scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """-beta (logprob - reference) for every token, the score added at the last one: scores (batch,), else (batch, tokens).

    InstructGPT (arXiv 2203.02155), equation 2. Where mask is 0 the reward is 0.
    """
    mask = mask.bool()
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return (-beta * (logprobs - reference_logprobs)).where(mask, 0) + scores[:, None].to(logprobs).where(last, 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages, returns), all (batch, tokens), right-padded; 0 where mask is 0.

    A_t = delta_t + gamma lam A_{t+1} with delta_t = reward_t + gamma V_{t+1} - V_t (arXiv 1506.02438, equation 16). An
    episode ends with the row's last token: nothing is expected after it. returns = advantages + values.
    """
    mask = mask.bool()
    rewards, values = rewards.where(mask, 0), values.where(mask, 0)
    advantages = torch.zeros_like(values)
    following, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        following = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        advantages[:, t], next_value = following, values[:, t]
    advantages = advantages.where(mask, 0)
    return advantages, advantages + values


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), the mean over all unmasked tokens; all (batch, tokens).

    ratio = new / old probability (PPO, arXiv 1707.06347, equation 7).
    """
    mask = mask.bool()
    # masked before exp, whose gradient would carry a NaN of the padding; limited, because 0 * inf is NaN too
    ratio = (logprobs - old_logprobs).where(mask, 0).clamp(-20, 20).exp()
    return masked_mean(-torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """max((V - R)^2, (V clipped to within `clip` of the old V - R)^2) / 2, the mean over all unmasked tokens.

    All (batch, tokens). The halves and the clipping as in OpenAI's baselines (arXiv 2005.12729) and TRL.
    """
    mask = mask.bool()
    moved, missing = (values - old_values).where(mask, 0), (returns - old_values).where(mask, 0)
    return masked_mean(torch.max((moved - missing).square(), (moved.clamp(-clip, clip) - missing).square()) / 2, mask)


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """(reward - mean) / (standard deviation + 1e-4) within each group: rewards (groups * group_size,), a group together.

    GRPO (arXiv 2402.03300), section 4.1.2. Raises ValueError for groups of one, or rewards that do not fill the groups.
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards do not make groups of {group_size}: two or more in each, none left over."
        )
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


# ---- Replies --------------------------------------------------------------------------------------------------------


def generate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Draw a reply to each prompt (token ids) at temperature 1: ids, mask (batch, tokens) as in `preference`, and texts."""
    longest, filler = max(map(len, prompts)), policy.generation_config.pad_token_id or 0
    left = torch.tensor([[filler] * (longest - len(p)) + p for p in prompts], device=policy.device)
    gaps = torch.tensor([longest - len(p) for p in prompts], device=policy.device)[:, None]
    real = (torch.arange(longest, device=policy.device) >= gaps).long()
    draw = lambda logits, _: _draw(logits.softmax(-1), generator)  # noqa: E731
    new = torch.stack(list(decoding.stream(policy, left, max_new_tokens, draw, attention_mask=real)), 1)
    ends = _ends(policy, new)
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, new.shape[1]).tolist()
    replies = [row[:length] for row, length in zip(new.tolist(), lengths, strict=True)]
    texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    ids, mask = preference.join(prompts, replies, filler, policy.device)
    return ids, mask, tokenizer.batch_decode(texts, skip_special_tokens=True)


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """A token for each row, (batch, vocabulary) -> (batch,).

    One random number a row is enough: torch.multinomial draws one for every token of the vocabulary, which took a third
    of a small model's generation.
    """
    reached = probabilities.cumsum(-1)
    at = reached[:, -1:] * torch.rand(len(reached), 1, generator=generator, device=reached.device)
    return torch.searchsorted(reached, at, right=True)[:, 0].clamp(max=reached.shape[1] - 1)


def _ends(policy: PreTrainedModel, ids: Tensor) -> Tensor:
    eos = policy.generation_config.eos_token_id
    return torch.isin(ids, torch.tensor([] if eos is None else eos, dtype=ids.dtype, device=ids.device))


def read(
    policy: PreTrainedModel, ids: Tensor, mask: Tensor, value_head: torch.nn.Module | None = None, entropy: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(logprobs, values, entropy), each (batch, tokens - 1), of the replies in one forward pass; 0 outside the replies.

    Values are None without a value head. The entropy (nats, of the next-token distribution) is only computed on demand.
    """
    place = lambda flat: flat.new_zeros(mask[:, 1:].shape).masked_scatter(mask[:, 1:], flat)  # noqa: E731
    logits, hidden = preference.reply_states(policy, ids, mask)
    scores = logits.log_softmax(-1)
    logprobs = place(scores.gather(-1, ids[mask][:, None])[:, 0])
    values = place(value_head(hidden)[:, 0]) if value_head else None
    return logprobs, values, place(-(scores.exp() * scores).sum(-1)) if entropy else None


# ---- Training -------------------------------------------------------------------------------------------------------


def train(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    reward: Reward,
    *,
    steps: int,
    group: int = 1,
    batch: int = 64,
    max_new_tokens: int = 24,
    beta: float = 0.05,
    target_kl: float | None = None,
    epochs: int = 1,
    minibatch: int = 16,
    lr: float = 1e-4,
    value_lr: float = 1e-3,
    value_weight: float = 0.1,
    clip: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    whitened: bool = True,
    unfinished: float = 0.0,
    pretraining: Tensor | None = None,
    ptx: float = 0.0,
    reference: PreTrainedModel | None = None,
    gold: Reward | None = None,
    seed: int = 0,
    folder: Path | None = None,
    save_every: int = 20,
    watch: Callable[[list[dict]], None] | None = None,
    progress: bool = True,
) -> list[dict]:
    """Train `policy` in place by PPO, or with `group` > 1 by GRPO; returns the log, a line a step.

    A step draws `batch` replies, scores them, and takes `epochs` passes over them in minibatches.
    PPO: a value head on the policy's hidden states (its learning rate `value_lr`, its loss weighed by `value_weight`);
    the KL penalty is part of the reward. GRPO: `group` replies to each prompt are compared with each other, no values,
    and the k3 estimate of the KL stands in the loss. `reference` (the policy as it comes, if not given) is what the KL
    is measured from. `beta`: weight of the KL; with `target_kl` (nats a reply) it adapts (arXiv 1909.08593, section 2.2).
    `unfinished`: added to the score of a reply that was cut off at `max_new_tokens`. `whitened`: whether PPO's
    advantages are. `pretraining` (n, tokens): as many of its rows as there are replies are mixed into every minibatch,
    their loss (nats a token) weighed by `ptx`: PPO-ptx.
    A line: step, reward (mean score), gold (mean, when `gold` is given; never trained on), kl (nats a reply), entropy
    (nats a token), length (tokens a reply), ended (share), beta, sample (a text), seconds (generate, score, update), loss,
    clipped (share of tokens), value_loss and ptx_loss where there is one. To go on with a run in `folder`, call with
    the policy it began with. Raises ValueError for a batch that groups or minibatches do not fill, or ptx without text;
    else as `training.loop`.
    """
    if group < 1 or batch % group or batch % minibatch:
        fit = f"of the group ({group}) and of the minibatch ({minibatch})"
        raise ValueError(f"a batch of {batch} replies must be a multiple {fit}.")
    if ptx and pretraining is None:
        raise ValueError("ptx needs `pretraining`, rows of token ids (n, tokens).")
    settings = dict(steps=steps, group=group, batch=batch, max_new_tokens=max_new_tokens, beta=beta, epochs=epochs)
    settings |= dict(minibatch=minibatch, lr=lr, value_lr=value_lr, value_weight=value_weight, clip=clip, gamma=gamma)
    settings |= dict(lam=lam, whitened=whitened, unfinished=unfinished, ptx=ptx, target_kl=target_kl, seed=seed)
    settings |= dict(prompts=[len(prompts), sum(map(sum, prompts))])
    policy.eval()
    reference = copy.deepcopy(policy) if reference is None else reference
    trained = torch.nn.ModuleDict({"policy": policy})
    weights, head = [{"params": [p for p in policy.parameters() if p.requires_grad], "lr": lr}], None
    if group == 1:
        head = trained["value_head"] = torch.nn.Linear(policy.config.hidden_size, 1).to(policy.device, policy.dtype)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        weights.append({"params": list(head.parameters()), "lr": value_lr})
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def experience(asked: list[list[int]], weight: float, generator: torch.Generator) -> tuple[dict, dict]:
        """Replies with all that is known of them before the update: ({name: (batch, ...) tensor}, line of the log)."""
        start = time.perf_counter()
        ids, mask, texts = generate(policy, tokenizer, asked, max_new_tokens, generator)
        generated, replied = time.perf_counter(), mask[:, 1:]
        ended = (_ends(policy, ids) & mask).any(1)
        given = torch.as_tensor(reward(texts), dtype=torch.float32, device=ids.device)
        scores = given + unfinished * ~ended
        old, values, entropy = read(policy, ids, mask, head, entropy=True)
        references, _, _ = read(reference, ids, mask)
        known = dict(ids=ids, mask=mask, old=old, references=references)
        if head:
            rewards = kl_shaped_rewards(scores, old, references, replied, weight)
            advantages, returns = gae(rewards, values, replied, gamma, lam)
            known |= dict(values=values, returns=returns)
            known["advantages"] = whiten(advantages, replied) if whitened else advantages
        else:
            known["advantages"] = group_advantages(scores, group)[:, None].expand_as(old)
        line = {"reward": given.mean().item()}
        if gold:
            line["gold"] = torch.as_tensor(gold(texts), dtype=torch.float32).mean().item()
        line |= dict(kl=(old - references).sum(1).mean().item(), entropy=masked_mean(entropy, replied).item())
        line |= dict(length=replied.sum(1).float().mean().item(), ended=ended.float().mean().item(), beta=weight)
        seconds = dict(generate=generated - start, score=time.perf_counter() - generated)
        return known, line | dict(sample=texts[0], seconds=seconds)

    def objective(part: dict, weight: float, mixed: Tensor | None) -> dict:
        """The loss of a minibatch, and what it is made of."""
        mask = part["mask"][:, 1:]
        now, values, _ = read(policy, part["ids"], part["mask"], head)
        found = {"loss": policy_loss(now, part["old"], part["advantages"], mask, clip)}
        found["clipped"] = masked_mean(((now - part["old"]).exp() - 1).abs() > clip, mask)
        if head:
            found["value_loss"] = value_loss(values, part["values"], part["returns"], mask, clip)
            found["loss"] = found["loss"] + value_weight * found["value_loss"]
        else:
            found["loss"] = found["loss"] + weight * masked_mean(kl_estimators(now, part["references"])[2], mask)
        if mixed is not None:
            found["ptx_loss"] = training.summed_loss(policy, mixed, mixed) / mixed[:, 1:].numel()
            found["loss"] = found["loss"] + ptx * found["ptx_loss"]
        return found

    def advance(step: int, log: list[dict]) -> dict:
        generator = torch.Generator(policy.device).manual_seed(seed * 1_000_003 + step)
        weight = log[-1]["beta"] if log else beta
        if log and target_kl:
            weight *= 1 + 0.1 * min(0.2, max(-0.2, log[-1]["kl"] / target_kl - 1))
        asked = training.picks(step, batch // group, len(prompts), seed).repeat_interleave(group).tolist()
        with torch.no_grad():
            known, line = experience([prompts[i] for i in asked], weight, generator)
        start, parts, found = time.perf_counter(), batch // minibatch, []
        for number in range(epochs * parts):
            if number % parts == 0:
                order = torch.randperm(batch, generator=generator, device=policy.device).split(minibatch)
            rows = order[number % parts]
            end = int(known["mask"][rows].any(0).nonzero().max())  # no need to read padding behind the longest reply
            part = {name: x[rows, : end + (name in ("ids", "mask"))] for name, x in known.items()}
            mixed = None
            if ptx:
                mixed = training.picks(step * epochs * parts + number, minibatch, len(pretraining), seed)
                mixed = pretraining[mixed].to(policy.device).long()
            found.append(objective(part, weight, mixed))
            found[-1]["loss"].backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        line |= {name: sum(f[name].item() for f in found) / len(found) for name in found[0]}
        line["seconds"]["update"] = time.perf_counter() - start
        return line

    options = dict(steps=steps, settings=settings, folder=folder, save_every=save_every, watch=watch, progress=progress)
    return training.loop(advance, trained, optimizer, **options)


# ---- Without a gradient through the reward --------------------------------------------------------------------------


def best_of_n(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    reward: Reward,
    n: int,
    max_new_tokens: int = 24,
    seed: int = 0,
    batch: int = 64,
) -> tuple[Tensor, Tensor, list[str], Tensor]:
    """Draw n replies to each prompt and keep the one with the highest score: ids, mask, texts as `generate`, scores (prompts,).

    The KL from the policy is at most log n - (n - 1) / n nats a reply (arXiv 2009.01325, appendix G.3).
    """
    generator, replies, scores = torch.Generator(policy.device).manual_seed(seed), [], []
    each = [prompt for prompt in prompts for _ in range(n)]
    for start in range(0, len(each), batch):
        ids, mask, texts = generate(policy, tokenizer, each[start : start + batch], max_new_tokens, generator)
        replies += zip(ids, mask, texts, strict=True)
        scores.append(torch.as_tensor(reward(texts), dtype=torch.float32))
    best, at = torch.cat(scores).view(-1, n).max(1)
    ids, mask, texts = zip(*(replies[i * n + j] for i, j in enumerate(at.tolist())), strict=True)
    ids = pad_sequence(ids, batch_first=True, padding_value=policy.generation_config.pad_token_id or 0)
    return ids, pad_sequence(mask, batch_first=True), list(texts), best


def rejection_sampling(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    reward: Reward,
    *,
    n: int = 8,
    rounds: int = 1,
    max_new_tokens: int = 24,
    seed: int = 0,
    folder: Path | None = None,
    **tuning,
) -> list[dict]:
    """Fine-tune `policy` in place on its own best of n replies, `rounds` times (Llama 2, arXiv 2307.09288, section 3.2.3).

    `tuning`: steps and the other settings of `training.train`, for each round. Returns the rounds' logs in one list;
    each line has its round and the mean score of the replies it learns from.
    """
    log = []
    for i in range(rounds):
        ids, mask, _, scores = best_of_n(policy, tokenizer, prompts, reward, n, max_new_tokens, seed * 1_000_003 + i)
        part = folder and Path(folder) / f"round-{i + 1}"
        lines = training.train(policy, ids, ids.masked_fill(~mask, -100), seed=seed, folder=part, **tuning)
        log += [{"round": i + 1, "reward": scores.mean().item(), **line} for line in lines]
    return log
