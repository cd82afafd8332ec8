# The two main commands are `make demo` and `make test`; each makes the environment if it does not exist.
SHELL  := bash
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready

.PHONY: help demo test test-all bench study weights best bench-train bench-start bench-startup bench-step bench-feed bench-scale bench-metrics bench-predict bench-web figures notebooks readme docs preview export real clean

help:      ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 16

demo: $(READY)  ## the whole pipeline on synthetic CT: volumes in, masks, Dice and pictures out (a minute or two)
	$(BIN)/liverseg demo demo

test: $(READY)  ## the notebooks as tests, then pytest (twenty minutes)
	@# two notebooks or tests run side by side, with one thread each, so that they do not compete for the cores
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-all: test  ## also the tests that take longer or need more: clean installs, real data, peers
	$(BIN)/pytest -m all

docs: $(READY)  ## the site, built in _docs/ (half a minute; Python 3.11 or newer)
	$(BIN)/python tests/make_docs.py

preview: $(READY)  ## the site, served at http://localhost:8000
	$(BIN)/python tests/make_docs.py --serve

export: $(READY)  ## the notebooks exported to liverseg/
	$(BIN)/nbdev_export

notebooks: $(READY)  ## run every chapter and keep its outputs
	$(BIN)/python tests/run_notebooks.py nbs/[0-9]*.ipynb nbs/tutorials/*.ipynb
	$(BIN)/nbdev_clean

readme: $(READY)  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/make_readme.py

figures: demo  ## the pictures in img/, from a run of the demo
	cp demo/model/batch.png img/batch.png
	cp demo/model/loss.png img/loss.png
	cp demo/model/valid.png img/valid.png
	cp demo/report_tta/cases.png img/test.png
	mkdir -p nbs/img && cp img/*.png nbs/img/

REAL := ../shared/data
FAST := --size 128 --arch lite

real: $(READY)  ## the same pipeline on real volumes and slices, from ../shared/data (five minutes)
	$(BIN)/liverseg convert $(REAL)/ircad real/png
	time $(BIN)/liverseg train real/png real/model $(FAST) --epochs 12
	time $(BIN)/liverseg evaluate real/png real/report --model real/model
	time $(BIN)/liverseg predict $(REAL)/ircad/test/nii/ircad_e17_orig.nii.gz real/mask.nii.gz --model real/model
	$(BIN)/liverseg import-slices $(REAL)/msd2d real/msd --window 0,255
	time $(BIN)/liverseg train real/msd real/msd_model $(FAST) --epochs 8
	time $(BIN)/liverseg evaluate real/msd real/msd_report --model real/msd_model --split valid
	$(BIN)/liverseg convert $(REAL)/ircad real/png255 --window 0,255
	time $(BIN)/liverseg evaluate real/png255 real/msd_report_17 --model real/msd_model
	test ! -d demo/model || $(BIN)/liverseg evaluate real/png real/report_demo --model demo/model

bench: $(READY)  ## conversion against the plain loop, MONAI and compression alone, on the same volumes (five minutes)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/convert.py

study: $(READY)  ## the trainings behind the defaults, on ../shared/data; finished ones are skipped (two hours)
	$(BIN)/python benchmarks/study.py

weights: $(READY)  ## the network that ships, from ../shared/data, into liverseg/weights/ (an hour)
	$(BIN)/python benchmarks/weights.py

best: $(READY)  ## the best model, from ../shared/data, in real/study/models/best (an hour)
	$(BIN)/python benchmarks/study.py best

bench-train: $(READY)  ## training against the reference's recipe, segmentation_models_pytorch and MONAI (an hour)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/train.py

bench-start: $(READY)  ## a few epochs on patient 1, from the network that ships and from ImageNet's weights (ten minutes)
	$(BIN)/python benchmarks/start.py

bench-startup: $(READY)  ## CPU seconds until a mask can be made or a wrong file is refused, in fresh processes (a minute)
	$(BIN)/python benchmarks/startup.py

bench-step: $(READY)  ## where the time of a training step goes (five minutes)
	$(BIN)/python benchmarks/step.py

bench-feed: $(READY)  ## a training against the bare network on data in memory (five minutes)
	$(BIN)/python benchmarks/feed.py

bench-scale: $(READY)  ## processes and a Dask cluster against one process, 10,000 scans, a thousand workers (ten minutes)
	$(BIN)/python -m pip install --quiet -e '.[cluster]'
	$(BIN)/python benchmarks/scale.py

bench-metrics: $(READY)  ## the measures of a case against MONAI, surface-distance and medpy (two minutes)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/metrics.py

bench-predict: $(READY)  ## prediction against fastai, MONAI, ONNX Runtime and the bare network (a quarter of an hour)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/predict.py --json benchmarks/study/predict.json

bench-web: $(READY)  ## seconds per slice of the page Try it in Chromium against ONNX Runtime (five minutes)
	$(BIN)/python benchmarks/web.py --json benchmarks/study/web.json

clean:     ## remove the environment and everything that can be rebuilt
	rm -rf .venv demo real build dist *.egg-info _docs _proc web/node_modules

$(READY): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
