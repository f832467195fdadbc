"""One worker of a search: opens the storage, loads the model, joins the study, runs trials.

Every worker on every machine runs this with the same options on the same storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import optuna
from optuna.study import StudyDirection
from p2d_node.assembly import clip_settings
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, quote
from p2d_node.evaluation.answer_settings import answer_settings
from p2d_node.evaluation.answering import check_prompts, group_keyframes, Keyframe
from p2d_node.evaluation.drivelm_questions import DriveLmQuestion, read_questions
from p2d_node.evaluation.fingerprints import digest_model
from p2d_node.evaluation.url_secrets import mask_secrets
from p2d_node.pipeline import DrivingPipeline
from p2d_node.tuning.keyframe_cache import digest_pictures, KeyframeCache
from p2d_node.tuning.methods import make_pruner, make_sampler, trials_of
from p2d_node.tuning.objective import Objective
from p2d_node.tuning.results import collect_results, MethodResult
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.storage import open_storage, storage_errors
from p2d_node.tuning.trial_evaluation import RunningScore, TrialEvaluator
from p2d_node.tuning.trials import MethodStudy

SETTINGS = 'settings'
"""User attribute of a study with the options that all its trials have in common."""

POLL_S = 1.0
"""How often an idle worker checks for trials of dead workers."""

OnProgress = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningOptions:
    """Options of a search.

    Attributes:
        data: DriveLM JSON with answers.
        images: Folder that holds `samples/<CAMERA>/*.jpg`.
        config: The pipeline; the search replaces its retention ratios.
        objective: The score to maximise.
        min_retention: Smallest ratio of a camera.
        max_retention: Largest ratio of a camera.
        mean_retention: Fixes the total of kept tokens; None: the total is free, and penalised.
        methods: Names from `METHODS`.
        num_trials: Trials of each method, over all workers.
        seed: Seed of the samplers and of the bootstrap.
        pruning: Whether trials below the median end early.
        storage: URL or path; see `open_storage`.
        name: Name of the study in the storage.
        cache: Folder of encoded keyframes.
        lease_s: After so many seconds without a heartbeat a trial is run again.
        limit: Only the first so many keyframes; None: all.
    """

    data: Path
    images: Path
    config: DriveConfig
    objective: Objective
    min_retention: float
    max_retention: float
    mean_retention: float | None
    methods: tuple[str, ...]
    num_trials: int
    seed: int
    pruning: bool
    storage: str
    name: str
    cache: Path
    lease_s: float
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions with references, and their images.

    Attributes:
        keyframes: The questions, by keyframe.
        digests: Keyframe name to the SHA-256 of its images.
        image_root: Folder with the images.
    """

    keyframes: tuple[Keyframe, ...]
    digests: dict[str, str]
    image_root: Path

    @property
    def questions(self) -> list[DriveLmQuestion]:
        """All questions."""
        return [question for keyframe in self.keyframes for question in keyframe.questions]

    @property
    def digest(self) -> str:
        """SHA-256 of questions, references and images."""
        content = [[q.id, q.question, q.reference] for q in self.questions]
        text = json.dumps([content, sorted(self.digests.items())])
        return hashlib.sha256(text.encode()).hexdigest()


def read_question_set(
    data: Path,
    image_root: Path,
    *,
    objective: Objective,
    config: DriveConfig,
    limit: int | None = None,
) -> QuestionSet:
    """Read a DriveLM file and check its questions and images.

    Raises:
        ConfigError: Names the first one that cannot be used.
    """
    keyframes = group_keyframes(read_questions(data))
    if limit is not None:
        keyframes = keyframes[:limit]
    questions = [question for keyframe in keyframes for question in keyframe.questions]
    objective.check_questions(questions, str(data))
    cameras, clip = tuple(config.cameras), clip_settings(config)
    digests = digest_pictures(keyframes, image_root, cameras, clip)
    return QuestionSet(tuple(keyframes), digests, image_root)


def read_tuning_set(options: TuningOptions) -> QuestionSet:
    """Read the questions of a study; raises as `read_question_set` does."""
    return read_question_set(
        options.data,
        options.images,
        objective=options.objective,
        config=options.config,
        limit=options.limit,
    )


