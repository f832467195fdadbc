"""Simulated arrivals of six nuScenes cameras, shared by the synchroniser's tests and benchmark."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
import random

from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.units import NS_PER_MS

START_NS = 1_533_280_036_154_844_000


@dataclass(frozen=True)
class Arrival:
    """One frame as a subscriber gets it; `sweep` is the truth that stamps only hint at."""

    arrival_ns: int
    camera: str
    stamp_ns: int
    sweep: tuple[int, int]


def simulate_nuscenes(
    num_sweeps: int,
    *,
    loops: int = 1,
    arrival_jitter_ms: float = 0.0,
    loss: float = 0.0,
    back_left_late_ms: float = 0.0,
    late_stamps: bool = True,
    offsets_ms: dict[str, float] | None = None,
    seed: int = 0,
) -> list[Arrival]:
    """Frames of `num_sweeps` sweeps played `loops` times, in order of arrival.

    Sweeps begin 50 or 100 ms after each other, as in nuScenes (12 Hz in the mean). `late_stamps`
    puts BACK_LEFT's delay into its stamps as well as its arrivals.
    """
    rng = random.Random(seed)
    offsets_ms = offsets_ms or NUSCENES_EXPOSURE_OFFSETS_MS
    gaps_ms = [rng.choices((50, 100), (1, 2))[0] for _ in range(num_sweeps)]
    arrivals = []
    clock_ms = 0.0
    for loop in range(loops):
        sweep_ms = 0.0
        for index, gap_ms in enumerate(gaps_ms):
            for camera, offset_ms in offsets_ms.items():
                late_ms = rng.uniform(0, back_left_late_ms) if camera == 'CAM_BACK_LEFT' else 0.0
                exposure_ms = sweep_ms + offset_ms
                stamp_ms = exposure_ms + (late_ms if late_stamps else 0.0)
                arrival_ms = clock_ms + exposure_ms + late_ms + rng.uniform(0, arrival_jitter_ms)
                if rng.random() < loss:
                    continue
                arrivals.append(
                    Arrival(
                        round(arrival_ms * NS_PER_MS),
                        camera,
                        START_NS + round(stamp_ms * NS_PER_MS),
                        (loop, index),
                    )
                )
            sweep_ms += gap_ms
        clock_ms += sweep_ms
    return sorted(arrivals, key=lambda arrival: arrival.arrival_ns)


def whole_sweeps(arrivals: list[Arrival], deadline_ms: float) -> set[tuple[int, int]]:
    """Return the sweeps whose six frames arrived within the deadline."""
    times = defaultdict(list)
    for arrival in arrivals:
        times[arrival.sweep].append(arrival.arrival_ns)
    return {
        sweep
        for sweep, arrived in times.items()
        if len(arrived) == len(NUSCENES_EXPOSURE_OFFSETS_MS)
        and max(arrived) - min(arrived) < deadline_ms * NS_PER_MS
    }
