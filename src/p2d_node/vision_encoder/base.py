"""The interface of the vision encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

PIXEL_VALUES, FRAMES = 'pixel_values', 'frames'


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """The input of an encoder.

    Attributes:
        kind: `pixel_values`: float32 [views, 3, height, width], from `preprocessing`; `frames`:
            uint8 BGR [views, height, width, 3], as the cameras send them.
        height: Height of `frames`, pixels; 0 for `pixel_values`, whose size is the checkpoint's.
        width: Width of `frames`, pixels; 0 for `pixel_values`.
    """

    kind: str = PIXEL_VALUES
    height: int = 0
    width: int = 0


class VisionEncoder(Protocol):
    """Computes visual tokens.

    Attributes:
        identity: The backend and the engine or the weights, for messages and diagnostics.
        input_spec: The input of `encode`.
    """

    identity: str
    input_spec: EncoderInput

    def encode(self, frames: Tensor) -> Tensor:
        """Encode the views of one sweep.

        Args:
            frames: The frames or pixel_values that `input_spec` describes, on the device of the
                encoder.

        Returns:
            visual_tokens [views, tokens, hidden] in the dtype and on the device of the language
            model; the next call may overwrite them.

        Raises:
            InferenceError: The runtime failed.
        """
        ...
