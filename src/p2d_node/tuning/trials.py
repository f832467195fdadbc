"""Runs, counts and repeats the trials of one method's study, by Optuna's own means.

All workers share a study through its database. A running trial has a heartbeat. If the heartbeat
stops, the next worker that looks ends the trial as failed, and queues its parameters again. A
trial that fails after `MAX_RETRIES` repeats is given up: it would end the next worker too.

A study is done if enough trials are finished or given up. Workers that begin a trial at the same
moment may together begin more than are needed, at most one per worker; these trials count too.

A journal has no heartbeats: the trial of a dead worker is not repeated, and another is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
import warnings

from optuna import Study, TrialPruned
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, Trial, TrialState
from p2d_node.tuning.storage import (
    check_unfinished,
    MAX_RETRIES,
    retry_callback,
    storage_errors,
    trials_with_heartbeat,
)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Evaluate = Callable[[Trial], float]
"""Returns the score of a trial, or raises `TrialPruned`."""


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have a result: complete or pruned."""
    return [trial for trial in trials if trial.state in FINISHED]


def given_up(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the failed trials that no later trial repeats."""
    repeated = {history[-1] for history in map(retry_history, trials) if history}
    return [t for t in trials if t.state == TrialState.FAIL and t.number not in repeated]


def retry_history(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the failed trials that this one repeats, the first one first."""
    history: list[int] = trial.system_attrs.get('retry_history', [])
    return history


def rank_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return the place of a trial in its method's plan: repeats have that of the first try."""
    first_try = [*retry_history(trial), trial.number][0]
    return sum(other.number < first_try and not retry_history(other) for other in trials)


class MethodStudy:
    """The study of one method, as one worker sees it. Use it from one thread.

    Attributes:
        study: Optuna's study.
        num_trials: Number of trials to finish, over all workers.
        storage: Name of the storage, for messages.
    """

    def __init__(
        self, study: Study, *, storage: str, num_trials: int, grace_period_s: float
    ) -> None:
        """Wrap `study`.

        Args:
            study: Its trials have heartbeats if its storage has them; see `open_storage`.
            storage: Name of the storage, for messages.
            num_trials: Number of trials to finish, over all workers.
            grace_period_s: A trial that has no heartbeat for so long is not waited for.

        Raises:
            BackendUnavailableError: Too many trials run or wait.
        """
        self.study = study
        self.num_trials = num_trials
        self.storage = storage
        self._grace_period = timedelta(seconds=grace_period_s)
        with storage_errors(storage):
            check_unfinished(sum(not trial.state.is_finished() for trial in self.trials))

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, in any state. Read only."""
        with storage_errors(self.storage):
            return self.study.get_trials(deepcopy=False)

    @property
    def num_ended(self) -> int:
        """Number of trials that are finished or given up."""
        trials = self.trials
        with storage_errors(self.storage):
            return len(finished(trials)) + len(given_up(trials))

    @property
    def is_done(self) -> bool:
        """Whether no trial is left to run."""
        return self.num_ended >= self.num_trials

    def has_free_trial(self) -> bool:
        """Queue the trials of dead workers again; return whether this worker can run a trial."""
        with storage_errors(self.storage), warnings.catch_warnings():
            warnings.simplefilter('ignore', ExperimentalWarning)
            fail_stale_trials(self.study)
            alive = trials_with_heartbeat(self.study._storage)
        running = [trial for trial in self.trials if trial.state == TrialState.RUNNING]
        num_running = sum(t._trial_id in alive or self._has_just_begun(t) for t in running)
        return self.num_ended + num_running < self.num_trials

    def _has_just_begun(self, trial: FrozenTrial) -> bool:
        # A worker that dies before its first heartbeat, or with a journal, leaves a trial that
        # never becomes stale.
        begun = trial.datetime_start or datetime.now()
        return abs(datetime.now() - begun) < self._grace_period

    def run_trial(self, evaluate: Evaluate) -> None:
        """Run one trial; the result is dropped if another worker has repeated the trial meanwhile.

        Raises:
            BaseException: What `evaluate` raises. The parameters are queued again, unless this
                was the last try; an interruption does not count as a failed try.
        """
        attempt = _Attempt(evaluate)
        with storage_errors(self.storage):
            try:
                self.study.optimize(attempt, n_trials=1)
            except BaseException:
                if attempt.error is not None:
                    self._queue_again(attempt)
                # Optuna raises various errors if another worker has ended the trial.
                elif not self._was_ended(attempt.number):
                    raise
        if attempt.error is not None:
            raise attempt.error

    def _was_ended(self, number: int) -> bool:
        return any(t.number == number and t.state == TrialState.FAIL for t in self.trials)

    def _queue_again(self, attempt: _Attempt) -> None:
        trials = self.study.get_trials()
        if attempt.number not in [trial.number for trial in given_up(trials)]:
            return  # another worker has ended the trial, and queued it
        interrupted = isinstance(attempt.error, KeyboardInterrupt)
        retry = retry_callback(max_retry=None if interrupted else MAX_RETRIES)
        retry(self.study, trials[attempt.number])


class _Attempt:
    """One trial in progress.

    Attributes:
        number: Number of the trial; -1 before it begins.
        error: What `evaluate` raised; None if it returned, or found the trial hopeless or taken.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self.number = -1
        self.error: BaseException | None = None
        self._evaluate = evaluate

    def __call__(self, trial: Trial) -> float:
        self.number = trial.number
        # Optuna's thread may record its first heartbeat later than the trial its parameters. A
        # trial of a worker that died between the two would never become stale.
        if isinstance(trial.storage, BaseHeartbeat):  # studies in memory have none
            trial.storage.record_heartbeat(trial._trial_id)
        try:
            return self._evaluate(trial)
        except (TrialPruned, UpdateFinishedTrialError):
            raise
        except BaseException as err:
            self.error = err
            raise
