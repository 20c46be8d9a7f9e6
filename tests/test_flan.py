"""Instruction tuning: what is held out stays out, arms are alike but for what they compare, and the loss is TRL's."""

from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from transformers import LlamaForCausalLM

from tests.conftest import tiny, words
from utils import bottle, flan, pretrain, runs, training


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.train_tokenizer(200_000)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(pretrain.RUNGS["20k"]["config"]).eval()


SMALL = dict(rows=64, items=9)


@pytest.fixture
def tuned_items(monkeypatch):
    """What every arm hands to tuning; nothing is trained."""
    found = []
    monkeypatch.setattr(flan, "tune", lambda model, tokenizer, items, *_, **__: found.append(items) or model)
    return found


# ---- The arms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [*[[c] for c in flan.clusters()], *flan.LEFT_OUT[:1], *flan.FOLDS], ids=", ".join)
def test_what_is_held_out_and_its_kin_are_left_out(held_out, model, tokenizer, tuned_items):
    rows = flan.arm(model, tokenizer, held_out, 0, 1e-4, **SMALL)
    seen = Counter(item["cluster"] for item in tuned_items[0])
    kin = {relative for name in held_out for relative in flan.KIN.get(name, [])}
    assert not set(seen) & {*held_out, *kin}
    assert {*seen, *held_out, *kin} == set(flan.clusters())
    assert len(tuned_items[0]) == 64 and max(seen.values()) - min(seen.values()) <= 1
    assert {row["cluster"] for row in rows} == set(held_out)
    assert {item["split"] for item in tuned_items[0]} == {"tuning"}


def test_an_arm_that_has_seen_its_test_is_refused(model, tokenizer, tuned_items, monkeypatch):
    with pytest.raises(ValueError, match="cluster seen: sentiment"):
        flan.arm(model, tokenizer, ["sentiment"], 0, 1e-4, chosen=["sentiment"], **SMALL)
    monkeypatch.setattr(flan, "test_items", lambda names, count: bottle.tasks(names[0], "tuning", 0, count))
    with pytest.raises(ValueError, match="entity|entities seen"):
        flan.arm(model, tokenizer, [], 0, 1e-4, chosen=["sentiment"], **SMALL)


def test_all_arms_have_the_same_number_of_rows(model, tokenizer, tuned_items):
    options = [dict(shuffled=True), dict(form="bare"), dict(templates=1), dict(chosen=flan.ADDED[:1])]
    for more in options:
        flan.arm(model, tokenizer, flan.FOLDS[0], 0, 1e-4, **more, **SMALL)
    assert {len(items) for items in tuned_items} == {64}
    assert len({item["template"] for item in tuned_items[2] if item["task"] == "review"}) == 1
    assert len(flan.mixture(["mood"], 0, 96, different=10)) == 96  # a task with fewer items than rows repeats them


def test_shuffled_answers_are_the_same_answers_at_other_places():
    right, wrong = (flan.mixture(flan.clusters(), 0, 600, shuffled=s) for s in (False, True))
    assert [item["prompt"] for item in right] == [item["prompt"] for item in wrong]
    dealt = [Counter((item["task"], item["answer"]) for item in items) for items in (right, wrong)]
    assert dealt[0] == dealt[1]
    assert np.mean([a["answer"] != b["answer"] for a, b in zip(right, wrong, strict=True)]) > 0.4
    assert wrong == flan.mixture(flan.clusters(), 0, 600, shuffled=True)


def test_an_arm_repeats_by_its_seed_and_leaves_the_base_alone(model, tokenizer):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again, other = (flan.arm(model, tokenizer, ["sentiment"], seed, 5e-3, **SMALL) for seed in (0, 0, 1))
    assert first == again
    assert [row["loss"] for row in first] != [row["loss"] for row in other]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    orders = [flan.tune(model, tokenizer, flan.mixture(["mood"], 0, 96), 5e-3, seed).state_dict() for seed in (0, 1)]
    assert any(not torch.equal(tensor, orders[1][name]) for name, tensor in orders[0].items())
    untuned = flan.untuned(model, tokenizer, ["sentiment"], items=9)
    assert all(a["loss"] != b["loss"] for a, b in zip(first, untuned, strict=True))  # tuning has reached the model


