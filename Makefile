# Entry points of the project; `make help` lists them, except setup-dev and sample.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# One process per core with one thread each: with more threads than cores the threads wait for each other. The tests of a
# module stay in one process, so that their fixtures are built once. Bytecode is cached even where the environment turns
# it off, because the tests start many processes.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder
# pip shows progress on a terminal and is quiet in a log. stderr (2) is tested, because stdout of $(...) is never a terminal.
PIP_INSTALL = $(PY) -m pip install --disable-pip-version-check $$(test -t 2 || echo --quiet)
DATA ?=
BASE ?=
RUN ?=
CONFIG ?=
ARGS ?=
INDEX ?=
HOURS ?=
# $(call quoted,NAME) is the value of a variable as one shell word, with a leading ~/ expanded. START marks the beginning
# of the value, because subst cannot be anchored; the inner subst ends and reopens the quotes around each '.
START := @start@
quoted = '$(subst ','\'',$(subst $(START),,$(subst $(START)~/,$(HOME)/,$(START)$(value $(1)))))'
# $(call option,--name,NAME) is the option with the value of a variable, or nothing if the variable is empty.
option = $(if $(value $(2)),$(1) $(call quoted,$(2)))

# Without this check a misspelled variable (data=csl) would be ignored, and `make sft` would train on the default data.
# A nested make (MAKELEVEL above 0) is not checked: it inherits the variables of the outer one.
VARIABLES := DATA BASE RUN CONFIG INDEX HOURS ARGS PYTHON VENV
given := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
unknown := $(firstword $(if $(filter 0,$(MAKELEVEL)),$(filter-out $(VARIABLES) SHELL MAKEFLAGS,$(given))))
$(if $(unknown),$(error unknown variable $(unknown); the variables are $(VARIABLES); options of a command go into \
	ARGS="--key value", environment variables before make))

.PHONY: help setup setup-dev data index pretrain sft dpo grpo summariser chat serve evaluate export tensorboard bench check-gpu test test-fast check sample
.DEFAULT_GOAL := help

help:
	@echo "make pretrain [DATA=sample|wikipedia|zhihu|PATH] [BASE=runs/…] [CONFIG=FILE] [RUN=DIR] [ARGS=\"--key value\"]"
	@echo "                    train a Llama from scratch, or continue from a BASE; run it again to resume; a BASE of short texts"
	@echo "                    learns long ones: ARGS=\"--sequence_length 4096 --batch_tokens 4096 --model.rope_scaling yarn\""
	@echo "make sft DATA=csl [BASE=runs/…] [CONFIG=FILE] [RUN=DIR] [ARGS=…]"
	@echo "                    fine-tune on csl lcsts redgpt naturalconv belle-0.5m belle-0.8m deepctrl pclue, a file, or"
	@echo "                    a mixture such as csl+belle-0.8m:0.5+replay:0.1; what is not downloaded yet is replaced by a part of the sample"
	@echo "make dpo DATA=FILE [BASE=runs/…] [CONFIG=FILE] [RUN=DIR] [ARGS=…]"
	@echo "                    learn from pairs of a better and a worse answer, from the newest fine-tuned run"
	@echo "make grpo DATA=csl [BASE=runs/…] [CONFIG=FILE] [RUN=DIR] [ARGS=\"--grpo.rewards exact:1,loops:0.5\"]"
	@echo "                    learn from rewards that a program computes of the answers of the newest fine-tuned run"
	@echo "make summariser [CONFIG=configs/laptop.yaml] [HOURS=8] [DATA=csl] [RUN=DIR] [ARGS=\"--text FILE\"]"
	@echo "                    from raw text and summaries to a scored summariser: tokenizer, pretraining, fine-tuning,"
	@echo "                    evaluation; what is done is skipped"
	@echo "make evaluate       run every metric that fits the newest run (or RUN=DIR), and write a report"
	@echo "make chat [RUN=…]   chat with the newest fine-tuned run, or the newest of all if none is (options: make chat ARGS=--help)"
	@echo "                    INDEX=DIR: each question looks up its own passage in this index"
	@echo "make serve [RUN=…]  serve the same run with OpenAI's protocol and a web page on http://127.0.0.1:8000/"
	@echo "make export RUN=…   write exports/NAME, a folder for transformers, vLLM and lm_eval; for llama.cpp and Ollama:"
	@echo "                    ARGS=\"--format gguf --out exports/NAME.gguf\""
	@echo "make data DATA=…    download, verify and prepare a corpus; without DATA: list the corpora"
	@echo "make index DATA=…   an index of a corpus, a file or a folder, to search for passages: indexed/NAME; without DATA: of the sample"
	@echo "make tensorboard    show the curves of all runs (or RUN=DIR)"
	@echo "make check-gpu      compare the GPU with the CPU, measure memory and speed; run it again to continue"
	@echo "make bench          measure training speed and memory beside transformers and litgpt"
	@echo "make test           run all tests; make test-fast: without the slow ones"
	@echo "make check          lint, formatting, docstrings, types, import cycles, layers"
	@echo "make setup          install the requirements into $(VENV) (the other targets do so when needed)"

