# Everything a newcomer needs: `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One BLAS thread: the figures are per core, and small models lose by more.
export OPENBLAS_NUM_THREADS := 1
# Published data sets beside the checkout; tests that need them skip where there are none.
export EDGEFED_TEST_DATA ?= $(wildcard ../shared/data)

.PHONY: demo test mosquitto first-hour soak bench reproduce-codec lint format clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/edge-fleet demo

test: $(STAMP) mosquitto
	$(BIN)/python -m pytest -q

# Tests run against mosquitto; where it can be brought neither by apt nor unpacked into the venv, they skip.
mosquitto: $(STAMP)
	$(BIN)/python tools/get_mosquitto.py

# docs/first-hour.md as it stands, command by command.
first-hour: $(STAMP) mosquitto
	$(BIN)/python -m pytest -v tests/test_first_hour.py

SEEDS ?= 2000
soak: $(STAMP)
	$(BIN)/python -m benchmarks.soak --seeds $(SEEDS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# An hour or two on one core; resumes where it was left.
CODEC_RUNS ?= runs/codec
reproduce-codec: $(STAMP)
	$(BIN)/python -m benchmarks.reproduce_codec $(CODEC_RUNS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
