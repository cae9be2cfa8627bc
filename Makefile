# Two commands matter: `make run` and `make test`. Both set up all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: stub run test lint bench clean

run: $(STAMP)
	@$(BIN)/swtdx setup --quiet
	@$(BIN)/swtdx run

test: $(STAMP)
	@$(BIN)/swtdx setup --quiet
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(STAMP)
	@$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info

# Assemble the engine's stub after a change to its source (binutils).
STUB := src/swtdx/machine/engine/qemu/stub
stub: $(STAMP)
	@as --64 -o $(STUB).o $(STUB).S
	@ld -m elf_x86_64 -Ttext=0xF0000 --oformat binary -o $(STUB).img $(STUB).o
	@$(BIN)/python -c "import sys; from swtdx.machine.engine.qemu.process import compact_stub; sys.stdout.buffer.write(compact_stub(open('$(STUB).img', 'rb').read()))" > $(STUB).tmp
	@mv $(STUB).tmp $(STUB).bin && rm $(STUB).o $(STUB).img
