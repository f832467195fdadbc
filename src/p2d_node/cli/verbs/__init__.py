"""The verbs of `p2d`, declared without importing what they run, so that `--help` is quick."""

from __future__ import annotations

import textwrap

from p2d_node.cli.verb import HELP_WIDTH, Verb, VerbGroup
from p2d_node.cli.verbs.bags import MAKE_BAG, REPLAY
from p2d_node.cli.verbs.bench import BENCH
from p2d_node.cli.verbs.budget import BUDGET
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
from p2d_node.cli.verbs.soak import SOAK
from p2d_node.cli.verbs.tune_ratios import TUNE_RATIOS

HELP_GROUPS: tuple[tuple[str, str, tuple[Verb | VerbGroup, ...]], ...] = (
    ('try', 'p2d demo', (DEMO,)),
    ('run', 'p2d watch --duration 10', (WATCH, REPLAY)),
    (
        'data',
        'p2d make-bag --synthetic lead-brakes --sweeps 24 --out drive',
        (MAKE_BAG, IMPORT_CHECKPOINT),
    ),
    (
        'engines',
        'p2d build-engine --backend onnxruntime --input pixel_values',
        (BUILD_ENGINE, VERIFY_ENGINE, INSPECT_ENGINE, CLEAN_ENGINES, EXPORT),
    ),
    (
        'measure',
        'p2d bench select --tokens 196 --hidden 192 --retention-ratio 0.1',
        (EVALUATE, TUNE_RATIOS, BENCH, BUDGET, SOAK),
    ),
)
"""Heading of a group of verbs, a command that works without further files, and the verbs."""

VERBS = tuple(verb for _, _, verbs in HELP_GROUPS for verb in verbs)


def overview() -> str:
    """Return the verbs by group, for `p2d --help`."""
    width = max(len(verb.name) for verb in VERBS)
    lines = []
    for heading, example, verbs in HELP_GROUPS:
        lines += ['', f'{heading}:  {example}']
        for verb in verbs:
            first = f'  {verb.name.ljust(width)}  '
            lines.append(
                textwrap.fill(
                    verb.help, HELP_WIDTH, initial_indent=first, subsequent_indent=' ' * len(first)
                )
            )
    return '\n'.join(['verbs, and a command to begin with:', *lines])
