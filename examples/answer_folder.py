"""Answers a question about a folder of six images, one per camera: CAM_FRONT.jpg and so on.

Run it as `python examples/answer_folder.py FOLDER "What should the ego vehicle do next?"`.
"""

from pathlib import Path
import sys

from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, FrameSet

folder, question = Path(sys.argv[1]), sys.argv[2]
config = DriveConfig(model='p2d-mini')
frames = {}
for camera in config.cameras:
    image = CompressedImage(format='jpeg', data=(folder / f'{camera}.jpg').read_bytes())
    frames[camera] = CameraFrame(camera, stamp_ns=0, payload=image)
sweep = FrameSet(stamp_ns=0, frames=frames, first_arrival_ns=0, closed_ns=0)
pipeline = DrivingPipeline.from_config(config)
for answer in pipeline.answer(sweep, [question]):
    kept, total = sum(answer.tokens_kept.values()), sum(answer.tokens_total.values())
    print(f'{answer.answer} ({kept} of {total} visual tokens)')
pipeline.close()
