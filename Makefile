# Two commands matter: `make run` and `make test`.  Each sets up all it needs.
PYTHON ?= python3
#: Test processes side by side.
JOBS ?= 2
#: More words for pytest, e.g. make test PYTEST='-m "not boot and not slow"'
PYTEST ?=

VENV := .venv
BIN := $(VENV)/bin
# What has been installed: swtdx alone, or with all that its tests and checks need.
BASE := $(VENV)/.swtdx
DEV := $(VENV)/.swtdx-dev

# As an installation does; where PYTHONDONTWRITEBYTECODE is set, Python would do it anew at every start.
COMPILE = $(BIN)/python -m compileall -q src

.PHONY: run test lint bench clean

run: $(BASE)
	@$(BIN)/swtdx setup --quiet
	@$(BIN)/swtdx run

test: $(DEV)
	@$(BIN)/swtdx setup --quiet --tests
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

lint: $(DEV)
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(DEV)
	@$(COMPILE)
	@$(BIN)/python -m benchmarks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "swtdx needs Python 3.11 or later; give one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Debian, Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(BASE): pyproject.toml | $(BIN)/python
	@echo "Installing swtdx into $(VENV) (once) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@$(COMPILE)
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "Installing swtdx and its test tools into $(VENV) (once) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(COMPILE)
	@touch $@ $(BASE)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
