"""Learning from comparisons: reward models (Bradley-Terry) and direct preference optimization (DPO).

Texts are rows of token ids, padded on the right: under causal attention no real token sees the padding, so no
attention mask is needed. `mask` (batch, tokens) is True at the tokens of the reply, its end-of-text token included. A
reward model is transformers' LlamaForSequenceClassification with one label; it reads the score at the end of the text.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from utils import training

# ---- Comparisons ----------------------------------------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), the mean over pairs: rewards and margin (pairs,) -> a number, in nats.

    The probability that `chosen` wins is sigmoid of the difference (Bradley and Terry 1952; InstructGPT, arXiv
    2203.02155, equation 1; the margin: Llama 2, arXiv 2307.09288, equation 2).
    """
    return -logsigmoid(chosen - rejected - margin).mean()


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta=0.1
) -> Tensor:
    """Bradley-Terry on the rewards beta * log(policy / reference): log-probabilities of whole replies (pairs,) -> a number.

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return bradley_terry_loss(beta * chosen, beta * rejected)


def pairs_from_ranking(ranking: Sequence[int]) -> list[tuple[int, int]]:
    """Indices from best to worst -> all (better, worse) pairs: K items give K (K - 1) / 2."""
    return list(combinations(ranking, 2))


# ---- Texts ----------------------------------------------------------------------------------------------------------


def pad(rows: list[list[int]], value: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of token ids as one tensor (rows, longest), padded on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(device)


def join(
    prompts: Sequence[list[int]], replies: Sequence[list[int]], filler: int, device="cpu"
) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (n, tokens): each prompt with its reply behind it, the mask True at the reply's tokens."""
    ids = pad([prompt + reply for prompt, reply in zip(prompts, replies, strict=True)], filler, device)
    places = torch.arange(ids.shape[1], device=device)
    first = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    length = torch.tensor([len(reply) for reply in replies], device=device)[:, None]
    return ids, (places >= first) & (places < first + length)


def encode_replies(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], replies: Sequence[str], device="cpu"
) -> tuple[Tensor, Tensor]:
    """`join` for texts, the end of text behind each. Prompt and reply meet as they are: a space between is yours to add."""
    replies = tokenizer(list(replies), add_special_tokens=False).input_ids
    replies = [reply + [tokenizer.eos_token_id] for reply in replies]
    return join(tokenizer(list(prompts)).input_ids, replies, _filler(tokenizer), device)


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def reply_states(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a language model knows before each reply token: (logits (n, vocabulary), hidden states (n, width)).

    ids, mask (batch, tokens); n: the reply tokens of all rows, row after row. Only for these are logits computed.
    """
    hidden = model.get_decoder()(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    hidden = hidden[mask[:, 1:]]
    return model.get_output_embeddings()(hidden), hidden


def reply_logprobs(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """log p(reply | prompt) in nats: ids, mask (batch, tokens) -> (batch,)."""
    logits, _ = reply_states(model, ids, mask)
    scores = logits.log_softmax(-1).gather(-1, ids[mask][:, None])[:, 0]
    rows = mask.nonzero()[:, 0]
    return scores.new_zeros(len(ids)).index_add(0, rows, scores)


# ---- Reward models --------------------------------------------------------------------------------------------------


def reward_model(language_model: LlamaForCausalLM, seed: int = 0) -> LlamaForSequenceClassification:
    """A copy of the language model's body with a scalar head in place of the next-token head (InstructGPT, section 3.5).

    Called by itself, transformers' class finds a text's last token by `pad_token_id`, which texts must not end with.
    """
    config = LlamaConfig(**language_model.config.to_dict() | {"id2label": {0: "reward"}, "label2id": {"reward": 0}})
    model = LlamaForSequenceClassification(config).to(language_model.device, language_model.dtype)
    model.model.load_state_dict(language_model.model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(model.score.weight.shape, generator=generator) / math.sqrt(config.hidden_size + 1)
    model.score.weight.data.copy_(weight)
    return model.eval()


def rewards(model: LlamaForSequenceClassification, ids: Tensor, lengths: Tensor) -> Tensor:
    """The reward at each row's last token: ids (batch, tokens) padded on the right, lengths (batch,) -> (batch,)."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return model.score(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])[:, 0]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts with their replies, each with the end of text behind it, where a reward model scores it."""
    return [ids + [tokenizer.eos_token_id] for ids in tokenizer(list(texts)).input_ids]


@torch.inference_mode()
def score(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch: int = 64
) -> Tensor:
    """The rewards of texts (prompt and reply in one string), (n,), on the CPU."""
    rows = encode(tokenizer, texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # equally long rows together: little padding
    found = torch.zeros(len(rows))
    for start in range(0, len(rows), batch):
        part = order[start : start + batch]
        found[part] = _read(model, tokenizer, [rows[i] for i in part]).float().cpu()
    return found


@torch.inference_mode()
def rewards_by_token(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[str], Tensor]:
    """What the reward would be if the text ended at each of its tokens: (the tokens, rewards (tokens,)).

    Only the last, at the end of the text, was trained; the others show where the judgement falls.
    """
    (ids,) = encode(tokenizer, [text])
    hidden = model.model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state
    return [tokenizer.decode(i) for i in ids], model.score(hidden)[0, :, 0].float().cpu()


def linear_reward(differences: Tensor, ridge: float = 1.0) -> Tensor:
    """Bradley-Terry on frozen features: the preferred text's features minus the other's, (pairs, d) -> weights w (d,).

    The reward of a text is w times its features. w minimises the summed loss plus ridge / 2 |w|^2: logistic regression
    without an intercept, for the order of a pair means nothing.
    """
    differences = differences.double()
    weights = torch.zeros(differences.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        rewards = differences @ weights
        value = len(rewards) * bradley_terry_loss(rewards, 0 * rewards) + ridge / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _read(model, tokenizer, rows: list[list[int]]) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    return rewards(model, pad(rows, _filler(tokenizer), model.device), lengths)


def train_reward_model(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Sequence[str]],
    *,
    steps: int,
    batch: int = 8,
    margins: Sequence[Tensor] | None = None,
    peak: float = 3e-4,
    weight_decay: float = 0.0,
    seed: int = 0,
    folder: Path | None = None,
    save_every: int = 50,
    progress: bool = True,
) -> list[dict]:
    """Train `model` in place on rankings, texts (prompt and reply) from best to worst; returns the log.

    A step reads `batch` rankings; all pairs of a ranking stand in it together and weigh as one, and each text is read
    once, not once for each pair: with pairs as separate examples one epoch overfits (InstructGPT, section 3.5).
    `margins`: for each ranking the margins of its pairs, in the order of `pairs_from_ranking`. Labels are taken as they
    are: noisy labellers are noisy rankings. A line of the log: step, loss (nats), accuracy (of the step's pairs), lr.
    Raises ValueError for a ranking of fewer than two texts; else as `training.loop`.
    """
    if not rankings or any(len(ranking) < 2 for ranking in rankings):
        raise ValueError("a ranking needs at least two texts, from best to worst.")
    rows = [encode(tokenizer, ranking) for ranking in rankings]

    def loss_of(step: int) -> tuple[Tensor, dict]:
        chosen = training.picks(step, batch, len(rows), seed).tolist()
        scores = _read(model, tokenizer, [row for i in chosen for row in rows[i]]).split([len(rows[i]) for i in chosen])
        losses, right = [], []
        for i, row in zip(chosen, scores, strict=True):
            better, worse = torch.tensor(pairs_from_ranking(range(len(row))), device=row.device).T
            margin = 0.0 if margins is None else torch.as_tensor(margins[i]).to(row)
            losses.append(bradley_terry_loss(row[better], row[worse], margin))
            right.append(row[better] > row[worse])
        return torch.stack(losses).mean(), {"accuracy": torch.cat(right).float().mean().item()}

    settings = dict(
        kind="reward model", batch=batch, rankings=len(rows), tokens=sum(len(t) for row in rows for t in row)
    )
    settings |= dict(margins=None if margins is None else float(sum(torch.as_tensor(m).sum() for m in margins)))
    return _fit(model, loss_of, steps, peak, weight_decay, settings | dict(seed=seed), folder, save_every, progress)


def _fit(model, loss_of, steps, peak, weight_decay, settings, folder, save_every, progress) -> list[dict]:
    """AdamW on `loss_of(step) -> (loss, more for the log)`, gradients clipped at norm 1, a cosine schedule."""
    optimizer = training.adamw(model, weight_decay)
    settings |= dict(steps=steps, peak=peak, weight_decay=weight_decay)

    def advance(step: int, log: list[dict]) -> dict:
        loss, more = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, steps, peak)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item(), **more, "lr": group["lr"]}

    options = dict(steps=steps, settings=settings, folder=folder, save_every=save_every, progress=progress)
    return training.loop(advance, model, optimizer, **options)


