# `make help` lists the targets. PYTHON is the interpreter that makes the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench chaos check format lint types imports clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A stamp for each set of extras, renewed when pyproject.toml changes, so that nothing is installed twice.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	touch $@

$(VENV)/.installed-test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,test]'
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## search, train, certify and report on embedded digits (OUT=runs/demo)
	$(BIN)/raycrt demo --out $(OUT)

# Tests that start Ray run alone on the machine; the others run in parallel, one module per process at a time.
test: $(VENV)/.installed-test  ## run the fast test suite
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not cluster and not slow"
	$(BIN)/python -m pytest -m "cluster and not slow"

# Warnings are shown here; in the fast suite they are errors.
test-slow: $(VENV)/.installed-test  ## run the tests that take longer
	$(BIN)/python -m pytest -m slow -W default

bench: $(VENV)/.installed-test  ## measure speed as ratios within one run (MNIST in RAYCRT_DATA)
	$(BIN)/python -m tests.benchmarks.certification --out runs/bench/certification.json
	$(BIN)/python -m tests.benchmarks.search --out runs/bench/search.json
	$(BIN)/python -m tests.benchmarks.training --out runs/bench/training.json
	$(BIN)/python -m tests.benchmarks.scale --out runs/bench/scale.json

chaos: $(VENV)/.installed-test  ## certify while processes are killed a hundred times at random
	$(BIN)/python -m tests.chaos.harness --kills 100 --out runs/chaos

check: format lint types imports test  ## everything that must hold before a commit

format: $(VENV)/.installed-test  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-test  ## lint
	$(BIN)/ruff check .

types: $(VENV)/.installed-test  ## check the types
	$(BIN)/mypy

imports: $(VENV)/.installed-test  ## check the import direction
	$(BIN)/lint-imports

clean:  ## remove the virtual environment and everything that was built or written
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache runs
