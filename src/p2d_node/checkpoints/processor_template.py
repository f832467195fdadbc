"""A checkpoint folder comes in; the chat template of its processor goes out."""

from __future__ import annotations

from pathlib import Path

from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError


def processor_chat_template(folder: Path, *, parameter: str = 'model') -> str | None:
    """Return the processor's chat template, which replaces the tokenizer's, if it has one.

    Up to transformers 4.4x it lies in chat_template.json, later in processor_config.json or in
    chat_template.jinja, which the tokenizer reads too.

    Args:
        folder: The checkpoint.
        parameter: What named the folder, for messages.

    Raises:
        ConfigError: A file is not a JSON object, or its template is not a text.
    """
    for name in ('processor_config.json', 'chat_template.json'):
        path = folder / name
        template = (
            read_json_object(path, parameter=parameter).get('chat_template')
            if path.exists()
            else None
        )
        if template is None:
            continue
        if not isinstance(template, str):
            raise ConfigError(
                f'{parameter}: {path}: chat_template: got {template!r}, allowed: a text in '
                'Jinja; copy the file from the checkpoint again'
            )
        return template
    return None
