from io import BytesIO
import resource
import time
import zlib

import cv2
from memory import peak_growth_bytes
import numpy as np
from p2d_node.errors import ImageDecodeError
from p2d_node.image_decoding import BAYER_CODES, BYTES_PER_PIXEL, decode_frame, PACKED_YUV_CODES
from p2d_node.png_files import plain_png
from p2d_node.records import CameraFrame, CompressedImage, DecodedFrame, RawImage
from PIL import Image
import pytest
from sweeps import jpeg, picture


def decode(payload: object) -> DecodedFrame:
    return decode_frame(CameraFrame('CAM_FRONT', 7, payload))


def png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode('.png', pixels)[1].tobytes())


def raw(pixels: np.ndarray, encoding: str, **changes: object) -> RawImage:
    fields = {
        'height': pixels.shape[0],
        'width': pixels.shape[1],
        'encoding': encoding,
        'step': pixels.strides[0],
        'data': pixels.tobytes(),
        **changes,
    }
    return RawImage(**fields)


@pytest.mark.parametrize(('encoding', 'order'), [('bgr8', 'bgr'), ('rgb8', 'rgb')])
def test_raw_rgb_and_bgr_are_used_without_a_copy(encoding, order):
    image = raw(picture(), encoding)
    decoded = decode(image)
    assert decoded.channel_order == order
    np.testing.assert_array_equal(decoded.pixels, picture())
    assert np.shares_memory(decoded.pixels, np.frombuffer(image.data, np.uint8))
    assert (decoded.camera, decoded.stamp_ns) == ('CAM_FRONT', 7)


@pytest.mark.parametrize('encoding', ['bgr8', 'bgra8', 'mono8', 'yuv422_yuy2'])
def test_row_padding_is_not_part_of_the_image(encoding):
    channels = {'bgr8': 3, 'bgra8': 4, 'mono8': 1, 'yuv422_yuy2': 2}[encoding]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (20, 30 * channels), np.uint8)
    padded = np.pad(rows, ((0, 0), (0, 24)), constant_values=99)
    pixels = rows.reshape(20, 30, channels)
    plain = decode(raw(pixels, encoding, step=30 * channels))
    with_padding = decode(
        RawImage(
            height=20, width=30, encoding=encoding, step=padded.shape[1], data=padded.tobytes()
        )
    )
    np.testing.assert_array_equal(plain.pixels, with_padding.pixels)
    assert plain.pixels.shape == (20, 30, 3)


@pytest.mark.parametrize(
    ('encoding', 'to_message'),
    [
        ('rgba8', lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA)),
        ('bgra8', lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA)),
    ],
)
def test_four_channel_images_lose_only_alpha(encoding, to_message):
    rgb = picture()
    decoded = decode(raw(to_message(rgb), encoding))
    assert decoded.channel_order == 'rgb'
    np.testing.assert_array_equal(decoded.pixels, rgb)


def test_grey_becomes_three_equal_channels():
    grey = picture()[..., 0].copy()
    decoded = decode(raw(grey, 'mono8'))
    np.testing.assert_array_equal(decoded.pixels, np.stack([grey] * 3, axis=-1))


def test_a_bayer_image_of_one_colour_decodes_to_that_colour():
    mosaic = np.zeros((20, 20), np.uint8)
    mosaic[0::2, 0::2] = 200  # the red sites of RGGB
    decoded = decode(raw(mosaic, 'bayer_rggb8'))
    assert decoded.pixels[10, 10].tolist() == [200, 0, 0]


@pytest.mark.parametrize(
    ('encoding', 'code'),
    [('yuv422', cv2.COLOR_RGB2YUV_UYVY), ('yuv422_yuy2', cv2.COLOR_RGB2YUV_YUY2)],
)
def test_packed_yuv_decodes_to_the_encoded_colours(encoding, code):
    rgb = np.full((20, 20, 3), (200, 60, 30), np.uint8)
    decoded = decode(raw(cv2.cvtColor(rgb, code), encoding))
    assert np.abs(decoded.pixels.astype(int) - rgb).max() <= 2


def test_jpeg_and_png_decode():
    pixels = picture()
    png = CompressedImage(format='png', data=cv2.imencode('.png', pixels)[1].tobytes())
    decoded = decode(png)
    assert decoded.channel_order == 'bgr'
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert np.abs(decode(jpeg(pixels)).pixels.astype(int) - pixels).mean() < 12


