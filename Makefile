# Two commands do everything on a fresh machine with Python 3.10+ and a C++ compiler:
#   make demo   install into .venv, run the main job end to end
#   make test   install into .venv, run the tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NO_ROS := $(VENV)/.no-ros
NATIVE := $(wildcard pcseg_core/native/*.cpp pcseg_core/native/*.h)

.PHONY: help install demo test lint docs clean

help:
	@sed -n '1,4p' Makefile | sed 's/^# \{0,1\}//'
	@echo "  make lint   ruff, mypy, import-linter, codespell, and linters of images and workflows"
	@echo "  make docs   the documentation site, in build/site"

install: $(READY)

$(READY): setup.cfg setup.py pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pcseg needs Python 3.10 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[vision,teachers,segments,odometry,viewer,export,test,lint,docs]'
	@rm -f $(NO_ROS)
	$(BIN)/python -m pip install --quiet -e '.[ros]' || { touch $(NO_ROS); \
	  echo "No ROS wheels for this Python version; everything except the node works."; }
	touch $@

demo: $(READY)
	$(BIN)/pcseg demo --out demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cuda
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
