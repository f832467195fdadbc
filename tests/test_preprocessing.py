from concurrent.futures import ThreadPoolExecutor
import json
import shutil

from memory import peak_growth_bytes
import numpy as np
from p2d_node.errors import ConfigError, ImageDecodeError
from p2d_node.preprocessing import FrameStack, ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame
from pillow_levels import assert_close_to_pillow
import pytest
from sweeps import picture
import torch
import transformers
from transformers import LlavaOnevisionImageProcessorPil, SiglipImageProcessorPil

CPU = torch.device('cpu')


STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = [(900, 1600), (90, 160), (160, 90), (100, 100), (126, 300), (50, 126), (97, 31)]


def processing_of(fit: str, size: int, **changes: object) -> ImageProcessing:
    settings = {'resample': 3, 'rescale_factor': 1 / 255, 'mean': (0.5, 0.4, 0.3), 'std': STD}
    return ImageProcessing(height_px=size, width_px=size, fit=fit, **settings | changes)


def preprocess(pixels: np.ndarray, processing: ImageProcessing, order: str) -> torch.Tensor:
    frame = DecodedFrame('CAM_FRONT', 0, pixels, order)
    return normalize([resize_frame(frame, processing)], processing, CPU)[0]


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize(('height', 'width'), SIZES)
@pytest.mark.parametrize('mean', [(0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)])
def test_pixel_values_are_close_to_those_of_pillow(
    tiny_checkpoint, tmp_path, order, height, width, mean
):
    settings = json.loads((tiny_checkpoint / 'preprocessor_config.json').read_text())
    settings |= {'image_mean': mean, 'image_std': STD}
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
    rgb = picture(height=height, width=width)
    reference = LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path)
    # Two pictures in one sample: the mode in which views are padded, not tiled.
    expected = reference([[rgb, rgb]], return_tensors='pt')['pixel_values'][0, 0]

    pixels = rgb if order == 'rgb' else np.ascontiguousarray(rgb[..., ::-1])
    actual = preprocess(pixels, ImageProcessing.from_folder(tmp_path), order)
    assert_close_to_pillow(actual, expected, STD)


@pytest.mark.parametrize(('height', 'width'), SIZES)
@pytest.mark.parametrize(
    ('processor', 'fit'),
    [('LlavaOnevision', 'pad'), ('Siglip', 'squash'), ('GotOcr2', 'squash')],
)
def test_pictures_equal_those_of_the_default_processors(processor, fit, height, width):
    pytest.importorskip('torchvision', reason='the default processors resize with torchvision')
    processing = processing_of(fit, 126)
    options = {'crop_to_patches': False} if processor == 'GotOcr2' else {}
    reference = getattr(transformers, f'{processor}ImageProcessor')(
        size={'height': 126, 'width': 126},
        image_mean=processing.mean,
        image_std=STD,
        resample=3,
        **options,
    )
    rgb = picture(height=height, width=width)
    # Two pictures in one sample: the mode in which views are padded, not tiled.
    sample = [[rgb, rgb]] if fit == 'pad' else rgb
    expected = reference(sample, return_tensors='pt')['pixel_values'].reshape(-1, 3, 126, 126)[0]
    # They divide by 255 * std in one step, so a value may differ in its last bits.
    actual = preprocess(rgb, processing, 'rgb')
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_a_frame_is_padded_as_if_it_were_a_square_of_full_size(order, height, width):
    processing = processing_of('pad', 126)
    rgb, side = picture(height=height, width=width), max(height, width)
    square = np.full((side, side, 3), processing.padding_colour, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(square).permute(2, 0, 1)[None], 126, mode='bicubic', antialias=True
    )
    pixels = rgb if order == 'rgb' else np.ascontiguousarray(rgb[..., ::-1])
    actual = resize_frame(DecodedFrame('CAM_FRONT', 0, pixels, order), processing)
    np.testing.assert_array_equal(actual, expected[0].permute(1, 2, 0))


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('fit', ['pad', 'squash'])
def test_frames_that_are_read_only_or_have_padded_rows_give_the_same_picture(fit):
    torch.set_warn_always(True)
    rgb = picture(height=90, width=160)
    rows = np.zeros((90, 200, 3), np.uint8)
    rows[:, :160] = rgb
    read_only = rgb.copy()
    read_only.flags.writeable = False
    expected, *actual = (
        resize_frame(DecodedFrame('CAM_FRONT', 0, pixels, 'rgb'), processing_of(fit, 126))
        for pixels in (rgb, rows[:, :160], read_only)
    )
    torch.set_warn_always(False)
    for picture_of in actual:
        np.testing.assert_array_equal(picture_of, expected)


@pytest.mark.parametrize('factor', [1 / 255, 0.0038])
def test_normalisation_by_table_equals_the_arithmetic_bit_by_bit(factor):
    processing = processing_of('squash', 16, rescale_factor=factor)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    scaled = (levels * np.float64(factor)).astype(np.float32)
    expected = (scaled - np.float32(processing.mean)) / np.float32(processing.std)
    actual = normalize([levels, levels[::-1]], processing, CPU)
    assert actual.dtype == torch.float32
    for picture_values, rows in zip(actual, (expected, expected[::-1]), strict=True):
        np.testing.assert_array_equal(picture_values.permute(1, 2, 0), rows)


