"""The vision encoder in ONNX Runtime, which runs the export on any machine."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from p2d_node.errors import BackendUnavailableError, EngineMismatchError, InferenceError
from p2d_node.vision_encoder.engine_buffers import EngineBuffers, INPUT_NAME, OUTPUT_NAME
from p2d_node.vision_encoder.engine_files import EngineFiles
from p2d_node.vision_encoder.machine import import_runtime
from p2d_node.vision_encoder.manifest import EngineManifest, ONNX_DATA_FILE, ONNX_FILE
from p2d_node.vision_encoder.onnx_graph import checked_model
import torch
from torch import Tensor

ELEMENT_TYPES = {'tensor(uint8)': torch.uint8, 'tensor(float)': torch.float32}
ELEMENT_TYPES |= {'tensor(float16)': torch.float16, 'tensor(bfloat16)': torch.bfloat16}
ONNX_BFLOAT16 = 16
"""TensorProto.BFLOAT16; numpy has no bfloat16."""


class OnnxruntimeVisionEncoder:
    """Runs an exported ONNX file. Use it from one thread at a time."""

    def __init__(
        self,
        manifest: EngineManifest,
        files: EngineFiles,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Load an export that passed all checks.

        Args:
            manifest: Its manifest.
            files: The content of its ONNX file and of its weights.
            dtype: Number format of the returned tokens.
            device: Device of the returned tokens; ONNX Runtime runs there if it can, else on the
                CPU.

        Raises:
            BackendUnavailableError: ONNX Runtime or onnx is not installed, or too old.
            EngineMismatchError: The file has operators that encoders do not need, ONNX Runtime
                refuses it, or it differs from its manifest.
        """
        ort = import_runtime('onnxruntime')
        on_gpu = device.type == 'cuda' and 'CUDAExecutionProvider' in ort.get_available_providers()
        self._device, self._dtype = device, dtype
        self._runs_on = device if on_gpu else torch.device('cpu')
        self._session = _open_session(ort, files, self._runs_on)
        self._buffers = EngineBuffers(manifest, self._runs_on)
        for tensor in (*self._session.get_inputs(), *self._session.get_outputs()):
            kind = ELEMENT_TYPES.get(tensor.type)
            self._buffers.check(tensor.name, tuple(tensor.shape), kind)
        self.input_spec = self._buffers.input_spec
        self.identity = (
            f'onnxruntime {ort.__version__} {manifest.precision} {self._runs_on}, {manifest.key}'
        )
        self._binding = self._session.io_binding()
        _bind(self._binding.bind_input, INPUT_NAME, self._buffers.frames)
        _bind(self._binding.bind_output, OUTPUT_NAME, self._buffers.visual_tokens)

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode the views of one sweep; see `VisionEncoder.encode`."""
        num_views = self._buffers.fill(frames)
        if self._runs_on.type == 'cuda':
            torch.cuda.current_stream(self._runs_on).synchronize()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as err:  # its errors have no common base class
            raise InferenceError(f'onnxruntime: {str(err).splitlines()[0]}') from err
        return self._buffers.visual_tokens[:num_views].to(self._device, self._dtype)


def _open_session(ort: Any, files: EngineFiles, device: torch.device) -> Any:
    options = ort.SessionOptions()
    if not hasattr(options, 'add_external_initializers_from_files_in_memory'):
        raise BackendUnavailableError(
            f'encoder.backend: got onnxruntime {ort.__version__}, which cannot take weights from '
            'memory; install onnxruntime 1.24 or newer'
        )
    model = checked_model(files[ONNX_FILE])
    weights = files[ONNX_DATA_FILE]
    options.add_external_initializers_from_files_in_memory(
        [ONNX_DATA_FILE], [weights], [len(weights)]
    )
    # The table is for the weights of the graph itself. Those of its parts would be looked for in
    # the working folder; where a device takes the place of the folder, nothing is found.
    options.add_session_config_entry(
        'session.model_external_initializers_file_folder_path', os.devnull
    )
    options.add_session_config_entry('session.load_model_format', 'ONNX')
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads must not spin: the camera callbacks need the cores between two sweeps.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 3
    providers: list[Any] = ['CPUExecutionProvider']
    if device.type == 'cuda':
        providers.insert(0, ('CUDAExecutionProvider', {'device_id': device.index or 0}))
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as err:  # its errors have no common base class
        raise EngineMismatchError(f'onnxruntime: {str(err).splitlines()[0]}') from err


def _bind(bind: Any, name: str, buffer: Tensor) -> None:
    element: Any = ONNX_BFLOAT16
    if buffer.dtype != torch.bfloat16:
        element = np.dtype(str(buffer.dtype).removeprefix('torch.')).type
    index = buffer.device.index or 0
    bind(name, buffer.device.type, index, element, tuple(buffer.shape), buffer.data_ptr())