class TuningSession:
    """One worker of a study. Use it from one thread; `close` frees the model."""

    def __init__(self, options: TuningOptions, question_set: QuestionSet) -> None:
        """Open the storage, load the model, and join the study, in this order.

        Args:
            options: Options of the search.
            question_set: Its questions, from `read_tuning_set`.

        Raises:
            ConfigError: The model or an option cannot be used, or the study of this name was made
                with other options.
            BackendUnavailableError: The storage cannot be opened.
        """
        self.options = options
        self.question_set = question_set
        storage = open_storage(options.storage, options.lease_s)
        with model_folder(options.config.model) as folder:
            self.model_digest = digest_model(folder)
        # A deadline would make scores depend on the speed of the machine.
        config = replace(options.config, deadline_ms=0.0, stream_partial_answers=False)
        self.pipeline = DrivingPipeline.from_config(config)
        check_prompts(self.pipeline, question_set.keyframes)
        self.space = SearchSpace(
            num_tokens=self.pipeline.num_tokens,
            min_retention=options.min_retention,
            max_retention=options.max_retention,
            mean_retention=options.mean_retention,
            stitched=self.pipeline.views.stitched,
        )
        self.studies = {
            method: MethodStudy(
                self._join(storage, method),
                storage=options.storage,
                num_trials=trials_of(method, self.space, options.num_trials, options.seed),
                grace_period_s=options.lease_s,
            )
            for method in options.methods
        }
        self.results()  # a damaged trial is told before the search

    def results(self) -> list[MethodResult]:
        """Return the results of all methods so far.

        Raises:
            BackendUnavailableError: A trial has a value that no trial of this search can have.
        """
        return collect_results(self.studies, self.space, self.options.objective.value)

    def _join(self, storage: optuna.storages.BaseStorage, method: str) -> optuna.Study:
        options = self.options
        name = f'{options.name}/{method}'
        with storage_errors(options.storage):
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                direction='maximize',
                load_if_exists=True,
                sampler=make_sampler(method, self.space, options.num_trials, options.seed),
                pruner=make_pruner(method, options.pruning),
            )
            settings = self._settings()
            if SETTINGS not in study.user_attrs:
                study.set_user_attr(SETTINGS, settings)
            stored: Mapping[str, Any] = study.user_attrs[SETTINGS]
            if not isinstance(stored, Mapping):
                raise ValueError(f'the settings of {name}: got {quote(stored)}, allowed: a table')
            if study.directions != [StudyDirection.MAXIMIZE]:
                got = ', '.join(direction.name.lower() for direction in study.directions)
                raise ValueError(f'the direction of {name}: got {got}, allowed: maximize')
        for key, value in settings.items():
            if stored.get(key) != value:
                raise ConfigError(
                    f'name: the study {options.name} in {mask_secrets(options.storage)} was '
                    f'made with {key} {_short(stored.get(key))}, now it is {_short(value)}; '
                    'choose another name'
                )
        return study

    def _settings(self) -> dict[str, Any]:
        """Return the options that all trials of a study have in common, as JSON data."""
        options = self.options
        settings = {
            **answer_settings(self.pipeline.config),
            'model': self.model_digest,
            'data': self.question_set.digest,
            **{f'objective {name}': value for name, value in asdict(options.objective).items()},
            'min_retention': options.min_retention,
            'max_retention': options.max_retention,
            'mean_retention': options.mean_retention,
            'seed': options.seed,
            'pruning': options.pruning,
            'num_tokens': dict(self.space.num_tokens),
        }
        as_json: dict[str, Any] = json.loads(json.dumps(settings))
        return as_json

    def keyframe_cache(self, question_set: QuestionSet) -> KeyframeCache:
        """Return the cache of encoded keyframes for a set of questions."""
        return KeyframeCache(
            self.options.cache,
            self.pipeline,
            question_set.image_root,
            model_digest=self.model_digest,
        )

    def evaluator(
        self, question_set: QuestionSet, must_stop: Callable[[], bool] = lambda: False
    ) -> TrialEvaluator:
        """Return the evaluator of a set of questions, whose keyframes are all in the cache."""
        return TrialEvaluator(
            self.pipeline,
            self.keyframe_cache(question_set),
            self.options.objective,
            self.space,
            keyframes=question_set.keyframes,
            digests=question_set.digests,
            must_stop=must_stop,
        )

    def work(
        self,
        on_progress: OnProgress = lambda: None,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run trials until all methods are done, here or on other workers.

        Args:
            on_progress: Called after every keyframe, and while waiting. If it raises, the work
                ends, and the trial is queued again.
            must_stop: Asked between tokens. If true, answers are cut short, and `on_progress`
                must raise.
        """
        evaluator = self.evaluator(self.question_set, must_stop)

        def evaluate(trial: optuna.Trial) -> float:
            return self._evaluate(trial, evaluator, on_progress)

        while not all(study.is_done for study in self.studies.values()):
            on_progress()
            free = (study for study in self.studies.values() if study.has_free_trial())
            study = next(free, None)
            if study is None:
                time.sleep(POLL_S)
            else:
                study.run_trial(evaluate)

    def _evaluate(
        self, trial: optuna.Trial, evaluator: TrialEvaluator, on_progress: OnProgress
    ) -> float:
        """Return the score of a trial; raises `optuna.TrialPruned` if it is hopeless."""
        low, high = self.space.bounds
        with storage_errors(self.options.storage):
            params = {c: trial.suggest_float(c, low, high) for c in self.space.cameras}
        ratios = self.space.ratios(params)
        tokens_kept = sum(self.space.tokens_kept(ratios).values())
        self._store(trial, {'ratios': ratios, 'tokens_kept': tokens_kept})
        start_s = time.monotonic()
        for running in evaluator.run(ratios, on_progress):
            is_hopeless = not running.is_last and self._is_hopeless(trial, running)
            if running.is_last or is_hopeless:
                break
        facts = {
            'language': running.score.language,
            'accuracy': running.score.accuracy,
            'num_keyframes': running.num_keyframes,
            'num_cut': running.num_cut,
            'seconds': round(time.monotonic() - start_s, 3),
        }
        self._store(trial, facts)
        if is_hopeless:
            raise optuna.TrialPruned
        return running.score.value

    def _is_hopeless(self, trial: optuna.Trial, running: RunningScore) -> bool:
        with storage_errors(self.options.storage):
            trial.report(running.score.value, running.num_keyframes)
            return trial.should_prune()

    def _store(self, trial: optuna.Trial, facts: Mapping[str, Any]) -> None:
        with storage_errors(self.options.storage):
            for name, value in facts.items():
                trial.set_user_attr(name, value)

    def close(self) -> None:
        """Release the model's threads."""
        self.pipeline.close()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f'{text[:12]}...'
