"""Answers a question about a folder of six images, one per camera: CAM_FRONT.jpg and so on.

Run it as `python examples/answer_folder.py FOLDER "What should the ego vehicle do next?"`.
"""

import argparse
from pathlib import Path
import time

from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, FrameSet

parser = argparse.ArgumentParser(description='Answers a question about six images.')
parser.add_argument('folder', type=Path, help='holds CAM_FRONT.jpg and so on')
parser.add_argument('question')
arguments = parser.parse_args()
config = DriveConfig(model='p2d-mini')
frames = {}
for camera in config.cameras:
    path = arguments.folder / f'{camera}.jpg'
    if not path.is_file():
        parser.error(f'folder: there is no file {path}; needed: one image per camera')
    image = CompressedImage(format='jpeg', data=path.read_bytes())
    frames[camera] = CameraFrame(camera, stamp_ns=0, payload=image)
now_ns = time.monotonic_ns()
sweep = FrameSet(stamp_ns=0, frames=frames, first_arrival_ns=now_ns, closed_ns=now_ns)
pipeline = DrivingPipeline.from_config(config)
for answer in pipeline.answer(sweep, [arguments.question]):
    kept, total = sum(answer.tokens_kept.values()), sum(answer.tokens_total.values())
    print(f'{answer.answer} ({kept} of {total} visual tokens)')
pipeline.close()