@pytest.mark.attack(
    'a picture one pixel wide, which a model that pads makes a square of its height',
    'a side has at most twice the root of the allowed pixels; rows are padded a few at a time',
)
def test_a_narrow_picture_is_padded_without_a_square_of_its_height(tiny_checkpoint):
    processing = ImageProcessing.from_folder(tiny_checkpoint)
    assert processing.fit == 'pad'
    frame = DecodedFrame('CAM_FRONT', 0, np.zeros((8192, 1, 3), np.uint8), 'rgb')
    assert peak_growth_bytes(lambda: resize_frame(frame, processing)) < 64 << 20


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize(('height', 'width'), [(900, 1600), (90, 160), (160, 90), (126, 126)])
def test_a_processor_without_padding_stretches_the_frame(tmp_path, order, height, width):
    settings = {
        'image_processor_type': 'SiglipImageProcessor',
        'size': {'height': 126, 'width': 126},
        'image_mean': [0.5, 0.4, 0.3],
        'image_std': [0.2, 0.3, 0.4],
        'resample': 3,
    }
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
    rgb = picture(height=height, width=width)
    reference = SiglipImageProcessorPil.from_pretrained(tmp_path)
    expected = reference(rgb, return_tensors='pt')['pixel_values'][0]

    pixels = rgb if order == 'rgb' else np.ascontiguousarray(rgb[..., ::-1])
    actual = preprocess(pixels, ImageProcessing.from_folder(tmp_path), order)
    assert_close_to_pillow(actual, expected, settings['image_std'], tall=height > width)


QWEN_RANGE = {
    'image_processor_type': 'Qwen2VLImageProcessor',
    'size': {'shortest_edge': 784, 'longest_edge': 1300},
}


def test_settings_may_be_part_of_processor_config(tiny_checkpoint, tmp_path):
    settings = json.loads((tiny_checkpoint / 'preprocessor_config.json').read_text())
    (tmp_path / 'processor_config.json').write_text(json.dumps({'image_processor': settings}))
    assert ImageProcessing.from_folder(tmp_path) == ImageProcessing.from_folder(tiny_checkpoint)


@pytest.mark.attack(
    'image settings with a smallest size, a patch or a token of millions of pixels',
    'refused: patches have up to 64 pixels per side, tokens 8 patches, a smallest picture 2^21',
)
@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'size': {'shortest_edge': 384}}, 'image size'),
        (
            {
                'image_processor_type': 'Qwen2VLImageProcessor',
                'size': {'shortest_edge': 10**12, 'longest_edge': 10**13},
            },
            'got 1000000000000 to 10000000000000 pixels, allowed: a range whose smallest is 1 to',
        ),
        (QWEN_RANGE | {'patch_size': 3000}, 'patch_size: got 3000, allowed: 1 to 64'),
        (QWEN_RANGE | {'merge_size': 0}, 'merge_size: got 0, allowed: 1 to 8'),
        (QWEN_RANGE | {'merge_size': '2'}, "merge_size: got '2', allowed: 1 to 8"),
        ({'do_normalize': False}, 'do_normalize: got False'),
        ({'image_processor_type': 'CLIPImageProcessor'}, 'image_processor_type: got .CLIP'),
        ({'image_mean': None}, None),
        ({'image_mean': [1e300, 0.5, 0.5]}, r'image_mean: got \[1e\+300.*above -16 and up to 16'),
        ({'size': float('nan')}, 'image size: got nan, allowed: equal height, width'),
        (QWEN_RANGE | {'size': 5}, 'image size: got 5, allowed: an object'),
        ({'image_mean': 'abc'}, "image_mean: got 'abc', allowed: three numbers"),
        (
            {'image_std': [0, 0.5, 0.5]},
            r'image_std: got \[0, 0.5, 0.5\], allowed: three num',
        ),
        ({'image_std': [1e-46, 1, 1]}, r'image_std: got .*, allowed: three numbers above 0.001'),
        ({'rescale_factor': float('nan')}, 'rescale_factor: got nan, allowed: a number above 0'),
    ],
)
def test_unsupported_settings_are_refused(tiny_checkpoint, tmp_path, change, reason):
    settings = json.loads((tiny_checkpoint / 'preprocessor_config.json').read_text()) | change
    if settings['image_mean'] is None:
        del settings['image_mean']
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=reason or 'no image processor settings'):
        ImageProcessing.from_folder(tmp_path)


def test_an_error_names_the_broken_json_file(tmp_path):
    (tmp_path / 'preprocessor_config.json').write_text('{')
    with pytest.raises(ConfigError, match=r'preprocessor_config\.json is not valid JSON'):
        ImageProcessing.from_folder(tmp_path)


def test_a_frame_of_another_size_than_the_engines_raises_an_error_with_the_camera():
    stack = FrameStack(2, 90, 160, pinned=False)
    frames = [
        DecodedFrame(camera, 0, picture(height=height, width=160), 'bgr')
        for camera, height in [('CAM_FRONT', 90), ('CAM_BACK', 80)]
    ]
    with ThreadPoolExecutor(1) as pool, pytest.raises(ImageDecodeError, match='80x160') as caught:
        stack.fill(frames, pool)
    assert list(caught.value.broken) == ['CAM_BACK']


@pytest.mark.parametrize('value', [1, 99, -1, 'bicubic', None, [3]])
def test_a_filter_that_torch_does_not_have_is_refused(tiny_checkpoint, tmp_path, value):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / 'tiny')
    path = folder / 'preprocessor_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'resample': value}))
    with pytest.raises(ConfigError, match=r'resample: got .*, allowed: 2 \(bilinear\), 3'):
        ImageProcessing.from_folder(folder)
