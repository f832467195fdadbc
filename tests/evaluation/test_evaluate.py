"""`p2d evaluate` with a tiny model: complete, interrupted and resumed, and refused."""

import json
import math
import os
import shutil
import struct
import zlib

import cv2
from disk_limits import files_up_to
from memory import peak_growth_bytes
import numpy as np
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.cli.report_parts import small_jpeg
from p2d_node.durable_files import MAX_DATA_BYTES
from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import (
    digest_sweep,
    group_keyframes,
    load_sweep,
    RECORD_FIELDS,
)
from p2d_node.evaluation.data_formats import FORMATS
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.evaluation.fingerprints import digest_model
from p2d_node.evaluation.record_file import RecordFile
from p2d_node.records import NUSCENES_CAMERAS
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
        *('--max-new-tokens', '64'),
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
    page = (drivelm_folder / 'out' / 'report.html').read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert all(question in page for question, _ in QUESTIONS)
    assert 'prefill_ms p95' in page

    cut = report['num_cut_by_length']
    assert cut > 0  # a model with random weights does not end its answers
    assert report['max_new_tokens'] == 64
    assert f'{cut} of 6 answers were cut at 64 tokens' in report['notes'][-1]
    assert 'judge, match and final are absent: no judge was given' in ' '.join(report['notes'])

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


@pytest.mark.parametrize('size', [0, 20])
def test_a_run_that_was_cut_before_its_first_answer_begins_anew(
    drivelm_folder, words, size, capsys
):
    run_json(capsys, words)
    path = drivelm_folder / 'out' / 'answers.jsonl'
    path.write_bytes(path.read_bytes()[:size])
    assert run_json(capsys, words)['num_questions'] == 6
    assert len(path.read_text().splitlines()) == 7


@pytest.mark.parametrize(
    'content',
    [
        'my notes without newline',
        '{"data": "da',
        '[{"id": 1}]\n{"precious": "line"}',
        '{"data": "other"}\n{"precious": "line"}',
        '{"data": "other"}\n5\n{"precious": "line"}',
        '[' * 100_000 + '\n',
        b'\xff\xfe\n',
    ],
)
def test_a_file_that_is_not_ours_stays_as_it_is(drivelm_folder, words, content, capsys):
    path = drivelm_folder / 'out' / 'answers.jsonl'
    path.parent.mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(content)
    assert main(words) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert 'answers.jsonl: ' in line
    assert 'choose another output folder' in line
    assert path.read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize('field', ['id', *RECORD_FIELDS])
def test_an_answer_that_lacks_something_is_named(drivelm_folder, words, field, capsys):
    run_json(capsys, words)
    path = drivelm_folder / 'out' / 'answers.jsonl'
    head, first, *others = path.read_text().splitlines()
    for damaged in ({k: v for k, v in json.loads(first).items() if k != field}, {field: [3]}):
        answer = damaged if len(damaged) > 1 else json.loads(first) | damaged
        content = '\n'.join([head, json.dumps(answer), *others, ''])
        path.write_text(content)
        assert main(words) == EXIT_BAD_INPUT
        assert f' has no {field} of type ' in capsys.readouterr().err
        assert path.read_text() == content


def test_what_is_stored_of_an_answer_is_what_is_looked_for(drivelm_folder, words, capsys):
    run_json(capsys, words)
    _, *lines = (drivelm_folder / 'out' / 'answers.jsonl').read_text().splitlines()
    assert all(json.loads(line).keys() == {'id', *RECORD_FIELDS} for line in lines)


def change_question(folder):
    data = folder / 'data.json'
    data.write_text(data.read_text().replace('Is it red?', 'Is it green?'))


def change_picture_name(folder):
    data = folder / 'data.json'
    path = next((folder / 'samples' / 'CAM_BACK').glob('*.jpg'))
    other = path.with_name('b' + path.name)
    path.rename(other)
    data.write_text(data.read_text().replace(path.name, other.name))


