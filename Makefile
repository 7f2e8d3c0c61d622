# make setup | demo | demo-map | test | test-long | test-slow | test-slurm | test-browser | test-device | lint | docs | bench | gpu | ui | clean
# Every target does the set-up it misses.

VENV := .venv
DOCS_VENV := .venv-docs
PY := $(VENV)/bin/python
PORT ?= 5000
ARGS ?=

.PHONY: setup demo demo-map test test-long test-slow test-slurm test-browser test-device lint docs bench gpu ui clean
.DEFAULT_GOAL := setup

# The first of these that is Python 3.11 to 3.13; or name one: make setup PYTHON=/path/to/python3.12
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
define require_python
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || \
	{ echo "dxc needs Python 3.11, 3.12 or 3.13: install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
endef
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# On Linux, PyPI's torch comes with several GB of CUDA. make setup TORCH=cpu takes PyTorch's own CPU build instead.
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

setup: $(VENV)/.installed
ifneq ($(TORCH),)
	@! $(PY) -m pip show --quiet nvidia-cublas 2>/dev/null || \
	{ echo "$(VENV) holds the CUDA build of torch: rm -r $(VENV), then make setup TORCH=cpu" >&2; exit 2; }
endif

$(VENV)/.installed: pyproject.toml requirements.txt requirements-dev.txt requirements-webdataset.txt constraints.txt
	$(require_python)
	@case "$(TORCH)" in ""|cpu) ;; *) echo "TORCH=$(TORCH) is unknown: TORCH=cpu, or none for the build of PyPI" >&2; exit 2;; esac
	@test -n "$(TORCH)" -o "$$(uname -s)" != Linux || command -v nvidia-smi >/dev/null || \
	echo "no NVIDIA GPU found: make setup TORCH=cpu would save the download of several GB of CUDA"
	@echo "setting up $(VENV) (some minutes, once)"
	@"$(PYTHON)" -m venv $(VENV)
ifneq ($(TORCH),)
	@$(PY) $(PIP_INSTALL) --no-deps --index-url $(TORCH_INDEX) "$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)"
endif
	@$(PY) $(PIP_INSTALL) -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup
	$(PY) search.py experiment=demo_search
	$(PY) analyze.py study=demo
	@echo "next:  make ui                                 compare the trials in the browser"
	@echo "       $(PY) search.py --help        what can be searched"
	@echo "       $(PY) train.py --help         what can be trained"

# A network, then the map of a synthetic watershed that it was not trained on. It ends with a picture and a page.
DEMO_MAP := outputs/demo_map
demo-map: setup
	$(PY) train.py experiment=demo_map
	@test -d $(DEMO_MAP)/watershed || $(PY) -m dxc.synthetic $(DEMO_MAP)/watershed --seed 11
	$(PY) map.py study=demo_map pick=accuracy dem=$(DEMO_MAP)/watershed/dem.tif photo=$(DEMO_MAP)/watershed/photo.tif \
	  roads=$(DEMO_MAP)/watershed/roads.gpkg truth=$(DEMO_MAP)/watershed/crossings.gpkg \
	  breached=$(DEMO_MAP)/dem_breached.tif out=$(DEMO_MAP)/crossings.gpkg overwrite=true
	@echo "picture: $(DEMO_MAP)/crossings_evaluation/map.png"
	@echo "next:    open $(DEMO_MAP)/crossings_evaluation/index.html, and $(DEMO_MAP)/crossings.gpkg in QGIS"

# Two at a time: each starts processes of its own, so more would need more memory than a small machine has.
test: setup
	$(PY) -m pytest -q -n 2 --dist worksteal $(ARGS)

# What takes more than about 3 s a test, and is left out above: mostly whole programs.
test-long: setup
	$(PY) -m pytest -q -n 2 --dist worksteal -m 'long and not slow' $(ARGS)

# What takes more than about 20 s a test, and is left out of both.
test-slow: setup
	$(PY) -m pytest -q -n 2 --dist worksteal -m slow $(ARGS)

# Starts and stops a Slurm, a PostgreSQL and an MLflow server of its own; .ci/slurm-packages installs what they need.
test-slurm: setup
	$(PY) -m pytest -q -rs -m slurm tests/slurm $(ARGS)

# In headless Chromium, which .ci/browser-packages installs; what it saw is kept as pictures.
test-browser: setup
	DXC_SCREENSHOTS=$(CURDIR)/.ci/screenshots $(PY) -m pytest -q -rs -m browser $(ARGS)

# On an aarch64 machine under QEMU, which it builds as root in cache/emulated-device (0.8 GB, once). Its times mean nothing.
test-device: setup
	PYTHON=$(CURDIR)/$(PY) $(PY) -m pytest -q -rs -m device tests/device $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# site/ opens from the disk, without a server. Needs no torch: an environment of its own.
docs: $(DOCS_VENV)/.installed
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "docs: site/index.html"

$(DOCS_VENV)/.installed: requirements-docs.txt
	$(require_python)
	@"$(PYTHON)" -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python $(PIP_INSTALL) -r requirements-docs.txt
	@touch $@

# Alone on the machine, please: each prints its figures; ARGS=--save writes them to benchmarks/results/
# Three need a GPU: make gpu runs them. compression.py (which fetches CIFAR-10) and map.py take hours: run them by hand.
GPU_BENCHMARKS := benchmarks/gpu.py benchmarks/scheduling.py benchmarks/training_engines.py
LONG_BENCHMARKS := benchmarks/compression.py benchmarks/map.py
bench: setup
	@for script in $(sort $(filter-out $(GPU_BENCHMARKS) $(LONG_BENCHMARKS),$(wildcard benchmarks/[!_]*.py))); do echo "== $$script"; $(PY) $$script $(ARGS) || exit 1; done

# Needs one NVIDIA GPU, free of other work, and says so where there is none. ARGS='--tiny --device cpu' tries the script.
# Its figures go to benchmarks/results/gpu/, a file for each part.
gpu: setup
	$(PY) benchmarks/gpu.py $(ARGS)

ui: setup
	@echo "MLflow on http://127.0.0.1:$(PORT) (Ctrl-C stops it). The designs of each study:"
	@$(PY) -m dxc.tracking sqlite:///mlflow.db http://127.0.0.1:$(PORT) || true
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(PY) -m mlflow ui \
		--backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT)

# Runs (mlflow.db, mlartifacts/) stay: they are results.
clean:
	rm -rf cache outputs multirun site build .ci/screenshots .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
