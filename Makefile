# setup: .venv with everything; demo: the whole path; test: lint, types, tests; bench: the real-data table
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= results

.PHONY: setup demo test lint bench clean system

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

system:
	bash tools/system_packages.sh

demo: setup
	$(BIN)/hscc-edge demo --out demo --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup system lint
	$(BIN)/python -m pytest

bench: setup
	@test -n "$(DATA)" || { echo "error: give the pictures' directory: make bench DATA=DIR"; exit 2; }
	$(BIN)/python benchmarks/brain_mri.py --data "$(DATA)" --out "$(OUT)"

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
