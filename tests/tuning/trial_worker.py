"""A worker whose trials cost nothing but time.

    python trial_worker.py STORAGE NAME TRIALS SLEEP_S

It prints when it is ready, waits for a line on its input, and then prints when it begins and ends
each trial, so that a test can kill it in between.
"""

from __future__ import annotations

import os
import sys
import time

import optuna
from p2d_node.tuning.methods import make_pruner, make_sampler
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.storage import open_storage
from p2d_node.tuning.trials import MethodStudy

SPACE = SearchSpace(num_tokens=dict.fromkeys(('LEFT', 'RIGHT'), 100))
GRACE_PERIOD_S = 8.0


def join_study(
    storage: str,
    name: str,
    num_trials: int,
    *,
    method: str = 'tpe',
    grace_period_s: float = GRACE_PERIOD_S,
) -> MethodStudy:
    """Join the study `name`."""
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(storage, grace_period_s),
        direction='maximize',
        load_if_exists=True,
        sampler=make_sampler(method, SPACE, num_trials, 0),
        pruner=make_pruner(method, pruning=False),
    )
    return MethodStudy(
        study, storage=storage, num_trials=num_trials, grace_period_s=grace_period_s
    )


def evaluate(trial: optuna.Trial) -> float:
    """Return a score with its best at LEFT 0.4."""
    params = {camera: trial.suggest_float(camera, *SPACE.bounds) for camera in SPACE.cameras}
    tokens_kept = sum(SPACE.tokens_kept(params).values())
    facts = {'seconds': 0.0, 'ratios': params, 'tokens_kept': tokens_kept, 'pid': os.getpid()}
    for key, value in {**facts, 'language': None, 'accuracy': None}.items():
        trial.set_user_attr(key, value)
    return score_of(None, None, params)


def score_of(_language: None, _accuracy: None, ratios: dict[str, float]) -> float:
    return -abs(ratios['LEFT'] - 0.4)


def run_all(study: MethodStudy, evaluate=evaluate) -> None:
    """Work until the study is done."""
    while not study.is_done:
        if study.has_free_trial():
            study.run_trial(evaluate)
        else:
            time.sleep(0.05)


if __name__ == '__main__':
    study = join_study(sys.argv[1], sys.argv[2], int(sys.argv[3]))

    def evaluate_slowly(trial: optuna.Trial) -> float:
        """Take a while."""
        score = evaluate(trial)
        print('begin', trial.number, flush=True)
        time.sleep(float(sys.argv[4]))
        print('end', trial.number, flush=True)
        return score

    print('ready', flush=True)
    sys.stdin.readline()
    run_all(study, evaluate_slowly)
