"""The slides: every notebook's types are set, and in the browser nothing overflows, is too small, or asks the network."""

import nbformat
import pytest

from tests.test_notebooks import NOTEBOOKS
from utils import slides

LOOK = """() => Reveal.getSlides().map(slide => {
  const {h, v} = Reveal.getIndices(slide), wrong = new Set();
  Reveal.slide(h, v);
  for (const node of slide.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    const hidden = "aside, details:not([open]) > :not(summary), .MathJax_SVG, .MathJax_SVG_Display";
    if (node.closest(hidden) || !box.height) continue;
    const said = `slide ${h}/${v}, ${node.textContent.trim().slice(0, 40)}: `;
    if (box.bottom > 720.5 || box.right > 1280.5) wrong.add(said + "overflows");
    const text = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (text && parseFloat(getComputedStyle(node).fontSize) < 18) wrong.add(said + "below 18 px");
  }
  return [...wrong].slice(0, 3);
})"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_slide_types_are_set(path):
    notebook = nbformat.read(path, as_version=4)
    found = [cell.metadata.get("slideshow", {"slide_type": "-"})["slide_type"] for cell in notebook.cells]
    assert found == slides.slide_types(notebook), "run `python -m utils.slides --set` and commit"
    assert 30 <= slides.minutes(notebook) <= 50


def test_a_heading_begins_a_slide_and_so_does_what_would_overflow():
    prose, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    tall, short = "x = 1\n" * 23, "x = 1\n" * 2
    cells = [prose("# T"), code("", id="setup"), prose("## A"), code(tall), code(tall), prose("so:"), code(tall)]
    cells += [code(short), prose("### B"), code(short), prose("## C"), prose("details", id="solution-a"), code(short)]
    cells += [prose("an aside", metadata={"tags": ["aside"]}), code(tall, metadata={"tags": ["aside"]}), code(short)]
    found = slides.slide_types(nbformat.v4.new_notebook(cells=cells))
    assert found[:3] == ["slide", "skip", "slide"] and found[3:8] == ["-", "subslide", "subslide", "-", "-"]
    assert found[8:] == ["subslide", "-", "slide", "notes", "-", "skip", "skip", "-"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    slides.export(folder)
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_slides(browser, exported, path):
    page, asked, errors = browser.new_page(viewport={"width": 1280, "height": 720}), [], []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda r: errors.append(f"missing: {r.url}"))
    page.goto((exported / f"{path.stem}.html").as_uri())
    page.wait_for_function("window.Reveal?.isReady()")
    found = page.evaluate(LOOK)
    print(f"{path.stem}: {len(found)} slides")
    assert [line for slide in found for line in slide] == []
    formulas = sum(cell.source.count("$") for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert bool(formulas) == bool(page.locator(".MathJax_SVG").count()) and not page.locator(".merror").count()
    assert asked == [] and errors == []
    page.close()


def test_what_overflows_and_what_asks_the_network_is_found(browser, tmp_path, monkeypatch):
    """A picture that cannot be cut, and one from outside, in an otherwise good notebook."""
    cell = nbformat.v4.new_markdown_cell(
        '# Title\n\n<div style="height:900px">high</div>\n\n<p style="font-size:9px">small</p>\n\n<img src="http://127.0.0.1:9/x.png">'
    )
    cell.metadata["slideshow"] = {"slide_type": "slide"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "bad.ipynb")
    monkeypatch.setattr(slides, "NOTEBOOKS", tmp_path)
    slides.export(tmp_path / "slides")
    page, asked = browser.new_page(viewport={"width": 1280, "height": 720}), []
    page.on("request", lambda r: asked.append(r.url) if r.url.startswith("http") else None)
    page.goto((tmp_path / "slides" / "bad.html").as_uri())
    page.wait_for_function("window.Reveal?.isReady()")
    wrong = str(page.evaluate(LOOK))
    page.close()
    assert "overflows" in wrong and "below 18 px" in wrong and len(asked) == 1
