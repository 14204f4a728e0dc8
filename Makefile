# Two commands for a fresh clone: `make demo` and `make test`. Both set up .venv by themselves.
# `make test-backends` tests the optimizers on JAX and PyTorch, in environments of their own;
# `make test-beam` tests the build of shards on Apache Beam, in another; `make test-hugging-face`
# holds exports against transformers on PyTorch, in a third; `make test-matrix` tests tf_lans and
# tfrecords on the newest TensorFlow and Keras, in a fourth. `make test-kill` kills
# training runs with SIGKILL wherever they can be killed; `make test` does so in three places.
# `make tpu-ready` shows what of the recipes can be shown of TPUs where there is none: docs/tpu.md.
# `make benchmarks` measures and writes docs/benchmarks.md; `make study` and `make transfer` work on
# the studies of hours and days: benchmarks/README.md. `make docs` makes a site of docs/.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
QUIET_PIP := --quiet --disable-pip-version-check

BACKENDS := jax torch

# What `make demo` uses; leave CORPUS and SQUAD_* empty for the docstring corpus.
DEMO_DIR ?= demo
CORPUS ?=
SQUAD_TRAIN ?=
SQUAD_DEV ?=

# Of `make study`: the hours of one portion, empty for all; and further flags, such as
# --processes=1. CORPUS as above.
BUDGET_HOURS ?= 8
STUDY ?=

# What `make transfer` also takes: the folder of SST-2's train.tsv and dev.tsv.
SST2_DIR ?=

# Peers that `make benchmarks` measures where they are installed: benchmarks/README.md.
PYTHON_OF_PEER = $(patsubst %,--$(1)_python=%,$(wildcard $(2)/bin/python))
UPDATE_STEP_PEERS = $(foreach peer,tfa jax torch,$(call PYTHON_OF_PEER,$(peer),.venv-$(peer)))
DATA_PEERS = $(patsubst %,--google_bert=%,$(wildcard build/google-bert)) \
	$(foreach peer,huggingface lddl,$(call PYTHON_OF_PEER,$(peer),build/venv-$(peer)))
RESULTS := benchmarks/results

.PHONY: benchmarks study transfer
.PHONY: demo test test-backends test-beam test-hugging-face test-kill tpu-ready lint format clean

demo: $(INSTALLED)
	@$(BIN)/python -m official_bert.demo --work_dir='$(DEMO_DIR)' --corpus='$(CORPUS)' \
		--squad_train='$(SQUAD_TRAIN)' --squad_dev='$(SQUAD_DEV)'

test: $(INSTALLED) lint
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

# `--confcutdir`: tests/conftest.py imports TensorFlow, which is not there.
test-backends: $(BACKENDS:%=.venv-%/.installed)
	@set -e; for backend in $(BACKENDS); do \
		echo "tests/backends on $$backend"; \
		KERAS_BACKEND=$$backend .venv-$$backend/bin/python -m pytest -q \
			--confcutdir=tests/backends tests/backends; \
	done

test-beam: .venv-beam/.installed
	@.venv-beam/bin/python -m pytest -q tests/beam

# The folders to test are exported by .venv, which has no PyTorch; `--confcutdir` as above.
test-hugging-face: $(INSTALLED) .venv-hugging-face/.installed
	@.venv-hugging-face/bin/python -m pytest -q --confcutdir=tests/hugging_face tests/hugging_face

# TPU_READY is for flags of official_bert.tpu_ready, such as --config_file=bert_tiny_phase1.yaml.
tpu-ready: $(INSTALLED) .venv-tpu/.installed
	@$(BIN)/python -m official_bert.tpu_ready --compiler=.venv-tpu/bin/python $(TPU_READY)

# In .venv, then on PyPI's newest of the day: made anew each time, pinned to nothing. Where
# TensorFlow is ahead of tensorflow-text, tfrecords is left out, and the table says so.
.PHONY: test-matrix
test-matrix: $(INSTALLED)
	@echo "setting up .venv-matrix (each time; about 2 minutes and 3 GB)"
	@$(BIN)/python -m venv --clear .venv-matrix
	@.venv-matrix/bin/python -m pip install $(QUIET_PIP) --editable . tensorflow keras tf_keras \
		tensorboard matplotlib cloudpickle hypothesis pytest
	@.venv-matrix/bin/python -m pip freeze | grep -E '^(tensorflow|keras|tf_keras)==' \
		>.venv-matrix/constraints.txt
	@.venv-matrix/bin/python -m pip install $(QUIET_PIP) \
		--constraint .venv-matrix/constraints.txt --editable '.[data]' keras-hub \
		|| echo "testing without the extra [data]"
	@$(BIN)/python -m benchmarks.version_matrix \
		--environments=pinned=$(BIN)/python,newest=.venv-matrix/bin/python

