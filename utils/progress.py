"""A bar under each cell that is known to take long, while it runs in JupyterLab: nobody in a class wonders.

How long each cell took when its notebook was executed for the commit stands in data/times. `plots.style` switches the
bars on; where no front end names the cell it runs (nbconvert, nbval), there are none, so no output changes.
"""

import json
import os
from pathlib import Path

from IPython import get_ipython
from IPython.display import HTML, display

TIMES = Path(__file__).parents[1] / "data" / "times"
SLOW = 5  # seconds from which a cell gets a bar
BAR = """<style>@keyframes grow {{ to {{ width: 100% }} }}</style><div style="max-width:72em;background:#D0D3D6">
<div style="width:0;height:.6em;background:#0072B2;animation:grow {0}s linear forwards"></div></div>about {0} s"""


def seconds(notebook: str) -> dict[str, float]:
    """Cell id -> seconds, for the slow cells of a notebook ("06_decoding")."""
    file = TIMES / f"{notebook}.json"
    return json.loads(file.read_text())["cells"] if file.exists() else {}


def watch() -> None:
    """Show the bars in this kernel from now on; a second call changes nothing."""
    shell = get_ipython()
    known = seconds(Path(os.environ.get("JPY_SESSION_NAME", "")).stem)
    if shell is None or not known or hasattr(shell, "slow_cells"):
        return
    shell.slow_cells, shown = known, []

    def start(info):
        if info.cell_id in known:
            shown.append(display(HTML(BAR.format(round(known[info.cell_id]))), display_id=True))

    def stop(result):
        while shown:
            shown.pop().update(HTML(""))

    shell.events.register("pre_run_cell", start)
    shell.events.register("post_run_cell", stop)
