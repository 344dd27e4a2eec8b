# Every target sets itself up: on a fresh Debian machine `make demo` and `make test` need nothing before them.
.DEFAULT_GOAL := help
.PHONY: help setup lock demo services check test docs base-image clean
SHELL := /bin/bash
BIN := .venv/bin
ARGS ?=
WORKERS ?= 3
PYTHON_SCRIPTS := scripts/with-docker scripts/base-image scripts/pack-service scripts/check-links
SERVICES := $(patsubst services/%/TOSCA-Metadata/TOSCA.meta,build/%.csar,$(wildcard services/*/TOSCA-Metadata/TOSCA.meta))

help: ## show this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## /  make \1\t/' | expand -t 22

setup: ## make .venv with pinned packages; as root also install Docker, network tools and Chromium
	@scripts/setup

lock: setup ## pin the newest allowed versions in requirements.lock
	@scripts/lock

demo: setup ## run three sites on this machine (ARGS="--stay" leaves them running)
	@scripts/with-docker scripts/in-engine $(BIN)/cornerstore demo $(ARGS)

base-image: setup ## build cornerstore/python:3.11 in the running engine
	@scripts/with-docker --require $(BIN)/python scripts/base-image

services: $(SERVICES) ## pack the demo services into build/*.csar

build/%.csar: setup
	@mkdir -p build
	@$(BIN)/python scripts/pack-service services/$* $@

%.wasm: %.wat | setup
	@$(BIN)/python -c 'import sys, wasmtime; open(sys.argv[2], "wb").write(wasmtime.wat2wasm(open(sys.argv[1]).read()))' $< $@

check: setup ## lint, format, types, floors
	@$(BIN)/ruff check . $(PYTHON_SCRIPTS)
	@$(BIN)/ruff format --check . $(PYTHON_SCRIPTS)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/check-links

# More workers than cores, because many tests wait for timers. Those of a group (tests/conftest.py) stay in one worker.
test: setup ## run every test (ARGS="tests/unit -k word" narrows; WORKERS=0: one after the other, for --pdb)
	@scripts/with-docker scripts/in-engine $(BIN)/pytest -n $(WORKERS) --dist loadgroup $(ARGS)

docs: setup ## check the links between the Markdown pages
	@$(BIN)/python scripts/check-links

bench-paper: services

bench-%: setup ## run one benchmark, for example bench-cold-start
	@scripts/with-docker scripts/in-engine $(BIN)/python -m benchmarks.$(subst -,_,$*) $(ARGS)

clean: ## remove what make built (not .venv, not ~/.cache/cornerstore)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
