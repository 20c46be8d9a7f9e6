"""The house style, and the figures that more than one cell draws.

Readable from the last row (16 pt on an 11-inch figure), colours apart for the colour-blind (Okabe and Ito 2008). Text
that a model wrote is shown as it is (`parse_math=False`), in Korean too.
"""

import importlib.metadata
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import font_manager
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from utils import pretrain, progress

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
GREY, LIGHT = "#5F6368", "#B4B9BE"
COLOURS = [BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY]
DECODERS = {
    "human": "black",
    "greedy": RED,
    "beam search (4)": ORANGE,
    "sampling": SKY,
    "temperature 0.7": PINK,
    "top-k 40": GREY,
    "nucleus 0.95": BLUE,
    "min-p 0.1": GREEN,
}
RUNGS = dict(zip(pretrain.RUNGS, COLOURS, strict=False))
ARMS = {"base": GREY, "SFT": SKY, "PPO": BLUE, "PPO-ptx": GREEN}
# a reply, or what is shown of it
REPLIES = {"right": GREEN, "wrong": ORANGE, "made up": RED, "does not know": LIGHT}
REPLIES |= {"question": SKY, "rude": PINK, "nothing": GREY, "other": LIGHT}
PAPER = {"color": GREY, "ls": "--", "marker": "s"}  # a paper's curve; its line: marker=""
CHANCE = {"color": "black", "ls": ":", "lw": 1.5}  # guessing, or no effect
NAMES = {"sst2": "SST-2", "imdb": "IMDb", "boolq": "BoolQ", "rte": "RTE", "cb": "CB", "mrpc": "MRPC", "copa": "COPA"}
NAMES |= {"arc": "ARC", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "mmlu": "MMLU", "piqa": "PIQA"}
NAMES |= {"hellaswag": "HellaSwag", "triviaqa": "TriviaQA", "gsm8k": "GSM8K", "winogrande": "WinoGrande"}


def style() -> None:
    """Switch the house style and the bars of slow cells on; the setup cell of every notebook calls it."""
    progress.watch()
    for file in importlib.metadata.files("koreanize-matplotlib"):
        if file.name == "NanumGothic.ttf":
            font_manager.fontManager.addfont(file.locate())
    plt.rcParams.update(
        {
            "figure.figsize": (11, 4.5),
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "font.size": 16,
            "axes.titlesize": 17,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E8EA",
            "lines.linewidth": 3,
            "lines.markersize": 9,
            "errorbar.capsize": 5,
            "legend.frameon": False,
            "font.family": ["DejaVu Sans", "NanumGothic"],
        }
    )


def table(frame: pd.DataFrame, digits: int = 2, index: bool = True) -> Styler:
    """The one style of tables: thousands with commas, a dash for nothing, no row for the index's name."""
    frame = frame.rename_axis(index=[None] * frame.index.nlevels, columns=[None] * frame.columns.nlevels)
    styler = frame.style.format(precision=digits, thousands=",", na_rep="–", escape="html")
    return styler if index else styler.hide(axis="index")


def token(text: str) -> str:
    """A token as a label: spaces and line ends made visible, cut at 14 characters."""
    text = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= 14 else text[:13] + "…"


def distribution(tokens: list[str], before: list[float], after: list[float], title: str) -> Figure:
    """The likeliest next tokens: probability as the model gives it (outline) and after the cuts (bars)."""
    figure, axes = plt.subplots(layout="none")  # the automatic layout would double the drawing time
    figure.subplots_adjust(left=0.09, right=0.99, top=0.9, bottom=0.33)
    axes.bar(range(len(tokens)), after, color=BLUE, label="after the settings")
    axes.step([i - 0.5 for i in range(len(tokens) + 1)], [*before, before[-1]], where="post", color=RED, label="model")
    axes.set_xticks(
        range(len(tokens)), [token(t) for t in tokens], rotation=60, ha="right", fontsize=14, parse_math=False
    )
    for label, chance in zip(axes.get_xticklabels(), after, strict=True):
        label.set_color("black" if chance else GREY)
    axes.set(ylabel="probability", ylim=(0, max(0.05, *before, *after) * 1.05))
    axes.set_title(title, parse_math=False)
    axes.grid(axis="x", visible=False)
    axes.legend()
    return figure


