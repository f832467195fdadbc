"""Runs code that a file brings in, such as a template, with limits of time and memory."""

from __future__ import annotations

from collections.abc import Callable
import json
import os
from pathlib import Path
import resource
import select
import signal
import time
from typing import Any, NoReturn

READ_BYTES = 1 << 16
MEBIBYTE = 1 << 20


class LimitError(Exception):
    """The code failed, or reached a limit; the text says which."""


def run_limited(
    function: Callable[[], Any], *, limit_s: float, memory_bytes: int, result_bytes: int
) -> Any:
    """Call `function` in a forked process and return its result.

    A fork takes a few milliseconds, where a new interpreter takes a second. The function must not
    use a device, threads or libraries that do.

    Args:
        function: Returns JSON data.
        limit_s: Longest time, seconds.
        memory_bytes: Memory beyond that of this process.
        result_bytes: Largest result as JSON.

    Raises:
        LimitError: It raised an error, took too long, needed too much memory, gave a too large
            result, or its process ended.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_in_child(function, writer, memory_bytes)
    os.close(writer)
    try:
        reply = json.loads(_read_all(reader, time.monotonic() + limit_s, limit_s, result_bytes))
    except ValueError as err:
        raise LimitError('its process ended without a result') from err
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if 'error' in reply:
        raise LimitError(reply['error'])
    return reply['result']


def _read_all(reader: int, end: float, limit_s: float, result_bytes: int) -> bytes:
    content = bytearray()
    while True:
        if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            raise LimitError(f'it takes longer than {limit_s:g} s')
        chunk = os.read(reader, READ_BYTES)
        if not chunk:
            return bytes(content)
        content += chunk
        if len(content) > result_bytes:
            raise LimitError(f'its result is larger than {result_bytes} bytes')


def _run_in_child(function: Callable[[], Any], writer: int, memory_bytes: int) -> NoReturn:
    # Nothing of the parent may run here: no handlers of signals, no clean-up at exit.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library writes there before it panics
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        limit = _used_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            reply = {'result': function()}
        except MemoryError:
            reply = {'error': f'it needs more than {memory_bytes // MEBIBYTE} MiB'}
        except BaseException as err:  # whatever it raises ends here
            reply = {'error': str(err) or type(err).__name__}
        content = json.dumps(reply).encode()
        while content:
            content = content[os.write(writer, content) :]
    finally:
        os._exit(0)


def _used_bytes() -> int:
    num_pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[0])
    return num_pages * resource.getpagesize()
