"""`p2d watch`: a live table of what a running drive node answers, and how fast."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from p2d_node.cli.table import answer_line, render
from rich.console import Console
from rich.live import Live

EXAMPLE = """example:
  p2d watch --node /p2d
"""
REFRESH_S = 0.25


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        'watch',
        help='show answers and times of a running node',
        description='Shows answers, stage times and complaints of a running drive node.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--node', default='/p2d', help='name of the node (default: /p2d)')
    parser.add_argument('--duration', type=float, metavar='S', help='stop after this long')
    parser.add_argument('--json', action='store_true', help='print answers as JSON lines')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show until Ctrl-C or `--duration`."""
    from p2d_node.ros.answer_watcher import AnswerWatcher
    from p2d_node.ros.spinning import spinning_node

    end_s = None if args.duration is None else time.monotonic() + args.duration
    with spinning_node('p2d_watch') as node:
        watcher = AnswerWatcher(node, args.node)
        with LiveTable(watcher, json_lines=args.json) as table:
            while end_s is None or time.monotonic() < end_s:
                table.update()
                time.sleep(REFRESH_S)
    return 0


class LiveTable:
    """Shows a watcher: a table on a terminal, else a line per answer (text or JSON)."""

    def __init__(self, watcher: Any, *, json_lines: bool = False) -> None:
        """Show `watcher`, an `AnswerWatcher`."""
        self._watcher = watcher
        self._json_lines = json_lines
        console = Console()
        self._live = Live(console=console) if console.is_terminal and not json_lines else None
        self._num_printed = 0

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Show what is new."""
        answers = self._watcher.answers
        if self._live is not None:
            self._live.update(render(answers, self._watcher.timings, self._watcher.problems))
            return
        for message in answers[self._num_printed :]:
            text = json.dumps(to_dict(message)) if self._json_lines else answer_line(message)
            print(text, flush=True)
        self._num_printed = len(answers)


def to_dict(message: Any) -> Any:
    """Return a ROS message as plain Python values."""
    if hasattr(message, 'get_fields_and_field_types'):
        return {
            name: to_dict(getattr(message, name)) for name in message.get_fields_and_field_types()
        }
    if isinstance(message, (str, int, float, bool)):
        return message
    return [to_dict(item) for item in message]
