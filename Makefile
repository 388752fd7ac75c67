# Two commands are all a newcomer needs: `make demo` and `make test`.
# Everything is installed into .venv and .cache; `make clean` removes both.

# The first interpreter that is new enough and can make a virtual environment.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PROXIES := .cache/proxies
INTERPRETERS := .cache/interpreters
ORACLE := .cache/oracle

.PHONY: demo test lint types unit e2e wheel containers interop bench bench-exporters clean

demo: .venv/.demo
	@$(BIN)/sentinel-agent demo

# Everything that CI runs, in the order in which a mistake is cheapest to find.
test: lint types unit e2e wheel containers

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/.test
	$(BIN)/mypy

# Every branch of the core; the tracer would slow the other tests, which read real processes.
unit: .venv/.test $(INTERPRETERS)/.done $(ORACLE)/.done .cache/web/.done .cache/kubernetes/.done
	$(BIN)/pytest tests/core --cov=sentinel_agent/core --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100
	$(BIN)/pytest -m "not e2e and not wheel and not containers and not interop" --ignore=tests/core

e2e: .venv/.test $(PROXIES)/.done
	$(BIN)/pytest -m e2e

# The wheel as users get it, in an environment of its own, with no checkout on the path.
wheel: .venv/.test
	$(BIN)/pytest -m wheel

# The image, built from the Dockerfile and run beside a target in a container of its own; needs root.
containers: .venv/.test .cache/rootfs/.tried
	$(BIN)/pytest -m containers

.cache/rootfs/.tried: .venv/.test tools/rootfs.sh
	tools/rootfs.sh .cache/rootfs
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3 >= 3.11 with ensurepip found. Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade 'pip>=25.1'

.venv/.demo: .venv/bin/python pyproject.toml
	$(PIP) --editable '.[all]'
	@touch $@

.venv/.test: .venv/.demo pyproject.toml tests/debian.txt
	$(PIP) --group lint --group test
	@tools/debian.sh tests/debian.txt
	@touch $@

# The real proxies that the end-to-end tests attach to, each in its own environment as in production.
$(PROXIES)/.done: .venv/bin/python tests/e2e/proxies/requirements-proxypy.txt tests/e2e/proxies/requirements-mitmproxy.txt tests/e2e/proxies/requirements-gunicorn.txt
	@for name in proxypy mitmproxy gunicorn; do \
	  test -x $(PROXIES)/$$name/bin/python || $(BIN)/python -m venv $(PROXIES)/$$name || exit 1; \
	  $(PROXIES)/$$name/bin/python -m pip install --quiet --disable-pip-version-check -r tests/e2e/proxies/requirements-$$name.txt || exit 1; \
	done
	@touch $@

# CPython 3.14 and 3.15 as targets of the tests, where they can be had; says why where not.
$(INTERPRETERS)/.done: .venv/bin/python tools/interpreters.sh
	@tools/interpreters.sh $(INTERPRETERS) $(BIN)/python

# helm and kubectl, which render the manifests.
.cache/kubernetes/.done: .venv/bin/python tools/kubernetes.sh
	@tools/kubernetes.sh .cache/kubernetes $(BIN)/python
	@touch $@

# The web page's type checker, a Connect client, and Grafana's own types of dashboards.
.cache/web/.done: .venv/bin/python tools/web.sh tests/api/node/package.json $(wildcard tests/api/node/*.mjs)
	@tools/web.sh .cache/web $(BIN)/python
	@touch $@

# Real backends and clients that come from Maven, Go and npm (Zipkin, SkyWalking, an OpenTelemetry collector, Pyroscope's push
# service, Grafana's own flame graph and the client of its data source); `make test` does without. What cannot be had is
# named, and its tests are skipped with the reason.
interop: .venv/.test .cache/rootfs/.tried
	tools/interop.sh .cache/interop
	tools/musl_python.sh .cache/musl-python
	tools/aarch64.sh .cache/aarch64
	$(BIN)/pytest -m interop -rs

# The official messages of SkyWalking, by which the tests judge our bytes, in an environment of their own.
$(ORACLE)/.done: .venv/bin/python tests/exporters/oracle_env/requirements.txt
	@test -x $(ORACLE)/bin/python || $(BIN)/python -m venv $(ORACLE)
	@$(ORACLE)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/exporters/oracle_env/requirements.txt
	@touch $@

# What the agent costs and what it shows; figures, not a test. bench/fuzz_reader.py and bench/proxy_bench.py take longer, and are run by hand.
bench: .venv/.test
	$(BIN)/python bench/agent_cost.py
	$(BIN)/python bench/reader_cost.py
	$(BIN)/python bench/target_cost.py 3
	$(BIN)/python bench/bursts.py 2
	$(BIN)/python bench/leaf_distance.py

# What sending costs, beside OpenTelemetry's and SkyWalking's own, and what a backend that stalls or is away does; with goals.
bench-exporters: .venv/.test $(ORACLE)/.done
	@test -x .cache/otel/bin/python || $(BIN)/python -m venv .cache/otel
	@.cache/otel/bin/python -m pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.1 opentelemetry-exporter-zipkin-json==1.45.1
	$(BIN)/python bench/exporter_cost.py
	PYTHONPATH=. $(BIN)/python bench/exporter_faults.py

clean:
	rm -rf .venv .cache dist build .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
