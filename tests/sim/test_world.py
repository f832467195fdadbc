"""The world is the same for the same seed, moves as physics does, and is seen as cameras see."""

from __future__ import annotations

import hashlib

import numpy as np
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.records import NUSCENES_CAMERAS
from p2d_sim.cameras import CAMERAS
from p2d_sim.drawing import render_sweep, Renderer, SIGNAL_ID
from p2d_sim.ground_truth import find_plan, find_truth, outline
from p2d_sim.questions import ask_all, LETTERS, VIEW_NAMES
from p2d_sim.scenarios import DURATION_S, EVENT_S, make_scenario, SCENARIOS
from p2d_sim.scenes import HAZARDS, make_scene
from p2d_sim.sweeps import exposures, World
from p2d_sim.traffic import snapshot_at
from p2d_sim.training.samples import draw_snapshot, make_sample
import pytest

ALL = list(CAMERAS.values())
SIDE = 168


def digest(seed: int) -> str:
    snapshot = draw_snapshot(seed)
    views = render_sweep(snapshot, ALL, SIDE, SIDE)
    truth = find_truth(snapshot, ALL, [view.ids for view in views])
    questions = ask_all(truth, np.random.default_rng(seed))
    parts = [view.pixels.tobytes() + view.ids.tobytes() for view in views]
    return hashlib.sha256(b''.join(parts) + repr(questions).encode()).hexdigest()


def test_a_seed_gives_the_same_pictures_and_questions_to_the_byte_another_seed_others() -> None:
    assert digest(5) == digest(5)
    assert digest(5) != digest(6)


def test_training_samples_are_disturbed_the_same_way_every_time() -> None:
    first, again = make_sample(8, SIDE, 14), make_sample(8, SIDE, 14)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    plain = make_sample(8, SIDE, 14, augment=False)
    assert not np.array_equal(first.pixels, plain.pixels)


def test_the_cameras_are_those_of_nuscenes_in_the_order_that_models_are_trained_on() -> None:
    assert tuple(CAMERAS) == NUSCENES_CAMERAS
    assert set(NUSCENES_EXPOSURE_OFFSETS_MS) == set(CAMERAS)
    fields = {name: np.degrees(camera.fov) for name, camera in CAMERAS.items()}
    assert fields.pop('CAM_BACK') == pytest.approx(90.0, abs=1.0)
    assert all(field == pytest.approx(65.0, abs=1.0) for field in fields.values())


@pytest.mark.parametrize('camera', ALL, ids=list(CAMERAS))
def test_a_point_straight_ahead_of_a_camera_lies_on_its_principal_point(camera) -> None:
    ahead = np.array([np.cos(camera.yaw), np.sin(camera.yaw), 0.0])
    point = camera.to_camera(np.array(camera.position_m) + 7.0 * ahead)
    np.testing.assert_allclose(point, [0.0, 0.0, 7.0], atol=1e-12)
    left = np.array([-np.sin(camera.yaw), np.cos(camera.yaw), 0.0])
    aside = camera.to_camera(np.array(camera.position_m) + 7.0 * ahead + 2.0 * left)
    pixel = camera.intrinsics(900, 1600) @ (aside / aside[2])
    assert pixel[0] == pytest.approx(800.0 - camera.focal_px * 2.0 / 7.0)


def test_squeezed_intrinsics_put_a_point_at_the_same_part_of_the_picture() -> None:
    camera = CAMERAS['CAM_FRONT_LEFT']
    point = np.array([0.4, -0.3, 1.0])
    full = camera.intrinsics(900, 1600) @ point
    squeezed = camera.intrinsics(SIDE, SIDE) @ point
    np.testing.assert_allclose(full[:2] / (1600, 900), squeezed[:2] / SIDE)


def test_what_is_drawn_of_an_actor_lies_within_its_projected_box() -> None:
    checked = 0
    for seed in range(12):
        snapshot = snapshot_at(make_scene(seed), 0.0)
        renderer = Renderer(snapshot)
        for camera in ALL:
            view = renderer.draw(camera, 450, 800)
            matrix = camera.intrinsics(450, 800)
            for actor in snapshot.actors:
                points = camera.to_camera(outline(actor))
                mine = np.argwhere(view.ids == actor.index + 1)
                if points[:, 2].min() < 1.0:
                    continue
                pixels = (points / points[:, 2:]) @ matrix.T
                low, high = pixels[:, :2].min(axis=0), pixels[:, :2].max(axis=0)
                # Feet of cones and swinging arms reach a little beyond the nominal box.
                low, high = low - 0.25 * (high - low) - 4, high + 0.25 * (high - low) + 4
                if len(mine):
                    assert (mine[:, ::-1] >= low).all(), (seed, camera.name, actor)
                    assert (mine[:, ::-1] <= high).all(), (seed, camera.name, actor)
                    checked += 1
    assert checked > 40