@pytest.mark.parametrize('change', [change_question, change_picture_name])
def test_answers_to_other_data_of_the_same_name_are_not_taken(
    drivelm_folder, words, change, capsys
):
    run_json(capsys, words)
    change(drivelm_folder)
    assert main(words) == EXIT_BAD_INPUT
    assert "answers.jsonl: it was made with data 'sha256" in capsys.readouterr().err


def test_answers_of_other_weights_in_the_same_folder_are_not_taken(
    drivelm_folder, words, tiny_checkpoint, capsys
):
    model = drivelm_folder / 'model'
    shutil.copytree(tiny_checkpoint, model)
    words = [*words, '--model', str(model)]
    run_json(capsys, words)
    weights = next(model.glob('*.safetensors'))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(words) == EXIT_BAD_INPUT
    assert "answers.jsonl: it was made with model 'sha256" in capsys.readouterr().err


def test_a_model_and_its_data_may_be_named_in_another_way(
    drivelm_folder, words, tiny_checkpoint, capsys, monkeypatch
):
    run_json(capsys, [*words, '--limit', '1'])
    monkeypatch.chdir(tiny_checkpoint.parent)
    (drivelm_folder / 'data.json').rename(drivelm_folder / 'other.json')
    words = [*words, '--model', tiny_checkpoint.name, '--data', str(drivelm_folder / 'other.json')]
    answers = drivelm_folder / 'out' / 'answers.jsonl'
    before = answers.read_bytes()
    assert run_json(capsys, words)['num_questions'] == 6
    assert answers.read_bytes().startswith(before)


@pytest.mark.parametrize('content', [None, '{}', 'no JSON'])
def test_a_model_that_does_not_load_costs_the_folder_nothing(
    drivelm_folder, words, content, capsys
):
    broken = drivelm_folder / 'broken'
    if content is not None:
        broken.mkdir()
        (broken / 'config.json').write_text(content)
    assert main([*words, '--model', str(broken)]) == EXIT_BAD_INPUT
    assert 'p2d evaluate: --model: ' in capsys.readouterr().err
    assert run_json(capsys, words)['num_questions'] == 6


def test_weights_that_do_not_load_cost_the_folder_nothing(
    drivelm_folder, words, tiny_checkpoint, capsys
):
    broken = drivelm_folder / 'broken'
    shutil.copytree(tiny_checkpoint, broken)
    next(broken.glob('*.safetensors')).write_bytes(b'no weights')
    assert main([*words, '--model', str(broken)]) == EXIT_BAD_INPUT
    assert run_json(capsys, words)['num_questions'] == 6


def test_a_submission_that_cannot_be_replaced_is_named(drivelm_folder, words, capsys):
    submission = drivelm_folder / 'out' / 'submission.json'
    submission.mkdir(parents=True)
    assert main(words) == EXIT_BAD_INPUT
    assert 'submission.json: cannot be written: Is a directory' in capsys.readouterr().err
    submission.rmdir()
    assert run_json(capsys, words)['num_questions'] == 6


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


@pytest.mark.parametrize('value', [-1, 10**400, math.nan])
def test_a_number_of_an_earlier_run_is_one_that_can_be(tmp_path, value):
    path = tmp_path / 'answers.jsonl'
    with RecordFile(path, {}) as answers:
        answers.append([{'id': 'first', 'prefill_ms': value}])
    with pytest.raises(ConfigError, match=r'line 2: .* the record .first. has prefill_ms'):
        RecordFile(path, {}, {'prefill_ms': int | float})


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
    assert 'there is no such image; check the folder' in capsys.readouterr().err
    assert not (drivelm_folder / 'out').exists()


