"""As many trials as asked for are finished, and none is lost, whichever worker dies."""

from __future__ import annotations

from itertools import combinations
import os
from pathlib import Path
import secrets
import signal
import subprocess
import sys
import time

import optuna
from optuna.storages._heartbeat import HeartbeatThread
from optuna.trial import TrialState
from p2d_node.tuning.results import collect_results
from p2d_node.tuning.storage import MAX_RETRIES
from p2d_node.tuning.trials import finished, given_up, retry_history
import pytest
from trial_worker import evaluate, join_study, run_all, score_of, SPACE

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name('trial_worker.py')


@pytest.fixture(params=['sqlite', 'postgresql'])
def storage(request, tmp_path) -> str:
    if request.param == 'sqlite':
        return f'sqlite:///{tmp_path}/study.db'
    url = os.environ.get('P2D_TEST_POSTGRESQL')
    if not url:
        pytest.skip('P2D_TEST_POSTGRESQL names no database: postgresql://user:password@host/name')
    return url


@pytest.fixture
def name() -> str:
    return f'test-{secrets.token_hex(6)}'


def start_worker(storage: str, name: str, num_trials: int, sleep_s: float) -> subprocess.Popen:
    words = [sys.executable, str(WORKER), storage, name, str(num_trials), str(sleep_s)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout.readline() == 'ready\n'
    return process


def go(*processes: subprocess.Popen) -> None:
    for process in processes:
        process.stdin.write('\n')
        process.stdin.flush()


def states(study):
    return [trial.state for trial in study.trials]


def fail(error):
    """Return an evaluation that raises `error` after it has its parameters."""

    def evaluate_and_fail(trial):
        evaluate(trial)
        raise error

    return evaluate_and_fail


@pytest.mark.timeout(240)
def test_the_trial_of_a_killed_worker_is_run_again_with_the_same_parameters(storage, name):
    victim = start_worker(storage, name, 14, 60.0)  # still in its first trial when it is killed
    survivor = start_worker(storage, name, 14, 0.3)
    go(victim, survivor)
    line = victim.stdout.readline()
    assert line.startswith('begin')
    victim.send_signal(signal.SIGKILL)
    assert survivor.wait(timeout=200) == 0
    victim.wait()
    study = join_study(storage, name, 14)
    assert 14 <= len(finished(study.trials)) <= 15
    (lost,) = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    (again,) = [trial for trial in study.trials if retry_history(trial) == [lost.number]]
    assert lost.number == int(line.split()[1])
    assert again.params == lost.params
    assert again.state == TrialState.COMPLETE
    assert not given_up(study.trials)
    assert set(states(study)) == {TrialState.FAIL, TrialState.COMPLETE}


@pytest.mark.timeout(240)
def test_two_workers_run_their_trials_at_the_same_time(storage, name):
    workers = [start_worker(storage, name, 10, 0.4) for _ in range(2)]
    go(*workers)
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    done = finished(join_study(storage, name, 10).trials)
    assert 10 <= len(done) <= 11
    spans = [(t.user_attrs['pid'], t.datetime_start, t.datetime_complete) for t in done]
    overlaps = [
        (one, other)
        for one, other in combinations(spans, 2)
        if one[0] != other[0] and one[1] < other[2] and other[1] < one[2]
    ]
    assert len(overlaps) >= 3
    assert len({tuple(t.params.values()) for t in done}) == len(done)


def test_a_trial_without_a_heartbeat_is_run_again_after_the_grace_period(storage, name):
    study = join_study(storage, name, 1, grace_period_s=1.0)
    dead = study.study.ask()
    dead.suggest_float('LEFT', *SPACE.bounds)
    study.study._storage.record_heartbeat(dead._trial_id)
    assert not study.has_free_trial()
    time.sleep(2.5)
    assert study.has_free_trial()
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    run_all(study)
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].params['LEFT'] == dead.params['LEFT']


def test_a_living_worker_keeps_its_trial_however_slow_it_is(storage, name):
    other = join_study(storage, name, 1, grace_period_s=6.0)

    def evaluate_slowly(trial):
        score = evaluate(trial)
        for _ in range(9):
            time.sleep(1.0)
            assert not other.has_free_trial()
        return score

    study = join_study(storage, name, 1, grace_period_s=6.0)
    study.run_trial(evaluate_slowly)
    assert states(study) == [TrialState.COMPLETE]


def test_a_result_that_comes_after_the_trial_was_given_to_another_is_dropped(storage, name):
    study, other = join_study(storage, name, 1), join_study(storage, name, 1)

    def evaluate_too_slowly(trial):
        score = evaluate(trial)
        other.study.tell(trial.number, state=TrialState.FAIL)
        other.study.add_trial(repeat_of(trial))
        return score

    study.run_trial(evaluate_too_slowly)
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    run_all(other)
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE]