def test_a_nearer_actor_hides_a_farther_one() -> None:
    found = 0
    for seed in range(40):
        scene = make_scene(seed, hazard='close lead')
        snapshot = snapshot_at(scene, 0.0)
        view = Renderer(snapshot).draw(CAMERAS['CAM_FRONT'], SIDE, SIDE)
        lead = snapshot.actors[0]
        points = CAMERAS['CAM_FRONT'].to_camera(outline(lead))
        pixels = (points / points[:, 2:]) @ CAMERAS['CAM_FRONT'].intrinsics(SIDE, SIDE).T
        x, y = pixels[:, :2].mean(axis=0).astype(int)
        if 0 < x < SIDE and 0 < y < SIDE:
            assert view.ids[y, x] == lead.index + 1
            found += 1
    assert found > 20


def test_vehicles_look_like_their_paint_where_the_id_map_says_they_are() -> None:
    reds, blues = [], []
    for seed in range(60):
        snapshot = snapshot_at(make_scene(seed), 0.0)
        if snapshot.scene.conditions != 'day':
            continue
        for view in render_sweep(snapshot, ALL, SIDE, SIDE):
            for actor in snapshot.actors:
                mine = view.pixels[view.ids == actor.index + 1].astype(float)
                if len(mine) > 200 and actor.kind == 'truck' and actor.colour in ('red', 'blue'):
                    (reds if actor.colour == 'red' else blues).append(mine.mean(axis=0))
    assert len(reds) > 2
    assert len(blues) > 2
    assert all(rgb[0] > rgb[2] + 20 for rgb in reds)
    assert all(rgb[2] > rgb[0] + 20 for rgb in blues)


def test_actors_move_by_speed_times_time_and_never_jump() -> None:
    for name in SCENARIOS:
        scene = make_scenario(name, 4)
        step_s = 0.05
        before = snapshot_at(scene, 0.0)
        for number in range(1, int(DURATION_S / step_s)):
            now = snapshot_at(scene, number * step_s)
            ego_way = now.ego_x_m - before.ego_x_m
            assert 0.0 <= ego_way <= 12.0 * step_s + 1e-9
            for old, new in zip(before.actors, now.actors, strict=True):
                way = np.hypot(
                    (new.x_m - old.x_m + ego_way + 80.0) % 160.0 - 80.0, new.y_m - old.y_m
                )
                assert way <= (max(old.speed_mps, new.speed_mps) + 3.0) * step_s + 1e-6, (
                    name,
                    new,
                )
            before = now


def test_the_ego_vehicle_hits_nothing_in_any_scenario() -> None:
    for name in SCENARIOS:
        for seed in range(6):
            scene = make_scenario(name, seed)
            for time_s in np.arange(0.0, DURATION_S, 0.25):
                snapshot = snapshot_at(scene, float(time_s))
                for actor in snapshot.actors:
                    box = outline(actor)
                    apart_x = box[:, 0].min() > 2.2 or box[:, 0].max() < -1.0
                    apart_y = box[:, 1].min() > 0.9 or box[:, 1].max() < -0.9
                    assert apart_x or apart_y, (name, seed, time_s, actor)


@pytest.mark.parametrize(
    ('scenario', 'before', 'after'),
    [
        ('lead-brakes', 'keep speed', 'brake'),
        ('pedestrian-crosses', None, 'brake'),
        ('light-turns-red', 'keep speed', 'slow down'),
    ],
)
def test_the_right_action_changes_at_the_event(scenario: str, before, after) -> None:
    for seed in range(5):
        scene = make_scenario(scenario, seed)
        plan = find_plan(snapshot_at(scene, EVENT_S - 0.05))
        assert (plan.action if plan else None) == before
        plan = find_plan(snapshot_at(scene, EVENT_S + 0.05))
        assert plan is not None
        assert plan.action == after


@pytest.mark.parametrize('hazard', HAZARDS)
def test_every_hazard_is_judged_as_what_it_is(hazard: str) -> None:
    wanted = {
        'clear': 'keep speed', 'far lead': 'keep speed', 'close lead': 'slow down',
        'braking lead': 'brake', 'pedestrian': 'brake', 'cyclist': 'slow down',
        'obstacle': 'brake', 'red': 'brake', 'yellow': 'slow down',
    }  # fmt: skip
    plans = [find_plan(snapshot_at(make_scene(seed, hazard=hazard), 0.0)) for seed in range(30)]
    given = [plan.action for plan in plans if plan is not None]
    assert len(given) > 20
    assert set(given) == {wanted[hazard]}


