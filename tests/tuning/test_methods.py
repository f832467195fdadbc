"""Each method draws what it should: never the same twice, and the same again from its seed."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState
from p2d_node.errors import ConfigError
from p2d_node.tuning.methods import check_methods, make_pruner, make_sampler, trials_of
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.trials import finished, MethodStudy
import pytest

CAMERAS = ('LEFT', 'MIDDLE', 'RIGHT')
SPACE = SearchSpace(num_tokens=dict.fromkeys(CAMERAS, 100))
BEST = dict(zip(CAMERAS, (0.9, 0.3, 0.2), strict=True))


def join_study(
    method: str, num_trials: int, storage, *, seed: int = 0, pruning=False
) -> MethodStudy:
    study = optuna.create_study(
        study_name=method,
        storage=storage,
        direction='maximize',
        load_if_exists=True,
        sampler=make_sampler(method, SPACE, num_trials, seed),
        pruner=make_pruner(method, pruning),
    )
    return MethodStudy(study, storage='memory', num_trials=num_trials, grace_period_s=60.0)


def score_of(params) -> float:
    return -sum((params[camera] - BEST[camera]) ** 2 for camera in CAMERAS)


def suggest(trial) -> dict[str, float]:
    return {camera: trial.suggest_float(camera, *SPACE.bounds) for camera in CAMERAS}


def search(method: str, num_trials: int, storage=None, *, seed: int = 0) -> list:
    study = join_study(method, num_trials, storage or new_storage(), seed=seed)
    while study.has_free_trial():
        study.run_trial(lambda trial: score_of(suggest(trial)))
    return finished(study.trials)


def new_storage() -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.storages.InMemoryStorage()


@pytest.mark.parametrize('method', ['tpe', 'random', 'grid', 'evolutionary'])
def test_a_study_that_goes_on_repeats_no_trial_and_follows_its_seed(method):
    storage = new_storage()
    search(method, 5, storage)
    resumed = search(method, 20, storage)
    points = [tuple(trial.params.values()) for trial in resumed]
    assert len(points) == 20
    if method == 'evolutionary':  # a child may be like its parent
        assert len(set(points)) > 16
        return
    assert len(set(points)) == 20
    at_once = [tuple(trial.params.values()) for trial in search(method, 20)]
    assert at_once == points
    other = [tuple(trial.params.values()) for trial in search(method, 20, seed=1)]
    assert other != points


def test_the_grid_is_the_plan_in_its_order():
    plan = SPACE.grid_plan(0, 20)
    assert [trial.params for trial in search('grid', 20)] == plan[:20]


def test_uniform_has_one_ratio_for_all_and_ends_with_its_plan():
    count = trials_of('uniform', SPACE, 50, 0)
    assert count == 10
    done = search('uniform', count)
    assert all(len(set(trial.params.values())) == 1 for trial in done)


@pytest.mark.parametrize('method', ['tpe', 'evolutionary'])
def test_searches_that_learn_find_more_than_chance(method):
    learnt = [max(t.value for t in search(method, 60, seed=seed)) for seed in range(3)]
    drawn = [max(t.value for t in search('random', 60, seed=seed)) for seed in range(3)]
    assert sum(learnt) > sum(drawn)


def test_a_hopeless_trial_ends_early_and_a_yardstick_never():
    for method, is_pruned in (('tpe', True), ('random', True), ('uniform', False)):
        study = join_study(method, 10, new_storage(), pruning=True)

        def evaluate(trial, score):
            suggest(trial)
            trial.report(score, 4)
            if trial.should_prune():
                raise optuna.TrialPruned
            return score

        for _ in range(9):
            study.run_trial(lambda trial: evaluate(trial, 0.8))
        study.run_trial(lambda trial: evaluate(trial, 0.2))
        states = [trial.state for trial in study.trials]
        assert states[:9] == [TrialState.COMPLETE] * 9
        assert (states[9] == TrialState.PRUNED) == is_pruned
        assert study.is_done


def test_unknown_methods_are_named():
    assert check_methods('tpe, random,tpe') == ('tpe', 'random')
    with pytest.raises(ConfigError, match="methods: got 'bayes', allowed: tpe, uniform"):
        check_methods('tpe,bayes')
