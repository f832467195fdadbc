"""Compares questions to an imported Alpamayo 1.5 with the authors' code, on tiny random weights.

The authors' classes write the checkpoint, their helper and processor the prompt, and their model
answers; then the checkpoint is imported and asked here, unpruned. Prints a line per comparison.

    tools/run.sh .venv "" python benchmarks/against_alpamayo.py FOLDER_OF_THEIR_CODE

Their code needs einops, hydra-core with omegaconf 2.3, scipy, torchvision and transformers 4.57.1:
`--their-python` names a Python that has them. `--out FILE` writes a report as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.importing.alpamayo import CAMERA_NAMES, plan_import
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.config_parameters import config_from_parameters
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.generate import generate_greedy
from p2d_node.library_settings import prepare_libraries
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame, FrameSet
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent / 'tests'))
from tiny_qwen3 import write_published_qwen3_vl

CAMERAS = tuple(name for name in CAMERA_NAMES if name.startswith('camera_'))
"""Of the physical-AI data set, in the order of the authors' ids."""

BACKBONES = ('Qwen/Qwen3-VL-8B-Instruct', 'Qwen/Qwen3-VL-2B-Instruct')
"""What the authors' code loads by name: for config and tokenizer, and for picture settings."""

NUM_FRAMES = 4
INTERVAL_NS = 100_000_000
FRAME_SIZE_PX = (1080, 1920)
NUM_TOKENS = 24
CHECKPOINTS = {'marked': True, 'plain': False}
"""Name of a checkpoint to add_special_tokens in its config."""

CAMERA_IDS = ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 6])
QUESTIONS = (
    'Describe the scene.',
    'What should the ego vehicle do next, and why?',
    'Is the light at <c1,front,0.5,0.3> "red"?\nAnswer: yes or no.  ',
)
TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest one: float32, other kernels."""


def draw_frames() -> npt.NDArray[np.uint8]:
    """Return random pictures, uint8 [cameras, frames, height, width, 3]."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (len(CAMERAS), NUM_FRAMES, 27, 48, 3), np.uint8)
    height, width = FRAME_SIZE_PX
    frames = [
        [cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in clip]
        for clip in coarse
    ]
    return np.array(frames)


def make_cases() -> list[dict[str, Any]]:
    """Return all questions to all sets of cameras; one to the vocabulary without marks."""
    cases = [
        {'checkpoint': 'marked', 'camera_ids': ids, 'question': question}
        for ids in CAMERA_IDS
        for question in QUESTIONS
    ]
    return [case | {'num_tokens': NUM_TOKENS} for case in cases]


class Ours:
    """The imported checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._processing = ImageProcessing.from_folder(folder)
        self._family = load_family(
            open_checkpoint(folder),
            view_size=(self._processing.height_px, self._processing.width_px),
            dtype=torch.float32,
            device=torch.device('cpu'),
        )

    @torch.inference_mode()
    def answer(
        self, frames: npt.NDArray[np.uint8], cameras: Sequence[str], question: str
    ) -> dict[str, Any]:
        """Return what `alpamayo_authors.answer` returns.

        Args:
            frames: uint8 [cameras, frames, height, width, 3].
            cameras: Their names.
            question: The question.
        """
        family = self._family
        prompt = family.build_prompt(question, [name for name in cameras for _ in frames[0]])
        inputs = family.embed_prefix(prompt, family.vision_module(self._to_pixels(frames)))
        prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs))
        text = family.embed_text(prompt.suffix, inputs.end_position)
        prompts, logits = family.decoder.extend(prefix, [text], max_new_tokens=NUM_TOKENS)
        first = logits[0, -1].tolist()
        (generation,) = generate_greedy(
            family.decoder,
            prompts,
            logits,
            embed=family.embed,
            max_new_tokens=NUM_TOKENS,
            end_token_ids=family.end_token_ids,
        )
        pictures = [family._image_token_id] * (family.grid[0] * family.grid[1])
        before = [i for segment in prompt.segments for i in (*segment, *pictures)]
        return {
            'prompt': [*before, *prompt.suffix],
            'logits': first,
            'answer': list(generation.token_ids),
        }

    def _to_pixels(self, frames: npt.NDArray[np.uint8]) -> torch.Tensor:
        pictures = [
            resize_frame(DecodedFrame('', 0, frame, 'rgb'), self._processing)
            for clip in frames
            for frame in clip
        ]
        return normalize(pictures, self._processing, torch.device('cpu'))

    def to_text(self, token_ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""
        return self._family.detokenize(token_ids).strip()

    def cut(self, token_ids: Sequence[int]) -> list[int]:
        """Return an answer up to and including its first end token."""
        for place, token_id in enumerate(token_ids):
            if token_id in self._family.end_token_ids:
                return list(token_ids[: place + 1])
        return list(token_ids)


def answer_clip(
    folder: Path, frames: npt.NDArray[np.uint8], cameras: Sequence[str], questions: Sequence[str]
) -> list[str]:
    """Return the texts that the whole pipeline answers about a clip, unpruned.

    Args:
        folder: The imported checkpoint.
        frames: uint8 [cameras, frames, height, width, 3].
        cameras: Their names; the pipeline gets them in another order.
        questions: The questions, answered together.
    """
    names = list(reversed(cameras))
    ratios = {f'retention_ratio.{name}': 1.0 for name in names}
    settings = {'device': 'cpu', 'dtype': 'float32', 'drafts': 'none'}
    config = config_from_parameters(
        names, {'model': str(folder), 'max_new_tokens': NUM_TOKENS, **settings, **ratios}
    )
    sweeps = []
    for number in range(NUM_FRAMES):
        images = {name: frames[cameras.index(name), number] for name in names}
        stamps_ns = dict.fromkeys(names, number * INTERVAL_NS)
        sweeps.append(FrameSet.from_images(images, stamps_ns=stamps_ns))
    pipeline = DrivingPipeline.from_config(config)
    clip = replace(sweeps[-1], earlier=tuple(sweeps[:-1]))
    answers = pipeline.answer(clip, questions)
    pipeline.close()
    return [answer.answer for answer in answers]


def compare(case: dict[str, Any], theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Print one line; return what is the same and how far logits differ."""
    logits, expected = (np.array(side['logits']) for side in (ours, theirs))
    found = {
        'num_cameras': len(case['camera_ids']),
        'question': case['question'],
        'num_prompt_tokens': len(ours['prompt']),
        'same_prompt': ours['prompt'] == theirs['prompt'],
        'logit_difference': float(np.abs(logits - expected).max()),
        'largest_logit': float(np.abs(expected).max()),
        'num_answer_tokens': len(ours['answer']),
        'same_answer': ours['answer'] == theirs['answer'],
        'same_text': ours['text'] == theirs['text'],
    }
    print(
        f'{found["num_cameras"]} cameras x {NUM_FRAMES} frames, {case["question"][:24]!r}: '
        f'{found["num_prompt_tokens"]} token ids '
        f'{"equal" if found["same_prompt"] else "DIFFERENT"}; logits differ by up to '
        f'{found["logit_difference"]:.1e} (largest {found["largest_logit"]:.1f}); '
        f'{found["num_answer_tokens"]} answer tokens '
        f'{"equal" if found["same_answer"] else "DIFFERENT"}; text of the pipeline '
        f'{"equal" if found["same_text"] else "DIFFERENT"}'
    )
    return found


