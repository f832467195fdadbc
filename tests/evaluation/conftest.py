"""Keyframes on disk for `p2d evaluate`."""

from __future__ import annotations

from pathlib import Path

import cv2
from p2d_node.records import NUSCENES_CAMERAS
import pytest
from sweeps import picture

NUM_SWEEPS = 2


@pytest.fixture
def image_names(tmp_path: Path) -> list[dict[str, str]]:
    """Two sweeps of six pictures below `samples`, as DriveLM names them."""
    sweeps = []
    for number in range(NUM_SWEEPS):
        names = {}
        for index, camera in enumerate(NUSCENES_CAMERAS):
            name = f'samples/{camera}/a__{camera}__15331516035{number}{index}404.jpg'
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), picture(10 * number + index))
            names[camera] = f'../nuscenes/{name}'
        sweeps.append(names)
    return sweeps
