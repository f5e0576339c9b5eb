# Every target sets up what it needs. Stamps are by content, so a second run
# of anything takes seconds. Downloads and builds are kept in $(CACHE).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tailnet-dev
SECONDS ?= 60

.PHONY: help install peers demo test test-fast check bench bench-quick fuzz fmt lock proto clean

help:
	@echo "make demo    two real clients send a file through the relay"
	@echo "make test    everything CI runs"
	@echo "make check   format, lint, types, layering and the tests without peers"
	@echo "make bench   relay and coordinator beside the real ones; writes docs/benchmarks.md"
	@echo "make bench-quick   the short form; prints the table"
	@echo "make fuzz SECONDS=300   every decoder"
	@echo "make fmt     format the code"
	@echo "make proto   the Python code of our .proto files, anew"

install: $(VENV)/.installed

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed (set PYTHON=...)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

lock: install
	$(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --strip-extras \
	  --allow-unsafe --extra dev -o requirements/dev.txt pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --strip-extras \
	  --allow-unsafe -o requirements/peers.txt requirements/peers.in

# The real peers of tests/interop; all that cannot be had is named with a reason.
peers: install
	@$(BIN)/python tools/install_peers.py

demo: install
	@$(BIN)/python tools/install_peers.py wheels
	@$(BIN)/python -m demo.relay_demo $(DEMO)

# Builds the load generator, derper and Coder's coordinator, if there are cargo and Go. BENCH takes
# further options, such as BENCH='--only tls-* --reps 5'.
bench: install
	@$(BIN)/python tools/install_peers.py wheels programs coder
	@$(BIN)/python -m bench --out docs/benchmarks.md $(BENCH)

bench-quick: install
	@$(BIN)/python tools/install_peers.py wheels programs coder
	@$(BIN)/python -m bench --quick $(BENCH)

# Every decoder, the time divided among them. Without atheris (see
# requirements/fuzz.txt) the runner mutates blindly.
fuzz: install
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/fuzz.txt || \
	  echo "fuzz: atheris cannot be had here, so inputs are mutated blindly"
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)

proto: install
	$(BIN)/python tools/generate_proto.py

fmt: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: install
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not interop"

# In this order, so that the cheap things fail first.
test: check peers
	$(BIN)/python -m pytest -q -m interop
	@$(MAKE) --no-print-directory bench-quick

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
