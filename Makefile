# The face of the project: `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# A process on every core, one thread each: threads of several processes on one core would wait for each other. A module's
# tests stay in one process, which makes what they share once, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder
# On a terminal pip says what it is doing (stderr is asked: stdout is not the terminal inside of a substitution); in a log it
# is quiet.
PIP_INSTALL = $(PY) -m pip install --disable-pip-version-check $$(test -t 2 || echo --quiet)
DATA ?=
BASE ?=
RUN ?=
CONFIG ?=
ARGS ?=
# $(call quoted,NAME): what a variable holds as one word for the shell, whatever is in it; a ~/ in front is the home folder.
START := @start@
quoted = '$(subst ','\'',$(subst $(START),,$(subst $(START)~/,$(HOME)/,$(START)$(value $(1)))))'
# $(call option,--name,NAME): the option with what a variable holds, or nothing where it is empty.
option = $(if $(value $(2)),$(1) $(call quoted,$(2)))

# A slip in the name of a variable (data=…), or an option given as one (STEPS=…), would be ignored without a word. What is meant
# for the commands, as the environment is (CUDA_VISIBLE_DEVICES=…), reaches them; a make that calls this one hands its own down.
VARIABLES := DATA BASE RUN CONFIG ARGS PYTHON VENV
OPTIONS := max_steps epochs seed device batch_tokens sequence_length micro_batch tokenizer model.preset optimizer.lr
said := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
strange := $(if $(filter 0,$(MAKELEVEL)),$(filter-out $(VARIABLES) SHELL MAKEFLAGS,$(said)))
in_case = $(shell printf '%s' '$(subst ','\'',$(1))' | LC_ALL=C tr $(2))
variable = $(filter $(call in_case,$(1),a-z A-Z),$(VARIABLES))
option_of = $(firstword $(foreach low,$(call in_case,$(1),A-Z a-z),$(filter $(low) %_$(low) %.$(low),$(OPTIONS))))
meant = $(if $(call variable,$(1)),$(call variable,$(1))=$(value $(1)),$(if $(call option_of,$(1)),ARGS="--$(call \
	option_of,$(1)) $(value $(1))"))
passed = $(findstring _,$(1))$(shell env | grep -- '^$(subst ','\'',$(1))=')
slip := $(firstword $(foreach name,$(strange),$(if $(call meant,$(name)),$(name),$(if $(call passed,$(name)),,$(name)))))
ifneq ($(slip),)
hint := $(call meant,$(slip))
$(error $(slip)=$(value $(slip)): there is no such variable$(if $(hint),; did you mean $(hint)?,.) There are $(VARIABLES); \
	options go through ARGS="--key value"; what the commands shall find in their environment stands before make)
endif

.PHONY: help setup setup-dev data pretrain sft chat serve evaluate export tensorboard bench check-gpu test test-fast check sample
.DEFAULT_GOAL := help

help:
	@echo "make pretrain [DATA=sample|wikipedia|zhihu|PATH] [BASE=runs/…] [CONFIG=FILE] [RUN=DIR] [ARGS=\"--key value\"]"
	@echo "                    train a Llama from scratch, or on from a BASE; again: goes on where it stopped"
	@echo "make sft DATA=csl [BASE=runs/…] [CONFIG=FILE] [RUN=DIR] [ARGS=…]"
	@echo "                    fine-tune: csl lcsts redgpt naturalconv belle-0.5m belle-0.8m deepctrl pclue, a file, or a mix"
	@echo "                    such as csl+belle-0.8m:0.5+replay:0.1; without a download the sample's part of that name"
	@echo "make chat [RUN=…]   talk to the newest run (--help: make chat ARGS=--help)"
	@echo "make serve [RUN=…]  OpenAI's protocol and a page to talk to the newest run, on http://127.0.0.1:8000/"
	@echo "make export RUN=…   exports/NAME, a folder for transformers, vLLM and lm_eval; for llama.cpp and Ollama with"
	@echo "                    ARGS=\"--format gguf --out exports/NAME.gguf\""
	@echo "make data DATA=…    download, verify and prepare a corpus; without DATA=… lists them"
	@echo "make evaluate       everything that fits the newest run (or RUN=DIR): perplexity, accuracy, bits per character,"
	@echo "                    ROUGE, reading, repetition; and a report"
	@echo "make tensorboard    watch the runs"
	@echo "make test           all tests; make test-fast: without the slow ones; make check: types and style"
	@echo "make bench          training speed and memory beside transformers and litgpt"
	@echo "make check-gpu      equality with the CPU, memory and speed on a GPU; again: goes on with what is left"
	@echo "make setup          install into $(VENV) (every command does it when needed)"

# One stamp per requirements file: pip runs again only when the file changed.
$(VENV)/.installed: requirements.txt
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (once, a few minutes) …"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: python could not make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 2; }
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "setting up what the tests need …"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

data: setup
	@$(PY) -m data.download $(if $(value DATA),$(call quoted,DATA)) $(ARGS)

pretrain: setup
	@$(PY) -m train.pretrain $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--base,BASE) $(call option,--run,RUN) $(ARGS)

sft: setup
	@$(PY) -m train.sft $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--base,BASE) $(call option,--run,RUN) $(ARGS)

chat: setup
	@$(PY) -m chat $(call option,--checkpoint,RUN) $(ARGS)

serve: setup
	@$(PY) -m chat.serve $(call option,--checkpoint,RUN) $(ARGS)

evaluate: setup
	@$(PY) -m evaluate $(call option,--checkpoint,RUN) $(ARGS)

export: setup
	@test -n $(call quoted,RUN) || { echo "error: which run? make export RUN=runs/NAME" >&2; \
		ls -d runs/* >&2 2>/dev/null; exit 2; }
	@$(PY) -m model.export $(call option,--checkpoint,RUN) --format hf --out exports/"$$(basename $(call quoted,RUN))" $(ARGS)

tensorboard: setup
	@$(VENV)/bin/tensorboard --logdir runs

test: setup-dev
	@$(PYTEST) $(ARGS)

test-fast: setup-dev
	@$(PYTEST) -m "not slow" $(ARGS)

check: setup-dev
	@$(PY) -m ruff check .
	@$(PY) -m mypy common model data train evaluate chat bench

bench: setup-dev
	@$(PIP_INSTALL) --no-deps -r requirements-bench.txt
	@$(PY) -m bench.train $(ARGS)

# What is there is checked with what is there: nothing is installed but what training needs.
check-gpu: setup
	@$(PY) -m bench.gpu $(ARGS)

# The shipped sample and tokenizer, made again from their generator.
sample: setup
	@$(PY) -m assets.sample_generator --out assets/sample
	@$(PY) -m data.tokenizer train --vocabulary 8192 --common_characters --coverage 0.9999 --longest 4 --out assets/tokenizer
