# `make` alone lists the targets.
PYTHON ?= python3
SEED ?= 0
PORT ?= 8000
WORKERS ?= 2
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test test-unit check docs tree-table lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup:  ## make .venv from requirements/cpu.lock
	@$(PYTHON) cluster/setup.py

demo: setup  ## run the whole training loop on this machine (KEEP=1 leaves it up; SEED=, PORT=)
	@$(BIN)/python jobs/demo.py --seed $(SEED) --port $(PORT) $(if $(KEEP),--keep)

test-unit: setup  ## run the tests that need no engine, in WORKERS=2 processes: three minutes
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m unit tests/unit tests/contract

test: test-unit  ## run the whole test suite: test-unit, then those with real engines, one after the other
	@$(BIN)/python -m pytest -m "not unit"

check: setup docs  ## lint, types, import contracts, the documentation site
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: setup  ## build the documentation site in build/site, without network; warnings are errors
	@PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

tree-table: setup  ## print how the code is cut, before and after, for docs/architecture.md (COMMITS="A B")
	@$(BIN)/python docs/tools/tree_table.py $(COMMITS)

lock: setup  ## renew requirements/*.lock: versions only, no addresses
	@$(BIN)/python cluster/lock.py