@pytest.mark.parametrize('num_bytes', [16, 63, 4096, 200_000])
def test_a_jpeg_in_a_buffer_that_is_larger_decodes(num_bytes):
    payload = jpeg(picture())
    padded = CompressedImage(format='jpeg', data=payload.data + bytes(num_bytes))
    np.testing.assert_array_equal(decode(padded).pixels, decode(payload).pixels)
    cut = CompressedImage(format='jpeg', data=payload.data[:-300] + bytes(num_bytes))
    with pytest.raises(ImageDecodeError, match='truncated'):
        decode(cut)


@pytest.mark.parametrize('big_endian', [0, 1])
@pytest.mark.parametrize('size', [(8, 6), (7, 5), (1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize('encoding', BYTES_PER_PIXEL)
def test_every_allowed_encoding_converts_in_every_size(encoding, size, big_endian):
    width, height = size
    step = width * BYTES_PER_PIXEL[encoding]
    image = RawImage(
        height=height,
        width=width,
        encoding=encoding,
        step=step,
        is_bigendian=big_endian,
        data=bytes(step * height),
    )
    if encoding in PACKED_YUV_CODES and width % 2:
        with pytest.raises(ImageDecodeError, match=f'a width of {width} px, allowed: an even one'):
            decode(image)
    else:
        assert decode(image).pixels.shape == (height, width, 3)


@pytest.mark.parametrize('order', ['<u2', '>u2'])
def test_grey_of_16_bits_is_scaled_by_its_byte_order(order):
    grey = np.array([[0, 257, 65535, 32768]], order)
    image = raw(grey, 'mono16', is_bigendian=order == '>u2')
    assert decode(image).pixels[0, :, 0].tolist() == [0, 1, 255, 128]


def bayer_mosaic(encoding: str, dtype: type = np.uint8) -> np.ndarray:
    """Return a mosaic of (200, 60, 20) in RGB, in the upper byte."""
    values = {'r': 200, 'g': 60, 'b': 20}
    sites = [values[letter] << (8 * (np.dtype(dtype).itemsize - 1)) for letter in encoding[6:10]]
    return np.tile(np.array(sites, dtype).reshape(2, 2), (24, 32))


@pytest.mark.parametrize('encoding', BAYER_CODES)
@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_a_bayer_mosaic_has_its_colours_raw_and_compressed(encoding, suffix):
    mosaic = bayer_mosaic(encoding)
    data = cv2.imencode(suffix, mosaic)[1].tobytes()
    compressed = CompressedImage(format=f'{encoding}; {suffix[1:]} compressed ', data=data)
    for payload in (raw(mosaic, encoding), compressed):
        decoded = decode(payload)
        assert decoded.channel_order == 'rgb'
        assert np.abs(decoded.pixels[8:-8, 8:-8].astype(int) - (200, 60, 20)).max() <= 8


def test_a_bayer_mosaic_of_16_bits_is_compressed_as_png():
    data = cv2.imencode('.png', bayer_mosaic('bayer_grbg16', np.uint16))[1].tobytes()
    decoded = decode(CompressedImage(format='bayer_grbg16; png compressed ', data=data))
    assert decoded.pixels[20, 20].tolist() == [200, 60, 20]


@pytest.mark.parametrize(
    ('text', 'order'),
    [
        ('jpeg', 'bgr'),
        ('rgb8; jpeg compressed bgr8', 'bgr'),
        ('bgr8; jpeg compressed rgb8', 'rgb'),
        ('bayer_rggb8; jpeg compressed bgr8', 'bgr'),
    ],
)
def test_the_channel_order_is_what_image_transport_says(text, order):
    payload = CompressedImage(format=text, data=jpeg(picture()).data)
    assert decode(payload).channel_order == order


def test_array_bytes_as_rclpy_gives_them_are_accepted():
    import array

    image = raw(picture(), 'bgr8')
    message = RawImage(
        height=90, width=160, encoding='bgr8', step=480, data=array.array('B', image.data)
    )
    np.testing.assert_array_equal(decode(message).pixels, picture())


@pytest.mark.parametrize(
    ('payload', 'reason'),
    [
        (raw(picture(), 'nv21'), r"encoding 'nv21', allowed: rgb8, bgr8"),
        (raw(picture(), 'bgr8', step=100), r'step of 100 bytes, allowed: at least 480'),
        (raw(picture(), 'bgr8', data=b'abc'), r'got 3 bytes, allowed: at least 43200'),
        (raw(picture(), 'bgr8', height=0), r'160x0 px'),
        (raw(picture(), 'bgr8', width=10**6, step=3 * 10**6), r'1000000x90 px'),
        (raw(picture(), 'x' * 9000), r"encoding 'x{199}\.\.\. \(9002 characters\), allowed"),
        (CompressedImage(format='jpeg', data=b''), r'0 bytes .* nothing, allowed: JPEG or PNG'),
        (CompressedImage(format='jpeg', data=b'GIF89a.......'), r'allowed: JPEG or PNG'),
        ('a string', r'payload of type str'),
    ],
)
def test_an_unusable_frame_raises_an_error_with_the_reason_and_the_camera(payload, reason):
    with pytest.raises(ImageDecodeError, match=f'^CAM_FRONT: .*{reason}') as caught:
        decode(payload)
    assert list(caught.value.broken) == ['CAM_FRONT']


def test_a_truncated_jpeg_is_refused_wherever_it_ends():
    data = jpeg(picture(height=300, width=400)).data
    for size in range(4, len(data) - 1, len(data) // 50):
        with pytest.raises(ImageDecodeError, match='truncated'):
            decode(CompressedImage(format='jpeg', data=data[:size]))


def test_a_jpeg_of_noise_between_its_markers_is_refused():
    data = b'\xff\xd8\xff\xe0' + bytes(range(200)) + b'\xff\xd9'
    with pytest.raises(ImageDecodeError, match='damaged or truncated'):
        decode(CompressedImage(format='jpeg', data=data))


def with_jpeg_size(data: bytes, side: int) -> bytes:
    """Return a JPEG whose header claims another height and width."""
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + side.to_bytes(2, 'big') * 2 + data[at + 4 :]


def with_png_size(data: bytes, side: int) -> bytes:
    """Return a PNG whose header claims another width and height."""
    header = b'IHDR' + side.to_bytes(4, 'big') * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + data[33:]


@pytest.mark.parametrize(
    'payload',
    [
        CompressedImage(format='jpeg', data=with_jpeg_size(jpeg(picture()).data, 32000)),
        CompressedImage(format='png', data=with_png_size(png(picture()), 32000)),
        raw(picture(), 'bgr8', height=32000, width=32000, step=96000),
    ],
)
def test_a_size_that_only_the_header_claims_costs_no_memory(payload):
    used_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageDecodeError, match='got 32000x32000 px, allowed: 16777216 pixels and'):
        decode(payload)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used_kb < 50_000


@pytest.mark.parametrize(
    'payload',
    [jpeg(picture()), CompressedImage(format='png', data=png(picture())), raw(picture(), 'bgr8')],
    ids=['jpeg', 'png', 'raw'],
)
def test_the_largest_number_of_pixels_can_be_set(payload):
    frame = CameraFrame('CAM_FRONT', 7, payload)
    assert decode_frame(frame, max_pixels=160 * 90).pixels.shape == (90, 160, 3)
    with pytest.raises(ImageDecodeError, match=r'got 160x90 px, allowed: 14399 pixels'):
        decode_frame(frame, max_pixels=160 * 90 - 1)


@pytest.mark.attack(
    'a picture of a few kilobytes that decodes to hundreds of megabytes (PNG, JPEG or raw)',
    'refused by the size in its header, before memory is used; its sweep is dropped',
)
def test_a_small_file_of_many_pixels_takes_no_memory():
    side = 8000
    header = b'IHDR' + side.to_bytes(4, 'big') * 2 + b'\x01\0\0\0\0'  # one bit per pixel
    rows = b'IDAT' + zlib.compress(bytes(side * (side // 8 + 1)), 1)
    parts = (header, rows, b'IEND')
    data = b'\x89PNG\r\n\x1a\n' + b''.join(
        (len(p) - 4).to_bytes(4, 'big') + p + zlib.crc32(p).to_bytes(4, 'big') for p in parts
    )
    assert len(data) < 200_000

    def refuse():
        with pytest.raises(ImageDecodeError, match='got 8000x8000 px'):
            decode(CompressedImage(format='png', data=data))

    assert peak_growth_bytes(refuse) < 10 << 20


def test_pillows_own_limit_of_pixels_plays_no_part(monkeypatch, capfd):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    payload = CompressedImage(format='png', data=png(picture()))
    assert decode(payload).pixels.shape == (90, 160, 3)
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('num_frames', [0, 1, 2, 2**32 - 1])
def test_an_animated_png_is_refused_before_its_images_take_memory(num_frames, capfd):
    data = png(picture())
    control = b'acTL' + num_frames.to_bytes(4, 'big') + bytes(4)
    chunk = bytes([0, 0, 0, 8]) + control + zlib.crc32(control).to_bytes(4, 'big')
    with pytest.raises(ImageDecodeError, match='damaged or truncated: it is an animation'):
        decode(CompressedImage(format='png', data=data[:33] + chunk + data[33:]))
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('size', [(1, 20_000), (20_000, 1)])
def test_a_narrow_image_is_refused_by_its_long_side(size):
    height, width = size
    image = RawImage(height=height, width=width, encoding='mono8', step=width, data=bytes(20_000))
    with pytest.raises(ImageDecodeError, match='allowed: 16777216 pixels and 1 to 8192 per side'):
        decode(image)


def black_jpeg(mode: str, **options: object) -> bytes:
    file = BytesIO()
    Image.new(mode, (2048, 2048)).save(file, 'JPEG', **options)
    return file.getvalue()


def baseline_of_many_scans(num_scans: int) -> bytes:
    """Return a JPEG with many empty scans of its first colour."""
    scan = b'\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00'
    return black_jpeg('RGB').partition(b'\xff\xda')[0] + scan * num_scans + b'\xff\xd9'


def progressive_of_many_scans(num_scans: int) -> bytes:
    """Return a grey JPEG that has its second scan many times."""
    head, first, second, *rest = black_jpeg('L', progressive=True).split(b'\xff\xda')
    scan = second.partition(b'\xff\xc4')[0]  # without the tables of the next scan
    return b'\xff\xda'.join([head, first, *[scan] * num_scans, second, *rest])


@pytest.mark.attack(
    'a progressive JPEG with thousands of scans, each of which costs a pass over all pixels',
    'refused with the number of its scans, before it is decoded',
)
@pytest.mark.parametrize('kind', ['progressive', 'baseline'])
def test_a_jpeg_of_thousands_of_scans_takes_no_time(kind):
    data = (
        progressive_of_many_scans(2000) if kind == 'progressive' else baseline_of_many_scans(2000)
    )
    assert len(data) < 100_000
    with pytest.raises(ImageDecodeError, match=r'got 200\d scans, allowed: at most 100'):
        decode(CompressedImage(format='jpeg', data=data))


@pytest.mark.attack(
    'a JPEG with arithmetic coding, which takes seconds: the watchdog ended the node',
    'refused before it is decoded; a slow frame is no fault',
)
@pytest.mark.parametrize(
    'before', ['', 'ff', 'ff01', 'ffd0', 'ffcc00040010', 'ffdc00040010', 'fffe0000', 'ffe00001']
)
@pytest.mark.parametrize('kind', [0xC9, 0xCA])
def test_a_jpeg_with_arithmetic_coding_is_refused(before, kind):
    head, _, rest = black_jpeg('L').partition(b'\xff\xc0')
    data = head + bytes.fromhex(before) + bytes([0xFF, kind]) + rest
    with pytest.raises(ImageDecodeError, match=r'has arithmetic coding|a segment has a length of'):
        decode(CompressedImage(format='jpeg', data=data))


@pytest.mark.attack(
    'a JPEG of millions of empty segments, or of bytes that fill the space between two',
    'refused above 4,096 before its first scan',
)
@pytest.mark.parametrize('filling', ['ffe00002', 'ff', 'ff01'])
def test_a_jpeg_of_millions_of_segments_takes_no_time(filling):
    start, rest = black_jpeg('L').split(b'\xff\xe0', 1)
    few, many = (
        CompressedImage(
            format='jpeg', data=start + bytes.fromhex(filling) * number + b'\xff\xe0' + rest
        )
        for number in (1000, 1_000_000)
    )
    assert not decode(few).pixels.any()
    started_s = time.monotonic()
    with pytest.raises(ImageDecodeError, match='more than 4096 segments before its first'):
        decode(many)
    assert time.monotonic() - started_s < 1.0


@pytest.mark.attack(
    'a JPEG followed by zeros up to 127 MiB, which a bag would hold',
    'refused above 4 bytes per pixel and 1 MiB',
)
def test_a_jpeg_has_a_size_that_fits_its_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    settings = [cv2.IMWRITE_JPEG_QUALITY, 100]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    data = cv2.imencode('.jpg', noise, settings)[1].tobytes()
    assert decode(CompressedImage(format='jpeg', data=data)).pixels.shape == (600, 800, 3)
    with pytest.raises(ImageDecodeError, match=r'got a JPEG of .* allowed: up to 2968576 bytes'):
        decode(CompressedImage(format='jpeg', data=data.ljust(3 << 20, b'\0')))


@pytest.mark.parametrize('damage', ['cut', 'zeroed', 'random'])
@pytest.mark.parametrize('progressive', [0, 1])
def test_a_jpeg_that_libjpeg_only_warns_about_is_refused(damage, progressive, capfd):
    pixels = picture(height=300, width=400)
    settings = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    data = bytearray(cv2.imencode('.jpg', pixels, settings)[1].tobytes())
    third = len(data) // 3
    if damage == 'cut':
        data = data[:third] + b'\xff\xd9'
    elif damage == 'zeroed':
        data[third : 2 * third] = bytes(third)
    else:
        data[third : third + 900] = np.random.default_rng(0).bytes(900)
    with pytest.raises(ImageDecodeError, match='damaged or truncated'):
        decode(CompressedImage(format='jpeg', data=bytes(data)))
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('at', ['middle', 'end'])
def test_a_damaged_png_is_refused(at, capfd):
    data = bytearray(png(picture()))
    data[len(data) // 2 if at == 'middle' else -20] ^= 0xFF
    with pytest.raises(ImageDecodeError, match='damaged or truncated'):
        decode(CompressedImage(format='png', data=bytes(data)))
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('padding', [bytes(300), b'\xff' * 300, bytes(range(256))])
def test_padding_after_the_end_marker_is_no_damage(padding):
    payload = jpeg(picture())
    padded = CompressedImage(format='jpeg', data=payload.data + padding)
    np.testing.assert_array_equal(decode(padded).pixels, decode(payload).pixels)


PNG_START, END_CHUNK = b'\x89PNG\r\n\x1a\n', b'\0\0\0\0IEND\xaeB`\x82'


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG file with one more part before its end."""
    checksum = zlib.crc32(kind + content).to_bytes(4, 'big')
    chunk = len(content).to_bytes(4, 'big') + kind + content + checksum
    return data[:-12] + chunk + data[-12:]


@pytest.mark.attack(
    'a PNG of one pixel whose texts inflate to gigabytes, or whose data goes on for gigabytes',
    'texts are left out before the decoder; more data than pixels is refused',
)
def test_a_png_inflates_to_its_pixels_only(capfd):
    text = b'a\0\1\0\0\0' + zlib.compress(bytes(8_000_000))
    data = png(picture()[:1, :1])
    for _ in range(100):
        data = with_chunk(data, b'iTXt', text)
    assert peak_growth_bytes(lambda: decode(CompressedImage(format='png', data=data))) < 50e6
    endless = with_chunk(png(picture()[:1, :1]), b'IDAT', zlib.compress(bytes(50_000_000)))
    header, end = endless[:33], endless[-12:]
    rows = zlib.compress(bytes(50_000_000))
    endless = with_chunk(header + end, b'IDAT', rows)
    with pytest.raises(ImageDecodeError, match='it has more data than pixels'):
        decode(CompressedImage(format='png', data=endless))
    assert capfd.readouterr().err == ''


def png_header(side: int, bits: int, *, first: bytes = b'') -> bytes:
    """The begin of a PNG file of RGBA pixels; `first` stands before its header."""
    header = side.to_bytes(4, 'big') * 2 + bytes([bits, 6, 0, 0, 1])
    return with_chunk(PNG_START + first + END_CHUNK, b'IHDR', header)[:-12]


@pytest.mark.attack(
    'A PNG of half a megabyte whose pixels take 134 MB, as 16 bits per channel do',
    'refused by its header: the pixels may take 4 bytes for each of `max_image_pixels`',
)
def test_a_png_of_too_many_bytes_per_pixel_is_refused_by_its_header():
    data = with_chunk(png_header(4096, 16) + END_CHUNK, b'IDAT', b'')
    with pytest.raises(ImageDecodeError, match='pixels take 134225408 bytes, allowed: up to 681'):
        decode(CompressedImage(format='png', data=data))
    data = with_chunk(png_header(4096, 8) + END_CHUNK, b'IDAT', zlib.compress(bytes(100)))
    with pytest.raises(ImageDecodeError, match='the compressed data is incomplete'):
        decode(CompressedImage(format='png', data=data))


@pytest.mark.attack(
    'a PNG of 64 MB that is five million empty parts, each of which takes 280 bytes',
    'refused above 65,536 parts',
)
@pytest.mark.parametrize('kind', [b'IDAT', b'PLTE', b'teXt'])
def test_a_png_has_few_parts(kind):
    part = bytes(4) + kind + zlib.crc32(kind).to_bytes(4, 'big')
    head, tail = png(picture())[:33], png(picture())[33:]
    data = head + part * 1_000_000 + tail

    def refuse():
        with pytest.raises(ImageDecodeError, match='it has more than 65536 parts'):
            decode(CompressedImage(format='png', data=data))

    assert peak_growth_bytes(refuse) < 100 << 20


COLOUR, GREY = (b'PLTE', bytes(3)), (b'IDAT', zlib.compress(bytes(2)))
ONE_PIXEL = (1).to_bytes(4, 'big') * 2


@pytest.mark.attack(
    'PNGs whose header, palette or rows are damaged, about which libpng writes to stderr',
    'refused before they are decoded; nothing is written',
)
def test_a_png_that_is_damaged_inside_is_refused_in_silence(capfd):
    rows = zlib.compress(b'\x05' + bytes(1))
    for header, chunks, reason in (
        (b'\x05\x00\x00\x00\x00', (), 'its header is damaged'),
        (b'\x08\x00\x01\x00\x00', (), 'its header is damaged'),
        (b'\x08\x00\x00\x01\x00', (), 'its header is damaged'),
        (b'\x08\x00\x00\x00\x02', (), 'its header is damaged'),
        (b'\x08\x00\x00\x00\x00', ((b'IDAT', rows),), 'a row has an unknown filter'),
        (b'\x08\x00\x00\x00\x01', ((b'IDAT', rows),), 'a row has an unknown filter'),
        (b'\x08\x03\x00\x00\x00', ((b'PLTE', bytes(7)),), 'its palette is damaged'),
        (b'\x08\x03\x00\x00\x00', (COLOUR, COLOUR, GREY), 'its header is damaged'),
        (b'\x08\x03\x00\x00\x00', (GREY,), 'its header is damaged'),
    ):
        data = with_chunk(PNG_START + END_CHUNK, b'IHDR', ONE_PIXEL + header)
        for kind, content in chunks or (GREY,):
            data = with_chunk(data, kind, content)
        with pytest.raises(ImageDecodeError, match=reason):
            decode(CompressedImage(format='png', data=data))
    assert capfd.readouterr() == ('', '')


@pytest.mark.attack(
    'A PNG with a second header, of a picture of gigabytes, or with another part in its place',
    'refused: the header comes first and once',
)
def test_a_png_has_one_header_which_comes_first():
    rows = zlib.compress(bytes(100_000_000), 1)
    small, large = png_header(1, 8), png_header(10_000, 8)
    text = small[8:].replace(b'IHDR', b'tEXt')
    text = text[:-4] + zlib.crc32(text[4:-4]).to_bytes(4, 'big')
    for start in (small + large[8:], png_header(10_000, 8, first=text)):
        data = with_chunk(start + END_CHUNK, b'IDAT', rows)

        def refuse(data=data):
            with pytest.raises(ImageDecodeError, match='its header is damaged'):
                decode(CompressedImage(format='png', data=data))

        assert peak_growth_bytes(refuse) < 20 << 20


def test_a_large_png_is_held_twice_at_most():
    side = 4096
    num_bytes = side * (1 + 4 * side)
    header = side.to_bytes(4, 'big') * 2 + bytes([8, 6, 0, 0, 0])
    data = with_chunk(PNG_START + END_CHUNK, b'IHDR', header)
    data = with_chunk(data, b'IDAT', zlib.compress(bytes(num_bytes), 1))
    assert peak_growth_bytes(lambda: plain_png(memoryview(data))) < 2.2 * num_bytes


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGB', 'RGBA', '1', 'I;16'])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (160, 90)])
def test_every_kind_of_png_decodes_as_before(mode, size):
    grey = mode in ('1', 'I;16')
    image = Image.fromarray(picture()[: size[1], : size[0]])
    image = image.convert('L').convert(mode) if grey else image.convert(mode)
    file = BytesIO()
    image.save(file, 'png')
    expected = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    decoded = decode(CompressedImage(format='png', data=file.getvalue()))
    np.testing.assert_array_equal(decoded.pixels, expected)
