"""A report is one file that every browser shows, and that loads and runs nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
import shutil
import subprocess

import cv2
import numpy as np
from p2d_node.errors import ConfigError
from p2d_node.reports.page import render_page, write_page
from p2d_node.reports.parts import Bar, Chart, Gallery, Notes, Page, Picture, Section, Table
import pytest

BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png">'
RED = (40, 40, 220)


def page_of(text: str) -> Page:
    _, png = cv2.imencode('.png', np.full((90, 160, 3), RED, np.uint8))
    picture = Picture(data=png.tobytes(), mime='image/png', alt=text, lines=[text, text])
    bar = Bar(label=text, values=[text], share=0.5, depth=1, title=text)
    parts = [Gallery([picture]), Notes([text]), Table((text, 'n'), [[text, 1.25]])]
    sections = [Section(text, [*parts, Chart((text, text), [bar])])]
    return Page(title=text, facts=[(text, text)], sections=sections, warning=text)


class Reader(HTMLParser):
    """Collects elements, addresses and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href')]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.attack(
    'A model, a question or a data set writes HTML into its texts',
    'the report shows the text; it has no scripts and loads nothing',
)
def test_texts_stay_texts_and_nothing_is_loaded():
    reader = Reader(render_page(page_of(HOSTILE)))
    assert 'script' not in reader.tags
    assert reader.tags.count('img') == 1
    assert all(address.startswith('data:image/png;base64,') for address in reader.addresses)
    assert reader.texts.count(HOSTILE) >= 8


@pytest.mark.attack(
    'an answer or a name in a report with characters that turn the direction of text, or controls',
    'they are left out',
)
def test_a_report_has_no_characters_that_change_how_it_reads():
    html = render_page(page_of('a\u202e\u2066\x1b[2J\x9bb'))
    assert html.count('a   [2J b') >= 8
    assert not set(html) & {'\u202e', '\u2066', '\x1b', '\x9b'}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'report\.html: '):
        write_page(page_of('a'), tmp_path / 'file' / 'report.html')


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason='Chromium is not installed')
@pytest.mark.parametrize(('scheme', 'is_dark'), [('1', False), ('0', True)])
def test_a_browser_shows_the_report_light_and_dark_on_a_narrow_window(tmp_path, scheme, is_dark):
    write_page(page_of('What next?'), tmp_path / 'report.html')
    pixels = screenshot(tmp_path, scheme)
    corner = pixels[0, 0].mean()
    assert corner < 60 if is_dark else corner > 240
    columns = np.flatnonzero((np.abs(pixels.astype(int) - RED).max(axis=2) < 8).any(axis=0))
    assert len(columns) > 100
    assert columns.max() < pixels.shape[1] - 8


def screenshot(folder: Path, scheme: str) -> np.ndarray:
    """Open report.html of `folder` in headless Chromium; returns BGR pixels."""
    target = folder / 'shot.png'
    subprocess.run(
        [
            *(BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars'),
            *('--disable-dev-shm-usage', f'--user-data-dir={folder / "profile"}'),
            *('--window-size=500,1200', f'--blink-settings=preferredColorScheme={scheme}'),
            *(f'--screenshot={target}', f'file://{folder / "report.html"}'),
        ],
        check=True,
        capture_output=True,
        timeout=90,
    )
    return np.asarray(cv2.imread(str(target)))
