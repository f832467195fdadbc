"""The ground truth of a sweep comes in; questions with answers, as DriveLM asks them, go out.

Every kind of question first draws an answer and then something that has it, so that no answer is
much more frequent than the others and none can be guessed from the words of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from p2d_sim.drawing import SIGNAL_ID
from p2d_sim.ground_truth import in_path, Plan, Sighting, Truth, ViewTruth
from p2d_sim.world import COLOURS, CONDITIONS, KINDS, VEHICLES

PLURALS = {
    'car': 'cars', 'truck': 'trucks', 'bus': 'buses', 'cyclist': 'cyclists',
    'pedestrian': 'pedestrians', 'cone': 'cones', 'barrier': 'barriers',
}  # fmt: skip
NUMBERS = ('zero', 'one', 'two', 'three')
LETTERS = ('A', 'B', 'C', 'D')
VIEW_NAMES = ('front', 'front left', 'front right', 'back', 'back left', 'back right')
ACTIONS = ('keep speed', 'slow down', 'brake')
BEHAVIOURS = {
    'keep speed': 'the ego vehicle goes straight at constant speed',
    'slow down': 'the ego vehicle goes straight and slows down',
    'brake': 'the ego vehicle brakes to a stop',
}
MANEUVERS = ('keep speed', 'change to the left lane', 'change to the right lane', 'none of these')
NEAR_M, FAR_M = 9.0, 13.0
SIDES = ('left', 'middle', 'right')
SIDE_EDGES = (0.38, 0.42, 0.58, 0.62)
"""Left ends at the first, the middle lies between the next two, right begins at the last."""

DriveLmGroup = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one sweep.

    Attributes:
        kind: Name of its generator, with `choice ` before it for multiple choice.
        group: `perception`, `prediction`, `planning` or `behavior`.
        tag: How DriveLM scores it: 0 exact match, 1 judged, 2 language.
        text: The question.
        answer: The answer.
        content: What the letter of a multiple choice answer stands for; else empty.
        options: What the answer is drawn from; empty where it is free text.
        cameras: Indices of the views that matter.
        targets: (view, id) of what must be looked at; empty where it is the views as a whole.
    """

    kind: str
    group: DriveLmGroup
    tag: int
    text: str
    answer: str
    content: str = ''
    options: tuple[str, ...] = ()
    cameras: tuple[int, ...]
    targets: tuple[tuple[int, int], ...] = ()


class _Sweep:
    """A truth with what the generators look up again and again."""

    def __init__(self, truth: Truth, rng: np.random.Generator) -> None:
        self.truth = truth
        self.rng = rng
        self.single = [
            (view, sighting)
            for view, seen in enumerate(truth.views)
            for sighting in seen.sightings
            if sighting.clear and _count(seen, sighting.actor.kind) == 1
        ]

    def pick(self, items: Sequence[object]) -> int:
        return int(self.rng.integers(len(items)))

    def by_answer(
        self, items: Sequence[tuple[int, Sighting]], answer_of: Callable[[Sighting], str | None]
    ) -> tuple[int, Sighting, str] | None:
        """Draw an answer evenly from those there are, then one of the items that have it."""
        groups: dict[str, list[tuple[int, Sighting]]] = {}
        for view, sighting in items:
            answer = answer_of(sighting)
            if answer is not None:
                groups.setdefault(answer, []).append((view, sighting))
        if not groups:
            return None
        answer = list(groups)[self.pick(list(groups))]
        view, sighting = groups[answer][self.pick(groups[answer])]
        return view, sighting, answer


def _count(view: ViewTruth, kind: str) -> int:
    return sum(sighting.actor.kind == kind for sighting in view.sightings)


def _target(view: int, sighting: Sighting) -> tuple[tuple[int, int], ...]:
    return ((view, sighting.actor.index + 1),)


