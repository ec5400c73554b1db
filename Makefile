# Everything runs in a virtual environment of its own; the first target that needs it makes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= "torch>=2.11"
JOBS ?= 2

SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/*)

.PHONY: help demo test test-oldest lint format sanitize bench bench-quick bench-full gpu gpu-compile clean

help:
	@echo "make demo         train, search and export on 5,000 images of MNIST (runs/demo)"
	@echo "make test         the whole test suite, in JOBS=2 processes"
	@echo "make test-oldest  the same with the oldest torch that is supported, in .venv-oldest"
	@echo "make lint         ruff and mypy"
	@echo "make sanitize     the operator tests on a core built with sanitizers (about 10 minutes)"
	@echo "make bench        the CPU benchmarks (under 10 minutes; rows in benchmarks/results)"
	@echo "make bench-quick  one short case of them (about a minute)"
	@echo "make bench-full   all of them, compiled baselines included (most of an hour)"
	@echo "make gpu-compile  compiles every Triton kernel ahead, without a GPU; fails on a spill"
	@echo "make gpu          on a machine with a GPU: tests and measurements (under 10 minutes;"
	@echo "                  with QUICK=1 under 4), in $(PYTHON)'s own environment, without network"
	@echo "make clean        remove build products and $(VENV)"

# Build requirements first: the compiled core is then built against this very torch, without a
# second download into an isolated build environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=70" wheel ninja "pybind11>=2.12" $(TORCH)

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	GROWTAS_BUILD=1 $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/growtas run mnist-5k output.dir=runs/demo --resume

# One thread each: the models are tiny. Tests of a file share what is costly, and so a process.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# The oldest torch, and what goes with it: its Triton's interpreter cannot do with numpy 2.4.
test-oldest:
	$(MAKE) test VENV=.venv-oldest TORCH='"torch==2.11.0" "torchvision==0.26.0" "numpy<2.4"'

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A build of its own under build/; the core in use is not touched.
sanitize: $(VENV)/.dev
	GROWTAS_BUILD=1 GROWTAS_CUDA=0 GROWTAS_SANITIZE=1 $(BIN)/python setup.py -q build \
		--build-base build/sanitize --build-lib build/sanitize/lib
	$(BIN)/python tests/sanitize/run.py build/sanitize/lib

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run

bench-quick: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run --quick

bench-full: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run --full

gpu-compile: $(VENV)/.dev
	$(BIN)/python -W ignore -m growtas.kernels.precompile

# Nothing is downloaded: torch, triton, timm, pytest and the build requirements have to be there.
# Installing growtas itself is the second step of the plan, and may fail.
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(QUICK),--quick)

clean:
	rm -rf build dist *.egg-info growtas/*.so growtas/_build.json $(VENV) .venv-oldest
