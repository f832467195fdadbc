"""URLs with passwords and keys, and which of them cross a network unencrypted."""

from p2d_node.cli.main import main
from p2d_node.evaluation.url_secrets import is_readable_on_the_way, mask_secrets
import pytest

TUNE = ('tune-ratios', '--data', 'x', '--images', 'x')


@pytest.mark.parametrize(
    ('text', 'masked'),
    [
        ('postgresql://me:SECRET@host/db', 'postgresql://me:***@host/db'),
        (
            'postgresql://host/db?user=me&password=SECRET',
            'postgresql://host/db?user=me&password=***',
        ),
        ('postgresql://host/db?sslpassword=SECRET', 'postgresql://host/db?sslpassword=***'),
        ('https://me:SEC@RET@host/v1', 'https://***@host/v1'),
        ('https://SECRET@host/v1', 'https://***@host/v1'),
        ('https://host/v1?api_key=SECRET&x=1', 'https://host/v1?api_key=***&x=1'),
        ('https://host/v1?Token=SECRET', 'https://host/v1?Token=***'),
        ('got https://host/v1 and no more', 'got https://host/v1 and no more'),
        ('sqlite:///a@b:c.db', 'sqlite:///a@b:c.db'),
    ],
)
def test_passwords_and_keys_are_masked(text, masked):
    assert mask_secrets(text) == masked


@pytest.mark.parametrize(
    ('url', 'is_readable'),
    [
        ('http://judge.example/v1', True),
        ('http://10.0.0.2:8000/v1', True),
        ('http://localhost:8000/v1', False),
        ('http://127.0.0.1:8000/v1', False),
        ('http://[::1]:8000/v1', False),
        ('https://judge.example/v1', False),
    ],
)
def test_only_plain_http_to_another_machine_can_be_read(url, is_readable):
    assert is_readable_on_the_way(url) is is_readable


@pytest.mark.parametrize(
    'words',
    [
        ['evaluate', '--data', 'x', '--judge-uri', 'https://me:SECRET@host/v1'],
        ['evaluate', '--data', 'x', '--judge-url', 'ftp://me:SECRET@host/v1'],
        ['evaluate', '--data', 'x', '--judge-url', 'https://host/v1?key=SECRET'],
        ['evaluate', '--data', 'x', '--judge-command', "ask 'https://me:SECRET@host"],
        ['evaluate', '--data', 'x', '--judge-command', 'JUDGE_KEY=SECRET ask'],
        [*TUNE, '--store', 'postgresql://me:SECRET@host/d'],
    ],
)
@pytest.mark.attack(
    'a password or key in a URL is copied from a message, log or file', 'it is masked there'
)
def test_no_message_about_the_command_line_shows_a_secret(words, capsys):
    try:
        code = main(words)
    except SystemExit as err:
        code = err.code
    assert code == 2
    error = capsys.readouterr().err
    assert '***' in error
    assert 'SECRET' not in error
