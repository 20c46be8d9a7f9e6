"""The course's interactive widgets. Each draws with a function of utils/plots.py, so that the notebook can show the
same picture where no widget runs.

What a model or a student wrote is escaped before it reaches the page.
"""

import io
from collections.abc import Callable, Iterator
from html import escape

import IPython
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from utils import (
    bottle,
    claims,
    decoding,
    evaluation,
    flan,
    models,
    plots,
    preference,
    prompting,
    retrieval,
    rlhf,
    scaling,
    vision,
)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes; it is closed."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    plt.close(figure)
    return data.getvalue()


@torch.inference_mode()
def next_logits(model, tokenizer, text: str) -> torch.Tensor:
    """Logits of the token after `text`, (1, vocabulary); an empty text is read as the beginning of a document."""
    ids = tokenizer(text or tokenizer.bos_token, return_tensors="pt").input_ids.to(model.device)
    return model(ids, logits_to_keep=1).logits[:, -1].float()


def show_distribution(tokenizer, logits: torch.Tensor, shown: int = 20, **settings) -> Figure:
    """The `shown` likeliest tokens before and after `decoding.warp(logits, **settings)`; logits (1, vocabulary)."""
    before, after = logits.softmax(-1)[0], decoding.warp(logits, **settings).softmax(-1)[0]
    order = before.topk(shown).indices
    kept = after > 0
    entropy = torch.special.entr(after).sum()
    title = f"{int(kept.sum()):,} tokens kept, {before[kept].sum():.1%} of the model's mass; entropy {entropy:.2f} nats"
    tokens = [tokenizer.decode(i) for i in order]
    return plots.distribution(tokens, before[order].tolist(), after[order].tolist(), title)


def distribution_explorer(model, tokenizer, text: str) -> ipywidgets.Widget:
    """Move temperature, top-k, top-p and min-p together and see the next-token distribution; draw tokens from it."""
    state = {"logits": next_logits(model, tokenizer, text)}
    prompt = ipywidgets.Text(text, description="Text", continuous_update=False, layout={"width": "95%"})
    sliders = {
        "temperature": ipywidgets.FloatSlider(value=1, min=0.1, max=3, step=0.1, description="temperature"),
        "top_k": ipywidgets.IntSlider(value=0, min=0, max=100, description="top-k (0 off)"),
        "top_p": ipywidgets.FloatSlider(value=1, min=0.05, max=1, step=0.05, description="top-p"),
        "min_p": ipywidgets.FloatSlider(value=0, min=0, max=0.5, step=0.01, description="min-p"),
    }
    for slider in sliders.values():
        slider.style.description_width = "100px"
    picture = ipywidgets.Image(format="png", width=880)
    button = ipywidgets.Button(description="Draw 30 tokens", button_style="primary")
    drawn = ipywidgets.HTML()

    def settings() -> dict:
        return {name: slider.value for name, slider in sliders.items()} | {"top_k": sliders["top_k"].value or None}

    def draw(_=None) -> None:
        picture.value = png(show_distribution(tokenizer, state["logits"], **settings()))

    def read(_) -> None:
        state["logits"] = next_logits(model, tokenizer, prompt.value)
        drawn.value = ""
        draw()

    def draw_tokens(_) -> None:
        probabilities = decoding.warp(state["logits"], **settings()).softmax(-1)
        tokens = torch.multinomial(probabilities, 30, replacement=True)[0].tolist()
        counts = {t: tokens.count(t) for t in sorted(set(tokens), key=tokens.count, reverse=True)}
        words = (f"<b>{escape(plots.token(tokenizer.decode(t)))}</b> × {n}" for t, n in counts.items())
        drawn.value = '<div style="font-size:1.2em">' + ", ".join(words) + "</div>"

    prompt.observe(read, "value")
    for slider in sliders.values():
        slider.observe(draw, "value")
    button.on_click(draw_tokens)
    draw()
    controls = ipywidgets.GridBox(list(sliders.values()), layout={"grid_template_columns": "1fr 1fr", "width": "700px"})
    return ipywidgets.VBox([prompt, controls, picture, button, drawn])


