"""Ground truth and questions come in; JSON in the format of DriveLM v1.1 goes out."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from p2d_sim.cameras import CAMERAS, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.ground_truth import Sighting, Truth
from p2d_sim.questions import Question, VIEW_NAMES
from p2d_sim.world import VEHICLES

GROUPS = ('perception', 'prediction', 'planning', 'behavior')
CATEGORIES = {
    'car': 'Vehicle', 'truck': 'Vehicle', 'bus': 'Vehicle', 'cyclist': 'Vehicle',
    'pedestrian': 'Pedestrian', 'cone': 'Traffic element', 'barrier': 'Traffic element',
}  # fmt: skip


def key_frame(
    truth: Truth, questions: Sequence[Question], image_paths: dict[str, str]
) -> dict[str, Any]:
    """Return one keyframe.

    Args:
        truth: Ground truth of the sweep.
        questions: Questions about the sweep.
        image_paths: Camera to image file, relative to the root of the data set.
    """
    qa: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for question in questions:
        qa[question.group].append(_item(question))
    return {'key_object_infos': key_objects(truth), 'QA': qa, 'image_paths': image_paths}


def _item(question: Question) -> dict[str, Any]:
    """Return one question; the field `cameras` is not in DriveLM."""
    names = list(CAMERAS)
    return {
        'Q': question.text,
        'A': question.answer,
        'C': None,
        'con_up': None,
        'con_down': None,
        'cluster': None,
        'layer': None,
        'tag': [question.tag],
        'cameras': [names[view] for view in question.cameras],
    }


def key_objects(truth: Truth) -> dict[str, Any]:
    """Return the clearly visible objects, each in the view with its largest box."""
    best: dict[int, tuple[float, int, Sighting]] = {}
    for view, seen in enumerate(truth.views):
        for sighting in seen.sightings:
            left, top, right, bottom = sighting.box
            area = (right - left) * (bottom - top)
            index = sighting.actor.index
            if sighting.clear and area > best.get(index, (0.0,))[0]:
                best[index] = (area, view, sighting)
    infos = {}
    for number, index in enumerate(sorted(best), start=1):
        _, view, sighting = best[index]
        x, y = sighting.centre
        at = f'{x * FULL_WIDTH_PX:.1f},{y * FULL_HEIGHT_PX:.1f}'
        infos[f'<c{number},{list(CAMERAS)[view]},{at}>'] = _describe(sighting)
    return infos


def _describe(sighting: Sighting) -> dict[str, Any]:
    actor = sighting.actor
    colour = f'{actor.colour} ' if actor.kind in VEHICLES else ''
    scale = (FULL_WIDTH_PX, FULL_HEIGHT_PX, FULL_WIDTH_PX, FULL_HEIGHT_PX)
    return {
        'Category': CATEGORIES[actor.kind],
        'Status': actor.status.capitalize(),
        'Visual_description': f'{colour}{actor.kind}.'.capitalize(),
        '2d_bbox': [round(a * b, 1) for a, b in zip(sighting.box, scale, strict=True)],
    }


def describe_scene(truth: Truth) -> str:
    """Return a sentence that describes a sweep."""
    counts = [sum(sighting.clear for sighting in seen.sightings) for seen in truth.views]
    busiest = VIEW_NAMES[int(np.argmax(counts))]
    conditions = truth.snapshot.scene.conditions
    return f'A street at {conditions}; most objects are in the {busiest} view.'


def write_drivelm(path: Path, scenes: dict[str, Any]) -> None:
    """Write `{scene token: {scene_description, key_frames}}`."""
    path.write_text(json.dumps(scenes, indent=1) + '\n', encoding='utf-8')
