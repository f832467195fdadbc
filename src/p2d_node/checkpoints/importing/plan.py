"""The plan of an import, and checks of the config.json that it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
import json
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from p2d_node.checkpoints.importing.streaming import Source, Step
from p2d_node.errors import ConfigError

TEXT_FIELDS = (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'max_position_embeddings',
    'rms_norm_eps',
)
"""Fields that Llama and InternLM2 both have in config.json."""


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """How a published checkpoint becomes a new one.

    Attributes:
        source: Tensors of the published checkpoint.
        steps: Conversions from these tensors to those of the new checkpoint.
        unexpected: Names of tensors that no step uses.
        model_class: The transformers class that loads the new checkpoint.
        config: Configuration of that class.
        tokenizer: Tokenizer of transformers, with the chat template of the training.
        end_token_ids: Ids of the tokens that end an answer.
        image_processor: Content of preprocessor_config.json.
        notes: Messages for the user.
    """

    source: Source
    steps: Sequence[Step]
    unexpected: Sequence[str]
    model_class: Any
    config: Any
    tokenizer: Any
    end_token_ids: Sequence[int]
    image_processor: Mapping[str, Any]
    notes: Sequence[str] = field(default=())


def require(config: Mapping[str, Any], name: str, allowed: Sequence[Any], default: Any) -> Any:
    """Return the field `name` of a published config.json.

    Args:
        config: The content of config.json.
        name: The field.
        allowed: Values that can be imported.
        default: The value if the field is missing.

    Raises:
        ConfigError: The value is not one of `allowed`.
    """
    value = config.get(name, default)
    if value not in allowed:
        choices = ', '.join(repr(choice) for choice in allowed)
        raise ConfigError(f'config.json: {name}: got {value!r}, allowed: {choices}')
    return value


def take_fields(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields `names` of a published config.json.

    Raises:
        ConfigError: A field is missing.
    """
    missing = [name for name in names if name not in config]
    if missing:
        raise ConfigError(
            f'config.json has no {", ".join(missing)}; copy the config.json of the checkpoint'
        )
    return {name: config[name] for name in names}


@contextmanager
def checked_config() -> Iterator[None]:
    """Turn errors of transformers about values in config.json into a ConfigError.

    Raises:
        ConfigError: A value has the wrong type, or two values contradict each other.
    """
    try:
        yield
    except KeyError as err:
        raise ConfigError(
            f'config.json: {err} is missing or unknown; copy the config.json of the checkpoint'
        ) from err
    except (
        StrictDataclassError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as err:
        reason = ' '.join(str(err).split())
        raise ConfigError(
            f'config.json: {reason}; copy the config.json of the checkpoint'
        ) from err


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings of a Llama-like config.json with the names of transformers 5."""
    if 'rope_parameters' in config:
        return dict(config['rope_parameters'])
    scaling = dict(config.get('rope_scaling') or {})
    kind = scaling.pop('type', None)
    scaling.setdefault('rope_type', kind or 'default')
    return {**scaling, 'rope_theta': config.get('rope_theta', 10000.0)}


def jinja_literal(text: str) -> str:
    """Return `text` as a string literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def token_id(tokenizer: Any, token: str) -> int:
    """Return the id of a token that a model needs.

    Raises:
        ConfigError: The tokenizer does not have it.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ConfigError(
            f'the tokenizer has no token {token!r}; copy the tokenizer files of the checkpoint '
            'again, also tokenizer_config.json'
        )
    return int(found)