def reward_by_token(tokens: list[str], rewards: dict[str, list[float]], title: str) -> Figure:
    """The reward after each of a text's last 22 tokens, by reward model; the last token's is the text's reward."""
    first = max(0, len(tokens) - 22)
    figure, axes = plt.subplots(layout="none")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.9, bottom=0.33)
    for name, values in rewards.items():
        values = values[first:]
        (line,) = axes.plot(values, marker="o", label=f"{name}: {values[-1]:+.2f}")
        axes.plot(len(values) - 1, values[-1], "*", color=line.get_color(), ms=22, clip_on=False, zorder=5)
    axes.axhline(0, color=GREY, lw=1)
    names = [token(t) for t in tokens[first:]]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=14, parse_math=False)
    axes.margins(y=0.25)
    axes.set(ylabel="reward if it ended here", xlim=(-0.5, max(10, len(names)) - 0.5))
    axes.set_title(title, parse_math=False)
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=2, loc="upper left")
    return figure


def isoflop(
    parameters: list[float], losses: list[float], chosen: tuple[float, float], best: tuple[float, float], title: str
) -> Figure:
    """Expected loss against model size where all sizes cost the same; `chosen` and `best`: (parameters, loss)."""
    figure, axes = plt.subplots(layout="none")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.89, bottom=0.18)
    axes.plot(parameters, losses, color=BLUE, label="same compute, fewer or more tokens")
    axes.plot(*chosen, "o", color=RED, ms=15, label="your choice")
    axes.plot(*best, "*", color=GREEN, ms=22, label="compute-optimal")
    highest = max(chosen[1], losses[0], losses[-1])
    span = highest - best[1]
    axes.set(xscale="log", xlabel="parameters", ylabel="expected loss (nats a token)", title=title)
    axes.set(xlim=(min(parameters), max(parameters)), ylim=(best[1] - 0.1 * span, highest + 0.15 * span))
    axes.legend(loc="upper center")
    return figure


def tree(levels: list[list[tuple[int, str, float, bool]]], root: str, title: str) -> Figure:
    """A search tree. Each level lists its nodes: (parent's index in the level above, label, probability of the whole
    beginning, kept?). Kept nodes are blue; the probability stands by each label."""
    figure, axes = plt.subplots(figsize=(11, 5.4), layout="none")
    figure.subplots_adjust(0, 0, 1, 0.92)
    axes.axis("off")
    above = [(0.0, 0.0)]
    axes.text(
        0,
        0,
        root,
        ha="center",
        va="center",
        parse_math=False,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": GREY},
    )
    for depth, level in enumerate(levels, 1):
        order = sorted(range(len(level)), key=lambda i: (-above[level[i][0]][1], -level[i][2]))
        places = [(0.0, 0.0)] * len(level)
        for rank, i in enumerate(order):
            places[i] = (depth, (len(level) - 1) / 2 - rank)
        scale = 11 / max(len(level), 5)
        for (x, y), (parent, label, probability, kept) in zip(places, level, strict=True):
            colour = BLUE if kept else GREY
            axes.plot([above[parent][0], x], [above[parent][1], y * scale], color=colour, lw=3 if kept else 1, zorder=0)
            axes.text(
                x,
                y * scale,
                f"{token(label)}  {probability:.2g}",
                ha="center",
                va="center",
                parse_math=False,
                fontsize=14,
                color="black" if kept else GREY,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": "#DCEBF5" if kept else "white", "edgecolor": colour},
            )
        above = [(x, y * scale) for x, y in places]
    axes.set(xlim=(-0.5, len(levels) + 0.5), ylim=(-6, 6))
    axes.set_title(title, parse_math=False)
    return figure


