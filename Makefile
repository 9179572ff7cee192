# SPDX-License-Identifier: Apache-2.0
# `make` alone prints what there is. Everything made outside the checkout lies in ~/.cache/kinema.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

export KINEMA_CACHE ?= $(HOME)/.cache/kinema
export UV_CACHE_DIR ?= $(KINEMA_CACHE)/uv-cache
export UV_LINK_MODE ?= hardlink

VENV := $(KINEMA_CACHE)/venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PYTEST := $(PY) -m pytest
export PATH := $(BIN):$(PATH)
export PYTHONPATH := tools

PURE_TESTS := tests/unit/decide $(addprefix tests/unit/api/test_,data_plan.py plan.py refusals.py tasks.py)

# Only folders that are there: each is checked as soon as it exists.
SOURCES := $(wildcard crds operator trainer tools images tests bench)

##@ Start
.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Make the development environment in ~/.cache/kinema (again: nothing to do)
	@tools/setup

.PHONY: demo
demo: setup ## From nothing to a trained model and a sampled clip; VIDEOS=folder takes your own videos
	$(PY) tools/demo.py $(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(PUSH),--push "$(PUSH)")

.PHONY: demo-videos
demo-videos: setup ## Put the demo's real videos into ~/.cache/kinema/videos
	@tools/demo-videos

##@ Code
.PHONY: lint
lint: setup ## Style, types and import rules
	ruff check $(SOURCES)
	ruff format --check $(SOURCES)
	mypy $(SOURCES)
	lint-imports

.PHONY: format
format: setup ## Put the code into the house's style
	ruff check --fix $(SOURCES)
	ruff format $(SOURCES)

.PHONY: lock
lock: setup ## Write the hashed requirements locks from their .in files (UPGRADE=1: newest versions)
	tools/lock $(if $(UPGRADE),--upgrade)

.PHONY: crds
crds: setup ## Write the CRDs from the models, and the chart's values, schema and README
	kinema-crds crds
	$(PY) tools/chart_sync.py

.PHONY: docs
docs: setup ## Write the reference of the resources and the drawing of the architecture
	tools/docs

.PHONY: dashboards
dashboards: setup ## Write dashboards, rules and the pages about metrics and alerts from their Python
	tools/dashboards

##@ Images and cluster
.PHONY: images
images: setup ## Build the images (PUSH=registry.example.com/kinema pushes them, IMAGES="stage" picks)
	tools/images build $(if $(PUSH),--push "$(PUSH)") $(if $(PUSH_INSECURE),--insecure) $(IMAGES)

.PHONY: programs
programs: setup ## Build etcd, Kubernetes, containerd and Helm into ~/.cache/kinema (again: nothing to do)
	tools/cluster build

.PHONY: cluster
cluster: setup ## Start the local one-node Kubernetes (again: nothing to do)
	tools/cluster up

.PHONY: cluster-down
cluster-down: setup ## Stop the local Kubernetes and leave nothing of it behind
	tools/cluster down

##@ Tests
.PHONY: test-unit
test-unit: setup ## Unit tests, under three minutes
	$(PYTEST) -n 2 tests/unit

.PHONY: test-stages
test-stages: setup ## Stages that encode, train, export and sample with a toy model, in the process of the test
	$(PYTEST) -n 2 tests/stages

.PHONY: test-coverage
test-coverage: export COVERAGE_FILE := $(KINEMA_CACHE)/coverage
test-coverage: setup ## Tests of `plan` and `decide` alone must take every branch of them
	coverage run -m pytest -q $(PURE_TESTS) --deselect tests/unit/decide/test_stateful.py
	coverage report

.PHONY: test-mutation
test-mutation: setup ## Tests of `plan` and `decide` must see 90 % of all small changes to them; prints the others
	$(PY) tools/mutation.py

.PHONY: test-chart
test-chart: programs ## What the chart renders and refuses
	$(PYTEST) -n 2 --dist loadfile tests/chart

.PHONY: test-prometheus
test-prometheus: setup ## Rules by promtool; a real Prometheus has data for every panel
	$(PYTEST) tests/prometheus

.PHONY: test-parity
test-parity: setup ## Layouts train as one process does; the other layouts, and what is broken on purpose: `test-all`
	$(PYTEST) -m "not slow" tests/parity

.PHONY: test-controlplane
test-controlplane: programs ## Against a real API server without nodes
	$(PYTEST) -n 2 --dist loadfile -m "not slow" tests/controlplane

.PHONY: test-faults
test-faults: programs ## The operator killed a hundred times, two leaders, an API server that fails: about nine minutes
	$(PYTEST) tests/faults

.PHONY: test-local
test-local: setup ## The whole pipeline as processes: on this machine's disk, and on S3 through a faulty network
	$(PYTEST) -m "not slow" $(wildcard tests/local tests/s3)

.PHONY: test-cluster
test-cluster: programs images ## Against the full local cluster, with real containers
	$(PYTEST) -m "not slow" tests/cluster

SHORT_TESTS := $(addprefix test-,unit coverage stages parity chart prometheus local controlplane cluster)

.PHONY: test
test: lint $(SHORT_TESTS) ## All that must pass before a change lands

.PHONY: test-all
test-all: test test-mutation ## `test`, and the slow tests too
	$(PYTEST) -m slow tests

##@ Benchmarks
.PHONY: bench
bench: setup ## Every benchmark, one JSON line each; on a quiet machine
	missed=0; for name in train_overhead checkpoint_blocking packing data_wait encode reconcile_latency operator_memory \
			control_plane_start; do \
		$(PY) -m bench.$$name || missed=1; done; exit $$missed

##@ Cleaning
.PHONY: clean
clean: ## Remove what tools wrote into the checkout
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name .mypy_cache -o -name .ruff_cache -o \
		-name .pytest_cache -o -name .import_linter_cache \) -print0 | xargs -0 rm -rf
	rm -rf out build dist
