# Everything happens in .venv, which is made when it is not there. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.installed
EXTRAS = $(VENV)/.installed-extras
TORCH = 2.13.0
OPTIONS = $(if $(DATASET),--dataset "$(DATASET)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
	$(if $(HASH_SIZE),--hash-size "$(HASH_SIZE)") $(if $(NUM_TABLES),--num-tables "$(NUM_TABLES)") \
	$(if $(PARAMS),--params "$(PARAMS)") $(if $(OUTPUT),--output "$(OUTPUT)")
FREEZE = build/pins/bin/pip freeze --exclude imgsim | sed 's/+[a-z0-9.]*$$//'

.PHONY: run sweep test lab notebooks address pins clean

run: $(READY) ## notebooks 01 to 04, on the built-in images or on DATASET= CHECKPOINT= HASH_SIZE= NUM_TABLES= OUTPUT=
	$(BIN)/python -m imgsim run $(OPTIONS)

sweep: $(READY) ## checkpoints and hash settings side by side: FILE=params/sweep.yaml, OUTPUT=
	$(BIN)/python -m imgsim sweep $(or $(FILE),params/sweep.yaml) $(if $(OUTPUT),--output "$(OUTPUT)")

test: $(EXTRAS) ## everything that is promised, on two cores, without a network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-sanitize-with tests/notebooks/nbval.cfg tests notebooks/0[1-9]*.ipynb

lab: $(READY) ## JupyterLab with this environment's kernel
	$(BIN)/jupyter lab notebooks

notebooks: $(READY) ## execute the notebooks in place, to store new outputs
	$(BIN)/python scripts/refresh.py

address: $(READY) ## after a change of the repository's address in pyproject.toml: write it into the notebooks
	$(BIN)/python scripts/refresh.py --address

pins: ## compile requirements.txt and requirements-extras.txt from pyproject.toml
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/pip install -q torch==$(TORCH) ".[notebooks,test]"
	(echo "# Exact pins, compiled from pyproject.toml by make pins."; $(FREEZE)) > build/pins/base.txt
	build/pins/bin/pip install -q ".[browser,demo,duplicates,onnx,scale]"
	(echo "# Exact pins of what the extras need beyond requirements.txt, compiled by make pins; make test installs them."; \
	 $(FREEZE) | grep -v '^pillow==' | grep -vxFf build/pins/base.txt) > build/pins/extras.txt
	mv build/pins/base.txt requirements.txt && mv build/pins/extras.txt requirements-extras.txt

clean: ## remove the environment; images and embeddings in the cache too
	rm -rf $(VENV) build "$${IMGSIM_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/imgsim}"

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'imgsim needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

# Without dependencies: Gradio asks for an older pillow, which draws other leaves, and works with ours.
$(EXTRAS): $(READY) requirements-extras.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements-extras.txt
	touch $@
