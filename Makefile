# Two commands on a fresh clone do everything: `make demo` and `make test`. Each makes its own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two tests at once, each on one thread: faster than one on two, and no more memory than a small machine has. Slow ones
# are handed out one by one: the longest, of files of real size, stand first, and none is left for one worker at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

.PHONY: help demo test test-fast test-comfy lint fix clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.amdet ## scan the pocket encoders that ship with the package, and paint what was found
	$(BIN)/amdet demo --out amdet-demo

test: lint test-fast ## everything that CI runs: lint, types, fast tests, then the slow ones
	$(PYTEST) --maxschedchunk=1 -m "slow"

test-comfy: $(VENV)/.amdet-dev ## the nodes in the ComfyUI at COMFYUI_PATH, or where comfy-cli installs one
	$(BIN)/python -m pytest -q tests/comfy

test-fast: $(VENV)/.amdet-dev ## the fast tests alone
	$(PYTEST) --dist worksteal -m "not slow" tests/test_*.py tests/core tests/cli tests/comfy

lint: $(VENV)/.amdet-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.amdet-dev ## repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.amdet: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[render]"
	touch $@

$(VENV)/.amdet-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.amdet

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
