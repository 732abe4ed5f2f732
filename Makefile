# run: serve a disk. test, soak, lint, bench, dist, deb, image, docs: each sets up what it needs. Python 3.11 or later and
# make are enough for `run`; `test` installs system packages when it is root, and names them when it is not; `deb` and
# `image` need some of these.

PYTHON ?= python3
VENV   ?= .venv
DIST   ?= dist
DEBS   ?= build/deb
IMAGE  ?= build/tcmu-image.tar
SITE   ?= build/site

# Peers are builds of the distribution's, so the Python beside them is too, if it is 3.11 or later: one that was built as
# it comes, without profile-guided optimization, is a fifth slower.
BENCH_PYTHON ?= $(shell /usr/bin/python3 -c 'import sys, ensurepip; assert sys.version_info >= (3, 11)' 2>/dev/null \
                  && echo /usr/bin/python3 || echo $(PYTHON))

# Which tests `make test` runs, in pytest's words; `make unit` runs those that need no programs but Python.
MARKERS ?= not soak
UNITS   := scsi config test_codec.py test_errors.py test_log.py test_loop.py test_options.py
BIN    := $(VENV)/bin

DISTRIBUTIONS := . $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
EXAMPLES      := $(patsubst %/pyproject.toml,%,$(wildcard examples/*/pyproject.toml))
PROJECTS      := $(DISTRIBUTIONS:%=%/pyproject.toml)
EDITABLE      := $(DISTRIBUTIONS:%=-e %)
PACKAGES      := tcmu_core $(notdir $(filter plugins/%,$(DISTRIBUTIONS)) $(EXAMPLES))
RELEASED      := $(DISTRIBUTIONS) packages/tcmu-runner
BENCHMARKS    := $(patsubst benchmarks/%.py,%,$(shell grep -l __main__ benchmarks/*.py))
PIP           := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Tests in virtual machines run in one process, most others in another beside it: see conftest.py.
PYTEST        := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 20

space := $(subst ,, )

.PHONY: run test unit soak lint bench measure dist deb image docs tools clean

run: $(VENV)/.run
	$(BIN)/tcmu serve file ./disk.img --size 1G

test: $(VENV)/.test
	$(PYTEST) -m "$(MARKERS)"

unit: $(VENV)/.unit
	$(BIN)/python -m pytest -m "not soak and not vm" $(addprefix tests/,$(UNITS))

soak: $(VENV)/.test $(VENV)/.dist
	$(PYTEST) -m soak

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(subst $(space),:,$(filter plugins/%,$(DISTRIBUTIONS)) $(EXAMPLES)) \
	    $(BIN)/mypy --strict $(addprefix -p ,$(subst -,_,$(PACKAGES))) -p tools

bench:
	$(MAKE) measure VENV=$(VENV)/bench PYTHON=$(BENCH_PYTHON)

measure: $(VENV)/.bench
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

# Wheels carry the time of the last commit, so that one commit gives one wheel.
dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
dist: $(VENV)/.dist
	rm -rf $(DIST)
	for project in $(RELEASED); do $(BIN)/python -m build --no-isolation --outdir $(DIST) $$project || exit 1; done
	$(BIN)/twine check --strict $(DIST)/*

# Packages of Debian; tools/debian-packages says what they are built with.
deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
deb: $(VENV)/.dist
	tools/debian-packages $(DEBS) $(BIN)/python

image: deb
	tools/container-image $(DEBS) $(IMAGE)

docs: $(VENV)/.docs
	$(BIN)/python -m tools.site $(SITE)

tools:
	tools/install-test-tools

clean:
	rm -rf $(VENV) build $(DIST) .mypy_cache .pytest_cache .ruff_cache

# Each stamp is what was installed for one purpose; it is made anew when a pyproject.toml changes.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.run: $(BIN)/python $(PROJECTS)
	$(PIP) $(EDITABLE)
	touch $@

$(VENV)/.lint: $(VENV)/.run $(EXAMPLES:%=%/pyproject.toml)
	$(PIP) -e '.[lint]' $(EXAMPLES:%=-e %)
	touch $@

$(VENV)/.unit: $(VENV)/.run
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.test: $(VENV)/.run $(EXAMPLES:%=%/pyproject.toml) | tools
	$(PIP) -e '.[test,kernel,dbus]' $(EXAMPLES:%=-e %)
	touch $@

$(VENV)/.dist: $(VENV)/.run
	$(PIP) -e '.[dist]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) -e '.[bench]'
	touch $@
