# The first target that runs installs the project into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UNITS := tests/domain tests/application
DEMO := demo
DEMO_OPTIONS := --caption-model assets/small_captioner --epochs 100 --batch-size 4 --learning-rate 0.004
# Python compiles a library when it is first imported, and keeps the result. Each of many test
# processes would compile torch again with this variable set, as in some containers.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-gpu test-brokers faults simulate lint format bench bench-gpu quality base captioner clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Train a style from images that the project draws, into demo/
	@$(BIN)/python -m assets.demo_images $(DEMO)/images
	$(BIN)/python -m entrypoints.train $(DEMO)/images --out $(DEMO)/style $(DEMO_OPTIONS)

# The unit tests measure the coverage of domain and application (pyproject.toml). Measuring would
# slow the other tests down; tests/conftest.py starts the longest of them first. They have four
# processes for two cores, because many of them wait for a broker, a lease or a timer.
test: KINDS := not gpu and not long and not kernels
test-all: KINDS := not gpu
test: ## Run the tests
test-all: ## Also run the long tests, and the kernels in Triton's interpreter
test test-all: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term $(UNITS)
	$(BIN)/pytest -m "$(KINDS)" -n 4 --dist loadfile --no-loadscope-reorder $(UNITS:%=--ignore=%)

test-gpu: $(READY) ## Run the tests that need a GPU, and the kernels' tests on it
	$(BIN)/pytest -m "gpu or kernels"

test-brokers: $(READY) ## Run the RabbitMQ tests on 3.10, 4.0 and 4.3; needs root and debootstrap
	$(BIN)/python -m tests.brokers $(VERSIONS)

faults: $(READY) ## Disturb workers at random: FAULTS_RUNS=500 FAULTS_TOGETHER=3 FAULTS_STORE=gcs make faults
	$(BIN)/python -m tests.faults.campaign --runs $(or $(FAULTS_RUNS),100) --together $(or $(FAULTS_TOGETHER),1) --store $(or $(FAULTS_STORE),s3)

simulate: $(READY) ## Disturb workers in virtual time, reproducibly: SIMULATED_RUNS=20000 make simulate
	$(BIN)/python -m tests.simulation --runs $(or $(SIMULATED_RUNS),2000)

lint: $(READY) ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy -p tests
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure the trainer beside the plain recipe; needs a quiet machine
	$(BIN)/python -m benchmarks.cpu --full-size

bench-gpu: $(READY) ## Measure the trainer on this machine's GPU
	$(BIN)/python -m benchmarks.gpu

quality: $(READY) ## Measure training options and scores of previews on the small base (an hour)
	$(BIN)/python -m benchmarks.quality --page docs/quality.md
	$(BIN)/python -m benchmarks.style_measures --page docs/quality.md
	$(BIN)/python -m benchmarks.captions --page docs/quality.md

base: $(READY) ## Pretrain the small base model anew (an hour or two)
	$(BIN)/python -m assets.pretrain --out assets/small_base --seed 0

captioner: $(READY) ## Train the small captioner anew (half an hour)
	$(BIN)/python -m assets.train_captioner --out assets/small_captioner
	$(BIN)/python -m assets.train_captioner --out assets/small_captioner --start-from assets/small_captioner \
		--seed 1 --plain 8000 --steps 3000 --learning-rate 0.001

clean: ## Remove the demo's results and the caches
	rm -rf $(DEMO) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage

# pip compiles nothing, because most modules are never imported; Python does it at the first import.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
