"""Reads an ONNX file, and refuses operators that no vision encoder needs.

An engine is compared with torch when it is built or verified, and then used for months. It must
compute the same each time: an operator that draws random numbers, or that writes into the weights
(BatchNormalization of old opsets), would make the comparison worthless.
"""

from __future__ import annotations

from p2d_node.errors import EngineMismatchError, quote
from p2d_node.vision_encoder.machine import import_runtime
from p2d_node.vision_encoder.manifest import ONNX_FILE

ELEMENTWISE = """
Abs Add And Cast CastLike Ceil Clip Cos Div Equal Erf Exp Floor Gelu Greater GreaterOrEqual
HardSigmoid HardSwish Identity Less LessOrEqual Log Max Min Mul Neg Not Or Pow Reciprocal Relu
Round Sigmoid Sign Sin Softplus Sqrt Sub Sum Tanh Where
"""
SUMS = """
ArgMax ArgMin AveragePool Conv CumSum Einsum Gemm GlobalAveragePool GroupNormalization
LayerNormalization LogSoftmax MatMul MaxPool RMSNormalization ReduceL2 ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum Softmax
"""
SHAPES = """
Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Pad
Range Reshape Resize ScatterElements ScatterND Shape Size Slice Split Squeeze Tile
Transpose Trilu Unsqueeze
"""
OPERATORS = frozenset(f'{ELEMENTWISE} {SUMS} {SHAPES}'.split())
"""Of ONNX itself; their outputs depend on their inputs alone. Loops and branches are not among
them: what torch exports for these encoders has none."""


def checked_model(content: bytes) -> bytes:
    """Check the operators of an ONNX model.

    Args:
        content: The file.

    Returns:
        The model as protobuf writes it. A runtime that reads the file itself could find in it
        what protobuf leaves out here.

    Raises:
        BackendUnavailableError: The package onnx is not installed.
        EngineMismatchError: It is no ONNX, or has an operator that is not in `OPERATORS`.
    """
    model = import_runtime('onnx').ModelProto()
    from google.protobuf.message import DecodeError  # installed with onnx

    try:
        model.ParseFromString(content)
    except DecodeError as err:
        raise EngineMismatchError(f'{ONNX_FILE} is no ONNX: {err}; build it again') from err
    model.DiscardUnknownFields()
    for node in model.graph.node:
        if node.domain or node.op_type not in OPERATORS:
            name = f'{node.domain}.{node.op_type}'.lstrip('.')
            raise EngineMismatchError(
                f'{ONNX_FILE} has the operator {quote(name)}, allowed: those that encoders need '
                '(OPERATORS in onnx_graph.py); build it again'
            )
        if any(attribute.HasField('g') or attribute.graphs for attribute in node.attribute):
            raise EngineMismatchError(f'{ONNX_FILE} has a graph in a node; build it again')
    if model.functions:
        raise EngineMismatchError(f'{ONNX_FILE} has functions; build it again')
    plain: bytes = model.SerializeToString(deterministic=True)
    return plain
