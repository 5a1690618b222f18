# make demo, make test: everything, the environment included.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
JOBS ?= 2
SOURCES := effdense tasks datasets tools tests

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all check lint format types build clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

env: $(READY)  ## create .venv and install the project with all that it needs

# torch and torchvision come from the same index in one resolution, hence as a pair that fits.
$(READY): pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
		command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not found; name another: make PYTHON=/path/to/python3"; exit 2; }; \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
			{ echo "$$($(PYTHON) --version) is too old, effdense needs 3.10; name another: make PYTHON=python3.12"; exit 2; }; \
		$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(VENV) holds $$($(BIN)/python --version), effdense needs 3.10; remove $(VENV) and try again"; exit 2; }
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,lite,tensorboard,onnx,openvino]'
	@touch $@

demo: env  ## detection, segmentation and both at once on the demo set: train, evaluate, predict; results in runs/demo
	rm -rf $(DEMO)
	$(BIN)/python tools/train_det.py --backbone lite0 --dataset demo --epochs 20 --eval-every 5 --out $(DEMO)/detection
	$(BIN)/python tools/eval_det.py $(DEMO)/detection/best.safetensors --dataset demo --split test --out $(DEMO)/detection/eval
	$(BIN)/python tools/predict.py $(DEMO)/detection/best.safetensors --dataset demo --split test --out $(DEMO)/detection/drawn
	$(BIN)/python tools/train_seg.py --dataset demo --eval-every 5 --out $(DEMO)/segmentation
	$(BIN)/python tools/eval_seg.py $(DEMO)/segmentation/best.safetensors --dataset demo --split test --out $(DEMO)/segmentation/eval
	$(BIN)/python tools/predict.py $(DEMO)/segmentation/best.safetensors --dataset demo --split test --out $(DEMO)/segmentation/drawn
	$(BIN)/python tools/train_multi.py --dataset demo --epochs 10 --eval-every 5 --out $(DEMO)/multitask
	$(BIN)/python tools/eval_multi.py $(DEMO)/multitask/best.safetensors --dataset demo --split test --out $(DEMO)/multitask/eval
	$(BIN)/python tools/predict.py $(DEMO)/multitask/best.safetensors --dataset demo --split test --out $(DEMO)/multitask/drawn

test: check  ## every check: ruff, mypy strict, pytest without the slow ones, JOBS files at a time
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-all: check  ## the same and the slow tests, one by one
	$(BIN)/python -m pytest

check: lint types

lint: env  ## ruff: rules and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: env  ## let ruff put right what it can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

types: env  ## mypy, strict
	$(BIN)/mypy

build: env  ## sdist and wheel, in dist/
	$(BIN)/python -m build

clean:  ## remove what tests and builds leave; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
