"""Compares the tokens of an engine with torch's for the same inputs, and records the result.

torch's tokens are computed here, from a checkpoint of this machine and new random pictures.
Nothing that comes with an engine takes part in its proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
import secrets

from p2d_node.checkpoints.checkpoint import Checkpoint
from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.engine_build.reference import compute_reference, Reference
from p2d_node.errors import EngineMismatchError
from p2d_node.language_model.families.registry import hash_vision_part
from p2d_node.preprocessing import ImageProcessing
from p2d_node.token_selection import num_keep_from_retention, select_tokens
from p2d_node.vision_encoder.base import EncoderInput, VisionEncoder
from p2d_node.vision_encoder.engine_checks import check_place, compare_model
from p2d_node.vision_encoder.engine_files import read_engine_files
from p2d_node.vision_encoder.engine_store import EngineRequest, EXPORT
from p2d_node.vision_encoder.factory import ENGINE_ENCODERS
from p2d_node.vision_encoder.machine import Machine, runtime_version, this_machine
from p2d_node.vision_encoder.manifest import EngineManifest, read_manifest
from p2d_node.vision_encoder.verifications import write_record
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Threshold:
    """What a correct engine reaches.

    Attributes:
        min_cosine: Smallest allowed cosine of a token.
        max_relative_difference: Largest allowed difference, relative to the largest value.
        min_standardised_cosine: As `Verification.standardised_cosine`.
    """

    min_cosine: float
    max_relative_difference: float
    min_standardised_cosine: float


THRESHOLDS: Mapping[str, Threshold] = {
    'fp32': Threshold(0.99999, 0.005, 0.999),
    'fp16': Threshold(0.999, 0.02, 0.99),
    'bf16': Threshold(0.99, 0.1, 0.95),
}
"""Per precision. Correct exports had differences of 1e-6 (fp32) and 6e-4 (fp16), and of 1e-3 where
the resize in the engine rounds one pixel to another level, and standardised cosines of 0.999998.
Hardware adds the errors of reordered sums and fused attention. Wrong engines are far outside:
faults of fused attention were reported with cosines of 0.65."""

ROUNDING = 2.0**-8
"""Of a value in bf16. What varies less of a feature, relative to its mean, is not compared."""

SMALLEST = torch.finfo(torch.float32).tiny
"""In place of 0, by which nothing can be divided."""

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
        standardised_cosine: Mean, over the tokens, of the cosine of their features less their
            mean and divided by their deviation: a few features of large values hide no others.
        kept_in_common: Share of the tokens kept at a retention ratio of 0.1 that are the same.
    """

    passed: bool
    finite: bool
    min_cosine: float
    max_difference: float
    max_relative_difference: float
    standardised_cosine: float
    kept_in_common: float

    @property
    def summary(self) -> str:
        """The result in one line."""
        if not self.finite:
            return 'it computes values that are not finite'
        return (
            f'smallest cosine {self.min_cosine:.6f}, largest difference {self.max_difference:.2g} '
            f'({self.max_relative_difference:.2%} of the largest value), mean cosine '
            f'{self.standardised_cosine:.6f} with all features alike, '
            f'{self.kept_in_common:.0%} of the kept tokens are the same'
        )


