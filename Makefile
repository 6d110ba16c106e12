# The commands of this repository. `make` alone lists them; everything is installed into .venv.

PYTHON ?= python3
VENV   ?= .venv
# What to install as torch, for example TORCH='torch==2.12.0'. An installed torch is left alone. By default: with
# an NVIDIA GPU the newest; without one the CPU build, where the package index of this machine has it (pip's own
# settings choose the index). The general build works without a GPU too; it only downloads more.
TORCH  ?=
CPU_TORCH := torch==2.13.0
# CPU builds of torch bring no Triton; its kernels are tested under its interpreter, with the release that torch pins.
TRITON ?= triton==3.7.1
VIDEOS ?=
ARGS   ?=

# The demo compiles CUDA kernels only where a GPU can run them; the tests compile them wherever nvcc is.
DEMO_BUILD := $(if $(shell command -v nvidia-smi),,-C cmake.define.CPR_CUDA=OFF)

# Without a GPU the tests' build leaves out PTX for GPUs to come, a third of its CUDA compilation.
DEV_BUILD := -C cmake.define.CPR_NVCC_OPTIONS=-Xptxas=-v \
  $(if $(shell command -v nvidia-smi),,-C 'cmake.define.CPR_CUDA_ARCHITECTURES=80-real;90a-real')

export PIP_DISABLE_PIP_VERSION_CHECK = 1
CODE := cpr_kernels cpr_command python_tests $(wildcard bench examples docs)
BIN := $(VENV)/bin
# Python compiles a module when it is first imported: of 16,000 files that are installed, some 2,000
PIP := $(BIN)/python -m pip install -qq --no-compile
# Python files are used where they lie (editable install); these are compiled or read by the installer.
BUILT := pyproject.toml CMakeLists.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types bench docs clean
.DELETE_ON_ERROR:

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.train  ## train and report on generated clips; VIDEOS=folder takes your own, OUT=folder sets where
	OMP_WAIT_POLICY=passive $(BIN)/cpr demo $(if $(VIDEOS),--videos "$(VIDEOS)") \
	  --out "$(or $(OUT),$(if $(VIDEOS),runs/$$(basename "$(VIDEOS)"),runs/demo))" $(ARGS)

test: $(VENV)/.dev  ## run all tests; ARGS="-k queue" selects, ARGS="-n 2 --dist loadfile" runs two at a time
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev  ## check with ruff
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

format: $(VENV)/.dev  ## format and mend with ruff
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

types: $(VENV)/.dev  ## check types with mypy
	$(BIN)/mypy cpr_kernels cpr_command $(wildcard bench)

bench: $(VENV)/.dev  ## run the benchmarks; ARGS=--quick for a smoke test
	$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.dev  ## build the site with guide and API reference, into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet -f .mkdocs.yml
	@echo "wrote build/docs/index.html; for its search, serve it: $(BIN)/python -m http.server -d build/docs"

clean:  ## remove what these commands made, except runs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  f"Python 3.10 or newer is needed; {sys.executable} is {sys.version.split()[0]}: set PYTHON=")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: | $(VENV)/.made
	@echo "installing torch into $(VENV)"
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  echo "already installed"; \
	elif [ -n "$(TORCH)" ]; then \
	  $(PIP) $(TORCH); \
	elif command -v nvidia-smi >/dev/null; then \
	  $(PIP) 'torch>=2.11'; \
	else \
	  $(PIP) '$(CPU_TORCH)+cpu' 2>/dev/null || { \
	    echo "no CPU-only $(CPU_TORCH) in this machine's package index: installing the general build"; \
	    $(PIP) '$(CPU_TORCH)'; \
	  }; \
	fi
	@touch $@

$(VENV)/.train: $(VENV)/.torch $(BUILT)
	@echo "building and installing cpr_kernels into $(VENV): about a minute"
	@$(PIP) -e '.[train]' $(DEMO_BUILD)
	@touch $@

$(VENV)/.dev: $(BUILT) | $(VENV)/.made
	@echo "building and installing cpr_kernels, with all that its tests need, into $(VENV): some minutes"
	@$(MAKE) --no-print-directory -j2 $(VENV)/.core $(VENV)/.needed
	@touch $@ $(VENV)/.train

# What the tests need is downloaded while the core compiles, which needs nothing of it.
$(VENV)/.core: $(BUILT) | $(VENV)/.made
	@mkdir -p build && rm -f build/install.log  # what ptxas reports in it is read by the tests
	@$(PIP) --log build/install.log --no-deps -e . $(DEV_BUILD)
	@touch $@

$(VENV)/.needed: pyproject.toml $(VENV)/.torch
	@$(BIN)/python python_tests/support/requirements.py train dev faiss > $(VENV)/requirements.txt
	@$(PIP) -r $(VENV)/requirements.txt
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) '$(TRITON)' || echo "no $(TRITON) here: its tests will skip"
	@touch $@
