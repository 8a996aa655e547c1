# Every target sets up what it needs. PYTHON chooses the interpreter, FAISS=gpu the GPU build of Faiss, JOBS the processes
# that share the tests.
PYTHON ?= python3
FAISS ?= cpu
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed-$(FAISS)

.PHONY: setup demo test test-slow lint format bench clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(FAISS),dev]"
	touch $@

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: setup
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(JOBS) --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	@for script in baselines training encoding decoding memory; do \
		echo "== $$script"; $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:
	rm -rf .venv build *.egg-info demo.store
