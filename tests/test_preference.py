"""Comparisons: the losses are TRL's, padding never leaks, and reward models and DPO learn what they are shown."""

import math
import random

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from transformers import LlamaForSequenceClassification

from tests.conftest import tiny, words
from utils import preference, training

TRL = dict(use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=6, disable_tqdm=True, seed=0)


def text(seed: int, most: int = 9) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(3, 50)}" for _ in range(rng.randint(1, most)))


PAIRS = [(text(i), " " + text(100 + i), " " + text(200 + i)) for i in range(6)]  # prompt, chosen, rejected


def reward_model(seed: int = 0) -> LlamaForSequenceClassification:
    return preference.reward_model(tiny(seed), seed).double()


# ---- The losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [None, "graded"])
def test_bradley_terry_is_trls(margin, tmp_path):
    """On one batch of padded texts: TRL's tokens, its loss, its gradient."""
    model, tokenizer = reward_model(), words()
    margins = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 0.25], dtype=torch.float64)
    rows = [{"chosen": p + c, "rejected": p + r} for p, c, r in PAIRS]
    if margin:
        rows = [row | {"margin": m} for row, m in zip(rows, margins.tolist(), strict=True)]
    arguments = trl.RewardConfig(str(tmp_path), remove_unused_columns=False, **TRL)
    trainer = trl.RewardTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    if margin:
        batch["margin"] = margins  # the collator makes single precision of them
    theirs = trainer.compute_loss(model.train(), batch)
    gradient = torch.autograd.grad(theirs, model.score.weight)[0]
    chosen, rejected = (
        preference._read(model, tokenizer, preference.encode(tokenizer, [p + pair[i] for p, *pair in PAIRS]))
        for i in (0, 1)
    )
    ours = preference.bradley_terry_loss(chosen, rejected, margins if margin else 0.0)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(torch.autograd.grad(ours, model.score.weight)[0], gradient, rtol=0, atol=1e-6)


def test_dpo_is_trls(tmp_path):
    """On one batch of prompts and replies of different lengths, policy and reference apart: loss and gradient."""
    policy, reference, tokenizer = tiny(0).double(), tiny(1).double(), words()
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    arguments = trl.DPOConfig(str(tmp_path), beta=0.3, remove_unused_columns=False, **TRL)
    data = Dataset.from_list(rows)
    trainer = trl.DPOTrainer(policy, reference, args=arguments, train_dataset=data, processing_class=tokenizer)
    theirs = trainer.compute_loss(policy, trainer.data_collator(list(trainer.train_dataset)))
    prompts, chosen, rejected = zip(*PAIRS, strict=True)
    ids, mask = preference.encode_replies(tokenizer, 2 * prompts, chosen + rejected)
    now, before = (preference.reply_logprobs(model, ids, mask) for model in (policy, reference))
    ours = preference.dpo_loss(*now.chunk(2), *before.detach().chunk(2), beta=0.3)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    weight = policy.model.layers[0].mlp.up_proj.weight
    gradients = (torch.autograd.grad(loss, weight)[0] for loss in (ours, theirs))
    assert torch.allclose(*gradients, rtol=0, atol=1e-6)


def test_losses_by_hand():
    """InstructGPT's and DPO's formulas for two pairs, written out."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    chosen, rejected = torch.tensor([[1.0, -0.5], [0.2, 0.3]], dtype=torch.float64)
    expected = -(math.log(sigmoid(0.8)) + math.log(sigmoid(-0.8))) / 2
    assert preference.bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected, abs=1e-12)
    expected = -(math.log(sigmoid(0.8 - 1)) + math.log(sigmoid(-0.8 - 2))) / 2
    margin = torch.tensor([1.0, 2.0])
    assert preference.bradley_terry_loss(chosen, rejected, margin).item() == pytest.approx(expected, abs=1e-12)
    logs = torch.tensor([[-3.0, -4.0], [-5.0, -2.0], [-3.5, -4.5], [-4.0, -3.0]], dtype=torch.float64)
    expected = -(math.log(sigmoid(0.1 * (0.5 + 1))) + math.log(sigmoid(0.1 * (0.5 - 1)))) / 2
    assert preference.dpo_loss(*logs).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_losses_at_huge_rewards(size):
    """log(sigmoid(x)) written as such is -inf from x = -104 on, and its gradient NaN."""
    chosen, rejected = torch.tensor([size, -size], requires_grad=True), torch.tensor([-size, size])
    loss = preference.bradley_terry_loss(chosen, rejected)
    loss.backward()
    assert loss.item() == pytest.approx(size)
    assert chosen.grad.tolist() == [0.0, -0.5]
    zero = torch.zeros(2)
    assert preference.dpo_loss(chosen, rejected, zero, zero, beta=1.0).item() == pytest.approx(size)


def test_pairs_from_ranking():
    assert preference.pairs_from_ranking([2, 0, 1]) == [(2, 0), (2, 1), (0, 1)]
    assert len(preference.pairs_from_ranking(range(9))) == 36


# ---- Replies --------------------------------------------------------------------------------------------------------


def test_reply_logprobs_token_by_token():
    """The sum over the reply's tokens and its end, each predicted from what stands before it, one text at a time."""
    model, tokenizer = tiny(0).double(), words()
    prompts, replies, _ = zip(*PAIRS, strict=True)
    found = preference.reply_logprobs(model, *preference.encode_replies(tokenizer, prompts, replies))
    for prompt, reply, ours in zip(prompts, replies, found.tolist(), strict=True):
        ids = tokenizer(prompt + reply).input_ids + [2]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        first = len(tokenizer(prompt).input_ids)
        assert ours == pytest.approx(sum(logprobs[t - 1, ids[t]].item() for t in range(first, len(ids))), abs=1e-9)


