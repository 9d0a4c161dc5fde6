# `make chat` and `make test` are all the set-up there is. Everything is installed into .venv, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRA := $(shell [ "$$(uname -sm)" = "Darwin arm64" ] && echo mlx || echo torch)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# MLX's Linux wheel brings a slow BLAS; where OpenBLAS is installed it is preloaded (docs/mlx.md).
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libblas.so.3))

.PHONY: chat test lint clean

chat: $(VENV)/.chat
	$(BIN)/lm2 chat

test: $(VENV)/.test lint
	$(if $(OPENBLAS),LD_PRELOAD=$(OPENBLAS)) $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	mkdir -p build/types && ln -sfn ../.. build/types/lm2
	MYPYPATH=build/types $(BIN)/mypy -p lm2

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