test-kill: $(INSTALLED)
	@KILL_SWEEP=1 $(BIN)/python -m pytest -q -s tests/bert/test_kill.py

# One after another, each alone on the machine. A benchmark that ends early leaves its old results.
benchmarks: $(INSTALLED)
	@echo "about an hour on 2 cores, which should have nothing else to do"
	$(BIN)/python -m benchmarks.update_step --model=bert_base --rounds=15 \
		--output=$(RESULTS)/update_step_bert_base $(UPDATE_STEP_PEERS)
	$(BIN)/python -m benchmarks.train_step --rounds=7 --output=$(RESULTS)/train_step
	$(BIN)/python -m benchmarks.train_step --compare=micro_batches --rounds=5 \
		--output=$(RESULTS)/train_step_micro_batches
	$(BIN)/python -m benchmarks.data --output=$(RESULTS)/data $(DATA_PEERS)
	$(BIN)/python -m benchmarks.data_rates --output=$(RESULTS)/data_rates --document=docs/data.md
	$(BIN)/python -m benchmarks.exactness --only=coverage,error,cuts --again --output=$(RESULTS)/exactness
	$(BIN)/python -m benchmarks.import_time --output=$(RESULTS)/import_time
	$(BIN)/python -m benchmarks.large_batch --quick
	$(BIN)/python -m benchmarks.page_study --output=$(RESULTS)/large_batch_quick
	$(BIN)/python -m benchmarks.page

# Days in sum, in portions of BUDGET_HOURS: each goes on where the last one ended.
study: $(INSTALLED)
	@$(BIN)/python -m benchmarks.large_batch --variance --corpus='$(CORPUS)' \
		$(patsubst %,--budget_hours=%,$(BUDGET_HOURS)) \
		$(patsubst %,--document=%,$(wildcard docs/results.md)) $(STUDY)
	@$(BIN)/python -m benchmarks.page

transfer: $(INSTALLED)
	@test -n "$(CORPUS)" || { echo "error: CORPUS is empty; expected text files: make transfer \
	CORPUS='dir/*.txt' SST2_DIR=SST-2 SQUAD_TRAIN=train.json SQUAD_DEV=dev.json" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.transfer --work_dir=build/transfer --corpus='$(CORPUS)' \
		--sst2_dir='$(SST2_DIR)' --squad_train='$(SQUAD_TRAIN)' --squad_dev='$(SQUAD_DEV)' \
		--output=$(RESULTS)/transfer $(patsubst %,--document=%,$(wildcard docs/results.md))
	@$(BIN)/python -m benchmarks.page

# Not --quiet, under which --strict does not see a warning. The variable keeps the theme from telling
# of its successor.
.PHONY: docs
docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/site/index.html"

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(BACKENDS:%=.venv-%) .venv-beam .venv-hugging-face .venv-tpu .venv-matrix $(DEMO_DIR) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last, so an interrupted installation is begun again. `--use-pep517`: some of
# Model Garden's requirements have no wheels, and the old way to build them fails without `wheel`.
$(INSTALLED): constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 \
	or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (once; about 2 minutes and 4 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(QUIET_PIP) --use-pep517 --constraint constraints.txt \
		--editable '.[bert,dev]'
	@touch $@

# pip takes the GPU build of PyTorch, several GB; with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment, the small one.
.venv-jax/.installed: PACKAGES := jax optax absl-py
.venv-torch/.installed: PACKAGES := torch
.venv-tpu/.installed: PACKAGES := jax libtpu==0.0.52
.venv-%/.installed: constraints-backends.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 \
	or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up .venv-$* (once; a minute or two; 1 GB, several with PyTorch for GPUs)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install $(QUIET_PIP) --constraint constraints-backends.txt \
		--editable . $(PACKAGES) pytest
	@touch $@

.venv-beam/.installed: constraints-beam.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 \
	or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up .venv-beam (once; about 2 minutes and 3 GB)"
	@$(PYTHON) -m venv .venv-beam
	@.venv-beam/bin/python -m pip install $(QUIET_PIP) --constraint constraints-beam.txt \
		--editable '.[beam]' hypothesis pytest
	@touch $@

.venv-hugging-face/.installed: constraints-hugging-face.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 \
	or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up .venv-hugging-face (once; a minute or two; 1 GB, several with PyTorch for GPUs)"
	@$(PYTHON) -m venv .venv-hugging-face
	@.venv-hugging-face/bin/python -m pip install $(QUIET_PIP) \
		--constraint constraints-hugging-face.txt torch transformers pytest
	@touch $@