def _ask_exist(sweep: _Sweep) -> Question | None:
    view = int(sweep.rng.integers(6))
    seen = sweep.truth.views[view]
    present = [k for k in KINDS if any(s.clear and s.actor.kind == k for s in seen.sightings)]
    absent = [k for k in KINDS if _count(seen, k) == 0]
    yes = bool(sweep.rng.random() < 0.6)
    kinds = present if yes else absent
    if not kinds:
        return None
    kind = kinds[sweep.pick(kinds)]
    ids = [s.actor.index + 1 for s in seen.sightings if s.actor.kind == kind]
    return Question(
        kind='exist',
        group='perception',
        tag=0,
        text=f'Is there a {kind} in the {VIEW_NAMES[view]} view?',
        answer='yes' if yes else 'no',
        cameras=(view,),
        targets=tuple((view, number) for number in ids),
    )


def _ask_count(sweep: _Sweep) -> Question | None:
    """Counts of all actors of one kind in one view, zero to three."""
    cases: dict[int, list[tuple[int, str, list[int]]]] = {}
    for view, seen in enumerate(sweep.truth.views):
        for kind in KINDS:
            found = [s for s in seen.sightings if s.actor.kind == kind]
            if len(found) < len(NUMBERS) and all(s.clear for s in found):
                ids = [s.actor.index + 1 for s in found]
                cases.setdefault(len(found), []).append((view, kind, ids))
    weights = np.array([(0.25, 0.30, 1.0, 1.0)[number] for number in cases])
    number = list(cases)[int(sweep.rng.choice(len(cases), p=weights / weights.sum()))]
    view, kind, ids = cases[number][sweep.pick(cases[number])]
    return Question(
        kind='count',
        group='perception',
        tag=0,
        text=f'How many {PLURALS[kind]} are in the {VIEW_NAMES[view]} view?',
        answer=NUMBERS[number],
        options=NUMBERS,
        cameras=(view,),
        targets=tuple((view, i) for i in ids),
    )


def _ask_colour(sweep: _Sweep) -> Question | None:
    vehicles = [item for item in sweep.single if item[1].actor.kind in VEHICLES]
    found = sweep.by_answer(vehicles, lambda s: s.actor.colour)
    if found is None:
        return None
    view, sighting, answer = found
    return Question(
        kind='colour',
        group='perception',
        tag=2,
        text=f'What is the color of the {sighting.actor.kind} in the {VIEW_NAMES[view]} view?',
        answer=answer,
        options=tuple(COLOURS),
        cameras=(view,),
        targets=_target(view, sighting),
    )


def _ask_category(sweep: _Sweep) -> Question | None:
    """The closest object of a view, where it is clearly the closest."""
    closest = []
    for view, seen in enumerate(sweep.truth.views):
        ranked = sorted(seen.sightings, key=lambda s: s.actor.distance_m)
        apart = len(ranked) == 1 or (
            len(ranked) > 1 and ranked[1].actor.distance_m > 1.4 * ranked[0].actor.distance_m
        )
        if apart and ranked[0].clear:
            closest.append((view, ranked[0]))
    found = sweep.by_answer(closest, lambda s: s.actor.kind)
    if found is None:
        return None
    view, sighting, answer = found
    return Question(
        kind='category',
        group='perception',
        tag=0,
        text=f'What is the closest object in the {VIEW_NAMES[view]} view?',
        answer=answer,
        options=KINDS,
        cameras=(view,),
        targets=_target(view, sighting),
    )


def _ask_which_view(sweep: _Sweep) -> Question | None:
    """The one view that shows a kind."""
    cases = []
    for kind in KINDS:
        seen = [
            (view, s)
            for view, truth in enumerate(sweep.truth.views)
            for s in truth.sightings
            if s.actor.kind == kind
        ]
        if len(seen) == 1 and seen[0][1].clear:
            cases.append(seen[0])
    if not cases:
        return None
    view, sighting = cases[sweep.pick(cases)]
    return Question(
        kind='which view',
        group='perception',
        tag=0,
        text=f'Which view shows a {sighting.actor.kind}?',
        answer=VIEW_NAMES[view],
        options=VIEW_NAMES,
        cameras=tuple(range(6)),
        targets=_target(view, sighting),
    )


