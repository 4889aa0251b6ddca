# make compare      set up, run recipes/quickstart.yaml on a local Ray cluster, end with the comparison table
# make test         set up, run the tests as CI does: all but those marked slow
# make test-unit    set up, run what needs no engine, on all cores; one room with ROOM=training (or ROOM=project)
# make test-engines set up, run the tests of single engines: Ray, vLLM, DeepSpeed, MLflow
# make check        set up, check format, lint and types, and ask PyPI for known vulnerabilities in the locks
# make docs         set up, build the documents as a site in outputs/site; any warning or dead link fails
# make chaos        set up, kill, freeze and starve a run's processes in every phase, and disturb whole runs; most of an hour
# make bench        set up, measure speed side by side: one row with ROW=dpo, several with ROW="dpo rollout"
#
# ARGS passes arguments on: make compare ARGS="seeds=[1]", make test ARGS="tests/unit/tasks -k gsm8k".
# PYTHON chooses the interpreter of the virtual environment: make compare PYTHON=python3.12.

SHELL := /bin/bash
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
# Without byte code, each of the thousand processes that tests start compiles the project's files again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest -q --durations=25
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# A stamp carries its lock's hash in its name: a lock that changes is installed, one that does not is not.
hash = $(firstword $(shell cat $(1) | sha256sum | cut -c1-16))
LOCKS := requirements/torch-cpu.txt requirements/cpu.txt
RUNTIME := .venv/installed-$(call hash,pyproject.toml $(LOCKS))
DEVELOPMENT := .venv/installed-dev-$(call hash,pyproject.toml $(LOCKS) requirements/dev.txt)

UNIT := tests/unit tests/project
room = $(if $(filter project,$(1)),tests/project,tests/unit/$(1))

.PHONY: compare test test-unit test-engines check bench chaos docs
.DELETE_ON_ERROR:

compare: $(RUNTIME)
	@.venv/bin/python cluster/local_job.py recipes/quickstart.yaml --output outputs/quickstart $(ARGS)

# Engines are shared by the tests of a process, and take both cores: only tests without one run beside each other.
# With ARGS, one process runs what they choose.
test: $(DEVELOPMENT)
	@.venv/bin/python -m tests.support.chromium
ifdef ARGS
	@$(PYTEST) $(ARGS)
else
	@failed=0; \
	$(PYTEST) -n logical --dist worksteal $(UNIT) || failed=1; \
	$(PYTEST) $(addprefix --ignore=,$(UNIT)) || failed=1; \
	exit $$failed
endif

test-unit: $(DEVELOPMENT)
	@$(PYTEST) -n logical --dist worksteal $(if $(ROOM),$(call room,$(ROOM)),$(UNIT)) $(ARGS)

test-engines: $(DEVELOPMENT)
	@$(PYTEST) tests/engines $(ARGS)

bench: $(DEVELOPMENT)
	@.venv/bin/python -m tests.benchmarks $(ROW) $(ARGS)

chaos: $(DEVELOPMENT)
	@.venv/bin/python -m tests.chaos $(ARGS)

docs: $(DEVELOPMENT)
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build $(ARGS)
	@echo "site: outputs/site/index.html"

check: $(DEVELOPMENT)
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/python requirements/audit.py

# torch comes first, and alone: its CPU build lives on an index of PyTorch's own, and asking that index for every
# other package too would be slow, and slower still where it cannot be reached.
$(RUNTIME):
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON): apt install python3 python3-venv python3-dev g++" >&2; exit 1; }
	@$(PYTHON) requirements/check_machine.py
	@echo "Installing into .venv (about 4.5 GB; some minutes)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@$(PIP) install --quiet --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) -r requirements/torch-cpu.txt || \
	  { echo "PyTorch's CPU build did not install: is $(TORCH_INDEX) reachable?" >&2; exit 1; }
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/cpu.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/dev.txt
	@touch $@
