# make demo | test | check | test-full | mini | format.  Each does its own set-up in .venv; set VENV to use another place.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: test test-full check demo mini format clean

# One more than there are cores, at least: many tests wait for processes of their own.
TEST_PROCESSES ?= 3
test: $(READY)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not full"

test-full: $(READY)
	$(BIN)/python -m pytest -m full -s

# Ranks the images in examples/shapes, drawn by the shapes world for this prompt, with the embedded model.
DEMO_PROMPT = a large green square above a yellow triangle on a blue background
demo: $(READY)
	$(BIN)/image-reward rank "$(DEMO_PROMPT)" examples/shapes --model ImageReward-mini --gallery demo.html

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Trains the embedded model from nothing and measures it: about 40 minutes on two cores.
MINI_PROCESSES ?= 2
LAUNCH = OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(MINI_PROCESSES) -m image_reward.cli
mini: $(READY)
	$(LAUNCH) pretrain --recipe examples/pretrain_mini.toml
	$(LAUNCH) train --recipe examples/train_mini.toml
	$(BIN)/python benchmarks/mini.py runs/mini/model

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