def test_the_form_of_tuning_and_of_asking_reach_the_model(model, tokenizer, monkeypatch):
    taught, asked = [], []
    supervised, cloze = training.supervised, pretrain.cloze
    monkeypatch.setattr(training, "supervised", lambda t, p, a: taught.append(p[0]) or supervised(t, p, a))
    monkeypatch.setattr(pretrain, "cloze", lambda m, t, i, form: asked.append(form) or cloze(m, t, i, form))
    rows = flan.arm(model, tokenizer, ["sentiment"], 0, 1e-4, form="named", asked=("named", "prompt"), rows=32, items=3)
    assert taught[0].startswith("[") and asked == ["named", "prompt"]
    assert [row["asked"] for row in rows] == ["named"] * 3 + ["prompt"] * 3


def test_the_plan():
    plan = runs.flan_plan()
    names = [runs._arm_name(p | {"held_out": ", ".join(p["held_out"])}) for p in plan]
    assert len(set(names)) == len(names)
    assert sorted(cluster for fold in flan.FOLDS for cluster in fold) == sorted(flan.clusters())
    assert flan.tuned_on(flan.FOLDS[0]) and set(flan.ADDED) == set(flan.tuned_on(flan.FOLDS[0]))
    left_out = [cluster for out in flan.LEFT_OUT for cluster in out]
    assert sorted(left_out) == sorted(flan.clusters())
    assert all(flan.tuned_on(out) == flan.tuned_on([one]) for out in flan.LEFT_OUT for one in out)  # one arm for both
    seeds = {name: {p["seed"] for p in plan if p["experiment"] == name} for name in {p["experiment"] for p in plan}}
    needed = ("leave one out", "folds", "shuffled", "clusters", "form", "few-shot")
    assert all(seeds[name] == set(runs.SEEDS) and len(seeds[name]) >= 3 for name in needed)
    assert {p["seed"] for p in plan if p["experiment"] == "templates" and p["setting"] == "1"} == set(runs.SEEDS)


