# make quickstart | fewshot-demo | install | op | test | check | clean; `make help` says what each does.
# Everything happens in .venv; PYTHON names the interpreter that makes it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart fewshot-demo op test test-fast test-distributed check clean

help:
	@echo "make install      virtual environment in .venv with pinned versions"
	@echo "make quickstart   the main job on an embedded tiny model, no download; under 5 minutes"
	@echo "make fewshot-demo few-shot and in-context training against their controls; under 5 minutes"
	@echo "make op           compile the kernels of the fused loss ahead of their first use"
	@echo "make test         all tests: the fast ones, then those that start the deepspeed launcher"
	@echo "make check        formatter, linter, types, layers"
	@echo "make clean        remove .venv and caches; runs/ stays"

install: $(STAMP)

# pip resolves torch from the index that it is configured for; a torch that is there already
# (a CUDA build of your own, say) is kept when it is the pinned version
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| { echo "$(PYTHON) is older than 3.11; run make PYTHON=python3.12 install"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[dev,tensorboard,eval]'
	touch $(STAMP)

quickstart: install
	$(BIN)/ds-train quickstart

fewshot-demo: install
	$(BIN)/ds-train fewshot --demo runs/fewshot_demo

op: install
	$(BIN)/ds-train build

test: test-fast test-distributed

test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not distributed"

test-distributed: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
