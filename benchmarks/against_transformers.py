"""Answers questions about one sweep with this project and with transformers; compares the texts.

transformers: its image processor, chat template, tokenizer and `generate`, question by question,
as its documentation has it. Both on the same weights, in one process, in turns, processor time.

    tools/run.sh .venv "" python benchmarks/against_transformers.py --threads 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import io
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any

from p2d_node.bags.records import to_frame_set
from p2d_node.benchmarks.measuring import describe_machine
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.synthetic import draw_images
from p2d_node.config import DriveConfig
from p2d_node.language_model.prompt import describe_views
from p2d_node.library_settings import prepare_libraries
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import FrameSet, NUSCENES_CAMERAS
from PIL import Image
import torch
from transformers import AutoImageProcessor, AutoTokenizer, LlavaOnevisionForConditionalGeneration

QUESTIONS = (
    'What should the ego vehicle do next, and why?',
    'What should the ego vehicle do next?',
    'What are the important objects in the current scene?',
    'What is the closest object in front of the ego vehicle?',
    'What is the weather?',
    'Is it safe to change to the left lane?',
    'Is it safe to change to the right lane?',
    'What color is the traffic light?',
    'Is there a pedestrian in the front view?',
    'Is there a car in the front view?',
    'Is there a car in the back view?',
    'Is there a truck in the front view?',
    'Is there a cyclist in the front left view?',
    'Is there a bus in the front right view?',
    'How many cars are there in the front view?',
    'How many cars are there in the back view?',
    'How many pedestrians are there in the front view?',
    'What is the moving status of the vehicle ahead?',
    'Which object is in the path of the ego vehicle?',
    'What is dangerous in the current scene?',
)
MAX_NEW_TOKENS = 32
SCENARIO, SEED = 'lead-brakes', 7


class Transformers:
    """The checkpoint as transformers runs it."""

    def __init__(self, folder: Path) -> None:
        open_checkpoint(folder)
        self._processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        self._model = model.eval()
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        self._tokens_per_view = side * side + 1  # with the newline

    @torch.inference_mode()
    def answer(self, jpegs: Sequence[bytes], questions: Sequence[str]) -> list[str]:
        """Answer each question with a prefill of its own."""
        return [self._answer(jpegs, question) for question in questions]

    def _answer(self, jpegs: Sequence[bytes], question: str) -> str:
        images = [Image.open(io.BytesIO(jpeg)).convert('RGB') for jpeg in jpegs]
        pixels = self._processor(images=images, return_tensors='pt')['pixel_values']
        asked = f'{describe_views(NUSCENES_CAMERAS)} {question}'
        content = [*[{'type': 'image'}] * len(images), {'type': 'text', 'text': asked}]
        text = self._tokenizer.apply_chat_template(
            [{'role': 'user', 'content': content}], add_generation_prompt=True, tokenize=False
        )
        text = text.replace('<image>', '<image>' * self._tokens_per_view)
        input_ids = self._tokenizer(text, return_tensors='pt').input_ids
        output = self._model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=pixels[:, None],
            image_sizes=torch.tensor([[image.height, image.width] for image in images]),
            batch_num_images=torch.tensor([len(images)]),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        ids = output[0, input_ids.shape[1] :]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()


class Ours:
    """The checkpoint as this project runs it, at one retention ratio."""

    def __init__(self, folder: Path, retention_ratio: float) -> None:
        self._pipeline = DrivingPipeline.from_config(
            DriveConfig(
                model=str(folder),
                device='cpu',
                dtype='float32',
                retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, retention_ratio),
                max_new_tokens=MAX_NEW_TOKENS,
                question_batch=len(QUESTIONS),
                drafts='none',  # the same sweep again and again would be its own best draft
            )
        )

    def answer(self, sweep: FrameSet, questions: Sequence[str]) -> list[str]:
        """Answer all questions over one prefix."""
        return [answer.answer for answer in self._pipeline.answer(sweep, questions)]


def measure(ways: Mapping[str, Callable[[], list[str]]], rounds: int) -> dict[str, Any]:
    """Return the median processor time of each way, milliseconds, and its answers."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[str]] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started_ns = time.process_time_ns()
            answers[name] = way()
            if turn:  # the first round warms up
                times[name].append((time.process_time_ns() - started_ns) / 1e6)
    return {'ms': {n: statistics.median(t) for n, t in times.items()}, 'answers': answers}


def main() -> int:
    """Print a report as JSON; the exit code is 1 if a text differs unpruned."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--model', default='p2d-mini')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sweep = to_frame_set(draw_images(SCENARIO, 1, seed=SEED))
    jpegs = [frame.payload.data for frame in sweep.frames.values()]
    with model_folder(options.model) as folder:
        transformers = Transformers(folder)
        unpruned, pruned = Ours(folder, 1.0), Ours(folder, 0.1)
    result = measure(
        {
            'transformers': lambda: transformers.answer(jpegs, QUESTIONS),
            'unpruned': lambda: unpruned.answer(sweep, QUESTIONS),
            'ten percent': lambda: pruned.answer(sweep, QUESTIONS),
        },
        options.rounds,
    )
    answers, times_ms = result['answers'], result['ms']
    same = {name: sum(map(str.__eq__, answers[name], answers['transformers'])) for name in answers}
    report = {
        'benchmark': f'{len(QUESTIONS)} questions about one sweep, processor time, milliseconds',
        **describe_machine('cpu'),
        'model': options.model,
        'dtype': 'float32',
        'rounds': options.rounds,
        'median_ms': times_ms,
        'faster': {name: times_ms['transformers'] / value for name, value in times_ms.items()},
        'same_texts': same,
        'num_questions': len(QUESTIONS),
    }
    print(json.dumps(report, indent=2))
    return int(same['unpruned'] < len(QUESTIONS))


if __name__ == '__main__':
    prepare_libraries()
    sys.exit(main())
