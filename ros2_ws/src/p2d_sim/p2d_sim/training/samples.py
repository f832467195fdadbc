"""A seed comes in; a rendered sweep with labels of its patches goes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from p2d_sim.cameras import CAMERAS
from p2d_sim.drawing import render_sweep, SIGNAL_ID, View
from p2d_sim.ground_truth import find_truth, Truth
from p2d_sim.scenes import make_scene
from p2d_sim.traffic import snapshot_at
from p2d_sim.world import COLOURS, CONDITIONS, KINDS, LIGHTS, Snapshot, STATUSES

HELD_OUT_SEED = 1_000_000_000
"""First seed of the held-out scenes; training uses only smaller seeds."""

JOINT_SEED = 100_000_000
"""First seed of the joint stage; the encoder stage starts at 0."""

START_SEED = 300_000_000
"""Added to both if a run starts from a trained model, which has seen the scenes before."""

SUPERSAMPLING = 2
COVERED = 0.18
"""Least part of a patch that an object must cover to own the patch."""

IGNORED = -100
SIGNAL_KIND = len(KINDS) + 1
Picture = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchLabels:
    """Labels of the patches, int64 or float32 [views, patches]; `IGNORED` if undefined.

    Attributes:
        ids: Id of the object, 0: none.
        kind: 0: none, then `KINDS` from 1, then the traffic light.
        colour: Index into `COLOURS`, for vehicles.
        status: Index into `STATUSES`, for actors.
        light: Index into `LIGHTS`, for the traffic light.
        log_distance: Natural logarithm of the distance in metres; NaN if undefined.
        centre: 1 for the patch with the centroid of an object, else 0.
        conditions: Index into `CONDITIONS`, [views].
    """

    ids: IntArray
    kind: IntArray
    colour: IntArray
    status: IntArray
    light: IntArray
    log_distance: npt.NDArray[np.float32]
    centre: IntArray
    conditions: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sweep for training.

    Attributes:
        pixels: RGB uint8 [views, image_px, image_px, 3].
        labels: Labels of the patches.
        truth: Ground truth of the sweep.
    """

    pixels: Picture
    labels: PatchLabels
    truth: Truth


def draw_snapshot(seed: int) -> Snapshot:
    """Return a moment of the scene of `seed`: for two thirds of the seeds its beginning."""
    rng = np.random.default_rng((3, seed))
    time_s = float(rng.uniform(0.0, 1.2)) if rng.random() < 0.33 else 0.0
    return snapshot_at(make_scene(seed), time_s)


def make_sample(seed: int, image_px: int, grid: int, *, augment: bool = True) -> Sample:
    """Render the sweep of `seed` in square images.

    Args:
        seed: Chooses scene, moment and augmentation.
        image_px: Side of the images, pixels.
        grid: Patches along a side.
        augment: Change brightness and contrast, blur, or compress the images at random.
    """
    snapshot = draw_snapshot(seed)
    rng = np.random.default_rng((5, seed))
    metres_per_px = float(rng.choice([0.1, 0.15]))
    side = image_px * SUPERSAMPLING
    cameras = list(CAMERAS.values())
    views = render_sweep(snapshot, cameras, side, side, metres_per_px=metres_per_px)
    ids = [view.ids[::SUPERSAMPLING, ::SUPERSAMPLING] for view in views]
    truth = find_truth(snapshot, cameras, ids)
    squares = [_shrink(view, image_px, rng if augment else None) for view in views]
    return Sample(
        pixels=np.stack(squares),
        labels=label_patches(truth, np.stack(ids), grid),
        truth=truth,
    )


def _shrink(view: View, image_px: int, rng: np.random.Generator | None) -> Picture:
    pixels = view.pixels
    if rng is not None:
        pixels = _augment(pixels, rng)
    return np.asarray(
        cv2.resize(pixels, (image_px, image_px), interpolation=cv2.INTER_AREA), np.uint8
    )


def _augment(pixels: Picture, rng: np.random.Generator) -> Picture:
    gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-14.0, 14.0)
    augmented: Any = cv2.convertScaleAbs(pixels, alpha=gain, beta=max(offset, -10.0))
    dice = rng.random()
    if dice < 0.2:
        augmented = cv2.GaussianBlur(augmented, (0, 0), float(rng.uniform(0.6, 1.3)))
    elif dice < 0.45:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96))]
        augmented = cv2.imdecode(cv2.imencode('.jpg', augmented, quality)[1], cv2.IMREAD_COLOR)
    return np.asarray(augmented, np.uint8)


def label_patches(truth: Truth, ids: Picture, grid: int) -> PatchLabels:
    """Label every patch.

    Args:
        truth: Ground truth of the sweep.
        ids: Id maps, uint8 [views, side, side].
        grid: Patches along a side.
    """
    owner = _owners(ids, grid)
    table, log_distance = _label_table(truth)
    conditions = CONDITIONS.index(truth.snapshot.scene.conditions)
    return PatchLabels(
        ids=owner,
        kind=table[owner, 0],
        colour=table[owner, 1],
        status=table[owner, 2],
        light=table[owner, 3],
        log_distance=log_distance[owner],
        centre=_centres(truth, grid),
        conditions=np.full(ids.shape[0], conditions, np.int64),
    )


def _label_table(truth: Truth) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Return per id kind, colour, status and light, [256, 4], and the log distance, [256]."""
    table = np.full((256, 4), IGNORED, np.int64)
    table[:, 0] = 0
    log_distance = np.full(256, np.nan, np.float32)
    for actor in truth.snapshot.actors:
        colour = list(COLOURS).index(actor.colour) if actor.colour in COLOURS else IGNORED
        kind = KINDS.index(actor.kind) + 1
        table[actor.index + 1] = (kind, colour, STATUSES.index(actor.status), IGNORED)
        log_distance[actor.index + 1] = np.log(actor.distance_m)
    if truth.snapshot.signal_state:
        light = LIGHTS.index(truth.snapshot.signal_state)
        table[SIGNAL_ID] = (SIGNAL_KIND, IGNORED, IGNORED, light)
    return table, log_distance


def _centres(truth: Truth, grid: int) -> IntArray:
    """Return 1 for the patches with the centroid of an object, else 0, [views, patches]."""
    centre = np.zeros((len(truth.views), grid, grid), np.int64)
    for view, seen in enumerate(truth.views):
        for sighting in seen.sightings:
            x, y = sighting.centre
            centre[view, int(y * grid), int(x * grid)] = 1
    return centre.reshape(len(truth.views), -1)


def _owners(ids: Picture, grid: int) -> IntArray:
    """Return the id that owns each patch, int64 [views, grid * grid]."""
    views, side = ids.shape[0], ids.shape[1]
    patch = side // grid
    best = np.full((views, grid, grid), COVERED * patch * patch)
    owner = np.zeros((views, grid, grid), np.int64)
    for number in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)):
        if number == 0:
            continue
        mine = (ids == number).reshape(views, grid, patch, grid, patch).sum(axis=(2, 4))
        better = mine > best
        owner[better], best[better] = number, mine[better]
    return owner.reshape(views, -1)
