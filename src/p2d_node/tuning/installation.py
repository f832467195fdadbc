"""Makes ratios that a search found the defaults of their model, and keeps those before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
import re

from p2d_node.durable_files import write_bytes, write_faults
from p2d_node.errors import ConfigError
from p2d_node.retention_presets import writable_preset

TRIALS_LINE = re.compile(r'^# trials: (.+)$', re.MULTILINE)
TRIALS = re.compile(r'\w+ (\d+) \(')
HELD_OUT_SCORE = re.compile(r'^# held out .*: score ([\d.]+) against', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for ratios, as the header of their file says.

    Attributes:
        num_trials: Trials of all methods.
        held_out_score: Score on held-out questions; None if there were none.
    """

    num_trials: int
    held_out_score: float | None


def read_evidence(path: Path) -> Evidence:
    """Read the header of a file of `write_retention_file`; without one nothing speaks for it.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, ValueError) as err:
        raise ConfigError(f'install: {path} cannot be read: {err}; remove it') from err
    trials, score = TRIALS_LINE.search(text), HELD_OUT_SCORE.search(text)
    return Evidence(
        num_trials=sum(map(int, TRIALS.findall(trials[1]))) if trials else 0,
        held_out_score=float(score[1]) if score else None,
    )


def find_target(model: str) -> Path:
    """Return the file of the model's default ratios.

    Raises:
        ConfigError: The folder of the package cannot be written.
    """
    target = writable_preset(model)
    if target is None:
        raise ConfigError(
            'install: config/retention of the package cannot be written; leave --install out, and '
            'start the node with params_file:=FILE'
        )
    return target


def install_ratios(found: Path, target: Path, *, is_worse: bool, force: bool) -> Path | None:
    """Copy a file of ratios to where the node looks for the model's defaults.

    Args:
        found: The file.
        target: From `find_target`.
        is_worse: Whether an even split of the tokens is better on held-out questions.
        force: Install in spite of less evidence.

    Returns:
        The file that keeps the ratios before; None if there were none.

    Raises:
        ConfigError: Less speaks for these ratios than for those before, or a file cannot be
            written. Then nothing has changed.
    """
    if not force:
        _check_evidence(found, target, is_worse=is_worse)
    with write_faults(f'install: {target}', 'the ratios are kept in the output folder'):
        kept = _keep_old(target) if target.exists() else None
        write_bytes(target, found.read_bytes())
    return kept


def _check_evidence(found: Path, target: Path, *, is_worse: bool) -> None:
    new = read_evidence(found)
    next_step = f'the ratios are in {found}; give --force to install them all the same'
    if is_worse:
        raise ConfigError(f'install: an even split of the tokens is better; {next_step}')
    if not target.exists():
        return
    old = read_evidence(target)
    if new.num_trials < old.num_trials:
        raise ConfigError(
            f'install: the study has {new.num_trials} trials, that of {target} had '
            f'{old.num_trials}; {next_step}'
        )
    if old.held_out_score is None:
        return
    if new.held_out_score is None:
        raise ConfigError(
            f'install: {target} has the held-out score {old.held_out_score}, these ratios have '
            f'none (--held-out); {next_step}'
        )
    if new.held_out_score < old.held_out_score:
        raise ConfigError(
            f'install: the held-out score {new.held_out_score} is worse than '
            f'{old.held_out_score} of {target}; {next_step}'
        )


def _keep_old(target: Path) -> Path:
    time = datetime.now(tz=timezone.utc).strftime('%Y%m%dT%H%M%SZ')
    kept = target.with_name(f'{target.name}.{time}.old')
    write_bytes(kept, target.read_bytes())
    return kept
