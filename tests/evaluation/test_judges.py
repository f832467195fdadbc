"""Judges: commands and chat services, and that nothing they said is lost or asked for twice."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import math
import re
import shlex
import sys
import threading
from typing import ClassVar

from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.evaluation.chat_judge import ChatJudge
from p2d_node.evaluation.command_judge import CommandJudge
from p2d_node.evaluation.drivelmm_o1_scores import CRITERIA
from p2d_node.evaluation.judge import rating_task, SCORE, UnreadableReplyError
import pytest

ANSWERS = [('What?', name, 'a bus') for name in ('bus', 'car', 'van', 'tram')]
BY_LENGTH = [3.0, 3.0, 3.0, 4.0]
RATING = rating_task(CRITERIA)


def test_a_command_is_asked_once_about_every_answer(judge_command, make_judge):
    count = "    open(sys.argv[0] + '.asked', 'a').write('x')\n    print(len(item['answer']))\n"
    judge = judge_command(count)
    cached = make_judge(judge)
    assert cached.judge(SCORE, ANSWERS) == BY_LENGTH
    again = make_judge(judge)
    assert again.judge(SCORE, [*ANSWERS, ('What?', 'lorry', 'a bus')]) == [*BY_LENGTH, 5.0]
    assert (cached.num_kept, again.num_kept) == (0, 4)
    asked = judge.identity['command'][1] + '.asked'
    with open(asked) as file:
        assert file.read() == 'x' * 5


def test_a_command_that_was_changed_judges_anew(judge_command, make_judge):
    make_judge(judge_command('    print(1)\n')).judge(SCORE, ANSWERS)
    cached = make_judge(judge_command('    print(2)\n'))
    assert cached.judge(SCORE, ANSWERS) == [2.0] * 4
    assert cached.num_kept == 0


def test_another_task_is_another_question(judge_command, make_judge):
    code = "    print(json.dumps(dict.fromkeys(item.get('criteria', []), 5)) + ' 7')\n"
    judge = judge_command(code)
    cached = make_judge(judge)
    assert cached.judge(SCORE, ANSWERS[:1]) == [7.0]
    assert cached.judge(RATING, ANSWERS[:1]) == [dict.fromkeys(CRITERIA, 5.0)]


@pytest.mark.parametrize(
    'end', ['sys.exit("no money")', 'print("who knows")', 'os.kill(os.getpid(), 9)']
)
def test_what_was_judged_before_the_failure_is_kept(judge_command, make_judge, end):
    judge = judge_command(
        f"    if item['answer'] == 'van': {end}\n    print(len(item['answer']), flush=True)\n"
    )
    with pytest.raises(BackendUnavailableError, match=r'continues after the judgements.*\(2\)'):
        make_judge(judge).judge(SCORE, ANSWERS)
    cached = make_judge(judge)
    assert cached.judge(SCORE, ANSWERS[:2]) == BY_LENGTH[:2]
    assert cached.num_kept == 2


@pytest.mark.parametrize('value', [-5000, 1e300, math.nan, 'good', {}, None])
def test_a_kept_judgement_is_one_that_the_judge_could_give(judge_command, make_judge, value):
    judge = judge_command('    print(1)\n')
    first = make_judge(judge)
    first.judge(SCORE, ANSWERS[:1])
    (record,) = first._kept.done.values()
    record['judgement'] = value
    with pytest.raises(ConfigError, match=r'jsonl: judge: got .*, allowed: one number from 0'):
        first.judge(SCORE, ANSWERS[:1])


def test_more_lines_than_answers_make_all_of_them_doubtful(judge_command, make_judge):
    make_judge(judge_command('    print(1)\n')).judge(SCORE, ANSWERS[:1])
    doubled = judge_command('    print(1)\n    print(2, flush=True)\n')
    with pytest.raises(BackendUnavailableError, match='more than 4 lines for 4 answers'):
        make_judge(doubled).judge(SCORE, ANSWERS)
    mended = make_judge(judge_command('    print(1)\n'))
    assert mended.judge(SCORE, ANSWERS) == [1.0] * 4
    assert mended.num_kept == 1


def test_too_many_lines_at_the_first_run_leave_a_file_to_begin_anew(judge_command, make_judge):
    with pytest.raises(BackendUnavailableError, match='more than 4 lines'):
        make_judge(judge_command('    print(1)\n    print(2, flush=True)\n')).judge(SCORE, ANSWERS)
    for num_kept in (0, 4):
        mended = make_judge(judge_command('    print(1)\n'))
        assert mended.judge(SCORE, ANSWERS) == [1.0] * 4
        assert mended.num_kept == num_kept


def test_an_answer_without_a_judgement_is_asked_for_again(judge_command, make_judge):
    judge = judge_command("    print(9 if os.path.exists('/nowhere') else 'null')\n")
    for _ in range(2):
        cached = make_judge(judge)
        assert cached.judge(SCORE, ANSWERS) == [None] * 4
        assert (cached.num_kept, cached.num_unjudged) == (0, 4)


@pytest.mark.parametrize(
    ('code', 'reason'),
    [
        ('    print("very good")\n', "line 1: judge: got 'very good', allowed: one number"),
        ('    print(101)\n', "line 1: judge: got '101'"),
        ('    print(1)\n    break\n', 'got 1 lines for 4 answers, needed: one number per line'),
        ('    raise SystemExit("no key")\n', 'exit status 1, it said: .no key'),
    ],
)
def test_a_command_that_does_not_score_is_named(judge_command, make_judge, code, reason):
    with pytest.raises(BackendUnavailableError, match=reason):
        make_judge(judge_command(code)).judge(SCORE, ANSWERS)


@pytest.mark.parametrize(
    ('reply', 'reason'),
    [
        ('7', "got '7', allowed: a JSON object with a number per criterion"),
        ('{}', 'judge: Faithfulness-Step: got None, allowed: a number from 1'),
        (json.dumps(dict.fromkeys(CRITERIA, 0)), 'Faithfulness-Step: got 0, allowed: a number'),
        (json.dumps(dict.fromkeys(CRITERIA, True)), 'Faithfulness-Step: got True'),
    ],
)
def test_a_command_that_does_not_rate_is_named(judge_command, make_judge, reply, reason):
    with pytest.raises(BackendUnavailableError, match=reason):
        make_judge(judge_command(f'    print({reply!r})\n')).judge(RATING, ANSWERS)


@pytest.mark.parametrize(
    ('command', 'reason'),
    [
        ('no-such-judge --fast', 'no-such-judge: there is no such command'),
        ("echo 'x", 'which a shell cannot parse: No closing quotation'),
        ('  ', 'got an empty text, allowed: a command'),
    ],
)
def test_a_command_that_cannot_run_is_refused_at_the_start(command, reason):
    with pytest.raises(ConfigError, match=f'judge_command: .*{reason}'):
        CommandJudge(command)


def test_a_long_script_on_the_command_line_is_no_file():
    script = f'# {"long " * 1000}\nprint(1)'
    command = shlex.join([sys.executable, '-c', script])
    (judgement,) = CommandJudge(command).judge(SCORE, ANSWERS[:1])
    assert judgement == (0, 1.0)


@pytest.mark.parametrize(
    ('text', 'score'),
    [
        ('80', 80.0),
        ('I say 80.', 80.0),
        ('**Score:** 80!', 80.0),
        ('{"score":90}', 90.0),
        ('-0', 0.0),
        ('1e2', 100.0),
        ('.5', 0.5),
        ('80.5%', 80.5),
    ],
)
def test_the_one_number_of_a_text_is_its_score(text, score):
    assert SCORE.read(text) == score


@pytest.mark.parametrize(
    'text',
    [
        '82,5',
        'Both answers name 2 cars; I give 90.',
        '[1] 95',
        '{"answer 1": 90}',
        '80/100',
        '50-60',
        '...80',
        '1.2.3',
        '-5',
        '1e3',
        '101',
        '',
        '-.,',
    ],
)
def test_a_text_without_one_clear_number_is_no_score(text):
    with pytest.raises(UnreadableReplyError, match='allowed: one number from 0 to 100'):
        SCORE.read(text)


class _Chat(BaseHTTPRequestHandler):
    """An OpenAI-like service: busy at first, talkative, and at a loss about trams."""

    asked: ClassVar[list[str]] = []
    refuse: ClassVar[dict[str, list[int]]] = {}

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        system, user = (message['content'] for message in body['messages'])
        answer = json.loads(user)['answer']
        self.asked.append(answer)
        refusals = self.refuse.get(answer, [])
        if refusals:
            self._reply(refusals.pop(0), {'error': {'message': 'not now'}})
            return
        content = f'```json\n{json.dumps(dict.fromkeys(CRITERIA, len(answer)))}\n```'
        if 'Reply with one number' in system:
            content = f'I say {len(answer)}.' if answer != 'tram' else 'I cannot tell.'
        self._reply(200, {'choices': [{'message': {'role': 'assistant', 'content': content}}]})

    def _reply(self, status, content):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('retry-after-ms', '10')
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def chat_url() -> Iterator[str]:
    _Chat.asked.clear()
    _Chat.refuse.clear()
    with ThreadingHTTPServer(('127.0.0.1', 0), _Chat) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/v1'
        server.shutdown()


@pytest.mark.parametrize('num_parallel', [1, 3])
def test_a_chat_model_judges(chat_url, make_judge, num_parallel):
    judge = ChatJudge(chat_url, 'some-model', num_parallel=num_parallel)
    cached = make_judge(judge)
    assert cached.judge(SCORE, ANSWERS) == [3.0, 3.0, 3.0, None]
    assert cached.judge(RATING, ANSWERS)[3] == dict.fromkeys(CRITERIA, 4.0)
    assert cached.num_unjudged == 1
    again = make_judge(judge)
    again.judge(SCORE, ANSWERS)
    assert again.num_kept == 3
    assert _Chat.asked[8:] == ['tram']


def test_a_busy_service_is_asked_again(chat_url, make_judge):
    _Chat.refuse['car'] = [429, 503]
    cached = make_judge(ChatJudge(chat_url, 'some-model'))
    assert cached.judge(SCORE, ANSWERS[:2]) == [3.0, 3.0]
    assert _Chat.asked == ['bus', 'car', 'car', 'car']


def test_a_service_that_refuses_ends_the_run_and_what_it_said_is_kept(chat_url, make_judge):
    _Chat.refuse['van'] = [401]
    judge = ChatJudge(chat_url, 'some-model')
    with pytest.raises(BackendUnavailableError, match=r'judge_url: .*not now.*\(2\)'):
        make_judge(judge).judge(SCORE, ANSWERS)
    assert make_judge(judge).judge(SCORE, ANSWERS[:3]) == BY_LENGTH[:3]
    assert [_Chat.asked.count(answer) for answer in ('bus', 'car', 'van')] == [1, 1, 2]


@pytest.mark.parametrize(
    'url',
    ['x', '', 'ftp://host/v1', 'http://[::1', 'http://bad host/v1', 'http:///v1', 'http://a:b/'],
)
def test_a_text_that_is_no_url_is_refused_at_the_start(url):
    with pytest.raises(ConfigError, match=rf"judge_url: got '{re.escape(url)}', allowed: http"):
        ChatJudge(url, 'some-model')


def test_a_password_in_the_url_is_not_shown(chat_url, make_judge):
    _Chat.refuse['bus'] = [401]
    judge = ChatJudge(chat_url.replace('//', '//me:SECRET@'), 'some-model')
    with pytest.raises(BackendUnavailableError, match=r'judge_url: http://127') as caught:
        make_judge(judge).judge(SCORE, ANSWERS[:1])
    assert 'SECRET' not in str(caught.value)


def test_a_number_of_requests_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match='judge_parallel: got 0, allowed: 1 or more'):
        ChatJudge('http://localhost/v1', 'some-model', num_parallel=0)
