# Needs GNU make and Python 3.11 to 3.13; everything else is installed into .venv.
#   make serve ARGS="--engines 1"      make test-unit ARGS="-k config"

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
ARGS ?=
# A file of tests stays in one process: those of vLLM import it once, in 9 s of CPU.
PARALLEL := -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help env lock image-check serve watch test test-newest test-unit test-integration test-loss test-hostile test-bench soak test-sharded test-watch chart-test check clean
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 22

# $(call with_python,SCRIPT ARGUMENTS): for scripts that run before .venv exists.
define with_python
@python='$(PYTHON)'; if [ -z "$$python" ]; then \
	echo 'No Python 3.11 to 3.13 with venv found: install one (Debian: apt install python3.11-venv)' \
		'or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; fi; \
exec "$$python" $(1)
endef

env: ## make .venv from the locks in requirements/ (2 to 6 minutes the first time, then nothing)
	$(call with_python,.ci/setup_env.py)

lock: ## write requirements/ from the ranges in pyproject.toml; ARGS=--upgrade takes the newest
	$(call with_python,.ci/lock.py $(ARGS))

image-check: ## resolve what helm/image installs, in each flavour (1 minute, and 45 MB the first time)
	$(call with_python,.ci/image_requirements.py)

serve: env ## run the laptop fleet on http://127.0.0.1:8000; ARGS="..." goes to `qwenfleet serve`
	@exec $(BIN)/qwenfleet serve $(ARGS)

watch: env ## run Prometheus with the alerts, and show live numbers of the fleet on this machine
	@.ci/prometheus
	@exec $(BIN)/qwenfleet watch $(ARGS)

test: test-unit test-integration ## every test that needs no GPU

test-unit: env ## tests without Ray or network
	@.ci/qwen_tokenizer
	@.ci/stage "unit tests" $(BIN)/pytest tests/unit $(PARALLEL) $(ARGS)

test-newest: ## unit tests with the newest packages that pyproject.toml allows, in build/newest
	$(call with_python,.ci/setup_env.py --newest)
	@.ci/qwen_tokenizer
	@.ci/stage "unit tests, newest packages" build/newest/bin/pytest tests/unit $(PARALLEL) $(ARGS)

test-integration: env ## tests on a real Ray and a real vLLM on CPU
	@.ci/stage "browser" .ci/browser
	@.ci/stage "integration tests" $(BIN)/pytest tests/integration -m integration --timeout 600 $(ARGS)

test-loss: env ## kill, freeze and drain engines and everything around them; prints tables (an hour)
	@.ci/stage "loss tests" $(BIN)/pytest tests/loss -m integration --timeout 900 $(ARGS)

test-hostile: env ## every hostile request that is known, and 2,000 fuzzed bodies, next to other clients (10 minutes)
	@.ci/stage "hostile clients" $(BIN)/pytest tests/hostile -m integration --timeout 600 $(ARGS)

test-bench: env ## the overhead benchmark as its users run it (2 to 4 minutes)
	@.ci/stage "benchmark tests" $(BIN)/pytest tests/bench -m integration $(ARGS)

soak: env ## 30 minutes of 50 streams per second while a random part is killed each minute
	@$(BIN)/python -m qwenfleet.loadtest soak $(ARGS)

test-sharded: env ## engines over several processes and nodes, one of them killed (10 minutes)
	@.ci/stage "sharded tests" $(BIN)/pytest tests/sharded -m integration --timeout 900 $(ARGS)

chart-test: env ## lint, render, validate and deploy the helm chart (installs helm the first time)
	@$(BIN)/python .ci/chart_tools.py
	@.ci/stage "chart tests" $(BIN)/pytest tests/chart -m "chart or integration" --timeout 600 $(PARALLEL) $(ARGS)

test-watch: env ## rules, dashboards, `qwenfleet top`, on a live fleet and a real Prometheus (10 minutes)
	@.ci/prometheus
	@.ci/browser
	@.ci/watch_tools
	@.ci/stage "watch tests" $(BIN)/python -m pytest tests/watch -m watch --timeout 600 $(ARGS)

check: env ## format, lint, types, import rules, spelling
	@.ci/stage "ruff format" $(BIN)/ruff format --check .
	@.ci/stage "ruff check" $(BIN)/ruff check .
	@.ci/stage "import rules" $(BIN)/lint-imports --no-logo
	@.ci/stage "codespell" $(BIN)/codespell
	@.ci/stage "word list" $(BIN)/python .ci/word_list.py
	@.ci/stage "mypy qwenfleet" $(BIN)/mypy -p qwenfleet
	@.ci/stage "mypy tests" $(BIN)/mypy tests .ci/setup_env.py .ci/chart_tools.py .ci/lock.py .ci/image_requirements.py .ci/word_list.py

clean: ## remove .venv, caches and build outputs from this checkout
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
