"""Checks requests to the services that rclpy adds to a lifecycle node, before rclpy serves them.

rclpy serves a request of any length on the thread that receives frames, logs every lifecycle
request that does not fit the state, and gives no reply to one that it cannot read. Its callbacks
do not learn who called; with SROS 2 the permissions decide who may call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lifecycle_msgs.srv import ChangeState
from p2d_node.errors import quote
from p2d_node.ros.lost_replies import LostReplies, name_of
from p2d_node.ros.malloc_settings import return_freed_memory
from p2d_node.ros.refusals import Refusals
from rcl_interfaces.msg import ParameterType, ParameterValue, SetParametersResult
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.lifecycle import LifecycleNode
from rclpy.service import Service

MAX_ENTRIES = 256
"""Parameters or names in one request: more than a node with 40 cameras has, so that a whole file
can be loaded. Setting so many takes about 0.2 s."""

MAX_NAME_CHARACTERS = 256
"""Of a parameter, or of a prefix; the longest names of the node have about 40."""

ENTRIES = {
    SetParameters: 'parameters',
    SetParametersAtomically: 'parameters',
    GetParameters: 'names',
    GetParameterTypes: 'names',
    DescribeParameters: 'names',
    ListParameters: 'prefixes',
}
"""Service type to the field of its request that may have any number of entries."""

CHANGES = (SetParameters, SetParametersAtomically, ChangeState)

INTEGER = ParameterType.PARAMETER_INTEGER
LISTS = {
    ParameterType.PARAMETER_BYTE_ARRAY: 'byte_array_value',
    ParameterType.PARAMETER_BOOL_ARRAY: 'bool_array_value',
    ParameterType.PARAMETER_INTEGER_ARRAY: 'integer_array_value',
    ParameterType.PARAMETER_DOUBLE_ARRAY: 'double_array_value',
}
"""Type of a list other than texts to the field of `ParameterValue` that holds it."""

TYPE_WORDS = {
    ParameterType.PARAMETER_NOT_SET: 'no value',
    ParameterType.PARAMETER_BOOL: 'true or false',
    ParameterType.PARAMETER_INTEGER: 'a whole number',
    ParameterType.PARAMETER_DOUBLE: 'a number',
    ParameterType.PARAMETER_STRING: 'a text',
    ParameterType.PARAMETER_STRING_ARRAY: 'a list of texts',
}

LOCKED = 'access is locked; start the node with access open, or change what its launch sets'


def guard_services(node: LifecycleNode, refusals: Refusals, *, locked: bool) -> None:
    """Guard the parameter and lifecycle services that `node` has so far.

    Args:
        node: The node.
        refusals: Gets what is refused, by the guard or by rclpy.
        locked: Whether every request that changes something is refused.
    """
    services = list(node.services)
    LostReplies(services, refusals)
    for service in services:
        if service.srv_type in (*ENTRIES, ChangeState):
            service.callback = _guarded(node, service, refusals, locked=locked)


def _guarded(
    node: LifecycleNode, service: Service, refusals: Refusals, *, locked: bool
) -> Callable[[Any, Any], Any]:
    serve, kind = service.callback, service.srv_type
    name = name_of(service)

    def answer(request: Any, response: Any) -> Any:
        reason = LOCKED if locked and kind in CHANGES else _why_not(node, kind, request)
        if not reason:
            if ENTRIES.get(kind) == 'parameters':
                _use_declared_types(node, request.parameters)
            try:
                response = serve(request, response)
                _explain_misfits(node, kind, request, response)
            except (ValueError, TypeError) as err:  # such as a type that does not exist
                reason = f'the request cannot be read: {err}; correct it'
        if reason:
            _refuse(kind, request, response, reason)
        reason = reason or _refused_by_rclpy(kind, response)
        if reason:
            refusals.add(name, reason)
            # A request of many megabytes was read before it could be refused.
            return_freed_memory()
        return response

    return answer


def _why_not(node: LifecycleNode, kind: Any, request: Any) -> str:
    """Return why a request is not passed on to rclpy; empty if it is."""
    if kind is ChangeState:
        return _why_no_transition(node, request.transition)
    entries = getattr(request, ENTRIES[kind])
    if len(entries) > MAX_ENTRIES:
        return (
            f'got {len(entries)} {ENTRIES[kind]} in one request, allowed: up to {MAX_ENTRIES}; '
            'send several requests'
        )
    sets = ENTRIES[kind] == 'parameters'
    return _why_no_names([entry.name for entry in entries] if sets else entries, sets=sets)


def _why_no_names(names: Sequence[str], *, sets: bool) -> str:
    """Return which name cannot be in a request; empty if all can."""
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_CHARACTERS:
        return (
            f'got a name of {longest} characters, allowed: up to {MAX_NAME_CHARACTERS}; use the '
            'names of `ros2 param list`'
        )
    if sets and '' in names:
        return 'got an empty name, allowed: the names of `ros2 param list`'
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return f'got {quote(twice)} twice in one request, allowed: once'
    return ''


def _use_declared_types(node: LifecycleNode, parameters: Sequence[Any]) -> None:
    """Turn `1` for `1.0`, and an empty list, into the type of the parameter.

    `ros2 param set` guesses types from the text, and rclpy refuses what does not fit.
    """
    for parameter in parameters:
        name, value = parameter.name, parameter.value
        declared = node.describe_parameter(name).type if node.has_parameter(name) else None
        if (declared, value.type) == (ParameterType.PARAMETER_DOUBLE, INTEGER):
            parameter.value = ParameterValue(
                type=declared, double_value=float(value.integer_value)
            )
        elif declared == ParameterType.PARAMETER_STRING_ARRAY and _is_empty_list(value):
            parameter.value = ParameterValue(type=declared)


def _explain_misfits(node: LifecycleNode, kind: Any, request: Any, response: Any) -> None:
    """Say in words what does not fit; rclpy says `expected '3' got '4'`, or `undeclared: []`."""
    if ENTRIES.get(kind) != 'parameters':
        return
    reasons = [_misfit(node, parameter) for parameter in request.parameters]
    if kind is SetParametersAtomically:
        reasons = [next(filter(None, reasons), '')]
    results = response.results if kind is SetParameters else [response.result]
    for reason, result in zip(reasons, results, strict=True):
        if reason and not result.successful:
            result.reason = reason


def _misfit(node: LifecycleNode, parameter: Any) -> str:
    """Return why a value cannot be that of its parameter; empty if its type fits."""
    name, given = parameter.name, parameter.value.type
    if not node.has_parameter(name):
        return f'got the name {quote(name)}, allowed: the names of `ros2 param list`'
    descriptor = node.describe_parameter(name)
    if descriptor.type not in TYPE_WORDS or given == descriptor.type:
        return ''
    allowed = TYPE_WORDS[descriptor.type]
    return f'{name}: got {TYPE_WORDS.get(given, "another type")}, allowed: {allowed}'


def _is_empty_list(value: Any) -> bool:
    field = LISTS.get(value.type)
    return field is not None and not getattr(value, field)


def _why_no_transition(node: LifecycleNode, transition: Any) -> str:
    # rclpy has no public method for this.
    machine = node._state_machine
    available = {number: label for number, label, *_ in machine.available_transitions}
    # As in rclpy, a label counts before a number.
    wanted = transition.label or transition.id
    if wanted in (available.values() if transition.label else available):
        return ''
    return (
        f'got transition {quote(wanted)}, allowed in state {machine.current_state[1]}: '
        f'{", ".join(available.values()) or "none"}'
    )


def _refuse(kind: Any, request: Any, response: Any, reason: str) -> None:
    result = SetParametersResult(successful=False, reason=reason)
    if kind is SetParameters:
        num_without = min(len(request.parameters), MAX_ENTRIES) - len(response.results)
        response.results = [*response.results, *[result] * num_without]
    elif kind is SetParametersAtomically:
        response.result = result


def _refused_by_rclpy(kind: Any, response: Any) -> str:
    """Return the first reason in a reply of rclpy; empty if nothing was refused."""
    results: Sequence[Any] = ()
    if kind is SetParameters:
        results = response.results
    elif kind is SetParametersAtomically:
        results = [response.result]
    return next((result.reason for result in results if not result.successful), '')
