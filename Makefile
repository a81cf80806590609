# Everything a developer runs. `make` alone lists the targets; ARGS="..." is handed to the command behind a target.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.fxprune-installed
DUMP ?= build/dump
GPU_CACHE ?= build/gpu

.DEFAULT_GOAL := help
.PHONY: help setup demo ticket test test-all bench layers zoo gpu gpu-prepare format check golden dump metrics clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install fxprune with everything that the targets below need

$(STAMP): pyproject.toml
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "fxprune links its kernels with a C++ compiler and found none (c++, g++, clang++)."; \
	  echo "Install one, e.g.: apt-get install g++"; exit 1; }
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fxprune needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one, e.g.: make setup PYTHON=python3.11"; exit 1; }; \
	  echo "Creating $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "$(PYTHON) cannot create a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }; }
	$(BIN)/python -m pip install --editable ".[dev,bench,fleet]"
	@touch $@

demo: $(STAMP) ## prune ResNet-50 to 20 %, compile it, check the result, time it beside the dense engines
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: $(STAMP) ## the fast tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(STAMP) ## every test, slow ones too, with ten times the random examples
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=long $(ARGS)

ticket: $(STAMP) ## find lottery tickets on real images, retrain, compile and time them; goes on where it was stopped
	$(BIN)/python -m benchmarks.ticket $(ARGS)

bench: ARGS ?= --model resnet50 --batch 1 --sparsity 0.8 --structure rowgroup
bench: $(STAMP) ## one benchmark row, all engines side by side; ARGS="--model vgg16_bn --batch 16 ..."
	$(BIN)/python -m benchmarks.run $(ARGS)

layers: ARGS ?= --model resnet50 --sparsity 0.8
layers: $(STAMP) ## every convolution by itself: share of this machine's peak, and what limits the worst
	$(BIN)/python -m benchmarks.layers $(ARGS)

zoo: $(STAMP) ## channel elimination on 90 networks, every kind of mask; ARGS="--tier B", "--models resnet18 --quick"
	$(BIN)/python -m benchmarks.zoo $(ARGS)

gpu-prepare: $(STAMP) ## compile all that `make gpu` runs, on any machine with nvcc; ARGS="--arch sm_80 --models resnet50"
	FXPRUNE_CACHE_DIR=$(GPU_CACHE) $(BIN)/python -m tests.gpu.prepare
	FXPRUNE_CACHE_DIR=$(GPU_CACHE) $(BIN)/python -m benchmarks.gpu prepare $(ARGS)

gpu: $(STAMP) ## on a machine with a GPU: check every kernel and whole models, then time them beside torch
	FXPRUNE_CACHE_DIR=$(GPU_CACHE) $(BIN)/python -m pytest tests/gpu
	@if command -v compute-sanitizer >/dev/null; then \
	  FXPRUNE_CACHE_DIR=$(GPU_CACHE) compute-sanitizer --error-exitcode 1 \
	    $(BIN)/python -m pytest tests/gpu/test_columns_on_gpu.py; \
	else echo "compute-sanitizer is not installed: no check of every memory access"; fi
	FXPRUNE_CACHE_DIR=$(GPU_CACHE) $(BIN)/python -m benchmarks.gpu run $(ARGS)

format: $(STAMP) ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(STAMP) ## format, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

golden: $(STAMP) ## rewrite the golden files of the tests; read the difference before committing it
	$(BIN)/python -m pytest --update-golden $(ARGS)

dump: $(STAMP) ## write every stage of a compiled ResNet-18 to build/dump
	FXPRUNE_DUMP=$(DUMP) $(BIN)/python -m scripts.dump_resnet18
	@ls $(DUMP)

metrics: $(STAMP) ## sizes, annotations and docstrings of the code, one row a folder
	$(BIN)/python scripts/metrics.py

clean: ## remove caches, dumps and build outputs (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
