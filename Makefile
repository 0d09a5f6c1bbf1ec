# Two commands: `make demo` does the main job, `make test` passes the tests. Each sets up everything it needs in .venv first.

PYTHON ?= $(firstword $(foreach v,3.11 3.12,$(shell command -v python$(v))) python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-data test-rest test-slow robosuite lock clean
demo: .venv/.core
	@$(BIN)/robot-rl demo

test: .venv/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory -j2 test-data test-rest

# Two processes: TensorFlow, which tests/data use, and Numba, which robosuite does, crash each other in one.
test-data: .venv/.dev
	@$(BIN)/pytest tests/data
test-rest: .venv/.dev
	@$(BIN)/pytest --ignore=tests/data

test-slow: .venv/.dev
	@$(BIN)/pytest -m slow tests/data
	@$(BIN)/pytest -m slow --ignore=tests/data

# PyTorch first and alone: an unpinned one, asked for by another package, would pull the newest build there is.
.venv/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit(f"robot-rl needs Python 3.11 or 3.12, found {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "Setting up .venv (some minutes the first time) ..."
	@test -e .venv/.made || { $(PYTHON) -m venv --clear .venv && touch .venv/.made; }
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

# The second suite of tasks. robosuite asks for mink, which pins numpy<2 and serves a robot that is not used here.
robosuite: .venv/.robosuite
.venv/.robosuite: .venv/.core
	@echo "Adding robosuite ..."
	@$(PIP) -e '.[robosuite]'
	@$(PIP) --no-deps robosuite==1.5.2
	@touch $@

.venv/.dev: .venv/.robosuite
	@echo "Adding the test tools ..."
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps openpi-client==0.1.2 # the real client, whose pin numpy<2 is older than its code's needs
	@touch $@

# Resolve constraints.txt anew for every supported Python.
lock: .venv/.dev
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --extra dev --no-annotate --no-header pyproject.toml -o constraints.txt

clean:
	rm -rf .venv runs
