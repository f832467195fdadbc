"""The verbs of `p2d`, declared without importing what they run, so that `--help` is quick."""

from __future__ import annotations

from p2d_node.cli.verb import Verb, VerbGroup
from p2d_node.cli.verbs.bags import MAKE_BAG, REPLAY
from p2d_node.cli.verbs.bench import BENCH
from p2d_node.cli.verbs.engines import (
    BUILD_ENGINE,
    CLEAN_ENGINES,
    EXPORT,
    INSPECT_ENGINE,
    VERIFY_ENGINE,
)
from p2d_node.cli.verbs.evaluate import EVALUATE
from p2d_node.cli.verbs.import_checkpoint import IMPORT_CHECKPOINT
from p2d_node.cli.verbs.node import DEMO, WATCH
from p2d_node.cli.verbs.tune_ratios import TUNE_RATIOS

VERBS: tuple[Verb | VerbGroup, ...] = (
    BENCH,
    DEMO,
    EXPORT,
    BUILD_ENGINE,
    VERIFY_ENGINE,
    INSPECT_ENGINE,
    CLEAN_ENGINES,
    EVALUATE,
    IMPORT_CHECKPOINT,
    MAKE_BAG,
    REPLAY,
    TUNE_RATIOS,
    WATCH,
)
