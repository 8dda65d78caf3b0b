PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test tests soak check quick-tests lint docs evidence evidence-families bench bench-gpu clean

demo: .venv/installed
	$(BIN)/crossaudit demo --out crossaudit-demo

# Three processes for two cores: a process that runs tests waits for Ray and other processes over a quarter of its time.
PROCESSES = 3
# One thread per process, because each may start workers of its own.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# The tests start dozens of processes. Without compiled files, each would compile the whole project again.
unexport PYTHONDONTWRITEBYTECODE

# Lint and types run beside the tests: in a fresh checkout, mypy alone keeps one core busy for a minute.
test: .venv/installed
	$(MAKE) -j 2 lint tests

tests: .venv/installed
	$(PYTEST) --file-durations

# Thousands of random schedules and examples of properties, and 80 killed workers, machines and drivers, where `make test`
# tries a handful, and the tests that are marked `soak`: combinations beyond those of `make test`.
soak: .venv/installed
	$(PYTEST) --hypothesis-profile soak tests/end_to_end/test_chaos.py
	$(PYTEST) --hypothesis-profile soak -m "hypothesis or soak" --ignore tests/end_to_end/test_chaos.py

# The inner loop: lint, types and the unit tests, without the files that took over 2 s (tests/durations.csv).
check: .venv/installed
	$(MAKE) -j 2 lint quick-tests

# These tests wait for no other process.
quick-tests: PROCESSES = 2
quick-tests: .venv/installed
	$(PYTEST) -q -m "not slow" --at-most 2 --ignore tests/end_to_end

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy audit pipelines reports benchmarks examples

# The tables and plots of docs/evidence.md: trains what work/bench lacks (90 minutes), then measures (51 minutes on two
# cores). The three models of other families have a target of their own.
evidence: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.planted.bench evidence

evidence-families: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.planted.bench evidence sdxl pixart sd3

# The tables of README and docs/explanation/performance.md, in CPU time: a few minutes.
bench: .venv/installed
	$(BIN)/python -m benchmarks.speed --arch tiny-sd1
	$(BIN)/python -m benchmarks.speed --arch sd15 --count
	$(BIN)/python -m benchmarks.speed --arch sd21 --count
	$(BIN)/python -m benchmarks.speed_page

# The same on a GPU, at full size with random weights, in five minutes.
GPU = --device cuda --dtype bfloat16 --batch 64 --captions 256 --peak 8192 --rounds 3
bench-gpu: .venv/installed
	$(BIN)/python -m benchmarks.speed --arch sd15 $(GPU) --detectors profile attention_profile entropy_single_step noise_magnitude
	$(BIN)/python -m benchmarks.speed --arch sd21 $(GPU) --detectors entropy_single_step
	$(BIN)/python -m benchmarks.speed_page

docs: .venv/installed
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "crossaudit needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --upgrade-strategy only-if-needed -e ".[run,dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info crossaudit-demo site
