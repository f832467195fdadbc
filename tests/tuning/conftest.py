"""Small drawn keyframes with DriveLM questions, for searches with the model that ships."""

from __future__ import annotations

import json
from pathlib import Path

from p2d_sim.nuscenes_folder import FolderOptions, write_nuscenes_folder
import pytest

QUESTIONS_PER_TASK = 3


def draw_keyframes(root: Path, seed: int, scenarios: tuple[str, ...]) -> Path:
    """Draw two keyframes of each scenario, and keep a few questions about each."""
    options = FolderOptions(scenarios=scenarios, seed=seed, duration_s=1.0, height=90, width=160)
    for _ in write_nuscenes_folder(root, options):
        pass
    path = root / 'drivelm.json'
    data = json.loads(path.read_text())
    for scene in data.values():
        for key_frame in scene['key_frames'].values():
            for task, items in key_frame['QA'].items():
                letters = [item for item in items if len(item['A']) == 1]
                others = [item for item in items if len(item['A']) > 1]
                key_frame['QA'][task] = letters[:1] + others[: QUESTIONS_PER_TASK - 1]
    path.write_text(json.dumps(data))
    return root


@pytest.fixture(scope='session')
def searched_folder(tmp_path_factory) -> Path:
    """Four keyframes to search on."""
    root = tmp_path_factory.mktemp('searched') / 'drawn'
    return draw_keyframes(root, 70, ('lead-brakes', 'cut-in'))


@pytest.fixture(scope='session')
def held_out_folder(tmp_path_factory) -> Path:
    """Two other keyframes."""
    root = tmp_path_factory.mktemp('held_out') / 'drawn'
    return draw_keyframes(root, 90, ('pedestrian-crosses',))
