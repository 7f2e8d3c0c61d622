# make setup | demo | test | test-slurm | test-browser | lint | bench | ui | clean       every target does the set-up it misses

VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 5000
ARGS ?=

.PHONY: setup demo test test-slurm test-browser lint bench ui clean
.DEFAULT_GOAL := setup

# The first of these that is Python 3.11; or name one: make setup PYTHON=/path/to/python3.11
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	{ echo "dxc needs Python 3.11 (nni 3.0 and nn-meter 2.0 are tested on no newer one): install it, or make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

demo: setup
	$(PY) search.py experiment=demo_search
	$(PY) analyze.py study=demo
	@echo "next:  make ui                                 compare the trials in the browser"
	@echo "       $(PY) search.py --help        what can be searched"
	@echo "       $(PY) train.py --help         what can be trained"

# Two at a time: each starts processes of its own, so more would need more memory than a small machine has.
test: setup
	$(PY) -m pytest -q -n 2 --dist worksteal $(ARGS)

# Starts and stops a Slurm, a PostgreSQL and an MLflow server of its own; .ci/slurm-packages installs what they need.
test-slurm: setup
	$(PY) -m pytest -q -rs -m slurm tests/slurm $(ARGS)

# In headless Chromium, which .ci/browser-packages installs; what it saw is kept as pictures.
test-browser: setup
	DXC_SCREENSHOTS=$(CURDIR)/.ci/screenshots $(PY) -m pytest -q -rs -m browser $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Alone on the machine, please: each prints its figures; ARGS=--save writes them to benchmarks/results/
bench: setup
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) $$script $(ARGS) || exit 1; done

ui: setup
	@echo "runs: http://127.0.0.1:$(PORT) (Ctrl-C stops it). Once, at its top left, choose Model training:"
	@echo "      MLflow opens on language models. Then choose a study and, under Views, designs."
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(PY) -m mlflow ui \
		--backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT)

# Runs (mlflow.db, mlartifacts/) stay: they are results.
clean:
	rm -rf cache outputs multirun .ci/screenshots .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
