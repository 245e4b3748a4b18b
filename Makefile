# hf_msa: every target sets up what it needs; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A file of versions for pip, see test-lowest.
CONSTRAINTS ?=
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
# torch comes first. Where no GPU is found it comes from PyTorch's own index of CPU builds, or from the default index where that
# one cannot be reached: on Linux the default index has a build with gigabytes of CUDA. Other builds: TORCH_INDEX=URL, and
# TORCH_INDEX= for the default index; other versions: TORCH="torch>=2.13".
TORCH ?= torch==2.13.0
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,https://download.pytorch.org/whl/cpu)
DATA ?= demo

# Spinning OpenMP threads can cost 40x as soon as anything else runs on the same cores.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-lowest lint style types secrets advisories site audit format bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --retries 1 --index-url "$(TORCH_INDEX)" "$(TORCH)" || )$(PIP) "$(TORCH)"
	$(PIP) -e ".[dev]"
	touch $@

setup: $(VENV)/.installed  ## make .venv with everything for development

demo: setup  ## generate data, train TCMR, evaluate at ten missing rates, predict: all on a CPU
	PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/demo.sh $(DATA)

test: setup  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

test-slow: setup  ## run the slow tests: resume after a kill, several processes, full runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# Another environment beside the first, made anew where a bound has changed.
LOWEST = $(VENV)-lowest
test-lowest: setup  ## run the tests with the lowest versions that pyproject.toml allows
	$(BIN)/python scripts/lowest_versions.py > $(VENV)/lowest.txt
	$(MAKE) test VENV=$(LOWEST) CONSTRAINTS=$(VENV)/lowest.txt TORCH=torch

lint: style types secrets advisories  ## all checks of the code: style, types, secrets; and tell known vulnerabilities

# Each check stands here alone; .pre-commit-config.yaml calls them by name.
style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Entropy is no sign of a secret here: hashes are everywhere. Tokens of the Hub are no kind of secret that the tool knows.
secrets: setup
	git ls-files -z ':!docs/results' | xargs -0 $(BIN)/detect-secrets-hook --no-verify \
	  --disable-plugin HexHighEntropyString --disable-plugin Base64HighEntropyString
	! git grep -nIE 'hf_[A-Za-z0-9]{30,}'

advisories: setup
	$(BIN)/python scripts/audit.py

site: setup  ## build the documentation site into site/; fails on a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

audit: setup  ## fail for known vulnerabilities of what is installed
	$(BIN)/python scripts/audit.py --strict

format: setup  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure training and evaluation throughput against the reference behaviour
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.cascade

clean:  ## remove what was built, but not what was trained
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache build dist site src/*.egg-info
