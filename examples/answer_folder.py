"""Answers a question about a folder of six images, one per camera: CAM_FRONT.jpg and so on.

Run it as `python examples/answer_folder.py FOLDER "What should the ego vehicle do next?"`.
"""

import argparse
from pathlib import Path

from p2d_node.config import DriveConfig
from p2d_node.errors import P2dError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import FrameSet

parser = argparse.ArgumentParser(description='Answers a question about six images.')
parser.add_argument('folder', type=Path, help='holds CAM_FRONT.jpg and so on')
parser.add_argument('question')
arguments = parser.parse_args()
config = DriveConfig(model='p2d-mini')
images = {camera: arguments.folder / f'{camera}.jpg' for camera in config.cameras}
try:
    sweep = FrameSet.from_images(images)
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(sweep, [arguments.question])
except P2dError as err:
    parser.error(str(err))
kept, total = sum(answer.tokens_kept.values()), sum(answer.tokens_total.values())
print(f'{answer.answer} ({kept} of {total} visual tokens)')
pipeline.close()
