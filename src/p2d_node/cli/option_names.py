"""The error of a parameter comes in; the same with the option of the command line goes out."""

from __future__ import annotations

import argparse


def name_options(message: str, args: argparse.Namespace) -> str:
    """Replace the parameter at the beginning of an error message by its option.

    Below the command line a message begins with the name of the parameter and a colon, as in
    `rate_hz: got 0, allowed: 0.1 to 60 Hz`. A message that begins with anything else stays as it
    is.

    Args:
        message: The message of an error.
        args: The parsed command line. Its attribute `option_names` maps parameters to options
            where the names differ, as in `{'rate_hz': '--rate'}`. Without that attribute the
            message stays as it is.
    """
    if not hasattr(args, 'option_names'):
        return message
    parameter, colon, rest = message.partition(':')
    names = {name: f'--{name.replace("_", "-")}' for name in vars(args)} | args.option_names
    return f'{names.get(parameter, parameter)}{colon}{rest}'
