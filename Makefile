# Every command that a person, a hook or CI runs. `make` alone lists them.
#
# PYTHON=/path/to/python3.12 make quickstart     picks the interpreter; else the first that fits, 3.11 first,
#                                                since constraints.txt was tested on it.

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)

# One worker thread per test process: two processes share the cores. The tests need no hub.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n 2

BENCH ?= banking77 mrpc long_documents alpaca_gpt4_en predict
ROUNDS ?= 30
CLIENTS ?= 64
LOAD_ROUNDS ?= 5
KILLS ?= 30
FUZZ ?= 100000

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart test test-full faults test-house lint format bench load clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed  ## make .venv and install Chainrule into it

dev: $(VENV)/.installed-dev  ## the same with what the tests need

quickstart: $(VENV)/.installed  ## fine-tune, evaluate and predict on demo data
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/quickstart.sh

test: lint  ## lint, types, import contract and all tests but the slow ones
	$(PYTEST) -m "not slow and not bench"

test-full: lint  ## the same with the slow tests
	CHAINRULE_KILLS=3 $(PYTEST) -m "not bench"

faults: lint  ## kill trainings (KILLS=30 of each kind) and read files made to do harm (FUZZ=100000 of them); an hour
	CHAINRULE_KILLS=$(KILLS) CHAINRULE_FUZZ=$(FUZZ) $(PYTEST) -rP \
		tests/faults tests/training/test_checkpoint.py tests/api/test_resume.py

test-house: $(VENV)/.installed-dev  ## only the tests of the project's own rules (seconds)
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/house -m unit

lint: $(VENV)/.installed-dev  ## ruff, mypy and the import contract, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench  ## measure against other trainers that take turns (hours): BENCH="mrpc predict" ROUNDS=4
	for work in $(BENCH); do $(BIN)/python benchmarks/turns.py $$work --rounds $(ROUNDS) || exit 1; done
	$(BIN)/python benchmarks/tables.py --plot docs/images/speed.svg

load: $(VENV)/.installed-bench  ## requests of many clients to `chainrule serve` and to a plain server, in turn: CLIENTS=64 LOAD_ROUNDS=5
	$(BIN)/python benchmarks/load.py --clients $(CLIENTS) --rounds $(LOAD_ROUNDS) --picture docs/images/latency.svg

clean:  ## remove caches and build output; .venv and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml or constraints.txt only when something must be installed again.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with the venv module was found. Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); PyTorch is the largest part and takes a while."
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with what the tests need; PyTorch is the largest part and takes a while."
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[bench]'
	@touch $@ $(VENV)/.installed
