"""Each method draws what it should: never the same twice, and the same again from its seed."""

from __future__ import annotations

import optuna
from p2d_node.errors import ConfigError
from p2d_node.tuning.ledger import finished, Ledger
from p2d_node.tuning.methods import check_methods, make_pruner, make_sampler, trials_of
from p2d_node.tuning.objective import Score
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.worker_identity import WorkerIdentity
import pytest

CAMERAS = ('LEFT', 'MIDDLE', 'RIGHT')
SPACE = SearchSpace(num_tokens=dict.fromkeys(CAMERAS, 100))
BEST = dict(zip(CAMERAS, (0.9, 0.3, 0.2), strict=True))


def make_ledger(method: str, num_trials: int, storage, *, seed: int = 0, pruning=False) -> Ledger:
    study = optuna.create_study(
        study_name=method,
        storage=storage,
        direction='maximize',
        load_if_exists=True,
        sampler=make_sampler(method, SPACE, num_trials, seed),
        pruner=make_pruner(method, pruning),
    )
    worker = WorkerIdentity.of_this_process()
    return Ledger(study, storage='memory', num_trials=num_trials, worker=worker, lease_s=60.0)


def score_of(params) -> float:
    return -sum((params[camera] - BEST[camera]) ** 2 for camera in CAMERAS)


def search(method: str, num_trials: int, storage=None, *, seed: int = 0) -> list:
    ledger = make_ledger(method, num_trials, storage or new_storage(), seed=seed)
    while trial := ledger.start(SPACE):
        trial.complete(Score(score_of(trial.params), None, None), {})
    return finished(ledger.trials)


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
        ledger = make_ledger(method, 10, new_storage(), pruning=True)
        for _ in range(9):
            trial = ledger.start(SPACE)
            assert not trial.report(4, 0.8)
            trial.complete(Score(0.8, None, None), {})
        hopeless = ledger.start(SPACE)
        assert hopeless.report(4, 0.2) == is_pruned
        hopeless.prune(Score(0.2, None, None), {'num_keyframes': 4})
        assert ledger.is_done


def test_unknown_methods_are_named():
    assert check_methods('tpe, random,tpe') == ('tpe', 'random')
    with pytest.raises(ConfigError, match="--methods: got 'bayes', allowed: tpe, uniform"):
        check_methods('tpe,bayes')
