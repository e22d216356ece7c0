# `make` alone lists the targets.
PYTHON ?= python3
SEED ?= 0
PORT ?= 8000
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test check docs tree-table lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup:  ## make .venv from requirements/cpu.lock
	@$(PYTHON) cluster/setup.py

demo: setup  ## run the whole training loop on this machine (KEEP=1 leaves it up; SEED=, PORT=)
	@$(BIN)/python jobs/demo.py --seed $(SEED) --port $(PORT) $(if $(KEEP),--keep)

test: setup  ## run the whole test suite, the real engines included
	@$(BIN)/python -m pytest

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