def _side_of(sighting: Sighting) -> str | None:
    x = sighting.centre[0]
    if x < SIDE_EDGES[0]:
        return SIDES[0]
    if SIDE_EDGES[1] < x < SIDE_EDGES[2]:
        return SIDES[1]
    return SIDES[2] if x > SIDE_EDGES[3] else None


def _ask_where(sweep: _Sweep) -> Question | None:
    found = sweep.by_answer(sweep.single, _side_of)
    if found is None:
        return None
    view, sighting, answer = found
    kind = sighting.actor.kind
    return Question(
        kind='where',
        group='perception',
        tag=0,
        text=f'Which part of the {VIEW_NAMES[view]} view shows the {kind}?',
        answer=answer,
        options=SIDES,
        cameras=(view,),
        targets=_target(view, sighting),
    )


def _range_of(sighting: Sighting) -> str | None:
    distance = sighting.actor.distance_m
    if distance < NEAR_M:
        return 'near'
    return 'far' if distance > FAR_M else None


def _ask_distance(sweep: _Sweep) -> Question | None:
    found = sweep.by_answer(sweep.single, _range_of)
    if found is None:
        return None
    view, sighting, answer = found
    kind = sighting.actor.kind
    return Question(
        kind='distance',
        group='perception',
        tag=0,
        text=f'Is the {kind} in the {VIEW_NAMES[view]} view near or far?',
        answer=answer,
        cameras=(view,),
        targets=_target(view, sighting),
    )


def _ask_conditions(sweep: _Sweep) -> Question | None:
    return Question(
        kind='conditions',
        group='perception',
        tag=0,
        text='What are the weather and light conditions?',
        answer=sweep.truth.snapshot.scene.conditions,
        options=CONDITIONS,
        cameras=tuple(range(6)),
    )


def _ask_light(sweep: _Sweep) -> Question | None:
    front = sweep.truth.views[0]
    if front.signal_hint and not front.signal_clear:
        return None
    state = sweep.truth.snapshot.signal_state if front.signal_clear else 'none'
    keep = {'none': 0.4, 'green': 0.42}.get(state, 1.0)
    if sweep.rng.random() > keep:
        return None
    return Question(
        kind='light',
        group='perception',
        tag=0,
        text='What is the state of the traffic light in the front view?',
        answer=state,
        options=('red', 'yellow', 'green', 'none'),
        cameras=(0,),
        targets=((0, SIGNAL_ID),) if front.signal_clear else (),
    )


def _ask_status(sweep: _Sweep) -> Question | None:
    """Statuses that the kind leaves open: of vehicles and pedestrians."""
    vehicles = sweep.rng.random() < 0.62
    kinds = VEHICLES if vehicles else ('pedestrian',)
    items = [item for item in sweep.single if item[1].actor.kind in kinds]
    found = sweep.by_answer(items, _status_of)
    if found is None:
        return None
    view, sighting, answer = found
    if answer == 'parked' and sweep.rng.random() < 0.55:
        return None
    return Question(
        kind='status',
        group='prediction',
        tag=0,
        text=f'What is the moving status of the {sighting.actor.kind} '
        f'in the {VIEW_NAMES[view]} view?',
        answer=answer,
        options=('moving', 'braking', 'parked') if vehicles else ('walking', 'standing'),
        cameras=(view,),
        targets=_target(view, sighting),
    )


def _status_of(sighting: Sighting) -> str | None:
    """Tell the status where it shows: brake lamps only from behind."""
    actor = sighting.actor
    if actor.status in ('braking', 'moving') and not _tail_seen(sighting):
        return None
    return actor.status


def _tail_seen(sighting: Sighting) -> bool:
    actor = sighting.actor
    ahead = actor.x_m > 4.0
    return ahead == (abs(actor.yaw) < 1.0) and abs(actor.x_m) > 0.6 * abs(actor.y_m)


