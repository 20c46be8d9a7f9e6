"""The course's claims: what a paper reports, what a notebook measures, and the verdict, by a rule fixed beforehand.

A notebook opens with `overview("06")` and calls `record(id, measured, low, high)`. From the repository's root:

    python -m utils.claims             print all claims with this machine's results
    python -m utils.claims --check     name each claim whose verdict here is not the committed one, and exit 1
    python -m utils.claims --accept    make this machine's results the committed ones and renew README.md's table
"""

import argparse
import datetime
import difflib
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import tempfile
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[1]
CLAIMS, COMMITTED = REPO / "data" / "claims.yaml", REPO / "data" / "results.json"
PAPERS = REPO / "data" / "papers"
RESULTS, README, PICTURE = REPO / "results", REPO / "README.md", REPO / "data" / "measured.png"
START, END = "<!-- claims -->", "<!-- /claims -->"
UNMEASURED = "not yet measured"
SIGNS = {"holds": "✓ holds", "does not hold here": "✗ does not hold here", "undecided": "? undecided"}
COLOURS = dict(zip(SIGNS.values(), ("#0072B2", "#B84A00", "#5F6368"), strict=True))  # apart for the colour-blind
live = False  # a notebook's setup cell sets it in a lecture: nothing is recorded then
CONFIDENCE = {"checked": "", "recalled": "; recalled, not checked", "derived": "; derived"}
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Every claim</title><style>
body { font: 17px/1.45 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #202124 }
article { break-inside: avoid; border-top: 1px solid #D0D3D6; margin-top: 1.5em } h2 { font-size: 1.2em; margin-bottom: 0 }
p { margin: .3em 0 } b { color: #fff; padding: 0 .5em; print-color-adjust: exact; -webkit-print-color-adjust: exact }
th { text-align: left; vertical-align: top; padding-right: 1em; white-space: nowrap } img { max-width: 100%; max-height: 22em }
</style>"""
KEYS = {"": "id notebook statement paper metric rule", "statement": "en ko", "paper": "figure source confidence"}
OPTIONAL = {"paper": {"file"}}


@dataclass(repr=False)
class Card:
    """A table for a notebook, as HTML or text; the first line of a cell is its main one. `result`: what was written."""

    top: str
    rows: list[list[str]]  # the first one is the header
    bottom: str = ""
    result: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = (" | ".join(cell.replace("\n", " - ") for cell in row) for row in self.rows)
        return "\n".join(filter(None, [self.top, *rows, self.bottom]))

    def _repr_html_(self) -> str:
        wide = f' colspan="{len(self.rows[0])}"'
        rows = [_cell(self.top, "td", wide)] if self.top else []
        rows += ["".join(_cell(cell, "td" if i else "th") for cell in row) for i, row in enumerate(self.rows)]
        rows += [_cell(self.bottom, "td", wide)] if self.bottom else []
        style = "table-layout:fixed;border-collapse:collapse;width:100%;max-width:72em;font-size:1.2em;color:inherit"
        return f'<table style="{style}">' + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _cell(text: str, tag: str, wide: str = "") -> str:
    """An HTML cell; the first of several lines is bold, and has the verdict's colour where it is a verdict."""
    first, *more = escape(text).split("\n")
    if first in COLOURS:
        first = f'<span style="background:{COLOURS[first]};color:#fff;padding:0 .5em">{first}</span>'
    lines = [f'<b style="font-size:1.15em">{first}</b>' if more else first, *filter(None, more)]
    style = "text-align:left;vertical-align:top;padding:.4em .8em;border:1px solid #8888"
    return f'<{tag}{wide} style="{style}">{"<br>".join(lines)}</{tag}>'


def load() -> dict[str, dict]:
    """Return id -> claim in the order of data/claims.yaml; raises ValueError, in a sentence, if that file is wrong."""
    claims: dict[str, dict] = {}
    try:
        entries = list(yaml.load(CLAIMS.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))  # ten times as fast
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"data/claims.yaml is not a YAML list of claims: {' '.join(str(error).split())}.") from None
    for i, claim in enumerate(entries, 1):
        name = f"Claim {claim.get('id', i) if isinstance(claim, dict) else i} in data/claims.yaml"
        for part, keys in KEYS.items():
            found = claim[part] if part else claim
            shown = " ".join(map(str, found)) if isinstance(found, dict) else found
            if not isinstance(found, dict) or set(found) - OPTIONAL.get(part, set()) != set(keys.split()):
                raise ValueError(f"{name}{part and ', ' + part}: expected the keys {keys}; found {shown}.")
            if wrong := [key for key in found if key not in (*KEYS, "rule") and not isinstance(found[key], str)]:
                raise ValueError(f"{name}: {wrong[0]} must be a text, in quotes if it looks like a number.")
        if claim["paper"]["confidence"] not in CONFIDENCE:
            raise ValueError(f"{name}: confidence must be one of {', '.join(CONFIDENCE)}.")
        if claim["id"] in claims:
            raise ValueError(f"{name} stands there twice: ids are unique.")
        _limits(claim["rule"], name)
        claims[claim["id"]] = claim
    return claims


def _limits(rule: dict, name: str = "The rule") -> list[float]:
    """Return the one or two thresholds of a rule; raises ValueError where it is malformed."""
    kind, t = next(iter(rule.items())) if isinstance(rule, dict) and len(rule) == 1 else (None, None)
    limits = t if kind == "between" and isinstance(t, list) else [t]
    numbers = all(type(x) in (int, float) and math.isfinite(x) for x in limits)
    if not numbers or len(limits) != {"above": 1, "below": 1, "between": 2}.get(kind) or limits != sorted(set(limits)):
        raise ValueError(f"{name}: expected {{above: t}}, {{below: t}} or {{between: [a, b]}} with a < b, not {rule}.")
    return limits


def verdict(rule: dict, measured: float, low: float | None, high: float | None) -> str:
    """Judge the interval [low, high]: "holds", "does not hold here" or "undecided" (also where there is no interval).

    above t: holds if low > t, does not hold here if high <= t; below t: mirrored; between [a, b]: holds if the interval
    is inside, does not hold here if it is wholly outside. Raises ValueError for numbers that are not finite and for an
    interval that does not contain `measured`.
    """
    limits = _limits(rule)
    a, b = limits[0], limits[-1]
    if not all(math.isfinite(x) for x in (measured, low, high) if x is not None):
        raise ValueError(f"Measured, low and high must be finite numbers, not {measured}, {low}, {high}.")
    if (low is not None and low > measured) or (high is not None and high < measured):
        raise ValueError(f"The interval [{low}, {high}] does not contain the measured value {measured}.")
    if low is None or high is None:
        return "undecided"
    yes, no = {
        "above": (low > a, high <= a),
        "below": (high < a, low >= a),
        "between": (a <= low and high <= b, high < a or low > b),
    }[next(iter(rule))]
    return "holds" if yes else "does not hold here" if no else "undecided"


def record(
    id: str,
    measured: float,
    low: float | None = None,
    high: float | None = None,
    seeds: int | list[int] | None = None,
    note: str = "",
) -> Card:
    """Judge a measurement, write it to results/<id>.json (whole or not at all) and return the card that shows it.

    `measured`: in the unit that the claim's metric names; [low, high]: its interval, from several seeds or a bootstrap;
    `seeds`: the seeds, or how many. Raises ValueError for an unknown id and for numbers that `verdict` refuses.
    """
    claim = (claims := load()).get(id)
    if claim is None:
        close = " or ".join(difflib.get_close_matches(id, claims, cutoff=0.4))
        raise ValueError(f"No claim {id!r} in data/claims.yaml" + (f": did you mean {close}?" if close else "."))
    measured, low, high = (None if x is None else float(x) for x in (measured, low, high))
    seeds = [int(seed) for seed in seeds] if hasattr(seeds, "__iter__") else seeds and int(seeds)
    result = {"measured": measured, "low": low, "high": high, "verdict": verdict(claim["rule"], measured, low, high)}
    result |= {"seeds": seeds, "note": note, "machine": {"cpu": _cpu(), "cores": os.cpu_count()}}
    result |= {"python": platform.python_version(), "date": datetime.date.today().isoformat()}
    result |= {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    if not live:
        _write(RESULTS / f"{id}.json", _json(result))
    statement, paper, here, rule, sign = _words(claim, result)
    note += "; in a lecture: a part of the work, not recorded" if live else ""
    many = f"seeds: {len(seeds) if isinstance(seeds, list) else seeds}" if seeds else ""
    values = [paper, f"{here}\n{many}\n{note}", f"{sign}\nholds if {rule}"]
    return Card(statement, [["Paper", "Here", "Verdict"], values], f"Measured: {claim['metric']}.", result)


def _cpu() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return (re.findall(r"model name\s*: (.+)", info) or [platform.processor() or platform.machine()])[0]


def _json(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: in a temporary folder beside it, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        (Path(folder) / "new").write_text(text, encoding="utf-8")
        os.replace(Path(folder) / "new", path)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged: get it from git again, or delete it and run its notebook.") from None


def local_results() -> dict[str, dict]:
    """id -> this machine's result, for every claim measured so far."""
    return {id: _read(RESULTS / f"{id}.json") for id in load() if (RESULTS / f"{id}.json").exists()}


def number(x: float) -> str:
    """`x` with 3 significant digits: 0.300, 12.3, 1,230."""
    x = float(f"{x:.3g}")
    return f"{x:,.0f}" if 1000 <= abs(x) < 1e6 else f"{x:#.3g}".removesuffix(".")


def _words(claim: dict, result: dict | None = None) -> tuple[str, str, str, str, str]:
    """Statement (English, Korean, id), paper (figure, source), value here with interval, rule in words, verdict."""
    statement, paper = claim["statement"], claim["paper"]
    limits = " and ".join(f"{x:f}".rstrip("0").rstrip(".") for x in _limits(claim["rule"]))
    here, sign = UNMEASURED, ""
    if result:
        low, high = (None if x is None else number(x) for x in (result["low"], result["high"]))
        here = f"{number(result['measured'])} " + (f"[{low}, {high}]" if low and high else "(no interval)")
        sign = SIGNS[result["verdict"]]
    source = paper["source"] + CONFIDENCE[paper["confidence"]]
    texts = f"{statement['en']}\n{statement['ko']}\n{claim['id']}", f"{paper['figure']}\n{source}"
    return *texts, here, f"{next(iter(claim['rule']))} {limits}", sign


def overview(notebook: str) -> Card:
    """The table of the claims that a notebook ("06") measures, for its opening: statement, paper, metric, rule."""
    claims = load().values()
    rows = []
    for claim in (claim for claim in claims if claim["notebook"] == notebook):
        statement, paper, _, rule, _ = _words(claim)
        rows.append([statement, paper, claim["metric"], rule])
    if not rows:
        known = ", ".join(sorted({claim["notebook"] for claim in claims}))
        raise ValueError(f"No notebook {notebook!r} in data/claims.yaml: name one of {known}.")
    return Card("", [["Claim", "Paper", "Measured here", "Holds if"], *rows])


def table(results: dict[str, dict]) -> str:
    """The Markdown table of all claims with these results (id -> result)."""
    rows = [["Notebook", "Claim", "Paper", "Here [interval]", "Verdict"], ["---"] * 5]
    for id, claim in load().items():
        _, paper, here, _, sign = _words(claim, results.get(id))
        rows.append([claim["notebook"], f"{claim['statement']['en']} `{id}`", paper.replace("\n", "; "), here, sign])
    return "\n".join("| " + " | ".join(escape(c, quote=False).replace("|", r"\|") for c in row) + " |" for row in rows)


def plain_table(results: dict[str, dict]) -> str:
    """The same for a terminal, one line a claim, and the number of each verdict."""
    claims = load()
    lines = []
    for id, claim in claims.items():
        _, _, here, _, sign = _words(claim, results.get(id))
        lines.append(f"{claim['notebook']}  {sign:20}  {id:36}  {here:24}  paper: {claim['paper']['figure']}")
    verdicts = [results[id]["verdict"] if id in results else UNMEASURED for id in claims]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in [*SIGNS, UNMEASURED])
    return "\n".join([*lines, f"{len(lines)} claims: {counts}."])


def readme_block() -> str:
    """README.md's table of claims, markers included, as the committed results make it."""
    return f"{START}\n\n{table(_read(COMMITTED))}\n\n{END}"


def picture(results: dict[str, dict], file: Path) -> None:
    """Draw every measured claim, one a row: its interval beside the threshold of its rule, and the verdict."""
    import matplotlib.pyplot as plt

    measured = [claim for id, claim in load().items() if id in results]
    figure, axes = plt.subplots(figsize=(13, 0.36 * len(measured) + 0.8), layout="constrained")
    for row, claim in enumerate(measured):
        result = results[claim["id"]]
        _, _, here, rule, sign = _words(claim, result)
        limits = _limits(claim["rule"])
        ends = [x for x in (result["measured"], result["low"], result["high"]) if x is not None]
        scale = max(abs(x - limits[0]) for x in [*ends, limits[-1]]) or 1  # each row has a unit of its own
        x, *interval = ((end - limits[0]) / scale for end in ends)
        axes.plot(interval or [x], [row] * len(interval or [x]), color=COLOURS[sign], lw=5, solid_capstyle="round")
        axes.plot(x, row, "o", color=COLOURS[sign], ms=10)
        axes.plot([(limit - limits[0]) / scale for limit in limits], [row] * len(limits), "k|", ms=18, mew=2)
        axes.text(-1.15, row, f"{claim['notebook']}  {claim['id']}", ha="right", va="center", fontsize=13)
        axes.text(1.15, row, f"{sign}: {here}", va="center", fontsize=13, color=COLOURS[sign])
    axes.set(xlim=(-1.1, 1.1), ylim=(len(measured) - 0.5, -0.5))
    axes.set_title(
        "Measured on a two-core laptop: dot and interval beside the threshold | of the claim's rule", fontsize=14
    )
    axes.axis("off")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def page(results: dict[str, dict], notebooks: Path) -> str:
    """One printable HTML page of all claims, with the figure before each and a link to its cell.

    `notebooks`: the folder of the executed notebooks and of the pages made of them (*.html), which the links name.
    """
    import nbformat

    cells = {path.stem: nbformat.read(path, as_version=4).cells for path in sorted(notebooks.glob("*.ipynb"))}
    parts = []
    for id, claim in load().items():
        (statement, korean, _), (figure, source) = (text.split("\n") for text in _words(claim)[:2])
        *_, here, rule, sign = _words(claim, results.get(id))
        link, picture = "", ""
        for stem in (stem for stem in cells if stem.startswith(claim["notebook"])):
            for cell in cells[stem]:
                picture = "" if cell.source.startswith("## ") else picture  # of the cell's own section
                for output in cell.get("outputs", []):
                    if image := output.get("data", {}).get("image/png"):
                        alt = escape(cell.metadata.get("alt", ""))
                        picture = f'<img src="data:image/png;base64,{image.strip()}" alt="{alt}">'
                if cell.cell_type == "code" and f'"{id}"' in cell.source:
                    address = f"{notebooks.name}/{stem}.html#cell-id={cell.id}"
                    link = f'<a href="{address}">notebook {claim["notebook"]}, cell {cell.id}</a>'
                    break
        rows = {"Paper": f"{figure} ({source})", "Measured here": claim["metric"], "Here": here, "Holds if": rule}
        lines = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
        verdict = f'<b style="background:{COLOURS.get(sign, "#5F6368")}">{sign or UNMEASURED}</b>'
        parts.append(
            f'<article id="{id}"><h2>{escape(statement)}</h2><p lang="ko">{escape(korean)}</p><p>{verdict} {link}</p>'
            f"<table>{lines}</table>{picture if link else ''}</article>"
        )
    return f"{PAGE}<h1>Large Language Models, Measured: every claim</h1>{''.join(parts)}</html>\n"


def check() -> list[str]:
    """A sentence for each claim whose verdict here is not the committed one, or that only one side has."""
    here, there = local_results(), _read(COMMITTED)
    verdicts = {id: [side.get(id, {}).get("verdict", UNMEASURED) for side in (here, there)] for id in there | here}
    return [f"{id}: {a} here, {b} in data/results.json." for id, (a, b) in verdicts.items() if a != b]


def accept() -> None:
    """Merge this machine's results into data/results.json and renew README.md's table of claims."""
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md has no lines {START} and {END}, between which the table of claims goes.")
    merged = _read(COMMITTED) | local_results()
    _write(COMMITTED, _json({id: merged[id] for id in load() if id in merged}))
    _write(README, before + readme_block() + after)
    picture(_read(COMMITTED), PICTURE)


def main(arguments: list[str] | None = None) -> str | None:
    """The command line; returns what is wrong, or None."""
    parser = argparse.ArgumentParser(prog="python -m utils.claims", description="The table of the course's claims.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="compare the verdicts in results/ with data/results.json")
    choice.add_argument("--accept", action="store_true", help="merge results/ into data/results.json and README.md")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            return "\n".join(check()) or None
        accept() if options.accept else print(plain_table(local_results()))
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
