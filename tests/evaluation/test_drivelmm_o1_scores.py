"""DriveLMM-o1's format, its rule for final answers, and the judge's ratings."""

import json
import shutil

from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.errors import ConfigError
from p2d_node.evaluation import drivelmm_o1_questions
from p2d_node.evaluation.data_formats import recognize_format
from p2d_node.evaluation.drivelmm_o1_questions import read_o1_questions
from p2d_node.evaluation.drivelmm_o1_scores import (
    CRITERIA,
    find_final_answer,
    find_letter,
    score_o1_predictions,
)
import pytest
from tiny_checkpoints import write_internvl

QUESTIONS = (
    ('What matters in this scene?', 'A lorry brakes in the front view.', 'The lorry ahead.'),
    ('Why does it matter?', 'It is in our lane.', 'It is close.'),
    ('What is it? A) Parked. B) Braking.', 'Its lights are on.', 'B) Braking.'),
    ('Where is it? A) Ahead. B) Behind.', 'It is in the front view.', 'A) Ahead.'),
)
"""Questions 2 and 3 of a keyframe are multiple choice by the official rule, 0 and 1 are not."""

PREDICTIONS = {
    's_f0_0': 'A lorry. Final Answer: a lorry.',
    's_f0_1': 'Because it brakes.',
    's_f0_2': 'Reasoning Steps: A) seems wrong. Final Answer: B) Braking.',
    's_f0_3': 'It is A) Ahead, I think.',
}


def as_items(image_names):
    return [
        {
            'idx': f's_f{number}_{i}',
            'image': list(names.values()),
            'question': question,
            'steps': steps,
            'final_answer': final_answer,
        }
        for number, names in enumerate(image_names)
        for i, (question, steps, final_answer) in enumerate(QUESTIONS)
    ]


@pytest.fixture
def items(image_names):
    return as_items(image_names)


@pytest.fixture
def data(tmp_path, items):
    path = tmp_path / 'o1.json'
    path.write_text(json.dumps(items))
    return path


@pytest.fixture
def one_keyframe(data, items):
    data.write_text(json.dumps(items[:4]))
    return read_o1_questions(data)


def test_a_list_and_an_object_of_items_are_read_alike(data, items):
    questions = read_o1_questions(data)
    assert recognize_format(data) == 'drivelmm-o1'
    data.write_text(json.dumps({str(number): item for number, item in enumerate(items)}))
    assert read_o1_questions(data) == questions
    assert recognize_format(data) == 'drivelmm-o1'
    third = questions[2]
    assert (third.id, third.keyframe, third.is_choice) == ('s_f0_2', 's_f0', True)
    assert third.final_answer == 'B) Braking.'
    assert third.reference == 'Its lights are on.\nFinal Answer: B) Braking.'
    assert len(third.images) == 6
    assert [q.is_choice for q in questions] == [False, False, True, True] * 2


@pytest.mark.attack(
    'an idx of 400 MB, which is matched for a minute',
    'refused above 256 characters, before it is matched',
)
def test_the_length_of_an_idx_is_checked_first(data, items, monkeypatch):
    data.write_text(json.dumps([items[0] | {'idx': 'a' + '_1' * 128}]))
    monkeypatch.setattr(drivelmm_o1_questions, 'ID', None)  # nothing can be matched
    with pytest.raises(ConfigError, match=r'needed: an idx like .* of up to 256 characters'):
        read_o1_questions(data)


@pytest.mark.attack(
    'data of hundreds of megabytes with one long reference, or one long word',
    'a reference has up to 4,096 words and 65,536 characters',
)
@pytest.mark.parametrize('field', ['steps', 'final_answer'])
@pytest.mark.parametrize('text', ['&' * 65_537, 'a ' * 4097], ids=['word', 'words'])
def test_a_reference_has_a_limit(data, items, field, text):
    data.write_text(json.dumps([items[0] | {field: text}]))
    with pytest.raises(
        ConfigError, match=r'idx .s_f0_0.*its reference has more than 4096 words or 65536 char'
    ):
        read_o1_questions(data)


@pytest.mark.parametrize(
    ('text', 'final_answer'),
    [
        ('A) no. Final Answer: B) yes', ': B) yes'),
        ('**Final Answer:** A) Stop. Final Answer', ' A) Stop. Final Answer'),
        ('Answer: A, then Answer: B', ': B'),
        ('<CONCLUSION>C) Turn.', 'C) Turn.'),
        ('I would stop.', None),
    ],
)
def test_the_final_answer_follows_the_last_place_of_the_first_mark(text, final_answer):
    assert find_final_answer(text) == final_answer


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        ('B) Braking. A) Parked.', 'B'),
        ('**B)** Braking.', 'B'),
        ('B', None),
        ('B)', None),
        ('G) Something.', None),
        ('None of the options.', 'F'),
        ('b) braking', None),
    ],
)
def test_the_first_option_with_letter_and_bracket_counts(text, letter):
    assert find_letter(text) == letter


