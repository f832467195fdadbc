"""What every vision encoder promises."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class VisionEncoder(Protocol):
    """Computes visual tokens.

    Attributes:
        identity: Backend, and which engine or weights it runs, for messages and diagnostics.
    """

    identity: str

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode the views of one sweep.

        Args:
            pixel_values: float32 [views, 3, height, width] on the encoder's device.

        Returns:
            visual_tokens [views, tokens, hidden] in the language model's dtype and device.
        """
        ...