def test_questions_of_one_keyframe_have_one_set_of_pictures(drivelm_folder, words, capsys):
    items = []
    for number, camera in enumerate(('CAM_FRONT', 'CAM_BACK')):
        names = json.loads((drivelm_folder / 'data.json').read_text())['s']['key_frames']
        images = dict(names[f'f{0}']['image_paths'])
        images['CAM_FRONT'] = names[f'f{number}']['image_paths']['CAM_FRONT']
        turns = [{'from': 'human', 'value': camera}, {'from': 'gpt', 'value': 'A car.'}]
        item = {'id': f's_f_{number}', 'image': list(images.values()), 'conversations': turns}
        items.append(item)
    (drivelm_folder / 'data.json').write_text(json.dumps(items))
    assert main(words) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert 'question s_f_1: its images are not those of s_f_0; needed: the same' in error


def test_a_broken_picture_is_named_with_its_file(drivelm_folder, words, capsys):
    path = next((drivelm_folder / 'samples' / 'CAM_BACK').glob('*.jpg'))
    path.write_bytes(path.read_bytes()[:-100])
    assert main(words) == EXIT_BAD_INPUT
    assert f'samples/CAM_BACK/{path.name}: CAM_BACK: got ' in capsys.readouterr().err


@pytest.mark.attack(
    'An image of 8 GB that takes no room on the disk (a sparse file), in a data set',
    'refused by the size of the file; nothing of it is read',
)
def test_a_sparse_image_is_refused_by_its_size(drivelm_folder, words, capsys):
    path = next((drivelm_folder / 'samples' / 'CAM_FRONT').glob('*.jpg'))
    with path.open('r+b') as file:
        file.truncate(8 << 30)
    assert peak_growth_bytes(lambda: main(words)) < 1 << 30
    error = capsys.readouterr().err
    assert f'{path}: cannot be read: got 8589934592 bytes, allowed: at most' in error


