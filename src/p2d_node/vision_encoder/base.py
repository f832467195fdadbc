"""What every vision encoder promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

PIXEL_VALUES, FRAMES = 'pixel_values', 'frames'


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """What an encoder takes.

    Attributes:
        kind: `pixel_values`: float32 [views, 3, height, width], as `preprocessing` makes them;
            `frames`: uint8 BGR [views, height, width, 3], as cameras send them.
        height: Of `frames`, pixels; 0 for `pixel_values`, which have the checkpoint's size.
        width: Likewise.
    """

    kind: str = PIXEL_VALUES
    height: int = 0
    width: int = 0


class VisionEncoder(Protocol):
    """Computes visual tokens.

    Attributes:
        identity: Backend, and which engine or weights it runs, for messages and diagnostics.
        takes: What `encode` is given.
    """

    identity: str
    takes: EncoderInput

    def encode(self, frames: Tensor) -> Tensor:
        """Encode the views of one sweep.

        Args:
            frames: As `takes` says, on the encoder's device.

        Returns:
            visual_tokens [views, tokens, hidden] in the language model's dtype and device; the
            next call may overwrite them.

        Raises:
            InferenceError: The runtime failed.
        """
        ...
