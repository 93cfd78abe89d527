# make train   makes the environment, then trains recipes/medical_qa.yaml end to end
# make test    makes the environment if need be, then checks and tests everything that CI runs
# make check            ruff, ruff format and mypy, no tests
# make test-fast        tests without training, generation or real servers, for while you work
# make test-long        only the tests that are too long for CI (marker: long)
# make lock             rewrites requirements/*.txt after a change of dependencies
# make bench-serve      asks a real vLLM a thousand questions; times the layer against vLLM alone
# make bench-validate   times judging of answers against jsonschema and fastjsonschema
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/medical_qa/latest

.PHONY: train test test-fast test-long env check bench-serve bench-validate lock clean

train: env
	$(BIN)/llm-lora train recipes/medical_qa.yaml

test: env check
	$(BIN)/python -m pytest -m "not long" --durations=20

test-fast: env
	$(BIN)/python -m pytest -m "not slow and not long"

# Exit code 5: no test has the marker.
test-long: env
	$(BIN)/python -m pytest -m long --durations=20 || test $$? -eq 5

env:
	@$(PYTHON) install.py

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-serve: env
	$(BIN)/python benchmarks/serving_verdicts.py $(RUN)
	$(BIN)/python benchmarks/serving_overhead.py $(RUN)

bench-validate: env
	$(BIN)/python benchmarks/validate.py

lock:
	$(PYTHON) install.py --lock

clean:
	rm -rf .venv build dist *.egg-info
