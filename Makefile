# Everything runs from a checkout with Python 3.11 or later, pip, make and a C compiler: `make demo`, `make test`.
# `make help` lists the commands. Settings: PYTHON (interpreter), VENV (folder), ORACLES (recorded answers), JOBS, and
# GPU_PYTHON, the interpreter for `make test-gpu` and `make bench-gpu`, which install nothing.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
HUB := $(VENV)-hub
GPU_PYTHON ?= $(BIN)/python
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS ?= 2
NEEDS := pyproject.toml setup.py constraints.txt
# What is compiled is kept as long as its process lives: each process runs a part of the files. Which tests take longest, and
# what runs only in `make test-all`: CONTRIBUTING.md.
TENSORFLOW := $(patsubst %,test-tensorflow-%-of-4,1 2 3 4)
JAX := $(patsubst %,test-jax-%-of-3,1 2 3)
TORCH := test-torch-1-of-1
PARTS := $(TENSORFLOW) $(JAX) $(TORCH)
SAMPLES ?= 5000
SEED ?= $(shell date +%F)
PROMPT ?= A hacker is
MESSAGES ?= "Hello!" "What is a hacker?" "And what is a kluge?" "Thank you."
MODEL ?= finch-jargon
PYTEST := $(BIN)/python -m pytest --quiet

ifdef ORACLES
export RWKV_ORACLES := $(abspath $(ORACLES))
endif

.PHONY: help demo serve fuzz test test-all test-pure test-once test-notebooks test-wheel notebooks interop lint format docs bench bench-train bench-gpu test-gpu clean test-tensorflow test-jax test-torch $(PARTS)
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## install the package, write text with the model that ships in it, and ask it something
	@$(BIN)/bert4keras-rwkv generate --prompt "$(PROMPT)" --max-length 200 --seed 1 --echo
	@echo
	@printf '%s\n' $(MESSAGES) | $(BIN)/bert4keras-rwkv chat --temperature 0 --echo

serve: $(VENV)/.serve  ## answer over HTTP, in OpenAI's form, with the model that ships (MODEL names another; see docs/serving.md)
	@$(BIN)/bert4keras-rwkv serve --model "$(MODEL)" $(FLAGS)

test: $(VENV)/.test  ## run the tests on JAX, TensorFlow and PyTorch
	@$(MAKE) --no-print-directory --output-sync=target --jobs=$(JOBS) --keep-going \
	  $(JAX) $(TORCH) test-once $(TENSORFLOW) test-notebooks test-wheel

test-all:  ## the same with the slow tests
	@$(MAKE) --no-print-directory test test-pure FLAGS="--slow $(FLAGS)"

test-pure: $(VENV)/.test  ## the laws of models in pure ops, where native kernels run otherwise
	@for backend in jax torch; do OPS_KERNEL=1 KERAS_BACKEND=$$backend $(PYTEST) $(FLAGS) \
	  tests/models/test_laws.py tests/models/test_state_tuning.py || exit 1; done

# Not $(VENV)/.test: that would put the packages of a CPU into an environment for a card.
test-gpu:  ## on a machine with a GPU of NVIDIA: its kernels against the loop, the laws, compute-sanitizer (ten minutes)
	@$(GPU_PYTHON) scripts/check_gpu.py $(FLAGS)

test-once: $(VENV)/.test
	@echo "== tests that need no backend"
	@KERAS_BACKEND=jax $(PYTEST) --backend-free=only $(FLAGS)

test-tensorflow: $(TENSORFLOW)
test-jax: $(JAX)
test-torch: $(TORCH)

$(PARTS): test-%: $(VENV)/.test
	@echo "== tests on $(subst -, ,$*)"
	@KERAS_BACKEND=$(word 1,$(subst -, ,$*)) $(PYTEST) --backend-free=skip --part=$(word 2,$(subst -, ,$*))/$(lastword $(subst -, ,$*)) $(FLAGS)

