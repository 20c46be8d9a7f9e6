"""PPO and its cousins: the formulas token by token, TRL's GRPO on one batch, and small runs that must learn."""

import math

import pytest
import torch
import trl
from datasets import Dataset

from tests.conftest import tiny, words
from utils import ppo, preference, training

WIDE = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])


def arrays(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Random numbers in double precision, NaN where WIDE is padding."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, *WIDE.shape, generator=generator, dtype=torch.float64)
    return list(drawn.masked_fill(WIDE == 0, torch.nan))


def tokens() -> list[tuple[int, int]]:
    return [(i, t) for i, row in enumerate(WIDE.tolist()) for t, real in enumerate(row) if real]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ---- The formulas, token by token, with NaN in the padding ----------------------------------------------------------


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_token_by_token(gamma, lam):
    """The sum of its definition: A_t = sum over l of (gamma lam)^l delta_{t+l}, up to the row's last token."""
    rewards, values = arrays(2)
    advantages, returns = ppo.gae(rewards, values, WIDE, gamma, lam)
    for i, row in enumerate(WIDE.tolist()):
        length = sum(row)
        v = [*values[i, :length].tolist(), 0.0]  # nothing follows the last token
        delta = [rewards[i, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length))
            assert advantages[i, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[i, t].item() == pytest.approx(expected + v[t], abs=1e-9)
    assert not advantages[WIDE == 0].any() and not returns[WIDE == 0].any()


def test_gae_after_a_prompt():
    """Columns before a row's first token (its prompt) change nothing."""
    rewards, values = arrays(2)
    padded = [torch.nn.functional.pad(x, (3, 0), value=torch.nan) for x in (rewards, values)]
    shifted = ppo.gae(*padded, torch.nn.functional.pad(WIDE, (3, 0)))
    assert torch.equal(shifted[0][:, 3:], ppo.gae(rewards, values, WIDE)[0]) and not shifted[0][:, :3].any()


def test_policy_loss_token_by_token():
    new, old, advantages = arrays(3)
    new.requires_grad_()
    loss = ppo.policy_loss(new, old, advantages, WIDE, clip=0.2)
    terms, clipped = [], 0
    for at in tokens():
        ratio, a = math.exp(new[at].item() - old[at].item()), advantages[at].item()
        near = min(max(ratio, 0.8), 1.2)
        terms.append(-min(ratio * a, near * a))
        clipped += near * a < ratio * a
    assert 0 < clipped < len(terms) and loss.item() == pytest.approx(mean(terms), abs=1e-9)
    loss.backward()
    assert not new.grad[WIDE == 0].any() and new.grad.isfinite().all()


def test_value_loss_token_by_token():
    new, old, returns = arrays(3)
    new.requires_grad_()
    loss = ppo.value_loss(new, old, returns, WIDE, clip=0.5)
    terms = []
    for at in tokens():
        v, before, r = new[at].item(), old[at].item(), returns[at].item()
        near = before + min(max(v - before, -0.5), 0.5)
        terms.append(max((v - r) ** 2, (near - r) ** 2) / 2)
    assert loss.item() == pytest.approx(mean(terms), abs=1e-9)
    loss.backward()
    assert not new.grad[WIDE == 0].any() and new.grad.isfinite().all()


def test_whitening_token_by_token():
    """Unbiased variance, as TRL's PPO took it."""
    (values,) = arrays(1)
    values = values * 5 + 3
    found = ppo.whiten(values, WIDE)
    real = [values[at].item() for at in tokens()]
    variance = sum((x - mean(real)) ** 2 for x in real) / (len(real) - 1)
    for at in tokens():
        assert found[at].item() == pytest.approx(
            (values[at].item() - mean(real)) / math.sqrt(variance + 1e-8), abs=1e-9
        )
    assert not found[WIDE == 0].any()
    alone = ppo.whiten(torch.tensor([[7.0, 9.0]]), torch.tensor([[1, 0]]))
    assert alone.tolist() == [[0.0, 0.0]]


def test_kl_shaped_rewards_token_by_token():
    logprobs, reference = arrays(2)
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = ppo.kl_shaped_rewards(scores, logprobs, reference, WIDE, beta=0.3)
    for i, t in tokens():
        last = t + 1 == WIDE.shape[1] or not WIDE[i, t + 1]
        expected = -0.3 * (logprobs[i, t] - reference[i, t]).item() + (scores[i].item() if last else 0)
        assert found[i, t].item() == pytest.approx(expected, abs=1e-9)
    assert not found[WIDE == 0].any()


def test_kl_estimators_on_a_known_distribution():
    """Over all outcomes, weighed by their probability, k1 and k3 give the KL; k3 is never negative, k2 is (log r)^2 / 2."""
    p, q = (x.log_softmax(-1) for x in torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).double())
    k1, k2, k3 = ppo.kl_estimators(p, q)
    kl = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert (p.exp() * k1).sum().item() == pytest.approx(kl, abs=1e-9)
    assert (p.exp() * k3).sum().item() == pytest.approx(kl, abs=1e-9)
    assert (k3 >= 0).all() and (k1 < 0).any()
    for a, b, second, third in zip(p.tolist(), q.tolist(), k2.tolist(), k3.tolist(), strict=True):
        assert second == pytest.approx((a - b) ** 2 / 2, abs=1e-9)
        assert third == pytest.approx(math.exp(b - a) - 1 - (b - a), abs=1e-9)


def test_group_advantages_one_group_at_a_time():
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0, -1.0, 0.5, 0.25]).double()
    found = ppo.group_advantages(rewards, 3).tolist()
    for g in range(3):
        group = rewards[3 * g : 3 * g + 3].tolist()
        deviation = math.sqrt(sum((r - mean(group)) ** 2 for r in group) / 2)
        expected = [(r - mean(group)) / (deviation + 1e-4) for r in group]
        assert found[3 * g : 3 * g + 3] == pytest.approx(expected, abs=1e-9)
    for size in (1, 4):
        with pytest.raises(ValueError, match="do not make groups"):
            ppo.group_advantages(rewards, size)


