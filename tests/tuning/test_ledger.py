"""Exactly as many trials as asked for, none lost, none done twice, whoever dies when."""

from __future__ import annotations

from itertools import combinations
import os
from pathlib import Path
import secrets
import signal
import subprocess
import sys

from ledger_worker import do_all, make_ledger, score_of, SPACE
from optuna.trial import TrialState
from p2d_node.tuning.ledger import (
    finished,
    given_up,
    Ledger,
    MAX_FAILURES,
    RETRY_OF,
    slot_of,
    TrialTakenError,
    VOID,
)
from p2d_node.tuning.results import collect_results
from p2d_node.tuning.worker_identity import WorkerIdentity
import pytest

WORKER = Path(__file__).with_name('ledger_worker.py')
ELSEWHERE = WorkerIdentity('another machine', 1, 1, 'elsewhere')


@pytest.fixture(params=['journal', 'sqlite', 'postgresql'])
def storage(request, tmp_path) -> str:
    if request.param == 'journal':
        return str(tmp_path / 'study.journal')
    if request.param == 'sqlite':
        return f'sqlite:///{tmp_path}/study.db'
    url = os.environ.get('P2D_TEST_POSTGRESQL')
    if not url:
        pytest.skip('P2D_TEST_POSTGRESQL names no database: postgresql://user:password@host/name')
    return url


@pytest.fixture
def name() -> str:
    return f'test-{secrets.token_hex(6)}'


