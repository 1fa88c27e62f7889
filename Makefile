# The face of the project: `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
DATA ?= sample
RUN ?=
CONFIG ?=
ARGS ?=
# The newest run, where a command needs one and none is named.
NEWEST = $(or $(RUN),$(shell ls -td runs/*/ 2>/dev/null | head -n 1))

.PHONY: help setup setup-dev data pretrain evaluate baseline tensorboard bench test test-fast check sample clean
.DEFAULT_GOAL := help

help:
	@echo "make pretrain [DATA=sample|wikipedia|zhihu|PATH] [CONFIG=FILE] [RUN=DIR] [ARGS=\"--key value\"]"
	@echo "                    train a Llama from scratch; again: goes on where it stopped"
	@echo "make data DATA=…    download, verify and prepare a corpus; without DATA=… lists them"
	@echo "make evaluate       perplexity, accuracy, bits per character of the newest run (or RUN=DIR), beside a trigram"
	@echo "make tensorboard    watch the runs"
	@echo "make test           all tests; make test-fast: those of a minute; make check: types and style"
	@echo "make bench          training speed and memory beside transformers and litgpt"
	@echo "make setup          install into $(VENV) (every command does it when needed)"

# One stamp per requirements file: pip runs again only when the file changed.
$(VENV)/.installed: requirements.txt
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (once, a few minutes) …"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: python could not make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 2; }
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "setting up what the tests need …"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

data: setup
	@$(PY) -m data.download $(if $(filter command line environment,$(origin DATA)),$(DATA)) $(ARGS)

pretrain: setup
	@$(PY) -m train.pretrain $(if $(CONFIG),--config $(CONFIG)) $(if $(filter command line environment,$(origin DATA)),--data $(DATA)) \
		$(if $(RUN),--run $(RUN)) $(ARGS)

evaluate: setup
	@test -n "$(NEWEST)" || { echo "error: there is no run yet: make pretrain" >&2; exit 2; }
	@$(PY) -m evaluate.perplexity --checkpoint $(NEWEST) $(ARGS)
	@$(PY) -m evaluate.trigram --checkpoint $(NEWEST)

tensorboard: setup
	@$(VENV)/bin/tensorboard --logdir runs

test: setup-dev
	@$(PY) -m pytest $(ARGS)

test-fast: setup-dev
	@$(PY) -m pytest -m "not slow" $(ARGS)

check: setup-dev
	@$(PY) -m ruff check .
	@$(PY) -m mypy common model data train evaluate

bench: setup-dev
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-bench.txt
	@$(PY) -m bench.train $(ARGS)

# The shipped sample and tokenizer, made again from their generator.
sample: setup
	@$(PY) -m assets.world --out assets/sample
	@$(PY) -m data.tokenizer train --vocabulary 8192 --common_characters --coverage 0.9999 --longest 4 --out assets/tokenizer