def test_losses_at_huge_numbers():
    """A ratio of exp(1000) is infinite, and 0 * inf is NaN: neither loss nor gradient may become one."""
    mask = torch.ones(1, 4)
    new = torch.tensor([[0.0, -1000.0, 0.0, 0.0]], requires_grad=True)
    old, advantages = torch.tensor([[-1000.0, 0.0, 0.0, -1000.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    loss = ppo.policy_loss(new, old, advantages, mask)
    loss.backward()
    assert loss.item() == pytest.approx(-1.2 / 4, abs=1e-6) and new.grad.isfinite().all()
    rewards = torch.tensor([1e6, -1e6, 1e6, 1e6])
    assert ppo.group_advantages(rewards, 2).tolist() == pytest.approx([0.7071, -0.7071, 0, 0], abs=1e-3)
    advantages, _ = ppo.gae(1e6 * mask, 0 * mask, mask)
    assert ppo.whiten(advantages, mask).std().item() == pytest.approx(1, abs=1e-3)


# ---- TRL's GRPO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_grpo_is_trls(beta, tmp_path):
    """One batch of TRL's own replies, scored by a function, the policy moved since: advantages, loss and gradient."""
    model, tokenizer = tiny(0), words()
    for (
        weight
    ) in model.parameters():  # calm: with tiny's weights exp(log-ratio) blows up the rounding of RoPE's float32
        weight.data *= 0.3 if weight.dim() == 2 else 1
    model.save_pretrained(tmp_path / "model")
    score = lambda completions, **_: [float(len(text) % 7) for text in completions]  # noqa: E731
    options = dict(use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, per_device_train_batch_size=8, seed=1)
    options |= dict(num_generations=4, max_completion_length=10, beta=beta, num_iterations=2, loss_type="bnpo")
    arguments = trl.GRPOConfig(str(tmp_path), use_bias_correction_kl=False, **options)
    data = Dataset.from_list([{"prompt": "w5 w6 w7"}, {"prompt": "w8"}])
    trainer = trl.GRPOTrainer(
        str(tmp_path / "model"), score, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    model = trainer.model
    inputs = [{"prompt": text} for text in ["w5 w6 w7", "w8"] for _ in range(4)]
    batch = trainer._generate_and_score_completions(inputs)
    if beta:
        batch["ref_per_token_logps"] = batch["ref_per_token_logps"].double()
    batch["old_per_token_logps"] = batch["old_per_token_logps"].double()
    model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    theirs = trainer._compute_loss(model, batch)
    replied = batch["completion_mask"].bool()
    texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    advantages = ppo.group_advantages(torch.tensor(score(texts)), 4)
    assert torch.allclose(advantages, batch["advantages"], rtol=0, atol=1e-6)
    prompts = [row[real.bool()].tolist() for row, real in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    replies = [row[real].tolist() for row, real in zip(batch["completion_ids"], replied, strict=True)]
    ids, mask = preference.join(prompts, replies, 1)
    place = lambda flat: torch.zeros(mask[:, 1:].shape).double().masked_scatter(mask[:, 1:], flat)  # noqa: E731
    now, _, _ = ppo.read(model, ids, mask)
    old = place(batch["old_per_token_logps"][replied])
    ours = ppo.policy_loss(now, old, batch["advantages"][:, None].expand_as(now), mask[:, 1:])
    if beta:
        before = place(batch["ref_per_token_logps"][replied])
        ours = ours + beta * ppo.masked_mean(ppo.kl_estimators(now, before)[2], mask[:, 1:])
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    weight = model.model.layers[0].mlp.up_proj.weight
    gradients = (torch.autograd.grad(loss, weight)[0] for loss in (ours, theirs))
    assert torch.allclose(*gradients, rtol=0, atol=1e-6)


# ---- Replies --------------------------------------------------------------------------------------------------------

PROMPTS = [[0, 5, 6, 7], [0, 8], [0, 9, 10, 11, 12, 13], [0, 14, 15]]


def test_generated_rows_are_prompt_reply_padding():
    """Each row is its prompt and a reply that ends with its first end of text; the texts are theirs."""
    policy, tokenizer = tiny(0), words()
    prompts = PROMPTS * 8
    ids, mask, texts = ppo.generate(policy, tokenizer, prompts, 12, torch.Generator().manual_seed(0))
    lengths = mask.sum(1)
    assert lengths.min() < 12 and lengths.max() == 12
    for prompt, row, reply, text in zip(prompts, ids.tolist(), mask.tolist(), texts, strict=True):
        n = sum(reply)
        assert row[: len(prompt)] == prompt and reply == [len(prompt) <= t < len(prompt) + n for t in range(len(row))]
        said = row[len(prompt) : len(prompt) + n]
        assert 2 not in said[:-1] and (said[-1] == 2 or n == 12)
        assert set(row[len(prompt) + n :]) <= {1}
        assert text.split() == [f"w{t}" for t in prompt + said if t > 2]


def test_generated_replies_have_the_policys_probabilities():
    """First tokens drawn behind a short prompt, which a longer one in the batch pads, counted: as for the prompt alone."""
    policy = tiny(0, vocabulary=12)
    prompts = [[0, 5, 6, 7, 9, 4], *[[0, 8]] * 4000]
    ids, mask, _ = ppo.generate(policy, words(12), prompts, 1, torch.Generator().manual_seed(0))
    counts = torch.bincount(ids[mask][1:], minlength=12) / 4000
    assert torch.allclose(counts, policy(torch.tensor([[0, 8]])).logits[0, -1].softmax(-1), atol=0.03)


def test_read_token_by_token():
    """Log-probabilities, values and entropies, each from what stands before the token, one row at a time."""
    policy, head = tiny(0).double(), torch.nn.Linear(32, 1).double()
    ids, mask, _ = ppo.generate(policy, words(), PROMPTS, 8, torch.Generator().manual_seed(0))
    found = ppo.read(policy, ids, mask, head, entropy=True)
    assert all(not x[~mask[:, 1:]].any() for x in found)
    for i, row in enumerate(mask):
        end = int(row.nonzero().max())
        out = policy(ids[i : i + 1, : end + 1], output_hidden_states=True)
        scores, values = out.logits[0].log_softmax(-1), head(out.hidden_states[-1][0])[:, 0]
        for t in row.nonzero()[:, 0].tolist():
            entropy = -(scores[t - 1].exp() * scores[t - 1]).sum()
            expected = [scores[t - 1, ids[i, t]], values[t - 1], entropy]
            assert [x[i, t - 1].item() for x in found] == pytest.approx([x.item() for x in expected], abs=1e-5)


# ---- Training -------------------------------------------------------------------------------------------------------


def share(texts: list[str]) -> torch.Tensor:
    """An easy reward: how much of the text is even-numbered words."""
    return torch.tensor([mean([int(w[1:]) % 2 == 0 for w in text.split()] or [0]) for text in texts])


OPTIONS = dict(batch=32, max_new_tokens=8, minibatch=16, lr=1e-3, progress=False)


@pytest.mark.parametrize("group", [1, 4])
def test_reward_rises_and_beta_holds_back(group):
    """PPO (group 1) and GRPO: the reward goes up, less with a higher beta, which stays closer to the reference."""
    ends = {}
    for beta in (0.0, 0.5):
        log = ppo.train(tiny(0), words(), PROMPTS, share, steps=25, group=group, beta=beta, **OPTIONS | {"lr": 2e-3})
        ends[beta] = [mean([line[key] for line in log[-5:]]) for key in ("reward", "kl")]
        assert log[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert ends[0.0][0] > mean([line["reward"] for line in log[:3]]) + 0.1  # about 0.2, by the number of threads
    assert ends[0.5][1] < 0.5 * ends[0.0][1]


def test_adaptive_kl_nears_its_target():
    log = ppo.train(tiny(0), words(), PROMPTS, share, steps=12, beta=0.1, target_kl=0.01, **OPTIONS)
    betas = [line["beta"] for line in log]
    for line, (now, after) in zip(log, zip(betas, betas[1:], strict=False), strict=False):
        error = min(0.2, max(-0.2, line["kl"] / 0.01 - 1))
        assert after == pytest.approx(now * (1 + 0.1 * error))
    assert betas[1] < betas[0] and betas[-1] > min(betas)


def test_ptx_keeps_the_text_likely():
    """Mixed-in text stays about as likely as it was; without it, it does not."""
    text = torch.randint(3, 50, (40, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for ptx in (0.0, 1.0):
        policy = tiny(0)
        options = dict(steps=15, beta=0.0, pretraining=text, ptx=ptx)
        log = ppo.train(policy, words(), PROMPTS, share, **options, **OPTIONS)
        with torch.no_grad():
            losses.append(training.summed_loss(policy, text, text).item() / text[:, 1:].numel())
    assert losses[1] < losses[0] - 0.2 and log[-1]["ptx_loss"] < log[0]["ptx_loss"]


def test_the_log():
    policy, seen = tiny(0), []
    options = OPTIONS | dict(steps=2, gold=lambda texts: [3.0] * len(texts), unfinished=-1.0)
    log = ppo.train(policy, words(), PROMPTS, share, watch=lambda log: seen.append(len(log)), **options)
    assert seen == [1, 2] and [line["step"] for line in log] == [1, 2]
    keys = "step reward gold kl entropy length ended beta sample seconds loss clipped value_loss"
    assert list(log[0]) == keys.split() and log[0]["gold"] == 3.0
    assert 0 < log[0]["length"] <= 8 and 0 < log[0]["ended"] < 1 and 0 < log[0]["entropy"] < math.log(50)


def test_the_reference_stays_and_the_reward_is_not_trained():
    model, tokenizer = tiny(0), words()
    scorer = preference.reward_model(tiny(1))
    before = [p.clone() for p in [*model.parameters(), *scorer.parameters()]]
    policy = tiny(0)
    reward = lambda texts: preference.score(scorer, tokenizer, texts)  # noqa: E731
    ppo.train(policy, tokenizer, PROMPTS, reward, steps=2, reference=model, **OPTIONS)
    after = [*model.parameters(), *scorer.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert not torch.equal(policy.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("whitened", [True, False])
def test_what_a_step_hands_to_the_losses(whitened, monkeypatch):
    """Scores with the fine for replies that were cut off; advantages whitened over the whole batch, or not."""
    scores, advantages = [], []
    shaped, loss = ppo.kl_shaped_rewards, ppo.policy_loss
    monkeypatch.setattr(ppo, "kl_shaped_rewards", lambda s, *rest: scores.append(s) or shaped(s, *rest))
    monkeypatch.setattr(ppo, "policy_loss", lambda n, o, a, m, c: advantages.append(a[m]) or loss(n, o, a, m, c))
    options = OPTIONS | dict(steps=1, unfinished=-1.0, whitened=whitened)
    log = ppo.train(tiny(0), words(), PROMPTS, lambda texts: [5.0] * len(texts), **options)
    assert mean([score == 5.0 for score in scores[0].tolist()]) == pytest.approx(log[0]["ended"])
    assert set(scores[0].tolist()) == {4.0, 5.0}
    spread = torch.cat(advantages)
    assert whitened == (abs(spread.mean().item()) < 1e-4 and abs(spread.std().item() - 1) < 1e-3)


def test_values_are_learned():
    """Where every reply scores 1, the value head comes to expect it."""
    options = OPTIONS | dict(steps=15, beta=0.0, lr=0.0, value_lr=1e-2)
    log = ppo.train(tiny(0), words(), PROMPTS, lambda texts: [1.0] * len(texts), **options)
    assert log[-1]["value_loss"] < 0.3 * log[0]["value_loss"]


def test_grpo_compares_replies_to_one_prompt():
    """A reward that depends on the prompt alone teaches nothing: the weights stay."""
    policy = tiny(0)
    options = OPTIONS | dict(steps=2, group=4, beta=0.0)
    ppo.train(policy, words(), PROMPTS, lambda texts: [float(text.split()[0][1:]) for text in texts], **options)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), tiny(0).parameters(), strict=True))


class Killed(Exception):
    pass


@pytest.mark.parametrize("settings", [{}, {"group": 4}, {"target_kl": 0.05, "epochs": 2, "ptx": 0.5}], ids=str)
def test_killed_and_continued_to_the_bit(settings, tmp_path):
    text = torch.randint(3, 50, (40, 12), generator=torch.Generator().manual_seed(0))

    def run(folder, watch=None):
        policy = tiny(0)
        options = OPTIONS | dict(steps=7, pretraining=text, folder=folder, save_every=3, watch=watch)
        log = ppo.train(policy, words(), PROMPTS, share, **options, **settings)
        return policy, [{key: value for key, value in line.items() if key != "seconds"} for line in log]

    def kill(log):
        if len(log) == 5:
            raise Killed

    whole, log = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill)
    torch.manual_seed(12345)  # whatever else drew random numbers meanwhile
    calls = []
    ours, lines = run(tmp_path / "killed", lambda log: calls.append(len(log)))
    assert calls == [4, 5, 6, 7] and lines == log
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), whole.parameters(), strict=True))
    files = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


def test_a_batch_that_does_not_fit_is_refused():
    for wrong in ({"group": 5}, {"minibatch": 7}):
        with pytest.raises(ValueError, match="must be a multiple"):
            ppo.train(tiny(0), words(), PROMPTS, share, steps=1, **OPTIONS | wrong)
    with pytest.raises(ValueError, match="pretraining"):
        ppo.train(tiny(0), words(), PROMPTS, share, steps=1, ptx=0.1, **OPTIONS)


# ---- Best of n, rejection sampling ----------------------------------------------------------------------------------


def test_best_of_n_is_the_best():
    policy, tokenizer, asked = tiny(0), words(), []

    def reward(texts):
        asked.extend(texts)
        return share(texts)

    ids, mask, texts, scores = ppo.best_of_n(policy, tokenizer, PROMPTS, reward, 6, max_new_tokens=8, batch=5)
    all_scores = share(asked).view(4, 6)
    assert scores.tolist() == all_scores.max(1).values.tolist() == share(texts).tolist()
    assert (all_scores.max(1).values > all_scores.mean(1)).all()
    for prompt, row, reply in zip(PROMPTS, ids.tolist(), mask, strict=True):
        assert row[: len(prompt)] == prompt and not reply[: len(prompt)].any() and reply[len(prompt)]


def test_rejection_sampling_raises_the_reward(tmp_path):
    policy, tokenizer = tiny(0), words()
    options = dict(n=8, rounds=3, steps=6, batch=32, peak=2e-3, max_new_tokens=8, progress=False)
    log = ppo.rejection_sampling(policy, tokenizer, PROMPTS * 8, share, folder=tmp_path, **options)
    rewards = [line["reward"] for line in log]
    assert rewards[-1] > rewards[0] + 0.05 and [line["round"] for line in log] == [1, 2, 3]
    again = tiny(0)
    ppo.rejection_sampling(again, tokenizer, PROMPTS * 8, share, folder=tmp_path, **options)  # all three are there
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters(), strict=True))
