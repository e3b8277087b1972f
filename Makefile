# Two commands set everything up on a fresh Debian or Ubuntu machine:
#   make demo   virtual environment, install, then the main job: demonstrations -> policy -> scored report and video
#   make test   virtual environment, install, then the whole test suite
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# libgl1 and libglib2.0-0 are what `import cv2` needs.
SYSTEM_PACKAGES = libgl1 libglib2.0-0
export PYGAME_HIDE_SUPPORT_PROMPT = 1

.PHONY: demo test lint install system clean

demo: $(VENV)/.demo
	$(BIN)/robopolicy demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.demo

system:
	@PYTHON="$(PYTHON)" sh .ci/system-packages $(SYSTEM_PACKAGES)

$(BIN)/python:
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) outputs
