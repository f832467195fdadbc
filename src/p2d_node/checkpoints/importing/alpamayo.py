"""Imports the backbone of Alpamayo 1.5, a Qwen3-VL with tokens of its own, for questions.

Alpamayo plans a trajectory with a second model beside its Qwen3-VL. Questions are answered by the
backbone alone; the rest is left out. A published folder has no tokenizer: the authors make it from
that of Qwen3-VL, and so does the import.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.checkpoints.fast_tokenizer import load_fast_tokenizer
from p2d_node.checkpoints.importing.plan import (
    checked_config,
    ImportPlan,
    require,
    take_fields,
    token_id,
)
from p2d_node.checkpoints.importing.streaming import Source, Step
from p2d_node.checkpoints.processor_template import processor_chat_template
from p2d_node.checkpoints.settings_limits import check_limits
from p2d_node.checkpoints.weight_files import check_files, find_weight_files
from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError, quote
from p2d_node.prompt_layout import PROMPT_KEY, PromptLayout
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

BACKBONE = 'vlm.'
EMBEDDINGS = 'model.language_model.embed_tokens.weight'
OUTPUT_LAYER = 'lm_head.weight'

USUAL_BACKBONE = 'Qwen/Qwen3-VL-8B-Instruct'
NUM_TRAJECTORY_TOKENS = 768
"""If config.json does not say it."""

MAX_TRAJECTORY_TOKENS = 1 << 14

MARKS = (
    *('prompt_start', 'prompt_end', 'image_start', '_padding_0', 'image_end'),
    *('traj_history_start', '_padding_1', 'traj_history_end', 'cot_start', 'cot_end'),
    *('_padding_2', '_padding_3', 'traj_future_start', '_padding_4', 'traj_future_end'),
    *('traj_history', 'traj_future', 'image_pad', '_padding_5', '_padding_6', '_padding_7'),
    *('_padding_8', 'route_start', 'route_pad', 'route_end', 'question_start', 'question_end'),
    *('answer_start', 'answer_end'),
)
"""Names of the special tokens with add_special_tokens, in the order of their ids. Qwen has the
token `<|image_pad|>` already; it keeps its id."""

TRAJECTORY_MARKS = (
    *('traj_history', 'traj_future', 'traj_history_start', 'traj_future_start'),
    *('traj_history_end', 'traj_future_end'),
)
"""Names of the special tokens without add_special_tokens, in the order of their ids."""

MIN_PIXELS, MAX_PIXELS = 163_840, 196_608
"""Of a picture, in the authors' code."""

END_TOKEN = '<|im_end|>'
SETTINGS_FILES = ('preprocessor_config.json', 'processor_config.json')

CAMERA_NAMES = {
    'CAM_FRONT_LEFT': 'Front left camera',
    'camera_cross_left_120fov': 'Front left camera',
    'CAM_FRONT': 'Front camera',
    'camera_front_wide_120fov': 'Front camera',
    'CAM_FRONT_RIGHT': 'Front right camera',
    'camera_cross_right_120fov': 'Front right camera',
    'CAM_BACK_LEFT': 'Rear left camera',
    'camera_rear_left_70fov': 'Rear left camera',
    'CAM_BACK': 'Rear camera',
    'camera_rear_tele_30fov': 'Rear camera',
    'CAM_BACK_RIGHT': 'Rear right camera',
    'camera_rear_right_70fov': 'Rear right camera',
    'camera_front_tele_30fov': 'Front telephoto camera',
}
"""Cameras of nuScenes and of the physical-AI data set, in the order of the authors' ids."""

SYSTEM = 'You are a driving assistant that generates safe and accurate actions.'
NUM_FRAMES, INTERVAL_MS = 4, 100


@dataclass(frozen=True, slots=True)
class _Base:
    """The Qwen3-VL that an Alpamayo was trained from.

    Attributes:
        folder: Its folder.
        config: Content of its config.json.
        image_processor: Settings of its image processor.
    """

    folder: Path
    config: Mapping[str, Any]
    image_processor: Mapping[str, Any]


