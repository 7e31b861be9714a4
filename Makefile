PYTHON ?= python3
VENV ?= .venv
DEMO ?=
BENCH ?=
TEST ?=
MUTANTS ?=
CHAOS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install test mutants chaos lint demo bench

help:
	@echo "make install   a virtual environment in $(VENV) with everything in it"
	@echo "make demo      pretrain, fine-tune and evaluate a policy in a few minutes (DEMO=--quick: shorter)"
	@echo "make test      the tests, on up to four cores (TEST='-n 0 tests/test_dppo.py': one file in one process)"
	@echo "make mutants   whether the tests notice faults, put in line by line, in about ten minutes (MUTANTS='dppo -j 4': some)"
	@echo "make chaos     runs killed, files damaged, an hour of training watched: hours (CHAOS='kills dppo -j 2': some)"
	@echo "make lint      ruff, mypy, and that no import runs up (import-linter)"
	@echo "make bench     speed measurements, tables and runs/bench/*.json"

install: $(STAMP)

# robomimic's egl_probe is built from source with CMake. Where the system has none pip's own is taken, which
# cannot be seen from an isolated build. Its CMakeLists.txt is too old for CMake 4 without the policy variable.
$(STAMP): export CMAKE_POLICY_VERSION_MINIMUM := 3.5
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13) and \
		"Burnish needs Python 3.10 to 3.12, this is " + sys.version.split()[0] + ": make install PYTHON=python3.11")'
	@command -v c++ >/dev/null || { echo "a C++ compiler is needed to build robomimic's egl_probe: install g++"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v cmake >/dev/null || { $(BIN)/python -m pip install --quiet cmake setuptools wheel && \
		PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --no-deps --no-build-isolation egl_probe; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# A worker takes up to 3 GB, so there are four at most. They take consecutive tests, for what a file's tests share.
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal --durations 10 $(TEST)

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py $(MUTANTS)

chaos: $(STAMP)
	$(BIN)/python tests/chaos $(CHAOS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(STAMP)
	$(BIN)/burnish demo $(DEMO)

bench: $(STAMP)
	mkdir -p runs/bench
	for name in costs envs rsm growth offline_to_online; do echo "== $$name"; \
		$(BIN)/python benchmarks/bench_$$name.py --json runs/bench/$$name.json $(BENCH) || exit 1; done
