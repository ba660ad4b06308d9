# The habits. `make demo` and `make test` each work as the first command on a fresh clone:
# they need Python >= 3.11, pip and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help demo test check format chaos soak bench bench-publish bench-log clean

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

# pip >= 25.1 knows dependency groups. The stamps keep `make` from asking pip again each time.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev --editable '.[demo]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## Watch it work: embedded PostgreSQL, three subscribers, killed connections (ARGS="--seconds 10")
	@$(BIN)/pgnotifybus demo $(ARGS)

test: $(VENV)/.dev ## Every test, against real PostgreSQL (ARGS="-k ring")
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(VENV)/.dev ## Try every fault, and say how long it takes to notice and to mend (ARGS="--rounds 1")
	@cd tests && ../$(BIN)/python -m chaos $(ARGS)

soak: $(VENV)/.dev ## Faults at random against a bus and an event log, for MINUTES (ARGS="--seed 1")
	@cd tests && ../$(BIN)/python -m chaos --soak $(MINUTES) $(ARGS)

bench: $(VENV)/.dev ## Measure receiving against the bare drivers (ARGS="--quick")
	@$(BIN)/python -m benches $(ARGS)

bench-publish: $(VENV)/.dev ## Measure sending, and what it costs those who write beside it
	@$(BIN)/python -m benches.publishing $(ARGS)

bench-log: $(VENV)/.dev ## Measure the event log: what it costs those who write, how fast it is read
	@$(BIN)/python -m benches.event_log $(ARGS)

clean: ## Remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
