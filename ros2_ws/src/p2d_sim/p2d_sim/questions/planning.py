"""Questions about what the ego vehicle should do: action, reason, lane changes, dangers."""

from __future__ import annotations

from typing import Any

from p2d_sim.drawing import SIGNAL_ID
from p2d_sim.ground_truth import Plan, Truth
from p2d_sim.questions.question import ALL_VIEWS, Question
from p2d_sim.questions.sweep import AskedSweep, target_of
from p2d_sim.world import VEHICLES

BEHAVIOURS = {
    'keep speed': 'the ego vehicle goes straight at constant speed',
    'slow down': 'the ego vehicle goes straight and slows down',
    'brake': 'the ego vehicle brakes to a stop',
}
"""Per action the sentence that describes it."""

MANOEUVRES = (
    'keep speed', 'change to the left lane', 'change to the right lane', 'none of these',
)  # fmt: skip
LANE_VIEWS = {'left': (0, 1, 3, 4), 'right': (0, 2, 3, 5)}
TAKEN_LEFT_OUT = 0.72
"""Share of the taken lanes that are not asked about: they are more frequent than free ones."""


def ask_action(sweep: AskedSweep) -> Question | None:
    """Ask what to do next."""
    plan = _visible_plan(sweep.truth)
    if plan is None:
        return None
    return _about_plan(
        sweep.truth,
        kind='action',
        tag=0,
        text='What should the ego vehicle do next?',
        answer=plan.action,
        options=tuple(BEHAVIOURS),
    )


def ask_why(sweep: AskedSweep) -> Question | None:
    """Ask what to do next, and for the reason."""
    plan = _visible_plan(sweep.truth)
    if plan is None:
        return None
    return _about_plan(
        sweep.truth,
        kind='why',
        tag=1,
        text='What should the ego vehicle do next, and why?',
        answer=f'{plan.action} because {plan.reason}',
    )


def ask_important(sweep: AskedSweep) -> Question | None:
    """Ask for the object that decides what to do."""
    plan = _visible_plan(sweep.truth)
    if plan is None:
        return None
    answer = 'none ahead'
    if plan.cause is not None and plan.cause.kind in VEHICLES:
        if plan.distance is None:
            return None
        answer = f'a {plan.cause.colour} {plan.cause.kind} {plan.distance} ahead'
    elif plan.cause is not None:
        answer = f'a {plan.cause.kind} ahead'
    elif 'light' in plan.reason:
        answer = f'a {sweep.truth.snapshot.signal_state} traffic light ahead'
    return _about_plan(
        sweep.truth,
        kind='important',
        group='perception',
        tag=2,
        text='What are the important objects in the current scene?',
        answer=answer,
    )


def ask_behaviour(sweep: AskedSweep) -> Question | None:
    """Ask for what the ego vehicle will do, in a sentence."""
    plan = _visible_plan(sweep.truth)
    if plan is None:
        return None
    return _about_plan(
        sweep.truth,
        kind='behaviour',
        group='behavior',
        tag=2,
        text='Predict the behavior of the ego vehicle.',
        answer=BEHAVIOURS[plan.action],
        options=tuple(BEHAVIOURS.values()),
    )


def _about_plan(truth: Truth, *, group: str = 'planning', **fields: Any) -> Question:
    return Question(group=group, cameras=(0,), targets=_plan_targets(truth), **fields)


def _plan_targets(truth: Truth) -> tuple[tuple[int, int], ...]:
    if truth.plan is None:
        return ()
    if truth.plan.cause is not None:
        return ((0, truth.plan.cause.index + 1),)
    return ((0, SIGNAL_ID),) if 'light' in truth.plan.reason else ()


def _visible_plan(truth: Truth) -> Plan | None:
    """Return the plan if the front view shows its cause clearly."""
    plan, front = truth.plan, truth.views[0]
    if plan is None:
        return None
    if plan.cause is None:
        return plan if front.signal_clear or 'light' not in plan.reason else None
    number = plan.cause.index
    seen = any(s.actor.index == number and s.clear for s in front.sightings)
    return plan if seen else None


def ask_lane(sweep: AskedSweep) -> Question | None:
    """Ask whether a lane change is safe."""
    side = sweep.choose(tuple(LANE_VIEWS))
    taken = sweep.truth.lane_taken[side]
    targets = _lane_targets(sweep.truth, side)
    if taken is None or (taken and not targets):
        return None
    if taken and sweep.rng.random() < TAKEN_LEFT_OUT:
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


def _lane_targets(truth: Truth, side: str) -> tuple[tuple[int, int], ...]:
    sign = 1.0 if side == 'left' else -1.0
    return tuple(
        target_of(view, s)
        for view, seen in enumerate(truth.views)
        for s in seen.sightings
        if 1.9 < sign * s.actor.y_m < 5.1 and abs(s.actor.x_m) < 22.0
    )


def ask_danger(sweep: AskedSweep) -> Question | None:
    """Ask for the dangerous manoeuvre; None if there are several."""
    truth = sweep.truth
    plan = _visible_plan(truth)
    left, right = truth.lane_taken['left'], truth.lane_taken['right']
    if plan is None or left is None or right is None:
        return None
    dangers = [plan.action == 'brake', left, right]
    if sum(dangers) > 1:
        return None
    targets = _plan_targets(truth)
    if left or right:
        targets = _lane_targets(truth, 'left' if left else 'right')
    return Question(
        kind='danger',
        group='planning',
        tag=0,
        text='Which action is dangerous now?',
        answer=MANOEUVRES[dangers.index(True) if any(dangers) else 3],
        options=MANOEUVRES,
        cameras=ALL_VIEWS,
        targets=targets,
    )