def _ask_path(sweep: _Sweep) -> Question | None:
    ahead = [(view, s) for view, s in sweep.single if view == 0]
    words = {True: 'yes', False: 'no', None: None}
    found = sweep.by_answer(ahead, lambda s: words[in_path(s.actor)])
    if found is None:
        return None
    view, sighting, answer = found
    kind = sighting.actor.kind
    return Question(
        kind='path',
        group='prediction',
        tag=0,
        text=f'Will the {kind} in the front view be in the path of the ego vehicle?',
        answer=answer,
        cameras=(view,),
        targets=_target(view, sighting),
    )


def _plan_targets(truth: Truth) -> tuple[tuple[int, int], ...]:
    if truth.plan is None:
        return ()
    if truth.plan.cause is not None:
        return ((0, truth.plan.cause.index + 1),)
    return ((0, SIGNAL_ID),) if 'light' in truth.plan.reason else ()


def _planning(sweep: _Sweep, kind: str, tag: int, text: str, answer: str) -> Question:
    return Question(
        kind=kind,
        group='behavior' if kind == 'behaviour' else 'planning',
        tag=tag,
        text=text,
        answer=answer,
        cameras=(0,),
        targets=_plan_targets(sweep.truth),
    )


def _visible_plan(sweep: _Sweep) -> Plan | None:
    """Return the plan if what it is about can be seen."""
    plan, front = sweep.truth.plan, sweep.truth.views[0]
    if plan is None:
        return None
    if plan.cause is None:
        return plan if front.signal_clear or 'light' not in plan.reason else None
    number = plan.cause.index
    seen = any(s.actor.index == number and s.clear for s in front.sightings)
    return plan if seen else None


def _ask_action(sweep: _Sweep) -> Question | None:
    plan = _visible_plan(sweep)
    if plan is None:
        return None
    text = 'What should the ego vehicle do next?'
    question = _planning(sweep, 'action', 0, text, plan.action)
    return replace(question, options=ACTIONS)


def _ask_why(sweep: _Sweep) -> Question | None:
    plan = _visible_plan(sweep)
    if plan is None:
        return None
    text = 'What should the ego vehicle do next, and why?'
    return _planning(sweep, 'why', 1, text, f'{plan.action} because {plan.reason}')


def _ask_important(sweep: _Sweep) -> Question | None:
    plan = _visible_plan(sweep)
    if plan is None:
        return None
    answer = 'none ahead'
    if plan.cause is not None:
        colour = f'{plan.cause.colour} ' if plan.cause.kind in VEHICLES else ''
        answer = f'a {colour}{plan.cause.kind} ahead'
    elif 'light' in plan.reason:
        answer = f'a {sweep.truth.snapshot.signal_state} traffic light ahead'
    text = 'What are the important objects in the current scene?'
    question = _planning(sweep, 'important', 2, text, answer)
    return replace(question, group='perception')


def _ask_behaviour(sweep: _Sweep) -> Question | None:
    plan = _visible_plan(sweep)
    if plan is None:
        return None
    answer = BEHAVIOURS[plan.action]
    text = 'Predict the behavior of the ego vehicle.'
    question = _planning(sweep, 'behaviour', 2, text, answer)
    return replace(question, options=tuple(BEHAVIOURS.values()))


LANE_VIEWS = {'left': (0, 1, 3, 4), 'right': (0, 2, 3, 5)}


def _lane_targets(truth: Truth, side: str) -> tuple[tuple[int, int], ...]:
    sign = 1.0 if side == 'left' else -1.0
    return tuple(
        (view, s.actor.index + 1)
        for view, seen in enumerate(truth.views)
        for s in seen.sightings
        if 1.9 < sign * s.actor.y_m < 5.1 and abs(s.actor.x_m) < 22.0
    )


def _ask_lane(sweep: _Sweep) -> Question | None:
    side = ('left', 'right')[int(sweep.rng.integers(2))]
    taken = sweep.truth.lane_taken[side]
    targets = _lane_targets(sweep.truth, side)
    if taken is None or (taken and not targets):
        return None
    if taken and sweep.rng.random() < 0.72:
        return None
    return Question(
        kind='lane change',
        group='planning',
        tag=0,
        text=f'Is it safe to change to the {side} lane?',
        answer='no' if taken else 'yes',
        cameras=LANE_VIEWS[side],
        targets=targets,
    )


