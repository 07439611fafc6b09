# Everything a user or CI does with this project. Each target first makes the environment it needs (.venv), at once
# when that is already there. Variables: ACCELERATOR=cpu|gpu, PYTHON=python3.12, ARGS="-k name" (test), PORT=5000 (mlflow).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test soak check format bench lab mlflow lock clean distclean

BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
BENCHMARKS := $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: ## make .venv with the locked environment: vLLM for this machine's GPU, or for its CPU
	@requirements/install.sh

demo: setup ## the whole story on two small models: switch, compare, verdict; writes reports/quickstart/
	@$(BIN)/abswitch demo

test: setup ## every test, with real vLLM, the notebooks and a browser (ARGS="-k name": only such, no notebooks)
	@requirements/browser.sh
ifeq ($(ARGS),)
	@PYTHON=$(BIN)/python NOTEBOOKS="$(NOTEBOOKS)" tests/all.sh
else
	@$(BIN)/python -m pytest tests $(ARGS)
endif

soak: setup ## 20,000 random histories of switches, faults and crashes (about a quarter of an hour)
	@ABSWITCH_HYPOTHESIS=soak $(BIN)/python -m pytest tests/serving/test_stateful.py $(ARGS)

check: setup ## lint, format, strict types, import layers, notebooks without outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python .ci/notebooks.py check $(NOTEBOOKS)

format: setup ## format the code, mend what ruff can mend, strip the notebooks' outputs
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/python .ci/notebooks.py strip $(NOTEBOOKS)

bench: setup ## run every benchmark, one after the other
	@set -e; for file in $(sort $(BENCHMARKS)); do echo "== $$file"; $(BIN)/python $$file; done

lab: setup ## open JupyterLab on the notebooks, on 127.0.0.1
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
		--ServerApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root --no-browser)

mlflow: setup ## open the MLflow UI on 127.0.0.1:5000 (PORT=5001 for another port; settings: mlflow/server.env)
	@mkdir -p mlflow/artifacts
	@set -a; . mlflow/server.env; set +a; exec $(BIN)/mlflow ui $(if $(PORT),--port $(PORT))

lock: ## resolve pyproject.toml anew into requirements/*.txt (UPGRADE=1 takes the newest of everything)
	@requirements/lock.sh

clean: ## remove caches and build leftovers; .venv, reports/ and mlflow/ stay
	@rm -rf build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	@rm -rf .venv
