"""Notebooks in a real browser: JupyterLab in headless Chromium, every widget pressed."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.test_notebooks import NOTEBOOKS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
RUN_ALL = """async () => {
  const app = window.jupyterapp; await app.restored;
  const nb = app.shell.currentWidget;
  await nb.sessionContext.ready; await nb.sessionContext.session.kernel.info;
  await app.commands.execute('notebook:run-all-cells');
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on copies of the notebooks: its address."""
    home = tmp_path_factory.mktemp("lab")
    for path in NOTEBOOKS:
        shutil.copy(path, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {f"JUPYTERLAB_{kind}_DIR": str(home / kind) for kind in ("SETTINGS", "WORKSPACES")}
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root", f"--ServerApp.root_dir={home}"]
    options += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.expose_app_in_browser=True"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
        yield address
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def page(lab):
    """A page of the browser; its list `complaints` collects errors and requests that leave this machine."""
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Exception as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"BROWSER TESTS SKIPPED, no Chromium: {str(error).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on(
            "request", lambda r: page.complaints.append(r.url) if lab not in r.url and r.url.startswith("http") else 0
        )
        yield page
        browser.close()


def open_and_run(page, lab: str, notebook: Path) -> None:
    """Open a notebook, run all its cells, and fail if one of them does."""
    page.goto(f"{lab}/lab/tree/{notebook.name}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    page.set_default_timeout(600_000)
    page.evaluate(RUN_ALL)
    cells = page.evaluate("window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells.map(c => c.toJSON())")
    errors = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert not errors
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    page.set_default_timeout(20_000)


def seconds_to_change(page, act, look) -> float:
    """Seconds from `act()` until `look()` returns something else."""
    before, start = look(), time.perf_counter()
    act()
    while look() == before:
        assert time.perf_counter() - start < 20, "nothing changed"
        page.wait_for_timeout(10)
    return time.perf_counter() - start


def widget_cell(page, id: str):
    """The cell with this id, scrolled into view (JupyterLab draws no cell that is far away)."""
    page.evaluate(
        """id => { const nb = window.jupyterapp.shell.currentWidget.content;
        nb.activeCellIndex = nb.widgets.findIndex(w => w.model.id === id); return nb.scrollToItem(nb.activeCellIndex); }""",
        id,
    )
    return page.locator(".jp-CodeCell.jp-mod-active:has(.jupyter-widgets)")


def test_decoding(page, lab):
    open_and_run(page, lab, next(path for path in NOTEBOOKS if path.stem == "06_decoding"))
    took = {}
    for id, sliders in (("beam-widget", 2), ("explorer-widget", 4)):
        cell = widget_cell(page, id)
        picture = cell.locator("img.widget-image")
        handles = cell.locator(".widget-slider .noUi-handle")
        picture.wait_for()
        assert handles.count() == sliders
        for i in range(sliders):  # from one end to the other: the picture must change
            handles.nth(i).press("Home")
            page.wait_for_timeout(1000)
            end, source = partial(handles.nth(i).press, "End"), partial(picture.get_attribute, "src")
            took[f"{id} {i}"] = seconds_to_change(page, end, source)
    text = cell.locator("input[type=text]").first
    text.fill("<script>document.title = 'bad'</script> & \"quotes\" 😀")
    took["text"] = seconds_to_change(page, partial(text.press, "Enter"), source)
    drawn = cell.locator(".widget-html-content").last
    button = cell.get_by_role("button", name="Draw 30 tokens")
    took["button"] = seconds_to_change(page, button.click, drawn.inner_text)
    print({name: f"{seconds:.2f} s" for name, seconds in took.items()})
    assert page.title() != "bad"
    assert not page.complaints


def test_foundation_models(page, lab):
    open_and_run(page, lab, next(path for path in NOTEBOOKS if path.stem == "01_foundation_models"))
    took = {}
    cell = widget_cell(page, "viewer-widget")
    picture = cell.locator("img.widget-image")
    picture.wait_for()
    source = partial(picture.get_attribute, "src")
    handles = cell.locator(".widget-slider .noUi-handle")
    assert handles.count() == 2
    for i in range(2):
        end = partial(handles.nth(i).press, "End")
        took[f"viewer {i}"] = seconds_to_change(page, end, source)
    took["first token"] = seconds_to_change(page, cell.locator("input[type=checkbox]").click, source)
    text = cell.locator("input[type=text]").first
    text.fill("<script>document.title = 'bad'</script> 고양이 & \"quotes\"")
    took["text"] = seconds_to_change(page, partial(text.press, "Enter"), source)
    cell = widget_cell(page, "game-widget")
    story, said = (cell.locator(".widget-html-content").nth(i) for i in range(2))
    guess = cell.locator("input[type=text]")
    guess.fill("<img src=x onerror=\"document.title = 'bad'\">")
    took["guess"] = seconds_to_change(page, partial(guess.press, "Enter"), story.inner_text)
    assert "Score after 1: you 0" in said.inner_text()
    button = cell.get_by_role("button", name="I do not know")
    took["skip"] = seconds_to_change(page, button.click, said.inner_text)
    cell.locator("img.widget-image").wait_for()
    print({name: f"{seconds:.2f} s" for name, seconds in took.items()})
    assert page.title() != "bad"
    assert not page.complaints
