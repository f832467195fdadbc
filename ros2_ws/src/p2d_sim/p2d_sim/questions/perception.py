"""Questions about what the cameras show: objects, colours, places, weather and light."""

from __future__ import annotations

import numpy as np

from p2d_sim.drawing import SIGNAL_ID
from p2d_sim.ground_truth import Sighting, ViewTruth
from p2d_sim.questions.question import ALL_VIEWS, Question, VIEW_NAMES
from p2d_sim.questions.sweep import AskedSweep, sightings_of, target_of
from p2d_sim.world import COLOURS, CONDITIONS, KINDS, LIGHTS, VEHICLES

PLURALS = {
    'car': 'cars', 'truck': 'trucks', 'bus': 'buses', 'cyclist': 'cyclists',
    'pedestrian': 'pedestrians', 'cone': 'cones', 'barrier': 'barriers',
}  # fmt: skip
NUMBERS = ('zero', 'one', 'two', 'three')
NUMBER_WEIGHTS = (0.25, 0.30, 1.0, 1.0)
"""How often each number is asked for; zero and one object are far more frequent in the scenes."""

EXIST_YES_SHARE = 0.6
LIGHT_SHARES = {'none': 0.4, 'green': 0.42}
"""Share of the sweeps with this state of the light that are asked about it; all of the others."""

NEAR_M, FAR_M = 9.0, 13.0
"""Objects nearer than the first are near, beyond the second far; between them is ambiguous."""

APART_RATIO = 1.4
"""The closest object is asked for if the next one is farther away by this factor."""

SIDES = ('left', 'middle', 'right')
SIDE_EDGES = (0.38, 0.42, 0.58, 0.62)
"""Parts of the width: left ends at the first, the middle is between the next two, right begins at
the last."""


def ask_exist(sweep: AskedSweep) -> Question | None:
    """Ask whether a view shows a kind of object."""
    view = sweep.choose(ALL_VIEWS)
    seen = sweep.truth.views[view]
    present = [k for k in KINDS if any(s.clear for s in sightings_of(seen, k))]
    absent = [k for k in KINDS if not sightings_of(seen, k)]
    yes = bool(sweep.rng.random() < EXIST_YES_SHARE)
    kinds = present if yes else absent
    if not kinds:
        return None
    kind = sweep.choose(kinds)
    return Question(
        kind='exist',
        group='perception',
        tag=0,
        text=f'Is there a {kind} in the {VIEW_NAMES[view]} view?',
        answer='yes' if yes else 'no',
        cameras=(view,),
        targets=tuple(target_of(view, s) for s in sightings_of(seen, kind)),
    )


def ask_count(sweep: AskedSweep) -> Question | None:
    """Ask for the number of objects of one kind in one view, zero to three."""
    cases: dict[int, list[tuple[int, str, list[Sighting]]]] = {}
    for view, seen in enumerate(sweep.truth.views):
        for kind in KINDS:
            found = sightings_of(seen, kind)
            if len(found) < len(NUMBERS) and all(s.clear for s in found):
                cases.setdefault(len(found), []).append((view, kind, found))
    weights = np.array([NUMBER_WEIGHTS[number] for number in cases])
    number = list(cases)[int(sweep.rng.choice(len(cases), p=weights / weights.sum()))]
    view, kind, found = sweep.choose(cases[number])
    return Question(
        kind='count',
        group='perception',
        tag=0,
        text=f'How many {PLURALS[kind]} are in the {VIEW_NAMES[view]} view?',
        answer=NUMBERS[number],
        options=NUMBERS,
        cameras=(view,),
        targets=tuple(target_of(view, s) for s in found),
    )


def ask_colour(sweep: AskedSweep) -> Question | None:
    """Ask for the colour of a vehicle."""
    return sweep.ask_about_one(
        [item for item in sweep.unique if item[1].actor.kind in VEHICLES],
        lambda sighting: sighting.actor.colour,
        kind='colour',
        group='perception',
        tag=2,
        text='What is the color of the {kind} in the {view} view?',
        options=tuple(COLOURS),
    )


