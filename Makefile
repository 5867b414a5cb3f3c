# Each target sets up .venv first, pinned by constraints.txt. torch is installed before everything else, so that the
# constraint's build is the one that all packages see.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test style quality bench compare families clean

demo: $(INSTALLED)
	$(BIN)/python -m ptl_fast.compress

test: $(INSTALLED)  # a file's tests stay together, and share what they set up
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

style: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only --benchmark-timer=time.process_time \
		--benchmark-columns=median,iqr,rounds --benchmark-json=runs/bench.json
	$(BIN)/python -m benchmarks.harness.ratios runs/bench.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.inference.speedup --clock process

compare: $(INSTALLED)
	$(BIN)/python -m benchmarks.methods.compare

families: $(INSTALLED)  # docs/models.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.families.run
	$(BIN)/python -m benchmarks.documents.models_table

$(INSTALLED): constraints.txt pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