@pytest.mark.attack(
    'a data set with a question of 200,000 characters, or with special tokens of the model',
    'refused before the first answer, with the id of the question',
)
@pytest.mark.parametrize(
    ('question', 'reason', 'workers'),
    [
        ('a ' * 100_000, 'got a text of 199999 characters', '1'),
        ('Is <image> red?', 'got a text with <image>', '1'),
        ('a ' * 100_000, 'got a text of 199999 characters', '2'),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(
    drivelm_folder, words, question, reason, workers, capsys
):
    path = drivelm_folder / 'data.json'
    content = json.loads(path.read_text())
    content['s']['key_frames']['f1']['QA']['perception'][2]['Q'] = question
    path.write_text(json.dumps(content))
    assert main([*words, '--workers', workers]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert f"data: question 's_f1_2': question: {reason}" in error
    assert workers == '2' or not (drivelm_folder / 'out').exists()


@pytest.mark.parametrize('key', ['sk-SECRET\x00', 'sk\nSECRET', 'sk-SECRET\u00e4', 'SECRET\u200b'])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(
    drivelm_folder, key, capsys, monkeypatch
):
    monkeypatch.setattr('os.environ', {'P2D_JUDGE_API_KEY': key})
    words = ['evaluate', '--data', 'data.json', '--predictions', 'none.json']
    assert main([*words, '--judge-url', 'http://127.0.0.1:9/v1']) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert 'P2D_JUDGE_API_KEY: got a character that no key has' in error
    assert 'SECRET' not in error


def test_scores_of_data_without_tags_say_that_others_differ(drivelm_folder, words, capsys):
    run_json(capsys, words)
    data = drivelm_folder / 'data.json'
    content = data.read_text().replace(', "tag": [0]', '').replace(', "tag": [2]', '')
    data.write_text(content)
    scored = ['evaluate', '--data', str(data)]
    scored += ['--predictions', str(drivelm_folder / 'out' / 'submission.json')]
    report = run_json(capsys, [*scored, '--json'])
    assert report['notes'][0].startswith('6 of 6 questions have no tag, as in the flat file')
    assert report['notes'][1].startswith('match_f1 is absent: no question that counts has its tag')
    assert main(scored) == 0
    assert '- 6 of 6 questions have no tag' in capsys.readouterr().out


@pytest.mark.parametrize(('name', 'longest'), [('drivelm', 1024), ('drivelmm-o1', 2000)])
def test_answers_may_be_as_long_as_in_the_benchmarks_own_inference(name, longest):
    assert FORMATS[name].max_new_tokens == longest


def test_a_judge_is_asked_once_over_two_runs(words, drivelm_folder, judge_command, capsys):
    run_json(capsys, words)
    data = drivelm_folder / 'data.json'
    data.write_text(data.read_text().replace('"tag": [2]', '"tag": [1]'))
    command = judge_command('    print(50)\n').identity['command']
    out = drivelm_folder / 'out'
    scored = ['evaluate', '--data', str(data), '--out', str(out), '--json']
    scored += ['--predictions', str(out / 'submission.json')]
    scored += ['--judge-command', ' '.join(command)]
    first, second = run_json(capsys, scored), run_json(capsys, scored)
    assert first['judge'] == second['judge'] == 50.0
    assert first['judgements'] == {'from_earlier_runs': 0, 'none': 0}
    assert second['judgements'] == {'from_earlier_runs': 4, 'none': 0}


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['--data', 'no.json'], 'no.json is missing'),
        (['--data', 'data.json'], '--images is missing'),
        (['--data', 'data.json', '--predictions', 'no.json'], 'no.json is missing'),
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
        (['--data', 'data.json', '--judge-url', ''], '--judge-url: got an empty text'),
        (['--data', 'data.json', '--judge-url', 'x', '--judge-command', 'y'], 'got both'),
        (['--data', 'data.json', '--judge-command', ''], '--judge-command: got an empty text'),
        (['--data', 'data.json', '--judge-command', "echo 'x"], 'No closing quotation'),
        (['--data', 'data.json', '--judge-command', '/nope'], '/nope: there is no such command'),
        (['--data', 'data.json', '--tokenizer', 'foo'], "tokenizer: got 'foo', allowed: auto"),
        (['--data', 'deep.json'], 'deep.json is not valid JSON: maximum recursion depth'),
        (
            ['--data', 'nameless.json', '--images', '.'],
            'nameless.json: not DriveLM data: ValueError: the image name foo/bar.jpg holds no',
        ),
        (['--data', 'number.json', '--images', '.'], "'5': not a nuScenes image name"),
    ],
)
def test_bad_input_is_one_clear_line(drivelm_folder, words, reason, capsys, monkeypatch):
    monkeypatch.chdir(drivelm_folder)
    (drivelm_folder / 'other.json').write_text('[{"q": "Stop?"}]')
    (drivelm_folder / 'empty.json').write_text('[]')
    (drivelm_folder / 'deep.json').write_text('[' * 100_000)
    turns = [{'from': 'human', 'value': 'What?'}]
    nameless = [{'id': 'a_b_0', 'image': ['foo/bar.jpg'], 'conversations': turns}]
    (drivelm_folder / 'nameless.json').write_text(json.dumps(nameless))
    images = dict.fromkeys(NUSCENES_CAMERAS, 5)
    frame = {'QA': {'planning': [{'Q': 'What?'}]}, 'image_paths': images}
    (drivelm_folder / 'number.json').write_text(json.dumps({'s': {'key_frames': {'f': frame}}}))
    (drivelm_folder / 'open.json').write_text('[{"id": "s_f0_0", "answer": null}]')
    assert main(['evaluate', *words]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert reason in error[0]


LINK = 'got a symbolic link, allowed: a file'


def link_hard(path):
    victim = path.with_name('victim')
    victim.touch()
    path.hardlink_to(victim)


NO_FILE = 'got a device or a pipe, allowed: a file'
TOO_LARGE = f'got {MAX_DATA_BYTES + 1} bytes, allowed: at most {MAX_DATA_BYTES}'


def grow(path):
    path.touch()
    os.truncate(path, MAX_DATA_BYTES + 1)  # without a block on the disk


@pytest.mark.attack(
    'answers or judgements of an earlier run that are a link, a hard link as tar unpacks it, a '
    'device, a pipe, or have 512 MiB',
    'refused before they are read; nothing is written to the target of a link',
)
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ('make', 'reason'),
    [
        (lambda path: path.symlink_to(path.with_name('victim')), LINK),
        (lambda path: path.symlink_to('/dev/zero'), LINK),
        (os.mkfifo, NO_FILE),
        (grow, TOO_LARGE),
        (link_hard, 'got a hard link, allowed: a file with one name'),
    ],
    ids=['link', 'device', 'pipe', 'large', 'hard'],
)
def test_records_that_are_no_plain_file_are_refused(tmp_path, make, reason):
    path = tmp_path / 'answers.jsonl'
    make(path)
    with pytest.raises(ConfigError) as caught:
        RecordFile(path, {})
    expected = f'{path}: cannot be written: {reason}; choose another output folder'
    assert str(caught.value) == expected
    sizes = [file.stat().st_size for file in tmp_path.glob('victim')]
    assert sizes == ([0] if make is link_hard else [])


