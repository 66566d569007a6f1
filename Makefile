# Everything runs in the checkout's own virtual environment, .venv, made on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test soak faults bench lint check wheel clean

help:  ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Play a fleet's day on a real Postgres, then audit it
	$(BIN)/command-registry demo

test: $(READY)  ## Run all tests, on a real Postgres that they start themselves
	$(BIN)/pytest -n 2

soak: $(READY)  ## Kill, stall, lose and race read models for longer: about half an hour
	COMMAND_REGISTRY_TEST_SOAK=1 $(BIN)/pytest -n 2 --timeout 1800 tests/test_rebuild.py tests/test_projector.py

faults: $(READY)  ## Kill, fill, stall, cut, jump and cancel for longer: about an hour (docs/reliability.md)
	COMMAND_REGISTRY_TEST_SOAK=1 $(BIN)/pytest -n 2 --timeout 3600 -rA tests/faults tests/test_lifecycle_machine.py

bench: $(READY)  ## Measure the registry beside pgbench, COPY and eventsourcing: about twenty minutes (ARGS=--help)
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(READY)  ## Check style, types and the layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test wheel  ## All of it: what has to pass before a change lands

wheel: $(READY)  ## Build the wheel, and try it in a virtual environment of its own
	rm -rf dist
	$(BIN)/python -m build --installer pip --outdir dist . 2>&1 | tail -n 1
	tests/smoke.sh dist/*.whl

clean:  ## Remove the virtual environment and all that was built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis .import_linter_cache