def verify_engine(
    engine_dir: Path, folder: Path, checkpoint: Checkpoint, device: torch.device
) -> Verification:
    """Compare an engine with torch on this machine and record the result for this user.

    Args:
        engine_dir: The engine folder.
        folder: The engine.
        checkpoint: The model that it must compute.
        device: The device that runs it.

    Raises:
        BackendUnavailableError: The runtime or the GPU is missing.
        ConfigError: The checkpoint does not load, or the result cannot be written.
        EngineMismatchError: The engine is damaged, of another model or of another runtime.
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
    plan = _plan_of(folder, manifest, checkpoint)
    verification = _run(folder, manifest, plan, manifest.backend, device)
    record_verification(manifest, this_machine(device), verification)
    return verification


def _plan_of(folder: Path, manifest: EngineManifest, checkpoint: Checkpoint) -> ExportPlan:
    """Return the export that the engine claims to be made of, if it is one of `checkpoint`."""
    processing = ImageProcessing.from_folder(checkpoint.folder)
    request = EngineRequest(
        model_name=checkpoint.folder.name,
        model_folder=str(checkpoint.folder),
        vision_sha256=lambda: hash_vision_part(checkpoint),
        processing=processing.to_json(),
        num_views=manifest.num_views,
    )
    for check in compare_model(manifest, request):
        if not check.fits:
            raise EngineMismatchError(
                f'{folder}: {check.what}: the engine has {check.in_engine}, {checkpoint.folder} '
                f'has {check.here}; name the checkpoint of this engine: --model FOLDER'
            )
    return ExportPlan(
        checkpoint=checkpoint,
        processing=processing,
        input_spec=EncoderInput(manifest.input_kind, manifest.height, manifest.width),
        precision=manifest.precision,
        num_views=manifest.num_views,
    )


def require_faithful(
    folder: Path,
    manifest: EngineManifest,
    plan: ExportPlan,
    backend: str,
    device: torch.device,
    *,
    next_step: str,
) -> Verification:
    """Compare the engine or export in an unfinished folder with torch.

    Args:
        folder: The folder of the build.
        manifest: Its manifest.
        plan: What was exported.
        backend: The runtime that runs it.
        device: The device that runs it.
        next_step: What the user can try if the tokens differ.

    Raises:
        EngineMismatchError: The tokens differ by more than is allowed for the precision.
    """
    verification = _run(folder, manifest, plan, backend, device)
    if not verification.passed:
        what = 'export' if manifest.backend == EXPORT else f'{backend} engine'
        raise EngineMismatchError(
            f'{manifest.model_name}: the {what} does not compute what torch does: '
            f'{verification.summary}; it is not kept; try {next_step}'
        )
    return verification


def _run(
    folder: Path,
    manifest: EngineManifest,
    plan: ExportPlan,
    backend: str,
    device: torch.device,
) -> Verification:
    # torch first: its weights are freed before the engine is loaded. New pictures each time, so
    # that no engine can know the expected tokens.
    reference = compute_reference(plan, seed=secrets.randbits(63))
    files = read_engine_files(folder, manifest, backend)
    encoder = ENGINE_ENCODERS[backend](manifest, files, dtype=torch.float32, device=device)
    return verify(reference, encoder, manifest.precision)


def verify(reference: Reference, encoder: VisionEncoder, precision: str) -> Verification:
    """Run `encoder` on reference pictures and compare its tokens with torch's.

    Raises:
        EngineMismatchError: The shapes of the tokens differ.
    """
    actual = encoder.encode(reference.frames).float().cpu()
    expected = reference.visual_tokens
    if actual.shape != expected.shape:
        raise EngineMismatchError(
            f'the engine computes {list(actual.shape)}, torch {list(expected.shape)}'
        )
    return compare_tokens(expected, actual, THRESHOLDS[precision])


def compare_tokens(expected: Tensor, actual: Tensor, threshold: Threshold) -> Verification:
    """Compare tokens of torch and of an engine, both float32 [views, tokens, hidden].

    Args:
        expected: torch's tokens.
        actual: The engine's tokens.
        threshold: What a correct engine reaches.
    """
    finite = bool(torch.isfinite(actual).all())
    if not finite:
        return Verification(
            passed=False,
            finite=False,
            min_cosine=-1.0,
            max_difference=-1.0,
            max_relative_difference=-1.0,
            standardised_cosine=-1.0,
            kept_in_common=0.0,
        )
    pairs = list(zip(expected, actual, strict=True))
    # View by view: in float64 the tokens of all views of a large model need half a gigabyte.
    cosine = min(float(_cosines(a, b).min()) for a, b in pairs)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    relative = difference / max(expected.abs().max().item(), SMALLEST)
    standardised = _standardised_cosine(expected, actual)
    return Verification(
        passed=(
            cosine >= threshold.min_cosine
            and relative <= threshold.max_relative_difference
            and standardised >= threshold.min_standardised_cosine
        ),
        finite=True,
        min_cosine=cosine,
        max_difference=difference,
        max_relative_difference=relative,
        standardised_cosine=standardised,
        kept_in_common=_kept_in_common(expected, actual),
    )


def _cosines(expected: Tensor, actual: Tensor) -> Tensor:
    return torch.cosine_similarity(expected.double(), actual.double(), dim=-1)


def _standardised_cosine(expected: Tensor, actual: Tensor) -> float:
    variance, mean = torch.var_mean(expected, dim=(0, 1), correction=0)
    deviation = (variance + (ROUNDING * mean) ** 2).sqrt().clamp_min(SMALLEST)
    cosines = [
        _cosines((a - mean) / deviation, (b - mean) / deviation).mean()
        for a, b in zip(expected, actual, strict=True)
    ]
    return float(torch.stack(cosines).mean())


def _kept_in_common(expected: Tensor, actual: Tensor) -> float:
    num_keep = [num_keep_from_retention(expected.shape[1], KEPT_SHARE)] * expected.shape[0]
    pairs = zip(select_tokens(expected, num_keep), select_tokens(actual, num_keep), strict=True)
    common = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in pairs)
    return common / sum(num_keep)


def record_verification(
    manifest: EngineManifest, machine: Machine, verification: Verification
) -> None:
    """Record the result for this user and this machine."""
    result = {
        **asdict(verification),
        'summary': verification.summary,
        'verified_at': datetime.now(timezone.utc).isoformat(timespec='seconds'),
    }
    write_record(manifest, machine, result)