RECORD = '{"id": "a", "judgement": 1}\n'


@pytest.mark.attack(
    'records of an earlier run: millions of empty objects or lines, or one id again and again',
    'refused at the first line that is no record, or above one list or object per 32 bytes',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('{"a": 1}\n' + '{}\n' * 1_000_000, 'line 2: not a file of .* has no id of type str'),
        ('{"a": 1}\n' + '\n' * 4_000_000, 'line 2: not a file of'),
        ('{"a": 1}\n' + RECORD * 2_000_000, 'got 2000001 lists and objects, allowed: up to 1'),
        ('{"a": 1}\n' + RECORD * 2, "line 3: .*the id 'a' occurs twice"),
        ('{"a": 1}\n{"id": "a", "id": "b", "judgement": 1}\n', 'a name occurs twice in an object'),
    ],
    ids=['objects', 'lines', 'records', 'ids', 'names'],
)
def test_records_of_an_earlier_run_are_few_and_different(tmp_path, content, reason):
    path = tmp_path / 'judgements.jsonl'
    path.write_text(content)

    def read():
        with pytest.raises(ConfigError, match=reason):
            RecordFile(path, {'a': 1}, {'judgement': object})

    assert peak_growth_bytes(read) < len(content) + (16 << 20)
    assert path.read_text() == content


def test_a_link_that_appears_while_records_are_opened_is_not_followed(tmp_path, monkeypatch):
    path = tmp_path / 'answers.jsonl'
    path.symlink_to(tmp_path / 'victim')
    monkeypatch.setattr('pathlib.Path.is_symlink', lambda _: False)
    with pytest.raises(ConfigError, match='symbolic links'):
        RecordFile(path, {})
    assert not (tmp_path / 'victim').exists()


def test_records_that_grow_while_they_are_read_are_refused(tmp_path, monkeypatch):
    path = tmp_path / 'answers.jsonl'
    monkeypatch.setattr('p2d_node.evaluation.record_file.MAX_DATA_BYTES', 5)
    monkeypatch.setattr('os.fstat', lambda descriptor: os.stat(tmp_path / 'small'))
    (tmp_path / 'small').touch()
    path.write_text('123456')
    with pytest.raises(ConfigError, match='got more than 5 bytes, allowed: at most 5'):
        RecordFile(path, {})


@pytest.mark.attack(
    'a folder of images whose pictures were exchanged after a run, under the same names',
    'the stored answers are not reported for them: refused',
)
def test_answers_about_pictures_that_were_exchanged_are_refused(drivelm_folder, words, capsys):
    run_json(capsys, words)
    answers = drivelm_folder / 'out' / 'answers.jsonl'
    before = answers.read_bytes()
    first, last = sorted((drivelm_folder / 'samples' / 'CAM_BACK').glob('*.jpg'))
    kept, changed = first.read_bytes(), last.read_bytes()
    first.write_bytes(changed)
    os.utime(first, ns=(0, 0))
    assert main(words) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "answers.jsonl: the answer to 's_f0_0' is about pictures of SHA-256" in line
    assert answers.read_bytes() == before
    first.write_bytes(kept)
    assert run_json(capsys, words)['num_questions'] == 6