def plan_import(folder: Path, base: Path | None) -> ImportPlan:
    """Plan the import of the checkpoint in `folder`.

    Args:
        folder: A published Alpamayo 1.5.
        base: A folder of Qwen3-VL with config, tokenizer, chat template and picture settings; its
            weights are not read.

    Raises:
        ConfigError: A file is missing or damaged, the checkpoint is of another format, or the two
            folders do not belong together.
    """
    check_files(folder, parameter='folder')
    check_limits(folder, parameter='folder')
    config = read_json_object(folder / 'config.json')
    _check_format(config)
    qwen = _open_base(base, config)
    source = Source(find_weight_files(folder, parameter='folder'))
    tokenizer = _load_tokenizer(qwen.folder)
    _add_tokens(tokenizer, config)
    _check_vocabulary(tokenizer, config, source)
    layout = make_layout(marked=bool(config.get('add_special_tokens', False)))
    with checked_config():
        new_config = _make_config(config, qwen, tokenizer, layout)
    return ImportPlan(
        source=source,
        steps=_make_steps(source, tied=bool(new_config.tie_word_embeddings)),
        unexpected=(),
        model_class=Qwen3VLForConditionalGeneration,
        config=new_config,
        tokenizer=tokenizer,
        end_token_ids=_end_token_ids(tokenizer, layout),
        image_processor=_image_processor(qwen, new_config),
        notes=_notes(source, config, qwen, layout),
    )


def _check_format(config: Mapping[str, Any]) -> None:
    require(config, 'model_type', ('alpamayo1_5',), None)
    require(config, 'vlm_backend', ('qwenvl3',), 'qwenvl3')
    require(config, 'add_special_tokens', (True, False), False)
    count = config.get('traj_vocab_size', NUM_TRAJECTORY_TOKENS)
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_TRAJECTORY_TOKENS):
        raise ConfigError(
            f'config.json: traj_vocab_size: got {quote(count)}, allowed: 1 to '
            f'{MAX_TRAJECTORY_TOKENS}, or null'
        )


def _open_base(base: Path | None, config: Mapping[str, Any]) -> _Base:
    if base is None:
        raise ConfigError(
            'base: got none, needed: a folder of the Qwen3-VL that the checkpoint was trained '
            f'from ({_backbone_name(config)}), with config, tokenizer, chat template and picture '
            'settings, as the checkpoint has no tokenizer; its weights are not needed'
        )
    check_files(base, parameter='base')
    check_limits(base, parameter='base')
    base_config = read_json_object(base / 'config.json', parameter='base')
    if base_config.get('model_type') != 'qwen3_vl':
        raise ConfigError(
            f'base: {base}: got family {quote(base_config.get("model_type"))}, allowed: qwen3_vl'
        )
    for path in (base / name for name in SETTINGS_FILES):
        if path.is_file():
            settings = read_json_object(path, parameter='base')
            pictures = settings.get('image_processor')
            return _Base(base, base_config, pictures if isinstance(pictures, dict) else settings)
    raise ConfigError(
        f'base: {base} has no {SETTINGS_FILES[0]}; copy it from the published Qwen3-VL'
    )


def _backbone_name(config: Mapping[str, Any]) -> str:
    return quote(config.get('vlm_name_or_path', USUAL_BACKBONE))


def _load_tokenizer(base: Path) -> Any:
    tokenizer = load_fast_tokenizer(base, parameter='base')
    template = processor_chat_template(base, parameter='base') or tokenizer.chat_template
    if not template:
        raise ConfigError(
            f'base: {base} has no chat template; copy chat_template.json from the published '
            'Qwen3-VL'
        )
    if not isinstance(template, str):
        raise ConfigError(
            f'base: {base}: got several chat templates, allowed: one text; copy '
            'chat_template.json from the published Qwen3-VL'
        )
    tokenizer.chat_template = template
    return tokenizer


def _add_tokens(tokenizer: Any, config: Mapping[str, Any]) -> None:
    """Add the tokens of Alpamayo in the order of the authors, which sets their ids."""
    count = config.get('traj_vocab_size', NUM_TRAJECTORY_TOKENS) or 0
    trajectory = [f'<i{number}>' for number in range(count)]
    if tokenizer.add_tokens(trajectory) != count:
        raise ConfigError(
            'base: its tokenizer has tokens of Alpamayo already, such as <i0>; name a Qwen3-VL as '
            'published'
        )
    marks = MARKS if config.get('add_special_tokens', False) else TRAJECTORY_MARKS
    tokenizer.add_tokens([f'<|{name}|>' for name in marks], special_tokens=True)


