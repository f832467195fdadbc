"""Imports DriveMM (RobotTron-Drive): from LLaVA-NeXT's format to LLaVA-OneVision's.

The vision tower is SigLIP-so400m at 384 px without its last layer. LLaVA-NeXT uses the output of
the last remaining layer before the final normalisation, `hidden_states[-1]` of this tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

from p2d_node.checkpoints.checkpoint_files import siglip_settings
from p2d_node.checkpoints.fast_tokenizer import load_fast_tokenizer
from p2d_node.checkpoints.importing.plan import (
    checked_config,
    ImportPlan,
    jinja_literal,
    require,
    rope_parameters,
    take_fields,
    TEXT_FIELDS,
)
from p2d_node.checkpoints.importing.streaming import Source, Step
from p2d_node.checkpoints.settings_limits import check_limits, MAX_LAYERS
from p2d_node.checkpoints.template_process import render_limited
from p2d_node.checkpoints.weight_files import find_weight_files
from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError
from p2d_node.limited_process import LimitError
from transformers import (
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

RENAMED = (
    (r'model\.vision_tower\.vision_tower\.vision_model\.', 'model.vision_tower.'),
    (r'model\.mm_projector\.0\.', 'model.multi_modal_projector.linear_1.'),
    (r'model\.mm_projector\.2\.', 'model.multi_modal_projector.linear_2.'),
    (r'model\.(embed_tokens|layers|norm)\.', r'model.language_model.\1.'),
    (r'model\.image_newline$', 'model.image_newline'),
    (r'lm_head\.', 'lm_head.'),
)
"""Prefixes of LLaVA-NeXT's names and their replacements; other names are not expected."""

COMPUTED = re.compile(r'\.(rotary_emb\.inv_freq|position_ids)$')
"""Names of constants that some checkpoints store; the model computes them itself."""

TOWER = 'vision_tower.vision_tower.vision_model.'
IMAGE_SIZE_PX = 384
NUM_VISION_HEADS = 16
"""Values of SigLIP-so400m/14-384, which the checkpoint does not contain."""

SYSTEM_MESSAGE = (
    'You are a helpful language and vision assistant. You are able to understand the visual '
    'content that the user provides, and assist the user with a variety of tasks using natural '
    'language.'
)
"""System message of LLaVA-NeXT's Llama-3 training."""

LLAMA_3_TEMPLATE = (
    '{{ bos_token }}{% for message in messages %}'
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
)
"""Used if the checkpoint's tokenizer has no template."""

LLAMA_3_1_DATE = '26 Jul 2024'
"""The date that Llama 3.1's template writes; newer templates insert the current date."""

PLACEHOLDERS = ('<image>', '<|reserved_special_token_0|>')
"""Placeholder tokens of a picture; the first one in the vocabulary is used."""


def plan_import(folder: Path) -> ImportPlan:
    """Plan the import of the checkpoint in `folder`.

    Raises:
        ConfigError: A file is missing or damaged, or the checkpoint is of another format.
    """
    source = Source(find_weight_files(folder, parameter='folder'))
    check_limits(folder, parameter='folder')
    config = read_json_object(folder / 'config.json')
    _check_format(config)
    tokenizer, image_token_id = _load_tokenizer(folder)
    steps, unexpected = _rename(source)
    with checked_config():
        new_config = _make_config(config, source, image_token_id)
    return ImportPlan(
        source=source,
        steps=steps,
        unexpected=unexpected,
        model_class=LlavaOnevisionForConditionalGeneration,
        config=new_config,
        tokenizer=tokenizer,
        end_token_ids=_end_token_ids(folder, config, tokenizer),
        image_processor=_image_processor(config),
    )


def _check_format(config: Mapping[str, Any]) -> None:
    require(config, 'mm_projector_type', ('mlp2x_gelu',), None)
    require(config, 'mm_patch_merge_type', ('spatial_unpad',), 'flat')
    require(config, 'mm_resampler_type', (None,), None)
    require(config, 'hidden_act', ('silu',), 'silu')
    tower = str(config.get('mm_vision_tower'))
    if 'siglip' not in tower.lower():
        raise ConfigError(
            f'config.json: mm_vision_tower: got {tower!r}, allowed: siglip-so400m-patch14-384'
        )


def _rename(source: Source) -> tuple[list[Step], list[str]]:
    steps: list[Step] = []
    unexpected: list[str] = []
    for name in source.names:
        target = _target_of(name)
        if target is not None:
            steps.append(Step((name,), (target,)))
        elif not COMPUTED.search(name):
            unexpected.append(name)
    return steps, unexpected


def _target_of(name: str) -> str | None:
    if COMPUTED.search(name):
        return None
    for pattern, replacement in RENAMED:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return None


def _make_config(
    config: Mapping[str, Any], source: Source, image_token_id: int
) -> LlavaOnevisionConfig:
    text = take_fields(config, TEXT_FIELDS)
    tie = bool(config.get('tie_word_embeddings', False))
    return LlavaOnevisionConfig(
        vision_config=_vision_config(source),
        text_config=LlamaConfig(
            **text,
            head_dim=config.get('head_dim'),
            rope_parameters=rope_parameters(config),
            attention_bias=bool(config.get('attention_bias', False)),
            mlp_bias=bool(config.get('mlp_bias', False)),
            bos_token_id=config.get('bos_token_id'),
            eos_token_id=config.get('eos_token_id'),
            tie_word_embeddings=tie,
        ),
        image_token_index=image_token_id,
        video_token_index=text['vocab_size'],  # not a token: there are no videos
        projector_hidden_act='gelu',
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        image_grid_pinpoints=[[IMAGE_SIZE_PX, IMAGE_SIZE_PX]],
        tie_word_embeddings=tie,
    )


