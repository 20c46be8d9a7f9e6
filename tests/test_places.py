"""What cannot be tried here (Colab, Binder, Docker) at least names what exists, in the versions of the course."""

import json
import re
import tomllib
from pathlib import Path

import nbformat

from utils import course

REPO = Path(__file__).parents[1]
PINS = dict(line.split("==") for line in (REPO / "requirements.txt").read_text().splitlines() if "==" in line)


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def test_one_address_everywhere(tmp_path, monkeypatch):
    address = tomllib.loads(read("pyproject.toml"))["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    names = ("pyproject.toml", "README.md", "JUPYTERHUB.md", "colab.ipynb")
    for name in names:
        found = re.findall(r"(?:github\.com|/github|/v2/gh)/([\w.-]+/[\w.-]+?)(?:\.git)?(?=[/\s\"')])", read(name))
        assert set(found) <= {address}, name
        (tmp_path / name).write_text(read(name))
    monkeypatch.setattr(course, "REPO", tmp_path)
    course.address("someone/else")
    texts = [(tmp_path / name).read_text() for name in names]
    assert not any(address in text for text in texts) and sum("someone/else" in text for text in texts) == 3


def test_colab_installs_pinned_packages_that_the_course_needs():
    install = next(cell.source for cell in nbformat.read(REPO / "colab.ipynb", 4).cells if cell.id == "install")
    names = re.search(r"\^\((.*)\)=", install)[1].split("|")
    assert set(names) <= set(PINS) and {"transformers", "datasets", "gguf", "peft"} <= set(names)
    (run,) = re.findall(r"%run ([\w.]+)", read("colab.ipynb"))
    assert (REPO / "notebooks" / run).exists()


def test_every_place_uses_the_same_torch_python_and_files():
    cpu = "--extra-index-url https://download.pytorch.org/whl/cpu"  # its torch==X+cpu is newer than torch==X
    assert f"{cpu} -r requirements.txt" in read("Dockerfile")
    assert read(".binder/requirements.txt").splitlines() == [cpu, "-r ../requirements.txt"]
    python = re.search(r"PYTHON \?= \$\(shell command -v python([\d.]+) ", read("Makefile"))[1]
    assert (
        f"FROM python:{python}-slim" in read("Dockerfile") and read(".binder/runtime.txt").strip() == f"python-{python}"
    )
    assert (
        REPO / ".devcontainer" / json.loads(read(".devcontainer/devcontainer.json"))["build"]["dockerfile"]
    ).exists()
    assert (REPO / ".binder" / "postBuild").stat().st_mode & 0o100
    for name in re.findall(r"COPY (?:--\S+ )?(\S+) ", read("Dockerfile")):
        assert (REPO / name).exists(), name
