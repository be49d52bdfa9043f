# Thin wrappers around the `fairface` command. DATA= is the root folder of the images, OUT= the output folder; options of
# a stage go through SHARDS=, TRAIN=, SAMPLE=, LABEL=, REPORT=, STUDY=, DETECT= and BENCH=, as in
# make train TRAIN="--steps 5000". `make detectors` compares detectors in a folder of its own below OUT.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= outputs
# CUDA version, by default that of the existing environment
CUDA   ?= $(or $(patsubst $(VENV)/.ready-cuda%,%,$(firstword $(wildcard $(VENV)/.ready-cuda*))),13)
DATA   ?=
FILE   ?= studies/natural-vs-uniform.toml
FAIRFACE = $(VENV)/bin/fairface
COMPARISON = $(OUT)/detector-comparison

.PHONY: help setup shards train sample report study detect detectors all check test attack lint format bench
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo '  Set DATA=, OUT= and the options of a stage, as in TRAIN="--steps 5000"'

setup: $(VENV)/.ready-cuda$(CUDA) ## build .venv from the package index (CUDA=12 for a CUDA 12 driver)

$(VENV)/.ready-cuda$(CUDA): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "fairface needs Python 3.11 to 3.13: choose one, as in  make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv: apt install python3-venv"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
	  echo "no C++ compiler: torch.compile stays off until you install one (apt install g++)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@rm -f $(VENV)/.ready-cuda*
	@$(VENV)/bin/python -m pip uninstall --quiet --yes nvidia-dali-cuda$(if $(filter 12,$(CUDA)),130,120) 2>/dev/null
	PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[cuda$(CUDA),dev]'
	@touch $@

shards: setup ## pack DATA, or synthetic faces by default, into shards
	@$(FAIRFACE) shards --out '$(OUT)' $(if $(DATA),--data '$(DATA)') $(SHARDS)

train: setup ## train the DCGAN on the shards
	@$(FAIRFACE) train --out '$(OUT)' $(TRAIN)

sample: setup ## generate samples; label them and the training images
	@$(FAIRFACE) sample --out '$(OUT)' $(SAMPLE)
	@$(FAIRFACE) label --out '$(OUT)' $(LABEL)

report: setup ## write the report: page, figures and tables
	@$(FAIRFACE) report --out '$(OUT)' $(REPORT)

study: shards ## train every arm of a study with every seed, and compare them (FILE=studies/natural-vs-uniform.toml)
	@$(FAIRFACE) study '$(FILE)' --out '$(OUT)' $(STUDY)

detect: setup ## train detectors of generated faces and evaluate them by group
	@$(FAIRFACE) detect --out '$(OUT)' $(if $(DATA),--data '$(DATA)') $(DETECT)

detectors: setup ## compare detectors on synthetic faces and fakes, with families held out in turn (10 minutes)
	@$(FAIRFACE) synth --out '$(COMPARISON)' --size 64 --fakes 0.5
	@$(FAIRFACE) shards --out '$(COMPARISON)'
	@$(FAIRFACE) detect --out '$(COMPARISON)' $(addprefix --model ,xception spsl dag_fdd vfm gend npr) $(DETECT)
	@$(FAIRFACE) detect --out '$(COMPARISON)' --model vfm --hold-out all $(DETECT)
	@$(FAIRFACE) report --out '$(COMPARISON)'

all: shards train sample report ## run shards, train, sample and report

check: lint test ## run everything that CI checks

test: setup ## run the tests in parallel
	@$(VENV)/bin/python -m pytest $(TEST)

attack: setup ## run the tests that kill commands, fill disks and plant hostile files (15 minutes)
	@$(VENV)/bin/python -m pytest tests/attacks -m "attack or not attack" $(TEST)
	@$(VENV)/bin/python -m pytest tests --ignore tests/attacks -m attack

lint: setup ## check formatting, style and types
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run make format to fix this"; exit 1; }
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/mypy

format: setup ## format the code
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

bench: setup ## measure speed next to baselines and write BENCHMARKS.md
	@$(FAIRFACE) bench --markdown BENCHMARKS.md $(BENCH)
