"""A PNG file comes in; the parts that its pixels need go out.

Other parts, such as texts and colour profiles, may be compressed and inflate to any size.
"""

from __future__ import annotations

from collections.abc import Iterator
import zlib

PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_SIZE = slice(16, 24)
"""Width and height, big-endian, in the header chunk, which comes first."""

HEADER, DATA, END, ANIMATION = b'IHDR', b'IDAT', b'IEND', b'acTL'
NEEDED = (HEADER, b'PLTE', b'tRNS')
NUM_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7_PASSES = (*ADAM7, (0, 1, 1, 2))
"""First column and row, and the steps between columns and rows, of each pass."""


def plain_png(data: memoryview) -> bytes:
    """Return a PNG file with the parts that its pixels need, after checking all of them.

    Its data is not compressed any more, so that a decoder need not inflate it again.

    Args:
        data: A file that begins with `PNG_START`.

    Raises:
        ValueError: It is cut or damaged, is an animation, or has more or less data than its
            pixels need.
    """
    kept, compressed, header = [PNG_START], [], b''
    for kind, chunk in _chunks(data):
        if kind == ANIMATION:  # OpenCV holds several of its images
            raise ValueError('it is an animation')
        if kind == DATA:
            compressed.append(bytes(chunk[8:-4]))
        elif kind in NEEDED:
            kept.append(bytes(chunk))
        if kind == HEADER:
            header = bytes(chunk[8:-4])
    if len(header) != 13 or not compressed:
        raise ValueError('its header is damaged')
    rows = _inflate(b''.join(compressed), _num_bytes(header))
    return b''.join([*kept, _chunk(DATA, zlib.compress(rows, level=0)), _chunk(END, b'')])


def _chunk(kind: bytes, content: bytes) -> bytes:
    length, checksum = len(content), zlib.crc32(content, zlib.crc32(kind))
    return b''.join([length.to_bytes(4, 'big'), kind, content, checksum.to_bytes(4, 'big')])


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and the bytes of each chunk, up to the end of the picture."""
    at, kind = len(PNG_START), b''
    while kind != END:
        end = at + 12 + int.from_bytes(data[at : at + 4], 'big')
        chunk, kind = data[at:end], bytes(data[at + 4 : at + 8])
        if len(chunk) < 12 or end > len(data):
            raise ValueError('the compressed data is incomplete')
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], 'big'):
            raise ValueError('the checksum of a part is wrong')
        yield kind, chunk
        at = end


def _num_bytes(header: bytes) -> int:
    """Return how many bytes the pixels have, each row with one byte for its filter."""
    width, height = int.from_bytes(header[:4], 'big'), int.from_bytes(header[4:8], 'big')
    depth, colour, is_interlaced = header[8], header[9], bool(header[12])
    if colour not in NUM_CHANNELS:
        raise ValueError('its header is damaged')
    bits = depth * NUM_CHANNELS[colour]
    num_bytes = 0
    for column, row, column_step, row_step in ADAM7_PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns = -(-(width - column) // column_step)
        rows = -(-(height - row) // row_step)
        if columns > 0 and rows > 0:
            num_bytes += rows * (1 + -(-columns * bits // 8))
    return num_bytes


def _inflate(compressed: bytes, num_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(compressed, num_bytes + 1)
    except zlib.error as err:
        raise ValueError('the compressed data is damaged') from err
    if len(rows) > num_bytes:
        raise ValueError('it has more data than pixels')
    # The checksum comes after the last row.
    if len(rows) < num_bytes or not (inflater.eof or _ends(inflater)):
        raise ValueError('the compressed data is incomplete')
    return rows


def _ends(inflater: zlib._Decompress) -> bool:
    """Read the rest of a stream; return whether it ends without more data."""
    try:
        return not inflater.decompress(inflater.unconsumed_tail, 1) and inflater.eof
    except zlib.error as err:
        raise ValueError('the compressed data is damaged') from err
