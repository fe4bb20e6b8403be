# `make quickstart` and `make test` do all the set-up they need in .venv; nothing is installed elsewhere.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test lint tables clean

quickstart: .venv/core
	$(BIN)/genrec-bench quickstart

test: .venv/dev lint
	$(BIN)/pytest

lint: .venv/dev
	@mkdir -p .typing/genrec_bench && ln -sfn $(CURDIR)/benchmark $(CURDIR)/methods $(CURDIR)/datasets $(CURDIR)/suites .typing/genrec_bench/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# after new records: everything that is made from them
tables: .venv/dev
	$(BIN)/genrec-bench leaderboard --format md --output results/LEADERBOARD.md
	$(BIN)/genrec-bench leaderboard --format csv --output results/leaderboard.csv
	$(BIN)/genrec-bench leaderboard --format json --output results/leaderboard.json
	$(BIN)/genrec-bench leaderboard --format latex --output results/leaderboard.tex
	$(BIN)/python benchmarks/docs_tables.py

.venv/core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or \
	    sys.exit("genrec-bench needs Python 3.11 or 3.12, not %d.%d: make PYTHON=/path/to/python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e ".[language]"
	@touch $@

.venv/dev: .venv/core
	$(PIP) -e ".[language,ray,dev]"
	@touch $@

clean:
	rm -rf .venv .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
