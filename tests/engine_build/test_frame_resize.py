import numpy as np
from p2d_node.engine_build.frame_resize import FrameResize
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame
from PIL import Image
import pytest
import torch

SIZE = 96
STD = (0.5, 0.25, 0.2)


def processing(fit: str, resample: int) -> ImageProcessing:
    return ImageProcessing(
        height_px=SIZE,
        width_px=SIZE + (32 if fit == 'squash' else 0),
        fit=fit,
        resample=resample,
        rescale_factor=1 / 255,
        mean=(0.5, 0.45, 0.4),
        std=STD,
    )


@pytest.mark.parametrize('fit', ['pad', 'squash'])
@pytest.mark.parametrize('resample', [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize(
    ('height', 'width'), [(900, 1600), (720, 1280), (540, 320), (60, 90), (96, 96), (97, 31)]
)
def test_resizing_in_the_engine_is_resizing_as_the_processor_does(fit, resample, height, width):
    settings = processing(fit, resample)
    frames = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8)
    views = [DecodedFrame('CAM_FRONT', 0, frame, 'bgr') for frame in frames]
    expected = normalize([resize_frame(v, settings) for v in views], settings, torch.device('cpu'))

    actual = FrameResize(settings, height, width)(torch.from_numpy(frames))

    levels = (actual - expected).abs() * 255 * torch.tensor(STD).view(3, 1, 1)
    assert levels.max() < 1.001
    # Nearly all are the very level; a float32 sum may round to its neighbour.
    assert (levels > 0.001).float().mean() < 2e-4
