# Two commands set everything up on a fresh Debian or Ubuntu machine:
#   make demo   virtual environment, install, then the main job: demonstrations -> policy -> scored report and video
#   make test   virtual environment, install, then the whole test suite
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
JOBS ?= 2
# libgl1 and libglib2.0-0 are what `import cv2` needs.
SYSTEM_PACKAGES = libgl1 libglib2.0-0
# What the tests of every extra need besides: compilers for packages without wheels, and headless drawing.
TEST_PACKAGES = gcc g++ make cmake python3-dev libegl1
TEST_EXTRAS = dev,robomimic,pybullet,onnx,kitchen
export PYGAME_HIDE_SUPPORT_PROMPT = 1

.PHONY: demo test lint install system test-system clean

demo: $(VENV)/.demo
	$(BIN)/robopolicy demo

# Tests of robots start graphs of several processes with clocks: they have the machine for themselves.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore tests/hardware
	$(BIN)/python -m pytest tests/hardware

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.demo

system:
	@PYTHON="$(PYTHON)" sh .ci/system-packages $(SYSTEM_PACKAGES)

test-system:
	@PYTHON="$(PYTHON)" sh .ci/system-packages $(SYSTEM_PACKAGES) $(TEST_PACKAGES)

$(BIN)/python:
	@$(MAKE) --no-print-directory system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory test-system
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e '.[$(TEST_EXTRAS)]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) outputs
