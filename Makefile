# quasar-node: everything a fresh clone needs is Linux, Python 3.11+, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install devnet test check lint types imports clean

help:
	@echo "make devnet   install, then run a whole subnet on this machine (ARGS='--short --keep --json')"
	@echo "make test     install, then run every test that this machine can run"
	@echo "make check    lint, types, import direction and tests"
	@echo "make install  only create $(VENV)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test "$$(uname -s)" = Linux || { echo "quasar-node runs on Linux only, and this is $$(uname -s)." >&2; exit 1; }
	@command -v git >/dev/null || { echo "git is missing: install it (Debian: apt-get install git)." >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1): set PYTHON=python3.x." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@command -v bwrap >/dev/null || echo "bubblewrap is missing: submissions would run in a weaker sandbox or, for root, in none, which only the local chain allows (Debian: apt-get install bubblewrap)." >&2
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

devnet: $(STAMP)
	$(BIN)/quasar-node devnet $(ARGS)

test: $(STAMP)
	$(BIN)/pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

check: lint types imports test

clean:
	rm -rf $(VENV) *.egg-info build .mypy_cache .ruff_cache .pytest_cache .hypothesis
