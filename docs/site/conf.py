"""Settings of Sphinx: the documents of the repository come in; a site goes out (`make docs`).

The site has the folders of the repository, so that links between documents, and to sources and
tests, hold in both. A warning, such as a link that leads nowhere, is an error.
"""

from __future__ import annotations

from sphinx.application import Sphinx

CONTENTS = {
    'On a vehicle': [
        'docs/install',
        'docs/vehicle',
        'docker/README',
        'docs/clips',
        'docs/checkpoints',
        'engines/README',
        'docs/synchronisation',
        'docs/watching',
        'docs/reliability',
        'docs/troubleshooting',
        'config/sros2/README',
    ],
    'Reference': ['docs/README', 'docs/parameters', 'docs/topics', 'docs/verbs', 'docs/limits'],
    'Method': [
        'docs/method',
        'docs/architecture',
        'docs/token_selection',
        'docs/language_model',
        'docs/measured',
        'docs/performance',
        'models/p2d-mini/README',
        'ros2_ws/src/p2d_sim/README',
    ],
    'Record and evaluate': ['docs/bags', 'docs/evaluation', 'docs/tuning', 'examples/README'],
    'Project': [
        'CONTRIBUTING',
        'QUALITY_DECLARATION',
        'SECURITY',
        'docs/inputs',
        'docs/security',
        'CHANGELOG',
    ],
}
"""Pages by part of the site; a page that stands in none is a warning."""

project = 'p2d_node'
root_doc = 'README'
extensions = ['myst_parser']
myst_heading_anchors = 4
include_patterns = [
    '*.md',
    'docs/*.md',
    'config/sros2/*.md',
    'docker/*.md',
    'engines/README.md',
    'examples/*.md',
    'models/*/*.md',
    'ros2_ws/src/p2d_sim/*.md',
]
exclude_patterns = [
    '.*',
    'build',
    'benchmarks',
    'demo_output',
    'ros2_ws/build*',
    'ros2_ws/install*',
    'ros2_ws/log*',
    'ros2_ws/src/p2d_node',  # a link to the repository itself
    'soak_output',
    'src',
    'tests',
]
smartquotes = False  # they would change the two hyphens of options
html_theme = 'furo'
html_title = 'p2d_node'
html_extra_path = ['extra']
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Register the table of contents."""
    app.connect('source-read', _add_contents)


def _add_contents(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the contents to the first page; README.md itself stays plain Markdown."""
    if docname == root_doc:
        source[0] += ''.join(_toctree(part, pages) for part, pages in CONTENTS.items())


def _toctree(part: str, pages: list[str]) -> str:
    lines = ['', '```{toctree}', ':hidden:', f':caption: {part}', '', *pages, '```', '']
    return '\n'.join(lines)