def test_final_answers_are_scored_without_a_judge(one_keyframe):
    scores = score_o1_predictions(one_keyframe, PREDICTIONS)
    assert (scores.num_questions, scores.num_choices) == (4, 2)
    # The fourth has a letter, but no final answer around it.
    assert scores.final_answer_accuracy == pytest.approx(0.5)
    assert scores.num_unmarked == 1
    assert scores.num_references_without_letter == 0
    assert scores.overall_reasoning is scores.overall_reasoning_stated is None
    assert scores.reasoning == dict.fromkeys(CRITERIA)


def test_an_answer_without_letter_is_right_where_the_reference_has_none(data, items):
    items[3]['final_answer'] = 'Ahead.'
    data.write_text(json.dumps(items[:4]))
    scores = score_o1_predictions(read_o1_questions(data), PREDICTIONS)
    assert scores.final_answer_accuracy == pytest.approx(1.0)
    assert scores.num_references_without_letter == 1


def test_without_multiple_choices_their_accuracy_is_absent(data, items):
    data.write_text(json.dumps(items[:2]))
    scores = score_o1_predictions(read_o1_questions(data), PREDICTIONS)
    assert (scores.num_choices, scores.final_answer_accuracy) == (0, None)


RATES_BY_LENGTH = (
    "    ratings = dict.fromkeys(item['criteria'], 6)\n"
    "    ratings['Relevance'] = 9 if 'lorry' in item['answer'] else 3\n"
    "    assert item['reference'].startswith(('A ', 'It'))\n"
)


def test_a_judge_gives_each_criterion_and_their_mean(one_keyframe, judge_command, make_judge):
    judge = make_judge(judge_command(RATES_BY_LENGTH + '    print(json.dumps(ratings))\n'))
    scores = score_o1_predictions(one_keyframe, PREDICTIONS, judge=judge)
    # One of four answers names the lorry.
    assert scores.reasoning['Relevance'] == pytest.approx(10 * (9 + 3 * 3) / 4)
    assert scores.reasoning['Hallucination'] == pytest.approx(60.0)
    assert scores.overall_reasoning == pytest.approx((11 * 60 + 45) / 12)
    assert scores.overall_reasoning_stated is None


def test_means_that_the_judge_states_are_kept_apart(one_keyframe, judge_command, make_judge):
    code = RATES_BY_LENGTH + "    print(json.dumps(ratings | {'Overall Score': 7.5}))\n"
    scores = score_o1_predictions(one_keyframe, PREDICTIONS, judge=make_judge(judge_command(code)))
    assert scores.overall_reasoning_stated == pytest.approx(75.0)
    assert scores.overall_reasoning == pytest.approx((11 * 60 + 45) / 12)


def test_answers_without_a_rating_are_left_out(one_keyframe, judge_command, make_judge):
    code = RATES_BY_LENGTH + (
        "    print('null' if ratings['Relevance'] == 9 else json.dumps(ratings))\n"
    )
    judge = make_judge(judge_command(code))
    scores = score_o1_predictions(one_keyframe, PREDICTIONS, judge=judge)
    assert scores.reasoning['Relevance'] == pytest.approx(30.0)
    assert judge.num_unjudged == 1


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'steps': None}, r'item 1 \(idx .s_f0_1.\): has no text steps; needed: idx, question'),
        ({'final_answer': 3}, r'item 1 \(idx .s_f0_1.\): has no text final_answer'),
        ({'idx': 'one'}, r'item 1 \(idx .one.\): needed: an idx like <scene>_<frame>_<number>'),
        ({'idx': f's_f0_{"9" * 5000}'}, 'needed: an idx like <scene>_<frame>_<number>'),
        ({'idx': f'{"s" * 255}_1'}, 'of up to 256 characters'),
        ({'idx': 's_f0_0'}, 'the idx s_f0_0 occurs twice'),
        ({'image': 'stitched.png'}, "image: got 'stitched.png', needed: up to 64 names"),
        ({'image': ['front.jpg']}, 'needed: up to 64 names of nuScenes images'),
        ({'image': ['samples/CAM_FRONT/a.jpg'] * 65}, 'needed: up to 64 names'),
    ],
)
def test_an_item_that_is_not_whole_is_named(data, items, change, reason):
    items[1] |= change
    data.write_text(json.dumps(items))
    with pytest.raises(ConfigError, match=reason):
        read_o1_questions(data)


