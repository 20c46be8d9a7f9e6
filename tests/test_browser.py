"""Notebooks in a real browser: JupyterLab in headless Chromium, every widget pressed."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial

import nbformat
import pytest

from tests.test_notebooks import NOTEBOOKS

RUN_ALL = """async () => {
  const app = window.jupyterapp; await app.restored;
  const nb = app.shell.currentWidget;
  await nb.sessionContext.ready; await nb.sessionContext.session.kernel.info;
  await app.commands.execute('notebook:run-all-cells');
}"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with copies of the notebooks, set as for a lecture: the slow cells do a part of their work."""
    home = tmp_path_factory.mktemp("lab")
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        (home / path.name).write_text(text.replace("claims.live = False", "claims.live = True"), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def lab(home):
    """A JupyterLab on the notebooks' copies: its address."""
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
def page(lab, browser):
    """A page of the browser; its list `complaints` collects errors, those of the console too, and requests that leave this machine."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    debugger = "Could not restore the debugger state"  # JupyterLab's own, after a restart
    console = lambda line: line.text if line.type == "error" and not line.text.startswith(debugger) else ""  # noqa: E731
    page.on("console", lambda line: page.complaints.extend(filter(None, [console(line)])))
    page.on("request", lambda r: page.complaints.append(r.url) if lab not in r.url and r.url.startswith("http") else 0)
    yield page
    page.close()


@pytest.fixture(autouse=True)
def no_complaints(page):
    """After every test: no error in the page or its console, no request that left this machine, no script from a text."""
    page.evaluate("() => window.jupyterapp?.serviceManager.sessions.shutdownAll()")  # or all kernels keep their memory
    page.goto("about:blank")
    page.complaints.clear()
    yield
    assert page.complaints == [] and page.title() != "bad"


@pytest.fixture
def took(record_property) -> dict[str, float]:
    """The seconds that each widget took to answer; they are reported at the end."""
    took: dict[str, float] = {}
    record_property("seconds to answer", took)
    return took


def open_and_run(page, lab: str, name: str) -> None:
    """Open a notebook and run all its cells; fail if one of them does."""
    notebook = next(path for path in NOTEBOOKS if path.stem == name)
    page.goto(f"{lab}/lab/tree/{notebook.name}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    page.set_default_timeout(600_000)
    page.evaluate(RUN_ALL)
    page.set_default_timeout(20_000)
    cells = page.evaluate("window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells.map(c => c.toJSON())")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert all(cell["execution_count"] for cell in code)


def seconds_to_change(page, act, look, limit: float = 20) -> float:
    """Seconds from `act()` until `look()` returns something else, at most `limit`."""
    before, start = look(), time.perf_counter()
    act()
    while look() == before:
        assert time.perf_counter() - start < limit, "nothing changed"
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


def slide(page, cell, took: dict, name: str) -> None:
    """Move every slider of a cell from one end to the other: the picture or the words beside it must change."""
    picture, words = cell.locator("img.widget-image"), cell.locator(".widget-html-content")
    picture.wait_for()
    seen = lambda: (picture.get_attribute("src"), words.all_inner_texts())  # noqa: E731
    handles = cell.locator(".widget-slider .noUi-handle")
    for i in range(handles.count()):
        handles.nth(i).press("Home")
        page.wait_for_timeout(1000)
        took[f"{name} {i}"] = seconds_to_change(page, partial(handles.nth(i).press, "End"), seen)


def test_deck(page, lab, home, took):
    """Present: restart and run all from a slide, a bar under a slow cell, the widget on its slide moves."""
    notebook = nbformat.read(next(path for path in NOTEBOOKS if path.stem == "02_scaling"), as_version=4)
    kept = [
        "title",
        "setup",
        "claims-title",
        "claims",
        "calculator-figure",
        "calculator-widget",
        "induction-run",
        "end",
    ]
    notebook.cells = [cell for cell in notebook.cells if cell.id in kept]
    next(cell for cell in notebook.cells if cell.id == "induction-run").source = "time.sleep(3)"
    folder = home / "deck"
    folder.mkdir()
    nbformat.write(notebook, folder / "02_scaling.ipynb")
    page.goto(f"{lab}/lab/tree/deck/02_scaling.ipynb?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    do = "async id => { await window.jupyterapp.commands.execute(id); }"
    page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.ready; }")
    page.evaluate(do, "deck:start")
    page.evaluate("id => { window.jupyterapp.commands.execute(id); }", "notebook:restart-run-all")
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    bars = "[...document.querySelectorAll('.jp-OutputArea-output')].some(e => /about [0-9]+ s/.test(e.textContent))"
    seconds_to_change(page, accept.click, partial(page.evaluate, bars), limit=60)  # a bar under the slow cell
    page.evaluate("i => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i; }", len(kept) - 2)
    picture = page.locator("img.widget-image")
    picture.wait_for(timeout=60_000)
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for()
    took["on a slide"] = seconds_to_change(page, partial(handle.press, "End"), partial(picture.get_attribute, "src"))
    shown = page.locator(".jp-Cell").filter(visible=True)
    assert 0 < shown.count() < len(notebook.cells)
    page.evaluate(do, "deck:stop")


def test_scaling(page, lab, took):
    open_and_run(page, lab, "02_scaling")
    slide(page, widget_cell(page, "calculator-widget"), took, "calculator")
    assert len(took) == 5


def test_rlhf(page, lab, took):
    open_and_run(page, lab, "05_rlhf")
    slide(page, widget_cell(page, "slider-widget"), took, "beta")
    assert len(took) == 1


def test_decoding(page, lab, took):
    open_and_run(page, lab, "06_decoding")
    for id, sliders in (("beam-widget", 2), ("explorer-widget", 4)):
        cell = widget_cell(page, id)
        slide(page, cell, took, id)
        assert sum(name.startswith(id) for name in took) == sliders
    source = partial(cell.locator("img.widget-image").get_attribute, "src")
    text = cell.locator("input[type=text]").first
    text.fill("<script>document.title = 'bad'</script> & \"quotes\" 😀")
    took["text"] = seconds_to_change(page, partial(text.press, "Enter"), source)
    drawn = cell.locator(".widget-html-content").last
    button = cell.get_by_role("button", name="Draw 30 tokens")
    took["button"] = seconds_to_change(page, button.click, drawn.inner_text)


def test_foundation_models(page, lab, took):
    open_and_run(page, lab, "01_foundation_models")
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


def test_reward_modeling(page, lab, took):
    open_and_run(page, lab, "04_reward_modeling")
    cell = widget_cell(page, "label-widget")
    shown = cell.locator(".widget-html-content").first
    shown.wait_for()
    for name in ("A is better", "B is better", "Skip", "A is better"):
        button = cell.get_by_role("button", name=name)
        took[name] = seconds_to_change(page, button.click, shown.inner_text)
    told = cell.locator(".widget-html-content").last
    assert "3 labels" in told.inner_text()
    cell.get_by_role("button", name="Train on my labels").click()
    page.wait_for_function("() => document.body.innerText.includes('Trained: its loss on your labels')")
    cell = widget_cell(page, "inspector-widget")
    picture = cell.locator("img.widget-image")
    picture.wait_for()
    source = partial(picture.get_attribute, "src")
    text = cell.locator("input[type=text]").last
    text.fill("<script>document.title = 'bad'</script> & \"quotes\"")
    took["reply"] = seconds_to_change(page, partial(text.press, "Enter"), source)
    took["ready-made"] = seconds_to_change(page, cell.get_by_role("button", name="rude").click, source)
    took["request"] = seconds_to_change(page, lambda: cell.locator("select").first.select_option(index=3), source)


def test_instruction_tuning(page, lab, took):
    open_and_run(page, lab, "03_instruction_tuning")
    cell = widget_cell(page, "browser-widget")
    shown = cell.locator(".widget-html-content").last
    shown.wait_for()
    button = cell.get_by_role("button", name="Another item")
    took["another"] = seconds_to_change(page, button.click, shown.inner_html)
    for name in ("held out", "tuning"):
        split = cell.get_by_role("button", name=name)
        took[name] = seconds_to_change(page, split.click, shown.inner_html)
    tasks = cell.locator("select").first
    for place in (tasks.locator("option").count() - 1, 0):
        took[f"task {place}"] = seconds_to_change(
            page, lambda place=place: tasks.select_option(index=place), shown.inner_html
        )


def test_evaluation(page, lab, took):
    open_and_run(page, lab, "08_evaluation")
    cell = widget_cell(page, "arena-widget")
    picture = cell.locator("img.widget-image")
    picture.wait_for()
    source = partial(picture.get_attribute, "src")
    for name in ("A is better", "B is better", "Tie"):
        took[name] = seconds_to_change(page, cell.get_by_role("button", name=name).click, source)
    assert "A was" in cell.locator(".widget-html-content").last.inner_text()


def test_prompting(page, lab, took):
    open_and_run(page, lab, "07_prompting")
    cell = widget_cell(page, "workbench-widget")
    shown = cell.locator(".widget-html-content").last
    shown.wait_for()
    areas = cell.locator("textarea")
    assert areas.count() == 2
    areas.nth(0).fill("<img src=x onerror=\"document.title = 'bad'\"> Copy: <script>document.title = 'bad'</script>")
    areas.nth(1).fill('<b>고양이</b> & "quotes"')
    for name in ("run", "template"):
        button = cell.get_by_role("button", name="Run both")
        took[name] = seconds_to_change(page, button.click, shown.inner_text)
        page.wait_for_function("() => !document.body.innerText.includes('writing …')")
        cell.locator("input[type=checkbox]").click()
    assert shown.locator("img, script").count() == 0


def test_applications(page, lab, took):
    open_and_run(page, lab, "09_applications_and_limits")
    bad = "<script>document.title = 'bad'</script><img src=x onerror=\"document.title = 'bad'\"> 고양이"
    cell = widget_cell(page, "images-widget")
    slide(page, cell, took, "picture")
    source = partial(cell.locator("img.widget-image").get_attribute, "src")
    took["question"] = seconds_to_change(page, lambda: cell.locator("select").first.select_option(index=1), source)
    cell = widget_cell(page, "inspector-widget")
    words = cell.locator(".widget-html-content")
    words.first.wait_for()
    for i in range(2):
        box = cell.locator("input[type=text]").nth(i)
        box.fill(bad)
        took[f"inspector {i}"] = seconds_to_change(page, partial(box.press, "Enter"), words.all_inner_texts)
    for key in ("Home", "End"):
        press = partial(cell.locator(".widget-slider .noUi-handle").press, key)
        took[f"passages {key}"] = seconds_to_change(page, press, words.all_inner_texts)
    took["BM25"] = seconds_to_change(page, cell.get_by_role("button", name="BM25").click, words.all_inner_texts)
    cell.get_by_role("button", name="Answer").click()
    page.wait_for_function(
        "cell => cell.querySelectorAll('.widget-html-content')[1].innerText", arg=cell.element_handle()
    )
    idle = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status == 'idle'"
    page.wait_for_function(idle)  # the answer is written
    cell = widget_cell(page, "quiz-widget")
    words = cell.locator(".widget-html-content")
    took["answer"] = seconds_to_change(
        page, cell.get_by_role("button", name=re.compile(r"^a\)")).click, words.all_inner_texts
    )
    took["next"] = seconds_to_change(page, cell.get_by_role("button", name="Next").click, words.all_inner_texts)
    took["Korean"] = seconds_to_change(page, cell.get_by_role("button", name="한국어").click, words.all_inner_texts)
    cell = widget_cell(page, "chat-widget")
    cell.locator("input[type=text]").first.fill(bad)
    cell.locator(".widget-slider .noUi-handle").press("End")
    shown = cell.locator(".widget-html-content").last
    took["chat"] = seconds_to_change(page, cell.get_by_role("button", name="Ask all").click, shown.inner_text)
    assert bad in shown.inner_text() and shown.locator("img, script").count() == 0
