# Two commands are all a newcomer needs: `make demo` and `make test`.
# Each first installs what it needs into .venv, as pinned by uv.lock.

PYTHON ?= python3
UV := .uv/bin/uv
export UV_PYTHON := $(PYTHON)
export UV_PYTHON_DOWNLOADS := never

.PHONY: demo test test-slow peers torch keras-hub lint format wheel docs notebook lock clean

demo: $(UV)
	$(UV) sync --quiet --frozen --inexact --no-dev
	.venv/bin/ce-keras demo

# All tests but those marked `slow`, which `test-slow` runs. Files stay whole, so that what a file's
# tests share is made once. Importing TensorFlow takes a third of the time where it is compiled
# beforehand, also where Python is told not to keep what it compiles.
test: MARKED := not slow
test-slow: MARKED := slow
test-slow: OPTIONAL := keras-hub
test test-slow: export UV_COMPILE_BYTECODE := 1
test test-slow: $(UV)
	$(UV) sync --quiet --frozen --inexact
	-$(MAKE) --silent --keep-going peers torch $(OPTIONAL)
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m '$(MARKED)'

# neural-tangents, to compare with: tests that need it are skipped where it does not install.
peers: $(UV)
	$(UV) venv --quiet --allow-existing .peers
	$(UV) pip install --quiet --python .peers -r tests/peers/requirements.txt

# PyTorch, a backend of Keras and to compare with: its build for CPUs, or, where the index of those
# cannot be reached, whichever pip finds. Tests that need it are skipped where it does not install.
TORCH := torch==2.13.0
torch: $(UV)
	$(UV) sync --quiet --frozen --inexact
	$(UV) pip install --quiet --python .venv --torch-backend cpu $(TORCH) 2>/dev/null \
	  || .uv/bin/pip --quiet --disable-pip-version-check --python .venv install $(TORCH)

# KerasHub, whose backbones `collegialize` is tried with. It needs 250 MB; no test that is not slow
# needs it, and they are skipped where it does not install.
keras-hub: $(UV)
	$(UV) sync --quiet --frozen --inexact
	$(UV) pip install --quiet --python .venv keras-hub==0.32.0

lint: $(UV)
	$(UV) lock --check --quiet
	$(UV) sync --quiet --frozen --inexact
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(UV)
	$(UV) sync --quiet --frozen --inexact
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Builds the wheel and tries it where nothing else is installed, away from the sources. The first
# command that imports TensorFlow keeps what it compiles for the others.
wheel: export PYTHONDONTWRITEBYTECODE :=
wheel: $(UV)
	rm -rf build dist
	$(UV) build --quiet --wheel
	$(UV) venv --quiet build/clean
	$(UV) pip install --quiet --python build/clean dist/*.whl
	cd build && clean/bin/ce-keras search resnext29 --mode dual
	cd build && clean/bin/ce-keras demo --epochs 1 --images 200 --out demo
	cd build && clean/bin/ce-keras build resnext11 --mode dual --save model.keras
	cd build && clean/bin/ce-keras train cifar10 --mode dual --dry-run
	cd build && clean/bin/python -c "import ce_keras, keras; keras.models.load_model('model.keras').summary()"

# The site, as static pages in build/site that open from disk, with every link checked.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(UV)
	$(UV) sync --quiet --frozen --inexact
	.venv/bin/mkdocs build --quiet
	.venv/bin/python docs/check_links.py build/site

# The notebook, made of its script and run.
notebook: $(UV)
	$(UV) sync --quiet --frozen --inexact
	.venv/bin/python docs/make_notebook.py

lock: $(UV)
	$(UV) lock --upgrade

clean:
	rm -rf .venv .peers .uv build dist demo

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
