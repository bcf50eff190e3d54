# `make search` and `make test` need Python 3.11 or 3.12 with venv, nothing else.

PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

# The machine's own MPI where there is one; otherwise the mpich wheel brings one.
SYSTEM_MPIEXEC := $(shell command -v mpiexec)
EXTRAS := $(if $(SYSTEM_MPIEXEC),dev,dev$(shell printf ,)mpich)
MPIEXEC = $(if $(SYSTEM_MPIEXEC),$(SYSTEM_MPIEXEC),$(BIN)/mpiexec)
# Open MPI refuses root, and more ranks than cores, unless told otherwise.
OPEN_MPI = $(shell $(MPIEXEC) --version 2>/dev/null | grep -qE 'Open ?MPI|OpenRTE|PRRTE' && echo yes)
MPI_FLAGS = $(if $(OPEN_MPI),--oversubscribe $(if $(filter 0,$(shell id -u)),--allow-run-as-root))

.PHONY: setup search test lint format clean

setup: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with venv is needed"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[$(EXTRAS)]'
	@touch $@

search: setup
	$(MPIEXEC) $(MPI_FLAGS) -n 2 $(BIN)/oialr-search run search_spaces/minivit_digits.yaml
	$(BIN)/oialr-search leaderboard
	$(BIN)/oialr-search export -o best.yaml

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
