# Every target sets up what it needs by itself. `make help` lists them.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
OUT ?= runs/demo
COMM_OUT ?= runs/communication
TRAINING_OUT ?= runs/training
COMPARISON_OUT ?= runs/comparison
JOBS ?= 2
RUNS ?= 300
FUZZ_COUNT ?= 1000000
FUZZ_OUT ?= runs/fuzz
ONLY ?=
UV_VERSION := 0.13.9
# What `make servers` looks for beside PostgreSQL, and the Debian package it is in.
TOOLS := haproxy:haproxy tc:iproute2 chromium:chromium promtool:prometheus nginx:nginx systemd-analyze:systemd
# Folder or page with extra wheels (a CPU build of torch, say). Unset, pip's own setting is taken; unset too, all comes from PyPI.
UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# Fast tests first, then every other folder of tests there is, then those that measure times and want the machine for themselves.
FAST_TESTS := tests/unit tests/property
SLOW_TESTS := $(filter-out $(addsuffix /,$(FAST_TESTS)),$(sort $(wildcard tests/*/)))
TIMED_TESTS := $(addprefix tests/integration/,test_communication_lines.py test_reconnect.py test_torchrun.py)
CHECKED := aggregator site_agent shared experiments tests docs

# One stamp per set of extras: set up once, and again only when the pins change.
DEMO_READY := $(VENV)/.ready-demo
DEV_READY := $(VENV)/.ready-dev

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(DEV_READY) ## the environment in .venv with everything: run, test, check

.PHONY: demo
demo: $(DEMO_READY) ## four hospitals and an aggregator, end to end (SEED=0, OUT=runs/demo)
	@$(BIN)/python -m experiments.demo --seed $(SEED) --out $(OUT)

.PHONY: servers
servers: ## real servers and tools that the tests use (PostgreSQL, HAProxy, Chromium, ...); installed when run as root
	@missing=""; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing="$$missing libnginx-mod-stream"; \
	for pair in $(TOOLS); do \
	  PATH="$$PATH:/usr/sbin" command -v "$${pair%:*}" >/dev/null || missing="$$missing $${pair#*:}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing"; log=$$(mktemp); \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	    >"$$log" 2>&1 && { rm "$$log"; exit 0; }; \
	  tail -n 5 "$$log" >&2; \
	fi; \
	echo "the tests need$$missing; install with: sudo apt install$$missing" >&2; exit 1

.PHONY: test
test: $(DEV_READY) servers ## the whole suite, fast tests first
	@status=0; \
	$(FAST) || status=$$?; \
	[ $$status != 2 ] || exit 2; \
	$(SIDE_BY_SIDE) --dist loadfile --durations=25 $(SLOW_TESTS) $(addprefix --ignore=,$(TIMED_TESTS)) || status=$$?; \
	[ $$status != 2 ] || exit 2; \
	$(PYTEST) $(TIMED_TESTS) || status=$$?; \
	exit $$status

.PHONY: test-unit
test-unit: $(DEV_READY) servers ## unit and property tests only
	@$(FAST)

.PHONY: check-long
check-long: $(DEV_READY) servers ## every command of the pages that takes over a minute, as it stands; hours (ONLY=pattern)
	@$(BIN)/python -m tests.docs.long $(ONLY)

.PHONY: chaos
chaos: $(DEV_READY) servers ## kills, cuts and full disks at seeded moments, with figures; half an hour (RUNS=300, SEED=0, JOBS=2)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos all --runs $(RUNS) --seed $(SEED) --jobs $(JOBS)

.PHONY: fuzz
fuzz: $(DEV_READY) ## a million hostile files, updates and message streams, with figures; about twenty minutes (FUZZ_COUNT=1000000, SEED=0, JOBS=2)
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --count $(FUZZ_COUNT) --seed $(SEED) --jobs $(JOBS) --out $(FUZZ_OUT)

.PHONY: bench-comm
bench-comm: $(DEV_READY) servers ## what communication costs: wire, idle, slow line, orchestration, bytes to target; about an hour, as root (COMM_OUT=runs/communication)
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m experiments.communication all --out $(COMM_OUT)

.PHONY: bench-training
bench-training: $(DEV_READY) ## what training costs: steps, floor, cache, epochs, memory, equality, views; an hour, on an idle machine (TRAINING_OUT=runs/training)
	@$(BIN)/python -m experiments.training all --jobs $(JOBS) --out $(TRAINING_OUT)

.PHONY: comparison
comparison: $(DEV_READY) ## all methods tuned, compared and reported on SYNTHETIC cohorts; some hours, goes on where it stopped (COMPARISON_OUT=runs/comparison)
	@$(BIN)/python -m experiments.comparison run --jobs $(JOBS) --out $(COMPARISON_OUT)

.PHONY: check
check: $(DEV_READY) ## format, lint, types, import contracts, protocol style; changes nothing
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/buf lint proto

.PHONY: format
format: $(DEV_READY) ## rewrite the code in the house format
	$(BIN)/ruff check --fix --select I $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

.PHONY: proto
proto: ## regenerate the protocol's Python code beside the .proto files
	proto/generate.sh

.PHONY: reference
reference: $(DEV_READY) ## docs/reference from the code and the .proto files
	@$(BIN)/python docs/generate_reference.py

.PHONY: pins
pins: $(DEV_READY) ## bring constraints.txt up to pyproject.toml; UPGRADE=--upgrade for the newest of everything
	env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile --quiet --universal --no-header --no-annotate $(UPGRADE) \
	  --extra dev --output-file constraints.txt pyproject.toml

.PHONY: clean
clean: ## remove environments and caches; results in runs/ stay
	rm -rf $(VENV) .proto-venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find aggregator site_agent shared proto experiments tests -type d -name __pycache__ -prune -exec rm -rf {} +

# One thread a process: sums of floats depend on how many there are. Exit status 2 is an interruption.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest
SIDE_BY_SIDE := $(PYTEST) -n $(JOBS)
FAST := $(SIDE_BY_SIDE) $(FAST_TESTS)

# $(call install,EXTRAS): pinned uv, which takes seconds; plain pip with the same pins where uv does not work.
define install
@links="$(UV_FIND_LINKS)"; \
[ -n "$$links" ] || links=$$($(BIN)/python -m pip config get global.find-links 2>/dev/null | tr '\n' ' ' || true); \
[ -z "$$links" ] || export UV_FIND_LINKS="$$(echo $$links | tr ' ' ',')" PIP_FIND_LINKS="$$links"; \
echo "setting up $(VENV) with [$(1)]"; \
{ $(BIN)/python -m pip install -qq --disable-pip-version-check 'uv==$(UV_VERSION)' \
  && UV_COMPILE_BYTECODE=1 $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(1)]'; } \
|| { echo 'uv could not do it; trying pip, which takes longer'; \
  $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'; }
endef

$(DEMO_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,site$(comma)report)
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,dev)
	@touch $(DEMO_READY) $@

comma := ,

# The first Python that is new enough, unless PYTHON names one.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv $(VENV) && exit 0 || { rm -rf $(VENV); exit 1; }; \
	  fi; \
	done; \
	echo "Python 3.11 or newer with its venv module is needed: apt install python3 python3-venv make git, or make PYTHON=/path/to/python3.11" >&2; \
	exit 1