def repeat_of(trial):
    """Return what another worker queues for a trial that it holds for dead."""
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={'retry_history': [trial.number]},
    )


def test_workers_that_begin_at_the_same_moment_may_run_one_trial_too_many(storage, name):
    study, other = join_study(storage, name, 2), join_study(storage, name, 2)
    study.run_trial(evaluate)
    assert study.has_free_trial()
    assert other.has_free_trial()
    study.run_trial(evaluate)
    other.run_trial(evaluate)
    assert study.is_done
    (result,) = collect_results({'tpe': study}, SPACE, score_of)
    assert (result.num_trials, len(result.history)) == (3, 3)


def test_more_trials_add_to_a_study_that_is_done(storage, name):
    run_all(join_study(storage, name, 2))
    study = join_study(storage, name, 4)
    run_all(study)
    assert states(study) == [TrialState.COMPLETE] * 4


def test_a_trial_that_ends_in_an_error_is_queued_again_at_once(storage, name):
    study = join_study(storage, name, 1)
    with pytest.raises(MemoryError):
        study.run_trial(fail(MemoryError()))
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    other = join_study(storage, name, 1)
    run_all(other)
    first, second = other.trials
    assert second.params == first.params


@pytest.mark.parametrize('error', [MemoryError, ValueError, KeyError])
def test_a_trial_that_fails_every_time_is_given_up_and_the_others_are_run(storage, name, error):
    study = join_study(storage, name, 3)
    for _ in range(1 + MAX_RETRIES):
        with pytest.raises(error):
            study.run_trial(fail(error('x')))
    assert states(study) == [TrialState.FAIL] * (1 + MAX_RETRIES)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 1
    run_all(study)
    (result,) = collect_results({'tpe': study}, SPACE, score_of)
    assert (result.num_trials, result.num_failed) == (2, 1)
    assert not study.has_free_trial()


def test_a_trial_may_be_interrupted_any_number_of_times(storage, name):
    study = join_study(storage, name, 1)
    for _ in range(2 * (1 + MAX_RETRIES)):
        with pytest.raises(KeyboardInterrupt):
            study.run_trial(fail(KeyboardInterrupt()))
    run_all(study)
    assert len(finished(study.trials)) == 1
    assert not given_up(study.trials)


def test_a_worker_that_died_before_its_first_heartbeat_is_not_waited_for_for_ever(storage, name):
    study = join_study(storage, name, 1, grace_period_s=1.0)
    study.study.ask()
    assert not study.has_free_trial()
    time.sleep(1.5)
    run_all(study)
    assert len(finished(study.trials)) == 1


def test_a_trial_with_parameters_has_a_heartbeat(storage, name, monkeypatch):
    monkeypatch.setattr(HeartbeatThread, 'start', lambda thread: None)  # as if it were slow
    monkeypatch.setattr(HeartbeatThread, 'join', lambda thread: None)
    study, other = (join_study(storage, name, 1, grace_period_s=1.0) for _ in range(2))
    free = []

    def evaluate_without_heartbeats(trial):
        score = evaluate(trial)
        free.append(other.has_free_trial())
        time.sleep(2.5)
        free.append(other.has_free_trial())
        return score

    study.run_trial(evaluate_without_heartbeats)
    assert free == [False, True]


def test_a_score_that_is_no_number_is_not_repeated_for_ever(storage, name):
    study = join_study(storage, name, 2)
    study.run_trial(lambda trial: evaluate(trial) * float('nan'))
    run_all(study)
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_point_of_a_plan_that_fails_keeps_its_place(storage, name):
    study = join_study(storage, name, 6, method='grid')
    study.run_trial(evaluate)
    with pytest.raises(MemoryError):
        study.run_trial(fail(MemoryError()))
    run_all(study)
    whole = join_study(storage, f'{name}-whole', 6, method='grid')
    run_all(whole)
    points = [{tuple(t.params.values()) for t in finished(s.trials)} for s in (study, whole)]
    assert points[0] == points[1]
    assert len(points[0]) == 6


def test_with_a_journal_the_trial_of_a_dead_worker_is_replaced_after_a_while(tmp_path):
    storage = str(tmp_path / 'study.log')
    dead, alive = (join_study(storage, 's', 1, grace_period_s=1.0) for _ in range(2))
    evaluate(dead.study.ask())  # and its worker dies
    assert not alive.has_free_trial()
    time.sleep(1.1)
    assert alive.has_free_trial()
    run_all(alive)
    assert [trial.number for trial in finished(alive.trials)] == [1]
