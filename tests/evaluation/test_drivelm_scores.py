"""DriveLM's official scores, on figures computed by hand and by the reference metrics."""

import json
import math
import shutil
import time

from memory import peak_growth_bytes
from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelm_questions import read_questions, Tag
from p2d_node.evaluation.drivelm_scores import match_points, points_in, score_predictions
from p2d_node.evaluation.language_metrics import score_language
from p2d_node.evaluation.predictions import read_predictions
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
import pytest

POINTS = 'There are <c1,CAM_FRONT,100.0,200.0> and <c2,CAM_BACK,500.0,600.0>.'


def qa(question, answer, *tags):
    return {'Q': question, 'A': answer, 'tag': list(tags)}


@pytest.fixture
def data(tmp_path):
    """Two keyframes; the first question of each names its objects."""
    frame_1 = {
        'perception': [qa('What are the important objects?', POINTS, 3)],
        'prediction': [qa('Will <c1,CAM_FRONT,100.0,200.0> move?', 'Yes.', 0)],
        'planning': [qa('What about <c2,CAM_BACK,500.0,600.0>?', 'Slow down and stop.', 2)],
        'behavior': [qa('What does the ego vehicle do?', 'B', 0)],
    }
    frame_2 = {
        'perception': [qa('What are the important objects?', POINTS, 3)],
        'prediction': [],
        'planning': [qa('Why?', 'The light is red.', 1, 2)],
        'behavior': [qa('Choose.', 'A', 0)],
    }
    frames = {'f1': {'QA': frame_1}, 'f2': {'QA': frame_2}}
    path = tmp_path / 'data.json'
    path.write_text(json.dumps({'s': {'key_frames': frames}}))
    return path


PREDICTIONS = {
    # Both found, the second 15.9 px off; the third is not there: precision 2/3, recall 1.
    's_f1_0': '<c1,CAM_FRONT,100.0,200.0> <c2,CAM_BACK,507.9,608.0> <c3,CAM_BACK,1.0,2.0>',
    's_f1_1': 'Yes.',
    's_f1_2': 'Slow down.',
    's_f1_3': 'C',
    # One found, one 16.0 px off: precision 1/2, recall 1/2.
    's_f2_0': '<c1,CAM_FRONT,100.0,200.0> <c2,CAM_BACK,508.0,608.0>',
    's_f2_1': 'The light is green.',
    's_f2_2': 'A',
}


@pytest.mark.attack(
    'a data set or answers with texts of a million words, or one word of megabytes',
    'a reference has up to 4,096 words and 65,536 characters; of an answer the first 4,096 words '
    'count',
)
@pytest.mark.parametrize('reference', ['ab ' * (1 << 20), 'a' * (1 << 20), 'a ' * 4097])
def test_words_that_are_compared_have_a_limit(data, reference):
    content = json.loads(data.read_text())
    content['s']['key_frames']['f1']['QA']['planning'][0]['A'] = reference
    data.write_text(json.dumps(content))

    def read():
        with pytest.raises(ConfigError, match='s_f1_2: its reference has more than 4096 words'):
            read_questions(data)

    assert peak_growth_bytes(read) < 32 << 20
    words = [f'a{number % 50}' for number in range(14_000)]
    scores = [
        score_language([' '.join(words[:count])], ['a1 a2 a3'], tokenizer='treebank')
        for count in (4096, 14_000)
    ]
    assert scores[0] == scores[1]


def test_questions_are_numbered_as_the_challenge_numbers_them(data):
    questions = read_questions(data)
    assert [q.id for q in questions] == list(PREDICTIONS)
    assert questions[5].tags == (Tag.JUDGE, Tag.LANGUAGE)


def test_scores_equal_those_computed_by_hand(data):
    scores = score_predictions(read_questions(data), PREDICTIONS)
    assert scores.num_scored == 7
    assert scores.accuracy == pytest.approx(2 / 3, abs=1e-4)
    f1 = (2 * (2 / 3) / (5 / 3), 1 / 2)
    assert scores.match_f1 == pytest.approx(100 * sum(f1) / 2, abs=1e-4)
    assert (scores.match, scores.judge, scores.final) == (None, None, None)


def test_bleu_of_two_short_answers_equals_the_formula(data):
    """Corpus BLEU of `slow down` for `slow down and stop` and of three right words of four."""
    language = score_predictions(read_questions(data), PREDICTIONS).language
    brevity = math.exp(1 - 8 / 6)
    assert language.bleu[0] == pytest.approx(brevity * 5 / 6, abs=1e-4)
    assert language.bleu[1] == pytest.approx(brevity * math.sqrt(5 / 6 * 3 / 4), abs=1e-4)
    lcs = ((2, 2, 4), (3, 4, 4))  # longest common part, length of the answer, of the reference
    rouge = []
    for common, answered, expected in lcs:
        precision, recall = common / answered, common / expected
        rouge.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    assert language.rouge_l == pytest.approx(sum(rouge) / 2, abs=1e-4)


