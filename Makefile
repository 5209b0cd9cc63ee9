# Every target makes .venv by itself and reuses it as long as pyproject.toml does not change.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
OUT ?= bench/results

VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev
PEERS := $(VENV)/.peers
STAGE := $(VENV)/stage
OLDEST := .venv-oldest
CPU_RESULTS := $(OUT)/cpu.json

# Two workers on however many cores: most of a run is compiling, which is serial in each worker. How many threads the
# kernels use is set in tests/conftest.py. Tests of one xdist_group share what their fixtures build.
BENCH := $(BIN)/python -m pytest -q -p no:xdist -W default -p no:cacheprovider
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: help train test test-all test-oldest torture lint bench bench-quick bench-baseline bench-results performance gpu clean
.DEFAULT_GOAL := help

help:
	@echo 'make train      train the demo model, live in the terminal  (ARGS="--help" lists its options)'
	@echo 'make test       the test suite, less the slow and networked tests  (ARGS="-k adam", WORKERS=4)'
	@echo 'make test-all   every test'
	@echo 'make test-oldest  the tests with the lowest versions of all that fastopt needs'
	@echo 'make torture    a minute of interrupted steps: each must be whole or not done  (ARGS="--seconds 600");'
	@echo '                then 300 kills of a process that trains and saves: nothing may be lost'
	@echo 'make lint       ruff, mypy and import-linter'
	@echo 'make bench      every optimizer against the memory and other libraries, as ratios that must hold'
	@echo '                (ARGS="--cases gpt2"); bench-quick: a few; bench-baseline: keep this processor'\''s ratios;'
	@echo '                bench-results: all figures, into $(OUT); performance: docs/performance.md from them'
	@echo 'make gpu        on a machine with a CUDA GPU: its tests, then fastopt against torch  (OUT=folder, ARGS=...)'
	@echo 'make clean      remove .venv and everything built'
	@echo 'PYTHON=python3.12 chooses the interpreter that .venv is made with (3.11 or newer).'

train: $(DEMO)
	$(BIN)/fastopt train $(ARGS)

test: $(DEV)
	$(PYTEST) -m "not full" $(ARGS)

test-all: $(DEV)
	$(PYTEST) $(ARGS)

# With the lowest versions that pyproject.toml allows: what CPUs need, then what GPUs need, which is more of Numba. What
# trains with optimizers that it is given is left out: fastopt imports none of it. No warning is an error: old packages
# warn of what newer ones change.
test-oldest:
	$(call install-oldest,keras demo)
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -W default -m "not full" --ignore-glob 'tests/*cuda*' \
	  --ignore tests/test_bench_gpu.py --ignore tests/test_interpreted.py --ignore tests/test_torch_libraries.py $(ARGS)
	$(call install-oldest,ptx keras demo)
	$(OLDEST)/bin/python -m pytest -n 0 -W default -m "not full" \
	  tests/test_cuda_program.py tests/test_cuda_ptx.py tests/test_kernels.py tests/test_interpreted.py $(ARGS)

define install-oldest
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/oldest.py $(1) > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

torture: $(DEV)
	$(BIN)/python tests/torture.py $(ARGS)
	$(BIN)/python tests/torture_checkpoints.py

# mypy and import-linter look at folders, not at the import hook of an editable install, so they would not find kernels/
# under the name fastopt.kernels: they get a normal install.
lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build $(STAGE)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(STAGE) .
	rm -rf build
	cd $(STAGE) && ../bin/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p fastopt
	cd $(STAGE) && ../bin/lint-imports --no-logo --config $(CURDIR)/pyproject.toml

# Exit status 75 of pytest: cases were not measured, as the machine was busy, and nothing else was wrong.
# Peers are used in the newest versions that there are: optional, and not for the tests. Of large models, three take
# part, the fastest as a rule: to set the others up and wait for them would take minutes.
bench: $(PEERS)
	@mkdir -p build/bench
	$(BENCH) bench/test_cases.py bench/test_functions.py bench/test_tables.py bench/test_formats.py bench/test_deepspeed.py bench/test_checkpoints.py \
	  --fewer-peers --benchmark-json=build/bench/pytest-benchmark.json $(ARGS)

# Threads that wait without spinning: whatever else runs on the machine then costs least.
bench-quick: $(DEV)
	OMP_WAIT_POLICY=passive $(BENCH) bench/test_cases.py --quick --seconds=0.6 $(ARGS)

# Of three runs: half an hour, on a machine that does nothing else.
bench-baseline: $(PEERS)
	@mkdir -p build/bench && rm -f build/bench/[123].json
	-for run in 1 2 3; do $(BENCH) bench/test_cases.py --baseline=none --results=build/bench/$$run.json $(ARGS); done
	$(BIN)/python bench/baseline.py build/bench/1.json build/bench/2.json build/bench/3.json

# Everything that docs/performance.md shows: some twenty minutes, on a machine that does nothing else.
bench-results: $(PEERS)
	rm -f $(CPU_RESULTS)
	-$(BENCH) bench/test_cases.py bench/test_functions.py --results=$(CPU_RESULTS) $(ARGS)
	$(BIN)/python bench/scaling.py --results=$(CPU_RESULTS)
	$(BIN)/python bench/start.py --results=$(CPU_RESULTS)
	$(BIN)/python bench/keras_step.py --results=$(CPU_RESULTS)
	$(BIN)/python bench/torch_step.py --results=$(CPU_RESULTS)

performance: $(DEV)
	$(BIN)/python bench/performance.py $(ARGS)

# With the Python of a machine that has a GPU, and what is installed there: no .venv, no network.
gpu:
	$(PYTHON) bench/gpu/gpu.py --out '$(OUT)' $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .benchmarks .hypothesis .import_linter_cache \
	  .kernels .mypy_cache .pytest_cache .ruff_cache
	find fastopt kernels tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is written only after everything before it went well, so an interrupted installation is taken up again.
# The first one holds the path of the checkout: a venv is full of absolute paths and does not survive a move or a copy.
ifneq ($(shell test -x $(BIN)/python && cat $(MADE) 2>/dev/null),$(CURDIR))
.PHONY: $(MADE)
endif

# Where PYTHON is given and is not what .venv was made with, it is made anew. Without PYTHON, any will do.
WHICH := -c 'import sys; print(sys.hexversion, sys.abiflags, sys.base_prefix)'
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) $(WHICH) 2>/dev/null),$(shell $(BIN)/python $(WHICH) 2>/dev/null))
.PHONY: $(MADE)
endif
endif

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'fastopt needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@printf '%s' '$(CURDIR)' > $@

$(DEMO): pyproject.toml $(MADE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

# On top of the demo stamp, not beside it: two pips must not write to one venv at a time.
$(DEV): pyproject.toml $(DEMO)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(PEERS): pyproject.toml $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation deepspeed ninja bitsandbytes
	@$(BIN)/python -c 'from fastopt.bench.peers.deepspeed import DeepSpeed; print(DeepSpeed.missing() or "DeepSpeed: built")'
	@touch $@