class BeamTree:
    """Beam search with its tree kept: `levels(beams, depth)` for `plots.tree`; no beginning is read twice."""

    def __init__(self, model, tokenizer, text: str):
        self.model, self.tokenizer, self.text = model, tokenizer, text
        self.start = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        self.known: dict[tuple, torch.Tensor] = {}

    @torch.inference_mode()
    def log_probs(self, beginnings: list[tuple]) -> torch.Tensor:
        """Next-token log-probabilities after each beginning (all of one length), (beginnings, vocabulary)."""
        new = [b for b in beginnings if b not in self.known]
        if new:
            added = torch.tensor(new, dtype=torch.long, device=self.start.device).view(len(new), -1)
            ids = torch.cat([self.start.expand(len(new), -1), added], dim=1)
            logits = self.model(ids, logits_to_keep=1).logits[:, -1].float()
            self.known.update(zip(new, logits.log_softmax(-1), strict=True))
        return torch.stack([self.known[b] for b in beginnings])

    def levels(self, beams: int, depth: int) -> list[list[tuple[int, str, float, bool]]]:
        running, scores, levels, places = [()], torch.zeros(1), [], [0]
        for _ in range(depth):
            total = scores[:, None] + self.log_probs(running).cpu()
            best, index = total.flatten().topk(beams)
            kept = [(int(i) // total.shape[1], int(i) % total.shape[1]) for i in index]
            nodes = {(b, int(t)) for b, row in enumerate(total) for t in row.topk(3 if beams < 3 else 2).indices} | set(
                kept
            )
            nodes = sorted(nodes, key=lambda node: (node[0], -total[node]))
            level = [(places[b], self.tokenizer.decode(t), float(total[b, t].exp()), (b, t) in kept) for b, t in nodes]
            levels.append(level)
            places = [nodes.index(node) for node in kept]
            running, scores = [(*running[b], t) for b, t in kept], best
        return levels

    def draw(self, beams: int, depth: int) -> Figure:
        levels = self.levels(beams, depth)
        best = max((node for node in levels[-1] if node[3]), key=lambda node: node[2])
        words, index = [], levels[-1].index(best)
        for level in reversed(levels):
            words.insert(0, level[index][1])
            index = level[index][0]
        title = f"{beams} beam{'s' * (beams > 1)}: “{''.join(words).strip()}”, probability {best[2]:.2g}"
        return plots.tree(levels, "… " + " ".join(self.text.split()[-3:]) if len(self.text) > 16 else self.text, title)


def beam_tree(model, tokenizer, text: str) -> ipywidgets.Widget:
    """See which beginnings beam search keeps, by number of beams and depth."""
    search = BeamTree(model, tokenizer, text)
    beams = ipywidgets.IntSlider(value=2, min=1, max=4, description="beams")
    depth = ipywidgets.IntSlider(value=3, min=1, max=4, description="tokens")
    prompt = ipywidgets.Text(text, description="Text", continuous_update=False, layout={"width": "95%"})
    picture = ipywidgets.Image(format="png", width=880)

    def draw(_=None) -> None:
        picture.value = png(search.draw(beams.value, depth.value))

    def read(_) -> None:
        nonlocal search
        search = BeamTree(model, tokenizer, prompt.value or text)
        draw()

    for slider in (beams, depth):
        slider.observe(draw, "value")
    prompt.observe(read, "value")
    for number in range(beams.max, 0, -1):  # read every beginning now: the sliders then only draw
        search.levels(number, depth.max)
    draw()
    return ipywidgets.VBox([prompt, ipywidgets.HBox([beams, depth]), picture])


def phrasing_table(model, tokenizer, item: dict, split: str = "tuning") -> str:
    """An item through every template of its task, and how likely the model finds each option there: an HTML table.

    The right option is marked, the model's choice is bold; both are computed at once for all templates.
    """
    prompts = [*flan.phrasings(item, split), item["named"], item["wild"]]
    options = [" " + option for option in item["options"]]
    scores = evaluation.score_options(model, tokenizer, prompts, [options] * len(prompts))
    names = [*(f"template {i}" for i in range(1, len(prompts) - 1)), "by name", "as on the web"]
    rows = []
    for name, prompt, found in zip(names, prompts, scores, strict=True):
        chances = torch.tensor([score["logprob"] for score in found]).softmax(0).tolist()
        shares = zip(item["options"], chances, strict=True)
        words = [f"{'✓ ' * (o == item['answer'])}{escape(o)} {p:.0%}" for o, p in shares]
        best = max(range(len(words)), key=chances.__getitem__)
        words[best] = f"<b>{words[best]}</b>"
        cells = [name, f'<span style="white-space:pre-wrap">{escape(prompt)}</span>', "<br>".join(words)]
        rows.append("".join(f'<td style="text-align:left;vertical-align:top">{cell}</td>' for cell in cells))
    head = "<th></th><th>what the model reads</th><th>its options</th>"
    return f'<table style="font-size:1.1em"><tr>{head}</tr>' + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def template_browser(model, tokenizer, task: str = "follows") -> ipywidgets.Widget:
    """See an item of any task through all its templates, and which option the model finds likeliest in each."""
    names = [(f"{cluster}: {name}", name) for cluster in flan.clusters() for name in bottle.clusters()[cluster]]
    chosen = ipywidgets.Dropdown(options=names, value=task, description="Task", layout={"width": "500px"})
    split = ipywidgets.ToggleButtons(options=[("tuning", "tuning"), ("held out", "test")], description="Templates")
    button = ipywidgets.Button(description="Another item", button_style="primary")
    shown, place = ipywidgets.HTML(), 0

    def draw(_=None) -> None:
        items = flan.test_items([chosen.value], 20)
        shown.value = phrasing_table(model, tokenizer, items[place % len(items)], split.value)

    def another(_) -> None:
        nonlocal place
        place += 1
        draw()

    chosen.observe(draw, "value")
    split.observe(draw, "value")
    button.on_click(another)
    draw()
    return ipywidgets.VBox([ipywidgets.HBox([chosen, button]), split, shown])


def dashboard(every: int = 5) -> Callable[[list[dict]], None]:
    """A `watch` for `ppo.train`: every so many steps the curves and the newest text; without a notebook, a printed line."""
    shell = IPython.get_ipython()
    shown = [] if shell is not None and hasattr(shell, "kernel") else None

    def watch(log: list[dict]) -> None:
        line = log[-1]
        if line["step"] % every:
            return
        if shown is None:
            names = [name for name in ("reward", "gold", "kl", "entropy", "length") if name in line]
            numbers = "  ".join(f"{name} {line[name]:.2f}" for name in names)
            print(f"step {line['step']:4}  {numbers}  {line['sample'][-60:]!r}", flush=True)
            return
        picture = IPython.display.Image(png(plots.reinforcement(log)))
        text = IPython.display.HTML(f'<pre style="white-space:pre-wrap">{escape(line["sample"])}</pre>')
        if shown:
            for handle, new in zip(shown, (picture, text), strict=True):
                handle.update(new)
        else:
            shown.extend(IPython.display.display(new, display_id=True) for new in (picture, text))

    return watch


def finished_runs(logs: dict[float, list[dict]]) -> ipywidgets.Widget:
    """See what the weight of the KL penalty does: {beta: log of `ppo.train`}, one run in colour, the others grey."""
    betas = sorted(logs)
    slider = ipywidgets.SelectionSlider(options=betas, value=betas[0], description="β", layout={"width": "500px"})
    picture, text = ipywidgets.Image(format="png", width=1000), ipywidgets.HTML()

    def draw(_=None) -> None:
        log = logs[slider.value]
        picture.value = png(plots.reinforcement(log, [logs[beta] for beta in betas if beta != slider.value]))
        said = "".join(f"<p>step {line['step']:.0f}: {escape(line['sample'])}</p>" for line in (log[0], log[-1]))
        text.value = f'<div style="font-size:1.2em">{said}</div>'

    slider.observe(draw, "value")
    draw()
    return ipywidgets.VBox([slider, picture, text])


def show_scaling(parameters: float, tokens: float) -> Figure:
    """Where this model stands among all that cost as much to train, by Chinchilla's form."""
    flop = 6 * parameters * tokens
    best = scaling.compute_optimal(flop)
    sizes = np.geomspace(min(parameters, best[0]) / 10, max(parameters, best[0]) * 10, 200)
    return plots.isoflop(
        sizes,
        [scaling.expected_loss(n, flop / 6 / n) for n in sizes],
        (parameters, scaling.expected_loss(parameters, tokens)),
        (best[0], scaling.expected_loss(*best)),
        f"{scaling.in_words(parameters)} parameters, {scaling.in_words(tokens)} tokens: {scaling.in_words(flop)} FLOP",
    )


def scaling_calculator(parameters: float = 174.6e9, tokens: float = 300e9) -> ipywidgets.Widget:
    """What a training run costs (operations, GPU-years, money, memory), and the loss to expect of it."""
    wide = {"style": {"description_width": "150px"}, "layout": {"width": "440px"}}
    log = {"readout_format": ".2e", "step": 0.05, **wide}
    sliders = {
        "parameters": ipywidgets.FloatLogSlider(parameters, min=6, max=13, description="parameters", **log),
        "tokens": ipywidgets.FloatLogSlider(tokens, min=7, max=14, description="training tokens", **log),
        "peak": ipywidgets.IntSlider(112, min=1, max=2500, description="GPU peak, TFLOP/s", **wide),
        "used": ipywidgets.FloatSlider(0.25, min=0.01, max=1, step=0.01, description="share of it used", **wide),
        "price": ipywidgets.FloatSlider(1.5, min=0, max=20, step=0.1, description="dollars a GPU-hour", **wide),
    }
    answer, picture = ipywidgets.HTML(), ipywidgets.Image(format="png", width=880)

    def show(_=None) -> None:
        n, d, peak, used, price = (slider.value for slider in sliders.values())
        years = scaling.gpu_years(n, d, peak * 1e12 * used)
        best = scaling.compute_optimal(6 * n * d)
        words = scaling.in_words
        rows = {
            "compute": f"{words(6 * n * d)} FLOP",
            "time": f"{words(years)} GPU-years, or {words(years * 365 / 1000)} days on 1,000 GPUs",
            "money": f"{words(years * 365 * 24 * price)} dollars",
            "memory": f"{words(n * sum(scaling.BYTES.values()) / 1e9)} GB to train, "
            f"{words(n * scaling.BYTES['weights'] / 1e9)} GB to use",
            "expected loss": f"{scaling.expected_loss(n, d):.3f} nats a token; at best {scaling.expected_loss(*best):.3f}",
            "compute-optimal": f"{words(best[0])} parameters, {words(best[1])} tokens ({best[1] / best[0]:.3g} a parameter)",
        }
        table = "".join(
            f"<tr><th style='text-align:left'>{name}&emsp;</th><td>{row}</td></tr>" for name, row in rows.items()
        )
        answer.value = f'<table style="font-size:1.2em;line-height:1.6">{table}</table>'
        picture.value = png(show_scaling(n, d))

    for slider in sliders.values():
        slider.observe(show, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([ipywidgets.VBox(list(sliders.values())), answer]), picture])


@torch.inference_mode()
def attention_weights(model, tokenizer, text: str, longest: int = 32) -> tuple[list[str], torch.Tensor]:
    """The first `longest` tokens of `text`, and where each looks: weights (layers, heads, tokens, tokens)."""
    ids = tokenizer(text or tokenizer.bos_token, return_tensors="pt").input_ids[:, :longest].to(model.device)
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not keep the weights
    try:
        found = model(ids, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(usual)
    return [tokenizer.decode(i) for i in ids[0]], torch.cat(found).float().cpu()


def show_attention(tokens: list[str], weights: torch.Tensor, layer: int, head: int, first: bool = True) -> Figure:
    """One head, both counted from 1; without the `first` token the rest of every row is scaled to sum to 1."""
    shown = weights[layer - 1, head - 1]
    if not first and len(tokens) > 1:
        tokens, shown = tokens[1:], shown[1:, 1:] / shown[1:, 1:].sum(-1, keepdim=True).clamp(min=1e-6)
    return plots.attention(shown.numpy(), tokens, f"layer {layer}, head {head}: a row is the token that looks")


def attention_viewer(model, tokenizer, text: str) -> ipywidgets.Widget:
    """See where every token of a sentence looks, by layer and head."""
    state = attention_weights(model, tokenizer, text)
    prompt = ipywidgets.Text(text, description="Text", continuous_update=False, layout={"width": "95%"})
    layer = ipywidgets.IntSlider(value=1, min=1, max=state[1].shape[0], description="layer")
    head = ipywidgets.IntSlider(value=1, min=1, max=state[1].shape[1], description="head")
    first = ipywidgets.Checkbox(value=True, description="show the first token")
    picture = ipywidgets.Image(format="png", width=760)

    def draw(_=None) -> None:
        picture.value = png(show_attention(*state, layer.value, head.value, first.value))

    def read(_) -> None:
        nonlocal state
        state = attention_weights(model, tokenizer, prompt.value)
        draw()

    prompt.observe(read, "value")
    for control in (layer, head, first):
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([prompt, ipywidgets.HBox([layer, head, first]), picture])


def show_expected(tokenizer, logits: torch.Tensor, shown: int = 10) -> Figure:
    """The tokens that a model finds likeliest; logits (vocabulary,)."""
    chances, order = logits.softmax(-1).topk(min(shown, len(logits)))
    title = f"the {len(order)} likeliest tokens have {chances.sum():.0%} of the probability"
    return plots.expected([tokenizer.decode(i) for i in order], chances.tolist(), title)


def guessing_places(tokenizer, ids: list[int], begin: int = 8, apart: int = 4) -> list[int]:
    """The places of tokens that are whole words, at least `apart` from each other: what a person can guess."""
    words, places = [tokenizer.decode(i) for i in ids], []
    for place in range(begin, len(ids) - 1):
        alone = words[place][:1] == " " and words[place][1:].isalpha() and not words[place + 1][:1].isalnum()
        if alone and (not places or place - places[-1] >= apart):
            places.append(place)
    return places


@torch.inference_mode()
def next_token_game(model, tokenizer, text: str) -> ipywidgets.Widget:
    """Guess the next word of a text, then see what the model expected there; the score is kept, yours and the model's."""
    ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    logits, ids = model(ids).logits[0].float().cpu(), ids[0].tolist()  # (tokens, vocabulary)
    places = guessing_places(tokenizer, ids)
    guess = ipywidgets.Text(placeholder="the next word, then Enter", continuous_update=False)
    skip = ipywidgets.Button(description="I do not know", button_style="primary")
    story, said = ipywidgets.HTML(), ipywidgets.HTML()
    picture = ipywidgets.Image(format="png", width=880, layout={"display": "none"})
    turn, yours, its = 0, 0, 0

    def show() -> None:
        end = places[turn] if turn < len(places) else len(ids)
        shown = escape(tokenizer.decode(ids[:end]))
        last = " <b>___</b>" if turn < len(places) else " <b>The end.</b>"
        story.value = f'<div style="font-size:1.2em;max-width:60em;white-space:pre-wrap">{shown}{last}</div>'

    def answer(word: str) -> None:
        nonlocal turn, yours, its
        if turn == len(places):
            return
        place = places[turn]
        true, before = tokenizer.decode(ids[place]).strip(), logits[place - 1]
        best = int(before.argmax())
        turn, yours, its = turn + 1, yours + (word.strip().lower() == true.lower()), its + (best == ids[place])
        chance = before.softmax(-1)[ids[place]].item()
        said.value = (
            f'<div style="font-size:1.2em">You: <b>{escape(word) or "–"}</b>. The model: '
            f"<b>{escape(tokenizer.decode(best).strip())}</b>. The text: <b>{escape(true)}</b>, to which the model gave "
            f"{chance:.1%}. Score after {turn}: <b>you {yours}, the model {its}</b>.</div>"
        )
        picture.value, picture.layout.display = png(show_expected(tokenizer, before)), ""
        show()

    def entered(change) -> None:
        if change["new"]:
            guess.value = ""
            answer(change["new"])

    guess.observe(entered, "value")
    skip.on_click(lambda _: answer(""))
    show()
    return ipywidgets.VBox([story, ipywidgets.HBox([guess, skip]), said, picture])


# 04 Reward modeling ---------------------------------------------------------------------------------------------------


def pair_table(request: dict, first: str, second: str) -> str:
    """A request and two replies side by side, as a labeller sees them: an HTML table."""
    cell = "text-align:left;vertical-align:top;padding:.6em;font-size:1.2em;white-space:pre-wrap;width:430px"
    replies = "".join(f'<td style="{cell}">{escape(reply)}</td>' for reply in (first, second))
    head = f'<tr><td colspan="2" style="{cell}"><b>{escape(request["prompt"])}</b></td></tr>'
    return f"<table>{head}<tr><th>A</th><th>B</th></tr><tr>{replies}</tr></table>"


def preference_labelling(policy, tokenizer, asked: list[dict], said: list[list[str]]) -> ipywidgets.Widget:
    """Say which of two replies is better, again and again; then train a reward model on these labels alone.

    After the training each further pair shows what the model expects you to say; your answers keep its score.
    """
    pairs = [(request, *row[:2]) for request, row in zip(asked, said, strict=True) if row[0] != row[1]]
    state = {"place": 0, "labels": [], "model": None, "expected": None, "right": [0, 0]}
    shown, told = ipywidgets.HTML(), ipywidgets.HTML()
    buttons = {name: ipywidgets.Button(description=name) for name in ("A is better", "B is better", "Skip")}
    train = ipywidgets.Button(description="Train on my labels", button_style="primary", disabled=True)

    def tell(more: str = "") -> None:
        hits, asked_ = state["right"]
        words = [f"{len(state['labels'])} labels."]
        if state["model"]:
            words.append(f"The model expects: A is better with probability {state['expected']:.0%}.")
            words.append(f"It was right on {hits} of {asked_} pairs since its training." if asked_ else "")
        told.value = f'<div style="font-size:1.2em">{" ".join([more, *words])}</div>'

    def draw(more: str = "") -> None:
        request, *replies = pairs[state["place"] % len(pairs)]
        shown.value = pair_table(request, *replies)
        if state["model"]:
            texts = [rlhf.text(request, reply) for reply in replies]
            a, b = preference.score(state["model"], tokenizer, texts).tolist()
            state["expected"] = 1 / (1 + np.exp(b - a))
        tell(more)

    def label(better: int | None) -> None:
        request, *replies = pairs[state["place"] % len(pairs)]
        if better is not None:
            if state["model"]:
                state["right"] = [
                    state["right"][0] + ((state["expected"] > 0.5) == (better == 0)),
                    state["right"][1] + 1,
                ]
            order = [better, 1 - better]
            state["labels"].append([rlhf.text(request, replies[i]) for i in order])
        state["place"] += 1
        train.disabled = not state["labels"]
        draw()

    def learn(_) -> None:
        train.disabled = True
        tell("Training ...")
        options = dict(steps=20, batch=min(8, len(state["labels"])))
        state["model"], log = rlhf.train_reward(policy, tokenizer, state["labels"], **options)
        state["right"] = [0, 0]
        train.disabled = False
        draw(f"Trained: its loss on your labels fell from {log[0]['loss']:.2f} to {log[-1]['loss']:.2f} nats.")

    for button, better in zip(buttons.values(), (0, 1, None), strict=True):
        button.on_click(lambda _, better=better: label(better))
    train.on_click(learn)
    draw()
    return ipywidgets.VBox([shown, ipywidgets.HBox([*buttons.values(), train]), told])


def show_rewards(reward_models: dict, tokenizer, text: str) -> Figure:
    """The rewards of a text by token, for each of the named reward models."""
    found = {name: preference.rewards_by_token(model, tokenizer, text) for name, model in reward_models.items()}
    tokens = next(iter(found.values()))[0]
    last = text if len(text) < 70 else "…" + text[-68:]
    return plots.reward_by_token(tokens, {name: values.tolist() for name, (_, values) in found.items()}, last)


def reward_inspector(reward_models: dict, tokenizer, requests: list[dict], longest: int = 48) -> ipywidgets.Widget:
    """Write a reply and see what the reward would be after each of its tokens."""
    names = [(request["prompt"], i) for i, request in enumerate(requests)]
    chosen = ipywidgets.Dropdown(options=names, description="Request", layout={"width": "95%"})
    reply = ipywidgets.Text(description="Reply", continuous_update=False, layout={"width": "95%"})
    ready = ipywidgets.ToggleButtons(description="Ready-made")
    picture = ipywidgets.Image(format="png", width=880)

    def draw(_=None) -> None:
        words = rlhf.text(requests[chosen.value], reply.value)
        ids = tokenizer(words).input_ids[:longest]
        picture.value = png(show_rewards(reward_models, tokenizer, tokenizer.decode(ids)))

    def use(change) -> None:
        if change["new"] is not None:
            reply.value = change["new"]

    def ask(_=None) -> None:
        known = bottle.replies(requests[chosen.value])
        ready.options = [(r["kind"], r["text"]) for r in known]
        reply.value = known[0]["text"]
        draw()

    chosen.observe(ask, "value")
    ready.observe(use, "value")
    reply.observe(draw, "value")
    ask()
    return ipywidgets.VBox([chosen, ready, reply, picture])


def show_ratings(votes: list[tuple], names: list[str]) -> Figure:
    """Bradley-Terry ratings of blind votes (a, b, score), with a draw between any two models as a start, and their intervals."""
    start = [(a, b, 0.5) for i, a in enumerate(names) for b in names[:i]]  # so that everybody has a rating at once
    rated = evaluation.bradley_terry_ratings([*start, *votes])
    rng, others = np.random.default_rng(0), []
    for _ in range(40 if votes else 0):
        drawn = [votes[i] for i in rng.integers(len(votes), size=len(votes))]
        others.append(evaluation.bradley_terry_ratings([*start, *drawn]))
    spread = {n: np.quantile([o[n] for o in others] or [rated[n]], [0.025, 0.975]) for n in rated}
    title = f"{len(votes)} vote{'s' * (len(votes) != 1)}"
    return plots.ratings({n: (value, *spread[n]) for n, value in rated.items()}, title)


def arena(questions: list[dict], seed: int = 0) -> ipywidgets.Widget:
    """Blind votes: two models' answers to a question, shown without names until you have voted; live ratings.

    `questions`: dicts with prompt and answers, {model: its answer}.
    """
    names, rng = sorted({name for q in questions for name in q["answers"]}), np.random.default_rng(seed)
    state = {"votes": [], "round": None}
    shown, told = ipywidgets.HTML(), ipywidgets.HTML()
    picture = ipywidgets.Image(format="png", width=880)
    buttons = {"A is better": 1.0, "B is better": 0.0, "Tie": 0.5}

    def draw() -> None:
        question = questions[rng.integers(len(questions))]
        a, b = rng.choice(sorted(question["answers"]), 2, replace=False).tolist()
        state["round"] = (a, b)
        shown.value = pair_table(question, question["answers"][a], question["answers"][b])
        picture.value = png(show_ratings(state["votes"], names))

    def vote(score: float) -> None:
        a, b = state["round"]
        state["votes"].append((a, b, score))
        told.value = f'<div style="font-size:1.2em">A was <b>{escape(a)}</b>, B was <b>{escape(b)}</b>.</div>'
        draw()

    pressed = []
    for name, score in buttons.items():
        pressed.append(ipywidgets.Button(description=name))
        pressed[-1].on_click(lambda _, score=score: vote(score))
    draw()
    return ipywidgets.VBox([shown, ipywidgets.HBox(pressed), told, picture])


# 07 Prompting ---------------------------------------------------------------------------------------------------------


def next_words(model, tokenizer, prompt: str, shown: int = 5) -> str:
    """The likeliest next tokens after a prompt and their probabilities, as HTML."""
    best = next_logits(model, tokenizer, prompt).softmax(-1)[0].topk(shown)
    words = (f"<b>{escape(plots.token(tokenizer.decode(i)))}</b> {p:.0%}" for p, i in zip(*best, strict=True))
    return f"next: {', '.join(words)}"


def side_by_side(cells: list[str]) -> str:
    """HTML cells beside each other, as wide as each other."""
    style = "text-align:left;vertical-align:top;padding:.6em;width:460px;font-size:1.15em"
    return "<table><tr>" + "".join(f'<td style="{style}">{cell}</td>' for cell in cells) + "</tr></table>"


def replies_table(model, tokenizer, prompts: list[str], new_tokens: int = 24) -> str:
    """Prompts side by side, with what the model expects next and what it writes: an HTML table."""
    said = prompting.generate(model, tokenizer, prompts, new_tokens)
    mark = 'style="white-space:pre-wrap;font-family:inherit;margin:0'
    return side_by_side(
        [
            f'<pre {mark}">{escape(prompt)}<span style="background:#DCEBF5">{escape(reply)}</span></pre>'
            f"<p>{next_words(model, tokenizer, prompt)}</p>"
            for prompt, reply in zip(prompts, said, strict=True)
        ]
    )


def prompt_workbench(model, tokenizer, prompts: list[str], new_tokens: int = 24) -> ipywidgets.Widget:
    """Edit two prompts, and compare what the model expects next (at once) and what it writes (a second or two later)."""
    areas = [ipywidgets.Textarea(prompt, layout={"width": "460px", "height": "150px"}) for prompt in prompts]
    template = ipywidgets.Checkbox(value=False, description="in the chat template")
    run = ipywidgets.Button(description="Run both", button_style="primary")
    shown = ipywidgets.HTML()

    def answer(_=None) -> None:
        texts = [area.value or " " for area in areas]
        texts = [prompting.chat(tokenizer, text) for text in texts] if template.value else texts
        expected = [next_words(model, tokenizer, text) for text in texts]
        shown.value = side_by_side([f"<i>writing …</i><p>{words}</p>" for words in expected])
        said = prompting.generate(model, tokenizer, texts, new_tokens)
        cells = zip(said, expected, strict=True)
        shown.value = side_by_side(
            [f'<span style="white-space:pre-wrap">{escape(s)}</span><p>{words}</p>' for s, words in cells]
        )

    run.on_click(answer)
    answer()
    return ipywidgets.VBox([ipywidgets.HBox(areas), ipywidgets.HBox([run, template]), shown])


# 09 Applications and limits -------------------------------------------------------------------------------------------


def passages_table(found: list[tuple[float, str]]) -> str:
    """Passages with their scores, the best first: an HTML table."""
    cell = "text-align:left;padding:.2em .8em;font-size:1.15em"
    rows = (
        f'<tr><td style="{cell}">{score:.2f}</td><td style="{cell}">{escape(text)}</td></tr>' for score, text in found
    )
    return f"<table><tr><th>score</th><th>passage</th></tr>{''.join(rows)}</table>"


def rag_inspector(model, tokenizer, passages: list[str], question: str) -> ipywidgets.Widget:
    """Ask about a collection: see what is found, what the model reads, and what it answers; add a passage of your own."""
    asked = ipywidgets.Text(question, description="Question", continuous_update=False, layout={"width": "95%"})
    added = ipywidgets.Text(description="Add this", continuous_update=False, layout={"width": "95%"})
    by = ipywidgets.ToggleButtons(options=["MiniLM", "BM25"], description="Find by")
    k = ipywidgets.IntSlider(value=3, min=0, max=5, description="passages")
    button = ipywidgets.Button(description="Answer", button_style="primary")
    table, prompt, said = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
    embedded = models.sentence_embeddings(passages)
    state = {"passages": passages, "embedded": embedded, "prompt": ""}

    def draw(_=None) -> None:
        vectors = state["embedded"] if by.value == "MiniLM" else None
        found = retrieval.find(asked.value, state["passages"], k.value, vectors)
        notes = [[text for _, text in found]] if found else None
        (state["prompt"],) = retrieval.chat_prompts(tokenizer, [asked.value], notes)
        table.value, said.value = passages_table(found), ""
        prompt.value = f'<pre style="white-space:pre-wrap">{escape(state["prompt"])}</pre>'

    def add(_) -> None:
        more = [added.value] if added.value.strip() else []
        state["passages"] = [*more, *passages]
        state["embedded"] = torch.cat([models.sentence_embeddings(more), embedded]) if more else embedded
        draw()

    def answer(_) -> None:
        for text in written(model, tokenizer, state["prompt"], 40):
            said.value = f'<div style="font-size:1.3em">{escape(text)}</div>'

    for control in (asked, by, k):
        control.observe(draw, "value")
    added.observe(add, "value")
    button.on_click(answer)
    draw()
    return ipywidgets.VBox([asked, added, ipywidgets.HBox([by, k, button]), table, said, prompt])


def coloured(text: str, green: bool) -> str:
    """A token of a text, on green or on red: HTML."""
    style = f"background:{'#BFE3D0' if green else '#F3CFC4'};color:#000;font-size:1.15em;white-space:pre-wrap"
    return f'<span style="{style}">{escape(text)}</span>'


def written(model, tokenizer, prompt: str, new_tokens: int, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
    """What a model writes after a prompt, token by token: the text so far, again and again. Temperature 0 is greedy."""
    room = model.config.max_position_embeddings - new_tokens
    ids = tokenizer(prompt, return_tensors="pt").input_ids[:, -room:].to(model.device)
    generator, text = torch.Generator(model.device).manual_seed(seed), []

    def choose(logits: torch.Tensor, _) -> torch.Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(decoding.warp(logits, temperature, top_p=0.95).softmax(-1), 1, generator=generator)[
            :, 0
        ]

    for token in decoding.stream(model, ids, new_tokens, choose):
        text.append(token.item())
        yield tokenizer.decode(text, skip_special_tokens=True)


def chat_table(answers: dict[str, str], request: str = "") -> str:
    """What every model said, side by side: an HTML table."""
    cell = "text-align:left;vertical-align:top;padding:.5em;font-size:1.1em;white-space:pre-wrap;overflow-wrap:anywhere"
    width = f"width:{100 // max(1, len(answers))}%"
    head = "".join(f'<th style="{width}">{escape(name)}</th>' for name in answers)
    body = "".join(f'<td style="{cell}">{escape(text)}</td>' for text in answers.values())
    asked = f'<tr><td colspan="{len(answers)}" style="{cell}"><b>{escape(request)}</b></td></tr>' if request else ""
    return f'<table style="table-layout:fixed;width:100%">{asked}<tr>{head}</tr><tr>{body}</tr></table>'


def chat(talkers: dict[str, tuple], request: str, new_tokens: int = 60) -> ipywidgets.Widget:
    """Ask every model at once; all answers grow at the same time. `talkers`: name -> (model, tokenizer, form), where
    form(request) is what that model reads."""
    asked = ipywidgets.Text(request, description="You", layout={"width": "80%"})
    heat = ipywidgets.FloatSlider(value=0, min=0, max=1.5, step=0.1, description="temperature")
    heat.style.description_width = "100px"
    button = ipywidgets.Button(description="Ask all", button_style="primary")
    shown, turn = ipywidgets.HTML(chat_table(dict.fromkeys(talkers, ""))), 0

    def ask(_) -> None:
        nonlocal turn
        turn += 1
        answers = dict.fromkeys(talkers, "")
        shown.value = chat_table(answers, asked.value)  # at once: reading the request takes a moment
        streams = {
            name: written(model, tokenizer, form(asked.value), new_tokens, heat.value, turn)
            for name, (model, tokenizer, form) in talkers.items()
        }
        while streams:
            for name in list(streams):
                text = next(streams[name], None)
                answers[name] = answers[name] if text is None else text
                if text is None:
                    del streams[name]
            shown.value = chat_table(answers, asked.value)

    button.on_click(ask)
    return ipywidgets.VBox([ipywidgets.HBox([asked, button]), heat, shown])


def quiz_table(questions: list[dict], verdicts: dict[str, str], language: str = "en") -> str:
    """All questions of the quiz, a row each, for slides are cut between rows: HTML. `verdicts`: claim -> verdict."""
    parts = []
    for number, item in enumerate(questions, 1):
        options = "".join(f"<li>{escape(option[language])}</li>" for option in item["options"])
        parts.append(
            f"<tr><td style='text-align:left'><div><b>{number}. {escape(item['question'][language])}</b></div>"
            f"<ol style='list-style:lower-alpha;display:block'>{options}</ol>"
            f"<details><summary>?</summary>{explained(item, verdicts, language)}</details></td></tr>"
        )
    return f'<table style="font-size:1.1em;max-width:60em"><tbody>{"".join(parts)}</tbody></table>'


def explained(item: dict, verdicts: dict[str, str], language: str = "en") -> str:
    """The right answer of a quiz question, why, and where it was measured, with the verdict there: HTML."""
    claim = claims.load()[item["claim"]]
    measured = {"en": "Notebook {}: {} Measured: {}.", "ko": "노트북 {}: {} 측정 결과: {}."}[language]
    measured = measured.format(claim["notebook"], claim["statement"][language], verdicts.get(item["claim"], "not yet"))
    right = f"{'abcdefgh'[item['answer']]}) {item['options'][item['answer']][language]}"
    return f"<p><b>{escape(right)}</b></p><p>{escape(item['why'][language])}</p><p>{escape(measured)}</p>"


def quiz(questions: list[dict], verdicts: dict[str, str]) -> ipywidgets.Widget:
    """The quiz, a question at a time, in English or Korean; every answer is explained, the score is kept."""
    language = ipywidgets.ToggleButtons(options=[("English", "en"), ("한국어", "ko")])
    asked, told, score = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
    buttons = [ipywidgets.Button(layout={"width": "90%"}) for _ in range(max(len(q["options"]) for q in questions))]
    onward = ipywidgets.Button(description="Next ▸", button_style="primary")
    state = {"place": 0, "given": {}}

    def draw(_=None) -> None:
        place = state["place"]
        item, chosen, spoken = questions[place], state["given"].get(place), language.value
        asked.value = f'<div style="font-size:1.4em"><b>{place + 1}. {escape(item["question"][spoken])}</b></div>'
        for i, button in enumerate(buttons):
            button.layout.display = "" if i < len(item["options"]) else "none"
            button.description = f"{'abcdefgh'[i]}) {item['options'][i][spoken]}" if i < len(item["options"]) else ""
            known = chosen is not None
            button.button_style = "success" if known and i == item["answer"] else "danger" if i == chosen else ""
        told.value = "" if chosen is None else f'<div style="font-size:1.2em">{explained(item, verdicts, spoken)}</div>'
        right = sum(questions[i]["answer"] == answer for i, answer in state["given"].items())
        score.value = f'<div style="font-size:1.2em">{right} / {len(state["given"])} ({len(questions)})</div>'

    def give(answer: int) -> None:
        state["given"].setdefault(state["place"], answer)
        draw()

    def go(_) -> None:
        state["place"] = (state["place"] + 1) % len(questions)
        draw()

    for i, button in enumerate(buttons):
        button.on_click(lambda _, i=i: give(i))
    onward.on_click(go)
    language.observe(draw, "value")
    draw()
    return ipywidgets.VBox([language, asked, *buttons, told, ipywidgets.HBox([onward, score])])


def show_seen(seeing, tokenizer, drawn: torch.Tensor, asked: list[dict], number: int) -> Figure:
    """Question `number` of a split: its picture, and the answers' probabilities with its patches and with another picture's."""
    question, other = asked[number], vision.another(asked)[number]
    found = {"this picture": question, "another picture's patches": other}
    found = {name: vision.chances(seeing, tokenizer, which) for name, which in found.items()}
    return plots.seen(drawn[question["picture"]].permute(1, 2, 0).numpy(), found, question["prompt"])


def picture_questions(seeing, tokenizer, drawn: torch.Tensor, asked: list[dict]) -> ipywidgets.Widget:
    """Choose a picture and a question about it: what the model answers, and what it would answer to another picture."""
    pictures = sorted({q["picture"] for q in asked})
    which = ipywidgets.IntSlider(1, 1, len(pictures), description="Picture")
    question = ipywidgets.Dropdown(description="Question", layout={"width": "60%"})
    picture = ipywidgets.Image(format="png", width=880)

    def draw(_=None) -> None:
        if question.value is not None:
            picture.value = png(show_seen(seeing, tokenizer, drawn, asked, question.value))

    def choose(_=None) -> None:
        known = [(q["prompt"], i) for i, q in enumerate(asked) if q["picture"] == pictures[which.value - 1]]
        question.options = known  # none of them is chosen yet
        question.index = 0

    which.observe(choose, "value")
    question.observe(draw, "value")
    choose()
    return ipywidgets.VBox([which, question, picture])
