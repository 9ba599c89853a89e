# make quickstart   install, download a real corpus, run everything, print the report's path
# make test         install, run every test that this machine can run; say what was skipped and why (LONG=1: the slow too)
# make check        format, lint, types, imports, house
# make bench        every benchmark script, its goals, figures as JSON, a page of plots; the README's numbers checked
# make soak         two hours of kills, flipped bits, full disks and clock changes over a small run
# make fuzz         a million changed inputs for each reader of files, settings and signed statements
# make install      install the program alone, for a container or a cluster
# make site         the documentation as a web site, in build/site

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
# The newest python of PATH that is at least 3.11; `make PYTHON=python3.12 ...` chooses another.
PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13; do \
	$$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
# Without setuptools' box of warnings that an installation may be edited.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONFIG ?= configs/quickstart.toml
CLUSTER ?= tests/cluster
# A thread to each process, since more would wait for one another; and where a test asks for two, the one that waits
# sleeps: by default it spins, which took up to four times the CPU time where other processes shared the cores.
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# A test file to a process, a process to a core.
PYTEST := $(THREADS) $(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: install site quickstart handbook test test-slow test-cluster check types lint format tree picture pictures bench soak fuzz clean

install: $(VENV)/installed

quickstart: $(VENV)/installed
	@$(BIN)/assay run $(CONFIG)

handbook: $(VENV)/installed
	@$(BIN)/assay run configs/handbook.toml

# All but the house rules, which `make check` runs. LONG=1: with the tests of `make test-slow`, in the same processes.
test: $(VENV)/installed-dev
	@$(PYTEST) --ignore=tests/test_house.py $(if $(LONG),-m "not cluster" --durations=30,-m "not slow and not network and not cluster")

# Reading all test files takes half a CPU-minute a process, so that of the other two suites are named.
test-slow: $(VENV)/installed-dev
	@$(PYTEST) -m "slow or network" --durations=15 $$(grep -rlE 'mark\.(slow|network)' tests --include='test_*.py')

# Two clusters at once, which mostly wait: a test to each, the longest first.
test-cluster: $(VENV)/installed-dev
	@$(THREADS) $(BIN)/pytest -n 2 --maxschedchunk 1 -m cluster --durations=0 $(CLUSTER)

check: types lint

types: $(VENV)/installed-dev
	@$(BIN)/mypy

lint: $(VENV)/installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/pytest tests/test_house.py

format: $(VENV)/installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

tree:
	@python3 tests/tree.py >docs/tree.md

site: $(VENV)/installed-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

# The README's picture: page one of the newest report of the quick start.
picture:
	@chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,800 --screenshot=docs/report.png \
	  "file://$$PWD/runs/quickstart/report/latest.html" 2>/dev/null

# Three reports (the quick start, a BLOCK, a run with faults) at every width, light, dark and printed: build/pictures.
pictures: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.measures.governance.report_pictures build/pictures

bench: $(VENV)/installed-dev
	@ASSAY_TEST_DATA="$${ASSAY_TEST_DATA:-$(wildcard $(abspath ../shared/data))}" \
	  $(BIN)/python -m benchmarks.measures.bench $(if $(FULL),--full) $(ONLY)

# MINUTES=120 of faults; SEED=n CYCLES=1 repeats one cycle.
soak: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.measures.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(CYCLES),--cycles $(CYCLES))

# CASES of changed inputs for each reader, SECONDS at most for each; ONLY="csv config"; SEED; GUIDED=1: by coverage.
fuzz: $(VENV)/installed-dev
	@$(BIN)/python -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(GUIDED),--guided) $(ONLY)

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/python:
	@[ -n "$(PYTHON)" ] || { echo "no Python >= 3.11 with venv found; on Debian: apt-get install python3 python3-venv" >&2; exit 69; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@ln -sf bin/python $@

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/python
	@echo "installing Assay and what it needs (about two minutes)"
	@# An older pip warns of an extra of lxml that is there (it compares html_clean with html-clean).
	@$(PIP) 'pip>=23.3'
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what the tests need"
	@# Much of it is never imported: what is, Python compiles then.
	@$(PIP) --no-compile -c constraints.txt -e '.[dev,ray]'
	@touch $@
