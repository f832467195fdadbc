"""Questions about what road users do: whether they move, and whether they cross the ego path."""

from __future__ import annotations

from p2d_sim.ground_truth import in_path, Sighting
from p2d_sim.questions.question import Question
from p2d_sim.questions.sweep import AskedSweep
from p2d_sim.world import VEHICLES

VEHICLE_SHARE = 0.62
"""Share of the status questions that are about vehicles; the others are about pedestrians."""

PARKED_LEFT_OUT = 0.55
"""Share of the parked vehicles that are not asked about: they are more frequent than others."""


def ask_status(sweep: AskedSweep) -> Question | None:
    """Ask whether a vehicle or a pedestrian moves; the status of other kinds never changes."""
    vehicles = sweep.rng.random() < VEHICLE_SHARE
    kinds = VEHICLES if vehicles else ('pedestrian',)
    question = sweep.ask_about_one(
        [item for item in sweep.unique if item[1].actor.kind in kinds],
        _status_of,
        kind='status',
        group='prediction',
        tag=0,
        text='What is the moving status of the {kind} in the {view} view?',
        options=('moving', 'braking', 'parked') if vehicles else ('walking', 'standing'),
    )
    if question is not None and question.answer == 'parked':
        return None if sweep.rng.random() < PARKED_LEFT_OUT else question
    return question


def _status_of(sighting: Sighting) -> str | None:
    """Return the status if the picture shows it: brake lamps are visible only from behind."""
    actor = sighting.actor
    if actor.status in ('braking', 'moving') and not _tail_is_visible(sighting):
        return None
    return actor.status


def _tail_is_visible(sighting: Sighting) -> bool:
    actor = sighting.actor
    ahead = actor.x_m > 4.0
    return ahead == (abs(actor.yaw) < 1.0) and abs(actor.x_m) > 0.6 * abs(actor.y_m)


def ask_path(sweep: AskedSweep) -> Question | None:
    """Ask whether something in the front view will be in the path of the ego vehicle."""
    words = {True: 'yes', False: 'no', None: None}
    return sweep.ask_about_one(
        [(view, sighting) for view, sighting in sweep.unique if view == 0],
        lambda sighting: words[in_path(sighting.actor)],
        kind='path',
        group='prediction',
        tag=0,
        text='Will the {kind} in the {view} view be in the path of the ego vehicle?',
    )
