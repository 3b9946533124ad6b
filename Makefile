# Needs Python >= 3.11, gcc and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

# Both, because pip before 25.3 reads the first one for build requirements and later ones only the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-frameworks test-storage test-thorough bench check docs site format clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: .venv/installed ## Train, get killed, resume (also on more ranks, packing text), and prove that nothing is lost (two minutes)
	@$(BIN)/python -u examples/train_resume.py
	@echo
	@$(BIN)/python -u examples/ddp_elastic.py
	@echo
	@$(BIN)/python -u examples/pretrain.py

test: .venv/installed ## Run all tests, the doctests and the code in README.md
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-frameworks: ## Test in all frameworks, and their pages, in a fresh .venv-frameworks with trl, ray and jax too (some minutes)
	$(PYTHON) -m venv --clear .venv-frameworks
	.venv-frameworks/bin/python -m pip install --quiet --editable '.[dev,ray]' trl jax
	.venv-frameworks/bin/python -m pytest -n 2 --dist loadfile tests/frameworks tests/compat/test_lightning.py
	.venv-frameworks/bin/python -m pytest -n 2 -m '' tests/test_readme.py -k 'use- or frameworks'

test-storage: .venv/installed ## Test on real S3 servers, Ceph's included, over many more broken networks (some minutes)
	$(BIN)/python scripts/ceph_rgw.py --install
	LANEWAY_STORAGE_TESTS=all $(BIN)/python -m pytest -n 2 --dist loadfile tests/storage

test-thorough: test-storage ## Run test-storage, the tests that CI leaves out, the laws on up to 2,000 examples, the fuzzers on 5,000 cases (an hour or more)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m thorough
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=thorough --timeout=1800 tests/laws
	LANEWAY_FUZZ_CASES=5000 $(BIN)/python -m pytest -n 2 --timeout=3600 $$(grep -rl num_cases tests --include='test_*.py' | grep -v 'interrupted\|killed\|storage\|mixture_chains')
	LANEWAY_FUZZ_CASES=200 $(BIN)/python -m pytest --timeout=3600 tests/distributed/test_mixture_chains.py
	LANEWAY_FUZZ_CASES=500 $(BIN)/python -m pytest -n 2 --timeout=3600 tests/compat/test_interrupted_anywhere.py
	LANEWAY_FUZZ_CASES=125 $(BIN)/python -m pytest -n 2 --timeout=3600 tests/distributed/test_killed_checkpoints.py
	LANEWAY_STORAGE_TESTS=all LANEWAY_FUZZ_CASES=25 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout=3600 tests/storage/test_killed_checkpoints.py tests/storage/test_checkpoint_faults.py

bench: .venv/installed ## Run all benchmarks in a short form (some minutes)
	@for file in benchmarks/bench_*.py; do \
		printf '\n== %s\n' $$file; \
		$(BIN)/python $$file $$(grep -q -e --short $$file && echo --short) || exit 1; \
	done

check: .venv/installed ## Run ruff, mypy and import-linter, as CI does
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: site ## Build the site of docs/, with its links checked, and run the code on its pages (a minute or two)
	$(BIN)/python -m pytest -n 2 tests/test_readme.py tests/test_reference.py
	@echo "Open build/site/index.html; for its search: python3 -m http.server -d build/site"

site: .venv/installed-docs ## Build the site of docs/ into build/site: a broken link or a page outside the menu is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/installed ## Sort imports, fix what can be fixed, format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove .venv, the demo's files and all caches
	rm -rf .venv .venv-frameworks .demo dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "laneway needs Python >= 3.11, and $(PYTHON) is %d.%d; say make PYTHON=python3.x" % sys.version_info[:2])'
	@echo "Installing into .venv; PyTorch is large, this takes a minute or more ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	@$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@
