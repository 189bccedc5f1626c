# `make help` lists the targets. Everything that takes long to make is kept in
# $XDG_CACHE_HOME/llava-finetune-operator (by default ~/.cache/llava-finetune-operator).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
CLUSTER := $(PYTHON) -m tests.localcluster
# Tests start hundreds of processes: none of them is to translate anew what another one has.
export PYTHONDONTWRITEBYTECODE :=
# uv of a pinned version, in a folder of its own, where the machine has none.
UV = $(shell command -v uv || echo $(VENV)-uv/bin/uv)

# Where the demo runs, and on what.
DATA ?=
FORMAT ?=
FILE ?=
IMAGES ?=
CONTEXT ?=
OPERATOR_IMAGE ?=
TRAINER_IMAGE ?=
STORAGE_CLASS ?=
# Where `make dashboards` puts them.
FOLDER ?= dashboards
# Options of pytest, like ARGS="-k prepare".
ARGS ?=

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

.PHONY: setup
setup: $(VENV)/.ready ## Make .venv with everything but the GPU extra
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "▸ Python environment in $(VENV)"
	@test -x "$(UV)" || { \
	  $(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; }; \
	  $(PYTHON) -m venv $(VENV)-uv && $(VENV)-uv/bin/pip install -q uv==0.13.9; }
	@test -x $(RUN)/python || $(UV) venv -q --python $(PYTHON) $(VENV)
	@$(UV) pip install -q --compile-bytecode --python $(RUN)/python -c constraints.txt -e '.[operator,trainer,dev]'
	@touch $@

.PHONY: demo
demo: setup ## A whole run on an embedded cluster (DATA=, FORMAT=, FILE=, IMAGES= for your data; CONTEXT= for your cluster)
	@$(RUN)/python -m tests.demo up --data='$(DATA)' --format='$(FORMAT)' --file='$(FILE)' --images='$(IMAGES)' \
	  --context='$(CONTEXT)' --operator-image='$(OPERATOR_IMAGE)' --trainer-image='$(TRAINER_IMAGE)' \
	  --storage-class='$(STORAGE_CLASS)'

.PHONY: demo-down
demo-down: setup ## Remove everything that the demo started and made outside the cache
	@$(RUN)/python -m tests.demo down --context='$(CONTEXT)'

.PHONY: test
test: setup ## All tests that this machine can run; what cannot run is listed with the reason
	$(RUN)/python -m tests.prepare
	OMP_NUM_THREADS=1 $(RUN)/pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

.PHONY: test-long
test-long: setup ## Every fault of nodes, pods, volume, operator, API server and buckets, and every alert broken; `make test` leaves most out
	$(RUN)/python -m tests.prepare
	OMP_NUM_THREADS=1 $(RUN)/pytest -m "not gpu" tests/e2e/faults tests/monitoring/alerts tests/trainer/test_publish_bucket_faults.py $(ARGS)

.PHONY: test-gpu
test-gpu: setup ## The tests that need an NVIDIA GPU
	$(RUN)/pytest -m gpu tests/gpu $(ARGS)

.PHONY: bench-trainer
bench-trainer: setup ## Speed and memory of training against the plain way (ARGS="--gpu" on a GPU, ARGS="--only head" for a part)
	$(RUN)/python -m tests.benchmarks.trainer $(ARGS)

.PHONY: bench-checkpoint
bench-checkpoint: setup ## What checkpoints cost training: standing still, and slower steps meanwhile
	OMP_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.checkpoint $(ARGS)

.PHONY: bench-memory
bench-memory: setup ## The memory plan against a trace of the real modules at full depth (10 minutes, no GPU, little memory)
	OMP_NUM_THREADS=1 $(RUN)/python -W ignore -m tests.benchmarks.memory

.PHONY: bench-offloaded
bench-offloaded: setup ## torch's fused AdamW against DeepSpeed's cpu_adam for offloaded optimiser states (needs g++)
	PATH=$(CURDIR)/$(RUN):$$PATH $(RUN)/python -m tests.benchmarks.offloaded $(ARGS)

.PHONY: bench-flight
bench-flight: setup ## What torch's flight recorder costs training
	OMP_NUM_THREADS=1 $(RUN)/python -W ignore -m tests.benchmarks.flight

.PHONY: bench-prepare
bench-prepare: setup ## Pictures checked a second beside a plain Pillow loop (ARGS="--memory" for what a gigabyte takes)
	OMP_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.prepare $(ARGS)

.PHONY: bench-evaluate
bench-evaluate: setup ## Answers a second of evaluation beside generating them one by one, on the demo's set (half a minute)
	OMP_NUM_THREADS=1 $(RUN)/python -W ignore -m tests.benchmarks.evaluate $(ARGS)

.PHONY: bench-merge
bench-merge: setup ## Merging and its proof against peft's merge_and_unload, 984 M parameters (5 minutes, 8 GB of disk)
	$(RUN)/python -W ignore -m tests.benchmarks.merge

.PHONY: bench-reporting
bench-reporting: setup ## What a flood of connections costs the operator and the reports of others (1 minute)
	$(RUN)/python -m tests.benchmarks.reporting

.PHONY: bench-metrics
bench-metrics: setup ## What a scrape at 10,000 runs costs, and how late the operator's event loop gets meanwhile (ARGS="--burst": the worst case)
	$(RUN)/python -m tests.benchmarks.metrics $(ARGS)

.PHONY: bench-coverage
bench-coverage: setup ## How often evaluation's intervals cover what is true (1 minute)
	OMP_NUM_THREADS=1 $(RUN)/python -m tests.benchmarks.coverage $(ARGS)

.PHONY: lint
lint: setup ## Style, types and layers
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy -p llava_api -p llava_operator -p llava_notifier -p llava_trainer -p llava_monitoring
	$(RUN)/mypy tests/localcluster tests/demo tests/tiny tests/kubectl.py tests/rendering.py tests/prepare.py
	$(RUN)/lint-imports

.PHONY: generate
generate: setup ## Write the files that are made from the types and the chart
	$(RUN)/python -m llava_api.generate
	$(RUN)/python -m llava_operator.telemetry.metrics_page
	$(RUN)/python -m llava_trainer.evaluation.schema
	$(RUN)/python -m llava_monitoring.generate
	$(RUN)/python -m tests.rendering

.PHONY: dashboards
dashboards: ## Grafana's dashboards as files to import by hand (FOLDER=dashboards)
	@mkdir -p '$(FOLDER)' && cp charts/llava-finetune-operator/files/dashboards/*.json '$(FOLDER)'/
	@echo 'Import $(FOLDER)/*.json in Grafana: Dashboards, New, Import.'

.PHONY: lock
lock: ## Renew constraints.txt
	$(UV) pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --upgrade -o constraints.txt

.PHONY: images
images: ## Build the operator's and the trainer's image
	$(CLUSTER) build-images

.PHONY: cluster-up
cluster-up: ## Start an embedded cluster of one node, with the images
	$(CLUSTER) tools --install
	$(CLUSTER) up
	$(CLUSTER) build-images
	$(CLUSTER) load-image localhost/llava-finetune-operator:dev
	$(CLUSTER) load-image localhost/llava-finetune-trainer:dev

.PHONY: cluster-down
cluster-down: ## Remove that cluster
	$(CLUSTER) down
