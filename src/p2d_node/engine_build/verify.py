"""Compares the tokens of an engine with torch's for the same inputs, and records the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from p2d_node.durable_files import write_json
from p2d_node.engine_build.engine_folders import engine_lock
from p2d_node.errors import EngineMismatchError
from p2d_node.token_selection import num_keep_from_retention, select_tokens
from p2d_node.vision_encoder.base import VisionEncoder
from p2d_node.vision_encoder.engine_buffers import INPUT_NAME, OUTPUT_NAME
from p2d_node.vision_encoder.engine_checks import check_artefacts, check_place
from p2d_node.vision_encoder.engine_store import EXPORT
from p2d_node.vision_encoder.factory import ENGINE_ENCODERS
from p2d_node.vision_encoder.machine import Machine, runtime_version, this_machine
from p2d_node.vision_encoder.manifest import (
    EngineManifest,
    read_manifest,
    REFERENCE_FILE,
    VERIFICATION_FILE,
)
from safetensors.torch import load_file
import torch
from torch import Tensor

THRESHOLDS = {'fp32': (0.99999, 1e-4), 'fp16': (0.999, 0.02), 'bf16': (0.99, 0.1)}
"""Precision to the smallest allowed cosine of a token and the largest allowed difference, relative
to the largest value. Correct exports had differences of 1e-6 (fp32) and 6e-4 (fp16); hardware adds
the errors of reordered sums and fused attention. Wrong engines are far outside: faults of fused
attention were reported with cosines of 0.65."""

KEPT_SHARE = 0.1
"""Retention ratio at which the kept tokens are compared; it does not decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of a comparison with torch.

    Attributes:
        passed: Whether the engine may be used here.
        finite: Whether all values are finite.
        min_cosine: Smallest cosine between a token of the engine and torch's.
        max_difference: Largest absolute difference of a value.
        max_relative_difference: `max_difference` divided by the largest magnitude in torch's
            tokens.
        kept_in_common: Share of the tokens kept at a retention ratio of 0.1 that are the same.
    """

    passed: bool
    finite: bool
    min_cosine: float
    max_difference: float
    max_relative_difference: float
    kept_in_common: float

    @property
    def summary(self) -> str:
        """The result in one line."""
        if not self.finite:
            return 'it computes values that are not finite'
        return (
            f'smallest cosine {self.min_cosine:.6f}, largest difference {self.max_difference:.2g} '
            f'({self.max_relative_difference:.2%} of the largest value), '
            f'{self.kept_in_common:.0%} of the kept tokens are the same'
        )


def verify_engine(engine_dir: Path, folder: Path, device: torch.device) -> Verification:
    """Compare an engine with torch on this machine and write the result into its folder.

    Raises:
        BackendUnavailableError: The runtime or the GPU is missing.
        EngineMismatchError: The engine is damaged or was built for another machine.
    """
    check_place(engine_dir, folder)
    manifest = read_manifest(folder)
    if manifest.backend == EXPORT:
        raise EngineMismatchError(
            f'{folder} is an export, which is verified when it is made; name an engine'
        )
    version = runtime_version(manifest.backend)
    if manifest.runtime_version != version:
        raise EngineMismatchError(
            f'{folder} was built with {manifest.backend} {manifest.runtime_version}, here it is '
            f'{version}; build it again with p2d build-engine'
        )
    check_artefacts(folder, manifest)
    verification = _run(folder, manifest, manifest.backend, device)
    with engine_lock(engine_dir):
        write_verification(folder, manifest, this_machine(device), verification)
    return verification


def require_faithful(
    folder: Path, manifest: EngineManifest, backend: str, device: torch.device, *, next_step: str
) -> Verification:
    """Compare the engine or export in an unfinished folder with torch.

    Args:
        folder: The folder of the build.
        manifest: Its manifest.
        backend: The runtime that runs it.
        device: The device that runs it.
        next_step: What the user can try if the tokens differ.

    Raises:
        EngineMismatchError: The tokens differ by more than the manifest allows.
    """
    verification = _run(folder, manifest, backend, device)
    if not verification.passed:
        what = 'export' if manifest.backend == EXPORT else f'{backend} engine'
        raise EngineMismatchError(
            f'{manifest.model_name}: the {what} does not compute what torch does: '
            f'{verification.summary}; it is not kept; try {next_step}'
        )
    return verification


def _run(
    folder: Path, manifest: EngineManifest, backend: str, device: torch.device
) -> Verification:
    encoder = ENGINE_ENCODERS[backend](folder, manifest, dtype=torch.float32, device=device)
    return verify(folder, manifest, encoder)


def verify(folder: Path, manifest: EngineManifest, encoder: VisionEncoder) -> Verification:
    """Run `encoder` on the reference inputs of `folder` and compare its tokens with torch's.

    Raises:
        EngineMismatchError: The shapes of the tokens differ.
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
    """Compare tokens of torch and of an engine, both float32 [views, tokens, hidden].

    Args:
        expected: torch's tokens.
        actual: The engine's tokens.
        min_cosine: Smallest allowed cosine of a token.
        max_relative_difference: Largest allowed difference, relative to the largest value.
    """
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
    # View by view: in float64 the tokens of all views of a large model need half a gigabyte.
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
    """Write the result for this machine into the engine's folder."""
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
