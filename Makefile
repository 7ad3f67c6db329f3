# The commands of development. Each calls what exists; none knows more than it. `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help install build test lint docs tables bench-quick compare wheels sanitize ci

PYTHON ?= python

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: ## the package in place, with all extras, and the C kernels if there is a compiler
	$(PYTHON) -m pip install --editable ".[all]"

build: ## the C kernels again, in place
	$(PYTHON) setup.py --quiet build_ext --inplace

test: ## the tests
	$(PYTHON) -m pytest

lint: ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

docs: ## the pages, into build/docs
	$(PYTHON) -m sphinx -W --keep-going -q docs build/docs

tables: ## the measured tables of the README and the pages, anew; some ten minutes on an idle machine
	$(PYTHON) docs/tables.py README.md docs/guide/numerics.md docs/guide/choosing.md docs/guide/digits.md

bench-quick: ## the quick set of the benchmarks, under three minutes
	$(PYTHON) -m pytest benchmarks -m quick

compare: ## layouts, backends and threads on this machine
	cpunorm compare --quick

wheels: ## what is installed from where: Pythons, compilers, oldest dependencies
	.ci/wheels

sanitize: ## the C kernels under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer, and for aarch64
	.ci/sanitize

ci: ## everything that has to hold
	bash .ci/run
