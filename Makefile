# make demo: set up, train and evaluate the demo. make test: set up, lint, check types, run the tests.
# make results: write docs/RESULTS.md from the studies in docs/results.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test slow results mutants

setup:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'

demo: setup
	$(BIN)/python scripts/train.py configs/demo.yaml
	$(BIN)/python scripts/eval.py runs/demo

# The tests' models are too small for a second thread, so the tests run side by side, one thread each (tests/conftest.py). A
# file's tests stay together, as they share what is slow to set up. Python may keep compiled files, since many
# tests start a Python of their own.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

results:
	$(BIN)/vse study --report docs/results/*.json --text docs/results/text.md --out docs/RESULTS.md

slow: setup
	$(BIN)/python -m pytest -m slow

# Hours for all modules, so in the background; it goes on where it stopped. make mutants MODULE=vse/metrics.py does one,
# and make mutants OPTIONS="--sample 50" tries 50 mutants of each.
mutants: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mutmut>=3.8'
	$(BIN)/python tests/mutants.py --survivors $(OPTIONS) $(MODULE)