# ---- DPO ------------------------------------------------------------------------------------------------------------


def train_dpo(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str, str]],
    *,
    steps: int,
    batch: int = 16,
    beta: float = 0.1,
    peak: float = 1e-4,
    seed: int = 0,
    folder: Path | None = None,
    save_every: int = 50,
    progress: bool = True,
) -> list[dict]:
    """Train `policy` in place on pairs (prompt, chosen reply, rejected reply); the reference is the policy as it comes.

    The reference's log-probabilities are computed once, so no second model is kept. A line of the log: step, loss
    (nats), accuracy (pairs whose chosen reply has the higher reward beta * log(policy / reference)), margin (mean
    difference of these rewards), lr. To go on with a run in `folder`, call with the policy that it began with.
    Raises ValueError as `training.loop`.
    """
    prompts, chosen, rejected = zip(*pairs, strict=True)
    ids, mask = encode_replies(tokenizer, 2 * prompts, chosen + rejected, policy.device)  # (2 pairs, tokens)
    with torch.inference_mode():
        parts = zip(ids.split(64), mask.split(64), strict=True)
        before = torch.cat([reply_logprobs(policy, i, m) for i, m in parts])
    before = before.clone()  # a plain tensor: one made in inference mode takes no part in training

    def loss_of(step: int) -> tuple[Tensor, dict]:
        first = training.picks(step, batch, len(pairs), seed).to(ids.device)
        both = torch.cat([first, first + len(pairs)])
        longest = int(mask[both].any(0).nonzero().max()) + 1
        now = reply_logprobs(policy, ids[both, :longest], mask[both, :longest])
        loss = dpo_loss(*now.split(batch), *before[both].split(batch), beta)
        better, worse = (beta * (now - before[both])).detach().split(batch)
        return loss, {"accuracy": (better > worse).float().mean().item(), "margin": (better - worse).mean().item()}

    settings = dict(kind="DPO", batch=batch, pairs=len(pairs), tokens=int(ids.sum()), beta=beta, seed=seed)
    return _fit(policy, loss_of, steps, peak, 0.0, settings, folder, save_every, progress)