def _vision_config(source: Source) -> SiglipVisionConfig:
    prefix = f'model.{TOWER}'
    layer = re.compile(rf'{re.escape(prefix)}encoder\.layers\.(\d+)\.')
    numbers = {int(match[1]) for match in map(layer.match, source.names) if match}
    if len(numbers) > MAX_LAYERS:
        raise ConfigError(
            f'its weights name {len(numbers)} vision layers, allowed: up to '
            f'{MAX_LAYERS}; copy the checkpoint again'
        )
    width, _, patch, _ = source.shape(f'{prefix}embeddings.patch_embedding.weight')
    inner, _ = source.shape(f'{prefix}encoder.layers.0.mlp.fc1.weight')
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(numbers),
        num_attention_heads=NUM_VISION_HEADS,
        image_size=IMAGE_SIZE_PX,
        patch_size=patch,
        hidden_act='gelu_pytorch_tanh',
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )


def _image_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that LLaVA-NeXT's `process_images` uses for several pictures."""
    aspect = config.get('image_aspect_ratio')
    if isinstance(aspect, str) and aspect.startswith(('anyres', 'highres', 'crop_split')):
        raise ConfigError(
            f'config.json: image_aspect_ratio: got {aspect!r}, which splits a picture into tiles, '
            "allowed: 'pad' or 'square'; LLaVA-NeXT trains such models with 'pad' on several "
            'pictures: set it in config.json'
        )
    return siglip_settings(IMAGE_SIZE_PX, pads=aspect == 'pad')


def _load_tokenizer(folder: Path) -> tuple[Any, int]:
    """Return the tokenizer with the chat template of the training, and the placeholder's id."""
    tokenizer = load_fast_tokenizer(folder, parameter='')
    vocabulary = tokenizer.get_vocab()
    placeholder = next((token for token in PLACEHOLDERS if token in vocabulary), None)
    if placeholder is None:
        placeholder = PLACEHOLDERS[0]
        tokenizer.add_tokens([placeholder], special_tokens=True)
    tokenizer.chat_template = make_chat_template(tokenizer, placeholder)
    return tokenizer, int(tokenizer.convert_tokens_to_ids(placeholder))


def make_chat_template(tokenizer: Any, placeholder: str) -> str:
    """Return a chat template that writes the text of LLaVA-NeXT's training.

    The training applies the tokenizer's own template to each message alone and drops the token
    that begins a text. So this template takes the text around a message from there. The pictures
    come before the question, numbered if there are several:
    `1: <image> 2: <image>. These two images are ...`.

    Args:
        tokenizer: The tokenizer; the content of its template's messages is a string.
        placeholder: The placeholder token of a picture.

    Raises:
        ConfigError: The tokenizer's template does not write a message between two fixed texts.
    """
    bos, mark = tokenizer.bos_token or '', 'MARK'
    roles = {'system': SYSTEM_MESSAGE, 'user': mark, 'assistant': mark}
    try:
        system, user, assistant = render_limited(
            lambda: [_render(tokenizer, role, text) for role, text in roles.items()]
        )
        before, after = user.removeprefix(bos).split(mark)
        answer, _ = assistant.removeprefix(bos).split(mark)
    except (LimitError, ValueError) as err:
        raise ConfigError(
            f"the chat template of the tokenizer is not like Llama 3's: {err}; copy the tokenizer "
            'files of the checkpoint again'
        ) from err
    return (
        f'{{{{ {jinja_literal(system)} }}}}'
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f'{{{{ {jinja_literal(before)} }}}}{_content_template(placeholder)}'
        f'{{{{ {jinja_literal(after)} }}}}'
        '{% endif %}{% endfor %}'
        f'{{% if add_generation_prompt %}}{{{{ {jinja_literal(answer)} }}}}{{% endif %}}'
    )


def _render(tokenizer: Any, role: str, content: str) -> str:
    """Return one message as the tokenizer's own template writes it; runs in a child process."""
    text = tokenizer.apply_chat_template(
        [{'role': role, 'content': content}],
        chat_template=tokenizer.chat_template or LLAMA_3_TEMPLATE,
        tokenize=False,
        date_string=LLAMA_3_1_DATE,
    )
    return str(text)


def _content_template(placeholder: str) -> str:
    """Return the template of a user's message: pictures, then text."""
    picture = jinja_literal(placeholder)
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
        '{% for picture in pictures %}{% if pictures | length > 1 %}'
        f"{{{{ loop.index ~ ': ' ~ {picture} ~ ('. ' if loop.last else ' ') }}}}"
        f"{{% else %}}{{{{ {picture} ~ '\\n' }}}}{{% endif %}}{{% endfor %}}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}{% endif %}"
    )


def _end_token_ids(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> list[int]:
    path = folder / 'generation_config.json'
    generation = read_json_object(path) if path.is_file() else {}
    found = [tokenizer.get_vocab().get('<|eot_id|>')]
    for settings in (generation, config):
        ids = settings.get('eos_token_id')
        found += ids if isinstance(ids, list) else [ids]
    wrong = [token_id for token_id in found if not isinstance(token_id, int | None)]
    if wrong:
        raise ConfigError(
            f'{folder}: eos_token_id: got {wrong[0]!r}, allowed: a token id or a list of them; '
            'copy config.json and generation_config.json again'
        )
    return sorted({token_id for token_id in found if token_id is not None})
