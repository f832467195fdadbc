"""Judges that redirect, never end their reply, repeat the key, or look into the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack, suppress
import gzip
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
import sys
import threading
import time

from memory import peak_growth_bytes
from p2d_node.cli.main import main
from p2d_node.errors import BackendUnavailableError
from p2d_node.evaluation import judge_connection
from p2d_node.evaluation.chat_judge import ChatJudge
from p2d_node.evaluation.judge import SCORE
from p2d_node.evaluation.judge_connection import MAX_REPLY_BYTES
import pytest

ANSWERS = [('What?', 'a car', 'a bus')]
PART = b' ' * (1 << 16)
MUCH = 1 << 26
"""Bytes that a reply without end sends before the test gives up."""


class Service(BaseHTTPRequestHandler):
    """Does with a request what the test says, and notes its headers."""

    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.server.seen.append(self.headers)
        self.server.reply(self)

    def send(self, status=200, body=b'', **headers):
        self.send_response(status)
        for name, value in {'Content_Type': 'application/json', **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def serve(reply: Callable[[Service], None]) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(('127.0.0.1', 0), Service) as server:
        server.reply, server.seen = reply, []
        server.url = f'http://127.0.0.1:{server.server_port}/v1'
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def start() -> Iterator[Callable[..., ThreadingHTTPServer]]:
    with ExitStack() as stack:
        yield lambda reply: stack.enter_context(serve(reply))


def score(text: str) -> bytes:
    return json.dumps({'choices': [{'message': {'content': text}}]}).encode()


def judge(server, key='KEY', url=None):
    return list(ChatJudge(url or server.url, 'some-model', key).judge(SCORE, ANSWERS))


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
@pytest.mark.attack(
    'a judge redirects questions, answers and its key to another host',
    'redirects are not followed; the run ends with a line that names the host',
)
def test_a_redirect_is_not_followed(start, status):
    other = start(lambda request: request.send(body=score('7')))
    place = f'{other.url}/chat/completions'.replace('127.0.0.1', 'localhost')
    server = start(lambda request: request.send(status, Location=place))
    with pytest.raises(BackendUnavailableError, match="redirects to 'localhost'"):
        judge(server)
    assert server.seen[0]['Authorization'] == 'Bearer KEY'
    assert other.seen == []


@pytest.mark.attack(
    'a judge sets thousands of cookies with each reply, which add up and are sent back',
    'no cookie is kept or sent',
)
def test_no_cookies_of_a_judge_are_kept(start):
    server = start(lambda request: request.send(body=score('7'), Set_Cookie='a=b; Path=/'))
    list(ChatJudge(server.url, 'some-model', 'KEY').judge(SCORE, ANSWERS * 2))
    assert [headers['Cookie'] for headers in server.seen] == [None, None]


def send_without_end(status: int) -> Callable[[Service], None]:
    def reply(request: Service) -> None:
        try:
            request.send(status)
            for _ in range(MUCH // len(PART)):
                request.wfile.write(PART)
        except OSError:
            request.server.hung_up = True

    return reply


@pytest.mark.parametrize('status', [200, 401])
@pytest.mark.attack(
    'a judge sends a reply without end, or one that unpacks to gigabytes',
    'it is read up to 1 MiB and never unpacked; the run ends with a line',
)
def test_a_reply_without_end_is_not_read_to_its_end(start, status):
    server = start(send_without_end(status))
    with pytest.raises(BackendUnavailableError, match='sent more than 1048576 bytes'):
        judge(server)
    assert server.seen[0]['Accept-Encoding'] == 'identity'


@pytest.mark.parametrize('status', [200, 400])
@pytest.mark.parametrize('charset', ['punycode', 'hex', 'rot13', 'zlib', 'undefined'])
@pytest.mark.attack(
    'a judge names a codec of Python as charset, which takes minutes or raises errors of its own',
    'the content is read as UTF-8',
)
def test_a_judge_does_not_choose_the_codec(start, status, charset):
    kind = f'text/plain; charset={charset}'
    body = b'a-' * (MAX_REPLY_BYTES // 2 - 1)
    server = start(lambda request: request.send(status, body, Content_Type=kind))
    began_s = time.monotonic()
    with suppress(BackendUnavailableError):
        assert judge(server) == [(0, None)]
    assert time.monotonic() - began_s < 20.0


@pytest.mark.attack(
    'a reply of a judge, of less than 1 MiB, of hundreds of thousands of empty objects',
    'only the text of its first choice is read; the client makes no object of each',
)
def test_objects_in_a_reply_take_no_time(start):
    bare = score('7').decode().rpartition('}]')
    many = ','.join(['{}'] * 100_000)
    body = f'{bare[0]}, "logprobs": {{"content": [{many}]}}{bare[1]}{bare[2]}'.encode()
    server = start(lambda request: request.send(body=body))
    judge(start(lambda request: request.send(body=score('7'))))
    began_s = time.process_time()
    assert peak_growth_bytes(lambda: judge(server)) < 48 << 20
    assert time.process_time() - began_s < 1.0
    assert judge(server) == [(0, 7.0)]


@pytest.mark.parametrize(
    'body',
    [
        b'5',
        b'[]',
        b'{"choices": []}',
        b'{"choices": {"0": 5}}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": null}]}',
        b'\xff',
        b'[' * 100_000,
    ],
)
def test_a_reply_without_a_text_is_no_judgement(start, body):
    assert judge(start(lambda request: request.send(body=body))) == [(0, None)]


def test_a_compressed_reply_is_not_unpacked(start):
    body = gzip.compress(score('7'))
    server = start(lambda request: request.send(body=body, Content_Encoding='gzip'))
    with pytest.raises(BackendUnavailableError, match="reply of the encoding 'gzip'"):
        judge(server)


@pytest.mark.parametrize(
    'body',
    [
        *(b'', b'{', b'[' * 200_000, b'\xff\xfe', b'null', b'1', b'[]', b'{"choices": 3}'),
        *(b'{"choices": [{"message": {"content": [[]]}}]}', b'{"choices": [{"message": "x"}]}'),
        b'1' * 5000,
    ],
)
def test_a_reply_that_is_no_chat_completion_is_no_judgement(start, body):
    server = start(lambda request: request.send(body=body))
    assert judge(server) == [(0, None)]


def test_a_judge_that_repeats_the_key_does_not_put_it_into_the_message(start):
    body = json.dumps({'error': {'message': f'KEY-4711 is wrong {"x" * 5000}'}}).encode()
    server = start(lambda request: request.send(401, body))
    with pytest.raises(BackendUnavailableError, match=r'\*\*\* is wrong') as caught:
        judge(server, key='KEY-4711')
    assert 'KEY-4711' not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_user_and_password_are_sent_and_are_in_no_fingerprint(start):
    server = start(lambda request: request.send(body=score('7')))
    url = server.url.replace('//', '//me:p%40ss@')
    assert judge(server, url=url) == [(0, 7.0)]
    assert server.seen[0]['Authorization'] == 'Basic bWU6cEBzcw=='  # me:p@ss
    assert ChatJudge(url, 'm').identity == ChatJudge(server.url, 'm').identity


@pytest.mark.parametrize(
    ('url', 'key', 'exposes'),
    [
        ('http://judge.example/v1', 'KEY', True),
        ('http://me:PASSWORD@judge.example/v1', '', True),
        ('http://judge.example/v1', '', False),
        ('https://judge.example/v1', 'KEY', False),
        ('http://127.0.0.1:8000/v1', 'KEY', False),
    ],
)
def test_a_key_that_others_can_read_on_the_network_is_known(url, key, exposes):
    assert ChatJudge(url, 'm', key).exposes_secret is exposes


@pytest.fixture
def scored(tmp_path):
    """The words that score one answer of one question."""
    qa = {'Q': 'What?', 'A': 'A bus.', 'tag': [1]}
    frames = {'f': {'QA': {'perception': [qa]}, 'image_paths': {}}}
    (tmp_path / 'data.json').write_text(json.dumps({'s': {'key_frames': frames}}))
    (tmp_path / 'answers.json').write_text(json.dumps([{'id': 's_f_0', 'answer': 'A car.'}]))
    files = ('--data', tmp_path / 'data.json', '--predictions', tmp_path / 'answers.json')
    out = ('--out', str(tmp_path / 'out'), '--tokenizer', 'treebank')
    return ['evaluate', *map(str, files), *out]


@pytest.mark.attack(
    'a command that judges reads the key of another judge from its environment',
    'the key is removed from the environment of all programs that p2d starts',
)
def test_a_command_does_not_get_the_key(scored, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('P2D_JUDGE_API_KEY', 'KEY')
    script = tmp_path / 'judge.py'
    script.write_text(
        'import os, sys\nsys.stderr.write(str("P2D_JUDGE_API_KEY" in os.environ))\nsys.exit(1)\n'
    )
    assert main([*scored, '--judge-command', f'{sys.executable} {script}']) == 2
    assert "it said: 'False'" in capfd.readouterr().err


@pytest.mark.attack(
    'the server of a judge reads what the environment holds for another service',
    'organisation, project and headers of OpenAI in the environment are not sent',
)
def test_settings_for_another_service_are_not_sent(start, monkeypatch):
    settings = {
        'OPENAI_ORG_ID': 'the-organisation',
        'OPENAI_PROJECT_ID': 'the-project',
        'OPENAI_CUSTOM_HEADERS': 'X-Internal: the-header',
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    server = start(lambda request: request.send(body=score('7')))
    assert dict(ChatJudge(server.url, 'm').judge(SCORE, ANSWERS)) == {0: 7.0}
    (headers,) = server.seen
    assert not [value for value in headers.values() if value.startswith('the-')]
    assert settings.items() <= os.environ.items()


def test_a_key_that_goes_over_the_network_unencrypted_is_one_line(
    scored, start, capsys, monkeypatch
):
    server = start(lambda request: request.send(body=score('7')))
    monkeypatch.setenv('P2D_JUDGE_API_KEY', 'KEY')
    assert main([*scored, '--json', '--judge-url', server.url]) == 0
    assert 'unencrypted' not in capsys.readouterr().err
    monkeypatch.setenv('P2D_JUDGE_API_KEY', 'KEY')
    url = server.url.replace('127.0.0.1', '0.0.0.0')
    assert main([*scored, '--json', '--judge-url', url]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if 'unencrypted' in line]
    assert lines == [
        f'p2d evaluate: --judge-url: {url} gets its key or password unencrypted over the network; '
        'use https://'
    ]
    assert json.loads(said.out)['judge'] == 7.0


def test_a_line_without_end_of_a_command_is_not_read_to_its_end(judge_command, make_judge):
    code = '    while True: sys.stdout.write("7" * 65536)\n'
    with pytest.raises(BackendUnavailableError, match='a line has more than 1048576 characters'):
        make_judge(judge_command(code)).judge(SCORE, ANSWERS)


def test_only_the_end_of_what_a_command_said_is_shown(judge_command, make_judge):
    code = '    sys.stderr.write("\\x1b[2J" + "x" * 10**6)\n    sys.exit(1)\n'
    with pytest.raises(BackendUnavailableError, match="it said: 'xxx") as caught:
        make_judge(judge_command(code)).judge(SCORE, ANSWERS)
    assert len(str(caught.value)) < 500


def test_a_reply_that_drips_is_not_waited_for(start, monkeypatch):
    monkeypatch.setattr(judge_connection, 'MAX_REPLY_S', 0.2)

    def drip(service):
        service.send_response(200)
        service.send_header('Content-Type', 'application/json')
        service.end_headers()
        for _ in range(100):
            service.wfile.write(b' ')
            service.wfile.flush()
            time.sleep(0.05)

    server = start(drip)
    begin = time.monotonic()
    with pytest.raises(BackendUnavailableError, match='sends its reply for more than'):
        judge(server)
    assert time.monotonic() - begin < 4.0


def test_a_password_that_a_judge_repeats_is_masked(start):
    said = 'denied alice:S3cretPw, Basic YWxpY2U6UzNjcmV0UHc='
    server = start(
        lambda service: service.send(401, json.dumps({'error': {'message': said}}).encode())
    )
    url = server.url.replace('//', '//alice:S3cretPw@')
    with pytest.raises(BackendUnavailableError) as caught:
        judge(server, key='', url=url)
    assert 'denied' in str(caught.value)
    assert 'S3cretPw' not in str(caught.value)
    assert 'YWxpY2U6UzNjcmV0UHc' not in str(caught.value)


def drip_headers(service):
    service.wfile.write(b'HTTP/1.1 200 OK\r\nX: ')
    while not service.server.over:
        service.wfile.write(b'a')
        time.sleep(0.02)


def send_early_hints(service):
    while not service.server.over:
        service.wfile.write(b'HTTP/1.1 103 Early Hints\r\n\r\n' * 100)


@pytest.mark.parametrize('reply', [drip_headers, send_early_hints])
@pytest.mark.attack(
    'a judge never ends its headers, or sends interim replies without end',
    'the connection ends after 180 s, and the run with a line',
)
def test_a_judge_that_never_ends_its_headers_is_not_waited_for(start, monkeypatch, reply):
    monkeypatch.setattr(judge_connection, 'MAX_REPLY_S', 0.5)

    def reply_until_over(service):
        with suppress(OSError):
            reply(service)

    server = start(reply_until_over)
    server.over = False
    threading.Timer(8.0, setattr, (server, 'over', True)).start()
    with pytest.raises(BackendUnavailableError, match=r'sends its reply for more than 0\.5 s'):
        judge(server)
    assert not server.over
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ('name', 'value', 'reason'),
    [
        ('HTTP_PROXY', 'http://me:SECRET@:x', 'Invalid port'),
        ('HTTP_PROXY', 'ftp://me:SECRET@host', 'Unknown scheme'),
        ('SSL_CERT_FILE', '/no/such/file', 'No such file'),
    ],
)
def test_a_proxy_or_certificate_that_cannot_be_used_is_named(monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    with pytest.raises(BackendUnavailableError, match=f'judge_url: .*{reason}.*; check') as raised:
        ChatJudge('http://judge.invalid/v1', 'm')
    assert 'SECRET' not in str(raised.value)
