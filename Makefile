# Two commands matter: `make run` and `make test`.  Each sets up all it needs.  `make help` lists all.
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

# The checkout may be in a folder whose name is not ASCII, whatever the locale is: setuptools writes that name in the
# locale's encoding, and Python before 3.13 reads it so at every start.  From the .venv the way is always the same.
INSTALL = LC_ALL=C.UTF-8 $(BIN)/python -m pip install --quiet --disable-pip-version-check
RELATIVE = for file in $(VENV)/lib/python*/site-packages/__editable__*swtdx*.pth; do \
    if [ -e "$$file" ]; then echo ../../../../src >"$$file"; fi; done

# Tests that start no QEMU and fetch nothing.
FAST := not boot and not slow and not qemu and not network

.PHONY: run test fast lint cover bench mutants docs man wheel examples clean help

run: $(BASE)  ## Boot Linux as a trust domain, to a shell
	@$(BIN)/swtdx setup --quiet
	@$(BIN)/swtdx run; status=$$?; \
	    echo "To go on in this shell: . $(BIN)/activate; then swtdx --help, swtdx run --exec 'uname -a', ..." >&2; \
	    exit $$status

test: $(DEV)  ## All checks and all tests (JOBS=2, PYTEST='more words for pytest')
	@$(BIN)/swtdx setup --quiet --tests
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

fast: $(DEV)  ## The tests that need no QEMU: about a minute
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "$(FAST)" $(PYTEST)

cover: $(DEV)  ## What lines of src/swtdx those tests reach, file by file
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "$(FAST)" --cov $(PYTEST)

lint: $(DEV)  ## ruff, mypy and import-linter
	@$(BIN)/ruff check src tests benchmarks tools
	@$(BIN)/ruff format --check src tests benchmarks tools
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(DEV)  ## All benchmarks, and whether they keep what was promised
	@$(COMPILE)
	@$(BIN)/python -m benchmarks

mutants: $(DEV)  ## Plant faults and see which of them the tests see: docs/mutation.md
	@$(COMPILE)
	@$(BIN)/python -m tools.mutants --jobs $(JOBS)

docs: $(DEV)  ## The documentation as a site, in build/site
	@$(BIN)/python -m tools.site build/site

man: $(DEV)  ## Man pages of all commands, in build/man
	@$(BIN)/python -m tools.man_pages build/man

wheel: $(DEV)  ## A wheel and a source distribution, in dist
	@$(BIN)/python -m build --outdir dist

examples: $(DEV)  ## Install the wheel into a fresh environment, and run the examples there
	@$(BIN)/python -m tools.try_examples

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "swtdx needs Python 3.11 or later; give one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "swtdx needs Python's venv; Debian, Ubuntu: apt-get install python3-venv, and make again" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(BASE): pyproject.toml | $(BIN)/python
	@echo "Installing swtdx into $(VENV) (once) ..." >&2
	@$(INSTALL) -e '.[attestation]'
	@$(RELATIVE)
	@$(COMPILE)
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "Installing swtdx and its test tools into $(VENV) (once) ..." >&2
	@$(INSTALL) -e '.[dev]'
	@$(RELATIVE)
	@$(COMPILE)
	@touch $@ $(BASE)

clean:  ## Remove .venv and what was built
	rm -rf $(VENV) .test-cache build dist src/*.egg-info

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done