def ask_category(sweep: AskedSweep) -> Question | None:
    """Ask for the closest object of a view."""
    closest = [(view, _closest_of(seen)) for view, seen in enumerate(sweep.truth.views)]
    return sweep.ask_about_one(
        [(view, sighting) for view, sighting in closest if sighting is not None],
        lambda sighting: sighting.actor.kind,
        kind='category',
        group='perception',
        tag=0,
        text='What is the closest object in the {view} view?',
        options=KINDS,
    )


def _closest_of(view: ViewTruth) -> Sighting | None:
    """Return the closest object of a view; None if it is not clearly the closest."""
    ranked = sorted(view.sightings, key=lambda s: s.actor.distance_m)
    if not ranked or not ranked[0].clear:
        return None
    nearest_m = ranked[0].actor.distance_m
    if len(ranked) > 1 and ranked[1].actor.distance_m <= APART_RATIO * nearest_m:
        return None
    return ranked[0]


def ask_which_view(sweep: AskedSweep) -> Question | None:
    """Ask for the only view that shows a kind of object."""
    cases = []
    for kind in KINDS:
        seen = [
            (view, sighting)
            for view, truth in enumerate(sweep.truth.views)
            for sighting in sightings_of(truth, kind)
        ]
        if len(seen) == 1 and seen[0][1].clear:
            cases.append(seen[0])
    if not cases:
        return None
    view, sighting = sweep.choose(cases)
    return Question(
        kind='which view',
        group='perception',
        tag=0,
        text=f'Which view shows a {sighting.actor.kind}?',
        answer=VIEW_NAMES[view],
        options=VIEW_NAMES,
        cameras=ALL_VIEWS,
        targets=(target_of(view, sighting),),
    )


def ask_where(sweep: AskedSweep) -> Question | None:
    """Ask which part of a view shows an object."""
    return sweep.ask_about_one(
        sweep.unique,
        _side_of,
        kind='where',
        group='perception',
        tag=0,
        text='Which part of the {view} view shows the {kind}?',
        options=SIDES,
    )


def _side_of(sighting: Sighting) -> str | None:
    x = sighting.centre[0]
    if x < SIDE_EDGES[0]:
        return SIDES[0]
    if SIDE_EDGES[1] < x < SIDE_EDGES[2]:
        return SIDES[1]
    return SIDES[2] if x > SIDE_EDGES[3] else None


def ask_distance(sweep: AskedSweep) -> Question | None:
    """Ask whether an object is near or far."""
    return sweep.ask_about_one(
        sweep.unique,
        _range_of,
        kind='distance',
        group='perception',
        tag=0,
        text='Is the {kind} in the {view} view near or far?',
    )


def _range_of(sighting: Sighting) -> str | None:
    distance_m = sighting.actor.distance_m
    if distance_m < NEAR_M:
        return 'near'
    return 'far' if distance_m > FAR_M else None


def ask_conditions(sweep: AskedSweep) -> Question | None:
    """Ask for weather and light."""
    return Question(
        kind='conditions',
        group='perception',
        tag=0,
        text='What are the weather and light conditions?',
        answer=sweep.truth.snapshot.scene.conditions,
        options=CONDITIONS,
        cameras=ALL_VIEWS,
    )


def ask_light(sweep: AskedSweep) -> Question | None:
    """Ask for the state of the traffic light; None if the front view shows too little of it."""
    front = sweep.truth.views[0]
    if front.signal_hint and not front.signal_clear:
        return None
    state = sweep.truth.snapshot.signal_state if front.signal_clear else 'none'
    if sweep.rng.random() > LIGHT_SHARES.get(state, 1.0):
        return None
    return Question(
        kind='light',
        group='perception',
        tag=0,
        text='What is the state of the traffic light in the front view?',
        answer=state,
        options=(*LIGHTS, 'none'),
        cameras=(0,),
        targets=((0, SIGNAL_ID),) if front.signal_clear else (),
    )
