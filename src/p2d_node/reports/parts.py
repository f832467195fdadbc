"""The parts of a report: pictures, tables, bars and notes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture with what is below it.

    Attributes:
        data: Content of a JPEG or PNG file.
        mime: `image/jpeg` or `image/png`.
        alt: What it shows, for those who cannot see it.
        lines: Text below it, the most important first.
    """

    data: bytes
    mime: str
    alt: str
    lines: Sequence[str] = ()

    @property
    def url(self) -> str:
        """The picture as an URL that holds it."""
        return f'data:{self.mime};base64,{base64.b64encode(self.data).decode("ascii")}'


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures side by side; as many in a row as the window has room for."""

    KIND: ClassVar[str] = 'gallery'
    pictures: Sequence[Picture]
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table; a column that begins with a number is set to the right."""

    KIND: ClassVar[str] = 'table'
    headings: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A row of a chart.

    Attributes:
        label: Name of the row.
        values: Texts beside the bar.
        share: Length of the bar, 0 to 1.
        depth: Number of steps that the label is indented.
        title: What the row means; empty: nothing more.
    """

    label: str
    values: Sequence[str]
    share: float
    depth: int = 0
    title: str = ''


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows with a bar each; `headings` are those of the label and of the values."""

    KIND: ClassVar[str] = 'chart'
    headings: Sequence[str]
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences, one below the other."""

    KIND: ClassVar[str] = 'notes'
    lines: Sequence[str]


Part = Gallery | Table | Chart | Notes


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: Of the page.
        facts: What matters most: name and value.
        sections: In the order of the page.
        warning: Shown above all; empty: none.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=tuple)
    warning: str = ''
