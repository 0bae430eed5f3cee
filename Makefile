# Every target sets up by itself what it needs: Python 3.11 or newer and a package index are enough.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup train smoke bench test faults matrix golden check data eval export serve tiny-base clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TINY := .cache/tiny-base/model.safetensors
SMOKE := build/smoke

# RECIPE=json-extract  BASE=tiny  SET="lora.r=32 seed=1"
RECIPE ?=
OPTIONS = $(if $(BASE),--base $(BASE)) $(foreach pair,$(SET),--set $(pair))

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo
	@echo 'recipes: $(filter-out bases,$(basename $(notdir $(wildcard recipes/*.yaml))))'

setup: $(READY) ## Make .venv with the pinned set

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: $(READY) $(if $(filter tiny,$(BASE))$(filter smoke%,$(RECIPE)),tiny-base) ## RECIPE=<name> [BASE=<name>]: the whole line, data to verdict and bundle
	@$(call need_recipe)
	$(BIN)/tunesmith run $(RECIPE) $(OPTIONS)

data: $(READY) tiny-base ## Make the rows of every task
	@for name in $(filter-out bases,$(basename $(notdir $(wildcard recipes/*.yaml)))); do $(BIN)/tunesmith curate $$name || exit $$?; done

eval: $(READY) ## RECIPE=<name>: answer the gate rows with every arm, and judge
	@$(call need_recipe)
	$(BIN)/tunesmith evaluate $(RECIPE) $(OPTIONS)
	$(BIN)/tunesmith gate $(RECIPE) $(OPTIONS)

export: $(READY) ## RECIPE=<name>: write the bundle of a run that ships
	@$(call need_recipe)
	$(BIN)/tunesmith export $(RECIPE) $(OPTIONS)

serve: $(READY) ## BUNDLE=dist/<name>-<version>: OpenAI-compatible HTTP on localhost, by transformers' own server
	@test -d "$(BUNDLE)/merged" || { echo 'serve: set BUNDLE=dist/<name>-<version>; there are: $(wildcard dist/*)' >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve]'
	$(BIN)/tunesmith verify $(BUNDLE)
	HF_HUB_OFFLINE=1 $(BIN)/transformers serve $(BUNDLE)/merged --host localhost

tiny-base: $(TINY) ## Make the tiny random base that smoke and tests use

$(TINY): scripts/make_tiny_base.py | $(READY)
	$(BIN)/python scripts/make_tiny_base.py --out $(@D)

smoke: $(READY) tiny-base ## The whole line on the tiny base, LoRA, QLoRA and preferences, in about two minutes
	rm -rf $(SMOKE)
	$(BIN)/tunesmith run smoke --runs $(SMOKE)/lora --dist $(SMOKE)/dist
	$(BIN)/tunesmith run smoke-qlora --runs $(SMOKE)/qlora --dist $(SMOKE)/dist
	$(BIN)/tunesmith run smoke-dpo --runs $(SMOKE)/lora --dist $(SMOKE)/dist

# The ratio was 1.25 when it was recorded (docs/BENCHMARKS.md); a fifth less fails.
bench: $(READY) tiny-base ## Our training step beside trl's on the tiny base: fails if the ratio has fallen by a fifth
	$(BIN)/python scripts/bench_train.py --recipe smoke --ways tuned ours --steps 17 --rounds 3 --no-memory --at-least 1.0

check: $(READY) ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process a core, each with one thread: the steps of the tests are too small for more.
test: $(READY) ## All tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST)

faults: $(READY) ## The tests of faults, with 200 kills at random points
	TUNESMITH_KILLS=200 $(BIN)/python -m pytest tests/faults -rP -k "again_and_again"
	$(BIN)/python -m pytest tests/faults

golden: $(READY) tiny-base ## Record the losses of the smoke runs anew; refuses a tree with uncommitted changes
	OMP_NUM_THREADS=1 $(BIN)/python scripts/record_golden.py

matrix: $(READY) tiny-base ## The thirty silent faults, planted in plain trl and in ours; writes the table of docs/FOOTGUNS.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fault_matrix.py --write docs/FOOTGUNS.md

clean: ## Delete what was made here: environment, tiny base, runs, bundles, rows
	rm -rf $(VENV) .cache build runs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	rm -rf data/*/*.jsonl data/*/manifest.json data/*/report.html data/*/curve

define need_recipe
test -n "$(RECIPE)" || { echo 'set RECIPE=<name>; `make help` lists the recipes' >&2; exit 2; }
endef
