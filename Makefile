# make demo   sets up .venv, trains the main job on the embedded teacher, samples and evaluates it
# make test   sets up .venv with the test tools, checks style and types, runs the tests
# Both print what they do, and do their set-up once. Another Python: make clean demo PYTHON=python3.12. Another directory
# than demo/, which holds a run of one version: make demo DEMO=demo2.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DEMO ?= demo

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(RUN) -m sdd_jax.main --config=configs/ccd_sr.py --workdir=$(DEMO)
	$(RUN) -m sdd_jax.evaluate --workdir=$(DEMO)
	@echo "look at $(DEMO)/evaluation/grid.png"

test: $(VENV)/.installed-test check
	$(RUN) -m pytest -m "not slow" -n auto --maxprocesses 2 --dist loadfile

check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(DEMO)
