# Everything happens in .venv in this directory; nothing else on the machine is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LADDER := $(VENV)/.ladder
VLLM := .venv-vllm
VERL := .venv-verl
# What stands in for a GPU: the ladder, the emulators it runs on, and the rehearsals of what runs on one.
LADDER_TESTS := tests/gpu tests/tools/ptx_emulator tests/tools/cuda_on_cpu tests/tools/test_rehearsal.py \
	tests/benchmarks/test_pretended_gpu.py
RUN ?= demo
ARMS ?= wavalign,rl-all,sft-imperfect
DEMO_FLAGS ?=
BENCH_FLAGS ?=

# On Linux a plain `torch` is the CUDA build with gigabytes of libraries beside it, and its newest
# release need not be one these kernels were tested with. Where a CPU build of the pinned release is
# offered, pip prefers it. For another one: make install TORCH="torch==2.14.1"; a torch that is in
# the .venv already is kept.
TORCH ?= torch==2.13.0

# Ninja and the linters are found in the .venv first, whoever calls make.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

KERNEL_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
TEST_SOURCES := $(shell find tests tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help install demo test test-ladder test-floors test-newest test-vllm test-verl test-integrations test-trl-suite test-extras lint format docs bench wheels clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv and build the kernels (once, and again when they change)

# Editable, for users and developers alike: demo and tests run from this checkout, where the folder
# wavalign_fast/ would hide an installed copy from Python anyway.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/*.py) $(KERNEL_SOURCES)
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info < (3, 15); sys.exit(None if ok else \
	  "wavalign-fast wants Python 3.10 to 3.14, found " + sys.version.split()[0] \
	  + ". Name another one: make install PYTHON=python3.12")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "No virtual environment can be made. On Debian: apt install python3-venv" >&2; exit 1; }
	@# The PyTorch install is the long part, so say what is going on.
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(BIN)/python -m pip install --quiet "setuptools>=77" "ninja>=1.11"
	@$(BIN)/python -c 'import torch' 2>/dev/null || { set -x; \
	  $(BIN)/python -m pip install --quiet "$(TORCH)"; }
	@# Two steps: the kernels must be built against this torch, so without an isolated build; some
	@# dependencies come as source for some Pythons and want their isolated build.
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip install --quiet "wavalign-fast[train,dev]"
	@$(BIN)/python -c 'import torch, wavalign_fast._C' || echo "Installed WITHOUT the C++ kernels:" \
	  "losses are several times slower. The reason: make clean && $(BIN)/pip install -v" \
	  "--no-build-isolation -e ." >&2
	@touch $@

demo: install ## train the spoken-sums recipe with three arms and open the report
	$(BIN)/wavalign-fast train --recipe spoken-sums --arms $(ARMS) --name $(RUN) --overwrite $(DEMO_FLAGS)
	@echo "Report: $(CURDIR)/runs/$(RUN)/report.html"
	@# Only on a desktop: elsewhere xdg-open may start a browser in the terminal.
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then \
	  xdg-open runs/$(RUN)/report.html >/dev/null 2>&1 || true; fi

# Triton compiles and interprets its kernels for the ladder. A torch with CUDA brings a release of its
# own: beside it, this one would make pip replace torch.
$(LADDER): $(STAMP)
	@$(BIN)/python -c 'import importlib.util, sys, torch; \
	  sys.exit(torch.version.cuda is None and importlib.util.find_spec("triton") is None)' || \
	  { set -x; $(BIN)/python -m pip install --quiet "wavalign-fast[ladder]"; }
	@touch $@

# Two workers with one thread each; more threads on shared cores only wait for each other. A worker
# that has nothing left to do takes tests from the other one.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist worksteal

test: install ## run the tests of the package, which take minutes
	$(PYTEST) $(LADDER_TESTS:%=--ignore=%) $(PYTEST_FLAGS)

test-ladder: $(LADDER) ## run the GPU kernels without a GPU: see tests/gpu/README.md
	$(PYTEST) $(LADDER_TESTS) $(PYTEST_FLAGS)

# With packages and kernels of their own, in .venv-floors and .venv-newest.
test-floors: ## run the tests that depend on them with the oldest torch, Triton and transformers
	PYTHON=$(PYTHON) tools/test_with.sh floors $(PYTEST_FLAGS)

test-newest: ## run the same tests with the newest ones
	PYTHON=$(PYTHON) tools/test_with.sh newest $(PYTEST_FLAGS)

# Four gigabytes, and minutes for each start of vLLM; CI does without. The kernels of this checkout
# serve there too, if torch has the release that they were built with.
$(VLLM)/.installed: tools/install_vllm.py
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python tools/install_vllm.py "$(TORCH)"
	@touch $@

test-vllm: $(VLLM)/.installed ## rollouts by vLLM itself, in an environment of its own (4 GB)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VLLM)/bin/python -m pytest tests/rollout/test_vllm_real.py \
	  $(PYTEST_FLAGS)

test-integrations: install ## every option of other libraries' trainers, which takes minutes
	$(PYTEST) -m wide tests/integrations $(PYTEST_FLAGS)

test-trl-suite: install ## TRL's own tests of GRPO, with our class: TRL=a checkout of its repository
	$(BIN)/python -m tools.trl_suite $(TRL)

# verl wants an older transformers than ours, so these too have an environment of their own.
$(VERL)/.installed:
	rm -rf $(VERL)
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet --no-compile "$(TORCH)" "verl==0.9.1" \
	  "pytest>=9,<10" "hypothesis>=6.130,<7"
	@touch $@

test-verl: $(VERL)/.installed ## the adapter of verl in verl's own engine, in an environment of its own (2 GB)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VERL)/bin/python -m pytest tests/integrations/test_verl.py \
	  $(PYTEST_FLAGS)

lint: install ## ruff, mypy, clang-format: report, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(KERNEL_SOURCES) $(TEST_SOURCES)

format: install ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNEL_SOURCES) $(TEST_SOURCES)

# The notice is of a later mkdocs, which pyproject.toml does not allow.
docs: install ## build the documentation into build/docs and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python -m tools.docs_site.check build/docs

bench: install ## time the losses beside the installed rivals and write a page
	$(BIN)/wavalign-fast bench $(BENCH_FLAGS)

wheels: install ## the sdist and wheels for CPUs and for CUDA, into dist/
	$(BIN)/python tools/build_wheels.py

test-extras: ## install each extra of the wheel for CPUs in dist/ alone, and use it
	$(BIN)/python tools/check_extras.py dist/wavalign_fast-*cpu*.whl

clean: ## remove build products and caches; keeps the .venvs and runs
	rm -rf build dist *.egg-info wavalign_fast/*.so $(STAMP) $(LADDER) .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
