# `make search` and `make test` need Python 3.11 or 3.12 with venv, nothing else.

PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

# The machine's own MPI where mpi4py finds its library; otherwise the mpich wheel brings one. An
# mpiexec of a virtual environment is of a library that no other environment finds.
SYSTEM_MPIEXEC := $(shell path=$$(command -v mpiexec) && \
	test ! -e "$$(dirname "$$path")/../pyvenv.cfg" && echo "$$path")
FINDS_MPI := import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI
MPIEXEC = $(or $(shell ls $(BIN)/mpiexec 2>/dev/null),$(SYSTEM_MPIEXEC),$(BIN)/mpiexec)
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
# Open MPI refuses root, and more ranks than cores, unless told otherwise.
OPEN_MPI = $(shell $(MPIEXEC) --version 2>/dev/null | grep -qE 'Open ?MPI|OpenRTE|PRRTE' && echo yes)
MPI_FLAGS = $(if $(OPEN_MPI),--oversubscribe $(if $(filter 0,$(shell id -u)),--allow-run-as-root))

.PHONY: setup search test lint format clean

setup: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with venv is needed"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(INSTALL) -e '.[dev]'
	@$(if $(SYSTEM_MPIEXEC),$(BIN)/python -c '$(FINDS_MPI)' 2>/dev/null ||) $(INSTALL) -e '.[mpich]'
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
	$(BIN)/mypy --python-version 3.10 -p oialr -p oialr_training
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(foreach folder,. workers workers/oialr,$(folder)/build $(folder)/*.egg-info)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
