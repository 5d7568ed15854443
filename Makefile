# `make test` needs Python 3.11+ with venv, nothing else: the rest is installed into .venv, checked by hash.
PYTHON := .venv/bin/python
WORKERS ?= 2
UV_LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11
# many tests start servers and commands: compiled once, they start in a third of the time
unexport PYTHONDONTWRITEBYTECODE
.PHONY: up test test-deep test-images lint check fmt bench chart lock bundle clean

up: .venv/ready ; $(PYTHON) -m piggybank --data-dir .data up
test: .venv/ready ; $(PYTHON) -m pytest -n $(WORKERS) --no-loadscope-reorder -m "not deep and not images"
test-deep: .venv/ready ; mkdir -p build/screenshots && SCREENSHOTS=$(CURDIR)/build/screenshots $(PYTHON) -m pytest -m "deep and not images"
test-images: .venv/ready ; $(PYTHON) -m pytest -m images tests/images
lint: .venv/ready ; $(PYTHON) -m ruff format --check . && $(PYTHON) -m ruff check . && $(PYTHON) -m mypy
check: lint test
fmt: .venv/ready ; $(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .
bench: .venv/ready ; $(PYTHON) -m tests.bench $(if $(ONLY),--only $(ONLY))
chart: .venv/ready ; $(PYTHON) -m deploy.helm.sync
lock: ; $(UV_LOCK) --extra embedded pyproject.toml -o requirements.lock && echo hatchling | $(UV_LOCK) -c requirements.lock - -o requirements-build.lock && $(UV_LOCK) --all-extras --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock && $(UV_LOCK) --extra tracing -c requirements-dev.lock pyproject.toml -o requirements-image.lock && echo 'docker>=7.1' | $(UV_LOCK) -c requirements-dev.lock - -o requirements-docker.lock
bundle: .venv/ready ; $(PYTHON) -m installer.bundle dist
clean: ; rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis build dist

.venv/ready: requirements-dev.lock installer/develop.sh ; @sh installer/develop.sh
