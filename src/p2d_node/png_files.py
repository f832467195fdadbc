"""A PNG file comes in; the parts that its pixels need go out.

Other parts, such as texts and colour profiles, may be compressed and inflate to any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
import zlib

PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_HEADER = slice(16, 29)
"""Content of the header chunk, which comes first."""

PNG_SIZE = slice(16, 24)
"""Width and height, big-endian, in it."""

HEADER, DATA, END, ANIMATION = b'IHDR', b'IDAT', b'IEND', b'acTL'
HEADER_BYTES, HEADER_CHUNK_BYTES = 13, 25
PALETTE, PALETTE_COLOUR = b'PLTE', 3
MAX_PALETTE_BYTES = 3 * 256
MAX_CHUNKS = 1 << 16
"""Of a file. Encoders write data chunks of 8 kB; an empty one costs as much as a large one."""

STORED_BYTES = 1 << 20
"""Of the rows in one data chunk."""

NUM_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits per channel, by colour type."""

NUM_FILTERS = 5
"""The first byte of a row names one."""

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
    kept: list[bytes | memoryview] = [PNG_START]
    compressed = []
    header = bytes(data[PNG_HEADER])
    num_bytes = inflated_bytes(header)
    has_palette = header[9] == PALETTE_COLOUR
    for number, (kind, chunk) in enumerate(islice(_chunks(data), MAX_CHUNKS + 1)):
        if number == MAX_CHUNKS:
            raise ValueError(f'it has more than {MAX_CHUNKS} parts')
        if (number == 0) != (kind == HEADER):
            raise ValueError('its header is damaged')
        if kind == ANIMATION:  # OpenCV holds several of its images
            raise ValueError('it is an animation')
        if kind == DATA:
            compressed.append(chunk[8:-4])
        elif kind == HEADER:
            kept.append(chunk)
        elif kind == PALETTE and has_palette:
            kept.append(_checked_palette(chunk))
    if len(kept[1]) != HEADER_CHUNK_BYTES or not compressed or len(kept) != 2 + has_palette:
        raise ValueError('its header is damaged')
    stored = _unpack(compressed, header, num_bytes)
    return b''.join([*kept, *stored, *_chunk(END, b'')])


def _unpack(compressed: Sequence[memoryview], header: bytes, num_bytes: int) -> list[bytes]:
    """Return data chunks with the rows; a large picture is held twice at most."""
    rows = _inflate(b''.join(compressed), num_bytes)
    _check_filters(rows, header)
    return _store(rows)


def _checked_palette(chunk: memoryview) -> memoryview:
    # libpng would write to stderr about it.
    num_bytes = len(chunk) - 12
    if num_bytes % 3 or not 0 < num_bytes <= MAX_PALETTE_BYTES:
        raise ValueError('its palette is damaged')
    return chunk


def _store(rows: bytes) -> list[bytes]:
    """Return data chunks that hold `rows` without compression, in parts."""
    packer = zlib.compressobj(level=0)
    parts: list[bytes] = []
    for at in range(0, len(rows), STORED_BYTES):
        parts += _chunk(DATA, packer.compress(memoryview(rows)[at : at + STORED_BYTES]))
    return [*parts, *_chunk(DATA, packer.flush())]


def _chunk(kind: bytes, content: bytes) -> tuple[bytes, ...]:
    """Return a chunk in parts."""
    length, checksum = len(content), zlib.crc32(content, zlib.crc32(kind))
    return length.to_bytes(4, 'big'), kind, content, checksum.to_bytes(4, 'big')


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


def inflated_bytes(header: bytes) -> int:
    """Return how many bytes the pixels have in the file, each row with one byte for its filter.

    Args:
        header: The bytes of the file at `PNG_HEADER`.

    Raises:
        ValueError: It is cut, or names a kind of pixels that does not exist.
    """
    return sum(rows * row_bytes for rows, row_bytes in _rows_of(header))


def _rows_of(header: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of rows, and the bytes of each, of each pass; raises ValueError."""
    if len(header) != HEADER_BYTES:
        raise ValueError('its header is damaged')
    width, height = int.from_bytes(header[:4], 'big'), int.from_bytes(header[4:8], 'big')
    depth, colour, compression, filters, interlacing = header[8:]
    if depth not in DEPTHS.get(colour, ()) or compression or filters or interlacing > 1:
        raise ValueError('its header is damaged')
    bits = depth * NUM_CHANNELS[colour]
    for column, row, column_step, row_step in ADAM7_PASSES if interlacing else ((0, 0, 1, 1),):
        columns = -(-(width - column) // column_step)
        rows = -(-(height - row) // row_step)
        if columns > 0 and rows > 0:
            yield rows, 1 + -(-columns * bits // 8)


def _check_filters(data: bytes, header: bytes) -> None:
    # libpng would write to stderr about an unknown one.
    at = 0
    for rows, row_bytes in _rows_of(header):
        end = at + rows * row_bytes
        if max(data[at:end:row_bytes]) >= NUM_FILTERS:
            raise ValueError('a row has an unknown filter')
        at = end


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
