"""Notebook 01: the Transformer, the tokenizer and the masking that its cells build are what the field's libraries do."""

import math
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import tokenizers
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from utils import bottle, pretrain

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_foundation_models.ipynb"
CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}


def made_by(*ids, **names) -> dict:
    """What these cells of the notebook define, given these names."""
    scope = dict(torch=torch, nn=nn, F=F, math=math, re=re, Counter=Counter) | names
    for id in ids:
        exec(CELLS[id], scope)
    return scope


@pytest.fixture(scope="module")
def transformer():
    return made_by("attend", "rotate", "heads", "mlp", "block", "model")["Transformer"]


def test_the_transformer_is_a_llama(transformer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        tie_word_embeddings=True,
        initializer_range=0.2,  # Llama rounds its norms to single precision: larger numbers would show it
    )
    llama, ours = LlamaForCausalLM(config).double().eval(), transformer(60, 24, 40, 3, 3).double()
    weights = {n.removeprefix("model."): w for n, w in llama.state_dict().items() if n != "lm_head.weight"}
    ours.load_state_dict(weights)
    ids = torch.randint(60, (2, 50))
    with torch.inference_mode():
        assert (ours(ids) - llama(ids).logits).abs().max() < 1e-5


def test_no_position_sees_a_later_one(transformer):
    torch.manual_seed(0)
    model, ids = transformer(30, 16, 20, 2, 2), torch.randint(29, (1, 12))
    changed = ids.clone()
    changed[0, 7] = 29
    with torch.inference_mode():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_the_cells_of_the_transformer_are_short():
    assert all(len(CELLS[id].splitlines()) <= 12 for id in ("heads", "mlp", "block", "model"))
    assert all(len(CELLS[id].split("\n\n\n")[0].splitlines()) <= 12 for id in ("attend", "rotate"))


def test_the_merges_are_those_of_the_tokenizers_library(capsys):
    """The same words, the same merges, in the same order."""
    ours = made_by("bpe-code", "bpe-train", bottle=bottle, pretrain=pretrain)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r" ?\S+|\n"), "isolated")
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([parts, byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256 + 60, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([ours["text"]], trainer)
    decode = tokenizers.decoders.ByteLevel().decode
    theirs = {decode([token]) for token, id in bpe.get_vocab().items() if id >= 256}
    mine = [(left + right).decode(errors="replace") for (left, right), _ in ours["merges"][:60]]
    assert len(theirs & set(mine)) >= 57  # the order of equal counts is free


def test_what_bert_must_predict():
    scope = made_by("bert-mask", MASK=100, rows=None, bert=None)
    ids = torch.randint(3, 100, (400, 50), generator=torch.Generator().manual_seed(0))
    shown, hidden = scope["hide"](ids, torch.Generator().manual_seed(1))
    assert torch.equal(shown[~hidden], ids[~hidden])  # nothing else is touched
    assert abs(hidden.float().mean() - 0.15) < 0.01
    assert abs((shown[hidden] == 100).float().mean() - 0.8) < 0.02
    assert abs((shown[hidden] == ids[hidden]).float().mean() - 0.1) < 0.02
