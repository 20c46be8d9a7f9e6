# Two commands: `make course` runs the course, `make test` passes its tests. README.md has each line for machines without make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = .venv/bin

.PHONY: course test lab slides bench fetch notebooks pins

course: .venv/course
	$(BIN)/python -m utils.course

test: .venv/test fetch
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	  || { apt-get update -qq && apt-get install -qq -y chromium; } >/dev/null 2>&1 || $(BIN)/playwright install chromium \
	  || echo "WARNING: no Chromium could be installed: the browser tests will be skipped."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout=300 tests notebooks
	$(BIN)/python -m utils.claims --check

lab: .venv/course fetch
	$(BIN)/jupyter lab notebooks

slides: .venv/course
	$(BIN)/python -m utils.slides

bench: .venv/course fetch
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_training
	$(BIN)/python -m tests.bench_rlhf

# Run the notebooks in place, for a commit.
notebooks: .venv/course fetch
	$(BIN)/python -m utils.course --in-place

fetch: .venv/course
	@$(BIN)/python -m utils.course --fetch

.venv/course: requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'You need Python 3.11 or newer; name it: make course PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	@touch $@

.venv/test: requirements-dev.txt .venv/course
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@

# Compile the pins again from pyproject.toml, without what only torch's CUDA build needs.
PINS = uv pip compile -q pyproject.toml --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --no-header
pins:
	$(PINS) -o requirements.txt
	$(PINS) --extra dev -c requirements.txt -o requirements-dev.txt
	sed -i -E 's/\+cpu//; /^(cuda|nvidia|triton)/d' requirements.txt requirements-dev.txt
