# Everything a fresh machine needs: each target makes .venv and installs by itself.
#   make demo       data, training, evaluation, pictures: minutes on two CPU cores
#   make test       the tests, each property at its smallest
#   make test-long  the full matrices
#   make parity     tables: what ranks, expert parallelism, ZeRO and a resume change (nothing), from real launches
#   make check-gpu  on one GPU: that all of it works there, and how fast (8 minutes)
#   make lint       ruff, mypy and the import rules
#   make docs       the documentation as a site, in site/
#   make wheel      the package as a wheel, in dist/
# CONSTRAINTS=constraints-lowest.txt installs the oldest versions allowed, CONSTRAINTS=/dev/null the newest.

PYTHON ?= python3.11
WORKERS ?= 2
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-long parity check-gpu lint docs wheel install clean
.DEFAULT_GOAL := demo

install: $(INSTALLED)

# The constraints also reach the build environments, where an unpinned torch would be fetched a second time.
$(INSTALLED): Makefile pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; give another with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train,export,serve,medical,dev,docs]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/deepspeed unimmad/train.py --deepspeed_config ds_configs/ep4.json
	$(BIN)/python tools/evaluate.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-long: $(INSTALLED)
	$(BIN)/python -m pytest

parity: $(INSTALLED)
	$(BIN)/python tests/parity/report.py

check-gpu: $(INSTALLED)
	$(BIN)/python tools/check_gpu.py

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# build/ may hold modules that no longer exist, which would get into the wheel.
wheel: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) runs data build dist site *.egg-info
