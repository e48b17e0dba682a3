# Two commands for a newcomer: `make demo` and `make test`. Both set everything up in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The first recipe line of pip needs torch named by itself: a looser pin would pull the CUDA build.
TORCH ?= torch==2.13.0

.PHONY: demo test lint figures setup clean
.DEFAULT_GOAL := demo

demo: setup  ## the whole story on embedded images: train, export, serve, answer with fallback, profile, report
	$(BIN)/harmony demo

test: setup  ## all tests
	$(BIN)/python -m pytest

lint: setup  ## style, types and the rules of who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All three run before anything is written: each says which commit it ran at, and a changed file would be another.
figures: setup  ## run the demo with three seeds and write what it measured into results/ and the README
	for seed in 0 1 2; do $(BIN)/harmony demo --seed $$seed --out runs/figures-$$seed || exit 1; done
	for seed in 0 1 2; do cp runs/figures-$$seed/results.json results/demo-$$seed.json || exit 1; done
	$(BIN)/harmony figures results/demo-0.json results/demo-1.json results/demo-2.json

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "HARMONY needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[all,dev]"
	touch $@

clean:  ## remove the environment and every cache, but no run
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
