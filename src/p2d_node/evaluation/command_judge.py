"""A judge that is a command of the user: it reads JSON lines, and writes a line per answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import tempfile
from typing import Any, IO

from p2d_node.errors import BackendUnavailableError, ConfigError, quote
from p2d_node.evaluation.judge import (
    as_item,
    Judgement,
    JudgeTask,
    MisalignedRepliesError,
    Triple,
    UnreadableReplyError,
)
from p2d_node.evaluation.url_secrets import mask_secrets

NO_JUDGEMENT = 'null'

MAX_LINE_CHARACTERS = 1 << 20
"""A judgement is a number or twelve ratings."""

MAX_SAID_BYTES = 4096
"""How much of the end of its error output is read for a message."""


class CommandJudge:
    """Runs a command once per task, and reads its lines as they come."""

    def __init__(self, command: str) -> None:
        """Split a command as a shell would, and check that it exists.

        Raises:
            ConfigError: `command` is not a command, or does not exist.
        """
        self._words = _split(command)
        if shutil.which(self._words[0]) is None:
            raise ConfigError(
                f'judge_command: {mask_secrets(self._words[0])}: there is no such command; check '
                'its path and its permissions'
            )
        # A changed script counts as another judge.
        files = {word: _digest(word) for word in self._words if os.path.isfile(word)}
        self.identity: Mapping[str, Any] = {'command': self._words, 'files': files}

    def judge(self, task: JudgeTask, triples: Sequence[Triple]) -> Iterator[tuple[int, Judgement]]:
        """Yield the judgements in the order of `triples`; a line `null` is no judgement.

        Raises:
            UnreadableReplyError: A line is not a judgement.
            MisalignedRepliesError: The command writes too many lines.
            BackendUnavailableError: The command fails, or writes too few lines.
        """
        with _temporary_file() as items, tempfile.TemporaryFile() as said:
            items.writelines(
                f'{json.dumps({**as_item(triple), **task.more})}\n' for triple in triples
            )
            items.seek(0)
            with self._start(items, said) as process:
                try:
                    yield from self._read(process, task, len(triples))
                except BaseException:
                    process.kill()
                    raise
            if process.returncode:
                raise BackendUnavailableError(
                    f'judge_command: exit status {process.returncode}, it said: {_last(said)}'
                )

    def _start(self, items: IO[str], said: IO[bytes]) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(
                self._words,
                stdin=items,
                stdout=subprocess.PIPE,
                stderr=said,
                encoding='utf-8',
                errors='replace',
            )
        except OSError as err:
            raise BackendUnavailableError(f'judge_command: {self._words[0]}: {err}') from err

    def _read(
        self, process: subprocess.Popen[str], task: JudgeTask, num_answers: int
    ) -> Iterator[tuple[int, Judgement]]:
        assert process.stdout is not None
        lines = (line.strip() for line in _bounded_lines(process.stdout))
        count = 0
        for line in filter(None, lines):
            if count == num_answers:
                raise MisalignedRepliesError(
                    f'judge_command: got more than {num_answers} lines for {num_answers} '
                    f'answers, needed: {task.needed}; all of them are ignored'
                )
            yield count, self._judgement(task, line, count)
            count += 1
        if count < num_answers and process.wait() == 0:
            raise BackendUnavailableError(
                f'judge_command: got {count} lines for {num_answers} answers, needed: '
                f'{task.needed}'
            )

    def _judgement(self, task: JudgeTask, line: str, index: int) -> Judgement:
        if line == NO_JUDGEMENT:
            return None
        try:
            return task.read(line)
        except UnreadableReplyError as err:
            raise UnreadableReplyError(
                f'judge_command: line {index + 1}: {err}, or {NO_JUDGEMENT} for none'
            ) from err


def _split(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as err:
        raise ConfigError(
            f'judge_command: got {quote(mask_secrets(command))}, which a shell cannot parse: {err}'
        ) from err
    if not words:
        raise ConfigError('judge_command: got an empty text, allowed: a command')
    return words


def _temporary_file() -> IO[str]:
    return tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace')


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as err:
        raise ConfigError(f'judge_command: {path}: cannot be read: {err.strerror}') from err


def _bounded_lines(output: IO[str]) -> Iterator[str]:
    while line := output.readline(MAX_LINE_CHARACTERS):
        if len(line) == MAX_LINE_CHARACTERS:
            raise UnreadableReplyError(
                f'judge_command: a line has more than {MAX_LINE_CHARACTERS} characters, allowed: '
                'a judgement'
            )
        yield line


def _last(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - MAX_SAID_BYTES))
    end = said.read().decode(errors='replace')
    return quote((end.strip().splitlines() or ['nothing'])[-1])
