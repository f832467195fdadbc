"""DriveMM (RobotTron-Drive): LLaVA-NeXT's names and config become LLaVA-OneVision's.

The vision tower is SigLIP-so400m at 384 px without its last layer. LLaVA-NeXT takes what its last
remaining layer puts out, before the final normalisation: `hidden_states[-1]` of such a tower.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
import re
from typing import Any

from jinja2 import TemplateError
from p2d_node.checkpoints.checkpoint_files import checked_tokenizer, siglip_settings
from p2d_node.checkpoints.importing.plan import (
    checked_config,
    ImportPlan,
    require,
    rope_parameters,
    take_fields,
    TEXT_FIELDS,
)
from p2d_node.checkpoints.importing.streaming import find_shards, read_json, Source, Step
from p2d_node.errors import ConfigError
from transformers import (
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
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
"""Beginnings of LLaVA-NeXT's names, and what they become; names with no other are not expected."""

COMPUTED = re.compile(r'\.(rotary_emb\.inv_freq|position_ids)$')
"""Names of constants that some checkpoints store; models compute them."""

TOWER = 'vision_tower.vision_tower.vision_model.'
IMAGE_SIZE_PX = 384
NUM_VISION_HEADS = 16
"""Of SigLIP-so400m/14-384; neither is in the checkpoint."""

SYSTEM_MESSAGE = (
    'You are a helpful language and vision assistant. You are able to understand the visual '
    'content that the user provides, and assist the user with a variety of tasks using natural '
    'language.'
)
"""What LLaVA-NeXT's Llama-3 training puts before every conversation."""

LLAMA_3_TEMPLATE = (
    '{{ bos_token }}{% for message in messages %}'
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
)
"""Taken where the checkpoint's tokenizer has no template."""

LLAMA_3_1_DATE = '26 Jul 2024'
"""The date in Llama 3.1's template at the time; later ones would fill in today's."""

PLACEHOLDERS = ('<image>', '<|reserved_special_token_0|>')
"""Tokens that stand for a picture, the first that the vocabulary has; Llama 3 reserves some."""


def plan_import(folder: Path) -> ImportPlan:
    """Translate the checkpoint in `folder`.

    Raises:
        ConfigError: A file that is missing or broken, or a checkpoint of another kind.
    """
    source = Source(find_shards(folder))
    config = read_json(folder / 'config.json')
    _check_kind(config)
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


def _check_kind(config: Mapping[str, Any]) -> None:
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
        video_token_index=text['vocab_size'],  # no token: videos are not asked about
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
    """Return what LLaVA-NeXT's `process_images` does to each of several pictures."""
    aspect = config.get('image_aspect_ratio')
    if isinstance(aspect, str) and aspect.startswith(('anyres', 'highres', 'crop_split')):
        raise ConfigError(
            f'config.json: image_aspect_ratio: got {aspect!r}, which cuts a picture into tiles, '
            "allowed: 'pad', or 'square' to squash; where there are several pictures, LLaVA-NeXT "
            "trains such models with 'pad': set it in config.json"
        )
    return siglip_settings(IMAGE_SIZE_PX, pads=aspect == 'pad')


def _load_tokenizer(folder: Path) -> tuple[Any, int]:
    """Return the tokenizer with the template of training, and the picture's placeholder."""
    with checked_tokenizer(folder):
        # AutoTokenizer would look into config.json, whose model_type it does not know.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    vocabulary = tokenizer.get_vocab()
    placeholder = next((token for token in PLACEHOLDERS if token in vocabulary), None)
    if placeholder is None:
        placeholder = PLACEHOLDERS[0]
        tokenizer.add_tokens([placeholder], special_tokens=True)
    tokenizer.chat_template = make_chat_template(tokenizer, placeholder)
    return tokenizer, int(tokenizer.convert_tokens_to_ids(placeholder))


def make_chat_template(tokenizer: Any, placeholder: str) -> str:
    """Return a template that writes what LLaVA-NeXT's training wrote, for pictures and text.

    Training applies the tokenizer's own template to every message alone and drops what it begins
    with. So the words around a message are taken from there; in between stand the pictures,
    numbered where there are several: `1: <image> 2: <image>. These two images are ...`.

    Args:
        tokenizer: Its template takes messages that are texts.
        placeholder: The token of a picture.
    """
    template = tokenizer.chat_template or LLAMA_3_TEMPLATE

    def render(role: str, content: str) -> str:
        message = {'role': role, 'content': content}
        return str(
            tokenizer.apply_chat_template(
                [message], chat_template=template, tokenize=False, date_string=LLAMA_3_1_DATE
            )
        )

    bos, mark = tokenizer.bos_token or '', 'MARK'
    try:
        system = render('system', SYSTEM_MESSAGE)
        before, after = render('user', mark).removeprefix(bos).split(mark)
        answer, _ = render('assistant', mark).removeprefix(bos).split(mark)
    except (TemplateError, ValueError) as err:
        raise ConfigError(
            f"the chat template of the tokenizer is not like Llama 3's: {err}; copy the tokenizer "
            'files of the checkpoint again'
        ) from err
    return (
        f'{{{{ {_literal(system)} }}}}'
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f'{{{{ {_literal(before)} }}}}{_content_template(placeholder)}{{{{ {_literal(after)} }}}}'
        '{% endif %}{% endfor %}'
        f'{{% if add_generation_prompt %}}{{{{ {_literal(answer)} }}}}{{% endif %}}'
    )


def _content_template(placeholder: str) -> str:
    """Return the template of what a user's message says: pictures, then text."""
    picture = _literal(placeholder)
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
        '{% for picture in pictures %}{% if pictures | length > 1 %}'
        f"{{{{ loop.index ~ ': ' ~ {picture} ~ ('. ' if loop.last else ' ') }}}}"
        f"{{% else %}}{{{{ {picture} ~ '\\n' }}}}{{% endif %}}{{% endfor %}}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}{% endif %}"
    )


def _literal(text: str) -> str:
    """Return `text` as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)


def _end_token_ids(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> list[int]:
    path = folder / 'generation_config.json'
    generation = read_json(path) if path.is_file() else {}
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