# One stamp file per requirements file: pip runs again only if the file has changed.
$(VENV)/.installed: requirements.txt
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (once, a few minutes) …"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: python could not create a virtual environment (on Debian: apt install python3-venv)" >&2; exit 2; }
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "installing what the tests need …"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

data: setup
	@$(PY) -m data.download $(if $(value DATA),$(call quoted,DATA)) $(ARGS)

index: setup
	@$(PY) -m data.index $(call option,--data,DATA) $(ARGS)

pretrain: setup
	@$(PY) -m train.pretrain $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--base,BASE) $(call option,--run,RUN) $(ARGS)

sft: setup
	@$(PY) -m train.sft $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--base,BASE) $(call option,--run,RUN) $(ARGS)

dpo: setup
	@$(PY) -m train.dpo $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--base,BASE) $(call option,--run,RUN) $(ARGS)

grpo: setup
	@$(PY) -m train.grpo $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--base,BASE) $(call option,--run,RUN) $(ARGS)

summariser: setup
	@$(PY) -m train.summariser $(call option,--config,CONFIG) $(call option,--data,DATA) $(call option,--hours,HOURS) $(call option,--run,RUN) $(ARGS)

chat: setup
	@$(PY) -m chat $(call option,--checkpoint,RUN) $(call option,--index,INDEX) $(ARGS)

serve: setup
	@$(PY) -m chat.serve $(call option,--checkpoint,RUN) $(call option,--index,INDEX) $(ARGS)

evaluate: setup
	@$(PY) -m evaluate $(call option,--checkpoint,RUN) $(ARGS)

export: setup
	@test -n $(call quoted,RUN) || { echo "error: which run? make export RUN=runs/NAME" >&2; \
		ls -d runs/* >&2 2>/dev/null; exit 2; }
	@$(PY) -m model.export $(call option,--checkpoint,RUN) --format hf --out exports/"$$(basename $(call quoted,RUN))" $(ARGS)

tensorboard: setup
	@$(VENV)/bin/tensorboard --logdir $(if $(value RUN),$(call quoted,RUN),runs)

test: setup-dev
	@$(PYTEST) $(ARGS)

test-fast: setup-dev
	@$(PYTEST) -m "not slow" $(ARGS)

check: setup-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy common model data train evaluate chat bench
	@$(PY) -m pytest tests/test_architecture.py

bench: setup-dev
	@$(PIP_INSTALL) --no-deps -r requirements-bench.txt
	@$(PY) -m bench.train $(ARGS)

# Installs no packages beyond those of training; checks whose packages are missing are skipped.
check-gpu: setup
	@$(PY) -m bench.gpu $(ARGS)

# Regenerate the shipped sample and tokenizer.
sample: setup
	@$(PY) -m assets.sample_generator --out assets/sample
	@$(PY) -m data.tokenizer train --vocabulary 4202 --common_characters --coverage 0.9999 --longest 1 --out assets/tokenizer
