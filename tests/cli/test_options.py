"""Options of a verb: from a dataclass to arguments, and from arguments to a checked object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.cli.options import (
    add_options,
    argument,
    flags_in_errors,
    make_options,
    Options,
    require_at_most_one,
    require_one,
    same_as,
    with_flags,
)
from p2d_node.cli.verb import Parser
from p2d_node.cli.verbs.evaluate import EvaluateOptions
from p2d_node.cli.verbs.node import DemoOptions
from p2d_node.cli.verbs.tune_ratios import TuneOptions
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
import pytest


@dataclass(frozen=True, kw_only=True)
class _Search(Options):
    TITLE = 'search'

    trials: int = argument(100, 'Number of trials.', minimum=1)


@dataclass(frozen=True, kw_only=True)
class Everything(_Search):
    """Do everything at 100 %."""

    folders: tuple[Path, ...] = argument((), 'Folders.', positional=True)
    out: Path = argument(help='Folder to create.')
    wait_s: float = argument(10.0, 'Longest wait.', flag='--wait', metavar='S', above=0.0)
    ratios: tuple[float, ...] = argument((0.5, 1.0), 'Ratios.', above=0.0, maximum=1.0)
    storage: str = argument('mcap', 'File format at 100 %.', choices=('mcap', 'sqlite3'))
    model: str | None = same_as(DriveConfig, 'model', default=None, default_text='as configured')
    engine_dir: str = argument('', 'Folder of engines.')
    params_file: Path | None = argument(None, 'Parameter file.')
    loop: bool = argument(False, 'Start again.')


def parser() -> Parser:
    made = Parser(prog='p2d everything')
    add_options(made, Everything)
    return made


def parse(*words: str) -> Everything:
    return make_options(Everything, parser().parse_args(['--out', 'x', *words]))


def test_options_that_are_not_given_have_the_defaults_of_the_class():
    assert parse() == Everything(out=Path('x'))


def test_words_become_values_of_the_declared_types():
    options = parse(
        *('a', 'b', '--wait', '2', '--ratios', '0.1', '1', '--loop'),
        *('--trials', '7', '--model', 'm', '--storage', 'sqlite3'),
    )
    assert options.folders == (Path('a'), Path('b'))
    assert (options.wait_s, options.ratios) == (2.0, (0.1, 1.0))
    assert (options.loop, options.trials, options.model) == (True, 7, 'm')
    assert options.storage == 'sqlite3'


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['--trials', '0'], 'trials: got 0, allowed: 1 or more'),
        (['--wait', '0'], 'wait_s: got 0, allowed: above 0'),
        (['--wait', 'nan'], 'wait_s: got nan, allowed: above 0'),
        (['--ratios', '0.5', '1.5'], 'ratios: got 1.5, allowed: above 0 to 1'),
        (['--storage', 'zip'], "storage: got 'zip', allowed: mcap, sqlite3"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(words, reason):
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        ([], 'the following arguments are required: --out'),
        (['--out', 'x', '--trials', 'many'], "--trials: got 'many', allowed: a whole number"),
        (['--out', 'x', '--wait', 'long'], "--wait: got 'long', allowed: a number"),
        (['--out', 'x', '--wait'], '--wait: expected one argument'),
    ],
)
def test_words_that_do_not_parse_end_in_one_line_and_exit_code_2(words, reason, capsys):
    with pytest.raises(SystemExit, match='2'):
        parser().parse_args(words)
    assert capsys.readouterr().err == f'p2d everything: {reason}; see p2d everything --help\n'


def test_help_shows_limits_and_defaults():
    text = ' '.join(parser().format_help().split())
    assert '--wait S Longest wait. Allowed: above 0. Default: 10.' in text
    assert '--ratios RATIOS [RATIOS ...] Ratios. Allowed: above 0 to 1. Default: 0.5 1.' in text
    assert '--storage {mcap,sqlite3} File format at 100 %. Default: mcap.' in text
    assert 'Checkpoint folder in Hugging Face format' in text
    assert 'Default: as configured.' in text
    assert 'search: --trials TRIALS' in text


@pytest.mark.parametrize(
    ('message', 'shown'),
    [
        ('engine_dir: e is empty', '--engine-dir: e is empty'),
        ('wait_s, engine.dir: got both', '--wait, --engine-dir: got both'),
        ('sync.deadline_ms: got 0', 'sync.deadline_ms: got 0'),
        ('drive.json: not valid JSON', 'drive.json: not valid JSON'),
        ('no such engine_dir', 'no such engine_dir'),
    ],
)
def test_parameters_at_the_start_of_an_error_are_shown_as_options(message, shown):
    assert with_flags(message, flags_in_errors(parse())) == shown


def test_a_parameter_that_a_file_may_have_set_keeps_its_name():
    flags = flags_in_errors(parse('--params-file', 'drive.yaml', '--engine-dir', 'e'))
    assert with_flags('model: got x', flags) == 'model: got x'
    assert with_flags('engine_dir: got x', flags) == '--engine-dir: got x'
    assert with_flags('trials: got x', flags) == '--trials: got x'


def test_options_that_exclude_each_other_are_counted():
    none, one, two = (parse(*words) for words in ([], ['--model', 'm'], ['--model', 'm', 'a']))
    require_at_most_one(none, 'model')
    require_one(one, 'model')
    with pytest.raises(ConfigError, match=r'^model: got none, needed: one of them$'):
        require_one(none, 'model')
    with pytest.raises(ConfigError, match=r'^model, folders: got both, allowed: one of them$'):
        require_at_most_one(two, 'model', 'folders')


@pytest.mark.parametrize('verb', [DemoOptions, EvaluateOptions, TuneOptions])
def test_no_option_of_clips_offers_a_value_that_is_refused(verb):
    for name in ('frames_per_camera', 'frame_interval_ms'):
        item = verb.__dataclass_fields__.get(name)
        assert item is None or ' 0: ' not in item.metadata['option'].help


@pytest.mark.attack(
    'a data set has a link of the name of the output folder that a command takes by default there',
    'refused: nobody named the folder that it leads to',
)
@pytest.mark.parametrize(
    ('words', 'name'),
    [
        (['demo'], 'demo_output'),
        (['soak'], 'soak_output'),
        (['evaluate', '--data', 'x.json'], 'evaluation'),
        (['tune-ratios', '--data', 'x.json', '--images', 'x'], 'tuning'),
    ],
)
def test_a_default_folder_that_is_a_link_is_refused(tmp_path, monkeypatch, capsys, words, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'others').mkdir()
    (tmp_path / name).symlink_to('others')
    assert main(words) == EXIT_BAD_INPUT
    assert f"--out: got '{name}', a symbolic or hard link, allowed" in capsys.readouterr().err
    assert not list((tmp_path / 'others').iterdir())


def test_a_link_in_place_of_the_cache_of_a_study_is_refused(tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'cache').symlink_to(tmp_path)
    words = ['tune-ratios', '--data', 'x.json', '--images', 'x', '--out', str(out)]
    assert main(words) == EXIT_BAD_INPUT
    assert (
        f"--cache: got '{out}/cache', a symbolic or hard link, allowed" in capsys.readouterr().err
    )