def _check_vocabulary(tokenizer: Any, config: Mapping[str, Any], source: Source) -> None:
    num_rows = source.shape(BACKBONE + EMBEDDINGS)[:1]
    first = tokenizer.get_vocab().get('<i0>')
    stored = config.get('vocab_size', len(tokenizer)), config.get('traj_token_start_idx', first)
    if num_rows != (len(tokenizer),) or stored != (len(tokenizer), first):
        raise ConfigError(
            f'base: with its tokenizer there are {len(tokenizer)} tokens, the first of a '
            f'trajectory is number {first}; the checkpoint has embeddings {list(num_rows)}, '
            f'vocab_size {quote(stored[0])} and traj_token_start_idx {quote(stored[1])}; name the '
            'Qwen3-VL that it was trained from'
        )


def make_layout(*, marked: bool) -> PromptLayout:
    """Return the layout of the authors' prompt for questions.

    Args:
        marked: Whether the vocabulary has marks around routes, questions and answers. The authors
            use those around a route in prompts for trajectories only.
    """
    marks: dict[str, Any] = {
        'context': '<|route_start|>{context}<|route_end|>',
        'question': '<|question_start|>{question}<|question_end|>',
        'answer': '<|answer_start|>',
    }
    content: dict[str, Any] = {
        'camera_names': CAMERA_NAMES,
        'system': SYSTEM,
        'camera': '{name}: ',
        'frame': 'frame {frame} ',
        'frames_per_camera': NUM_FRAMES,
        'frame_interval_ms': INTERVAL_MS,
        **(marks if marked else {}),
    }
    return PromptLayout(**content)


def _make_config(
    config: Mapping[str, Any], qwen: _Base, tokenizer: Any, layout: PromptLayout
) -> Qwen3VLConfig:
    shape = config if 'text_config' in config else qwen.config
    parts = take_fields(shape, ('text_config', 'vision_config'))
    tied = shape.get('tie_word_embeddings', False)
    return Qwen3VLConfig(
        text_config={**parts['text_config'], 'vocab_size': len(tokenizer)},
        vision_config=dict(parts['vision_config']),
        image_token_id=token_id(tokenizer, '<|image_pad|>'),
        video_token_id=token_id(tokenizer, '<|video_pad|>'),
        vision_start_token_id=token_id(tokenizer, '<|vision_start|>'),
        vision_end_token_id=token_id(tokenizer, '<|vision_end|>'),
        tie_word_embeddings=tied,
        **{PROMPT_KEY: layout.to_json()},
    )


def _make_steps(source: Source, *, tied: bool) -> list[Step]:
    names = [name for name in source.names if name.startswith(BACKBONE)]
    steps = [Step((name,), (name.removeprefix(BACKBONE),)) for name in names]
    if tied and BACKBONE + OUTPUT_LAYER not in names:
        steps.append(Step((BACKBONE + EMBEDDINGS,), (OUTPUT_LAYER,)))
    return steps


def _end_token_ids(tokenizer: Any, layout: PromptLayout) -> list[int]:
    ends = [END_TOKEN, '<|answer_end|>'] if layout.answer else [END_TOKEN]
    return sorted(token_id(tokenizer, end) for end in ends)


def _image_processor(qwen: _Base, config: Qwen3VLConfig) -> dict[str, Any]:
    settings = dict(qwen.image_processor)
    patch_px = config.vision_config.patch_size
    if settings.get('patch_size') != patch_px:
        raise ConfigError(
            f'base: {qwen.folder}: patch_size of its picture settings: got '
            f'{quote(settings.get("patch_size"))}, allowed: {patch_px}, as in its config.json'
        )
    for name in ('min_pixels', 'max_pixels'):  # they would come before `size`
        settings.pop(name, None)
    return {
        **settings,
        'image_processor_type': 'Qwen2VLImageProcessorFast',
        'size': {'shortest_edge': MIN_PIXELS, 'longest_edge': MAX_PIXELS},
    }


def _notes(
    source: Source, config: Mapping[str, Any], qwen: _Base, layout: PromptLayout
) -> list[str]:
    others = Counter(
        name.partition('.')[0] for name in source.names if not name.startswith(BACKBONE)
    )
    parts = ', '.join(f'{part} ({count} weights)' for part, count in sorted(others.items()))
    notes = [f'left out, as answers do not need it: {parts or "nothing"}']
    if 'text_config' not in config:
        notes.append(
            f'the settings of the backbone are those of {qwen.folder.name}; the checkpoint names '
            f'{_backbone_name(config)}'
        )
    if not layout.answer:
        notes.append(
            'its vocabulary has no marks of questions and answers (add_special_tokens is false): '
            'questions are asked without them'
        )
    return notes