def grey_png(side_px):
    """Return a PNG of black pixels, a thousandth of their size."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', check)

    head = struct.pack('>IIBBBBB', side_px, side_px, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side_px * (side_px + 1)), 1)
    signature = b'\x89PNG\r\n\x1a\n'
    return signature + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


@pytest.mark.attack(
    'an earlier run with all answers, about a picture of 875 kB and 900 million pixels or none',
    'the report decodes pictures within max_image_pixels, and leaves out those it cannot use',
)
@pytest.mark.parametrize('content', [grey_png(6000), b'no picture'], ids=['large', 'none'])
def test_the_report_leaves_out_pictures_that_it_cannot_use(drivelm_folder, words, capsys, content):
    words = [*words[:-1], '4']
    run_json(capsys, words)
    path = min((drivelm_folder / 'samples' / 'CAM_FRONT').glob('*.jpg'))
    path.write_bytes(content)
    keyframe, _ = group_keyframes(read_questions(drivelm_folder / 'data.json'))
    digest = digest_sweep(load_sweep(keyframe, drivelm_folder, NUSCENES_CAMERAS))
    answers = drivelm_folder / 'out' / 'answers.jsonl'
    head, *records = map(json.loads, answers.read_text().splitlines())
    changed = [r | ({'pictures': digest} if '_f0_' in r['id'] else {}) for r in records]
    answers.write_text(''.join(f'{json.dumps(line)}\n' for line in (head, *changed)))
    assert peak_growth_bytes(lambda: run_json(capsys, words)) < 64 << 20
    page = (drivelm_folder / 'out' / 'report.html').read_text()
    assert page.count('src="data:image/jpeg;base64,') == 1


@pytest.mark.attack(
    'a checkpoint with the fingerprint of another: their names and contents are the same in a row',
    'the fingerprint parts them: a run of the one does not go on with answers of the other',
)
def test_checkpoints_of_other_files_have_other_fingerprints(tmp_path):
    one, other = tmp_path / 'one', tmp_path / 'other'
    one.mkdir()
    other.mkdir()
    (one / 'a.json').write_text('{}')
    (one / 'b.json').write_text('')
    (other / 'a.json 2 {}b.json').write_text('')
    assert digest_model(one) != digest_model(other)


@pytest.mark.attack(
    'a picture of one pixel by thousands, which takes gigabytes at the width of the report',
    'the longer side gets the size of the report',
)
def test_a_narrow_picture_stays_small_in_the_report():
    narrow = cv2.imencode('.png', np.zeros((4000, 1, 3), np.uint8))[1].tobytes()
    assert peak_growth_bytes(lambda: small_jpeg(narrow)) < 64 << 20
    assert cv2.imdecode(np.frombuffer(small_jpeg(narrow), np.uint8), 1).shape == (480, 1, 3)


def test_the_first_camera_of_the_settings_tells_the_story(drivelm_folder, words, capsys):
    data = json.loads((drivelm_folder / 'data.json').read_text())
    for frame in data['s']['key_frames'].values():
        del frame['image_paths']['CAM_FRONT']
    (drivelm_folder / 'data.json').write_text(json.dumps(data))
    settings = drivelm_folder / 'drive.yaml'
    cameras = ', '.join(NUSCENES_CAMERAS[1:])
    settings.write_text(f'p2d:\n  ros__parameters:\n    camera_names: [{cameras}]\n')
    run_json(capsys, [*words[:-1], '4', '--params-file', str(settings)])
    page = (drivelm_folder / 'out' / 'report.html').read_text()
    assert f'alt="{NUSCENES_CAMERAS[1]} of s_f1"' in page


def test_answers_that_are_a_pipe_are_one_line(drivelm_folder, words, capsys):
    (drivelm_folder / 'out').mkdir()
    os.mkfifo(drivelm_folder / 'out' / 'answers.jsonl')
    assert main(words) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert NO_FILE in line
