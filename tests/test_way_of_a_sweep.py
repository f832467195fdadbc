"""The pipeline calls the stages one after another; no stage calls back into it."""

from pathlib import Path
import sys

from p2d_node.config import DriveConfig
import p2d_node.pipeline
from p2d_node.pipeline import DrivingPipeline
import pytest
from sweeps import make_frame_set

PACKAGE = Path(p2d_node.pipeline.__file__).resolve().parent
STAGES = {
    'vision_frontend.py': 'frontend',
    'vision_encoder/torch_encoder.py': 'encoder',
    'token_selection/sweep_selector.py': 'selector',
    'language_model/conversation.py': 'language model',
    'answers.py': 'answers',
}
WAY = ['frontend', 'encoder', 'language model', 'selector', 'language model', 'answers']


def file_of(frame) -> str:
    path = Path(frame.f_code.co_filename).resolve()
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ''


def callers(frame):
    while frame.f_back is not None:
        frame = frame.f_back
        yield file_of(frame)


@pytest.mark.parametrize('prune_layer', [0, 1])
def test_the_way_of_a_sweep_is_a_straight_line(tiny_checkpoint, prune_layer):
    config = DriveConfig(
        model=str(tiny_checkpoint), device='cpu', max_new_tokens=4, prune_layer=prune_layer
    )
    pipeline = DrivingPipeline.from_config(config)
    way: list[str] = []
    calls_back: list[str] = []

    def trace(frame, event, _):
        if event != 'call':
            return
        name = file_of(frame)
        if name in STAGES and way[-1:] != [STAGES[name]]:
            way.append(STAGES[name])
        if name == 'pipeline.py' and any(caller in STAGES for caller in callers(frame)):
            calls_back.append(frame.f_code.co_name)

    sys.setprofile(trace)
    try:
        pipeline.answer(make_frame_set(), ['What is ahead?', 'Why?'], must_stop=lambda: False)
    finally:
        sys.setprofile(None)
        pipeline.close()
    assert way == WAY
    assert calls_back == []
