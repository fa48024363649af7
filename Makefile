# Two commands matter: `make run` and `make test`. Each sets up what it needs.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
PREFIX ?= /opt/gpu-arbiter
DESTDIR ?=
WORKERS ?= 8
SKIPPED := not real and not device and not every
# what make coverage found, rounded down: a change may raise them, not lower them
FLOOR_CORE := 90
FLOOR_REST := 50
export VENV
# Compiled modules are kept: a suite of a thousand processes would compile them in each.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all test-fast check coverage mutate test-real test-faults test-device bench bench-gateway bench-overflow bench-policies bench-switch invariants fuzz soak install uninstall clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## the virtual environment and the Debian packages
	@scripts/setup dev

run: ## the daemon: for real as root on a GPU host with /etc/gpu-arbiter.toml, else the demo
	@scripts/setup dev
	@exec $(PY) -m arbiterd.sim.run $(ARGS)

test: ## lint, types, import contracts, and every test that needs no GPU and no real engine
	@scripts/setup dev
	@$(MAKE) --no-print-directory check
	@if [ "$$(id -u)" != 0 ]; then echo "make test: not root, so the system tests (a real systemd) are skipped"; fi
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m "$(SKIPPED)"

test-all: ## as test, with its costly repetitions: every container pairing, kill points, 10,000 requests
	@$(MAKE) --no-print-directory test SKIPPED="not real and not device"

test-fast: ## the tests that start no process, under a minute: for daily work
	@scripts/setup dev
	$(PY) -m pytest -q -n 2 --dist worksteal --fast

check: ## ruff, mypy --strict, import contracts, spelling, shell scripts, unit files
	@scripts/setup dev
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/mypy --no-error-summary arbiterd tests
	@said=$$($(VENV)/bin/lint-imports --no-cache 2>&1) || { printf '%s\n' "$$said"; exit 1; }
	@$(VENV)/bin/codespell
	@$(VENV)/bin/shellcheck --severity=warning scripts/* .ci/run tests/system/systemd-box tests/system/container-host
	@scripts/check-units
	@echo "check: ruff, mypy --strict, import contracts, codespell, shellcheck, systemd-analyze verify: OK"

coverage: ## branch coverage by the tests that start no process: core and the rest, each with its floor
	@scripts/setup dev
	$(VENV)/bin/coverage run -m pytest -q -n 0 -p no:randomly $(addprefix tests/,core pins golden config engines report fit settings)
	$(VENV)/bin/coverage report --include='arbiterd/core/*,arbiterd/core/*/*' --skip-covered --show-missing --fail-under=$(FLOOR_CORE)
	$(VENV)/bin/coverage report --omit='arbiterd/core/*,arbiterd/core/*/*,arbiterd/sim/*' --format=total --fail-under=$(FLOOR_REST)

COUNT ?= 300
mutate: ## COUNT small changes of core, chosen by SEED: at least 90 % are noticed by its tests (JOBS)
	@scripts/setup dev
	nice -n 15 $(PY) -m tests.mutate --count $(COUNT) $(if $(JOBS),--jobs $(JOBS)) $(if $(filter command% env%,$(origin SEED)),--seed $(SEED))

test-real: ## real vLLM and llama.cpp on the CPU (downloads about 700 MB once), a real Ollama where OLLAMA or PATH has one
	@scripts/setup dev
	@scripts/setup-vllm
	@scripts/setup-llama
	$(PY) -m pytest -q -s -p no:randomly -m real tests/real_engines tests/conformance

test-faults: ## every fault of the table, then 300 SIGKILLs by a seed: at most 45 minutes (ARGS='PATTERN...' '--kills 20 --seed 7')
	@scripts/setup dev
	$(PY) -m tests.faults $(ARGS)

test-device: ## real NVML and PyTorch (skipped with its reason where there is no GPU)
	@scripts/setup dev
	$(PY) -m pytest -q -s -p no:randomly -m device tests/device

bench: ## figure, goal, today, ratio: footprint, tick, readers, growth, doors beside nginx (docs/benchmarks.md)
	@scripts/setup dev
	$(PY) -m tests.bench

bench-gateway: ## the doors beside nginx (and LiteLLM, where LITELLM=its command): needs nginx and wrk
	@scripts/setup dev
	@command -v nginx wrk >/dev/null || { echo "please install: apt-get install nginx-light wrk" >&2; exit 1; }
	$(PY) -m tests.bench.gateway

bench-policies: ## ours, none, a threshold killer and an oracle in the same worlds; slopes; a healthy week (SCENARIOS, DAYS, JOBS)
	@scripts/setup dev
	$(PY) -m tests.bench.policies

RUNS ?= 3000
invariants: ## the rules in RUNS random worlds
	@scripts/setup dev
	INVARIANT_RUNS=$(RUNS) $(PY) -m pytest -q --tb=short --timeout=7200 tests/core/test_invariants.py

MINUTES ?= 10
SEED ?= 11
fuzz: ## hostile input for every reader of what others write, MINUTES in all (JOBS, SEED, ARGS): docs/reliability.md
	@scripts/setup dev
	@scripts/setup-fuzz
	PYTHONPATH=$(CURDIR)/.venv-fuzz $(PY) -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

soak: ## load and random faults on the simulated host for MINUTES: does anything grow? (SEED, ARGS): docs/reliability.md
	@scripts/setup dev
	$(PY) -m tests.soak --minutes $(MINUTES) --seed $(SEED) $(ARGS)

bench-overflow: ## from a card that runs short to the brake at the door and the bytes back: five scenarios
	@scripts/setup dev
	$(PY) -m tests.bench.overflow $(ARGS)

bench-switch: ## A → B → A beside the engines' own stops and starts
	@scripts/setup dev
	$(PY) -m tests.bench.switch

install: ## venv, units, users, config, journal catalogue (PREFIX and DESTDIR honoured)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' scripts/install

uninstall: ## what `make install` put in place; config and state stay (PURGE=1 removes them)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' PURGE='$(PURGE)' scripts/uninstall

clean: ## build outputs
	rm -rf build _build .mypy_cache .ruff_cache .hypothesis .pytest_cache .coverage