def test_language_scores_equal_the_reference_metrics_on_tokenised_texts():
    answers = ['The car (in front) stops.', 'Keep going, at the same speed.', 'No.']
    references = ['The red car in front stops.', 'Keep going at the same speed!', 'Yes.']
    tokens = (
        ['the car -lrb- in front -rrb- stops', 'keep going at the same speed', 'no'],
        ['the red car in front stops', 'keep going at the same speed', 'yes'],
    )
    predicted, expected = ({i: [t] for i, t in enumerate(texts)} for texts in tokens)
    scores = score_language(answers, references, tokenizer='treebank')
    bleu = Bleu(4).compute_score(expected, predicted, verbose=0)[0]
    assert scores.bleu == pytest.approx(bleu, abs=1e-9)
    assert scores.rouge_l == pytest.approx(Rouge().compute_score(expected, predicted)[0])
    assert scores.cider == pytest.approx(Cider().compute_score(expected, predicted)[0])
    mean = (sum(bleu) / 4 + scores.rouge_l + scores.cider / 10) / 3
    assert scores.score == pytest.approx(mean)


def test_both_tokenizers_agree_on_drivelms_sentences(nuscenes_sample):
    if shutil.which('java') is None:
        pytest.skip('Java is not installed, which the ptb tokenizer needs')
    questions = read_questions(nuscenes_sample / 'drivelm_sample.json')
    references = [str(question.reference) for question in questions]
    answers = references[1:] + references[:1]
    ptb, treebank = (score_language(answers, references, tokenizer=t) for t in ('ptb', 'treebank'))
    assert ptb.bleu == pytest.approx(treebank.bleu, abs=1e-4)
    assert ptb.cider == pytest.approx(treebank.cider, abs=1e-4)


def test_questions_about_objects_that_were_not_found_do_not_count(data):
    predictions = {**PREDICTIONS, 's_f1_0': '<c2,CAM_BACK,500.0,600.0>'}
    scores = score_predictions(read_questions(data), predictions)
    assert scores.num_scored == 6
    assert scores.accuracy == pytest.approx(1 / 2)


def test_each_object_is_found_once():
    twice = '<c1,CAM_FRONT,100.0,200.0> <c1,CAM_FRONT,100.0,200.0>'
    found, f1 = match_points(twice, POINTS)
    assert found == [(100.0, 200.0)]
    assert f1 == pytest.approx(0.5, abs=1e-6)
    assert match_points('nothing', POINTS) == ([], 0.0)


def test_a_judge_completes_the_official_sum(data, judge_command, make_judge):
    judge = make_judge(judge_command("    print(80 if 'light' in item['answer'] else 40)\n"))
    scores = score_predictions(read_questions(data), PREDICTIONS, judge=judge)
    assert scores.judge == pytest.approx(80.0)
    assert scores.match == pytest.approx((scores.match_f1 + 40.0) / 2)
    expected = 0.4 * 0.8 + 0.2 * scores.language.score + 0.2 * scores.match / 100
    assert scores.final == pytest.approx(expected + 0.2 * scores.accuracy)


def test_without_a_single_judgement_its_scores_are_absent(data, judge_command, make_judge):
    judge = make_judge(judge_command("    print('null')\n"))
    scores = score_predictions(read_questions(data), PREDICTIONS, judge=judge)
    assert (scores.judge, scores.match, scores.final) == (None, None, None)
    assert scores.match_f1 is not None


def test_a_missing_prediction_is_named(data):
    rest = {name: answer for name, answer in PREDICTIONS.items() if name != 's_f1_2'}
    with pytest.raises(ConfigError, match='1 of 7 questions have none, the first is s_f1_2'):
        score_predictions(read_questions(data), rest)


def flat(question: str, reference: str) -> str:
    """Return flat DriveLM data of one question, of JSON values."""
    turns = f'{{"from": "human", "value": {question}}}, {{"from": "gpt", "value": {reference}}}'
    return f'[{{"id": "a_b_0", "image": ["x__CAM_FRONT__1.jpg"], "conversations": [{turns}]}}]'


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('', 'not valid JSON'),
        ('{}', 'holds no question'),
        ('[]', 'holds no question'),
        ('{"s": {}}', "not DriveLM data: KeyError: 'key_frames'"),
        ('[{"id": "a_b_0"}]', 'not DriveLM data: KeyError'),
        (flat('null', '"b"'), 'TypeError: value: got None, allowed: a text'),
        (flat('["a"]', '"b"'), r"TypeError: value: got \['a'\], allowed: a text"),
        (flat('"a"', '5'), 'TypeError: value: got 5, allowed: a text'),
        (flat('"a"', '""'), 'every reference answer is empty'),
        (flat('"a"', r'"\ud800"'), 'not valid JSON: .*surrogates not allowed'),
    ],
)
def test_data_that_is_no_drivelm_is_refused(tmp_path, content, reason):
    path = tmp_path / 'data.json'
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_questions(path)


