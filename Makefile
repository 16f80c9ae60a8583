# What a newcomer, a developer and the checks call. `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup quickstart test test-data test-cuda test-slow check lint golden results reproduce constraints clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SPARK := .venv/.spark
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Two processes share the cores, so each computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
DATA := $(abspath $(or $(TURBOREC_TEST_DATA),../shared/data))

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: $(INSTALLED) ## make .venv and install the pinned packages into it

quickstart: setup ## train a recommender on the data that comes along, evaluate it and show recommendations
	$(BIN)/turborec train online-retail/sasrec

test: setup ## run the tests: about a quarter of an hour at most on two cores, no network, no other data
	$(PYTEST) -n 2 -m "not slow and not data" --doctest-modules src tests

test-data: setup ## run the tests that need the real data sets; none may be skipped
	@test -d "$(DATA)" || { echo "The real data sets are not in $(DATA): set TURBOREC_TEST_DATA to their folder." >&2; exit 1; }
	TURBOREC_TEST_DATA="$(DATA)" $(PYTEST) -n 2 -m "data and not slow" --no-skips tests

test-cuda: setup ## run the tests of what computes on a CUDA device, on one
	TURBOREC_TEST_CUDA=1 $(PYTEST) tests/nn tests/models tests/engine tests/test_losses.py tests/test_tiles.py

test-slow: $(SPARK) ## run soak tests and tests at full size, on Spark too
	$(PYTEST) -m slow tests

check: lint test ## all that a change must pass

lint: setup ## ruff, format, mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

golden: setup ## write the golden losses anew; read the difference before committing it
	$(BIN)/python tests/golden/test_golden.py

results: setup ## write benchmarks/RESULTS.md and the README's table from the committed rows
	$(BIN)/python benchmarks/tables.py

reproduce: setup ## run the command of a committed row again and compare: make reproduce ROW=benchmarks/results/…
	$(BIN)/python benchmarks/reproduce.py $(ROW)

constraints: $(SPARK) ## pin what .venv holds now
	{ grep '^#' constraints.txt; $(PIP) freeze --all --exclude-editable | sed -e '/^pip==/d' -e 's/+cpu$$//'; } > .venv/constraints.txt
	cp .venv/constraints.txt constraints.txt

clean: ## remove .venv, caches and build outputs; runs, stores and raw data stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "turborec needs Python 3.11 or newer, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv; without a cache this takes a minute or more."
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv .venv
	$(PIP) install -qq --constraint constraints.txt setuptools
	$(PIP) install -qq --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

$(SPARK): $(INSTALLED)
	@echo "Installing PySpark, which is large; it needs a Java runtime, 17 or 21."
	$(PIP) install -qq --constraint constraints.txt --no-build-isolation --editable '.[dev,spark]'
	@touch $@
