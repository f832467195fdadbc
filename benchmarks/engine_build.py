"""Time and peak memory of `p2d build-engine` for full-size vision encoders with random weights.

Ahead-of-time TensorRT-RTX builds need no GPU:

    python benchmarks/engine_build.py --json > benchmarks/results/engine_build-2-core-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
import time

from p2d_node.checkpoints.untrained import make_tokenizer
import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

PROCESSOR = {
    'image_processor_type': 'LlavaOnevisionImageProcessor',
    'size': {'height': 384, 'width': 384},
    'resample': 3,
    'rescale_factor': 1 / 255,
    'image_mean': [0.5, 0.5, 0.5],
    'image_std': [0.5, 0.5, 0.5],
}


def write_siglip_so400m(folder: Path) -> None:
    """Write DriveMM's vision encoder and projector, with a language model of one small layer."""
    tokenizer = make_tokenizer()
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=make_small_text_model(len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        video_token_id=tokenizer.convert_tokens_to_ids('<video>'),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        dtype='float16',
    )
    save(LlavaOnevisionForConditionalGeneration, config, tokenizer, folder, PROCESSOR)


def write_internvit_300m(folder: Path) -> None:
    """Write InternVL2.5-8B's vision encoder and projector, with the same language model."""
    special = ('<unk>', '<|im_start|>', '<|im_end|>', '<img>', '</img>', '<IMG_CONTEXT>')
    tokenizer = make_tokenizer(special)
    config = InternVLConfig(
        vision_config={
            'hidden_size': 1024,
            'intermediate_size': 4096,
            'num_hidden_layers': 24,
            'num_attention_heads': 16,
            'image_size': [448, 448],
            'patch_size': [14, 14],
            'attention_bias': True,
        },
        text_config=make_small_text_model(len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>'),
        dtype='float16',
    )
    processor = {'image_processor_type': 'GotOcr2ImageProcessor', 'crop_to_patches': False}
    processor |= {'size': {'height': 448, 'width': 448}}
    save(InternVLForConditionalGeneration, config, tokenizer, folder, {**PROCESSOR, **processor})


def make_small_text_model(vocab_size: int) -> LlamaConfig:
    """Return a text model with one small layer and the hidden size of the real projector."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=4096,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=32,
    )


def save(model_class, config, tokenizer, folder: Path, processor: dict[str, object]) -> None:
    """Write a checkpoint with random weights."""
    torch.manual_seed(0)
    model_class(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor))


def write_qwen3_vl_8b(folder: Path) -> None:
    """Write Qwen3-VL-8B's vision tower and mergers, for pictures of at most 196,608 pixels."""
    special = ('<unk>', '<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|image_pad|>')
    tokenizer = make_tokenizer((*special, '<|vision_end|>', '<|video_pad|>'))
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        vision_config={
            'depth': 27,
            'hidden_size': 1152,
            'intermediate_size': 4304,
            'num_heads': 16,
            'patch_size': 16,
            'out_hidden_size': 4096,
            'num_position_embeddings': 2304,
            'deepstack_visual_indexes': [8, 16, 24],
        },
        text_config={
            **make_small_text_model(len(tokenizer)).to_diff_dict(),
            'head_dim': 128,
            'num_key_value_heads': 8,
        },
        vision_start_token_id=ids('<|vision_start|>'),
        image_token_id=ids('<|image_pad|>'),
        vision_end_token_id=ids('<|vision_end|>'),
        video_token_id=ids('<|video_pad|>'),
        tie_word_embeddings=False,
        dtype='float16',
    )
    processor = {
        'image_processor_type': 'Qwen2VLImageProcessorFast',
        'size': {'shortest_edge': 65536, 'longest_edge': 196608},
        'patch_size': 16,
        'temporal_patch_size': 2,
        'merge_size': 2,
        'image_mean': [0.5, 0.5, 0.5],
        'image_std': [0.5, 0.5, 0.5],
    }
    save(Qwen3VLForConditionalGeneration, config, tokenizer, folder, processor)


MODELS = {
    'siglip-so400m': write_siglip_so400m,
    'internvit-300m': write_internvit_300m,
    'qwen3-vl-8b': write_qwen3_vl_8b,
}


def measure(command: list[str]) -> dict[str, float]:
    """Run a command; returns its duration in seconds and its peak resident memory in GiB."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'{" ".join(command)}: exit status {os.waitstatus_to_exitcode(status)}')
    return {
        'seconds': round(time.monotonic() - began, 1),
        'peak_memory_gib': round(usage.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Build engines for each model and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--precision', default='fp16')
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    results = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as work:
            model = Path(work) / name
            MODELS[name](model)
            shared = ['--model', str(model), '--engine-dir', f'{work}/engines']
            shared += ['--precision', args.precision, '--camera-size', '900x1600']
            p2d = [sys.executable, '-m', 'p2d_node.cli.main']
            export = measure([*p2d, 'export', *shared])
            target = ['--backend', 'tensorrt_rtx', '--compute-capability', '8.6,8.9']
            build = measure([*p2d, 'build-engine', *shared, *target])
            plan = next(Path(work).glob('engines/*/tensorrt_rtx-*/engine.plan'))
            size = plan.stat().st_size
            results.append({'model': name, 'export': export, 'build': build, 'plan_bytes': size})
    report = {
        'machine': f'{platform.machine()}, {os.cpu_count()} cores',
        'torch': torch.__version__,
        'precision': args.precision,
        'results': results,
    }
    print(json.dumps(report, indent=2))


if __name__ == '__main__':
    main()
