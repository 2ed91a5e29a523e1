# Targets work from a fresh clone: each installs what it needs into .venv, once.
PYTHON ?= python3.11
PORT ?= 8080
ENGINE ?= ptychocam
SCAN ?=
WAIT ?= 1
PARAMS ?=
PYTEST_ARGS ?=
SCANS ?= 20
FAULTS ?= 60
SEED ?= 1
SHORT ?=
DATABASE ?=
JOBS ?= 10000
TRANSFERS ?= 2000
DURATION ?= 300
ONLY ?=
OLD ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONPATH
unexport PYTHONDONTWRITEBYTECODE # nothing is compiled when it is installed: every process would take 3 s longer

VENV := .venv/.installed-$(shell (cat requirements.txt requirements-dev.txt constraints.txt; sed '/^\[tool/,$$d' pyproject.toml) | cksum | cut -d' ' -f1)
CLI := .venv-cli/.installed-$(shell cksum < requirements-cli.txt | cut -d' ' -f1)
CLIENT := build/submit_scan.py
CDTOOLS := .venv-cdtools/.installed-$(shell cksum < requirements-cdtools.txt | cut -d' ' -f1)
BENCH := .venv-bench/.installed-$(shell cat requirements-cdtools.txt requirements-bench.txt | cksum | cut -d' ' -f1)
OLD_FLOW := .venv-old/.installed-$(shell cksum < requirements-bench-old.txt | cut -d' ' -f1)
CELERY := .venv-celery/.installed-$(shell (cat requirements.txt requirements-celery.txt include/deployment/image-requirements.txt constraints.txt; sed '/^\[tool/,$$d' pyproject.toml) | cksum | cut -d' ' -f1)
READERS := .venv-readers/.installed-$(shell cksum < requirements-readers.txt | cut -d' ' -f1)
COMPOSE := $(shell command -v docker-compose >/dev/null && echo docker-compose || echo docker compose)
SLURM_SHORT := refusals or clients or submit_to_end or before_its_name or exit_codes or full_machine or lost_for_good
RUN := PYTHONPATH=plugins:include .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help client demo test test-long test-slow lint bench bench-scale chaos cdtools readers clean constraints reference up down backup restore compose-config compose-test slurm-test fresh

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

client: $(CLIENT) ## The client for the beamline computer, one file: build/submit_scan.py
	@echo "$(CLIENT) is ready: copy it to the beamline computer. Its manual: $(CLIENT) --help"

demo: $(VENV) $(CLIENT) $(if $(findstring cdtools,$(ENGINE)),$(CDTOOLS)) ## A scan from the beamline to a reconstruction, on this machine (SCAN=file.cxi ENGINE=ptychocam|cdtools|none PORT=8080 WAIT=0)
	@$(RUN) -m dev.demo --engine '$(ENGINE)' --port '$(PORT)' $(if $(SCAN),--scan '$(SCAN)') $(if $(filter 0,$(WAIT)),--no-wait) $(foreach p,$(PARAMS),--param '$(p)')

# Five processes, for two cores too: half of the time a test waits for a server, a poll or a job.
test: $(VENV) $(CLI) ## The tests (PYTEST_ARGS=...); what is skipped says what it needs (tests/support/needs.py)
	.venv/bin/python -m pytest -n 5 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

test-long: $(VENV) ## On a running Airflow: fifty scans at once, missed scans, backfills, the README's REST examples, the client, a short chaos, PostgreSQL and an upgrade
	.venv/bin/python -m pytest -m 'long and not slow' $(PYTEST_ARGS)

test-slow: $(VENV) ## A backfill of 1,000 scans that is broken off and begun again, live scans meanwhile; 500 tasks that are resumed early; every number field in a browser
	.venv/bin/python -m pytest -m slow -s tests/live/test_large_backfill.py tests/live/test_resumed_tasks.py tests/browser $(PYTEST_ARGS)

lint: $(VENV) ## Style, types and which package may import which, without changing anything
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PYTHONPATH=plugins:include:. .venv/bin/lint-imports
	.venv/bin/mypy plugins include dags tests

bench: $(VENV) $(if $(filter reconstructions,$(or $(ONLY),$(if $(OLD),,reconstructions))),$(BENCH)) $(if $(OLD),$(OLD_FLOW)) $(if $(filter throughput,$(ONLY)),$(CELERY)) ## What the orchestration and the reconstructions cost, as ratios in one run (ONLY='imports latency cost throughput reconstructions'); OLD=checkout: beside the old flow
	@$(RUN) -m dev.benchmark $(if $(OLD),--old '$(OLD)') $(ONLY)

bench-scale: $(VENV) ## Ten thousand waiting jobs, two triggerers, one is killed: what it costs, and that all are seen (JOBS=10000 TRANSFERS=2000 DURATION=300 DATABASE=sqlite)
	@$(RUN) -m dev.benchmark.scale --jobs '$(JOBS)' --transfers '$(TRANSFERS)' --duration '$(DURATION)' $(if $(DATABASE),--database '$(DATABASE)')

chaos: $(VENV) ## Scans while everything is killed and cut off, then the books (SCANS=200 FAULTS=1000 SEED=1 DATABASE=sqlite)
	@$(RUN) -m dev.chaos --scans '$(SCANS)' --faults '$(FAULTS)' --seed '$(SEED)' $(if $(DATABASE),--database '$(DATABASE)')

