# `make help` lists the targets. PYTHON is the interpreter that makes the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-slow-alone test-multinode docs bench bench-depth bench-gpu notebooks chaos check format lint types imports clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A stamp for each set of extras, renewed when pyproject.toml changes, so that nothing is installed twice.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	touch $@

$(VENV)/.installed-test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,test,docs]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,docs]'
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## search, train, certify and report on embedded digits (OUT=runs/demo)
	$(BIN)/raycrt demo --out $(OUT)

# Tests that start Ray run alone on the machine; the others run in parallel, one module per process at a time.
test: $(VENV)/.installed-test  ## run the fast test suite
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not cluster and not slow and not multinode"
	$(BIN)/python -m pytest -m "cluster and not slow"

# Warnings are shown here; in the fast suite they are errors.
test-slow: test-slow-alone  ## run the tests that take longer
	$(BIN)/python -m pytest -m "slow and cluster" -W default

test-slow-alone: $(VENV)/.installed-test  ## run those of them that start no Ray
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "slow and not cluster and not multinode" -W default

# Hosts are network namespaces, for which root is needed: the tests skip without.
test-multinode: $(VENV)/.installed-test  ## run the tests on a cluster of several hosts (root)
	$(BIN)/python -m pytest -m multinode -W default

# Parts of the reference are read from the program, so every page is made anew.
docs: $(VENV)/.installed-docs  ## build the site into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html

bench: $(VENV)/.installed-test  ## measure speed as ratios within one run (MNIST in RAYCRT_DATA)
	$(BIN)/python -m tests.benchmarks.certification --out runs/bench/certification.json
	$(BIN)/python -m tests.benchmarks.search --out runs/bench/search.json
	$(BIN)/python -m tests.benchmarks.training --out runs/bench/training.json
	$(BIN)/python -m tests.benchmarks.scale --out runs/bench/scale.json
	$(BIN)/python -m tests.benchmarks.verification --out runs/bench/verification.json

bench-depth: $(VENV)/.installed-test  ## measure certificates of deep networks against CROWN (auto_LiRPA, MNIST in RAYCRT_DATA)
	$(BIN)/python -m tests.benchmarks.depth --out runs/bench/depth.json

bench-gpu: $(VENV)/.installed-test  ## measure a GPU against the CPU beside it (MNIST in RAYCRT_DATA)
	$(BIN)/python -m tests.benchmarks.gpu --out runs/bench/gpu.json

notebooks: $(VENV)/.installed-test  ## run the notebooks anew and keep their outputs
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

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
	rm -rf $(VENV) docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache runs
