# Two commands do everything: `make demo` and `make test`. The rest is for those who change rlx.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test setup check lint types slow bench bench-envs docs wheel clean

help:
	@echo "make demo    install rlx, train PPO on CartPole until it is solved, evaluate it"
	@echo "make test    install everything and run the fast tests"
	@echo "make check   lint, types and the fast tests: what CI runs"
	@echo "make slow    the learning proofs (minutes)     make bench   the speed figures, beside Stable-Baselines3"
	@echo "make bench-envs   the speed of the grid worlds, which must not fall below its targets"
	@echo "make docs    the documentation as a site, docs/_build/html/index.html"
	@echo "make wheel   build dist/*.whl                  make clean   remove what make made"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"rlx needs Python 3.11 or newer, this is {sys.version.split()[0]}; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing rlx (a few minutes the first time: torch is large)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing rlx with its development tools (a few minutes the first time)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.core

setup: $(VENV)/.dev

demo: $(VENV)/.core
	$(BIN)/rlx train experiment=demo
	$(BIN)/rlx eval latest
	@echo "everything is in runs/; next: $(BIN)/rlx show, $(BIN)/rlx ls, $(BIN)/rlx train --help"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

slow: $(VENV)/.dev
	$(INSTALL) --editable '.[dev,ray]'
	$(BIN)/python -m pytest -m slow -q -s

bench: $(VENV)/.dev
	$(INSTALL) --editable '.[dev,bench]'
	$(BIN)/python tests/bench.py

bench-envs: $(VENV)/.dev
	$(BIN)/python tests/bench.py envs

docs: $(VENV)/.dev
	$(INSTALL) --editable '.[dev,docs]'
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) docs/_build dist build .mypy_cache .ruff_cache .pytest_cache
