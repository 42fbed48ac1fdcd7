# make repro: install, rebuild everything, say where to look.   make test: install, pass the tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
AUDIT := $(VENV)/audit
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
# DVC's own cache of pickled state, which is world-writable in /var/tmp by default. DVC cannot write a setting that is not
# ASCII, as a path in the project may be.
SITE_CACHE := "$${XDG_CACHE_HOME:-$$HOME/.cache}/darkroom/dvc"
PORT ?= 5000

.PHONY: FORCE install repro test test-all test-fast readme check sbom audit hashes ui mlflow-server clean

install: $(READY)

# The programs in a virtual environment name its absolute path: where the project was moved, it is made again.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif
FORCE:

$(READY): requirements.lock requirements.hashes pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=python3.11"; exit 2; }
	@test ! -s $@ || test "$$(cat $@)" = "$(CURDIR)" || { echo "The project was moved: removing $(VENV)"; rm -rf $(VENV); }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages of requirements.lock into $(VENV) (minutes, once) ..."
	@awk '/^[^ #]/ { half = !half } { print > ("$(VENV)/hashes-" half + 0) }' requirements.hashes  # pip uses one core
	@printf '%s\n' 0 1 | xargs -P 2 -I % $(PIP) --require-hashes --no-deps -r $(VENV)/hashes-%
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(VENV)/bin/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib > $(VENV)/compiled.log || true  # some files are templates
	@mkdir -p -m 700 $(SITE_CACHE) && $(VENV)/bin/dvc config --local core.site_cache_dir $(SITE_CACHE)
	@printf %s "$(CURDIR)" > $@

repro: install
	@darkroom doctor --brief
	darkroom repro
	@echo
	@echo "The report:       $(CURDIR)/reports/index.html"
	@echo "Runs and models:  make ui"
	@echo "The numbers:      source $(VENV)/bin/activate && dvc metrics show"

test: install
	pytest -m "not nightly" -n 2 --dist loadfile --no-loadscope-reorder

test-all: install
	pytest

test-fast: install
	pytest -m "not slow and not cluster and not nightly"

readme: install
	$(PYTHON) tests/readme/run.py

check: install
	ruff check .
	ruff format --check .
	mypy

# The two tools have an environment of their own: a package that they need makes Ray start two seconds later.
$(AUDIT):
	$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7' 'pip-audit>=2.9' || { rm -rf $(AUDIT); exit 1; }

# What is installed here, as a CycloneDX document. Needs the network once, for the tool.
sbom: install $(AUDIT)
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(VENV)/bin/python

# Known advisories about the pinned packages. Needs the network: the JSON interface of the package index.
audit: install $(AUDIT)
	ignored=$$(awk -v today=$$(date +%F) '!NF || /^#/ { next } $$2 < today { print "error: advisories.txt: " $$1 " was accepted until " $$2 > "/dev/stderr"; exit 2 } { printf " --ignore-vuln %s", $$1 }' advisories.txt) && \
		$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.hashes $$ignored

# requirements.hashes, after a change of requirements.lock. Needs the network.
hashes:
	$(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/pip install --quiet --disable-pip-version-check uv
	head -2 requirements.hashes > $(VENV)/uv/hashes
	grep -v '^torch==\|^#' requirements.lock | $(VENV)/uv/bin/uv pip compile - --no-deps --generate-hashes --no-header --no-annotate --quiet >> $(VENV)/uv/hashes
	mv $(VENV)/uv/hashes requirements.hashes

ui: install
	@python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT))).close()' 2>/dev/null || \
		{ echo "error: port $(PORT) of 127.0.0.1 is in use or cannot be used; choose another: make ui PORT=5001" >&2; exit 2; }
	@echo "MLflow on http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning (Ctrl-C ends it)"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" \
		--host 127.0.0.1 --port $(PORT) --workers 1 --allowed-hosts "127.0.0.1:$(PORT),localhost:$(PORT)"

mlflow-server: install
	python infra/mlflow/local.py --port $(PORT)

clean:
	rm -rf $(filter-out .darkroom/server .darkroom/schedule.env .darkroom/retraining,$(wildcard .darkroom/*)) data/raw data/processed models history plots metrics reports dvc_plots
