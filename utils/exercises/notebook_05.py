"""The exercises of notebooks/05_rlhf.ipynb."""

import torch
from torch import Tensor

from utils.exercises import exercise, mistake

# KL-shaped rewards ----------------------------------------------------------------------------------------------------


def _episodes(count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """`count` arrays (3, 6) of random numbers, and a mask of rows with 6, 3 and 1 tokens."""
    drawn = torch.randn(count, 3, 6, generator=torch.Generator().manual_seed(seed))
    return list(drawn), (torch.arange(6) < torch.tensor([[6], [3], [1]])).float()


def _shaped() -> list[tuple]:
    """Scores (batch,), log-probabilities of policy and reference (batch, tokens), mask, beta."""
    found = []
    for seed, beta in ((0, 0.1), (1, 0.5)):
        (scores, policy, reference), mask = _episodes(3, seed)
        found.append((scores[:, 0], policy - 2, reference - 2, mask, beta))
    return found


def _add_score(rewards: Tensor, scores: Tensor, at: Tensor) -> Tensor:
    rewards = rewards.clone()
    rewards[torch.arange(len(rewards)), at] += scores
    return rewards


@exercise(_shaped)
def shaped_rewards(scores, logprobs, reference_logprobs, mask, beta):
    rewards = -beta * (logprobs - reference_logprobs) * mask
    return _add_score(rewards, scores, mask.sum(1).long() - 1)


@mistake("shaped_rewards", "The KL has the wrong sign: a token likelier than under the reference costs, so -beta.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    return shaped_rewards(scores, logprobs, reference_logprobs, mask, -beta)


@mistake(
    "shaped_rewards", "The score stands in the last column, which is padding in short rows: add it at the last token."
)
def _(scores, logprobs, reference_logprobs, mask, beta):
    return _add_score(-beta * (logprobs - reference_logprobs) * mask, scores, torch.full((len(mask),), -1))


@mistake("shaped_rewards", "The padding has rewards: multiply the KL by the mask.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    return _add_score(-beta * (logprobs - reference_logprobs), scores, mask.sum(1).long() - 1)


@mistake("shaped_rewards", "The score is added at every token: it is given once, at the last one.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    return (scores[:, None] - beta * (logprobs - reference_logprobs)) * mask


@mistake("shaped_rewards", "The score is one token late: of n tokens the last has the index n - 1.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    rewards = -beta * (logprobs - reference_logprobs) * mask
    return _add_score(rewards, scores, mask.sum(1).long() % mask.shape[1])


@mistake("shaped_rewards", "The KL of the whole row stands at its last token: give every token its own.")
def _(scores, logprobs, reference_logprobs, mask, beta):
    whole = (-beta * (logprobs - reference_logprobs) * mask).sum(1)
    return _add_score(torch.zeros_like(logprobs), scores + whole, mask.sum(1).long() - 1)


# Generalised advantage estimation -------------------------------------------------------------------------------------


def _valued() -> list[tuple]:
    """Rewards, values, mask (batch, tokens), gamma, lam."""
    found = []
    for seed, gamma, lam in ((0, 1.0, 0.95), (1, 0.9, 0.5)):
        (rewards, values), mask = _episodes(2, seed)
        found.append((rewards * mask, values, mask, gamma, lam))
    return found


def _backwards(
    rewards, values, mask, gamma, lam, decay=None, bootstrap=False, detached=False, forwards=False
) -> Tensor:
    advantages, following = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    decay = gamma * lam if decay is None else decay
    if not bootstrap:
        values = values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    delta = rewards - values + (0 if detached else gamma * after)
    places = range(values.shape[1])
    for t in places if forwards else reversed(places):
        following = (delta[:, t] + decay * following) * mask[:, t]
        advantages[:, t] = following
    return advantages


@exercise(_valued)
def gae(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam)


@mistake("gae", "Behind the last token you still expect the value of the padding: multiply the values by the mask.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, bootstrap=True)


@mistake("gae", "You run forwards: the advantage at t needs the one at t + 1, so begin at the end.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, forwards=True)


@mistake("gae", "The value of the next token is missing in delta: reward + gamma * next value - value.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, detached=True)


@mistake("gae", "You decay by lam alone: it is gamma * lam.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, decay=lam)


@mistake("gae", "You decay by gamma alone, as if lam were 1: it is gamma * lam.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, decay=gamma)


@mistake("gae", "You return advantages + values: those are the returns, which the critic learns.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam) + values * mask


@mistake("gae", "You stop at delta: add gamma * lam times the advantage that follows.")
def _(rewards, values, mask, gamma, lam):
    return _backwards(rewards, values, mask, gamma, lam, decay=0.0)


# PPO's clipped objective ----------------------------------------------------------------------------------------------


def _ratios() -> list[tuple]:
    """New and old log-probabilities, advantages, mask (batch, tokens), clip."""
    found = []
    for seed, clip in ((0, 0.2), (3, 0.1)):
        (new, old, advantages), mask = _episodes(3, seed)
        found.append((new * 0.4 - 2, old * 0.4 - 2, advantages * mask, mask, clip))
    return found


def _objective(new, old, advantages, mask, clip, pick=torch.min, sign=-1, whole=False) -> Tensor:
    ratio = (new - old).exp()
    terms = pick(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return sign * (terms.mean() if whole else (terms * mask).sum() / mask.sum())


@exercise(_ratios)
def clipped_loss(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip)


@mistake("clipped_loss", "This is the objective, which rises: a loss falls, so it needs a minus.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, sign=1)


@mistake("clipped_loss", "You take the larger of the two: PPO takes the smaller, the pessimistic one.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, pick=torch.max)


@mistake("clipped_loss", "Only the clipped ratio counts: without the minimum a bad step is not taken back.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, pick=lambda plain, clipped: clipped)


@mistake("clipped_loss", "Nothing is clipped: take the minimum with the ratio between 1 - clip and 1 + clip.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, pick=lambda plain, clipped: plain)


@mistake("clipped_loss", "The ratio is upside down: new over old, so exp(new - old).")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(old_logprobs, logprobs, advantages, mask, clip)


@mistake("clipped_loss", "The padding is in the mean: divide by the number of unmasked tokens.")
def _(logprobs, old_logprobs, advantages, mask, clip):
    return _objective(logprobs, old_logprobs, advantages, mask, clip, whole=True)


# DPO ------------------------------------------------------------------------------------------------------------------


def _preferred() -> list[tuple]:
    """Log-probabilities of whole replies (pairs,): chosen and rejected under the policy, then under the reference; beta."""
    found = []
    for seed, beta in ((0, 0.1), (1, 0.5)):
        four = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) - 10
        found.append((*four, beta))
    return found


def _sigmoid_loss(x: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(x).mean()


@exercise(_preferred)
def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return _sigmoid_loss(beta * (chosen - rejected))


@mistake("dpo_loss", "Chosen and rejected are swapped: the loss must fall when the chosen reply becomes likelier.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return dpo_loss(policy_rejected, policy_chosen, reference_rejected, reference_chosen, beta)


@mistake("dpo_loss", "The reference is missing: the reward is beta * log(policy / reference).")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return _sigmoid_loss(beta * (policy_chosen - policy_rejected))


@mistake("dpo_loss", "beta is missing.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, 1.0)


@mistake("dpo_loss", "The reference has the wrong sign: subtract its log-probabilities.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return dpo_loss(policy_chosen, policy_rejected, -reference_chosen, -reference_rejected, beta)


@mistake("dpo_loss", "You sum over the pairs: take the mean.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    each = dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return each * len(policy_chosen)


@mistake("dpo_loss", "The logarithm is missing: -log sigmoid, not -sigmoid.")
def _(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return -(beta * (chosen - rejected)).sigmoid().mean()


# GRPO's advantages ----------------------------------------------------------------------------------------------------


def _groups() -> list[tuple]:
    """Rewards (groups * size,), a group together, and the size."""
    drawn = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    return [(drawn[0] + torch.arange(12), 4), (3 * drawn[1], 3)]


def _scaled(groups: Tensor, mean: Tensor, deviation: Tensor | float) -> Tensor:
    return ((groups - mean) / (deviation + 1e-4)).flatten()


@exercise(_groups)
def group_advantages(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, groups.mean(1, keepdim=True), groups.std(1, keepdim=True))


@mistake("group_advantages", "You compare all replies with each other: a group is the replies to one prompt.")
def _(rewards, size):
    return _scaled(rewards, rewards.mean(), rewards.std())


@mistake("group_advantages", "Your groups run across: replies to one prompt stand together, so view(-1, size).")
def _(rewards, size):
    groups = rewards.view(size, -1)
    return _scaled(groups, groups.mean(0, keepdim=True), groups.std(0, keepdim=True))


@mistake(
    "group_advantages", "You take mean and deviation over the groups (dim 0): take them within each group (dim 1)."
)
def _(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, groups.mean(0, keepdim=True), groups.std(0, keepdim=True))


@mistake("group_advantages", "You centre without scaling: divide by the group's standard deviation.")
def _(rewards, size):
    groups = rewards.view(-1, size)
    return (groups - groups.mean(1, keepdim=True)).flatten()


@mistake(
    "group_advantages", "You scale without centring: subtract the group's mean, the baseline in place of a critic."
)
def _(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, torch.zeros(()), groups.std(1, keepdim=True))


@mistake("group_advantages", "You divide by the variance: divide by its square root.")
def _(rewards, size):
    groups = rewards.view(-1, size)
    return _scaled(groups, groups.mean(1, keepdim=True), groups.var(1, keepdim=True))
