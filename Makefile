# Tagtower: `make demo` shows it, `make test` proves it, `make help` lists the rest.
# Stages take Hydra overrides: make train ARGS="objective=hinge margin=0.3 run=wide", or ARGS=@file with one a line.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

ARGS ?=
PORT ?= 8000
B ?=
PYTHON := .venv/bin/python
READY := .venv/.ready
# One thread a request: eight of them with a pool of threads each would fight for the cores.
SERVE := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PYTHON) -m serve
SAMPLE := paths.data=data/sample paths.runs=runs/sample
export PYTHONUNBUFFERED := 1

.PHONY: help demo sample serve crawl takedown index tag_vectors image_features reduce features audit train sweep \
	evaluate reproduce reverse compare export publish judgements verify bench test lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z_]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-15s %s\n", $$1, $$2 }'

demo: sample ## the sample collection through every stage, then the search page on localhost
	@$(SERVE) $(SAMPLE) port=$(PORT)

sample: runs/sample/.made ## the sample collection through every stage, in data/sample and runs/sample

# Made anew where code, configs or the collection are newer, or where the artifacts are gone; each stage knows by itself
# what is done already.
ifeq ($(wildcard data/sample/collection/manifest.json),)
.PHONY: runs/sample/.made
endif
runs/sample/.made: $(READY) $(shell git ls-files 'configs/*' 'crawl/*' 'features/*' 'train/*' 2>/dev/null)
	$(if $(ARGS),$(error demo and sample take no ARGS; run the stages one by one with ARGS="... $(SAMPLE)"))
	@$(PYTHON) -m crawl.collect source=sample $(SAMPLE)
	@$(PYTHON) -m features $(SAMPLE)
	@$(PYTHON) -m train.fit $(SAMPLE)
	@$(PYTHON) -m train.evaluate $(SAMPLE)
	@$(PYTHON) -m serve.publish $(SAMPLE)
	@touch $@

crawl: $(READY) ## bring images in: ARGS="source=folder source.path=pictures"
	@$(PYTHON) -m crawl.collect $(ARGS)

takedown: $(READY) ## take pictures out of every store, for ever, and prove it: ARGS="images=[<image_id>] reason=asked"
	@$(PYTHON) -m crawl.takedown $(ARGS)

index: $(READY) ## invert the tags of the collection
	@$(PYTHON) -m features.build_index $(ARGS)

tag_vectors: $(READY) ## give each tag a word vector
	@$(PYTHON) -m features.embed_tags $(ARGS)

image_features: $(READY) ## extract features of new images: ARGS="backbone=resnet50"
	@$(PYTHON) -m features.extract $(ARGS)

reduce: $(READY) ## project features on their principal components: ARGS="pca=256" or ARGS="pca=0.95"
	@$(PYTHON) -m features.reduce $(ARGS)

features: $(READY) ## index, tag_vectors, image_features (reduced with pca=256) and the colour histograms of evaluation
	@$(PYTHON) -m features $(ARGS)

audit: $(READY) ## name the images that straddle train, val and test (train does so by itself where that is stale)
	@$(PYTHON) -m train.audit $(ARGS)

train: $(READY) ## fit the two towers: ARGS="objective=hinge margin=0.3 run=wide"
	@$(PYTHON) -m train.fit $(ARGS)

sweep: $(READY) ## train a grid or a search and table it: ARGS="name=margins margin=0.2,0.3,0.5 seeds=[0,1,2]"
	@$(PYTHON) -m train.sweep $(ARGS)

evaluate: $(READY) ## judge a run and its floors: ARGS="run=wide"
	@$(PYTHON) -m train.evaluate $(ARGS)

compare: $(READY) ## tell which run is better, and on which tags: ARGS="runs=[original,best]"
	@$(PYTHON) -m train.compare $(ARGS)

reverse: $(READY) ## judge reverse image search by class: ARGS="classes=labels run=wide"
	@$(PYTHON) -m train.reverse $(ARGS)

reproduce: $(READY) ## run README's tables of results again and compare: ARGS="photographs=<paths.data>"
	@$(PYTHON) -m train.results $(ARGS)

export: $(READY) ## write a run as ONNX with a table of its tags: ARGS="run=wide"
	@$(PYTHON) -m train.export $(ARGS)

publish: $(READY) ## embed all images with a run: ARGS="run=wide"
	@$(PYTHON) -m serve.publish $(ARGS)

judgements: $(READY) ## write the thumbs and blind votes of the search page as qrels and JSON
	@$(PYTHON) -m serve.judgements $(ARGS)

serve: $(READY) ## publish where stale, then the search page: PORT=8000 ARGS="run=wide"
	@$(SERVE) port=$(PORT) $(ARGS)

verify: $(READY) ## compare every artifact with its hashes
	@$(PYTHON) -m configs.verify $(ARGS)

bench: $(READY) ## run a benchmark of tests/bench: B=gate
	@test -n "$(B)" || { echo "error: name a benchmark, B=one of:"; ls tests/bench/*.py | sed 's,.*/\(.*\).py,  \1,' | grep -v result; exit 2; }
	@$(PYTHON) -m tests.bench.$(B) $(ARGS)

test: $(READY) lint ## everything that proves it
	@$(PYTHON) -m pytest $(ARGS)

lint: $(READY) ## format, lint and types, as CI checks them
	@.venv/bin/ruff format --check -q . && .venv/bin/ruff check -q . && $(PYTHON) -m mypy

format: $(READY) ## put the code into its format
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock: $(READY) ## resolve pyproject.toml anew into requirements.lock
	@.venv/bin/uv pip compile pyproject.toml --group dev --all-extras --universal --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --upgrade -q -o requirements.lock

clean: ## remove the environment and the sample's artifacts; your own data/ and runs/ stay
	@rm -rf .venv data/sample runs/sample .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock .ci/setup
	@sh .ci/setup
