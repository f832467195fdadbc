"""A worker whose trials cost nothing but time.

    python ledger_worker.py STORAGE NAME TRIALS SLEEP_S

Says when it is ready, waits for a line on its input, and then says when it begins and ends each
trial, so that a test can kill it in between.
"""

from __future__ import annotations

import sys
import time

import optuna
from p2d_node.tuning.ledger import Ledger, TrialTakenError
from p2d_node.tuning.methods import make_pruner, make_sampler
from p2d_node.tuning.objective import Score
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.storage import open_storage
from p2d_node.tuning.worker_identity import WorkerIdentity

SPACE = SearchSpace(num_tokens=dict.fromkeys(('LEFT', 'RIGHT'), 100))


def make_ledger(
    storage: str, name: str, num_trials: int, *, method: str = 'tpe', kind=Ledger, **changes
) -> Ledger:
    """Join the study `name`."""
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage),
        direction='maximize',
        load_if_exists=True,
        sampler=make_sampler(method, SPACE, num_trials, 0),
        pruner=make_pruner(method, pruning=False),
    )
    settings = {'worker': WorkerIdentity.of_this_process(), 'lease_s': 60.0} | changes
    return kind(study, storage=storage, num_trials=num_trials, **settings)


def score_of(params: dict[str, float]) -> Score:
    """A score with its best at LEFT 0.4."""
    return Score(-abs(params['LEFT'] - 0.4), None, None)


def do_all(ledger: Ledger, sleep_s: float = 0.0) -> None:
    """Work until all trials have finished."""
    while not ledger.is_done:
        ledger.recover()
        trial = ledger.start(SPACE)
        if trial is None:
            time.sleep(0.05)
            continue
        try:
            with trial.beating():
                print('begin', trial.number, flush=True)
                time.sleep(sleep_s)
                facts = {'seconds': sleep_s, 'ratios': trial.params, 'tokens_kept': 0}
                trial.complete(score_of(trial.params), facts)
                print('end', trial.number, flush=True)
        except TrialTakenError:
            print('taken', trial.number, flush=True)


if __name__ == '__main__':
    ledger = make_ledger(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print('ready', flush=True)
    sys.stdin.readline()
    do_all(ledger, float(sys.argv[4]))