def test_a_run_goes_on_where_it_stopped_and_notices_other_weights(tmp_path, monkeypatch):
    ran = []

    def arm(planned, model, tokenizer):
        ran.append(planned["setting"])
        if len(ran) == 3:
            raise KeyboardInterrupt
        return [dict(planned, held_out=", ".join(planned["held_out"]), rank=0.5, asked="prompt", task="t")]

    plan = [dict(experiment="x", setting=str(i), rung="20k", held_out=["a", "b"], seed=0) for i in range(4)]
    for name, value in dict(RUNS=tmp_path, flan_plan=lambda: plan, flan_arm=arm).items():
        monkeypatch.setattr(runs, name, value)
    monkeypatch.setattr(runs.models, "LADDER", tmp_path / "ladder")
    monkeypatch.setattr(runs.models, "load", lambda name: (None, None))
    for rung in pretrain.RUNGS:
        (tmp_path / "ladder" / rung).mkdir(parents=True)
        (tmp_path / "ladder" / rung / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(KeyboardInterrupt):
        runs.every_arm()
    runs.every_arm()
    assert ran == ["0", "1", "2", "2", "3"]
    runs.every_arm()
    assert len(ran) == 5 and len(runs._stored("flan")[0]) == 4
    (tmp_path / "ladder" / "20k" / "model.safetensors").write_bytes(b"others")
    runs.every_arm()
    assert ran[5:] == ["0", "1", "2", "3"] and len(runs._stored("flan")[0]) == len(runs._stored("flan")[1]) == 4


# ---- What a reply is ------------------------------------------------------------------------------------------------


def test_kinds_of_replies():
    item = bottle.tasks("review", "test", count=1)[0] | {"answer": "positive"}
    replies = {
        "positive.": "right",
        " I think it is positive": "right",
        "\nA: Positive": "right",
        "negative\n": "wrong",
    }
    replies |= {"": "nothing", "\n \n": "nothing", "Good or bad?": "question", "Q: What?": "question"}
    replies |= {"the weather is nice": "other", "positive and negative": "other"}
    for text, kind in replies.items():
        assert flan.kind(text, item) == kind, text
    rude = sorted(r["name"] for r in bottle.world()["tables"]["rude"])[0]
    assert flan.kind(f"You {rude}.", item) == "rude"


def test_every_answer_and_option_is_of_the_kind_asked_for():
    for item in flan.test_items(flan.clusters(), 20):
        kinds = {option: flan.kind(f" {option}.", item) for option in item["options"]}
        assert kinds.pop(item["answer"]) == "right"
        assert set(kinds.values()) == {"wrong"}, item["task"]


# ---- The interval ---------------------------------------------------------------------------------------------------


def test_the_interval_sees_clusters_and_seeds():
    rng = np.random.default_rng(0)
    same = np.full((12, 3), 0.2)
    assert flan.interval(same) == pytest.approx((0.2, 0.2, 0.2))
    seeds, clusters = np.tile(rng.normal(size=3), (12, 1)), np.tile(rng.normal(size=(12, 1)), (1, 3))
    for values in (seeds, clusters):
        mean, low, high = flan.interval(values)
        assert low < mean < high and mean == pytest.approx(values.mean())
    for bad in (np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="finite values"):
            flan.interval(bad)


# ---- The loss -------------------------------------------------------------------------------------------------------


def test_the_supervised_loss_is_trls(tmp_path):
    """On one batch of prompts and answers of different lengths: TRL's SFTTrainer, its loss and its gradient."""
    model, tokenizer = tiny(0), words()
    pairs = [("w3 w4 w5", "w6 w7"), ("w8", "w9 w10 w11 w12"), ("w13 w14", "w15"), ("w20 w21 w22 w23", "w24 w3 w5")]
    options = dict(use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, per_device_train_batch_size=4)
    data = Dataset.from_list([{"prompt": p, "completion": " " + a} for p, a in pairs])
    arguments = trl.SFTConfig(str(tmp_path), **options)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    theirs = trainer.compute_loss(model.train(), trainer.data_collator(list(trainer.train_dataset)))
    weight = model.model.layers[0].mlp.up_proj.weight
    gradient = torch.autograd.grad(theirs, weight)[0]
    ids, labels = training.supervised(tokenizer, *map(list, zip(*pairs, strict=True)))
    ours = training.summed_loss(model, ids, labels) / (labels[:, 1:] != -100).sum()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(torch.autograd.grad(ours, weight)[0], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_together_and_their_order_change_nothing(rows, model, tokenizer):
    """A step of the loop, 8 rows of different lengths at once or in parts: the gradient of the mean over learned tokens."""
    items = flan.mixture(flan.clusters(), 0, 8)
    ids, labels = training.supervised(tokenizer, [i["prompt"] for i in items], [i["answer"] for i in items])
    before, copy = model.model.embed_tokens.weight.detach().clone(), deepcopy(model)
    logits = model(ids[:, :-1]).logits  # everything, padding and prompts too
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    options = dict(steps=1, batch=8, rows=rows, peak=1e-3, warmup=0, clip=1e9, progress=False)
    (line,) = training.train(copy, ids, labels, **options)
    assert line["norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert not torch.equal(copy.model.embed_tokens.weight, before)


# ---- FLAN's own data sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", flan.REAL)
def test_real_items_are_whole(name):
    for item in flan.real_items(name, 5):
        assert item["answer"] in item["options"] and len(item["prompts"]) == 4 == len(set(item["prompts"]))
        for prompt in item["prompts"]:
            assert item["a"] in prompt and item["b"] in prompt and prompt == prompt.rstrip()


def test_the_real_clusters_name_every_data_set():
    assert sorted(n for names in flan.REAL_CLUSTERS.values() for n in names) == sorted(flan.REAL)
    assert set(flan.REAL_CLUSTERS) <= set(flan.clusters())


def test_two_step_problems(monkeypatch):
    items = flan.problems("test", count=4)
    assert all(bottle.correct(item["cot"], item) for item in items)
    texts = [f"\n{items[0]['cot']}\nQ: 999", f"it is {items[1]['answer']}7", "none", items[3]["answer"] + "."]
    monkeypatch.setattr(flan, "answers", lambda *_, **__: texts)
    assert flan.solved(None, None, items) == [True, False, False, True]


def test_lora_learns_in_its_adapters_alone(tokenizer, model):
    pytest.importorskip("peft", reason="peft is not installed: python -m pip install -r requirements.txt")
    text = tokenizer("Bob has a dog.", return_tensors="pt").input_ids
    before = model(text).logits
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = flan.with_lora(model, rank=2)
    assert torch.equal(adapted(text).logits, before)  # B begins at zero
    log = flan.tune_lora(adapted, tokenizer, steps=10, peak=1e-2, progress=False)
    assert log[-1]["loss"] < log[0]["loss"]
    with adapted.disable_adapter():
        assert torch.equal(adapted(text).logits, before)
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in adapted.get_base_model().state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())
