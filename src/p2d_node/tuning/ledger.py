"""Which trials are done, which are to do, and whose trials have to be done again.

Works alike on every storage, from any number of processes and machines. What must happen once is
left to the two things that all storages do atomically: giving a new trial the next number, and
ending a trial that has not ended yet.

A trial that was not made again for another counts as one slot; a study is its first N slots in the
order of their numbers, so whoever starts one too many sees that from its number alone. A trial
whose worker died, or gave it back, is ended as failed and enqueued again with the same parameters;
where two workers enqueue it, the one with the smaller number counts. One that has ended several
workers, as for want of memory, is given up: it would end the next one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import threading
import time
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from p2d_node.errors import P2dError
from p2d_node.tuning.objective import Score
from p2d_node.tuning.search_space import Params, SearchSpace
from p2d_node.tuning.storage import storage_errors
from p2d_node.tuning.worker_identity import WorkerIdentity

WORKER, BEAT, RETRY_OF, VOID = 'worker', 'beat', 'retry_of', 'void'
INTERRUPTED = 'interrupted'
"""Names of what is stored with a trial; `void` says why a trial does not count, `interrupted` that
its worker was asked to stop."""

MAX_FAILURES = 3
"""A trial that failed so often, or whose workers died so often, is not made again."""

BEATS_PER_LEASE = 4
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class TrialTakenError(P2dError):
    """Another worker held this one for dead and has taken its trial."""


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count: complete or pruned."""
    return [trial for trial in trials if trial.state in FINISHED]


def slots(trials: Sequence[FrozenTrial]) -> list[int]:
    """Return the numbers of the trials that are no one's second try and not void."""
    return [t.number for t in trials if not {RETRY_OF, VOID} & t.user_attrs.keys()]


def slot_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return the number of the trial that this one was first made as."""
    by_number = {other.number: other for other in trials}
    while RETRY_OF in trial.user_attrs:
        trial = by_number[trial.user_attrs[RETRY_OF]]
    return trial.number


def rank_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return how many slots come before that of `trial`."""
    slot = slot_of(trial, trials)
    return sum(number < slot for number in slots(trials))


def retry_numbers(number: int, trials: Sequence[FrozenTrial]) -> list[int]:
    """Return the trials that were made again for trial `number`, ascending."""
    return sorted(
        t.number
        for t in trials
        if t.user_attrs.get(RETRY_OF) == number and VOID not in t.user_attrs
    )


def trials_to_retry(trials: Sequence[FrozenTrial], num_trials: int) -> list[FrozenTrial]:
    """Return failed trials of the first `num_trials` slots that nobody has enqueued again."""
    left = _last_failures(trials, num_trials)
    return [trial for trial in left if num_failures(trial, trials) < MAX_FAILURES]


def given_up(trials: Sequence[FrozenTrial], num_trials: int) -> list[FrozenTrial]:
    """Return the last tries of the slots that have failed too often."""
    left = _last_failures(trials, num_trials)
    return [trial for trial in left if num_failures(trial, trials) >= MAX_FAILURES]


