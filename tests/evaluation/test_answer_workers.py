"""Answers of several workers are those of one, and none is lost or doubled if one is killed."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from distributed import Client, Security
from p2d_node.cli.main import EXIT_BAD_INPUT, EXIT_INTERRUPTED, main
import psutil
import pytest

NUM_KEYFRAMES = 24
"""Enough that a run which has begun to answer is still at it when it is killed."""

QUESTIONS = ('What is ahead?', 'Is it red?', 'Choose.')
PATIENCE_S = 90.0

KILLER = """
import os, signal
from p2d_node.evaluation import answering

load = answering.load_sweep

def load_sweep(keyframe, *others):
    if keyframe.name == 's_f2':
        os.kill(os.getpid(), signal.SIGKILL)
    return load(keyframe, *others)

answering.load_sweep = load_sweep
"""
"""Python runs it at the start of every process, if its folder is in PYTHONPATH."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def wait_for(condition):
    """Wait until `condition` returns something true, and return that."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.02)
    return found


class Run:
    """`p2d evaluate`, by default with two workers, in a process group of its own."""

    def __init__(self, words, *more, env=None, cwd=None):
        more = more or ('--workers', '2')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'p2d_node.cli.main', *words, *more],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def workers(self):
        """Process ids of the workers, not of Python's resource tracker."""
        return [
            child.pid
            for child in psutil.Process(self.process.pid).children()
            if any('spawn_main' in word for word in child.cmdline())
        ]

    def end(self, timeout_s=PATIENCE_S):
        """Return exit code and standard error."""
        _, error = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, error


@pytest.fixture
def folder(tmp_path, image_names):
    """Many keyframes that share two sweeps' pictures."""
    items = []
    for number in range(NUM_KEYFRAMES):
        images = list(image_names[number % 2].values())
        for i, question in enumerate(QUESTIONS):
            turns = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': 'A car.'}]
            items.append({'id': f's_f{number}_{i}', 'image': images, 'conversations': turns})
    (tmp_path / 'data.json').write_text(json.dumps(items))
    return tmp_path


@pytest.fixture
def words(folder, tiny_checkpoint):
    """A command line; in bfloat16 the number of threads, which differs, would change answers."""
    params = folder / 'params.yaml'
    params.write_text('/**: {ros__parameters: {dtype: float32}}')
    return [
        *('evaluate', '--data', str(folder / 'data.json'), '--images', str(folder)),
        *('--model', str(tiny_checkpoint), '--out', str(folder / 'out')),
        *('--max-new-tokens', '32', '--params-file', str(params)),
    ]


def stored(folder):
    """Return the answers on disk in the order of the file; a cut last line is left out."""
    lines = (folder / 'out' / 'answers.jsonl').read_bytes().split(b'\n')[1:-1]
    return [(record['id'], record['answer']) for record in map(json.loads, lines)]


def wait_for_answers(folder):
    path = folder / 'out' / 'answers.jsonl'
    wait_for(lambda: path.exists() and path.read_bytes().count(b'\n') > 2 * len(QUESTIONS))


def is_gone(pid):
    try:
        return '\nState:\tZ' in Path(f'/proc/{pid}/status').read_text()
    except FileNotFoundError:
        return True


def assert_terminal_is_quiet(error):
    assert 'Traceback' not in error
    assert 'distributed' not in error


def assert_each_question_is_answered_once(folder):
    names = [f's_f{number}_{i}' for number in range(NUM_KEYFRAMES) for i in range(len(QUESTIONS))]
    assert sorted(name for name, _ in stored(folder)) == sorted(names)
    submission = json.loads((folder / 'out' / 'submission.json').read_text())
    assert [item['id'] for item in submission] == names


def assert_goes_on_to_the_end(folder, words, before):
    """Finish the run in this process; everything is there once, and what was there stays."""
    assert 0 < len(before) < NUM_KEYFRAMES * len(QUESTIONS)
    assert main(words) == 0
    assert stored(folder)[: len(before)] == before
    assert_each_question_is_answered_once(folder)