@pytest.mark.parametrize('content', ['[]', '{}'])
def test_an_empty_file_is_refused(data, content):
    data.write_text(content)
    with pytest.raises(ConfigError, match='holds no question'):
        read_o1_questions(data)
    with pytest.raises(ConfigError, match='holds no question'):
        recognize_format(data)


def run_json(capsys, words):
    assert main(words) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize('names', [('id', 'answer'), ('idx', 'llm-response')])
def test_predictions_of_both_official_scripts_are_scored(data, items, names, capsys):
    data.write_text(json.dumps(items[:4]))
    path = data.with_name('predictions.json')
    pairs = [dict(zip(names, pair, strict=True)) for pair in PREDICTIONS.items()]
    path.write_text(json.dumps(pairs))
    words = ['evaluate', '--data', str(data), '--predictions', str(path)]
    report = run_json(capsys, [*words, '--json'])
    assert report['final_answer_accuracy'] == pytest.approx(0.5)
    assert report['overall_reasoning'] is None
    assert main(words) == 0
    assert 'absent' in capsys.readouterr().out
    path.write_text(json.dumps(pairs[:3]))
    assert main(words) == EXIT_BAD_INPUT
    assert '1 of 4 questions have none, the first is s_f0_3' in capsys.readouterr().err


@pytest.fixture(scope='module')
def mosaic_checkpoint(tmp_path_factory):
    """A tiny InternVL that takes one picture stitched of all views, as DriveLMM-o1 does."""
    folder = write_internvl(tmp_path_factory.mktemp('models') / 'o1')
    path = folder / 'config.json'
    rows = [
        ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'],
        ['CAM_BACK_RIGHT', 'CAM_BACK', 'CAM_BACK_LEFT'],
    ]
    path.write_text(json.dumps(json.loads(path.read_text()) | {'p2d_mosaic': rows}))
    return folder


@pytest.mark.parametrize('model', ['tiny_checkpoint', 'mosaic_checkpoint'])
def test_questions_are_answered_and_can_be_given_to_the_official_script(
    data, tmp_path, model, request, capsys
):
    out = tmp_path / 'out'
    words = ['evaluate', '--data', str(data), '--json']
    answering = ['--images', str(tmp_path)]
    answering += ['--model', str(request.getfixturevalue(model)), '--max-new-tokens', '12']
    report = run_json(capsys, [*words, *answering, '--out', str(out)])
    assert (report['num_questions'], report['num_choices']) == (8, 4)
    # A model with random weights does not know how to mark a final answer.
    assert (report['num_unmarked'], report['final_answer_accuracy']) == (4, 0.0)
    assert report['overall_reasoning'] is None
    submission = json.loads((out / 'submission.json').read_text())
    assert [item['idx'] for item in submission] == [
        f's_f{n}_{i}' for n in (0, 1) for i in range(4)
    ]
    assert submission[0].keys() == {'idx', 'question', 'llm-response'}
    again = run_json(capsys, [*words, '--predictions', str(out / 'submission.json')])
    assert again['final_answer_accuracy'] == report['final_answer_accuracy']


def test_reasoning_has_room_unless_settings_say_otherwise(data, tmp_path, tiny_checkpoint, capsys):
    words = ['evaluate', '--data', str(data), '--images', str(tmp_path), '--json', '--limit', '1']
    words += ['--model', str(tiny_checkpoint), '--out', str(tmp_path / 'out')]

    def longest(*more):
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)
        run_json(capsys, [*words, *more])
        first = (tmp_path / 'out' / 'answers.jsonl').read_text().splitlines()[0]
        return json.loads(first)['max_new_tokens']

    settings = tmp_path / 'drive.yaml'
    settings.write_text('p2d:\n  ros__parameters:\n    max_new_tokens: 7\n')
    assert longest('--params-file', str(settings)) == 7
    ratios = tmp_path / 'ratios.yaml'
    ratios.write_text('p2d:\n  ros__parameters:\n    retention_ratio: {CAM_BACK: 0.2}\n')
    assert longest('--params-file', str(ratios)) == 2000
    assert longest('--params-file', str(settings), '--max-new-tokens', '9') == 9
    assert main(words) == EXIT_BAD_INPUT
    assert 'made with max_new_tokens 9, now it is 2000' in capsys.readouterr().err