cdtools: $(CDTOOLS) ## Install CDTools and torch (CPU) for the reconstruction of the same name

readers: $(READERS) ## Install ptychodus and MANTiS, which read results and stacks in the tests

up: ## The production stack with Docker Compose, as .env says (PROFILES=standin,celery,metrics ARGS='--scale worker=2')
	@$(if $(filter undefined,$(origin PROFILES)),,PROFILES='$(PROFILES)') bash include/deployment/up $(ARGS)

down: ## Take the production stack down; its data stay
	@$(COMPOSE) down --remove-orphans

backup: ## Save the production stack's database, keys and .env (TO=folder)
	@bash include/deployment/backup '$(TO)'

restore: ## Make the production stack's data anew from a backup, where there are none (FROM=folder)
	@bash include/deployment/restore '$(FROM)'

compose-config: ## Check docker-compose.yaml, without a Docker engine
	@for profiles in '' standin celery standin,celery metrics standin,celery,metrics; do COMPOSE_PROFILES=$$profiles $(COMPOSE) --env-file .env.example config -q || exit 1; done

compose-test: $(VENV) $(CLI) ## The production stack for real: needs a Docker engine and about 25 minutes
	@docker info >/dev/null 2>&1 || { echo "NOT TESTED: no Docker engine answers on this machine (docker info)."; exit 0; }; \
	COMPOSE_TEST=1 .venv/bin/python -m pytest tests/deployment/stack --timeout 1800 $(PYTEST_ARGS)

slurm-test: $(VENV) ## Jobs and the main job on Slurm itself (Debian's, installed when missing; as root), 9 minutes; SHORT=1: 2 minutes
	@[ "$$(id -u)" = 0 ] || { echo "NOT TESTED: only root can start a Slurm cluster; run make slurm-test as root."; exit 0; }; \
	.venv/bin/python tests/support/needs.py install slurm || { echo "NOT TESTED: Slurm cannot be installed here."; exit 0; }; \
	PYTHONPATH=plugins:include:tests .venv/bin/python -m support.slurm_cluster \
	.venv/bin/python -m pytest -m 'both or slurm' tests/standin tests/slurm tests/live $(if $(SHORT),-k '$(SLURM_SHORT)') $(PYTEST_ARGS)

fresh: ## The README's first commands on a bare Debian with a clone of this commit, timed (as root; with debootstrap)
	@bash tests/fresh/root.sh 'make demo WAIT=0' 'make test'

reference: $(VENV) ## Write docs/reference/parameters.md anew from the DAGs
	@$(RUN) -m dev.reference

constraints: $(VENV) ## Write constraints.txt anew from what is installed
	@(sed -n '1p' constraints.txt; .venv/bin/pip freeze --exclude cosmic-airflow-bundle --exclude uv) > constraints.new && mv constraints.new constraints.txt

clean: ## Remove what the demonstration made, and the virtual environments
	rm -rf .run build .venv .venv-cli .venv-cdtools .venv-bench .venv-old .venv-celery .venv-readers

define need_python
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed, and '$(PYTHON)' is not on the PATH. Install it, or: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) must be Python 3.11 with its venv module (Debian: python3.11-venv)." >&2; exit 1; }
endef

INSTALL := $(PYTHON) include/dev/install.py

$(VENV):
	$(need_python)
	@echo "Installing into .venv (half a minute, once)"
	@$(INSTALL) .venv -r requirements-dev.txt -c constraints.txt -e . && touch $@

$(CLIENT): $(VENV) include/dev/build_client.py $(wildcard include/beamline_client/*.py plugins/cosmic/*.py)
	@$(RUN) -m dev.build_client && touch $@

$(CLI):
	$(need_python)
	@$(INSTALL) .venv-cli -r requirements-cli.txt && touch $@

$(CDTOOLS):
	$(need_python)
	@echo "Installing CDTools and torch into .venv-cdtools (half a minute, once)"
	@$(INSTALL) .venv-cdtools -r requirements-cdtools.txt && touch $@

$(BENCH):
	$(need_python)
	@echo "Installing CDTools and pty-chi into .venv-bench (a minute, once)"
	@$(INSTALL) .venv-bench -r requirements-bench.txt && touch $@

$(OLD_FLOW):
	$(need_python)
	@echo "Installing Prefect 3.4.2 into .venv-old (half a minute, once)"
	@$(INSTALL) .venv-old -r requirements-bench-old.txt && touch $@

$(CELERY):
	$(need_python)
	@echo "Installing Airflow with Celery into .venv-celery (about a minute, once)"
	@$(INSTALL) .venv-celery -r requirements-celery.txt -c constraints.txt
	@$(INSTALL) .venv-celery --no-deps -e . && touch $@

# ptychodus without what its windows and servers need: its readers are all that is used.
$(READERS):
	$(need_python)
	@echo "Installing ptychodus and MANTiS into .venv-readers (half a minute, once)"
	@$(INSTALL) .venv-readers -r requirements-readers.txt
	@$(INSTALL) .venv-readers --no-deps ptychodus==1.7.0 && touch $@
