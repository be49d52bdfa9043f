# Thin calls of the `fairface` command. DATA= the images' root, OUT= where everything is written; options of a
# stage go through SHARDS=, TRAIN=, SAMPLE=, LABEL=, REPORT=, DETECT= and BENCH=, e.g. make train TRAIN="--steps 5000".
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= outputs
# the environment's own, where there is one
CUDA   ?= $(or $(patsubst $(VENV)/.ready-cuda%,%,$(firstword $(wildcard $(VENV)/.ready-cuda*))),13)
DATA   ?=
FAIRFACE = $(VENV)/bin/fairface

.PHONY: help setup shards train sample report detect all test lint bench
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo '  DATA=, OUT= and the options of a stage, such as TRAIN="--steps 5000", go with them'

setup: $(VENV)/.ready-cuda$(CUDA) ## build .venv from the package index (CUDA=12 for a driver of that generation)

$(VENV)/.ready-cuda$(CUDA): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "fairface needs Python 3.11 to 3.13: name one, as in  make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv: apt install python3-venv"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
	  echo "no C++ compiler: torch.compile stays off until one is there (apt install g++)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@rm -f $(VENV)/.ready-cuda*
	@$(VENV)/bin/python -m pip uninstall --quiet --yes nvidia-dali-cuda$(if $(filter 12,$(CUDA)),130,120) 2>/dev/null
	PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[cuda$(CUDA),dev]'
	@touch $@

shards: setup ## pack DATA, or drawn faces, into shards
	@$(FAIRFACE) shards --out '$(OUT)' $(if $(DATA),--data '$(DATA)') $(SHARDS)

train: setup ## train the DCGAN on the shards
	@$(FAIRFACE) train --out '$(OUT)' $(TRAIN)

sample: setup ## draw samples; label them and the training images
	@$(FAIRFACE) sample --out '$(OUT)' $(SAMPLE)
	@$(FAIRFACE) label --out '$(OUT)' $(LABEL)

report: setup ## write the report's page, figures and tables
	@$(FAIRFACE) report --out '$(OUT)' $(REPORT)

detect: setup ## train detectors of generated faces, and judge them by group
	@$(FAIRFACE) detect --out '$(OUT)' $(if $(DATA),--data '$(DATA)') $(DETECT)

all: shards train sample report ## the whole job

test: setup lint ## style, then the tests
	@$(VENV)/bin/python -m pytest

lint: setup ## style only
	@$(VENV)/bin/ruff check .

bench: setup ## measure speed beside its baselines, into BENCHMARKS.md
	@$(FAIRFACE) bench --markdown BENCHMARKS.md $(BENCH)
