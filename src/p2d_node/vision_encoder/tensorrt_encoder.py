"""The vision encoder as a TensorRT engine, for TensorRT and TensorRT for RTX."""

from __future__ import annotations

from p2d_node.errors import BackendUnavailableError, InferenceError
from p2d_node.vision_encoder.engine_buffers import EngineBuffers, INPUT_NAME, OUTPUT_NAME
from p2d_node.vision_encoder.engine_files import EngineFiles
from p2d_node.vision_encoder.manifest import EngineManifest, PLAN_FILE
from p2d_node.vision_encoder.tensorrt_api import TensorrtApi
import torch
from torch import Tensor

ELEMENT_TYPES = {
    'UINT8': torch.uint8,
    'FLOAT': torch.float32,
    'HALF': torch.float16,
    'BF16': torch.bfloat16,
}
"""Names in tensorrt.DataType to torch dtypes."""

NUM_WARM_UPS = 2
"""Runs before a CUDA graph is captured; the first runs allocate memory and choose kernels."""


class TensorrtVisionEncoder:
    """Runs an engine on its own CUDA stream. Use it from one thread at a time."""

    def __init__(
        self,
        manifest: EngineManifest,
        files: EngineFiles,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Load an engine that passed all checks.

        Args:
            manifest: Its manifest.
            files: The content of its plan.
            dtype: Number format of the returned tokens.
            device: The GPU.

        Raises:
            BackendUnavailableError: The runtime is not installed, or `device` is not a GPU.
            EngineMismatchError: The runtime refuses the engine, or it differs from its manifest.
        """
        if device.type != 'cuda':
            raise BackendUnavailableError(
                f'encoder.backend: {manifest.backend} needs a GPU, device is {device}; set device '
                'to cuda, or encoder.backend to onnxruntime or torch'
            )
        api = TensorrtApi(manifest.backend)
        self._dtype = dtype
        with torch.cuda.device(device):
            self._engine = api.load(files[PLAN_FILE])
            self._buffers = EngineBuffers(manifest, device)
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._bind()
            self._graph = self._capture()
        self.input_spec = self._buffers.input_spec
        graph = 'CUDA graph' if self._graph or self._engine.owns_graph else 'no CUDA graph'
        self.identity = (
            f'{api.backend} {api.version} {manifest.precision}, {graph}, {manifest.key}'
        )

    def _bind(self) -> None:
        addresses = {INPUT_NAME: self._buffers.frames, OUTPUT_NAME: self._buffers.visual_tokens}
        for name, (_, shape, element) in self._engine.tensors().items():
            self._buffers.check(name, shape, ELEMENT_TYPES.get(element))
            self._engine.set_address(name, addresses[name].data_ptr())

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        """Capture one run as a CUDA graph.

        Returns:
            None if the runtime captures graphs itself, or if the run cannot be captured.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        for _ in range(NUM_WARM_UPS):
            self._engine.enqueue(self._stream.cuda_stream)
        self._stream.synchronize()
        if self._engine.owns_graph:
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._engine.enqueue(self._stream.cuda_stream)
        except (RuntimeError, InferenceError):  # a layer synchronises: run without a graph
            self._stream.synchronize()
            return None
        return graph

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode the views of one sweep; see `VisionEncoder.encode`.

        The host does not wait for the GPU; the caller's stream waits for the encoder's.
        """
        caller = torch.cuda.current_stream(self._buffers.frames.device)
        num_views = self._buffers.fill(frames)
        self._stream.wait_stream(caller)
        if self._graph is not None:
            with torch.cuda.stream(self._stream):
                self._graph.replay()
        else:
            self._engine.enqueue(self._stream.cuda_stream)
        caller.wait_stream(self._stream)
        return self._buffers.visual_tokens[:num_views].to(self._dtype)
