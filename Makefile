# Each target sets up .venv first, pinned by constraints.txt. torch is installed before everything else, so that the
# constraint's build is the one that all packages see.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs_installed

.PHONY: demo test style quality bench compare families torture docs release clean

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

torture: $(INSTALLED)  # docs/reliability.md, in at most 90 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture.run
	$(BIN)/python -m benchmarks.documents.reliability_table

docs: $(DOCS_INSTALLED)  # the site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# An sdist, a wheel from it, and that wheel at work outside this folder, with the dependencies of .venv.
release: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" > /dev/null
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(BIN)/python -m pip install --quiet --no-deps --target dist/installed dist/*.whl
	cd dist && PYTHONPATH=installed ../$(BIN)/python -m ptl_fast --version
	cd dist && PYTHONPATH=installed ../$(BIN)/python -m ptl_fast estimate --preset demo > estimate.txt
	cd dist && PYTHONPATH=installed ../$(BIN)/python -c "import ptl_fast, ptl_kernels.cpu as cpu; \
		assert '/dist/' in ptl_fast.__file__ and '/dist/' in cpu.__file__; print('C++ kernels:', cpu.available())"
	cd dist && PYTHONPATH=installed OMP_NUM_THREADS=1 ../$(BIN)/python -m ptl_fast compress --preset demo --output run --keep 0.75 --rounds 1 \
		--recovery none --calibration-tokens 2000 --eval-tasks none --device cpu > run.txt
	test -f dist/run/final/model.safetensors && ls -l dist/*.tar.gz dist/*.whl

$(INSTALLED): constraints.txt pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
