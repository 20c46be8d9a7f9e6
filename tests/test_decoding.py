"""Our decoders return the tokens that transformers' `generate` returns."""

import re

import pytest
import torch
from scipy.stats import chisquare

from tests.conftest import tiny, words
from utils import decoding

PROMPTS = ["The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "In 1969, the first human"]
NEW = 20


def batches(tokenizer):
    """Each prompt alone, and all four with left padding."""
    for prompts in [[p] for p in PROMPTS[:2]] + [PROMPTS]:
        yield tokenizer(prompts, return_tensors="pt", padding=True)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_generate(smollm2, penalty):
    model, tokenizer = smollm2
    for x in batches(tokenizer):
        ours = decoding.greedy(model, x.input_ids, NEW, repetition_penalty=penalty, attention_mask=x.attention_mask)
        theirs = model.generate(**x, max_new_tokens=NEW, do_sample=False, repetition_penalty=penalty)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 20},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_sample_is_generate(smollm2, settings):
    model, tokenizer = smollm2
    for x in batches(tokenizer):
        generator = torch.Generator().manual_seed(3)
        ours = decoding.sample(
            model, x.input_ids, NEW, attention_mask=x.attention_mask, generator=generator, **settings
        )
        torch.manual_seed(3)
        theirs = model.generate(**x, max_new_tokens=NEW, do_sample=True, **{"top_k": 0} | settings)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beam_search_is_generate(smollm2, beams, length_penalty):
    model, tokenizer = smollm2
    for x in batches(tokenizer):
        ours = decoding.beam_search(
            model, x.input_ids, 12, beams, attention_mask=x.attention_mask, length_penalty=length_penalty
        )
        theirs = model.generate(**x, max_new_tokens=12, num_beams=beams, do_sample=False, length_penalty=length_penalty)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(6))
def test_texts_that_end_early(seed):
    """On a small random model texts end everywhere: padding, ended beams and early stopping all count."""
    model = tiny(seed, vocabulary=12)
    ids = torch.randint(3, 12, (4, 5), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(decoding.greedy(model, ids, 30), model.generate(ids, max_new_tokens=30, do_sample=False))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    theirs = model.generate(ids, max_new_tokens=30, do_sample=True, top_k=0)
    assert torch.equal(decoding.sample(model, ids, 30, generator=generator), theirs)
    for beams in (2, 3, 5):
        for length_penalty in (0.0, 1.0, 2.0):
            ours = decoding.beam_search(model, ids, 15, beams, length_penalty=length_penalty)
            theirs = model.generate(
                ids, max_new_tokens=15, num_beams=beams, do_sample=False, length_penalty=length_penalty
            )
            assert torch.equal(ours, theirs), (beams, length_penalty)


def test_memory_grows_past_what_was_reserved():
    model = tiny(0, eos=None)
    ids = torch.randint(3, 50, (2, 7))
    assert torch.equal(decoding.greedy(model, ids, 400), model.generate(ids, max_new_tokens=400, do_sample=False))


def test_ignore_eos_goes_on():
    model = tiny(0, vocabulary=12)
    ids = torch.randint(3, 12, (4, 5), generator=torch.Generator().manual_seed(0))
    ended = decoding.greedy(model, ids, 40)
    model.generation_config.eos_token_id = None
    theirs = model.generate(ids, max_new_tokens=40, do_sample=False)
    model.generation_config.eos_token_id = 2
    ours = decoding.greedy(model, ids, 40, ignore_eos=True)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours[:, : ended.shape[1]], ended)


def test_stop_strings_are_generates(smollm2):
    model, tokenizer = smollm2
    x = tokenizer("The colours of the rainbow are red,", return_tensors="pt")
    stop = decoding.stop_at(tokenizer, ["blue"], x.input_ids.shape[1])
    ours = decoding.greedy(model, x.input_ids, 30, stop=stop)
    theirs = model.generate(**x, max_new_tokens=30, do_sample=False, stop_strings=["blue"], tokenizer=tokenizer)
    assert torch.equal(ours, theirs)
    assert tokenizer.decode(ours[0]).endswith("blue")


