"""An engine's tokens beside torch's for the same inputs: what they differ by, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from p2d_node.durable_files import write_json
from p2d_node.errors import EngineMismatchError
from p2d_node.token_selection import num_keep_from_retention, select_tokens
from p2d_node.vision_encoder.base import VisionEncoder
from p2d_node.vision_encoder.engine_buffers import INPUT_NAME, OUTPUT_NAME
from p2d_node.vision_encoder.machine import Machine
from p2d_node.vision_encoder.manifest import EngineManifest, REFERENCE_FILE, VERIFICATION_FILE
from safetensors.torch import load_file
import torch
from torch import Tensor

THRESHOLDS = {'fp32': (0.99999, 1e-4), 'fp16': (0.999, 0.02), 'bf16': (0.99, 0.1)}
"""Per precision the smallest cosine of a token and the largest difference relative to the largest
value. Faithful exports showed differences of 1e-6 (fp32) and 6e-4 (fp16); hardware may reorder
sums and fuse attention on top of that. A wrong engine is far beyond: fused attention gone wrong
was reported with cosines of 0.65."""

KEPT_SHARE = 0.1
"""Retention ratio at which the kept tokens are compared, for the reader's information."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found.

    Attributes:
        passed: Whether the engine may be used here.
        finite: No value is infinite or NaN.
        min_cosine: Smallest cosine between a token of the engine and torch's.
        max_difference: Largest absolute difference of a value.
        max_relative_difference: The same over the largest magnitude in torch's tokens.
        kept_in_common: Share of the tokens kept at 10 % that are the same ones.
    """

    passed: bool
    finite: bool
    min_cosine: float
    max_difference: float
    max_relative_difference: float
    kept_in_common: float

    @property
    def summary(self) -> str:
        """One line for a person."""
        if not self.finite:
            return 'it computes values that are not finite'
        return (
            f'smallest cosine {self.min_cosine:.6f}, largest difference {self.max_difference:.2g} '
            f'({self.max_relative_difference:.2%} of the largest value), '
            f'{self.kept_in_common:.0%} of the kept tokens are the same'
        )


def verify(folder: Path, manifest: EngineManifest, encoder: VisionEncoder) -> Verification:
    """Run `encoder` on the reference inputs of `folder` and compare.

    Raises:
        EngineMismatchError: The reference is not what the manifest says.
    """
    reference = load_file(folder / REFERENCE_FILE)
    expected = reference[OUTPUT_NAME]
    actual = encoder.encode(reference[INPUT_NAME]).float().cpu()
    if actual.shape != expected.shape:
        raise EngineMismatchError(
            f'the engine computes {list(actual.shape)}, its reference has {list(expected.shape)}'
        )
    return compare_tokens(expected, actual, manifest.min_cosine, manifest.max_relative_difference)


def compare_tokens(
    expected: Tensor, actual: Tensor, min_cosine: float, max_relative_difference: float
) -> Verification:
    """Compare two float32 [views, tokens, hidden]."""
    finite = bool(torch.isfinite(actual).all())
    if not finite:
        return Verification(
            passed=False,
            finite=False,
            min_cosine=-1.0,
            max_difference=-1.0,
            max_relative_difference=-1.0,
            kept_in_common=0.0,
        )
    pairs = list(zip(expected, actual, strict=True))
    # View by view: in float64 all tokens of a large model take half a gigabyte.
    cosine = min(float(_cosines(a, b).min()) for a, b in pairs)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    relative = difference / expected.abs().max().item()
    return Verification(
        passed=cosine >= min_cosine and relative <= max_relative_difference,
        finite=True,
        min_cosine=cosine,
        max_difference=difference,
        max_relative_difference=relative,
        kept_in_common=_kept_in_common(expected, actual),
    )


def _cosines(expected: Tensor, actual: Tensor) -> Tensor:
    return torch.cosine_similarity(expected.double(), actual.double(), dim=-1)


def _kept_in_common(expected: Tensor, actual: Tensor) -> float:
    num_keep = [num_keep_from_retention(expected.shape[1], KEPT_SHARE)] * expected.shape[0]
    pairs = zip(select_tokens(expected, num_keep), select_tokens(actual, num_keep), strict=True)
    common = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in pairs)
    return common / sum(num_keep)


def write_verification(
    folder: Path, manifest: EngineManifest, machine: Machine, verification: Verification
) -> None:
    """Record the verdict for this machine beside the engine, in one step."""
    content: dict[str, Any] = {
        **asdict(verification),
        'summary': verification.summary,
        'manifest_sha256': manifest.sha256,
        'machine': machine.fingerprint,
        'gpu_name': machine.gpu_name,
        'driver': machine.driver,
        'runtime_version': manifest.runtime_version,
        'verified_at': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }
    write_json(folder / VERIFICATION_FILE, content)
