"""Tests run with the network closed, here and in every process they start (tests/closed/sitecustomize.py)."""

import os
import runpy
from pathlib import Path

CLOSED = Path(__file__).parent / "tests" / "closed"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CLOSED), os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
# not imported: some systems have a module of that name, which is already loaded
runpy.run_path(str(CLOSED / "sitecustomize.py"))
