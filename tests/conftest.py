"""Models that several tests share."""

import os
import shutil

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils import models

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def pytest_terminal_summary(terminalreporter):
    """Report what tests have recorded: how long the widgets took to answer."""
    for report in terminalreporter.stats.get("passed", []):
        for name, took in report.user_properties:
            words = ", ".join(f"{what} {seconds:.2f}" for what, seconds in took.items())
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}, {name}: {words}")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; without one its tests are skipped, and fail in CI."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Exception as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"BROWSER TESTS SKIPPED, no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def smollm2():
    return models.load("smollm2")


def tiny(seed: int, layers: int = 2, vocabulary: int = 50, eos: int | None = 2) -> LlamaForCausalLM:
    """A random Llama with opinions (large weights), so that greedy paths vary and texts end at different lengths."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        eos_token_id=eos,
        pad_token_id=1,  # not 0: `generate` takes a pad id of 0 for none in beam search
        bos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def words(count: int = 50) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words for `tiny` models: <b> <pad> <e> w3 w4 ..., a text begins with <b>."""
    names = ["<b>", "<pad>", "<e>", *(f"w{i}" for i in range(3, count))]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<b> $A", special_tokens=[("<b>", 0)])
    special = dict(bos_token="<b>", eos_token="<e>", pad_token="<pad>", padding_side="left")
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)
