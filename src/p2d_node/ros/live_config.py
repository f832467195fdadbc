"""The configuration of a node, which follows the parameters that are set while it runs."""

from __future__ import annotations

from collections.abc import Callable

from p2d_node.config import DEFAULT_RETENTION_RATIO, DriveConfig
from p2d_node.config_parameters import list_parameters
from p2d_node.errors import ConfigError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.retention_presets import tuned_ratios
from p2d_node.ros.parameters import declare_parameters, ratios_not_given, updated_config
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter


class LiveConfig:
    """Declares the parameters of a node, and refuses changes that are not allowed.

    Parameters are set on the thread that spins the node.

    Attributes:
        value: The configuration.
    """

    def __init__(
        self,
        node: Node,
        *,
        pipeline: Callable[[], DrivingPipeline | None],
        on_change: Callable[[DriveConfig], None],
    ) -> None:
        """Declare the parameters.

        Args:
            node: The node.
            pipeline: Returns the pipeline; None while the node is unconfigured.
            on_change: Called with the new configuration after a change.

        Raises:
            ConfigError: A value is not allowed.
        """
        self.value = declare_parameters(node)
        self._node = node
        self._pipeline = pipeline
        self._on_change = on_change
        self._ratios_not_given = ratios_not_given(node, self.value.cameras)
        node.add_on_set_parameters_callback(self._on_set)

    def use_ratios_of_model(self) -> None:
        """Set the ratios that nobody has given to those that were tuned for the model."""
        not_given, tuned = self._ratios_not_given, tuned_ratios(self.value.model)
        ratios = {
            name: tuned.get(camera, DEFAULT_RETENTION_RATIO) for name, camera in not_given.items()
        }
        changed = [
            Parameter(name, value=ratio)
            for name, ratio in ratios.items()
            if ratio != self._node.get_parameter(name).value
        ]
        self._node.set_parameters(changed)
        self._ratios_not_given = not_given

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        names = {parameter.name for parameter in list_parameters(tuple(self.value.cameras))}
        changes = {p.name: p.value for p in parameters if p.name in names}
        if not changes:
            return SetParametersResult(successful=True)
        pipeline = self._pipeline()
        try:
            config = updated_config(self.value, changes, configured=pipeline is not None)
            if pipeline is not None and 'questions' in changes:
                pipeline.check_questions(config.questions)
            if pipeline is not None and config.context and {'context', 'questions'} & set(changes):
                pipeline.check_context(config.context, config.questions or ('',))
        except ConfigError as err:
            return SetParametersResult(successful=False, reason=str(err))
        self.value = config
        self._ratios_not_given = {
            name: camera for name, camera in self._ratios_not_given.items() if name not in changes
        }
        self._on_change(config)
        return SetParametersResult(successful=True)