def test_stream_yields_at_once(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("One, two,", return_tensors="pt").input_ids
    tokens = decoding.stream(model, ids, 1000, lambda logits, ids: logits.argmax(-1))
    first = [next(tokens) for _ in range(3)]
    assert torch.equal(torch.stack(first, 1), decoding.greedy(model, ids, 3)[:, -3:])


def test_top_p_where_the_nucleus_is_larger_than_the_shortcut():
    flat = 0.01 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    kept = (decoding.keep_top_p(flat, 0.9) > -torch.inf).sum(-1)
    assert ((kept > 4000) & (kept < 4600)).all()


# speculative decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1, 4])
@pytest.mark.parametrize("draft", ["lookup", "other model", "itself"])
def test_speculative_greedy_is_greedy(draft, gamma):
    model = tiny(0, eos=None)
    other = {"lookup": decoding.lookup_draft(), "other model": tiny(1, eos=None), "itself": model}[draft]
    for seed in range(3):
        ids = torch.randint(3, 50, (1, 9), generator=torch.Generator().manual_seed(seed))
        accepted = []
        ours = decoding.speculative(model, other, ids, 50, gamma=gamma, accepted=accepted)
        assert torch.equal(ours, decoding.greedy(model, ids, 50))
        assert sum(accepted) + len(accepted) == 50
        assert draft != "itself" or sum(accepted) == 50 - len(accepted) and len(accepted) <= 50 // (gamma + 1) + 1


def test_speculative_is_generates_prompt_lookup(smollm2):
    model, tokenizer = smollm2
    x = tokenizer("The cat sat on the mat. The dog sat on the mat. The cat", return_tensors="pt")
    theirs = model.generate(**x, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(decoding.speculative(model, decoding.lookup_draft(), x.input_ids, 20, gamma=4), theirs)


def test_speculative_stops_at_the_end_of_sequence():
    model = tiny(3, vocabulary=12)
    for seed in range(8):
        ids = torch.randint(3, 12, (1, 5), generator=torch.Generator().manual_seed(seed))
        ours = decoding.speculative(model, decoding.lookup_draft(1), ids, 30)
        assert torch.equal(ours, decoding.greedy(model, ids, 30))


def test_accept_keeps_the_models_distribution():
    """Chi-square on a toy distribution: whatever the draft, what comes out is distributed as the model says."""
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0.4, 0.3, 0.2, 0.1])
    for draft in ([0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]):
        draft = torch.tensor(draft)
        counts = torch.zeros(4)
        for _ in range(8000):
            guess = torch.multinomial(draft, 1, generator=generator)
            good, token = decoding.accept(target.expand(2, -1), draft[None], guess, generator)
            counts[guess if good else token] += 1
        assert chisquare(counts, 8000 * target).pvalue > 0.001


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 4}], ids=str)
def test_speculative_sampling_is_sampling(settings):
    """The joint distribution of two tokens by speculative sampling, against the exact one."""
    model, draft = tiny(5, vocabulary=6, eos=None), tiny(6, layers=1, vocabulary=6, eos=None)
    ids, runs = torch.tensor([[3, 4, 5]]), 1500
    with torch.inference_mode():
        first = decoding.warp(model(ids).logits[:, -1], **settings).softmax(-1)[0]
        after = torch.cat([ids.expand(6, -1), torch.arange(6)[:, None]], dim=1)
        exact = first[:, None] * decoding.warp(model(after).logits[:, -1], **settings).softmax(-1)
    generator, counts = torch.Generator().manual_seed(1), torch.zeros(6, 6)
    for _ in range(runs):
        out = decoding.speculative(model, draft, ids, 2, gamma=2, generator=generator, **settings)
        counts[out[0, 3], out[0, 4]] += 1
    assert (counts[exact == 0] == 0).all()
    likely = runs * exact >= 5  # chi-square needs expected counts; the rest is one cell
    observed = [*counts[likely].tolist(), counts[~likely].sum().item()]
    expected = [*(runs * exact)[likely].tolist(), (runs * exact)[~likely].sum().item()]
    observed, expected = zip(*[(o, e) for o, e in zip(observed, expected, strict=True) if e > 0], strict=True)
    assert chisquare(observed, expected, sum_check=False).pvalue > 0.001


# errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: decoding.sample(m, x, 2, temperature=0), "greedy"),
        (lambda m, x: decoding.sample(m, x, 2, top_p=1.5), "between 0 and 1"),
        (lambda m, x: decoding.sample(m, x, 2, top_k=0), "at least 1"),
        (lambda m, x: decoding.greedy(m, x[0], 2), "(batch, prompt)"),
        (lambda m, x: decoding.greedy(m, x, 2, attention_mask=torch.ones(1, 3)), "attention_mask"),
        (lambda m, x: decoding.greedy(m, x, 2, attention_mask=torch.tensor([[1, 1, 1, 0]] * 2)), "left"),
        (lambda m, x: decoding.speculative(m, m, x, 2), "one prompt"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call(tiny(0), torch.tensor([[3, 4, 5, 6]] * 2))


def test_constrained_text_matches_its_pattern(smollm2):
    model, tokenizer = smollm2
    pattern = r'\{"sum": "[0-9 +]{3,9}"\}'
    ids = tokenizer("Write 12 + 7 as JSON:", return_tensors="pt").input_ids
    choose = decoding.constrained(tokenizer, pattern, ids.shape[1])
    text = tokenizer.decode(torch.cat(list(decoding.stream(model, ids, 30, choose))), skip_special_tokens=True)
    assert re.fullmatch(pattern, text)
    with pytest.raises(ValueError, match="No token"):
        list(decoding.stream(tiny(0), torch.tensor([[3]]), 1, decoding.constrained(words(), "z", 1)))
