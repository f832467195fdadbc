"""Every name that our TensorRT code uses exists in the real bindings, version by version.

The bindings' wheels are small and on PyPI; the library behind them is not, so they cannot be
imported here. pybind11 keeps every name as text in the binary.
"""

import ast
from importlib import metadata
from pathlib import Path
import subprocess
import sys
import zipfile

from p2d_node.vision_encoder import tensorrt_api, tensorrt_encoder
from p2d_node.vision_encoder.tensorrt_api import TensorrtApi
import pytest

BINDINGS = (
    'tensorrt_cu12_bindings==10.3.0',  # JetPack 6
    'tensorrt_cu12_bindings==10.13.3.9',
    'tensorrt_cu13_bindings==10.13.3.9',  # JetPack 7
    'tensorrt_cu12_bindings==11.4.0.106',
    'tensorrt_cu13_bindings==11.4.0.106',
)

PYTHON_NAMES = {
    *dir(TensorrtApi),
    *dir(tensorrt_api.BuildOptions),
    *dir(tensorrt_api.LoadedEngine),
    *dir(str),
    *dir(dict),
    *dir(list),
    *('backend', 'messages', 'trt', 'version', 'logger', 'owns_graph'),
}
"""Attributes in tensorrt_api.py that are ours or Python's."""

NOT_EVERYWHERE = {
    'CudaGraphStrategy',
    'ComputeCapability',
    'WHOLE_GRAPH_CAPTURE',
    'create_runtime_config',
    'cuda_graph_strategy',
    'num_compute_capabilities',
    'set_compute_capability',
}
"""Looked for with `hasattr` before they are used."""


def names_in_use() -> set[str]:
    tree = ast.parse(Path(tensorrt_api.__file__).read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    methods = {'phase_start', 'step_complete', 'phase_finish', 'log'}  # called by TensorRT
    return {name for name in names | methods if name not in PYTHON_NAMES and name[0] != '_'}


def missing_names(binary: bytes, names: set[str]) -> list[str]:
    # The linker may store a name as the end of a longer one.
    return sorted(name for name in names if name.encode() + b'\0' not in binary)


def test_the_names_in_use_are_found_in_our_source():
    names = names_in_use()
    assert {'build_serialized_network', 'execute_async_v3', 'engine_host_code_allowed'} <= names
    assert len(names) > 40
    # What is not in every version is asked for before use.
    source = Path(tensorrt_api.__file__).read_text()
    guarded = {'CudaGraphStrategy', 'create_runtime_config', 'num_compute_capabilities'}
    assert all(f"'{name}')" in source for name in guarded)


def test_tensorrt_rtx_has_every_name():
    package = next(
        path
        for path in metadata.files('tensorrt_rtx_cu13_bindings') or ()
        if path.suffix == '.so' and 'tensorrt' in path.name
    )
    binary = Path(str(package.locate())).read_bytes()
    assert missing_names(binary, names_in_use()) == []
    assert missing_names(binary, {'a_name_that_tensorrt_does_not_have'})


@pytest.mark.slow
@pytest.mark.parametrize('requirement', BINDINGS)
def test_tensorrt_has_every_name(requirement, tmp_path):
    download = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps']
    words = [*download, '--only-binary', ':all:', '--dest', str(tmp_path), requirement]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ['pip said nothing'])[-1]
        pytest.skip(f'{requirement} cannot be had: {reason}')
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith('tensorrt.so'))
        binary = archive.read(name)
    assert missing_names(binary, names_in_use() - NOT_EVERYWHERE) == []
    assert missing_names(binary, set(tensorrt_encoder.ELEMENT_TYPES)) == []
