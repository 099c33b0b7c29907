# Every target sets up what it needs in .venv, pinned by constraints.txt; a second run goes straight
# to work. On a machine without an NVIDIA GPU, point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU
# builds before `make test` or `make docs` to get the small torch.

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One thread a worker: two OpenMP teams on the same cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m pytest

STANDARD := not readonly and not torch and not jax and not cupy
NUMPY := $(STANDARD) and not strict
MUTANTS := $(PYTEST) -n 2 -o python_files='run_*.py' tests/mutants

PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-deep test-lowest test-newest browser mutants coverage acceptance lint \
	types bench peers docs dist release-check reports clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */|/' \
		| while IFS='|' read -r name what; do printf '  make %-13s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.lab  ## Train a small network with K-FAC, SGD and Adam and compare them in demo/
	$(VENV)/bin/ngd compare --out demo --overwrite

test: $(VENV)/.test  ## Run the tests over every array library (PYTEST_ARGS="..." adds options)
	$(PYTEST) -n 2 $(PYTEST_ARGS)

test-deep: export NGD_PROFILE := deep
test-deep: $(VENV)/.test  ## Run the tests with 1,000 examples a law, then the mutants; hours
	$(PYTEST) -n 2 $(PYTEST_ARGS)
	$(MUTANTS)

# What tells of a version: the core on NumPy and array-api-strict, and the adapters' optimizers.
# torch stays as constraints.txt has it, as others come with CUDA; KEEP= lets it go too.
KEEP := torch
ADAPTERS := tests/conformance tests/release $(addprefix tests/backends/,test_torch_optimizers.py \
	test_torch_states.py test_jax_optimizers.py test_jax_frameworks.py test_state_moves.py)
# old releases do what newer ones of their own dependencies warn of
OLD-lowest := -W ignore::DeprecationWarning
VERSIONS = NGD_PROFILE=quick $(subst $(PY),$(VENV)-$*/bin/python,$(PYTEST)) -n 2 $(OLD-$*)

test-lowest:  ## Test with the lowest versions that pyproject.toml allows, in .venv-lowest
test-newest:  ## Test with the newest versions that there are, in .venv-newest
test-lowest test-newest: test-%: $(VENV)-%/.ready
	$(VERSIONS) tests/core -k '$(STANDARD)' $(PYTEST_ARGS)
	$(VERSIONS) $(ADAPTERS) $(PYTEST_ARGS)

browser: $(VENV)/.test  ## Look at the page of ngd inspect in headless Chromium, which must be installed
	$(PYTEST) -o python_files='run_*.py' tests/browser $(PYTEST_ARGS)

mutants: $(VENV)/.test  ## Run plausible mistakes, each of which one named test must catch
	$(MUTANTS) $(PYTEST_ARGS)

# NumPy alone: which lines run hardly depends on the library, and tracing makes the others slow
coverage: $(VENV)/.test  ## Run the tests on NumPy and list the lines of the library that no test runs
	$(PYTEST) -n 2 -k '$(NUMPY)' --cov=ngd_core --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

acceptance: $(VENV)/.test  ## Run the tests of each construct and write acceptance and support from them
	cd tests && OMP_NUM_THREADS=1 ../$(PY) -m acceptance.table
	cd tests && ../$(PY) -m support.table

reports: $(VENV)/.test  ## Run the suite on the libraries here and write docs/reports from it
	cd tests && JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 ../$(PY) -m conformance.reports numpy strict torch jax

lint: $(VENV)/.lint  ## Check style, format, types, docstrings, links, and tests that assert nothing
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	cd tests && ../$(PY) -m arch.docstrings
	cd tests && ../$(PY) -m arch.habits
	cd tests && ../$(PY) -m arch.links

types: $(VENV)/.lint  ## Check types alone
	$(PY) -m mypy

bench: $(VENV)/.test  ## Run the benchmarks in tests/bench (files bench_*.py)
	@if find tests/bench -name 'bench_*.py' 2>/dev/null | grep -q .; \
	then $(PYTEST) -s -o python_files='bench_*.py' tests/bench $(PYTEST_ARGS); \
	else echo 'There are no benchmarks yet: tests/bench holds no bench_*.py.'; fi

peers: $(VENV)/.peers  ## Compare values with other libraries' (files peer_*.py in tests/peers)
	$(PYTEST) -s -o python_files='peer_*.py' tests/peers $(PYTEST_ARGS)

docs: $(VENV)/.docs  ## Build the documentation in docs/_build/html, warnings as errors
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo 'Open docs/_build/html/index.html'

dist: $(VENV)/.base  ## Build the source archive, and from it the wheel, in dist/
	rm -rf dist
	$(PY) -m build --no-isolation

release-check: dist  ## Look into both archives, and use the wheel in empty environments
	cd tests && ../$(PY) -m release.check ../dist $(addprefix --python ,$(PYTHONS))

clean:  ## Remove everything that these targets made, .venv included
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest demo dist docs/_build docs/generated .coverage htmlcov \
		.jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. A stamp is as new as the last install; pyproject.toml or constraints.txt renew it.

$(VENV)/.base: pyproject.toml constraints.txt
	@p='$(PYTHON)'; if ! "$${p:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null; then \
		found=$$("$${p:-python3}" --version 2>/dev/null) || found='none'; \
		echo "Python 3.11 or newer is needed, found: $$found. Install it, or name it:" \
			"make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) could not make a virtual environment (on Debian and Ubuntu its module" \
			"is a package of its own: python3.11-venv)." >&2; exit 1; }
	@echo 'Setting up $(VENV): pip and build tools'
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --group build
	@touch $@

$(VENV)/.lab: $(VENV)/.base
	@echo 'Setting up $(VENV): the library and what the ngd command draws and reads with'
	@$(INSTALL) --no-build-isolation -e '.[lab]'
	@touch $@

$(VENV)/.test: $(VENV)/.lab
	@echo 'Setting up $(VENV): torch, JAX and the test tools (large, once)'
	@$(INSTALL) torch
	@$(INSTALL) --no-build-isolation -e '.[lab,torch,jax,checks]' --group test
	@touch $@

$(VENV)/.peers: $(VENV)/.test
	@echo 'Setting up $(VENV): other libraries, to compare with'
	@$(INSTALL) --group peers
	@touch $@

$(VENV)/.lint: $(VENV)/.lab
	@echo 'Setting up $(VENV): the linters'
	@$(INSTALL) --no-build-isolation -e '.[lab,checks]' --group lint
	@touch $@

# the reference imports ngd_torch and ngd_jax
$(VENV)/.docs: $(VENV)/.test
	@echo 'Setting up $(VENV): Sphinx'
	@$(INSTALL) --group docs
	@touch $@

$(VENV)-lowest/.ready $(VENV)-newest/.ready: $(VENV)-%/.ready: $(VENV)/.base
	@echo 'Setting up $(VENV)-$*: the library with the $* versions (large, once)'
	@rm -rf $(VENV)-$* && $(PY) -m venv $(VENV)-$*
	@cd tests && ../$(PY) -m release.bounds $* --keep $(KEEP) > ../$(VENV)-$*/constraints.txt
	@$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(VENV)-$*/constraints.txt -e '.[lab,torch,jax,lab-jax,checks,files]' --group test
	@$(VENV)-$*/bin/python -m pip list --disable-pip-version-check
	@touch $@
