# The commands of this repository. The first call sets up what it needs; later calls reuse it.
#
#   PYTHON     the Python that makes the environment (3.11 or later)
#   PIP_FLAGS  more options for every pip install, such as an index of your own

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
NATIVE := CMakeLists.txt $(wildcard csrc/*)

.PHONY: help demo test check format bench docs lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up, then generate text with the embedded model and report what the cache did"
	@echo "make test    the whole test suite"
	@echo "make check   lint, format and types; prints the largest files and functions"
	@echo "make format  apply what 'make check' would ask of the formatter"
	@echo "make bench   measure this machine"
	@echo "make docs    write the generated parts of the documentation again"
	@echo "make lock    write constraints.txt from the versions in $(VENV)"
	@echo "make clean   remove the environment and everything built"

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

# Compiled once, not by each of the processes that tests start: PYTHONDONTWRITEBYTECODE may be set.
test: $(VENV)/.installed-dev
	@$(BIN)/python -m compileall -q src
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python scripts/largest.py

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed
	@$(BIN)/pagoda bench

docs: $(VENV)/.installed
	@$(BIN)/python scripts/write_cli_reference.py
	@$(BIN)/python scripts/write_models_reference.py
	@$(BIN)/python scripts/write_planning_reference.py
	@$(BIN)/python scripts/write_file_index.py

lock: $(VENV)/.installed-dev
	@$(BIN)/python -m pip list --format=freeze --exclude-editable | grep -v '^\(pip\|setuptools\)=' | sed 's/+.*//' > constraints.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Pagoda needs Python 3.11 or later; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Torch first and alone: it is the largest by far, and a retry after a broken download then starts behind it. The package is
# built against the pinned tools of this environment (no build isolation), and is editable: changes to Python count at once.
$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(INSTALL) torch==2.13.0
	$(INSTALL) scikit-build-core nanobind cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(INSTALL) --no-build-isolation --editable '.[server]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) 'pagoda-kv[dev]'
	@touch $@
