# The two commands that matter are `make demo` and `make test`; each makes the environment if it is not there.
SHELL  := bash
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready

.PHONY: help demo test test-all figures notebooks readme export clean

help:      ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 12

demo: $(READY)  ## the whole pipeline on synthetic CT: volumes in, masks, Dice and pictures out (under 8 minutes)
	$(BIN)/liverseg demo demo

test: $(READY)  ## the notebooks as tests, then pytest (under 15 minutes)
	$(BIN)/nbdev_test
	$(BIN)/pytest

test-all: test  ## what needs longer or more than the package: clean installs, real data, peers
	$(BIN)/pytest -m all

export: $(READY)  ## notebooks to library
	$(BIN)/nbdev_export

notebooks: $(READY)  ## run every chapter and keep its outputs
	for nb in nbs/[0-9]*.ipynb nbs/index.ipynb; do $(BIN)/python -m nbconvert --to notebook --execute --inplace $$nb || exit 1; done
	$(BIN)/nbdev_clean

readme: $(READY)  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/make_readme.py

figures: demo  ## the pictures in img/, from the demo's run
	cp demo/model/batch.png img/batch.png
	cp demo/model/loss.png img/loss.png
	cp demo/model/valid.png img/valid.png
	cp demo/report_tta/cases.png img/test.png

clean:     ## remove the environment and everything that can be made again
	rm -rf .venv demo build dist *.egg-info _docs _proc

$(READY): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