# With --slow all of them.
test-notebooks: $(VENV)/.test
	@echo "== notebooks"
	@KERAS_BACKEND=jax $(BIN)/python scripts/notebooks.py --check $(if $(findstring --slow,$(FLAGS)),,1)

test-wheel: $(VENV)/.test  ## build the package, install it into an empty environment and use it there
	@echo "== the package as it is installed"
	@$(BIN)/python scripts/check_wheel.py

notebooks: $(VENV)/.test  ## execute notebooks/*.py and write the .ipynb with their outputs
	@KERAS_BACKEND=jax $(BIN)/python scripts/notebooks.py

interop: $(VENV)/.interop  ## compare with llama.cpp, transformers, lm-eval (the first time it compiles llama.cpp: ten minutes)
	@KERAS_BACKEND=jax $(PYTEST) --slow tests/interop $(FLAGS)

lint: $(VENV)/.lint  ## check style and find likely mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.lint  ## rewrite the files in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Not --quiet: it drops the warnings before --strict counts them.
docs: $(VENV)/.docs  ## write the documentation site to build/docs; a broken link or a missing name fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open build/docs/index.html"

fuzz: $(VENV)/.test  ## read random files of every kind, other ones each day: none may do harm (SAMPLES of each, 5000)
	@KERAS_BACKEND=numpy $(BIN)/python -m tests.weights.fuzz --all --samples $(SAMPLES) --seed $(SEED)

bench: $(VENV)/.test  ## measure against the rwkv package; writes docs/benchmarks.md (about half an hour)
	@$(BIN)/python -m benchmarks $(FLAGS)

bench-train: $(VENV)/.test $(HUB)/.installed  ## measure training steps, beside Keras Hub's RWKV-7 (about a quarter of an hour)
	@$(BIN)/python -m benchmarks --only train --keras-hub $(HUB)/bin/python --rounds 5 $(FLAGS)

bench-gpu:  ## measure on a GPU of NVIDIA, beside fla-core, rwkv and rwkv_ops where they are installed (ten minutes)
	@$(GPU_PYTHON) -m benchmarks --only gpu --rounds 3 $(FLAGS)

clean:  ## remove what was built here, the environment included
	rm -rf $(VENV) $(HUB) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# The environment. A stamp stands for one set of packages, and is older than the files that name them when it must be redone.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11 or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; $(PYTHON) is older. Name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --quiet --python $@ install pip; }

$(VENV)/.demo: $(NEEDS) | $(BIN)/python
	@echo "Installing the package with JAX (once)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.serve: $(VENV)/.demo
	@echo "Installing FastAPI and uvicorn (once)"
	@$(PIP) install -c constraints.txt -e '.[serve]'
	@touch $@

$(VENV)/.test: $(NEEDS) | $(BIN)/python
	@echo "Installing the package with JAX, TensorFlow, PyTorch and the test tools (once)"
	@$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.interop: $(VENV)/.test
	@echo "Installing transformers, lm-eval and llama-cpp-python, which is compiled (once)"
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF $$CMAKE_ARGS" $(PIP) install -c constraints.txt -e '.[interop]'
	@touch $@

# Keras Hub without TensorFlow, which it needs only for its tokenizers; rwkv_ops is what it recommends for speed.
$(HUB)/.installed: constraints.txt
	@echo "Installing Keras Hub in an environment of its own (once)"
	@$(PYTHON) -m venv $(HUB)
	@$(HUB)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt jax kagglehub keras numpy regex tokenizers
	@$(HUB)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt --no-deps keras-hub rwkv_ops
	@touch $@

# Only what `[docs]` names, not the package and its backends.
$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the tools of the documentation site (once)"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' >$@.txt
	@$(PIP) install -c constraints.txt -r $@.txt
	@touch $@

$(VENV)/.lint: constraints.txt | $(BIN)/python
	@$(PIP) install -c constraints.txt ruff
	@touch $@