def test_cameras_see_the_moment_of_their_own_exposure() -> None:
    world = World('lead-brakes', 3, height=90, width=160)
    sweep = next(world.sweeps(1000.0 / 12.0))
    assert sweep[0][0].camera == 'CAM_FRONT_LEFT'
    times = {exposure.camera: time_s for exposure, time_s in sweep}
    assert times['CAM_BACK_LEFT'] == pytest.approx(0.0426)
    assert [e.offset_ms for e in exposures()] == sorted(NUSCENES_EXPOSURE_OFFSETS_MS.values())
    crossing = World('pedestrian-crosses', 3, height=90, width=160)
    early, late = (crossing.view('CAM_FRONT', time_s).ids for time_s in (5.0, 6.0))
    assert not np.array_equal(early, late)


def test_a_scenario_begins_anew_with_other_surroundings() -> None:
    world = World('cruise', 3, height=90, width=160)
    first, within = world.scene_at(DURATION_S + 1.0)
    assert within == pytest.approx(1.0)
    assert first.seed == world.scene_at(0.0)[0].seed + 1


def balance() -> dict[str, list[str]]:
    answers: dict[str, list[str]] = {}
    for seed in range(60):
        snapshot = draw_snapshot(seed)
        views = render_sweep(snapshot, ALL, SIDE, SIDE)
        truth = find_truth(snapshot, ALL, [view.ids for view in views])
        for question in ask_all(truth, np.random.default_rng(seed)):
            answers.setdefault(question.kind, []).append(question.answer)
    return answers


def test_no_answer_is_much_more_frequent_than_the_others_of_its_kind() -> None:
    answers = balance()
    total = sum(map(len, answers.values()))
    most = {kind: max(map(given.count, set(given))) for kind, given in answers.items()}
    assert sum(most.values()) / total < 0.45
    for kind, given in answers.items():
        if len(given) > 50:
            assert most[kind] / len(given) < 0.75, kind
    letters = [a for kind, given in answers.items() if kind.startswith('choice') for a in given]
    assert all(letters.count(letter) > 0.15 * len(letters) for letter in LETTERS)


def test_questions_are_true_of_the_id_maps_that_they_were_asked_about() -> None:
    checked = 0
    for seed in range(15):
        snapshot = draw_snapshot(seed)
        views = render_sweep(snapshot, ALL, SIDE, SIDE)
        truth = find_truth(snapshot, ALL, [view.ids for view in views])
        kinds = [
            [actor.kind for actor in snapshot.actors if (view.ids == actor.index + 1).any()]
            for view in views
        ]
        for question in ask_all(truth, np.random.default_rng(seed)):
            if question.kind not in ('exist', 'count'):
                continue
            view = question.cameras[0]
            assert f'the {VIEW_NAMES[view]} view' in question.text
            word = question.text.split()[3 if question.kind == 'exist' else 2]
            word = {'buses': 'bus'}.get(word, word.removesuffix('s') if word != 'bus' else word)
            seen = kinds[view].count(word)
            if question.answer in ('no', 'zero'):
                assert not [s for s in truth.views[view].sightings if s.actor.kind == word], (
                    question
                )
            else:
                least = {'yes': 1, 'one': 1, 'two': 2, 'three': 3}[question.answer]
                assert seen >= least, question
            checked += 1
    assert checked > 60


def test_targets_of_questions_are_seen_in_the_cameras_that_matter() -> None:
    for seed in range(10):
        snapshot = draw_snapshot(seed)
        views = render_sweep(snapshot, ALL, SIDE, SIDE)
        truth = find_truth(snapshot, ALL, [view.ids for view in views])
        for question in ask_all(truth, np.random.default_rng(seed)):
            for view, number in question.targets:
                assert view in question.cameras, question
                assert (views[view].ids == number).any(), question
                assert number <= len(snapshot.actors) or number == SIGNAL_ID


def test_rain_is_greyer_and_dusk_darker_than_day() -> None:
    means = {}
    for seed in range(40):
        scene = make_scene(seed, hazard='clear')
        view = Renderer(snapshot_at(scene, 0.0)).draw(CAMERAS['CAM_FRONT'], SIDE, SIDE)
        means.setdefault(scene.conditions, []).append(view.pixels.mean())
    mean = {name: np.mean(values) for name, values in means.items()}
    assert mean['dusk'] < mean['day'] - 20
    assert mean['rain'] < mean['day'] - 15