class Clock:
    """A steady clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


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


def assert_each_slot_finished_once(ledger: Ledger, num_trials: int) -> None:
    trials = ledger.trials
    slots = [slot_of(trial, trials) for trial in finished(trials)]
    assert len(slots) == num_trials
    assert len(set(slots)) == num_trials
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_worker_costs_no_trial_and_doubles_none(storage, name):
    workers = [start_worker(storage, name, 14, 0.3) for _ in range(2)]
    go(*workers)
    victim, survivor = workers
    line = victim.stdout.readline()
    assert line.startswith('begin')
    victim.send_signal(signal.SIGKILL)
    assert survivor.wait(timeout=200) == 0
    ledger = make_ledger(storage, name, 14)
    assert_each_slot_finished_once(ledger, 14)
    (lost,) = [t for t in ledger.trials if t.state == TrialState.FAIL and VOID not in t.user_attrs]
    (again,) = [t for t in ledger.trials if t.user_attrs.get(RETRY_OF) == lost.number]
    assert lost.number == int(line.split()[1])
    assert again.params == lost.params
    assert again.state == TrialState.COMPLETE
    victim.wait()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_workers_do_their_trials_at_the_same_time(storage, name):
    workers = [start_worker(storage, name, 10, 0.4) for _ in range(2)]
    go(*workers)
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    ledger = make_ledger(storage, name, 10)
    assert_each_slot_finished_once(ledger, 10)
    done = finished(ledger.trials)
    spans = [(t.user_attrs['worker']['pid'], t.datetime_start, t.datetime_complete) for t in done]
    overlaps = [
        (one, other)
        for one, other in combinations(spans, 2)
        if one[0] != other[0] and one[1] < other[2] and other[1] < one[2]
    ]
    assert len(overlaps) >= 3
    assert len({tuple(t.params.values()) for t in done}) == 10


def test_another_machine_is_taken_for_dead_when_its_beat_stands_still(storage, name):
    theirs = make_ledger(storage, name, 1, worker=ELSEWHERE).start(SPACE)
    clock = Clock()
    mine = make_ledger(storage, name, 1, lease_s=10.0, now_s=clock)
    assert mine.recover() == 0
    clock.now_s += 9.0
    mine.study._storage.set_trial_user_attr(theirs._trial._trial_id, 'beat', 1)
    assert mine.recover() == 0
    clock.now_s += 9.0
    assert mine.recover() == 0
    clock.now_s += 2.0
    assert mine.recover() == 1
    assert mine.recover() == 0
    again = mine.start(SPACE)
    assert again.params == theirs.params
    with pytest.raises(TrialTakenError):
        theirs.complete(score_of(theirs.params), {})
    again.complete(score_of(again.params), {})
    assert_each_slot_finished_once(mine, 1)


def test_a_living_worker_of_this_machine_is_left_alone_however_slow(storage, name):
    make_ledger(storage, name, 1).start(SPACE)
    clock = Clock()
    other = make_ledger(storage, name, 1, lease_s=1.0, now_s=clock)
    assert other.recover() == 0
    clock.now_s += 1000.0
    assert other.recover() == 0
    assert other.start(SPACE) is None


def test_a_worker_shows_signs_of_life_while_it_works(storage, name):
    trial = make_ledger(storage, name, 1, lease_s=0.2).start(SPACE)
    watcher = make_ledger(storage, name, 1)
    with trial.beating():
        while 'beat' not in watcher.trials[0].user_attrs:
            pass
        trial.complete(score_of(trial.params), {})


def test_what_is_enqueued_twice_is_done_once(storage, name):
    ledger = make_ledger(storage, name, 1)
    first = ledger.start(SPACE)
    ledger.end(first.number, TrialState.FAIL)
    for _ in range(2):
        ledger.study.enqueue_trial(first.params, user_attrs={RETRY_OF: first.number})
    again = ledger.start(SPACE)
    assert again.params == first.params
    assert make_ledger(storage, name, 1).start(SPACE) is None
    again.complete(score_of(again.params), {})
    assert_each_slot_finished_once(ledger, 1)
    assert [t.user_attrs.get(VOID) for t in ledger.trials] == [None, None, 'enqueued twice']


class Hasty(Ledger):
    """Decided to begin a trial just before another worker took the last slot."""

    hasty = True

    def _has_open_slot(self) -> bool:
        hasty, self.hasty = self.hasty, False
        return hasty or super()._has_open_slot()


def test_one_trial_too_many_is_seen_by_its_number_and_does_not_count(storage, name):
    ledger = make_ledger(storage, name, 2)
    trials = [ledger.start(SPACE), ledger.start(SPACE)]
    assert make_ledger(storage, name, 2, kind=Hasty).start(SPACE) is None
    for trial in trials:
        trial.complete(score_of(trial.params), {})
    assert_each_slot_finished_once(ledger, 2)
    more = make_ledger(storage, name, 4)
    do_all(more)
    assert_each_slot_finished_once(more, 4)


def test_a_trial_that_ends_in_an_error_is_given_back_at_once(storage, name):
    ledger = make_ledger(storage, name, 1)
    trial = ledger.start(SPACE)
    with pytest.raises(KeyboardInterrupt), trial.beating():
        raise KeyboardInterrupt
    assert [t.state for t in ledger.trials] == [TrialState.FAIL, TrialState.WAITING]
    again = make_ledger(storage, name, 1).start(SPACE)
    assert again.params == trial.params


def test_a_trial_that_ends_every_worker_is_given_up_and_the_others_are_done(storage, name):
    ledger = make_ledger(storage, name, 3)
    bad = ledger.start(SPACE).params
    ledger = make_ledger(storage, name, 3, worker=ELSEWHERE)
    ledger.end(0, TrialState.FAIL)
    ledger.recover()
    for _ in range(MAX_FAILURES - 1):
        trial = ledger.start(SPACE)
        assert trial.params == bad
        with pytest.raises(MemoryError), trial.beating():
            raise MemoryError
    assert ledger.recover() == 0
    do_all(ledger)
    trials = ledger.trials
    assert len(finished(trials)) == 2
    assert [slot_of(trial, trials) for trial in given_up(trials, 3)] == [0]
    assert ledger.start(SPACE) is None
    (result,) = collect_results({'tpe': ledger})
    assert (result.num_trials, result.num_failed) == (2, 1)


def test_a_trial_may_be_interrupted_any_number_of_times(storage, name):
    ledger = make_ledger(storage, name, 1)
    for _ in range(2 * MAX_FAILURES):
        with pytest.raises(KeyboardInterrupt), ledger.start(SPACE).beating():
            raise KeyboardInterrupt
    do_all(ledger)
    assert_each_slot_finished_once(ledger, 1)


def test_a_trial_that_died_before_it_had_parameters_gets_some(storage, name):
    ledger = make_ledger(storage, name, 1, method='random')
    ledger.end(ledger.study.ask().number, TrialState.FAIL)
    do_all(ledger)
    assert_each_slot_finished_once(ledger, 1)
