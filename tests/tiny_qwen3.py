"""A tiny Qwen3-VL, also in the files that Qwen publishes, those of transformers 4.57."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.families.registry import load_family
from p2d_node.preprocessing import ImageProcessing
from tiny_checkpoints import IMAGENET, qwen_settings, save, text_settings
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    Regex,
    Tokenizer,
    trainers,
)
import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL_TOKENS = (
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|image_pad|>',
    '<|video_pad|>',
)

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
"""The regular expression of Qwen2's tokenizer."""

SENTENCES = (
    'user assistant system You are a driving assistant that generates safe and accurate actions.',
    'Front left camera: frame 0 Front camera: frame 1 Rear right camera: frame 2 telephoto 3',
    'What should the ego vehicle do next, and why? Is the road wet? Describe the scene in detail.',
)
"""Words that the tokenizer has tokens for; it knows every byte."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    '{% endfor %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
"""With the structure of Qwen's."""

VISION = {
    'depth': 3,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_heads': 2,
    'patch_size': 16,
    'out_hidden_size': 48,
    'num_position_embeddings': 64,
    'deepstack_visual_indexes': [0, 1],
    'initializer_range': 0.3,
}
ROPE_THETA = 10_000.0
ROPE = {'rope_type': 'default', 'mrope_section': [2, 2, 2], 'mrope_interleaved': True}
TEXT = {
    'head_dim': 12,
    'max_position_embeddings': 16384,
    'rope_parameters': {**ROPE, 'rope_theta': ROPE_THETA},
}


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the parts of Qwen2's and a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token='<|im_end|>', pad_token='<|endoftext|>'
    )
    fast.chat_template = TEMPLATE
    return fast


def write_published_qwen3_vl(folder: Path, *, pixels: int = 9216, tied: bool = False) -> Path:
    """Write config, tokenizer, settings and weights as Qwen's repositories have them.

    Args:
        folder: The folder to create.
        pixels: Largest number of pixels of a view; a token has 32 x 32.
        tied: Whether the output layer is the table of embeddings.
    """
    tokenizer = qwen_tokenizer()
    config = Qwen3VLConfig(
        vision_config=VISION,
        text_config={**text_settings(tokenizer), **TEXT, 'tie_word_embeddings': tied},
        **qwen_settings(tokenizer) | {'tie_word_embeddings': tied},
    )
    processor = picture_settings(pixels)
    save(Qwen3VLForConditionalGeneration, config, tokenizer, processor, folder)
    _write_json(folder / 'video_preprocessor_config.json', processor | VIDEO_SETTINGS)
    _write_json(folder / 'chat_template.json', {'chat_template': TEMPLATE})
    (folder / 'chat_template.jinja').unlink()
    _write_tokenizer_config(folder, tokenizer)
    _name_rope_as_published(folder / 'config.json')
    return folder


VIDEO_SETTINGS = {
    'video_processor_type': 'Qwen3VLVideoProcessor',
    'processor_class': 'Qwen3VLProcessor',
}


def picture_settings(pixels: int) -> dict:
    """Settings of the image processor of Qwen3-VL."""
    return {
        'image_processor_type': 'Qwen2VLImageProcessorFast',
        'processor_class': 'Qwen3VLProcessor',
        'size': {'shortest_edge': 784, 'longest_edge': pixels},
        'patch_size': 16,
        'temporal_patch_size': 2,
        'merge_size': 2,
        **IMAGENET,
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))


def _write_tokenizer_config(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    added = {
        str(tokenizer.convert_tokens_to_ids(token)): {
            'content': token,
            'lstrip': False,
            'normalized': False,
            'rstrip': False,
            'single_word': False,
            'special': True,
        }
        for token in SPECIAL_TOKENS
    }
    content = {
        'add_prefix_space': False,
        'added_tokens_decoder': added,
        'additional_special_tokens': list(SPECIAL_TOKENS[1:]),
        'bos_token': None,
        'chat_template': TEMPLATE,
        'clean_up_tokenization_spaces': False,
        'eos_token': '<|im_end|>',
        'errors': 'replace',
        'model_max_length': 262144,
        'pad_token': '<|endoftext|>',
        'split_special_tokens': False,
        'tokenizer_class': 'Qwen2Tokenizer',
        'unk_token': None,
    }
    _write_json(folder / 'tokenizer_config.json', content)
    model = json.loads((folder / 'tokenizer.json').read_text())['model']
    _write_json(folder / 'vocab.json', model['vocab'])
    merges = [m if isinstance(m, str) else ' '.join(m) for m in model['merges']]
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]) + '\n')


def _name_rope_as_published(path: Path) -> None:
    content = json.loads(path.read_text())
    text = content['text_config']
    text.pop('rope_parameters')
    text |= {'rope_theta': ROPE_THETA, 'rope_scaling': ROPE}
    _write_json(path, content)


def write_byte_qwen3_vl(
    folder: Path, *, pixels: int = 9216, marks: Sequence[str] = (), layout: dict | None = None
) -> Path:
    """Write Qwen3-VL as transformers saves it, with the tokenizer that knows every byte.

    Args:
        folder: The folder to create.
        pixels: Largest number of pixels of a view; a token has 32 x 32.
        marks: Further special tokens.
        layout: The value of p2d_prompt in config.json.
    """
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(list(marks), special_tokens=True)
    config = Qwen3VLConfig(
        vision_config=VISION,
        text_config={**text_settings(tokenizer), **TEXT},
        **qwen_settings(tokenizer),
    )
    save(Qwen3VLForConditionalGeneration, config, tokenizer, picture_settings(pixels), folder)
    if layout is not None:
        path = folder / 'config.json'
        _write_json(path, json.loads(path.read_text()) | {'p2d_prompt': layout})
    return folder


def load(folder: Path) -> Family:
    """The model of a folder in float32 on the CPU, for pictures of the size that it makes."""
    processing = ImageProcessing.from_folder(folder)
    return load_family(
        open_checkpoint(folder),
        view_size=(processing.height_px, processing.width_px),
        dtype=torch.float32,
        device=torch.device('cpu'),
    )
