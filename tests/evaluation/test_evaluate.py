"""`p2d evaluate` with a tiny model: whole, cut and gone on with, and refused."""

from contextlib import contextmanager
import json
import resource

from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.errors import ConfigError
from p2d_node.evaluation.record_file import RecordFile
import pytest

QUESTIONS = (('What is ahead?', 'A car.'), ('Is it red?', 'No.'), ('Choose.', 'A'))


@pytest.fixture
def drivelm_folder(tmp_path, image_names):
    """Two keyframes of six pictures, three questions each."""
    qas = [{'Q': q, 'A': a, 'tag': [0] if len(a) == 1 else [2]} for q, a in QUESTIONS]
    frames = {
        f'f{number}': {'QA': {'perception': qas}, 'image_paths': names}
        for number, names in enumerate(image_names)
    }
    (tmp_path / 'data.json').write_text(json.dumps({'s': {'key_frames': frames}}))
    return tmp_path


@pytest.fixture
def words(drivelm_folder, tiny_checkpoint):
    folder = drivelm_folder
    return [
        *('evaluate', '--data', str(folder / 'data.json'), '--images', str(folder)),
        *('--model', str(tiny_checkpoint), '--out', str(folder / 'out'), '--json'),
    ]


def run_json(capsys, words):
    assert main(words) == 0
    return json.loads(capsys.readouterr().out)


def test_every_question_is_answered_scored_and_can_be_submitted(drivelm_folder, words, capsys):
    report = run_json(capsys, words)
    assert (report['num_questions'], report['num_scored']) == (6, 6)
    assert 0.0 <= report['accuracy'] <= 1.0
    assert report['judge'] is None
    assert report['tokens_kept_share'] == pytest.approx(8 / 81)
    assert report['latency_per_question']['prefill_ms']['p50'] > 0
    assert report['latency_per_sweep']['encode_ms']['p50'] > 0
    assert report['num_answers_by_workers'] == {'1': 6}
    submission = drivelm_folder / 'out' / 'submission.json'
    ids = [item['id'] for item in json.loads(submission.read_text())]
    assert ids == [f's_f{frame}_{number}' for frame in range(2) for number in range(3)]

    again = ['evaluate', '--data', str(drivelm_folder / 'data.json'), '--json']
    scored = run_json(capsys, [*again, '--predictions', str(submission)])
    assert scored['language'] == report['language']
    assert scored['accuracy'] == report['accuracy']


def test_a_run_that_was_cut_goes_on_where_it_was(drivelm_folder, words, capsys):
    whole = run_json(capsys, words)
    path = drivelm_folder / 'out' / 'answers.jsonl'
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    # The power went while the second answer of the second keyframe was written.
    path.write_bytes(b''.join(lines[:5]) + lines[5][:20])
    resumed = run_json(capsys, words)
    assert resumed['language'] == whole['language']
    assert path.read_bytes().splitlines(keepends=True)[:5] == lines[:5]
    assert len(path.read_bytes().splitlines()) == 7


@pytest.mark.parametrize('content', ['', '{"data": "da'])
def test_a_run_that_was_cut_before_its_first_answer_begins_anew(
    drivelm_folder, words, content, capsys
):
    path = drivelm_folder / 'out' / 'answers.jsonl'
    path.parent.mkdir()
    path.write_text(content)
    assert run_json(capsys, words)['num_questions'] == 6
    assert len(path.read_text().splitlines()) == 7


def test_a_finished_run_is_scored_again_without_a_model(words, capsys, monkeypatch):
    whole = run_json(capsys, words)
    monkeypatch.setattr('p2d_node.pipeline.DrivingPipeline.from_config', None)
    assert run_json(capsys, words) == whole


def test_only_one_run_at_a_time_writes_answers(drivelm_folder, words, capsys):
    with RecordFile(drivelm_folder / 'out' / 'answers.jsonl', {}):
        assert main(words) == EXIT_BAD_INPUT
    assert 'another run writes there' in capsys.readouterr().err


def test_an_answers_file_that_cannot_be_written_is_named(drivelm_folder, words, capsys):
    (drivelm_folder / 'out').write_text('a file, no folder')
    assert main(words) == EXIT_BAD_INPUT
    assert 'answers.jsonl: cannot be written' in capsys.readouterr().err


