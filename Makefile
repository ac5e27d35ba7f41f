# crossgap: `make help` lists what can be done here.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

BIN := .venv/bin
STAMP := .venv/.installed
PYTHON := $(BIN)/python
LISTEN ?= 127.0.0.1
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help setup packages demo test test-unit test-integration test-e2e torture ui \
	screenshots register bench bench-images bench-models lint format lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## virtual environment .venv from requirements.lock
	@echo "The environment is ready: .venv"

$(STAMP): requirements.lock pyproject.toml
	@sh deployments/make_venv.sh .venv
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input \
		--require-hashes -r requirements.lock
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input \
		--no-deps --no-build-isolation --editable .
	@touch $(STAMP)

packages: $(STAMP) ## the Debian packages that the tests need, installed when root
	@$(PYTHON) -m tests.packages

demo: $(STAMP) ## two pretend servers, a Prefect server, images shipped twice, a model fetched
	@$(PYTHON) -m deployments.demo

ui: $(STAMP) ## Prefect's UI with the demo's history, until Ctrl-C (LISTEN=ADDRESS for other desks)
	@$(PYTHON) -m deployments.ui --listen '$(LISTEN)'

screenshots: $(STAMP) ## docs/images/*.png from the demo's history
	@$(PYTHON) -m docs.screenshot

register: $(STAMP) ## block types and deployments, to the server that PREFECT_API_URL names
	@$(PYTHON) -m deployments.register

test: $(STAMP) packages ## all tests but the long ones (PYTEST_ARGS='-k name' picks some)
	@$(PYTHON) -m $(if $(PYTEST_ARGS),pytest $(PYTEST_ARGS),tests.run)

test-unit test-integration test-e2e: test-%: $(STAMP)
	@$(PYTHON) -m pytest tests/$* $(PYTEST_ARGS)

torture: $(STAMP) ## the long fault runs
	@$(PYTHON) -m pytest -m torture $(PYTEST_ARGS)

bench: bench-images bench-models ## crossgap beside the ways by hand; takes an hour

bench-images: $(STAMP) packages ## images only (BENCH_ARGS='--only update --runs 1')
	@$(PYTHON) -m benchmarks.images --json docs/benchmark.json --chart docs/images/benchmark.svg \
		$(BENCH_ARGS)

bench-models: $(STAMP) packages ## models only (BENCH_ARGS='--only one --runs 1')
	@$(PYTHON) -m benchmarks.models --json docs/benchmark-models.json \
		--chart docs/images/benchmark-models.svg $(BENCH_ARGS)

lint: $(STAMP) ## formatting, rules, types, and which package imports which
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## format the code and repair what can be repaired
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Extras stay in the pins: older pips take `name[extra]` for another thing than `name`.
lock: ## write requirements.lock from pyproject.toml anew (needs uv)
	@uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --group dev \
		--custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml >/dev/null

clean: ## remove what was built and cached here, and the demo's history
	@rm -rf --one-file-system .venv build *.egg-info .state .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
