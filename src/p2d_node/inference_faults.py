"""Turns the faults of model libraries into an `InferenceError`, and frees what the sweep held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
import traceback
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from p2d_node.errors import DeviceLostError, InferenceError
from p2d_node.memory_limit import is_out_of_memory
from p2d_node.records import FrameSet
import torch

FAULTS = (RuntimeError, ValueError, IndexError, MemoryError)
"""torch reports out of memory, bad shapes and device faults as these."""


class Releasing(Protocol):
    """Holds memory from sweep to sweep."""

    def release(self) -> None:
        """Free it."""
        ...


S = TypeVar('S', bound=Releasing)
P = ParamSpec('P')
T = TypeVar('T')


def guarded(
    method: Callable[Concatenate[S, FrameSet, P], T],
) -> Callable[Concatenate[S, FrameSet, P], T]:
    """Guard a method that runs the stages of a sweep."""

    @wraps(method)
    def call(owner: S, frame_set: FrameSet, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(owner, frame_set, *args, **kwargs)
        except FAULTS as err:
            raise _to_inference_error(owner, frame_set, err) from err

    return call


def guarded_groups(
    method: Callable[Concatenate[S, FrameSet, P], Iterator[T]],
) -> Callable[Concatenate[S, FrameSet, P], Iterator[T]]:
    """Guard a generator that runs the stages of a sweep."""

    @wraps(method)
    def call(owner: S, frame_set: FrameSet, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            yield from method(owner, frame_set, *args, **kwargs)
        except FAULTS as err:
            raise _to_inference_error(owner, frame_set, err) from err

    return call


def _to_inference_error(owner: Releasing, frame_set: FrameSet, err: Exception) -> InferenceError:
    # The traceback would keep tensors of the sweep alive for as long as anyone keeps the error.
    traceback.clear_frames(err.__traceback__)
    reason = f'sweep {frame_set.stamp_ns}: {type(err).__name__}: {str(err).partition(chr(10))[0]}'
    out_of_memory = isinstance(err, torch.OutOfMemoryError) or is_out_of_memory(err)
    if 'CUDA error' in str(err) and not out_of_memory:
        # Every further call of CUDA fails too, also those that free memory.
        return DeviceLostError(
            f'{reason}; the GPU can no longer be used by this process; start the node again'
        )
    owner.release()
    advice = '; lower retention_ratio, question_batch or max_new_tokens to need less memory'
    return InferenceError(f'{reason}{advice if out_of_memory else ""}')
