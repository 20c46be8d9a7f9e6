"""The notebooks as slides: `python -m utils.slides` (`make slides`) writes slides/*.html, which need no network.

reveal.js and MathJax come once out of wheels of the Python package index, as models do. The page itself deals what a
slide cannot hold out to several (templates/measured/pages.js). `python -m utils.slides --set` renews the slide types in
the notebooks, by the rules of `slide_types`, which JupyterLab's deck reads too; `--read FOLDER` writes pages to read.
"""

import re
import shutil
import sys
import zipfile
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter, SlidesExporter

from utils import wheels

REPO = Path(__file__).parents[1]
NOTEBOOKS, SLIDES = REPO / "notebooks", REPO / "slides"
HEIGHT = 720
WIDGET = "application/vnd.jupyter.widget-view+json"
TEMPLATES = {
    "extra_template_basedirs": [str(REPO / "templates")],
    "extra_template_paths": [str(REPO / "templates")],
    "exclude_input_prompt": True,
    "exclude_output_prompt": True,
    "exclude_anchor_links": True,
}


def library() -> Path:
    """The cache folder with reveal.js (MIT) and MathJax (Apache 2.0): reveal/, MathJax/."""
    wheels.folder(
        "reveal", "sphinx-revealjs", 10, lambda wheel, new: _unpack(wheel, "sphinx_revealjs/_static/revealjs/", new)
    )
    wheels.folder(
        "MathJax", "nbclassic", 40, lambda wheel, new: _unpack(wheel, "nbclassic/static/components/MathJax/", new)
    )
    return wheels.cache()


def _unpack(wheel: Path, prefix: str, new: Path) -> None:
    """Unpack into the folder `new` what the wheel holds under `prefix`."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                target = new / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


def height(cell) -> int:
    """About how many pixels of a slide 720 high a cell takes: enough to say where a new one begins."""
    rows = sum(1 + len(line) // 90 for line in cell.source.split("\n"))
    if cell.cell_type != "code":
        return 30 * rows
    pixels = 24 * rows
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            pixels += 450
        elif "text/html" in data:
            pixels += 60 * "".join(data["text/html"]).count("<tr")
        else:
            pixels += 24 * sum(1 + len(line) // 110 for line in "".join(output.get("text", "")).split("\n"))
    return pixels


def slide_types(notebook) -> list[str]:
    """The slide type of every cell: a slide for a heading ##, a subslide for ### and where the slide would overflow.

    The setup cell is skipped, and so is a cell with the tag "aside", which is to be read and not presented; an exercise's
    solution stands in the presenter's notes.
    """
    types, used, lead = [], 0, 0  # lead: the height of a text that leads to the next cell
    for cell in notebook.cells:
        here, heading = height(cell), cell.cell_type == "markdown" and re.match(r"#{1,3} ", cell.source)
        if cell.id == "setup" or "aside" in cell.metadata.get("tags", []):
            types.append("skip")
            continue
        if cell.id.startswith("solution-"):
            types.append("notes")
            continue
        if heading:
            types.append("subslide" if cell.source.startswith("###") else "slide")
            used = here
        elif used + here <= HEIGHT or used == lead:  # it fits, or only its text stands there so far
            types.append("-")
            used += here
        elif lead and lead + here <= HEIGHT:
            types[-1:] = ["subslide", "-"]
            used = lead + here
        else:
            types.append("subslide")
            used = here
        lead = here if cell.cell_type == "markdown" else 0
    return types


def minutes(notebook) -> float:
    """How long a notebook takes to present: 130 words a minute, 2 s a line of code, 1.5 s a line printed, 30 s a
    picture, 20 s a table."""
    seconds = 0.0
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind in ("skip", "notes"):
            continue
        if cell.cell_type == "markdown":
            seconds += len(re.findall(r"\w+", cell.source)) * 60 / 130
        else:
            seconds += 2 * len(cell.source.split("\n"))
            for output in cell.outputs:
                data = output.get("data", {})
                lines = 1.5 * "".join(output.get("text", "")).count("\n")
                seconds += 30 if "image/png" in data else 20 if "text/html" in data else lines
    return seconds / 60


def set_types() -> None:
    """Write the slide types into the notebooks, and the link to the glossary where it is missing; nothing else changes."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell, kind in zip(notebook.cells, slide_types(notebook), strict=True):
            cell.metadata.pop("slideshow", None)
            # JupyterLab's slides hide a cell whose type is "-"; one without a type stands under the last
            if kind != "-":
                cell.metadata["slideshow"] = {"slide_type": kind}
        if "GLOSSARY.md" not in notebook.cells[0].source:
            notebook.cells[0].source += " Terms in English and Korean: [glossary](GLOSSARY.md)."
        nbformat.write(notebook, path)


def export(into: Path = SLIDES) -> None:
    """Write the slides of every notebook and what they load into a folder."""
    into.mkdir(exist_ok=True)
    for name in ("reveal", "MathJax"):
        shutil.copytree(library() / name, into / "lib" / name, dirs_exist_ok=True)
    shutil.copy(REPO / "notebooks" / "GLOSSARY.md", into)
    addresses = dict(reveal_url_prefix="lib/reveal", reveal_theme="white", mathjax_url="lib/MathJax/MathJax.js")
    exporter = SlidesExporter(template_name="slides", **TEMPLATES, **addresses)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.metadata.get("slideshow") == {"slide_type": "subslide"} and not cell.source.startswith("#"):
                del cell.metadata["slideshow"]  # the page knows the heights better
            if cell.cell_type == "code":  # a widget needs a kernel: the picture beside it stands for it
                cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        (into / f"{path.stem}.html").write_text(html, encoding="utf-8")
        print(f"slides/{path.stem}.html: about {minutes(notebook):.0f} minutes")


def read(folder: Path) -> None:
    """Write beside every notebook of a folder a page of it that reads and prints without a network."""
    address = (library() / "MathJax" / "MathJax.js").as_uri()
    exporter = HTMLExporter(template_name="reading", mathjax_url=address, **TEMPLATES)
    for path in sorted(folder.glob("*.ipynb")):
        path.with_suffix(".html").write_text(exporter.from_filename(path)[0], encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--set"]:
            set_types()
        case ["--read", folder]:
            read(Path(folder))
        case _:
            export()
