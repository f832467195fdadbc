"""The methods that choose the next trial: TPE, and the baselines it is compared with.

Each method has its own study, so that none learns from another's trials. Random numbers depend on
the seed and the number of the trial only: two workers never draw the same, and a resumed study
does not repeat its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from p2d_node.errors import ConfigError
from p2d_node.tuning.search_space import Params, SearchSpace
from p2d_node.tuning.trials import rank_of

METHODS = ('tpe', 'uniform', 'random', 'grid', 'evolutionary')

POPULATION = 16
"""Population of the evolutionary method: 100 trials are six generations."""

NUM_STARTUP_TRIALS = 8
"""Number of complete trials before the first one is pruned."""

PRUNED_METHODS = ('tpe', 'random', 'grid')
"""Uniform trials are the baseline, and evolution learns from complete trials only."""

SEED_STRIDE = 1_000_003
MAX_SEED = 2**32

Plan = Callable[[int], Params]
"""Maps the rank of a trial (see `rank_of`) to its parameters."""


class NumberSeededSampler(BaseSampler):
    """Draws with one of Optuna's samplers, seeded by the number of each trial."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Wrap the sampler that `make` returns for a seed."""
        self._make = make
        self._seed = seed
        self._inner = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed by the trial's number."""
        self._inner = self._make((self._seed * SEED_STRIDE + trial.number) % MAX_SEED)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """See `BaseSampler`."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Any
    ) -> None:
        """See `BaseSampler`."""
        self._inner.after_trial(study, trial, state, values)


class PlannedSampler(BaseSampler):
    """Takes the parameters of each trial from a plan."""

    def __init__(self, plan: Plan) -> None:
        """Follow `plan`."""
        self._plan = plan

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing: the plan has all parameters."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: see `sample_independent`."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the parameter of the trial's place in the plan."""
        return self._plan(rank_of(trial, study.get_trials(deepcopy=False)))[param_name]


DRAWN: dict[str, Callable[[int], BaseSampler]] = {
    'tpe': lambda seed: TPESampler(seed=seed),
    'random': lambda seed: RandomSampler(seed=seed),
    'evolutionary': lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed),
}
"""Methods that draw at random, each with its sampler for a seed."""


def make_sampler(method: str, space: SearchSpace, num_trials: int, seed: int) -> BaseSampler:
    """Return the sampler of a method. Two methods draw different numbers from one seed."""
    if method in DRAWN:
        own_seed = seed * len(METHODS) + METHODS.index(method)
        return NumberSeededSampler(DRAWN[method], own_seed)
    plan = planned(method, space, num_trials, seed)
    return PlannedSampler(lambda rank: plan[rank % len(plan)])


def planned(method: str, space: SearchSpace, num_trials: int, seed: int) -> list[Params]:
    """Return the points of a method that has a plan."""
    if method == 'uniform':
        return space.uniform_plan()
    return space.grid_plan(seed, num_trials)


def make_pruner(method: str, pruning: bool) -> BasePruner:
    """Return the pruner of a method: it ends trials below the median."""
    if not pruning or method not in PRUNED_METHODS:
        return NopPruner()
    return MedianPruner(n_startup_trials=NUM_STARTUP_TRIALS)


def trials_of(method: str, space: SearchSpace, num_trials: int, seed: int) -> int:
    """Return how many trials a method runs: `num_trials`, or fewer if its plan is shorter."""
    if method in ('uniform', 'grid'):
        return min(num_trials, len(planned(method, space, num_trials, seed)))
    return num_trials


def check_methods(names: str) -> tuple[str, ...]:
    """Return the methods in a comma-separated list.

    Raises:
        ConfigError: A method does not exist, or there is none.
    """
    methods = tuple(dict.fromkeys(name.strip() for name in names.split(',') if name.strip()))
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        got = unknown[0] if unknown else ''
        raise ConfigError(f'methods: got {got!r}, allowed: {", ".join(METHODS)}')
    return methods
