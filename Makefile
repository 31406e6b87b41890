# make study   set up and run the study         (make study CONFIG=config/other.yaml ARGS="-n")
# make quick   the same with 40 questions and the smallest model: minutes, to see what comes out
# make test    set up and run the tests           (make test-unit: only those that take seconds each)
# make coverage run these, and say which lines of the library they do not reach
# make lint    check format, types and rules
# make hydrate pull finished results from the DVC remote, so that nothing of them is run again
# make verify  compare the results with the committed numbers, within tolerances
# make bench   time the library against what else one would use (make bench-gpu: on a GPU)
# make setup   only set up the virtual environment in .venv

PYTHON ?= python3
CONFIG ?= config/config.yaml
TESTS := --numprocesses logical --maxprocesses 4
VENV := .venv
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup study quick hydrate verify test test-unit coverage lint bench bench-gpu

help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))

study: $(READY)
	snakemake --configfile $(CONFIG) $(ARGS)

quick: $(READY)
	snakemake --config study=quick limit=40 'models=[smollm2-135m]' $(ARGS)

# pulled files are older or newer than each other at random: without the touch all would run again
hydrate: $(READY)
	@[ -n "$$(dvc config core.remote 2> /dev/null)" ] || { echo "hydrate: no remote is configured to pull results from. Name the one that holds them: dvc remote add --default store URL (docs/reliability.md, Remotes), or make them here: make study"; exit 1; }
	@dvc pull || { echo "hydrate: the results could not be pulled; see above. Nothing was marked as finished."; exit 1; }
	@python -m layercal.dvc # a clone need not have the folders that its models came from
	@dvc status --quiet || { dvc status; echo "hydrate: the files above are not what dvc.lock says, so nothing was marked as finished. Undo their change (git restore, dvc checkout), or run what they change: make study"; exit 1; }
	snakemake --touch --forceall --quiet all

verify: $(READY)
	python -m layercal.verify

# a process for each core; one test after another: pytest
test: $(READY)
	pytest $(TESTS)

test-unit: $(READY)
	pytest $(TESTS) tests/unit

coverage: $(READY)
	pytest $(TESTS) --cov --cov-report term-missing:skip-covered tests/unit

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check workflow
	@mkdir -p .snakemake
	@snakemake --lint > .snakemake/lint 2>&1; grep -q "^Lints for rule" .snakemake/lint || { cat .snakemake/lint; exit 1; }
	@echo "snakemake --lint, but for conda environments (envs/README.md) and {rule}, which Snakemake gives"
	@! grep "^    \* " .snakemake/lint | grep -v -e "Specify a conda" -e "uses variable rule"

bench: $(READY) # of a finished study; steering-vectors asks for an older transformers, yet runs on this
	python -m pip install --quiet --disable-pip-version-check --no-deps steering-vectors==0.12.2
	python benchmarks/metrics.py
	python benchmarks/extraction.py --subjects 1 --behind 60 --limit 96
	python benchmarks/harness.py
	python benchmarks/steering.py
	python benchmarks/growth.py

bench-gpu: $(READY)
	python benchmarks/gpu.py

setup: $(READY)

$(READY): pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "layercal needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint envs/constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint envs/constraints.txt --editable '.[dev]'
	touch $@
