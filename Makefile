# make demo: set up, classify a synthetic slide, open napari where there is a display.
# make test: set up, then everything that must hold: ruff, mypy, pytest in real windows.
# make bench: the speed figures, each against a named alternative in the same run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What Qt, OpenGL and a windowless screen need on Debian and Ubuntu; elsewhere they come with the desktop.
APT := python3-venv xvfb xauth libegl1 libgl1 libgl1-mesa-dri libopengl0 libglib2.0-0 libfontconfig1 libdbus-1-3 \
       libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 \
       libxcb-shape0 libxcb-xfixes0 libxcb-xinerama0 libxcb-xkb1 libsm6 libice6 libxrender1 libxi6

.PHONY: demo test lint bench system clean

demo: $(VENV)/.app
	$(BIN)/msamil demo

test: $(VENV)/.test lint
	$(BIN)/npe2 validate napari-msamil
	OMP_NUM_THREADS=1 QT_API=pyqt6 $(BIN)/python -m pytest tests/plugin -m gui -n 2 --dist loadfile
	OMP_NUM_THREADS=1 QT_API=pyqt5 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy napari_msamil training

bench: $(VENV)/.test
	QT_API=pyqt5 xvfb-run -a -s "-screen 0 1600x1100x24" $(BIN)/python tests/benchmarks/run.py

system:
	@missing=$$(for p in $(APT); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if command -v apt-get >/dev/null && [ -n "$$missing" ]; then \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; \
	fi

$(VENV)/bin/pip: | system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

# --no-compile: Python compiles what it imports; of gigabytes that are installed that is little.
$(VENV)/.app: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q --no-compile -e ".[app]"
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q --no-compile -e ".[app,test]"
	touch $@

clean:
	rm -rf $(VENV) demo
