"""What tests ask of a drive node: its diagnostics, services, parameters and answers."""

import time

from camera_rig import wait_until
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from p2d_node.ros.conversions import to_nanoseconds
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

KEPT_AT_TENTH = 8  # of 9 x 9 tokens


class Health:
    """The latest diagnostics, by component."""

    def __init__(self, node) -> None:
        self.statuses = {}
        self.num_reports = 0
        self._subscription = node.create_subscription(
            DiagnosticArray, '/diagnostics', self._receive, 10
        )

    def _receive(self, message) -> None:
        self.statuses |= {status.name: status for status in message.status}
        self.num_reports += 1

    def wait_for(self, component, level, text='') -> DiagnosticStatus:
        def found():
            status = self.statuses.get(f'/p2d: {component}')
            return status if status and status.level == level and text in status.message else None

        return wait_until(found)

    def value(self, component, key) -> str | None:
        status = self.statuses.get(f'/p2d: {component}')
        return values_of(status).get(key) if status else None


def values_of(status) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


def call(node, service_type, name, request):
    """Call a service with one client per test: each new one has to be discovered again."""
    clients = vars(node).setdefault('clients_of_test', {})
    if name not in clients:
        clients[name] = node.create_client(service_type, name)
        assert clients[name].wait_for_service(timeout_sec=30.0)
        time.sleep(0.3)  # the server's side of the match may come later, and its reply be lost
    future = clients[name].call_async(request)
    return wait_until(lambda: future.result() if future.done() else None, timeout_s=30.0)


def set_parameter(node, name, value):
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return call(node, SetParameters, '/p2d/set_parameters', request).results[0]


def next_answer(watcher, rig, **options):
    """Publish one sweep and return its answer."""
    stamp_ns = rig.publish_sweep(**options)
    return wait_until(
        lambda: [a for a in watcher.answers if to_nanoseconds(a.header.stamp) == stamp_ns]
    )[0]