def reinforcement(log: list[dict], others: Sequence[list[dict]] = ()) -> Figure:
    """Reward (and true grade), KL, entropy and length by step: a log of `ppo.train`, one step or more; other runs' logs in grey."""
    panels = {"score": ("reward", "gold"), "KL, nats a reply": ("kl",), "entropy, nats": ("entropy",)}
    panels["length, tokens"] = ("length",)
    labels = {"reward": "reward (proxy)", "gold": "true grade"}
    figure, places = plt.subplots(1, 4, figsize=(12, 3.6), layout="none")
    figure.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.31, wspace=0.3)
    for axes, (title, names) in zip(places, panels.items(), strict=True):
        known = [name for name in names if name in log[0]]
        for name in known:
            for i, other in enumerate(others):
                label = None if i or name == "gold" else "other runs"
                axes.plot(
                    [line["step"] for line in other], [line[name] for line in other], color=LIGHT, lw=1.5, label=label
                )
        for name in known:
            steps, values = [line["step"] for line in log], [line[name] for line in log]
            kind = dict(color=ORANGE, ls="--") if name == "reward" else dict(color=BLUE)
            axes.plot(steps, values, label=labels.get(name), marker="o" if len(log) == 1 else None, **kind)
        axes.set(title=title, xlabel="step")
    figure.legend(*places[0].get_legend_handles_labels(), ncols=3, fontsize=14, loc="lower left")
    return figure


def attention(weights, tokens: list[str], title: str) -> Figure:
    """Who looks at whom: `weights` (tokens, tokens), a row is the token that looks, a column what it looks at."""
    size = 14 if len(tokens) <= 16 else 11
    figure, axes = plt.subplots(figsize=(11, 5.6), layout="none")
    figure.subplots_adjust(left=0.13, right=0.95, top=0.77, bottom=0.08)
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    labels = [token(t) for t in tokens]
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="left", fontsize=size, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, fontsize=size, parse_math=False)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlabel(title, parse_math=False)
    return figure


def expected(tokens: list[str], chances: list[float], title: str) -> Figure:
    """What a model expects next: its likeliest tokens, the likeliest on top."""
    figure, axes = plt.subplots(layout="none")
    figure.subplots_adjust(left=0.2, right=0.97, top=0.9, bottom=0.15)
    axes.barh(range(len(tokens)), chances, color=BLUE)
    axes.set_yticks(range(len(tokens)), [token(t) for t in tokens], fontsize=14, parse_math=False)
    axes.set(xlabel="probability", ylim=(len(tokens) - 0.5, -0.5))
    axes.set_title(title, parse_math=False)
    axes.grid(axis="y", visible=False)
    return figure


def ratings(rated: dict[str, tuple], title: str, other: dict[str, float] | None = None, label: str = "") -> Figure:
    """Ratings, the best on top: {name: (rating, low, high)}; `other`: ratings of the same names, to compare with."""
    figure, axes = plt.subplots(figsize=(11, 0.6 + 0.5 * max(4, len(rated))), layout="none")
    figure.subplots_adjust(left=0.25, right=0.97, top=0.88, bottom=0.2)
    for place, (name, (value, low, high)) in enumerate(rated.items()):
        axes.plot([low, high], [place, place], color=BLUE, lw=5, solid_capstyle="round")
        axes.plot(value, place, "o", color=BLUE, ms=12, label="rating, 95 % interval" if not place else None)
        if other:
            axes.plot(other[name], place, "D", color=ORANGE, ms=9, label=label if not place else None)
    axes.set_yticks(range(len(rated)), list(rated), parse_math=False)
    axes.set(ylim=(len(rated) - 0.5, -0.5), xlabel="rating (Elo's scale)")
    axes.set_title(title, parse_math=False)
    if other:
        axes.legend(fontsize=14)
    return figure


def seen(picture, chances: dict[str, dict[str, float]], title: str) -> Figure:
    """A picture (24, 24, 3), and the probability of each possible answer, by what the model was shown."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="none", width_ratios=[1, 2.6])
    figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.22, wspace=0.15)
    left.imshow(picture)
    left.axis("off")
    for i, (shown, colour) in enumerate(zip(chances, (BLUE, GREY, ORANGE), strict=False)):
        right.bar(
            [x + 0.4 * i for x in range(len(chances[shown]))], chances[shown].values(), 0.4, color=colour, label=shown
        )
    right.set_xticks([x + 0.2 for x in range(len(chances[shown]))], chances[shown], rotation=30, fontsize=14)
    right.set(ylabel="probability", ylim=(0, 1))
    right.set_title(title, parse_math=False)
    right.grid(axis="x", visible=False)
    right.legend(fontsize=14)
    return figure
