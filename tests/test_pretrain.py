"""The training loop and the ladder: stopped and continued to the bit, alone or by two, and what a finished rung can do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from tests.conftest import tiny
from utils import bottle, models, pretrain, training

REPO = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join([str(REPO), ENVIRONMENT["PYTHONPATH"]])
RUN = ["-m", "utils.pretrain", "--rung", "20k", "--tokens", "40960", "--items", "0"]  # 20 steps


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.train_tokenizer(200_000)


@pytest.fixture(scope="module")
def work(tokenizer, tmp_path_factory):
    """A folder for unfinished runs, the tokenizer and the tokens already in it."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer.save_pretrained(folder / "tokenizer")
    pretrain.tokens(tokenizer, pretrain.TRAIN, 40_961, folder)
    pretrain.tokens(tokenizer, pretrain.TRAIN, 40_960 * pretrain.NURSERY // pretrain.TOKENS + 257, folder, "nursery")
    pretrain.tokens(tokenizer, pretrain.HELD_OUT, pretrain.HELD_OUT_BLOCKS * pretrain.CONTEXT + 1, folder)
    return folder


def start(ladder, work, *launcher):
    command = [sys.executable, *launcher, *RUN, "--ladder", str(ladder), "--work", str(work), "--threads", "1"]
    return subprocess.Popen(
        command, cwd=REPO, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def log(folder, name="log.jsonl"):
    """The lines of a log, without the clock's."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def rung(work, tmp_path_factory):
    """The smallest rung, trained for 20 steps without a stop, by the command."""
    ladder = tmp_path_factory.mktemp("ladder")
    process = start(ladder, work)
    output, error = process.communicate(timeout=100)
    assert process.returncode == 0, error[-2000:]
    assert "1 process(es)" in output
    (work / "20k").rename(work / "whole")
    return ladder / "20k"


# ---- The loop -------------------------------------------------------------------------------------------------------


def test_killed_and_continued_to_the_bit(rung, work, tmp_path):
    """SIGKILL after the first checkpoint; a second command goes on: the same weights, moments and log."""
    (tmp_path / "work").mkdir()
    for path in [*work.glob("t*"), *work.glob("nursery*")]:
        (tmp_path / "work" / path.name).symlink_to(path)
    checkpoint = tmp_path / "work" / "20k" / "checkpoint.safetensors"
    process = start(tmp_path, tmp_path / "work")
    until = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with safe_open(checkpoint, "pt") as file:
        assert 0 < json.loads(file.metadata()["state"])["step"] < 20
    assert not (tmp_path / "20k").exists()
    with (tmp_path / "work" / "20k" / "log.jsonl").open("a") as file:
        file.write('{"step": 19, "los')  # half a line, as a kill may leave it
    process = start(tmp_path, tmp_path / "work")
    assert process.wait(timeout=100) == 0, process.stderr.read()[-2000:]
    ours, whole = (load_file(f / "checkpoint.safetensors") for f in (checkpoint.parent, work / "whole"))
    assert ours.keys() == whole.keys() and sum(name.startswith("exp_avg/") for name in ours) > 10
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert (tmp_path / "20k" / "model.safetensors").read_bytes() == (rung / "model.safetensors").read_bytes()
    assert log(tmp_path / "20k") == log(rung)


def test_two_processes_follow_one(rung, work, tmp_path):
    (tmp_path / "work").mkdir()
    for path in [*work.glob("t*"), *work.glob("nursery*")]:
        (tmp_path / "work" / path.name).symlink_to(path)
    process = start(tmp_path, tmp_path / "work", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output, error = process.communicate(timeout=100)
    assert process.returncode == 0, error[-2000:]
    assert "2 process(es)" in output
    one, two = log(rung), log(tmp_path / "20k")
    assert two[0]["settings"]["processes"] == 2 and one[0]["settings"]["processes"] == 1
    for a, b in zip(one[1:], two[1:], strict=True):
        assert a["step"] == b["step"] and a["tokens"] == b["tokens"]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-3)
        assert b["norm"] == pytest.approx(a["norm"], rel=1e-2)  # AdamW hides a gradient that is too small throughout
    assert two[-1]["held_out"] == pytest.approx(one[-1]["held_out"], abs=1e-3)


def test_loss_and_gradient_are_those_of_pytorch():
    torch.manual_seed(0)
    logits, targets = 30 * torch.randn(6, 11), torch.tensor([0, 10, -100, 3, -100, 5])
    results = []
    for loss in (training._SummedCrossEntropy.apply, lambda x, t: cross_entropy(x, t, reduction="sum")):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf * 1.0, targets)
        (2 * value).backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*results)


def test_the_model_s_own_loss():
    """Shifted by hand as transformers shifts them, with labels that leave out a part."""
    model, ids = tiny(0), torch.randint(3, 50, (4, 12))
    labels = ids.masked_fill(torch.arange(12) < 5, -100)
    ours = training.summed_loss(model, ids, labels) / (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(ours, model(input_ids=ids, labels=labels).loss)


def test_parts_of_a_batch_do_not_matter():
    """Rows with unequally many labels weigh by their tokens, however the batch is cut."""
    ids = torch.randint(3, 50, (12, 9))
    labels = ids.masked_fill(torch.arange(9) < torch.randint(1, 8, (12, 1)), -100)
    losses = []
    for rows in (2, 6):
        log = training.train(tiny(0), ids, labels, steps=6, batch=6, rows=rows, log_every=1, progress=False)
        losses.append(torch.tensor([line["loss"] for line in log]))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=0)
    assert losses[0][-1] < losses[0][0]


def test_every_row_once_an_epoch():
    rows = torch.cat([training.picks(step, 4, 10, seed=3) for step in range(5)])
    assert rows[:10].sort()[0].tolist() == rows[10:].sort()[0].tolist() == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert sorted(training.picks(0, 25, 10, seed=3).bincount().tolist()) == [2] * 5 + [3] * 5


def test_schedules():
    cosine, wsd = ([training.learning_rate(s, 1000, 2.0, shape) for s in range(1000)] for shape in ("cosine", "wsd"))
    for rates in (cosine, wsd):
        assert rates[0] == pytest.approx(2 / 30) and rates[29] == rates[30] == 2.0 == max(rates)
        assert all(a < b for a, b in zip(rates[:29], rates[1:30], strict=True))
        assert all(a >= b for a, b in zip(rates[30:], rates[31:], strict=False))
    assert cosine[-1] == pytest.approx(0.2) and cosine[(30 + 999) // 2] == pytest.approx(1.1, abs=2e-3)
    assert set(wsd[30:800]) == {2.0} and wsd[801] < 2.0 and 0 < wsd[-1] < 0.01
    with pytest.raises(ValueError, match="unknown schedule 'linear': expected"):
        training.learning_rate(500, 1000, 2.0, "linear")


def test_another_run_s_folder_is_refused(tmp_path):
    run = dict(steps=2, batch=4, folder=tmp_path, progress=False)
    ids = torch.randint(3, 50, (8, 9))
    first = training.train(tiny(0), ids, **run)
    assert training.train(tiny(1), ids, **run) == first  # complete: nothing is trained again
    with pytest.raises(ValueError, match="other settings .batch was 4, now 2.: delete it"):
        training.train(tiny(0), ids, **run | {"batch": 2})


def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(ValueError, match="no longer a number at step 1: take a lower learning rate"):
        model = tiny(0)
        model.model.norm.weight.data.fill_(float("nan"))
        training.train(model, torch.randint(3, 50, (8, 9)), steps=3, batch=4, progress=False, log_every=1)


# ---- The tokenizer --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("가나다길은 빵을 좋아한다😀👩‍🚀0123456789 \t\n.,'!?"))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@settings(max_examples=50, deadline=None)
@given(st.text("0123456789 가a", max_size=20))
def test_each_digit_is_a_token(tokenizer, text):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == [c for c in text if c.isdigit()]


def test_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = pretrain.AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode("Gil has 42.") == tokenizer.encode("Gil has 42.")
    assert again.encode("")[0] == again.bos_token_id == 0
    assert (again.eos_token_id, again.pad_token_id, len(again)) == (1, 2, 2048)
    korean = [r["ko"] for records in bottle.world()["tables"].values() for r in records if "ko" in r]
    lengths = [len(again.encode(" " + word, add_special_tokens=False)) for word in korean]
    assert sum(lengths) < len("".join(korean).encode()) / 2  # words, not bytes


def test_documents_are_shuffled_and_packed(tokenizer, work):
    stream = pretrain.tokens(tokenizer, pretrain.TRAIN, 40_961, work)
    rows = pretrain.blocks(stream)
    assert rows.shape == (160, 257) and torch.equal(rows[:-1, -1], rows[1:, 0])
    text = tokenizer.decode(stream[:4000].tolist())
    pages = text.split("<|end|><|begin|>")
    pages[0] = pages[0].removeprefix("<|begin|>")
    unshuffled = bottle.documents(pretrain.TRAIN, 40_961 * 4)["text"]
    places = [unshuffled.index(page) for page in pages[:10]]
    assert len(pages) > 20 and max(places) > len(unshuffled) // 2


# ---- A finished rung ------------------------------------------------------------------------------------------------


def test_a_finished_rung_loads_and_writes(rung, monkeypatch):
    monkeypatch.setattr(models, "LADDER", rung.parent)
    model, tokenizer = models.load("ladder/20k")
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert load_file(rung / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    ids = tokenizer("Q: Gil has", return_tensors="pt").to(model.device)
    out = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert out.shape == (1, ids.input_ids.shape[1] + 5) or out[0, -1] == tokenizer.eos_token_id
    lines = log(rung)
    assert [line["step"] for line in lines if "held_out" in line] == [1, 2, 3, 4, 6, 8, 11, 16, 20]
    assert lines[-1]["held_out"] < lines[1]["held_out"] - 1


def test_report(tokenizer, rung, work):
    """Two items of every task, asked in four ways; the mean of the blocks' losses is what the log says."""
    model = pretrain.LlamaForCausalLM.from_pretrained(rung, dtype=torch.float32)  # stored in half precision
    held_out = pretrain.blocks(pretrain.tokens(tokenizer, pretrain.HELD_OUT, pretrain.HELD_OUT_BLOCKS * 256 + 1, work))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = pretrain.report(model, tokenizer, {"held_out": held_out}, 1e-2, 2)
    assert np.mean(found["losses"]["held_out"]) == pytest.approx(log(rung)[-1]["held_out"], abs=2e-3)
    assert set(found["tasks"]) == {t for tasks in bottle.clusters().values() for t in tasks}
    losses = {way: np.mean([row[way]["loss"] for row in found["tasks"].values()]) for way in ("zero-shot", "elicited")}
    assert losses["elicited"] < losses["zero-shot"]  # the tuned copy answered
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # not the model itself


def test_a_chat_is_what_tuning_sees(tokenizer):
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Gil"}]
    ids, labels = training.supervised(tokenizer, ["Who?", "Say it, please."], ["Gil", "no"])
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.encode(text, add_special_tokens=False) == ids[0][ids[0] != 2].tolist()
    assert tokenizer.decode(labels[0][labels[0] != -100]) == " Gil<|end|>"
    assert tokenizer.decode(ids[1][labels[1] == -100], skip_special_tokens=True) == "Say it, please."
    asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    assert (
        tokenizer.encode(asked, add_special_tokens=False) == ids[0][:-2][labels[0][:-2] == -100].tolist()
        or asked in text
    )


def test_padding_is_not_computed_and_does_not_matter():
    """Rows padded far beyond their labels train the same model."""
    ids, wide = torch.randint(3, 50, (8, 9)), torch.full((8, 30), 1)
    labels = torch.full((8, 30), -100)
    wide[:, :9] = labels[:, :9] = ids
    losses = [
        [line["loss"] for line in training.train(tiny(0), *rows, steps=3, batch=4, log_every=1, progress=False)]
        for rows in ((ids,), (wide, labels))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_cloze_tells_a_model_that_knows_from_one_that_does_not(tokenizer):
    """A model that was made to write the answers gets all of them, in both readings; a random one guesses."""
    items = bottle.tasks("sentiment", "test", count=6)
    model = pretrain.LlamaForCausalLM(pretrain.RUNGS["20k"]["config"])
    before = pretrain.by_task(pretrain.cloze(model, tokenizer, items))
    rows = [tokenizer.encode(f"{i['wild']} {i['answer']}\n") for i in items]
    length = max(map(len, rows))
    ids = torch.tensor([row + [2] * (length - len(row)) for row in rows])
    training.train(model, ids, ids.masked_fill(ids == 2, -100), steps=120, batch=6, peak=1e-2, progress=False)
    after = pretrain.by_task(pretrain.cloze(model, tokenizer, items))
    assert all(v["rank"] == v["exact"] == 1.0 for v in after.values())
    assert all(v["exact"] == 0.0 and 0 < v["chance"] <= 0.5 for v in before.values())


def test_a_model_s_size():
    sizes = []
    for name, rung in pretrain.RUNGS.items():
        model = pretrain.LlamaForCausalLM(rung["config"])
        sizes.append(model.num_parameters() - model.model.embed_tokens.weight.numel())
        told = float(name[:-1]) * {"k": 1e3, "M": 1e6}[name[-1]]
        assert sizes[-1] == pytest.approx(told, rel=0.08)
    assert all(3 < b / a < 4.1 for a, b in zip(sizes, sizes[1:], strict=False))


def test_an_unknown_rung_gives_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--rung", "20k", "--rung", "9M"])
    with pytest.raises(SystemExit) as stopped:
        pretrain.main()
    assert stopped.value.code == "No rung '9M': name one of 20k, 70k, 250k, 800k, 3M."


# ---- The committed ladder -------------------------------------------------------------------------------------------


def test_the_bottle_is_the_one_that_the_ladder_read(tmp_path):
    tokenizer = committed_tokenizer()
    ids = pretrain.tokens(tokenizer, pretrain.HELD_OUT, pretrain.HELD_OUT_BLOCKS * pretrain.CONTEXT + 1, tmp_path)
    report = json.loads((models.LADDER / "20k" / "report.json").read_text())["losses"]["held_out"]
    found = pretrain.losses(models.load("ladder/20k")[0], pretrain.blocks(ids))
    np.testing.assert_allclose(found, report, atol=5e-3)  # half precision


@pytest.mark.parametrize("name", pretrain.RUNGS)
def test_a_committed_rung(name):
    """Whole: weights, tokenizer, log and report; all together at most 20 MB; and it is the model the report tells of."""
    folder = models.LADDER / name
    lines, report = log(folder), json.loads((folder / "report.json").read_text())
    assert lines[-1]["step"] == lines[0]["settings"]["steps"] and lines[-1]["held_out"] < 2
    assert sum(path.stat().st_size for path in models.LADDER.rglob("*")) < 20e6
    model, tokenizer = models.load(f"ladder/{name}")
    assert (
        tokenizer.chat_template
        and tokenizer.backend_tokenizer.to_str() == committed_tokenizer().backend_tokenizer.to_str()
    )
    assert np.mean(report["losses"]["held_out"]) == pytest.approx(lines[-1]["held_out"], abs=1e-3)
    items = bottle.tasks("to_english", "test", count=40)
    again = pretrain.by_task(pretrain.cloze(model, tokenizer, items))["to_english"]
    assert again["exact"] == pytest.approx(report["tasks"]["to_english"]["cloze"]["exact"], abs=0.06)  # half precision


def committed_tokenizer():
    return pretrain.tokenizer(models.LADDER, Path("nowhere"))


def test_the_committed_curve_comes_again(tmp_path):
    """The first 64 steps of the smallest rung, from the same documents, follow the log that is kept."""
    kept = log(models.LADDER / "20k", "nursery.jsonl")
    settings = kept[0]["settings"]
    ids = pretrain.tokens(committed_tokenizer(), pretrain.TRAIN, pretrain.NURSERY + 257, tmp_path, "nursery")
    ids = pretrain.blocks(ids)
    assert [*ids.shape, int(ids.sum())] == settings["data"]  # the documents are those of then
    torch.manual_seed(0)
    model = pretrain.LlamaForCausalLM(pretrain.RUNGS["20k"]["config"])

    class Enough(Exception):
        pass

    def stop(model, step):
        if step == 64:
            raise Enough
        return {}

    options = {key: settings[key] for key in ("steps", "batch", "rows", "peak", "shape", "seed")}
    with pytest.raises(Enough):
        training.train(model, ids, folder=tmp_path / "run", measure=stop, measure_at=[64], progress=False, **options)
    again = log(tmp_path / "run")[1:]
    assert again[-1]["step"] >= 60
    for ours, theirs in zip(again, kept[1:], strict=False):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], abs=5e-3)
