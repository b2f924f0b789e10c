# Everything happens in .venv, which is made when it is not there. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.installed
READY_TO_TEST = $(VENV)/.installed-test
TORCH = 2.13.0
# What is given goes to the shell in single quotes, as it was typed.
quote = '$(subst ','\'',$(value $1))'
option = $(if $(value $1),$2 $(call quote,$1))
OPTIONS = $(call option,DATASET,--dataset) $(call option,CHECKPOINT,--checkpoint) \
	$(call option,HASH_SIZE,--hash-size) $(call option,NUM_TABLES,--num-tables) \
	$(call option,PARAMS,--params) $(call option,OUTPUT,--output)
FILE ?= params/sweep.yaml
CACHE = $${IMGSIM_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/imgsim}
HEX = [0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]

.PHONY: run sweep check test long lab notebooks address pins clean

run: $(READY) ## notebooks 01 to 04, on the built-in images or on DATASET= CHECKPOINT= HASH_SIZE= NUM_TABLES= OUTPUT=
	$(BIN)/python -m imgsim run $(OPTIONS)

sweep: $(READY) ## checkpoints and hash settings side by side: FILE=params/sweep.yaml, OUTPUT=
	$(BIN)/python -m imgsim sweep $(call quote,FILE) $(call option,OUTPUT,--output)

check: $(READY_TO_TEST) ## lint, types and the tests of the core, in under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not (slow or long or notebook or extra)" tests

test: $(READY_TO_TEST) ## everything that is promised, on two cores, without a network; make long has the rest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not long" \
		--nbval --nbval-sanitize-with tests/notebooks/nbval.cfg tests notebooks/0[1-9]*.ipynb

long: $(READY_TO_TEST) ## work that is killed, nodes that are lost, disks that are full: some minutes more
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m long tests

lab: $(READY) ## JupyterLab with this environment's kernel: ARGS="--no-browser --port 9999"
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks

notebooks: $(READY) ## execute the notebooks in place, to store new outputs
	$(BIN)/python scripts/refresh.py

address: $(READY) ## after a change of the repository's address in pyproject.toml: write it into the notebooks
	$(BIN)/python scripts/refresh.py --address

pins: ## compile requirements.txt and requirements-test.txt from pyproject.toml
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/pip install -q torch==$(TORCH) -e ".[notebooks]"
	build/pins/bin/pip freeze --exclude-editable | cut -d= -f1 > build/pins/run-names.txt
	build/pins/bin/pip install -q -e ".[completion,demo,duplicates,interactive,onnx,s3,scale,test]"
	build/pins/bin/pip check
	build/pins/bin/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > build/pins/all.txt
	(echo "# Exact pins of what make run needs, compiled from pyproject.toml by make pins."; \
	 awk -F== 'NR == FNR {run[$$1]; next} $$1 in run' build/pins/run-names.txt build/pins/all.txt) > build/pins/run.txt
	(echo "# Exact pins of what make test needs too: all extras and the tests' own tools; compiled by make pins."; \
	 grep -vxFf build/pins/run.txt build/pins/all.txt) > build/pins/test.txt
	mv build/pins/run.txt requirements.txt && mv build/pins/test.txt requirements-test.txt

clean: ## remove the environment, and from the cache what imgsim has put there
	rm -rf $(VENV) build
	cd "$(CACHE)" 2>/dev/null && rm -rf leaves-$(HEX) leaves-$(HEX).lock builtin-shards \
		embeddings/$(HEX)$(HEX)$(HEX)$(HEX).npz readable/$(HEX)$(HEX)$(HEX)$(HEX).json \
		folders/$(HEX)$(HEX)/$(HEX)$(HEX) || true
	rmdir "$(CACHE)"/folders/$(HEX)$(HEX) "$(CACHE)"/embeddings "$(CACHE)"/readable "$(CACHE)"/folders \
		"$(CACHE)" 2>/dev/null || true

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'imgsim needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt -e .
	touch $@

$(READY_TO_TEST): $(READY) requirements-test.txt
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	touch $@
