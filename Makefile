# Two commands for a fresh clone: `make demo` and `make test`. Both set up .venv by themselves.
# `make test-backends` tests the optimizers on JAX and PyTorch, in environments of their own;
# `make test-beam` tests the build of shards on Apache Beam, in another; `make test-hugging-face`
# holds exports against transformers on PyTorch, in a third. `make test-kill` kills
# training runs with SIGKILL wherever they can be killed; `make test` does so in three places.
# `make tpu-ready` shows what of the recipes can be shown of TPUs where there is none: docs/tpu.md.

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

test-kill: $(INSTALLED)
	@KILL_SWEEP=1 $(BIN)/python -m pytest -q -s tests/bert/test_kill.py

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(BACKENDS:%=.venv-%) .venv-beam .venv-hugging-face .venv-tpu $(DEMO_DIR) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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