def is_same(found: dict[str, Any]) -> bool:
    """Return whether a comparison found no difference but that of rounding."""
    is_close = found['logit_difference'] <= TOLERANCE * found['largest_logit']
    are_same = (found[name] for name in ('same_prompt', 'same_answer', 'same_text'))
    return is_close and all(are_same)


def run_authors(code: Path, work: Path, python: str, cases: Sequence[dict[str, Any]]) -> Any:
    """Run the authors' half; return its results."""
    request = {'checkpoints': CHECKPOINTS, 'cases': cases}
    (work / 'request.json').write_text(json.dumps(request))
    np.save(work / 'frames.npy', np.ascontiguousarray(draw_frames().transpose(0, 1, 4, 2, 3)))
    half = Path(__file__).with_name('alpamayo_authors.py')
    subprocess.run(
        [python, str(half.resolve()), str(code.resolve())],
        check=True,
        cwd=work,
        env={**os.environ, 'HF_HUB_OFFLINE': '1'},
    )
    return json.loads((work / 'results.json').read_text())


def import_all(work: Path) -> Path:
    """Import both checkpoints, and return the one with marks; each prints its notes."""
    for name in CHECKPOINTS:
        plan = plan_import(work / name, work / BACKBONES[0])
        imported = import_checkpoint(plan, work / f'{name}-here', on_progress=lambda *_: None)
        notes = '; '.join(imported.notes)
        print(f'{name}: {imported.num_weights} weights, {len(plan.tokenizer)} tokens; {notes}')
    return work / 'marked-here'


def compare_all(code: Path, work: Path, python: str) -> dict[str, Any]:
    """Run both sides in `work`; return a report."""
    base, *others = (work / name for name in BACKBONES)
    write_published_qwen3_vl(base)
    for other in others:
        shutil.copytree(base, other)
    cases = make_cases()
    theirs = run_authors(code, work, python, cases)
    folder, frames = import_all(work), draw_frames()
    ours = Ours(folder)
    results, comparisons = iter(zip(cases, theirs['results'], strict=True)), []
    for camera_ids in CAMERA_IDS:
        cameras, clip = [CAMERAS[number] for number in camera_ids], frames[camera_ids]
        texts = answer_clip(folder, clip, cameras, QUESTIONS)
        for text, (case, result) in zip(texts, results, strict=False):
            mine = ours.answer(clip, cameras, case['question']) | {'text': text}
            answer = ours.cut(result['answer'])
            other = result | {'answer': answer, 'text': ours.to_text(answer)}
            comparisons.append(compare(case, other, mine))
    return {
        'benchmark': 'questions to an imported Alpamayo 1.5 of tiny random weights, float32',
        **describe_machine('cpu'),
        'transformers': transformers.__version__,
        'authors': theirs['versions'],
        'stubs': theirs['stubs'],
        'num_different_answers': len({tuple(r['answer']) for r in theirs['results']}),
        'comparisons': comparisons,
    }


def main() -> int:
    """Print all comparisons; the exit code is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('code', type=Path, help="A checkout of the authors' code.")
    parser.add_argument('--their-python', default=sys.executable)
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = compare_all(options.code, Path(name), options.their_python)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + '\n')
    return 0 if all(map(is_same, report['comparisons'])) else 1


if __name__ == '__main__':
    prepare_libraries()
    sys.exit(main())
