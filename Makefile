# Every line is one command that also works without make; .venv/Scripts/python instead of .venv/bin/python on Windows.
PYTHON ?= python3
RUN ?= latest
ARGS ?=
MINUTES ?= 5

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: .venv/ready  ## make .venv and install the tested versions

.venv/ready: pyproject.toml constraints.txt
	@echo "Making .venv and installing the tested versions. That takes minutes, once."
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: setup  ## train on real data, offline: make train ARGS="optimizer=adam"
	.venv/bin/python train.py $(ARGS)

resume: setup  ## go on where a run stopped: make resume RUN=latest
	.venv/bin/python resume.py run='$(RUN)' $(ARGS)

reproduce: setup  ## train a run again with its own code, and compare: make reproduce RUN=latest ARGS="--epochs 3"
	.venv/bin/python -m savepoint reproduce '$(RUN)' $(ARGS)

demo: setup  ## train, kill, resume, compare every bit
	.venv/bin/python -m savepoint demo

ui: setup  ## the tracker's web page
	.venv/bin/python -m savepoint ui

server: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
server: export MLFLOW_DISABLE_TELEMETRY = true
server: setup  ## MLflow's server for a team: docs/tracking.md
	.venv/bin/python -P -m mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///server/mlflow.db --artifacts-destination server/artifacts $(ARGS)

test: setup  ## the tests: yours in under a minute; in Savepoint itself, the engine's too
	.venv/bin/python -m pytest -n 3 --dist loadfile -m 'not long'

test-all: setup  ## the tests and those that take longer
	.venv/bin/python -m pytest -n 3 --dist loadfile

test-engine: setup  ## the engine's own tests, in a project that was made from the template
	.venv/bin/python -m savepoint test-engine $(ARGS)

new: setup  ## a project of your own: make new ARGS="../my-project --examples one"
	.venv/bin/python -m savepoint new $(ARGS)

upgrade: setup  ## a newer engine in such a project: make upgrade ARGS="--from ../savepoint"
	.venv/bin/python -m savepoint upgrade $(ARGS)

chaos: setup  ## interrupt random runs at random, resume, compare: make chaos MINUTES=30
	.venv/bin/python tests/tools/chaos.py --minutes $(MINUTES) $(ARGS)

test-node: setup  ## read a checkpoint with JavaScript; needs npm
	npm ci --prefix tests/node --silent
	.venv/bin/python -m pytest tests/node

test-servers: setup  ## MLflow's server, PostgreSQL and S3: killed, wrong, full; needs Debian's postgresql, and root
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[servers]' 'moto[s3]>=5,<6'
	.venv/bin/python -m pytest -n 2 --dist loadfile tests/trackers/test_real_servers.py tests/trackers/test_servers_in_trouble.py tests/trackers/test_passwords.py tests/trackers/test_full_store.py

test-versions:  ## the tests on other versions of Python, torch and the rest: make test-versions ARGS="--only torch-2.14"
	$(PYTHON) tests/tools/versions.py $(ARGS)

test-accelerator:  ## what only a GPU can show, in 8 minutes; needs torch, numpy and pyyaml alone
	$(or $(wildcard .venv/bin/python),$(PYTHON)) tests/accelerator/run.py $(ARGS)

check: setup  ## lint, types and tests
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	$(MAKE) test

docs: setup  ## write the pages of reference anew, from conf/ and from what --help says
	.venv/bin/python docs/generate.py

bench: setup  ## what the README says about speed
	.venv/bin/python benchmarks/step.py
	.venv/bin/python benchmarks/checkpoint.py

.PHONY: help setup train resume reproduce demo ui server test test-all test-engine new upgrade chaos test-node test-servers test-versions test-accelerator check docs bench
.DEFAULT_GOAL := help
