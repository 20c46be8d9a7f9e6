"""The watermark is transformers' own, and what is counted is what was put in."""

import pytest
import torch
from transformers import WatermarkDetector, WatermarkingConfig

from tests.conftest import tiny, words
from utils import decoding, detection

CONFIG = WatermarkingConfig(greenlist_ratio=detection.GAMMA, bias=detection.DELTA, hashing_key=detection.KEY)


def test_the_watermark_is_transformers():
    model = tiny(0, eos=None)
    prompts = torch.randint(3, 50, (4, 5))
    theirs = model.generate(prompts, max_new_tokens=20, do_sample=False, watermarking_config=CONFIG)
    choose = lambda logits, ids: detection.marked(logits, ids).argmax(-1)  # noqa: E731
    ours = torch.stack(list(decoding.stream(model, prompts, 20, choose)), 1)
    assert torch.equal(ours, theirs[:, 5:])
    plain = decoding.greedy(model, prompts, 20)
    assert not torch.equal(plain, theirs)


def test_the_score_is_transformers():
    model, texts = tiny(0), torch.randint(3, 50, (6, 40))
    found = WatermarkDetector(model.config, "cpu", CONFIG)(texts, return_dict=True)
    ours = detection.greens(texts.tolist(), 50)
    assert [int(green.sum()) for green in ours] == found.num_green_tokens.tolist()
    assert [detection.z_score(green) for green in ours] == pytest.approx(found.z_score.tolist())


def test_marked_text_is_found_and_edits_hide_it():
    model = tiny(0, eos=None)
    prompts = torch.randint(3, 50, (3, 5))
    texts = detection.write(model, words(), prompts, 60)
    score = lambda texts: [detection.z_score(green) for green in detection.greens(texts, 50)]  # noqa: E731
    assert min(score(texts)) > 2 and max(score(detection.replaced(texts, 1.0))) < 4
    assert detection.replaced(texts, 0.0) == texts
    assert sum(score(detection.replaced(texts, 0.5))) < sum(score(texts))


def test_scored_texts_of_any_length():
    model = tiny(0)
    texts = [[5, 6, 7, 8, 9], [5, 6]]
    rows = detection.scored(model, texts)
    assert [len(row["logprobs"]) for row in rows] == [4, 1]
    assert rows[0]["logprobs"][0] == pytest.approx(rows[1]["logprobs"][0], abs=2e-3)
