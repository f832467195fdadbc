"""Texts that a model, a peer or a file may bring along, wherever `p2d` shows texts."""

from __future__ import annotations

from argparse import Namespace
import json
from pathlib import Path
import re
from types import SimpleNamespace as Message

from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.demo_report import print_references, write_latency_plot, write_story
from p2d_node.cli.evaluate import _print
from p2d_node.cli.screen import InertConsole, say
from p2d_node.cli.table import answer_line, MAX_CELL_CHARACTERS, render, STAGES
from p2d_node.cli.tuning_report import _method_tables
from p2d_node.errors import ConfigError
from p2d_node.latency import percentiles_of
from p2d_node.records import StageTimes
from p2d_node.tuning.picture import plot_study
from p2d_node.tuning.results import MethodResult, TrialResult
import pytest

CLI = Path(__file__).resolve().parents[2] / 'src' / 'p2d_node' / 'cli'
HOSTILE = (
    'a [/foo] b',
    '[link=http://evil]here[/link]',
    '[bold red]no[/]',
    ':car: and :warning:',
    '\x1b]0;title\x07',
    '\x1b[2J\x1b[H',
    '\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\',
    '\x9b2J \x9d0;title\x9c',
    'back\b\b\b\bspace\rover',
    'left \u202e\u2067to\u2066 right\u202c\u2069',
    'no text \udcff',
)
STYLE = re.compile(r'\x1b\[[0-9;]*m')
"""What rich itself writes for colours."""

DANGEROUS = re.compile(
    r'[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]'
)


def shown_letters(text: str) -> str:
    """The text as it must be on the screen, without spaces and what cannot be shown."""
    return re.sub(r'\s|[\ud800-\udfff]', '', DANGEROUS.sub('', text))


def message(text: str) -> Message:
    stamp = Message(stamp=Message(sec=1_533_280_000, nanosec=0))
    times = {field: 5.0 for _, field in STAGES}
    timing = Message(header=stamp, **times, **percentiles_of([times], times))
    tokens = {
        'tokens_kept': [1],
        'tokens_total': [2],
        'num_generated_tokens': 3,
        'num_decoder_passes': 2,
    }
    fields = dict.fromkeys(('model', 'question', 'answer'), text)
    return Message(header=stamp, late=False, timing=timing, **fields, **tokens)


def trial(ratios: dict[str, float]) -> TrialResult:
    facts = {'score': 0.5, 'language': 0.5, 'accuracy': None, 'tokens_kept': 3}
    return TrialResult(method='tpe', number=1, ratios=ratios, **facts)


def method(ratios: dict[str, float]) -> MethodResult:
    counts = {'num_trials': 1, 'num_pruned': 0, 'num_failed': 0, 'seconds': 1.0}
    return MethodResult(method='tpe', **counts, complete=(trial(ratios),), history=(0.5,))


def show_live_table(text):
    shown = message(text)
    console = InertConsole(width=400, height=30, force_terminal=True)
    console.print(render([shown], [shown.timing], [f'p2d: {text}'], 30))


def show_lines(text):
    say(answer_line(message(text)))


def show_references(text):
    print_references([message(text)], {(1_533_280_000_000_000_000, text): text})


def show_scores(text):
    _print(Namespace(json=False, data=Path(f'x{text}')), {'model': text, text: 1, 'notes': [text]})


def show_search(text):
    found = Message(
        session=Message(options=Message(name=text)),
        best=trial({text: 0.5}),
        results=[method({text: 0.5})],
    )
    InertConsole(width=400).print(*_method_tables(found))


def show_figures(text):
    print_figures((text, 'x'), [(text, text)], title=text, caption=text)


def show_error(text):
    say(f'p2d: {ConfigError(text)}')


@pytest.mark.parametrize('text', HOSTILE)
@pytest.mark.parametrize(
    'show',
    [
        *(show_live_table, show_lines, show_references, show_scores),
        *(show_search, show_figures, show_error),
    ],
)
@pytest.mark.attack(
    'an answer, question, camera, model or file name holds rich markup, terminal escapes or '
    'characters that reorder text',
    'tables, titles and lines show it as text; the terminal executes nothing',
)
def test_a_text_is_shown_and_not_executed(show, text, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '400')
    show(text)
    shown = STYLE.sub('', capsys.readouterr().out)
    assert not DANGEROUS.search(shown)
    letters = shown_letters(text)
    assert letters in re.sub(r'\s', '', shown.replace('\ufffd', ''))


def test_a_long_text_is_one_row_of_the_live_table():
    console = InertConsole(width=80, height=24, force_terminal=True, color_system=None)
    shown = message('line\n' * 10**5)
    tables = render([shown], [shown.timing], [], 24)
    with console.capture() as capture:
        console.print(tables)
    assert len(capture.get().splitlines()) < 12
    cells = [cell for column in tables.renderables[-1].columns for cell in column.cells]
    assert max(map(len, cells)) == MAX_CELL_CHARACTERS


def test_tables_keep_the_line_ends_of_their_own_headings(capsys):
    print_figures(('before\nlayer', 'x'), [('1', '2')], title='t')
    lines = capsys.readouterr().out.splitlines()
    assert any('before' in line and 'layer' not in line for line in lines)


@pytest.mark.parametrize('text', [r'$\frac{$', '$x^2$', '$', '\x1b[2J\n\n', '\x00'])
@pytest.mark.attack(
    'a model, camera or file name holds a formula of matplotlib', 'pictures show it as text'
)
@pytest.mark.filterwarnings('error:Glyph')
def test_a_picture_shows_a_formula_as_text(text, tmp_path):
    times = dict.fromkeys(StageTimes.__dataclass_fields__, 5.0)
    header = message('').header
    write_latency_plot([Message(header=header, **times)], f'p2d {text}', tmp_path / 'latency.png')
    plot_study(tmp_path / 'study.png', [method({f'CAM_{text}': 0.5})], f'{text}: data')
    assert (tmp_path / 'latency.png').stat().st_size > 5000
    assert (tmp_path / 'study.png').stat().st_size > 5000


@pytest.mark.parametrize('text', [r'$\frac{$', '\x1b[2J\n\n', '\x00', 'ä\u202e', 'x' * 100_000])
def test_the_story_draws_any_text(text, tmp_path):
    import cv2
    from sweeps import jpeg, picture

    shown = message(text)
    stamp_ns = 1_533_280_000_000_000_000
    pictures = {stamp_ns: jpeg(picture()).data}
    references = {(stamp_ns, text): text}
    write_story(pictures, [shown], tmp_path / 'story.png', references=references)
    assert cv2.imread(str(tmp_path / 'story.png')) is not None
    write_story({}, [shown], tmp_path / 'none.png', references=references)
    assert not (tmp_path / 'none.png').exists()


@pytest.mark.parametrize('path', sorted(CLI.rglob('*.py')), ids=lambda path: path.name)
def test_nothing_goes_to_the_terminal_past_the_screen(path):
    text = path.read_text()
    if path.name not in {'screen.py', 'main.py'}:
        assert not re.search(r'import Console\b|(?<![.\w])print\((?!json\.dumps)', text)


def test_json_lines_are_inert_as_they_are(capsys):
    say(json.dumps({'answer': ''.join(HOSTILE)}))
    assert not DANGEROUS.search(capsys.readouterr().out)
