# `make demo`, `make test` and `make bench` each set the environment up first; the second time that is instant.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo consortium test lint types unit slow bench

help:
	@echo "make demo    set up, then run studies/demo.toml with every arm"
	@echo "make consortium  set up, then a coordinator and three hospitals on this machine, over TLS"
	@echo "make test    set up, then lint, types and the fast tests with coverage"
	@echo "make slow    set up, then the slow tests"
	@echo "make bench   set up, then every benchmark with --quick"

# deepspeed (extra `gpu`) adds about three seconds and is pure Python until its first use, so one environment
# serves a laptop, CI and a GPU host alike.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gpu]'
	$(BIN)/python -m pip check
	touch $@

setup: $(READY)

demo: setup
	$(BIN)/wardround simulate studies/demo.toml

consortium: setup
	docs/examples/consortium.sh

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

# One process a core, 8 at most: each imports torch and makes its own session fixtures. The slow tests mostly wait for
# Flower's own delays, so two files at a time; tests of one file share the nodes that they start.
unit: setup
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 8 --dist worksteal \
		--cov=common --cov=client --cov=server --cov-report=term:skip-covered

test: lint types unit

slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

bench: setup
	@set -e; for file in benchmarks/[!_]*.py; do \
		name=$$(basename $$file .py); \
		echo "== benchmarks.$$name"; \
		$(BIN)/python -m benchmarks.$$name --quick; \
	done