def test_padding_never_leaks():
    """Longer padding of another id changes no reward, log-probability or gradient."""
    model, scorer, tokenizer = tiny(0).double(), reward_model(), words()
    prompts, replies, _ = zip(*PAIRS, strict=True)
    ids, mask = preference.encode_replies(tokenizer, prompts, replies)
    lengths = torch.tensor([int(row.nonzero().max()) + 1 for row in mask])
    wider = torch.nn.functional.pad(ids, (0, 5), value=7)
    wider[:, : ids.shape[1]][~(torch.arange(ids.shape[1]) < lengths[:, None])] = 9
    longer = torch.nn.functional.pad(mask, (0, 5))
    plain, padded = preference.reply_logprobs(model, ids, mask), preference.reply_logprobs(model, wider, longer)
    assert torch.allclose(plain, padded, rtol=0, atol=1e-10)
    weight = model.model.embed_tokens.weight
    gradients = (torch.autograd.grad(x.sum(), weight)[0] for x in (plain, padded))
    assert torch.allclose(*gradients, rtol=0, atol=1e-9)
    assert torch.allclose(
        preference.rewards(scorer, ids, lengths), preference.rewards(scorer, wider, lengths), rtol=0, atol=1e-10
    )


# ---- Reward models --------------------------------------------------------------------------------------------------


def test_scores_are_transformers_and_survive_the_disk(tmp_path):
    """Texts in any order, in batches that split them; saved and loaded by AutoModel; transformers' own pooling agrees."""
    model, tokenizer = reward_model().float(), words()
    texts = [prompt + reply for prompt, reply, _ in PAIRS]
    alone = torch.cat([preference.score(model, tokenizer, [t]) for t in texts])
    assert torch.allclose(preference.score(model, tokenizer, texts, batch=4), alone, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, LlamaForSequenceClassification) and loaded.config.num_labels == 1
    rows = preference.pad(preference.encode(tokenizer, texts), tokenizer.pad_token_id)
    mask = (rows != tokenizer.pad_token_id).long()
    assert torch.allclose(loaded(rows, attention_mask=mask).logits[:, 0], alone, rtol=0, atol=1e-5)


def test_the_body_is_the_language_models():
    language_model = tiny(3)
    model = preference.reward_model(language_model, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.model.parameters(), language_model.model.parameters(), strict=True)
    )
    assert model.model.embed_tokens.weight.data_ptr() != language_model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.score.weight, preference.reward_model(language_model, seed=1).score.weight)


