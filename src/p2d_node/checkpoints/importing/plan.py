"""What an importer finds out about a published checkpoint before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
"""Fields that the config.json of Llama and of InternLM2 share."""


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """A published checkpoint, translated; only its weights are still to be moved.

    Attributes:
        source: Its tensors.
        steps: How they become the new checkpoint's.
        unexpected: Its tensors that no step takes.
        model_class: The transformers class that loads the new checkpoint.
        config: Of that class.
        tokenizer: Of transformers, with the chat template the model was trained with.
        end_token_ids: Ids that end an answer.
        image_processor: Content of preprocessor_config.json.
        notes: What whoever imports should know.
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
    """Return the field `name` of a source's config.json.

    Raises:
        ConfigError: Its value is not one of `allowed`.
    """
    value = config.get(name, default)
    if value not in allowed:
        choices = ', '.join(repr(choice) for choice in allowed)
        raise ConfigError(f'config.json: {name}: got {value!r}, allowed: {choices}')
    return value


def take_fields(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the fields `names` of a source's config.json.

    Raises:
        ConfigError: One is missing.
    """
    missing = [name for name in names if name not in config]
    if missing:
        raise ConfigError(
            f'config.json has no {", ".join(missing)}; copy the config.json of the checkpoint'
        )
    return {name: config[name] for name in names}


@contextmanager
def checked_config() -> Iterator[None]:
    """Translate what transformers says about values that no model can have.

    Raises:
        ConfigError: A value of the wrong type, or values that contradict each other.
    """
    try:
        yield
    except KeyError as err:
        raise ConfigError(
            f'config.json: {err} is missing or of no known kind; copy the config.json of the '
            'checkpoint'
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
    """Return the rotary settings of a Llama-like config.json as transformers 5 names them."""
    if 'rope_parameters' in config:
        return dict(config['rope_parameters'])
    scaling = dict(config.get('rope_scaling') or {})
    kind = scaling.pop('type', None)
    scaling.setdefault('rope_type', kind or 'default')
    return {**scaling, 'rope_theta': config.get('rope_theta', 10000.0)}
