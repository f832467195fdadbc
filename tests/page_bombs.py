"""SQLite files of a few pages that are named again and again (sqlite.org/fileformat.html)."""

from contextlib import closing
import os
from pathlib import Path
import sqlite3
import struct

LEVELS, FAN_OUT = 4, 100
INNER, LEAF = {'table': 5, 'index': 2}, {'table': 13, 'index': 10}
"""Kinds of pages."""


def number(value: int, num_bytes: int) -> bytes:
    return value.to_bytes(num_bytes, 'big')


class Pages:
    """The content of a database, and the place of the first page of a table or an index."""

    def __init__(self, path: Path, name: str) -> None:
        with closing(sqlite3.connect(path)) as database:
            query = 'SELECT rootpage FROM sqlite_master WHERE name = ?'
            ((root,),) = database.execute(query, [name]).fetchall() or [(1,)]
        self.content = bytearray(path.read_bytes())
        self.page_bytes = int.from_bytes(self.content[16:18], 'big')
        self.begin = (root - 1) * self.page_bytes
        self.head_at = 100 if root == 1 else 0  # the first page begins with that of the file
        self.path = path

    @property
    def count(self) -> int:
        return len(self.content) // self.page_bytes

    @property
    def first(self) -> bytearray:
        return self.content[self.begin : self.begin + self.page_bytes]

    def write(self) -> None:
        self.content[28:32] = number(self.count, 4)
        self.content[92:96] = self.content[24:28]
        self.path.write_bytes(self.content)


def places_of(page: bytearray, head_at: int = 0) -> list[int]:
    """Return where the entries of a leaf begin, from the last on."""
    at = head_at + 8
    count = int.from_bytes(page[head_at + 3 : head_at + 5], 'big')
    return [int.from_bytes(page[at + 2 * n : at + 2 * n + 2], 'big') for n in range(count)]


def inner_page(pages: Pages, kind: str, entry: bytes, head_at: int = 0) -> bytes:
    """Return an inner page, all of whose children are the last page."""
    child, page = number(pages.count, 4), bytearray(pages.page_bytes)
    at, places = pages.page_bytes, b''
    for key in range(FAN_OUT):
        cell = child + (entry if kind == 'index' else bytes([key + 1]))
        at -= len(cell)
        page[at : at + len(cell)] = cell
        places += number(at, 2)
    head = number(INNER[kind], 1) + number(0, 2) + number(FAN_OUT, 2) + number(at, 2) + b'\0'
    page[head_at : head_at + 12 + len(places)] = head + child + places
    return bytes(page[head_at:])


def repeat_pages(path: Path, name: str, kind: str = 'table') -> None:
    """Put inner pages above the only page of a table or an index: it has 100 million times more.

    The schema is the table `sqlite_master`.
    """
    pages = Pages(path, name)
    leaf, head_at = pages.first, pages.head_at
    assert leaf[head_at] == LEAF[kind]
    place = places_of(leaf, head_at)[0]
    entry = bytes(leaf[place : place + 1 + leaf[place]])
    head = leaf[head_at : head_at + 8 + 2 * len(places_of(leaf, head_at))]
    leaf[: len(head)] = head
    pages.content += leaf
    for _ in range(LEVELS - 1):
        pages.content += inner_page(pages, kind, entry)
    top = inner_page(pages, kind, entry, head_at)
    pages.content[pages.begin + head_at : pages.begin + pages.page_bytes] = top
    pages.write()


def share_long_value(path: Path, table: str) -> None:
    """Let the long values of all rows on the only page of a table go on at one place."""
    pages = Pages(path, table)
    assert pages.first[0] == LEAF['table']
    ends = [pages.begin + end for end in (pages.page_bytes, *places_of(pages.first)[:-1])]
    for end in ends:  # an entry ends with the number of the page where its value goes on
        pages.content[end - 4 : end] = pages.content[ends[0] - 4 : ends[0]]
    pages.write()


def cut(path: Path, count: int) -> None:
    """Leave only the first pages of a file."""
    pages = Pages(path, '')
    del pages.content[count * pages.page_bytes :]
    pages.write()


def claim_pages(path: Path, count: int) -> None:
    """Make a file have `count` pages, most of which are not on the disk."""
    pages = Pages(path, '')
    pages.content[28:32] = number(count, 4)
    path.write_bytes(pages.content)
    os.truncate(path, count * pages.page_bytes)


def claim_pages_in_wal(path: Path, count: int) -> None:
    """Put a write-ahead log beside a file, after which the file has `count` pages.

    See sqlite.org/fileformat.html, section 4.
    """
    pages = Pages(path, '')
    pages.content[18:20] = b'\2\2'  # it has such a log
    path.write_bytes(pages.content)
    first_page = pages.content[: pages.page_bytes]
    first_page[28:32] = number(count, 4)
    salt = number(1, 4) * 2
    head = number(0x377F0682, 4) + number(3007000, 4) + number(pages.page_bytes, 4)
    head += number(0, 4) + salt
    frame = number(1, 4) + number(count, 4)
    sums = wal_sums(head, (0, 0))
    frame_sums = wal_sums(frame + first_page, sums)
    content = head + struct.pack('>II', *sums)
    content += frame + salt + struct.pack('>II', *frame_sums) + first_page
    Path(f'{path}-wal').write_bytes(content)


def wal_sums(content: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """Return the two sums of a write-ahead log, after `sums`."""
    one, other = sums
    for even, odd in struct.iter_unpack('<II', content):
        one = (one + even + other) % (1 << 32)
        other = (other + odd + one) % (1 << 32)
    return one, other


def make_schema_endless(path: Path) -> None:
    """Repeat the row of an index that has no statement; a table that comes twice is an error."""
    with closing(sqlite3.connect(path)) as database:
        database.execute('CREATE TABLE more(a, b, UNIQUE(a, b))')
        database.commit()
    pages = Pages(path, 'sqlite_master')
    page, head_at = pages.first, pages.head_at
    places = places_of(page, head_at)
    (place,) = (at for at in places if b'sqlite_autoindex' in page[at : at + 40])
    head = page[head_at : head_at + 8 + 2 * len(places)]
    whole = head + page[len(head) :]
    row = whole[:3] + number(1, 2) + whole[5:8] + number(place, 2) + whole[10:]
    pages.content += whole + row
    whole_number = number(pages.count - 1, 4)
    for _ in range(LEVELS - 1):
        pages.content += inner_page(pages, 'table', b'')
    page[head_at:] = inner_page(pages, 'table', b'', head_at)
    first = int.from_bytes(page[head_at + 12 : head_at + 14], 'big')
    page[first : first + 4] = whole_number
    pages.content[: pages.page_bytes] = page
    pages.write()
