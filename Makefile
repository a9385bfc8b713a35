# dlhpc: `make demo` sets up and trains on real photos, `make test` runs every check. See README.md.
# Set-up itself is Python: dlhpc.envs.bootstrap makes .venv, and `dlhpc env build` follows site/envs/cpu.yaml.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench clean test-tools

PYTHON ?= python3
VENV := .venv

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: python  ## the environment in .venv: dlhpc, torch, MPI, Horovod (about 10 minutes the first time)
	@$(PYTHON) -m dlhpc.envs.bootstrap $(VENV)
	@$(VENV)/bin/dlhpc env build cpu --prefix $(VENV)

demo: setup  ## train a network on real faces with two ranks, then name unseen photos
	@sh docs/examples/faces/demo.sh

test: test-tools  ## all checks: lint, types, fast tests, then end to end
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict dlhpc
	$(VENV)/bin/python -m pytest -m "not e2e"
	$(VENV)/bin/python -m pytest -m e2e

lint: test-tools  ## ruff and mypy only
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict dlhpc

bench: setup  ## benchmarks; they print ratios
	@$(VENV)/bin/dlhpc env build cpu --prefix $(VENV) --extra bench
	$(VENV)/bin/python -m tests.bench

clean:  ## remove .venv and what tools left; cached wheels in ~/.cache/dlhpc stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find dlhpc tests -name __pycache__ -prune -exec rm -rf {} +

test-tools: setup
	@$(VENV)/bin/dlhpc env build cpu --prefix $(VENV) --extra test

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "dlhpc needs Python 3.11 or newer; name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
