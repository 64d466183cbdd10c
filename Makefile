# Each target makes what it needs, so `make demo` and `make test` work as they stand on a bare machine.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# pytest-xdist processes; 0 runs in one process. Extra pytest arguments: make test ARGS="-k ledger"
WORKERS ?= 2
ARGS ?=
# The first interpreter that answers and is new enough; override with make PYTHON=/path/to/python
MIN_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(MIN_PYTHON)' 2>/dev/null && echo "$$p" && break; done)
# Debian's packages, and the programs that show they are there: all of them for tests, two for the demonstration.
MONITOR_PROGRAMS := prometheus promtool prometheus-alertmanager amtool
MONITOR_PACKAGES := prometheus prometheus-alertmanager
SERVER_PROGRAMS := $(MONITOR_PROGRAMS) pg_ctlcluster redis-server
SERVER_PACKAGES := $(MONITOR_PACKAGES) postgresql redis-server

# Phoenix pins other versions than we do, so it lives apart, and where every checkout finds it. 850 MB.
PHOENIX := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dspy-observe/phoenix
PHOENIX_PINS := tests/phoenix-constraints.txt

.PHONY: phoenix help demo test lint bench dashboards schema pictures monitors servers clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed-all monitors  ## observe a real program, deploy a bad version, see it rolled back
	$(BIN)/python -m dspy_observe.demo

# The cache folder is a fresh one, so that no answer of an earlier run is taken for a call of this one.
test: $(VENV)/.installed-dev servers  ## run the whole suite, strictly
	@cache=$$(mktemp -d); trap 'rm -rf "$$cache"' EXIT; \
	DSPY_OBSERVE_STRICT=1 DSPY_CACHEDIR="$$cache" $(BIN)/pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-all $(VENV)/.installed-bench  ## cost per call as a ratio to a no-op callback, beside the peers
	$(BIN)/python -m tests.benchmarks

dashboards: $(VENV)/.installed-all  ## generate dashboards/: Grafana JSON, rules, alerts and their tests, runbook
	$(BIN)/dspy-observe dashboards generate --out dashboards

schema: $(VENV)/.installed-dev  ## type-check the dashboards against Grafana's TypeScript schema; needs Node and npm
	$(BIN)/python -m tests.grafana_schema

pictures: $(VENV)/.installed-dev servers  ## draw the dashboards with live data; needs Node, npm, Chromium, 6 minutes
	@cache=$$(mktemp -d); trap 'rm -rf "$$cache"' EXIT; \
	DSPY_CACHEDIR="$$cache" $(BIN)/python -m tests.pictures --work $(VENV)/pictures $(ARGS)

# One stamp per extra; pip runs again only when the requirements or the pins are newer than the stamp.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]' -c constraints.txt
	@touch $@

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed and was not found. On Debian 12: apt-get install python3 python3-venv" >&2; exit 1; fi
	@"$(PYTHON)" -c '$(MIN_PYTHON)' || { echo "$(PYTHON) is older than Python 3.11." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

monitors: PROGRAMS := $(MONITOR_PROGRAMS)
monitors: PACKAGES := $(MONITOR_PACKAGES)
monitors:  ## install Debian's Prometheus and Alertmanager where they are missing, as root
servers: PROGRAMS := $(SERVER_PROGRAMS)
servers: PACKAGES := $(SERVER_PACKAGES)
servers:  ## the same with PostgreSQL and Redis, which tests need besides

# Only the programs are wanted: policy-rc.d keeps Debian from starting services, and is taken away again.
monitors servers:
	@missing=; for p in $(PROGRAMS); do command -v "$$p" >/dev/null || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "Missing:$$missing. What needs them will say so. On Debian, as root: apt-get install $(PACKAGES)" >&2; exit 0; fi; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e "$$policy" ]; then \
		trap 'rm -f "$$policy"' EXIT; printf '#!/bin/sh\nexit 101\n' > "$$policy"; chmod +x "$$policy"; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $(PACKAGES); } || \
		echo "Could not install $(PACKAGES). What needs them will say so." >&2

phoenix: $(PHOENIX)/installed-constraints.txt  ## install Phoenix, outside the checkout, for the test that sends it spans

$(PHOENIX)/installed-constraints.txt: $(PHOENIX_PINS) | $(BIN)/python
	$(BIN)/python -m venv --clear $(PHOENIX)
	$(PHOENIX)/bin/python -m pip install --quiet --disable-pip-version-check arize-phoenix -c $(PHOENIX_PINS)
	@cp $(PHOENIX_PINS) $@

clean:  ## remove the virtual environment, builds and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