def _ask_danger(sweep: _Sweep) -> Question | None:
    """The one dangerous manoeuvre, where there is only one or none."""
    truth = sweep.truth
    plan = _visible_plan(sweep)
    if plan is None or None in truth.lane_taken.values():
        return None
    dangers = [plan.action == 'brake', truth.lane_taken['left'], truth.lane_taken['right']]
    if sum(map(bool, dangers)) > 1:
        return None
    number = dangers.index(True) if any(dangers) else 3
    targets = (
        _plan_targets(truth) if number in (0, 3) else _lane_targets(truth, SIDES[2 * number - 2])
    )
    return Question(
        kind='danger',
        group='planning',
        tag=0,
        text='Which action is dangerous now?',
        answer=MANEUVERS[number],
        options=MANEUVERS,
        cameras=tuple(range(6)),
        targets=targets,
    )


def _offer_choices(question: Question, rng: np.random.Generator) -> Question:
    """Turn a question into multiple choice; the right letter is drawn evenly."""
    wrong = [option for option in question.options if option != question.answer]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))[: len(LETTERS) - 1]]
    place = int(rng.integers(len(wrong) + 1))
    options = [*wrong[:place], question.answer, *wrong[place:]]
    listed = ' '.join(f'{letter}. {text}' for letter, text in zip(LETTERS, options, strict=False))
    return replace(
        question,
        kind=f'choice {question.kind}',
        tag=0,
        text=f'{question.text} Select the correct answer: {listed}',
        answer=LETTERS[place],
        content=question.answer,
    )


GENERATORS: dict[str, Callable[[_Sweep], Question | None]] = {
    'exist': _ask_exist,
    'count': _ask_count,
    'colour': _ask_colour,
    'category': _ask_category,
    'which view': _ask_which_view,
    'where': _ask_where,
    'distance': _ask_distance,
    'conditions': _ask_conditions,
    'light': _ask_light,
    'status': _ask_status,
    'path': _ask_path,
    'action': _ask_action,
    'why': _ask_why,
    'important': _ask_important,
    'behaviour': _ask_behaviour,
    'lane change': _ask_lane,
    'danger': _ask_danger,
}

CHOICE_KINDS = ('colour', 'category', 'status', 'which view', 'light', 'count', 'danger')
"""Kinds that are also asked as multiple choice; the first six have four options or more."""

TRIES = {
    'exist': 6, 'count': 3, 'colour': 4, 'category': 4, 'which view': 3, 'where': 4,
    'distance': 4, 'conditions': 1, 'light': 1, 'status': 4, 'path': 2, 'action': 1, 'why': 1,
    'important': 1, 'behaviour': 1, 'lane change': 3, 'danger': 0,
}  # fmt: skip
"""How often each kind is tried per sweep."""

CHOICE_TRIES = {
    'colour': 3, 'category': 3, 'status': 2, 'which view': 2, 'light': 1, 'count': 1, 'danger': 1,
}  # fmt: skip


def ask_all(truth: Truth, rng: np.random.Generator) -> list[Question]:
    """Return questions of all kinds about one sweep, none twice, in mixed order."""
    sweep = _Sweep(truth, rng)
    questions: dict[str, Question] = {}
    for kind, tries in TRIES.items():
        for _ in range(tries):
            question = GENERATORS[kind](sweep)
            if question is not None:
                questions.setdefault(question.text, question)
    for kind, tries in CHOICE_TRIES.items():
        for _ in range(tries):
            question = GENERATORS[kind](sweep)
            if question is not None:
                choice = _offer_choices(question, rng)
                questions.setdefault(f'choice {question.text}', choice)
    mixed = list(questions.values())
    return [mixed[i] for i in rng.permutation(len(mixed))]
