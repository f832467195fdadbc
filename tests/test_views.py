import numpy as np
from p2d_node.checkpoints.importing import drivelmm_o1
from p2d_node.errors import ConfigError, ImageDecodeError
from p2d_node.records import CameraFrame, Cut, DecodedFrame, DrivingAnswer, FrameSet, RawImage
from p2d_node.ros.overlay import CAPTION_HEIGHT_PX, draw_kept_tokens
from p2d_node.views import make_views, Mosaic, SeparateViews
import pytest
import torch

CPU = torch.device('cpu')


def stitched_views(rows, grid):
    return make_views(Mosaic(rows), grid, padded=False, device=CPU, model='o1')


def test_views_of_different_sizes_cannot_be_stitched():
    views = stitched_views((('CAM_FRONT', 'CAM_BACK'),), (4, 4))
    frames = [
        DecodedFrame(name, 0, np.zeros((height, 8, 3), np.uint8), 'rgb')
        for name, height in (('CAM_FRONT', 4), ('CAM_BACK', 6))
    ]
    with pytest.raises(ImageDecodeError, match=r'CAM_BACK: got 6 x 8 rgb, but CAM_FRONT 4 x 8'):
        views.to_pictures(frames)


def test_a_mosaic_with_more_views_than_tokens_is_refused():
    rows = tuple((f'CAM_{number}',) for number in range(6))
    with pytest.raises(ConfigError, match=r'got 6 rows of 1 views, allowed with o1: up to 4 rows'):
        stitched_views(rows, (4, 4))


def test_every_token_belongs_to_one_view():
    cameras = Mosaic(drivelmm_o1.MOSAIC).cameras
    views = stitched_views(drivelmm_o1.MOSAIC, (16, 16))
    tokens = torch.arange(256.0).view(1, 256, 1)
    batches = views.split_states(tokens, cameras)
    assert [batch.grid for batch in batches] == [(8, 5), (8, 6), (8, 5)] * 2
    regions = [batch.states.flatten().long() for batch in batches]
    assert sorted(torch.cat(regions).tolist()) == list(range(256))
    for camera, region in zip(cameras, regions, strict=True):
        local = torch.arange(views.count_tokens(camera))
        assert views.to_picture_indices(camera, local).tolist() == region.tolist()


def test_a_kept_patch_of_a_padded_frame_lies_in_the_square_around_it():
    # 4 x 4 patches over a square of 160 px; the frame is its middle 90 rows.
    tokens = SeparateViews((4, 4), padded=True).token_map('CAM_FRONT', 90, 160)
    mask = np.isin(tokens, [0, 5])
    square = np.zeros((160, 160), bool)
    square[:40, :40] = square[40:80, 40:80] = True
    np.testing.assert_array_equal(mask, square[35:125])


def test_a_kept_patch_of_a_squashed_frame_lies_in_the_frame():
    tokens = SeparateViews((2, 4), padded=False).token_map('CAM_FRONT', 90, 160)
    mask = np.isin(tokens, [0, 7])
    expected = np.zeros((90, 160), bool)
    expected[:45, :40] = expected[45:, 120:] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ('height', 'width', 'drawn_height'), [(16384, 1, 1920), (1, 16384, 1), (90, 160, 270)]
)
def test_a_narrow_view_is_drawn_in_a_picture_of_limited_size(height, width, drawn_height):
    data = bytes(height * width * 3)
    image = RawImage(height=height, width=width, encoding='rgb8', step=3 * width, data=data)
    frames = {'CAM': CameraFrame('CAM', 0, image)}
    answer = DrivingAnswer(
        stamp_ns=0,
        question='',
        answer='',
        model='',
        encoder='',
        clip_stamps_ns={'CAM': (0,)},
        tokens_total={'CAM': 16},
        keep_indices={'CAM': np.array([3])},
        mean_log_probability=0.0,
        num_generated_tokens=0,
        cut=Cut.END,
    )
    views = SeparateViews((4, 4), padded=True)
    drawn = draw_kept_tokens(FrameSet(stamp_ns=0, frames=frames), answer, views)
    assert drawn.shape[0] == CAPTION_HEIGHT_PX + drawn_height
