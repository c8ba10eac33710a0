# make demo: set up, train and evaluate the demo. make test: set up, lint, check types, run the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow

setup:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'

demo: setup
	$(BIN)/python scripts/train.py configs/demo.yaml
	$(BIN)/python scripts/eval.py runs/demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow
