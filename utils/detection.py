"""Is this text a model's? A watermark put in while the text is drawn (Kirchenbauer et al. 2023, arXiv 2301.10226), and perplexity.

The token before a token seeds a generator, which deals the share GAMMA of the vocabulary into a green list; the watermark
adds DELTA to the logits of green tokens. Who knows the key counts them. Green lists are those of transformers' `WatermarkLogitsProcessor`.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from utils import decoding, evaluation, prompting

GAMMA, DELTA, KEY = (
    0.25,
    2.0,
    15485863,
)  # share of the vocabulary that is green, bonus in nats, what only the owner knows


def green_list(previous: int, vocabulary: int, gamma: float = GAMMA, key: int = KEY) -> Tensor:
    """The green tokens after the token `previous`: (gamma * vocabulary,)."""
    generator = torch.Generator().manual_seed(key * int(previous) % (2**64 - 1))
    return torch.randperm(vocabulary, generator=generator)[: int(vocabulary * gamma)]


def marked(logits: Tensor, ids: Tensor, gamma: float = GAMMA, delta: float = DELTA, key: int = KEY) -> Tensor:
    """Next-token logits (batch, vocabulary) with the watermark; ids (batch, tokens) are the texts so far."""
    logits = logits.clone()
    for row, previous in zip(logits, ids[:, -1].tolist(), strict=True):
        row[green_list(previous, len(row), gamma, key)] += delta
    return logits


def watermarker(generator: torch.Generator | None = None, top_p: float = 0.95, delta: float = DELTA) -> Callable:
    """A `choose` for `decoding.stream`: nucleus sampling from the marked distribution."""

    def choose(logits: Tensor, ids: Tensor) -> Tensor:
        probabilities = decoding.warp(marked(logits, ids, delta=delta), top_p=top_p).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return choose


def greens(texts: list[list[int]], vocabulary: int, gamma: float = GAMMA, key: int = KEY) -> list[Tensor]:
    """Which tokens of each text are green: a bool tensor (tokens - 1,) a text, for the first token has none before it."""
    found = [torch.zeros(max(0, len(text) - 1), dtype=torch.bool) for text in texts]
    places: dict[int, list] = {}
    for i, text in enumerate(texts):
        for j, (previous, token) in enumerate(pairwise(text)):
            places.setdefault(previous, []).append((i, j, token))
    for previous, where in places.items():  # each list is dealt once for all texts
        green = torch.zeros(vocabulary, dtype=torch.bool)
        green[green_list(previous, vocabulary, gamma, key)] = True
        for i, j, token in where:
            found[i][j] = green[token]
    return found


def z_score(green: Tensor, gamma: float = GAMMA) -> float:
    """How many standard deviations more green tokens than chance gives: green (tokens,) of a text, as `greens` finds them."""
    return (green.sum().item() - gamma * len(green)) / (len(green) * gamma * (1 - gamma)) ** 0.5


# ---- Texts to tell apart --------------------------------------------------------------------------------------------


def write(model, tokenizer, prompts: Tensor, new_tokens: int, seed: int = 0) -> list[list[int]]:
    """Continue prompts (texts, tokens) with the watermark: the new tokens of each text, up to its end."""
    choose = watermarker(torch.Generator().manual_seed(seed))
    return _until_end(torch.stack(list(decoding.stream(model, prompts, new_tokens, choose)), 1), tokenizer)


def _until_end(new: Tensor, tokenizer) -> list[list[int]]:
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in new.tolist()]


def paraphrase(model, tokenizer, texts: list[list[int]], longest: int = 100, seed: int = 0) -> list[list[int]]:
    """The first `longest` tokens of each text, rewritten by the model in other words, without a watermark."""
    ask = "Rewrite this text in your own words, about as long:\n\n"
    prompts = [prompting.chat(tokenizer, ask + tokenizer.decode(text[:longest])) for text in texts]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = decoding.sample(
        model,
        batch.input_ids,
        longest,
        top_p=0.95,
        generator=torch.Generator().manual_seed(seed),
        attention_mask=batch.attention_mask,
    )
    return _until_end(out[:, batch.input_ids.shape[1] :], tokenizer)


def scored(model, texts: list[list[int]]) -> list[dict]:
    """A row a text: its tokens, and the log-probability of each but the first under the model, which sees nothing before it."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    found = evaluation.token_logprobs(model, ids, mask)
    return [
        dict(text=i, tokens=text, logprobs=[round(p, 3) for p in row[: max(0, len(text) - 1)]])
        for i, (text, row) in enumerate(zip(texts, found.tolist(), strict=True))
    ]


def replaced(texts: list[list[int]], share: float, seed: int = 0) -> list[list[int]]:
    """The texts with this share of their tokens replaced by tokens drawn from all of them: what an editor does, at its crudest."""
    generator, pool = torch.Generator().manual_seed(seed), torch.tensor([token for text in texts for token in text])
    found = []
    for text in texts:
        ids, hit = torch.tensor(text), torch.rand(len(text), generator=generator) < share
        new = pool[torch.randint(len(pool), (len(text),), generator=generator)]
        found.append(torch.where(hit, new, ids).tolist())
    return found