def num_failures(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return how often a failed trial, or one that it repeats, failed without being stopped."""
    by_number = {other.number: other for other in trials}
    count = 0
    while True:
        count += INTERRUPTED not in trial.user_attrs
        if RETRY_OF not in trial.user_attrs:
            return count
        trial = by_number[trial.user_attrs[RETRY_OF]]


def _last_failures(trials: Sequence[FrozenTrial], num_trials: int) -> list[FrozenTrial]:
    retried = {t.user_attrs[RETRY_OF] for t in trials if _is_valid_retry(t)}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and VOID not in trial.user_attrs
        and trial.number not in retried
        and rank_of(trial, trials) < num_trials
    ]


def _is_valid_retry(trial: FrozenTrial) -> bool:
    return RETRY_OF in trial.user_attrs and VOID not in trial.user_attrs


class Ledger:
    """One method's study as one worker sees it. Use it from one thread."""

    def __init__(
        self,
        study: Study,
        *,
        storage: str,
        num_trials: int,
        worker: WorkerIdentity,
        lease_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at `study`.

        Args:
            study: One method's.
            storage: Name of its storage, for messages.
            num_trials: How many trials are to finish, over all workers.
            worker: This worker.
            lease_s: A trial of another machine whose beat stands still for so long is taken over.
            now_s: Steady clock, seconds.
        """
        self.study = study
        self.num_trials = num_trials
        self.storage = storage
        self._worker = worker
        self.lease_s = lease_s
        self._now_s = now_s
        self._beats: dict[int, tuple[Any, float]] = {}

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, also void and failed ones; not to be changed."""
        with storage_errors(self.storage):
            return self.study.get_trials(deepcopy=False)

    @property
    def num_ended(self) -> int:
        """Trials so far that need not be done again: finished, or given up."""
        return self._num_ended(self.trials)

    def _num_ended(self, trials: Sequence[FrozenTrial]) -> int:
        return len(finished(trials)) + len(given_up(trials, self.num_trials))

    @property
    def is_done(self) -> bool:
        """Whether no trial is left to do, by whomever."""
        return self.num_ended >= self.num_trials

    def recover(self) -> int:
        """End the trials of dead workers and enqueue what failed again; returns how many."""
        with storage_errors(self.storage):
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state == TrialState.RUNNING and self._is_abandoned(trial):
                    self.end(trial.number, TrialState.FAIL)
            lost = trials_to_retry(self.study.get_trials(deepcopy=False), self.num_trials)
            for trial in lost:
                self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
            return len(lost)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        owner: Mapping[str, Any] = trial.user_attrs.get(WORKER, {})
        if owner.get('token') == self._worker.token:
            return False
        if self._worker.knows_fate_of(owner):
            return not self._worker.is_alive(owner)
        beat = trial.user_attrs.get(BEAT)
        last_beat, since_s = self._beats.get(trial.number, (None, None))
        if since_s is None or beat != last_beat:
            self._beats[trial.number] = (beat, self._now_s())
            return False
        return self._now_s() - since_s > self.lease_s

    def start(self, space: SearchSpace) -> ClaimedTrial | None:
        """Begin a trial; None where there is none left to begin."""
        with storage_errors(self.storage):
            while self._has_open_slot():
                trial = self.study.ask()
                trial.set_user_attr(WORKER, self._worker.to_json())
                reason = self._reason_against(trial)
                if reason is None:
                    low, high = space.bounds
                    params = {c: trial.suggest_float(c, low, high) for c in space.cameras}
                    return ClaimedTrial(self, trial, params)
                trial.set_user_attr(VOID, reason)
                self.end(trial.number, TrialState.FAIL)
            return None

    def _has_open_slot(self) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        if self._num_ended(trials) >= self.num_trials:
            return False
        waits = any(trial.state == TrialState.WAITING for trial in trials)
        return waits or len(slots(trials)) < self.num_trials

    def _reason_against(self, asked: Trial) -> str | None:
        """Return why a trial that was just begun does not count; None where it does."""
        trials = self.study.get_trials(deepcopy=False)
        mine = next(trial for trial in trials if trial.number == asked.number)
        if rank_of(mine, trials) >= self.num_trials:
            return 'surplus'
        first_try = mine.user_attrs.get(RETRY_OF)
        if first_try is not None and retry_numbers(first_try, trials)[0] != mine.number:
            return 'enqueued twice'
        return None

    def end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial; False where it has ended before."""
        try:
            self.study.tell(number, values=values, state=state)
        except UpdateFinishedTrialError:
            return False
        except ValueError:
            # Optuna's own check, before it writes: the trial is no longer running.
            if self.study.get_trials(deepcopy=False)[number].state.is_finished():
                return False
            raise
        return True


class ClaimedTrial:
    """A trial that this worker has begun. Use it from one thread; its beat has one of its own."""

    def __init__(self, ledger: Ledger, trial: Trial, params: Params) -> None:
        """Hold what `Ledger.start` began."""
        self.number = trial.number
        self.params = params
        self._ledger = ledger
        self._trial = trial

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Show others, from a thread, that this worker lives; give the trial back on any error."""
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), name='beat', daemon=True)
        beat.start()
        try:
            yield
        except TrialTakenError:
            raise
        except BaseException as err:
            self._give_back(interrupted=isinstance(err, KeyboardInterrupt))
            raise
        finally:
            stop.set()
            beat.join()

    def _beat(self, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(self._ledger.lease_s / BEATS_PER_LEASE):
            count += 1
            try:
                self._trial.storage.set_trial_user_attr(self._trial._trial_id, BEAT, count)
            except Exception:
                return  # what is wrong with the storage, or the trial, its own thread will meet

    def report(self, step: int, value: float) -> bool:
        """Report a running score; returns whether the trial is hopeless.

        Raises:
            TrialTakenError: Another worker has taken it.
        """
        with self._written():
            self._trial.report(value, step)
            return self._trial.should_prune()

    def complete(self, score: Score, facts: Mapping[str, Any]) -> None:
        """Finish with a score; raises `TrialTakenError` as `report` does."""
        self._finish(TrialState.COMPLETE, score, facts)

    def prune(self, score: Score, facts: Mapping[str, Any]) -> None:
        """Finish before all keyframes were answered; raises as `report` does."""
        self._finish(TrialState.PRUNED, score, facts)

    def _finish(self, state: TrialState, score: Score, facts: Mapping[str, Any]) -> None:
        parts = {'language': score.language, 'accuracy': score.accuracy}
        with self._written():
            for name, value in {**parts, **facts}.items():
                self._trial.set_user_attr(name, value)
            values = [score.value] if state == TrialState.COMPLETE else None
            if not self._ledger.end(self.number, state, values):
                raise TrialTakenError(f'trial {self.number}: another worker has taken it')

    def _give_back(self, *, interrupted: bool) -> None:
        """End the trial as failed and enqueue it again; what fails here is mended at a resume."""
        try:
            with storage_errors(self._ledger.storage):
                if interrupted:
                    self._trial.set_user_attr(INTERRUPTED, True)
                self._ledger.end(self.number, TrialState.FAIL)
            self._ledger.recover()
        except P2dError:
            return

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with storage_errors(self._ledger.storage):
                yield
        except UpdateFinishedTrialError as err:
            raise TrialTakenError(f'trial {self.number}: another worker has taken it') from err