def test_two_workers_give_the_answers_of_one(folder, words, capsys):
    words = [*words, '--limit', '6', '--json']
    assert main(words) == 0
    alone = stored(folder)
    capsys.readouterr()
    (folder / 'out').rename(folder / 'alone')
    assert main([*words, '--workers', '2']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['num_answers_by_workers'] == {'2': 18}
    assert sorted(stored(folder)) == sorted(alone)
    assert len({answer for _, answer in alone}) > 1
    one, two = (folder / name / 'submission.json' for name in ('alone', 'out'))
    assert two.read_text() == one.read_text()


def test_the_keyframe_of_a_worker_that_is_killed_is_answered_by_another(folder, words):
    run = Run(words)
    wait_for_answers(folder)
    workers = run.workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    code, error = run.end()
    assert code == 0
    assert_terminal_is_quiet(error)
    assert all(is_gone(pid) for pid in workers)
    assert_each_question_is_answered_once(folder)


def test_a_keyframe_that_ends_every_worker_is_given_up_with_the_reason(folder, words):
    (folder / 'sitecustomize.py').write_text(KILLER)
    run = Run([*words, '--limit', '6'], env={'PYTHONPATH': str(folder)})
    code, error = run.end(3 * PATIENCE_S)  # workers start three times
    assert code == EXIT_BAD_INPUT
    (line,) = [line for line in error.splitlines() if line.startswith('p2d evaluate: ')]
    assert 'keyframe s_f2 ended 3 workers, and is given up; the answers so far are kept' in line
    assert_terminal_is_quiet(error)
    names = [name for name, _ in stored(folder)]
    assert {'s_f0_0', 's_f1_2'} <= set(names)
    assert not any(name.startswith('s_f2_') for name in names)


def test_only_this_process_can_reach_its_workers(folder, words):
    run = Run(words)
    wait_for_answers(folder)
    tree = [psutil.Process(run.process.pid), *map(psutil.Process, run.workers())]
    connections = [c for process in tree for c in process.net_connections() if not c.raddr]
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {address.ip for address in listening} == {'127.0.0.1'}
    with ThreadPoolExecutor(len(listening)) as pool:
        assert all(pool.map(is_closed_to_others, listening))
    os.killpg(run.process.pid, signal.SIGKILL)
    run.end()


def is_closed_to_others(address):
    try:
        Client(f'tcp://127.0.0.1:{address.port}', timeout=2)
    except OSError:
        return True
    return False


@pytest.mark.attack(
    "another user makes Dask's folder in /tmp first, with modules and links in it",
    'the workers have a folder of their own: they import no module and follow no link',
)
def test_a_folder_of_another_user_in_tmp_is_not_used(folder, words):
    planted = folder / 'tmp' / 'dask-scratch-space'
    planted.mkdir(parents=True, mode=0o777)
    ran, kept = folder / 'ran', folder / 'kept'
    for name in ('PIL', 'safetensors', 'transformers'):
        (planted / f'{name}.py').write_text(f"open({str(ran)!r}, 'w')\n")
    kept.write_text('of the user')
    (planted / 'global.lock').symlink_to(kept)
    code, error = Run([*words, '--limit', '2'], env={'TMPDIR': str(folder / 'tmp')}).end()
    assert code == 0, error
    assert not ran.exists()
    assert kept.read_text() == 'of the user'
    assert list((folder / 'tmp').iterdir()) == [planted]


def test_one_worker_needs_no_cluster(folder, words):
    code = (
        'import sys\n'
        'from p2d_node.cli.main import main\n'
        f'assert main({[*words, "--limit", "1"]!r}) == 0\n'
        'assert not {"dask", "distributed"} & sys.modules.keys()\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)


def test_workers_end_with_a_caller_that_is_killed(folder, words):
    run = Run(words)
    wait_for_answers(folder)
    workers = run.workers()
    assert len(workers) == 2
    run.process.kill()
    run.process.wait()
    wait_for(lambda: all(is_gone(pid) for pid in workers))
    run.process.stderr.close()
    assert_goes_on_to_the_end(folder, words, stored(folder))


@pytest.mark.parametrize('moment', ['while they start', 'while they import', 'while they answer'])
def test_ctrl_c_ends_all_workers(folder, words, moment):
    run = Run(words)
    workers = wait_for(lambda: len(found := run.workers()) == 2 and found)
    if moment == 'while they import':
        maps = [Path(f'/proc/{pid}/maps') for pid in workers]
        wait_for(lambda: all('libtorch' in path.read_text() for path in maps))
    elif moment == 'while they answer':
        wait_for_answers(folder)
    os.killpg(run.process.pid, signal.SIGINT)
    code, error = run.end()
    assert code == EXIT_INTERRUPTED
    assert_terminal_is_quiet(error)
    wait_for(lambda: all(is_gone(pid) for pid in workers))
    if moment == 'while they answer':
        assert_goes_on_to_the_end(folder, words, stored(folder))


@pytest.mark.parametrize('workers', ['1', '2'])
def test_a_keyframe_that_fails_is_named_after_the_others_are_stored(folder, words, workers, capfd):
    items = json.loads((folder / 'data.json').read_text())
    broken = folder / 'samples' / 'CAM_BACK' / 'b__CAM_BACK__1533151603599404.jpg'
    broken.write_bytes(b'no picture')
    for item in items[6:9]:
        others = [name for name in item['image'] if '__CAM_BACK__' not in name]
        item['image'] = [*others, f'samples/CAM_BACK/{broken.name}']
    (folder / 'data.json').write_text(json.dumps(items))
    assert main([*words, '--limit', '5', '--workers', workers]) == EXIT_BAD_INPUT
    error = capfd.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith('p2d evaluate: ')]
    assert 'keyframe s_f2: ' in line
    assert 'Traceback' not in error
    names = [name for name, _ in stored(folder)]
    assert {'s_f0_0', 's_f1_2'} <= set(names)
    assert not any(name.startswith('s_f2_') for name in names)
    assert len(set(names)) == len(names)


def test_a_model_that_no_worker_can_load_is_one_line(folder, words, capfd):
    words = [*words, '--model', 'nowhere', '--workers', '2']
    assert main(words) == EXIT_BAD_INPUT
    error = capfd.readouterr().err
    assert "p2d evaluate: --model: got 'nowhere', which is not a folder" in error
    assert 'Traceback' not in error


TLS_FILES = {
    'DASK_DISTRIBUTED__COMM__TLS__CA_FILE': 'tls_ca_file',
    **{
        f'DASK_DISTRIBUTED__COMM__TLS__{role}__{kind}': f'tls_{role}_{kind}'.lower()
        for role in ('SCHEDULER', 'WORKER', 'CLIENT')
        for kind in ('KEY', 'CERT')
    },
}
"""Dask's settings, and the names of their values in `Security`."""


def tls_settings(folder):
    """Write temporary keys; return the environment that makes Dask use them."""
    security = Security.temporary()
    settings = {'DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION': 'true'}
    for setting, name in TLS_FILES.items():
        path = folder / f'{name}.pem'
        path.write_text(getattr(security, name))
        settings[setting] = str(path)
    return settings


class Cluster:
    """A scheduler and its workers, started as their users do."""

    def __init__(self, folder, *, num_workers=2, protocol='tcp', settings=None):
        self.settings = settings or {}
        path = folder / 'scheduler.json'
        common = ('--protocol', protocol, '--host', '127.0.0.1', '--no-dashboard')
        self.scheduler = self._start(
            'scheduler', '--scheduler-file', str(path), '--port', '0', *common
        )
        wait_for(lambda: path.exists() and path.read_text().endswith('}'))
        self.address = json.loads(path.read_text())['address']
        more = ('--nworkers', str(num_workers), '--nthreads', '1')
        self.workers = self._start('worker', self.address, *more, *common) if num_workers else None

    def _start(self, verb, *more):
        return subprocess.Popen(
            [sys.executable, '-m', 'dask', verb, *more],
            cwd='/',
            env={**os.environ, **self.settings},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self):
        """Kill both with all their processes: to end in peace takes Dask eight seconds."""
        for process in filter(None, (self.workers, self.scheduler)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.fixture
def start_cluster(folder):
    with ExitStack() as stack:

        def start(**options):
            cluster = Cluster(folder, **options)
            stack.callback(cluster.end)
            return cluster

        yield start


def test_a_running_cluster_gives_the_answers_of_one_process(folder, words, capsys, start_cluster):
    words = [*words, '--limit', '6', '--json']
    assert main(words) == 0
    alone = stored(folder)
    (folder / 'out').rename(folder / 'alone')
    settings = tls_settings(folder)
    cluster = start_cluster(protocol='tls', settings=settings)
    assert cluster.address.startswith('tls://')
    run = Run(relative(words, folder), '--scheduler', cluster.address, env=settings, cwd=folder)
    code, error = run.end()
    assert code == 0, error
    assert_terminal_is_quiet(error)
    assert sorted(stored(folder)) == sorted(alone)
    assert cluster.scheduler.poll() is None
    assert cluster.workers.poll() is None


def relative(words, folder):
    """Return the arguments with paths that hold only in `folder`."""
    return [os.path.relpath(word, folder) if word.startswith('/') else word for word in words]


def test_a_cluster_without_its_tls_keys_is_not_used(folder, words, capsys, start_cluster):
    cluster = start_cluster(num_workers=0, protocol='tls', settings=tls_settings(folder))
    assert main([*words, '--scheduler', cluster.address]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f'p2d evaluate: --scheduler: {cluster.address} cannot be reached: ' in error


def test_a_scheduler_that_goes_away_is_one_line_and_loses_nothing(folder, words, start_cluster):
    cluster = start_cluster()
    run = Run(words, '--scheduler', cluster.address)
    wait_for_answers(folder)
    cluster.scheduler.kill()
    code, error = run.end()
    assert code == EXIT_BAD_INPUT, error
    (line,) = [line for line in error.splitlines() if line.startswith('p2d evaluate: ')]
    assert 'scheduler: the connection was lost ' in line
    assert_terminal_is_quiet(error)
    assert_goes_on_to_the_end(folder, words, stored(folder))


def test_a_cluster_without_workers_is_one_line(folder, words, capsys, monkeypatch, start_cluster):
    monkeypatch.setattr('p2d_node.evaluation.answer_workers.WORKERS_TIMEOUT_S', 0.5)
    cluster = start_cluster(num_workers=0)
    assert main([*words, '--scheduler', cluster.address]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f'scheduler: {cluster.address} has no workers; start some with dask worker' in error


@pytest.mark.parametrize('address', ['tcp://127.0.0.1:9', 'nonsense://host:1', 'no address'])
def test_a_scheduler_that_cannot_be_reached_is_one_line(words, capsys, monkeypatch, address):
    monkeypatch.setattr('p2d_node.evaluation.answer_workers.CONNECT_TIMEOUT_S', 1.0)
    assert main([*words, '--scheduler', address]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith('p2d evaluate: ')]
    assert f'scheduler: {address} cannot be reached: ' in line


def test_workers_and_a_scheduler_are_not_both_given(words, capsys):
    assert main([*words, '--scheduler', 'tcp://a:1', '--workers', '2']) == EXIT_BAD_INPUT
    assert '--workers: got 2, which has no effect with --scheduler' in capsys.readouterr().err
