# Everything happens in a virtual environment of the project's own, pinned by constraints.txt.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo test check bench gpu-smoke screenshots schemas clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.base ## train, push, deploy, upgrade under load, refuse a bad version, roll back
	$(BIN)/qd demo $(DEMO)

# Whole hosts take both cores of a small machine; what is smaller is tested two at a time.
test: $(VENV)/.dev ## all tests, or TESTS=path; those of containers too where a Docker Engine answers
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/end_to_end
	$(BIN)/python -m pytest tests/end_to_end
endif

check: $(VENV)/.dev ## lint, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## measure speed and memory as ratios against something real, and print the table
	$(BIN)/python -m tests.benchmarks $(BENCH)

gpu-smoke: $(VENV)/.dev ## on a machine with a GPU: our figures against nvidia-smi's, and whose the memory is
	$(BIN)/python -m tests.gpu_smoke

screenshots: $(VENV)/.dev ## draw the console's pictures anew: the real app over a simulated fleet
	$(BIN)/python -m tests.console.tui.screenshots

schemas: $(VENV)/.dev ## write the shipped schemas anew
	$(BIN)/python -m quarterdeck_console.cli.schemas
	$(BIN)/python -m quarterdeck_agent.api.schema tests/agent/api/openapi.json

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench-results
