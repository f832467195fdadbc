"""One small interface to TensorRT and TensorRT for RTX; no other file uses them.

Networks are strongly typed: the precision comes from the ONNX file, because TensorRT 11 has no
precision flags. Features of some versions only are looked up by name, not by version number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.errors import (
    BackendUnavailableError,
    ConfigError,
    EngineMismatchError,
    InferenceError,
)
from p2d_node.vision_encoder.machine import import_runtime

Progress = Callable[[str, int, int], None]
"""Called with the name of the phase, the number of steps done and the number of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        compute_capabilities: GPU generations for an ahead-of-time build (TensorRT for RTX only);
            empty: the GPU of this machine.
        workspace_bytes: Largest scratch memory of a tactic; 0: the runtime's default.
        optimization_level: 0 (fast build) to 5 (fast engine).
        timing_cache: Measurements of an earlier build; empty: none.
    """

    compute_capabilities: Sequence[str] = ()
    workspace_bytes: int = 0
    optimization_level: int = 3
    timing_cache: bytes = b''


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """The result of a build.

    Attributes:
        plan: The serialised engine.
        timing_cache: Measurements of this build, for the next one; empty: the runtime has none.
    """

    plan: memoryview
    timing_cache: bytes


class TensorrtApi:
    """One of the two runtimes.

    Attributes:
        backend: `tensorrt` or `tensorrt_rtx`.
        version: Version of the library.
        messages: The last messages of the library, warnings and errors.
    """

    def __init__(self, backend: str) -> None:
        """Import `tensorrt` or `tensorrt_rtx`.

        Raises:
            BackendUnavailableError: The library is not installed or does not load.
        """
        self.backend = backend
        self.trt: Any = import_runtime(backend)
        self.version = str(self.trt.__version__)
        self.messages: list[str] = []
        self.logger = _make_logger(self.trt, self.messages)

    def build(self, onnx: Path, options: BuildOptions, progress: Progress) -> BuiltPlan:
        """Build a plan.

        Args:
            onnx: An ONNX file; its external data is in the same folder.
            options: Options of the build.
            progress: Called for each step of the build.

        Raises:
            BackendUnavailableError: A GPU is needed and there is none.
            ConfigError: This version does not build for a requested compute capability.
            EngineMismatchError: The parser or the builder refuses the model.
        """
        trt = self.trt
        builder = self._start(trt.Builder)
        network = builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(onnx)):
            reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise EngineMismatchError(self.failure(f'{onnx} is not accepted: {reasons[:2]}'))
        config = builder.create_builder_config()
        self._configure(config, options, progress)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineMismatchError(self.failure(f'{onnx} could not be built'))
        cache = bytes(config.get_timing_cache().serialize()) if _measures_tactics(trt) else b''
        return BuiltPlan(memoryview(plan), cache)

    def _configure(self, config: Any, options: BuildOptions, progress: Progress) -> None:
        trt = self.trt
        config.builder_optimization_level = options.optimization_level
        if options.workspace_bytes:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.compute_capabilities:
            self._set_compute_capabilities(config, options.compute_capabilities)
        if hasattr(config, 'progress_monitor'):
            config.progress_monitor = _make_monitor(trt, progress)
        if _measures_tactics(trt):
            cache = config.create_timing_cache(options.timing_cache)
            config.set_timing_cache(cache, ignore_mismatch=False)

    def _set_compute_capabilities(self, config: Any, capabilities: Sequence[str]) -> None:
        if not hasattr(config, 'num_compute_capabilities'):
            raise BackendUnavailableError(
                f'backend: {self.backend} {self.version} builds only for the GPU of this machine; '
                'leave compute_capability empty, or use backend tensorrt_rtx'
            )
        config.num_compute_capabilities = len(capabilities)
        for index, member in enumerate(self.find_compute_capabilities(capabilities)):
            config.set_compute_capability(member, index)

    def find_compute_capabilities(self, capabilities: Sequence[str]) -> list[Any]:
        """Return the runtime's constants for compute capabilities such as `8.6`.

        Raises:
            ConfigError: This version does not build for one of them.
        """
        members = self.trt.ComputeCapability.__members__
        numbers = sorted(int(name[2:]) for name in members if name.startswith('SM'))
        known = {f'{n // 10}.{n % 10}': members[f'SM{n}'] for n in numbers}
        for capability in capabilities:
            if capability not in known:
                raise ConfigError(
                    f'compute_capability: got {capability!r}, allowed with {self.backend} '
                    f'{self.version}: {", ".join(known)}'
                )
        return [known[capability] for capability in capabilities]

    def load(self, plan: bytes) -> LoadedEngine:
        """Deserialise a plan, which runs native code: it must have passed all checks.

        Raises:
            EngineMismatchError: The runtime refuses the plan.
        """
        runtime = self._start(self.trt.Runtime)
        runtime.engine_host_code_allowed = False
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineMismatchError(self.failure('the plan is refused'))
        return LoadedEngine(self, runtime, engine)

    def _start(self, factory: Any) -> Any:
        """Create a builder or a runtime; without a driver the bindings raise TypeError."""
        try:
            return factory(self.logger)
        except TypeError as err:
            raise BackendUnavailableError(self.failure(f'{factory.__name__} not created')) from err

    def failure(self, what: str) -> str:
        """Return an error message with the last messages of the library."""
        reasons = '; '.join(self.messages[-3:]) or 'no reason given'
        return f'{self.backend} {self.version}: {what}: {reasons}'


class LoadedEngine:
    """A deserialised engine with one execution context.

    Attributes:
        owns_graph: Whether the runtime captures CUDA graphs itself.
    """

    def __init__(self, api: TensorrtApi, runtime: Any, engine: Any) -> None:
        """Create the execution context."""
        self._api = api
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self.owns_graph = False
        self._context = self._create_context()
        if self._context is None:
            raise EngineMismatchError(api.failure('no execution context'))

    def _create_context(self) -> Any:
        trt, engine = self._api.trt, self._engine
        if not hasattr(trt, 'CudaGraphStrategy') or not hasattr(engine, 'create_runtime_config'):
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        if hasattr(config, 'cuda_graph_strategy'):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.owns_graph = True
        return engine.create_execution_context(config)

    def tensors(self) -> dict[str, tuple[bool, tuple[int, ...], str]]:
        """Return name to (is an input, shape, element type such as `UINT8`) of every tensor."""
        trt, engine = self._api.trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: (
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_dtype(name).name,
            )
            for name in names
        }

    def set_address(self, name: str, address: int) -> None:
        """Bind a tensor to a fixed address in device memory.

        Raises:
            InferenceError: The runtime refuses the address.
        """
        if not self._context.set_tensor_address(name, address):
            raise InferenceError(self._api.failure(f'tensor {name} cannot be bound'))

    def enqueue(self, stream: int) -> None:
        """Start one run on a CUDA stream, without waiting for it.

        Raises:
            InferenceError: The run did not start.
        """
        if not self._context.execute_async_v3(stream):
            raise InferenceError(self._api.failure('the engine did not run'))


def _make_logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of the runtime just imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                messages.append(' '.join(message.split()))
                del messages[:-20]

    return Logger()


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._num_steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self._num_steps[name] = num_steps
            progress(name, 0, num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress(name, step + 1, self._num_steps[name])
            return True

        def phase_finish(self, name: str) -> None:
            num_steps = self._num_steps.pop(name)
            progress(name, num_steps, num_steps)

    return Monitor()


def _measures_tactics(trt: Any) -> bool:
    """Return whether builds measure kernels; TensorRT for RTX compiles them on the target."""
    return not hasattr(trt, 'IRuntimeCache')
