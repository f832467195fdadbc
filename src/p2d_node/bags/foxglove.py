"""Foxglove's messages in protobuf come in; the ROS messages of the same content go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from mcap.records import Schema
from mcap_protobuf.decoder import DecoderFactory
import numpy as np
from p2d_node.bags import ros_messages
from p2d_node.bags.limits import check_bytes
from p2d_node.errors import quote
from p2d_node.units import NS_PER_S

MAX_SCHEMA_BYTES = 64 << 10
"""Foxglove's own have a few kilobytes. A second is enough to parse this much, whatever it is."""

ROS_TYPES = {
    'foxglove.CompressedImage': ros_messages.COMPRESSED_IMAGE,
    'foxglove.CameraCalibration': ros_messages.CAMERA_INFO,
}
"""Name of a schema to the type of the ROS message."""

NO_DISTORTION_MODEL = 'plumb_bob'
MAX_DISTORTION_PARAMETERS = 14
"""Of OpenCV's largest model."""

TIME = (FieldDescriptor.TYPE_MESSAGE, False)
TEXT = (FieldDescriptor.TYPE_STRING, False)
GROUPS = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_GROUP)
DOUBLES = (FieldDescriptor.TYPE_DOUBLE, True)
TIME_FIELDS = {
    'seconds': (FieldDescriptor.TYPE_INT64, False),
    'nanos': (FieldDescriptor.TYPE_INT32, False),
}
FIELDS: Mapping[str, Mapping[str, tuple[int, bool]]] = {
    'foxglove.CompressedImage': {
        'timestamp': TIME,
        'frame_id': TEXT,
        'data': (FieldDescriptor.TYPE_BYTES, False),
        'format': TEXT,
    },
    'foxglove.CameraCalibration': {
        'timestamp': TIME,
        'frame_id': TEXT,
        'width': (FieldDescriptor.TYPE_FIXED32, False),
        'height': (FieldDescriptor.TYPE_FIXED32, False),
        'distortion_model': TEXT,
        **dict.fromkeys(('D', 'K', 'R', 'P'), DOUBLES),
    },
}
"""Fields of a schema: name to protobuf's type, and whether it is a list."""


def converter_of(schema: Schema) -> Callable[[bytes], memoryview]:
    """Return the function from a message in protobuf to the ROS message in CDR.

    Args:
        schema: Its schema, from the file; its name is in `ROS_TYPES`.

    Raises:
        ValueError: The schema is not Foxglove's.
    """
    check_bytes('a schema', len(schema.data), MAX_SCHEMA_BYTES)
    decode = DecoderFactory().decoder_for('protobuf', schema)
    if decode is None:
        raise ValueError(f'{schema.name}: got a schema in {quote(schema.encoding)}, not protobuf')
    _check_fields(decode(b'').DESCRIPTOR, FIELDS[schema.name])
    convert = CONVERTERS[schema.name]
    return lambda data: ros_messages.serialize(convert(decode(data)))


def _check_fields(message: Descriptor, expected: Mapping[str, tuple[int, bool]]) -> None:
    """Check that a message has the fields that are read, and no others that hold many values.

    A list of messages takes twenty times the memory of its bytes, and the file says what it has.
    """
    kinds = {field.name: (field.type, bool(field.is_repeated)) for field in message.fields}
    wrong = [name for name, kind in expected.items() if kinds.get(name) != kind]
    others = [name for name in kinds if name not in expected]
    wrong += [name for name in others if kinds[name][1] or kinds[name][0] in GROUPS]
    if message.is_extendable:  # extensions are lists of messages, too
        raise ValueError(f'{message.full_name}: it has extensions, allowed: none')
    if wrong:
        raise ValueError(f'{message.full_name}: its {quote(wrong[0])} is not as Foxglove has it')
    if 'timestamp' in expected:
        _check_fields(message.fields_by_name['timestamp'].message_type, TIME_FIELDS)


def _header(message: Any) -> Any:
    stamp_ns = message.timestamp.seconds * NS_PER_S + message.timestamp.nanos
    return ros_messages.header(stamp_ns, message.frame_id)


def _to_compressed_image(message: Any) -> Any:
    return ros_messages.compressed_image(_header(message), message.format, message.data)


def _to_camera_info(message: Any) -> Any:
    num_parameters = len(message.D)
    if len(message.K) != 9 or num_parameters > MAX_DISTORTION_PARAMETERS:
        raise ValueError(
            f'a calibration has {len(message.K)} values K and {num_parameters} values D, allowed: '
            f'9, and at most {MAX_DISTORTION_PARAMETERS}'
        )
    info = ros_messages.camera_info(
        _header(message), message.height, message.width, np.array(message.K, np.float64)
    )
    if num_parameters:
        info.d = np.array(message.D, np.float64)
        info.distortion_model = message.distortion_model or NO_DISTORTION_MODEL
    return info


CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    'foxglove.CompressedImage': _to_compressed_image,
    'foxglove.CameraCalibration': _to_camera_info,
}
