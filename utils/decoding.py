"""Decoding: from next-token logits to text.

Every decoder takes prompts `input_ids` (batch, prompt) and returns (batch, prompt + new), the prompt followed by its
continuation, as transformers' `generate` does and token for token what `generate` returns (tests/test_decoding.py).
Prompts of different lengths are padded on the left and need `attention_mask` (batch, prompt; 1 = token, 0 = padding).
A row ends at the model's end-of-sequence token (not with `ignore_eos`), and is padded behind it.

Choices: keys and values are kept in memory that is reserved ahead (transformers' DynamicCache copies them all for every
token); logits are computed for the last position only; nucleus sampling sorts the 1,024 likeliest tokens and the whole
vocabulary only where these do not hold enough; beam search reads the prompt once, not once per beam.
"""

from collections.abc import Callable, Iterator

import regex
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer


class _Reserved(DynamicLayer):
    """Keys and values of one layer, (batch, heads, tokens, head size) each, in memory that is reserved ahead."""

    room = 128

    def update(self, keys: Tensor, values: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + keys.shape[2]
        if not self.is_initialized or self.memory.shape[3] < end:
            memory = keys.new_empty(2, *keys.shape[:2], end + max(self.room, start), keys.shape[3])
            if self.is_initialized:
                memory[:, :, :, :start] = self.memory[:, :, :, :start]
            self.memory, self.is_initialized = memory, True
            self.dtype, self.device = keys.dtype, keys.device
        self.memory[0, :, :, start:end] = keys
        self.memory[1, :, :, start:end] = values
        return self._show(end)

    def _show(self, tokens: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.memory[0, :, :, :tokens], self.memory[1, :, :, :tokens]
        return self.keys, self.values

    def take(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        tokens = self.get_seq_length()
        if len(rows) == self.memory.shape[1]:  # most beams go on from themselves: move the others only
            moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
            self.memory[:, moved, :, :tokens] = self.memory[:, rows[moved], :, :tokens]
            return
        memory = self.memory.new_empty(2, len(rows), *self.memory.shape[2:])
        memory[:, :, :, :tokens] = self.memory[:, rows, :, :tokens]
        self.memory = memory
        self._show(tokens)


class _Reader:
    """A model that reads on: `read(ids)` returns the logits of the last position, (batch, vocabulary)."""

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, prefix: Tensor | None = None
    ):
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise ValueError(
                f"input_ids must be (batch, prompt) with at least one token, not {tuple(input_ids.shape)}."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask {tuple(attention_mask.shape)} must have input_ids' shape {tuple(input_ids.shape)}."
            )
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("Pad the prompts on the left: the last column of attention_mask must be all ones.")
        self.model = model
        self.cache = Cache(layer_class_to_replicate=_Reserved)
        padded = attention_mask is not None and not bool(attention_mask.all())
        self.mask = None
        if prefix is not None:  # read once, then the same keys and values for every row
            self.model(prefix, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.take(prefix.new_zeros(len(input_ids)))
        if padded:
            seen = attention_mask.new_ones(len(input_ids), self.cache.get_seq_length())
            self.mask = torch.cat([seen, attention_mask], dim=1)

    def read(self, ids: Tensor, keep: int = 1) -> Tensor:
        extra = {}
        if self.mask is not None:
            if self.mask.shape[1] == self.cache.get_seq_length():
                self.mask = torch.cat([self.mask, self.mask.new_ones(ids.shape)], dim=1)
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            extra = {"attention_mask": self.mask, "position_ids": positions}
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=keep, **extra)
        return out.logits[:, -1].float() if keep == 1 else out.logits.float()

    def take(self, rows: Tensor) -> None:
        for layer in self.cache.layers:
            layer.take(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]


def _special(model: PreTrainedModel, ignore_eos: bool) -> tuple[list[int], int]:
    """The ids that end a text, and the one that fills the row behind it."""
    eos = model.generation_config.eos_token_id
    eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = model.generation_config.pad_token_id
    return ([] if ignore_eos else eos), (pad if pad is not None else eos[0] if eos else 0)


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    input_ids: Tensor,
    max_new_tokens: int,
    choose: Callable[[Tensor, Tensor], Tensor],
    attention_mask: Tensor | None = None,
    ignore_eos: bool = False,
    stop: Callable[[Tensor], Tensor] | None = None,
    prefix: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield one token for each row, (batch,), as soon as it is chosen, until every row has ended.

    `choose(logits, ids)` picks them: logits (batch, vocabulary), ids (batch, tokens so far) -> (batch,).
    `stop(ids)` says which rows have just ended besides those at the end-of-sequence token: ids -> bool (batch,).
    `prefix` (1, tokens): a beginning that all prompts share and `input_ids` leave out: it is read once for all of them.
    """
    reader, ids = _Reader(model, input_ids, attention_mask, prefix), input_ids
    eos, pad = _special(model, ignore_eos)
    eos = torch.tensor(eos, dtype=torch.long, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    new = ids
    for _ in range(max_new_tokens):
        token = choose(reader.read(new), ids).masked_fill(ended, pad)
        yield token
        new = token[:, None]
        ids = torch.cat([ids, new], dim=1)
        ended = ended | torch.isin(token, eos)
        if stop is not None:
            ended = ended | stop(ids)
        if ended.all():
            return


def greedy(model, input_ids, max_new_tokens, repetition_penalty=1.0, **options) -> Tensor:
    """The likeliest token, at every step. `options`: attention_mask, ignore_eos, stop, prefix, as in `stream`."""

    def choose(logits: Tensor, ids: Tensor) -> Tensor:
        return penalize_repeats(logits, ids, repetition_penalty, options.get("attention_mask")).argmax(-1)

    return _collect(input_ids, stream(model, input_ids, max_new_tokens, choose, **options))


def sample(
    model,
    input_ids,
    max_new_tokens,
    temperature=1.0,
    top_k=None,
    top_p=None,
    min_p=None,
    generator=None,
    repetition_penalty=1.0,
    **options,
) -> Tensor:
    """Draw each token from the next-token distribution after `warp`. `options`: as in `stream`."""

    def choose(logits: Tensor, ids: Tensor) -> Tensor:
        logits = penalize_repeats(logits, ids, repetition_penalty, options.get("attention_mask"))
        probabilities = warp(logits, temperature, top_k, top_p, min_p).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return _collect(input_ids, stream(model, input_ids, max_new_tokens, choose, **options))


def _collect(input_ids: Tensor, tokens: Iterator[Tensor]) -> Tensor:
    return torch.cat([input_ids, *(token[:, None] for token in tokens)], dim=1)


def warp(logits: Tensor, temperature=1.0, top_k=None, top_p=None, min_p=None) -> Tensor:
    """Temperature, then top-k, top-p and min-p: logits (batch, vocabulary), -inf where a token is cut off."""
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0, not {temperature}: for the likeliest token use greedy decoding."
        )
    if top_p is not None and not 0 < top_p <= 1 or min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"top_p and min_p are probabilities between 0 and 1, not {top_p} and {min_p}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must keep at least 1 token, not {top_k}.")
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p:
        logits = keep_min_p(logits, min_p)
    return logits


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens (Fan et al. 2018)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: the smallest set of likeliest tokens that holds probability p (Holtzman et al. 2020)."""
    probabilities = logits.softmax(-1)
    for size in (min(1024, logits.shape[-1]), logits.shape[-1]):
        largest, index = probabilities.topk(size)
        before = largest.cumsum(-1) - largest  # what the likelier tokens hold
        if (before[..., -1] >= p).all():
            break
    cut = torch.ones_like(logits, dtype=torch.bool).scatter(-1, index, before >= p)
    return logits.masked_fill(cut, -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least p times as probable as the likeliest one (Nguyen et al. 2024)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def penalize_repeats(logits: Tensor, ids: Tensor, penalty: float, attention_mask: Tensor | None = None) -> Tensor:
    """Make the tokens of `ids` (batch, tokens) less likely by the factor `penalty` (Keskar et al. 2019).

    `attention_mask` (batch, prompt): padding is not penalised; its id often is that of the end of the text.
    """
    if penalty == 1:
        return logits
    if attention_mask is not None:
        prompt = attention_mask.shape[1]
        real = ids[:, :prompt].where(attention_mask.bool(), ids[:, prompt - 1 : prompt])
        ids = torch.cat([real, ids[:, prompt:]], dim=1)
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def stop_at(tokenizer, strings: list[str], prompt_length: int) -> Callable[[Tensor], Tensor]:
    """A `stop` for `stream`: a row ends when one of the strings stands in its new text."""

    def stop(ids: Tensor) -> Tensor:
        texts = tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=True)
        return torch.tensor([any(string in text for string in strings) for text in texts], device=ids.device)

    return stop


def constrained(tokenizer, pattern: str, prompt_length: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A `choose` for `stream`, one text at a time: the likeliest token with which the new text can still match `pattern`.

    When the pattern is matched whole, the text ends.
    """
    form = regex.compile(pattern)

    def choose(logits: Tensor, ids: Tensor) -> Tensor:
        text = tokenizer.decode(ids[0, prompt_length:])
        if form.fullmatch(text):
            return torch.tensor([tokenizer.eos_token_id], device=ids.device)
        for token in logits[0].argsort(descending=True).tolist():  # a tensor would be taken apart whole: 0.1 s
            word = tokenizer.decode(token)
            if word and form.fullmatch(text + word, partial=True):
                return torch.tensor([token], device=ids.device)
        raise ValueError(f"No token of the vocabulary continues {text!r} to a match of {pattern!r}.")

    return choose


@torch.inference_mode()
def beam_search(
    model, input_ids, max_new_tokens, num_beams, attention_mask=None, length_penalty=1.0, ignore_eos=False
) -> Tensor:
    """The best of the texts found by extending the `num_beams` likeliest beginnings at every step.

    Ended texts compete by log-probability / length ** length_penalty; the search ends when no running beam can, at its
    present length, beat the worst of the `num_beams` ended texts.
    """
    if max_new_tokens < 1:
        return input_ids
    batch, prompt = input_ids.shape
    beams, device = num_beams, input_ids.device
    eos, pad = _special(model, ignore_eos)
    eos = torch.tensor(eos, dtype=torch.long, device=device)
    rows = torch.arange(batch, device=device).repeat_interleave(beams)
    among_best = torch.arange(2 * beams, device=device) < beams

    running = input_ids[rows].view(batch, beams, -1)
    scores = torch.zeros(batch, beams, device=device)
    scores[:, 1:] = -1e9  # at first all beams are the prompt: only one of them counts
    done = torch.full((batch, beams, prompt + max_new_tokens), pad, device=device)
    done_scores = torch.full((batch, beams), -1e9, device=device)
    undecided = torch.ones(batch, 1, dtype=torch.bool, device=device)
    lengths = torch.zeros(batch, beams, dtype=torch.long, device=device)

    reader = _Reader(model, input_ids, attention_mask)
    logits = reader.read(input_ids)
    reader.take(rows)
    logits = logits[rows]
    for step in range(1, max_new_tokens + 1):
        log_probs = logits.log_softmax(-1).view(batch, beams, -1) + scores[:, :, None]
        best, index = log_probs.view(batch, -1).topk(2 * beams)  # twice as many: half of them may end here
        beam, token = index // logits.shape[-1], index % logits.shape[-1]
        longer = torch.cat([_take(running, beam), token[:, :, None]], dim=2)
        ended = torch.isin(token, eos) if step < max_new_tokens else torch.ones_like(token, dtype=torch.bool)

        final = torch.where(ended & among_best & undecided, best / step**length_penalty, -1e9)
        done_scores, keep = torch.cat([done_scores, final], dim=1).topk(beams)
        lengths = torch.cat([lengths, torch.full_like(token, step)], dim=1).gather(1, keep)
        padded = torch.nn.functional.pad(longer, (0, max_new_tokens - step), value=pad)
        done = _take(torch.cat([done, padded], dim=1), keep)

        scores, keep = (best - 1e9 * ended).topk(beams)
        running, beam = _take(longer, keep), beam.gather(1, keep)
        undecided = undecided & (scores[:, :1] / step**length_penalty > done_scores[:, -1:])
        if step == max_new_tokens or not undecided.any():
            break
        reader.take((beam + beams * torch.arange(batch, device=device)[:, None]).flatten())
        logits = reader.read(running[:, :, -1].reshape(-1, 1))
    return done[:, 0, : prompt + int(lengths[:, 0].max())]


def _take(sequences: Tensor, index: Tensor) -> Tensor:
    """sequences (batch, n, tokens), index (batch, m) -> (batch, m, tokens)."""
    return sequences.gather(1, index[:, :, None].expand(-1, -1, sequences.shape[-1]))


@torch.inference_mode()
def speculative(
    model,
    draft,
    input_ids,
    max_new_tokens,
    gamma=5,
    temperature=0.0,
    top_k=None,
    top_p=None,
    min_p=None,
    generator=None,
    ignore_eos=False,
    accepted: list[int] | None = None,
) -> Tensor:
    """Let `draft` guess up to `gamma` tokens, which the model checks in one pass (Leviathan et al. 2022).

    The text has exactly the distribution of `sample` with the same settings (of `greedy` at temperature 0), whatever
    the draft. `draft` is a smaller model with the same vocabulary, or a function draft(ids (1, tokens), gamma) ->
    (guesses (m,), their distributions (m, vocabulary), or None for a draft that is certain). One prompt at a time:
    input_ids (1, prompt).
    `accepted` collects how many guesses each pass accepted.
    """
    if len(input_ids) != 1:
        raise ValueError(f"Speculative decoding takes one prompt at a time, not {len(input_ids)}.")
    if isinstance(draft, torch.nn.Module):
        draft = model_draft(draft, temperature, top_k, top_p, min_p, generator)

    def distribution(logits: Tensor) -> Tensor:
        return _distribution(logits, temperature, top_k, top_p, min_p)

    eos, _ = _special(model, ignore_eos)
    reader, ids, new = _Reader(model, input_ids, None), input_ids, input_ids
    end = input_ids.shape[1] + max_new_tokens
    while ids.shape[1] < end:
        guesses, certainty = draft(ids, min(gamma, end - ids.shape[1] - 1))
        count = len(guesses)
        logits = reader.read(torch.cat([new, guesses[None]], dim=1), keep=count + 1)
        logits = logits if logits.ndim == 3 else logits[:, None]
        target = distribution(logits[0])
        if certainty is None:
            certainty = torch.nn.functional.one_hot(guesses, target.shape[-1]).float()
        good, next_token = accept(target, certainty, guesses, generator)
        if accepted is not None:
            accepted.append(good)
        fresh = torch.cat([guesses[:good], next_token])
        ends = [i for i, token in enumerate(fresh.tolist()) if token in eos]
        ids = torch.cat([ids, (fresh[: ends[0] + 1] if ends else fresh)[None]], dim=1)
        if ends:
            break
        reader.cache.crop(good - count)
        new = ids[:, -1:]
    return ids


def accept(target: Tensor, certainty: Tensor, guesses: Tensor, generator=None) -> tuple[int, Tensor]:
    """Keep a beginning of the `guesses` (m,), and draw the token after it, so that both are distributed as `target`.

    target (m + 1, vocabulary): the model's next-token probabilities at each guess and after the last; certainty (m,
    vocabulary): the draft's. A guess x is kept with probability min(1, target(x) / certainty(x)); the token in place of
    the first that is not is drawn from max(0, target - certainty), rescaled. Returns (number kept, next token (1,)).
    """
    for i, guess in enumerate(guesses.tolist()):
        ratio = target[i, guess] / certainty[i, guess]
        if torch.rand((), generator=generator, device=target.device) >= ratio:
            rest = (target[i] - certainty[i]).clamp(min=0)
            return i, torch.multinomial(rest, 1, generator=generator)
    return len(guesses), torch.multinomial(target[-1], 1, generator=generator)


def _distribution(logits: Tensor, temperature, top_k, top_p, min_p) -> Tensor:
    """Next-token probabilities (..., vocabulary); at temperature 0 all of it on the likeliest token."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return warp(logits, temperature, top_k, top_p, min_p).softmax(-1)


def lookup_draft(length: int = 3) -> Callable:
    """A draft without a model: what followed the last time that the text's final n-gram, n <= length, occurred."""

    def draft(ids: Tensor, gamma: int) -> tuple[Tensor, None]:
        text = ids[0]
        for n in range(min(length, len(text) - 1), 0, -1):
            found = (text.unfold(0, n, 1)[:-1] == text[-n:]).all(1).nonzero()
            if len(found):
                start = int(found[-1]) + n
                return text[start : start + gamma], None
        return text[:0], None

    return draft


def model_draft(model, temperature=0.0, top_k=None, top_p=None, min_p=None, generator=None) -> Callable:
    """A smaller model as the draft: it guesses by the settings that the large model will be sampled with."""
    reader = None

    def draft(ids: Tensor, gamma: int) -> tuple[Tensor, Tensor]:
        nonlocal reader
        known = reader.cache.get_seq_length() if reader else 0
        if not reader or known >= ids.shape[1]:
            reader, known = _Reader(model, ids, None), 0
        guesses, certainty, new = [], [], ids[:, known:]
        for _ in range(gamma):
            certainty.append(_distribution(reader.read(new), temperature, top_k, top_p, min_p))
            new = torch.multinomial(certainty[-1], 1, generator=generator)
            guesses.append(new[0])
        reader.cache.crop(
            min(0, ids.shape[1] - reader.cache.get_seq_length())
        )  # forget the guesses: some may be rejected
        if not guesses:
            return ids[0, :0], None
        return torch.cat(guesses), torch.cat(certainty)

    return draft
