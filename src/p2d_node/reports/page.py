"""Writes a report as one HTML file without scripts, which loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from p2d_node.durable_files import write_bytes, write_faults
from p2d_node.errors import one_line
from p2d_node.reports.parts import Page

REPORT_FILE = 'report.html'
TEMPLATE = 'page.html.jinja'


def render_page(page: Page) -> str:
    """Return a page as HTML; texts of models and data are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_inert,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests['numeric'] = lambda value: isinstance(value, (int, float))
    environment.filters['cell'] = _cell
    return environment.get_template(TEMPLATE).render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Write a page.

    Raises:
        ConfigError: The file cannot be written.
    """
    with write_faults(f'{path}:', 'name another folder, or free some space'):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, render_page(page).encode('utf-8', 'replace'))


def _inert(value: object) -> object:
    return one_line(value) if type(value) is str else value


def _cell(value: str | int | float) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