def test_a_question_without_an_answer_is_named(data):
    content = json.loads(data.read_text())
    del content['s']['key_frames']['f2']['QA']['planning'][0]['A']
    data.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match='1 of 7 questions have no reference answer, the first'):
        score_predictions(read_questions(data), PREDICTIONS)


def test_the_flat_form_is_read_too(tmp_path):
    path = tmp_path / 'flat.json'
    images = [f'samples/CAM_{n}/a__CAM_{n}__1533151603512404.jpg' for n in ('FRONT', 'BACK')]
    turns = [{'from': 'human', 'value': '<image>\nStop?'}, {'from': 'gpt', 'value': 'B'}]
    path.write_text(json.dumps([{'id': 's_f_0', 'image': images, 'conversations': turns}]))
    (question,) = read_questions(path)
    assert (question.keyframe, question.question, question.reference) == ('s_f', 'Stop?', 'B')
    assert tuple(question.images) == ('CAM_FRONT', 'CAM_BACK')
    assert question.tags == (Tag.ACCURACY, Tag.LANGUAGE)


def test_predictions_may_be_a_list_or_a_submission(tmp_path):
    items = [{'id': name, 'answer': answer} for name, answer in PREDICTIONS.items()]
    path = tmp_path / 'predictions.json'
    for content in (items, {'method': 'p2d', 'results': items}):
        path.write_text(json.dumps(content))
        assert read_predictions(path) == PREDICTIONS
    path.write_text(json.dumps(items + items[:1]))
    with pytest.raises(ConfigError, match='the id s_f1_0 is answered twice'):
        read_predictions(path)


def test_a_text_of_digits_takes_no_time():
    begin = time.monotonic()
    assert points_in('1' * 200_000) == []
    assert len(points_in('<c1,CAM_BACK,1.0,2.0> ' * 5000)) == 256
    assert time.monotonic() - begin < 1.0


@pytest.mark.attack(
    'answers and references that name a thousand points each, of which each is compared with each',
    'the first 256 points of a text count',
)
def test_points_are_matched_up_to_a_limit():
    places = [(37 * i % 1500, 53 * i % 900) for i in range(1000)]
    texts = [' '.join(f'{x}.{n} {y}.5' for x, y in places) for n in (1, 2)]
    begin = time.process_time()
    for _ in range(100):
        match_points(*texts)
    assert time.process_time() - begin < 2.0


@pytest.mark.attack(
    'data of 236 kB with a keyframe of thousands of images and questions, which takes 2.6 GB',
    'a keyframe has up to 64 images, and its questions share them',
)
def test_the_images_of_a_keyframe_are_few_and_shared(data):
    def read(num_images):
        names = {f'CAM_{i}': f'samples/CAM_{i}/a__CAM_{i}__{i:016}.jpg' for i in range(num_images)}
        content['s']['key_frames']['f1']['image_paths'] = names
        data.write_text(json.dumps(content))
        return read_questions(data)

    content = json.loads(data.read_text())
    first, second, *_ = read(64)
    assert first.images is second.images
    with pytest.raises(ConfigError, match='got 65 images of a keyframe, allowed: up to 64'):
        read(65)


@pytest.mark.attack(
    'data of 1 MB whose scene, camera or image has a name of 100,000 characters, for 30,000 '
    'questions',
    'a scene and a frame, a camera and an id have up to 256 characters, an image up to 1,024',
)
def test_names_that_each_question_repeats_are_short(data):
    content = json.loads(data.read_text())
    scene = content['s']
    data.write_text(json.dumps({'s' * 300: scene}))
    with pytest.raises(ConfigError, match='with 303 characters, allowed: up to 256'):
        read_questions(data)
    for images, message in (
        ({'CAM_X': 'y' * 1025}, 'got a name of 1025 characters, allowed: up to 1024'),
        ({'C' * 257: 'y'}, 'got the name of a camera with 257 characters, allowed: up to 256'),
    ):
        scene['key_frames']['f1']['image_paths'] = images
        data.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            read_questions(data)
    turn = {'from': 'human', 'value': 'q'}
    item = {'id': 'i' * 257, 'image': ['samples/CAM_X/a.jpg'], 'conversations': [turn]}
    data.write_text(json.dumps([item]))
    with pytest.raises(ConfigError, match='got an id with 257 characters, allowed: up to 256'):
        read_questions(data)