@contextmanager
def files_up_to(size_bytes):
    """Let no file of this process grow beyond `size_bytes`, as a full disk would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_named_and_costs_only_the_keyframe(tmp_path):
    path = tmp_path / 'answers.jsonl'
    with RecordFile(path, {}) as answers:
        answers.append([{'id': 'first'}])
        with (
            files_up_to(path.stat().st_size + 5),
            pytest.raises(ConfigError, match='cannot be written'),
        ):
            answers.append([{'id': 'second'}])
    with RecordFile(path, {}) as answers:
        assert list(answers.done) == ['first']


def test_an_instruction_and_a_length_change_the_answers(drivelm_folder, words, capsys):
    run_json(capsys, words)
    out = str(drivelm_folder / 'told')
    told = [*words, '--out', out, '--instruction', 'Is it red?', '--max-new-tokens', '5']
    report = run_json(capsys, told)
    assert report['num_cut_by_length'] == 6
    plain, short = (
        [item['answer'] for item in json.loads((folder / 'submission.json').read_text())]
        for folder in (drivelm_folder / 'out', drivelm_folder / 'told')
    )
    assert all(not a.startswith(b) for a, b in zip(plain, short, strict=True))
    assert main([*told, '--instruction', 'Stop?']) == EXIT_BAD_INPUT
    assert "it was made with instruction 'Is it red?'" in capsys.readouterr().err


def test_answers_of_other_settings_are_not_mixed_in(words, capsys):
    run_json(capsys, [*words, '--limit', '1'])
    assert main([*words, '--retention-ratio', '0.5']) == EXIT_BAD_INPUT
    assert 'it was made with retention_ratio' in capsys.readouterr().err


def test_other_threads_may_go_on_and_other_stop_texts_may_not(drivelm_folder, words, capsys):
    settings = drivelm_folder / 'drive.yaml'
    words = [*words, '--params-file', str(settings)]

    def run_with(line):
        settings.write_text(f'p2d:\n  ros__parameters:\n    {line}\n')
        return main(words)

    assert run_with('num_threads: 1') == 0
    assert run_with('question_batch: 2') == 0
    assert run_with('stop: ["."]') == EXIT_BAD_INPUT
    assert "it was made with stop [], now it is ['.']" in capsys.readouterr().err


def test_a_limit_counts_keyframes(words, capsys):
    assert run_json(capsys, [*words, '--limit', '1'])['num_questions'] == 3


def test_a_missing_picture_is_named_before_the_first_answer(drivelm_folder, words, capsys):
    next((drivelm_folder / 'samples' / 'CAM_BACK').glob('*.jpg')).unlink()
    assert main(words) == EXIT_BAD_INPUT
    assert 'there is no such image; check --images' in capsys.readouterr().err
    assert not (drivelm_folder / 'out').exists()


def test_a_judge_is_asked_once_over_two_runs(words, drivelm_folder, judge_command, capsys):
    run_json(capsys, words)
    data = drivelm_folder / 'data.json'
    data.write_text(data.read_text().replace('"tag": [2]', '"tag": [1]'))
    command = judge_command('    print(50)\n').identity['command']
    scored = [*words, '--predictions', str(drivelm_folder / 'out' / 'submission.json')]
    scored += ['--judge-command', ' '.join(command)]
    first, second = run_json(capsys, scored), run_json(capsys, scored)
    assert first['judge'] == second['judge'] == 50.0
    assert first['judgements'] == {'from_earlier_runs': 0, 'none': 0}
    assert second['judgements'] == {'from_earlier_runs': 4, 'none': 0}


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['--data', 'no.json'], 'no.json: cannot be read'),
        (['--data', 'data.json'], '--images is missing'),
        (['--data', 'data.json', '--predictions', 'no.json'], 'no.json: cannot be read'),
        (['--data', 'data.json', '--limit', '0'], '--limit: got 0, allowed: 1 or more'),
        (['--data', 'data.json', '--images', '.', '--workers', '0'], '--workers: got 0, allowed'),
        (['--data', 'other.json'], 'other.json: neither DriveLM (scenes'),
        (['--data', 'empty.json'], 'empty.json: holds no question'),
        (
            ['--data', 'data.json', '--predictions', 'open.json'],
            'open.json: the prediction for s_f0_0 has no answer; needed: a text named answer',
        ),
        (
            ['--data', 'data.json', '--predictions', 'other.json'],
            'other.json: not predictions: item 0 has no id or idx',
        ),
        (['--data', 'data.json', '--judge-url', 'x'], "--judge-url: got 'x', allowed: http"),
        (['--data', 'data.json', '--judge-url', 'x', '--judge-command', 'y'], 'got both'),
    ],
)
def test_bad_input_is_one_clear_line(drivelm_folder, words, reason, capsys, monkeypatch):
    monkeypatch.chdir(drivelm_folder)
    (drivelm_folder / 'other.json').write_text('[{"q": "Stop?"}]')
    (drivelm_folder / 'empty.json').write_text('[]')
    (drivelm_folder / 'open.json').write_text('[{"id": "s_f0_0", "answer": null}]')
    assert main(['evaluate', *words]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert reason in error[0]