def rankings(count: int, seed: int) -> list[list[str]]:
    """Texts ranked by how often w3 stands in them, lists of two to four."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        shares = sorted(rng.sample(range(6), rng.randint(2, 4)), reverse=True)
        found.append([" ".join(rng.sample(["w3"] * s + ["w4"] * (5 - s), 5)) for s in shares])
    return found


def test_a_reward_model_learns_the_ranking():
    model, tokenizer = preference.reward_model(tiny(0)), words()
    log = preference.train_reward_model(model, tokenizer, rankings(60, 0), steps=60, peak=3e-3, progress=False)
    held_out = [preference.score(model, tokenizer, texts) for texts in rankings(30, 1)]
    right = torch.cat([(s[:-1] > s[1:]) for s in held_out]).float().mean()
    assert right > 0.9 and log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_a_ranking_weighs_as_one():
    """The step's loss: the mean over rankings of the mean over a ranking's pairs, with the pairs' margins."""
    model, tokenizer = preference.reward_model(tiny(0)), words()
    data = [["w3 w4", "w5", "w6 w7 w8"], ["w9", "w10 w11"]]
    margins = [torch.tensor([0.1, 0.9, 0.3]), torch.tensor([0.5])]
    three, two = (preference.score(model, tokenizer, texts).tolist() for texts in data)
    log = preference.train_reward_model(model, tokenizer, data, margins=margins, steps=1, batch=2, progress=False)
    loss = lambda better, worse, margin: math.log1p(math.exp(-(better - worse - margin)))  # noqa: E731
    a, b, c = three
    expected = ((loss(a, b, 0.1) + loss(a, c, 0.9) + loss(b, c, 0.3)) / 3 + loss(*two, 0.5)) / 2
    assert log[0]["loss"] == pytest.approx(expected, abs=1e-5)


def test_a_ranking_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two texts"):
        preference.train_reward_model(reward_model(), words(), [["w3"]], steps=1)


def test_rewards_by_token_end_at_the_reward():
    model, tokenizer = reward_model().float(), words()
    tokens, found = preference.rewards_by_token(model, tokenizer, "w5 w6 w7")
    assert tokens == ["<b>", "w5", "w6", "w7", "<e>"] and found.shape == (5,)
    assert found[-1].item() == pytest.approx(preference.score(model, tokenizer, ["w5 w6 w7"]).item(), abs=1e-5)
    assert found.unique().numel() == 5


@pytest.mark.parametrize("ridge", [0.1, 3.0])
def test_a_linear_reward_is_logistic_regression_without_intercept(ridge):
    """scikit-learn's on the same pairs, half of them turned around, for it needs both outcomes."""
    from sklearn.linear_model import LogisticRegression

    differences = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double()
    differences += torch.tensor([1.0, 0, 0.5, 0])
    sign = torch.ones(60)
    sign[::2] = -1
    theirs = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit((sign[:, None] * differences).numpy(), sign.numpy())
    ours = preference.linear_reward(differences, ridge)
    assert ours.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=1e-4)


# ---- DPO ------------------------------------------------------------------------------------------------------------


def test_dpo_prefers_the_chosen():
    """The loss begins at ln 2, the implicit rewards part, and the chosen reply gains on the rejected one."""
    policy, tokenizer = tiny(0), words()
    prompts, chosen, rejected = zip(*PAIRS, strict=True)
    ids, mask = preference.encode_replies(tokenizer, 2 * prompts, chosen + rejected)
    gap = lambda: torch.sub(*preference.reply_logprobs(policy, ids, mask).detach().chunk(2)).mean().item()  # noqa: E731
    before = gap()
    log = preference.train_dpo(policy, tokenizer, PAIRS, steps=15, batch=6, peak=1e-3, progress=False)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1]["loss"] < 0.5 and log[-1]["accuracy"] == 1.0
    assert gap() > before + 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["reward model", "DPO"])
def test_stopped_and_continued_to_the_bit(kind, tmp_path, monkeypatch):
    def run(folder):
        if kind == "DPO":
            model = tiny(0)
            options = dict(steps=6, batch=4, save_every=2, progress=False)
            return model, preference.train_dpo(model, words(), PAIRS, folder=folder, **options)
        model = preference.reward_model(tiny(0))
        options = dict(steps=6, batch=4, save_every=2, progress=False)
        return model, preference.train_reward_model(model, words(), rankings(10, 0), folder=folder, **options)

    whole, log = run(None)
    picks, calls = training.picks, []

    def stop(step, *rest):
        calls.append(step)
        if step == 5 and calls[0] == 0:
            raise Killed
        return picks(step, *rest)

    monkeypatch.setattr(training, "picks", stop)
    with pytest.raises(Killed):
        run(tmp_path)
    calls.clear()
    ours, lines = run(tmp_path)
    assert calls[0] == 4 and lines == log
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), whole.parameters(), strict=True))


def test_another_runs_folder_is_refused(tmp_path):
    options = dict(steps=1, batch=2, folder=tmp_path, progress=False)
    preference.train_dpo(tiny(0), words(), PAIRS, **options)
    with pytest.raises(ValueError, match=r"other settings \(beta\)"):
        preference.train_dpo(tiny(0), words(), PAIRS, beta=0.5, **options)
