import json
from multiprocessing.reduction import ForkingPickler

from p2d_node.errors import ConfigError
from p2d_node.prompt_layout import PROMPT_KEY, PromptLayout
import pytest

NAMES = {'LEFT': 'Left camera', 'FRONT': 'Front camera', 'front_wide': 'Front camera'}
CONTENT = {
    'camera_names': NAMES,
    'system': 'You drive.',
    'camera': '{name}: ',
    'frame': 'frame {frame} ',
    'context': '<r>{context}</r>',
    'question': '<q>{question}</q>',
    'answer': '<a>',
    'frames_per_camera': 2,
    'frame_interval_ms': 100,
}


def layout(**changes) -> PromptLayout:
    return PromptLayout.from_config({PROMPT_KEY: CONTENT | changes})


def test_a_checkpoint_without_the_key_has_no_layout():
    assert PromptLayout.from_config({}) is None
    assert PromptLayout.from_config({PROMPT_KEY: None}) is None


def test_a_layout_is_written_as_it_was_read():
    pairs = [list(pair) for pair in NAMES.items()]
    assert layout().to_json() == CONTENT | {'camera_names': pairs}
    # transformers sorts the keys of objects when it saves a config.
    saved = json.loads(json.dumps({PROMPT_KEY: layout().to_json()}, sort_keys=True))
    assert PromptLayout.from_config(saved) == layout()
    assert list(PromptLayout.from_config(saved).camera_names) == list(NAMES)


def test_only_names_are_needed():
    plain = PromptLayout.from_config({PROMPT_KEY: {'camera_names': NAMES}})
    assert plain.picture_texts(('LEFT', 'FRONT')) == ['', '']
    assert plain.question_text('Why?') == 'Why?'
    assert plain.question_text('Why?', 'Turn left.') == 'Turn left. Why?'
    assert plain.frames_per_camera == 1


def test_the_name_stands_before_the_first_frame_and_frames_are_numbered_per_camera():
    assert layout().picture_texts(('LEFT', 'LEFT', 'FRONT', 'FRONT')) == [
        'Left camera: frame 0 ',
        'frame 1 ',
        'Front camera: frame 0 ',
        'frame 1 ',
    ]
    assert layout(frame='').picture_texts(('LEFT', 'LEFT')) == ['Left camera: ', '']
    assert layout(camera='').picture_texts(('LEFT', 'LEFT')) == ['frame 0 ', 'frame 1 ']


def test_texts_that_look_like_placeholders_stay_as_they_are():
    text = layout().question_text('Is {context} {question} {0}?', '{question}')
    assert text == '<r>{question}</r><q>Is {context} {question} {0}?</q>'


def test_cameras_stand_in_the_order_of_the_names_with_their_frames_together():
    assert layout().in_order(('FRONT', 'FRONT', 'LEFT', 'LEFT')) == (
        ('LEFT', 'LEFT', 'FRONT', 'FRONT')
    )
    with pytest.raises(ConfigError, match='cameras: got REAR, allowed: LEFT, FRONT, front_wide'):
        layout().in_order(('LEFT', 'REAR'))


def test_cameras_without_a_name_or_with_the_same_one_are_refused():
    layout().check_cameras(('FRONT', 'LEFT'))
    with pytest.raises(ConfigError, match=r'cameras: got REAR, allowed: .* change camera_names'):
        layout().check_cameras(('FRONT', 'REAR'))
    with pytest.raises(ConfigError, match=r'got FRONT and front_wide, which .* one of them'):
        layout().check_cameras(('FRONT', 'front_wide'))
    with pytest.raises(ConfigError, match='cameras: got REAR'):
        layout().picture_texts(('REAR',))


def test_the_longest_prompt_has_every_name_once_with_all_its_frames():
    assert layout().longest_prompt == ('LEFT', 'LEFT', 'front_wide', 'front_wide')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'camera_names': {}}, 'camera_names: got {}, allowed: 1 to 64 pairs of a camera'),
        ({'camera_names': ['FRONT']}, r'camera_names: got \[.FRONT.\]'),
        ({'camera_names': [['FRONT', 'Front', 'a']]}, 'camera_names: got'),
        ({'camera_names': [['FRONT', 'Front'], ['FRONT', 'Wide']]}, 'camera_names: got'),
        ({'camera_names': [[[], 'Front']]}, 'camera_names: got'),
        ({'camera_names': {'FRONT': 3}}, r'camera_names: got \{.FRONT.: 3\}'),
        ({'camera_names': {'FRONT': ''}}, 'a text of 1 to 100 characters'),
        ({'camera_names': {'x' * 101: 'Front'}}, 'a text of 1 to 100 characters'),
        ({'camera_names': dict.fromkeys(map(str, range(65)), 'A')}, '1 to 64 pairs'),
        ({'system': 3}, 'system: got 3, allowed: a text of up to 4000 characters; edit config'),
        ({'system': 'x' * 4001}, 'system: got .* allowed: a text of up to 4000'),
        ({'system': '\ud800'}, 'system: got'),
        ({'camera': 'camera: '}, r'camera: got .camera: ., allowed: .* with \{name\} in it once'),
        ({'camera': None}, r'camera: got None, allowed: .*, or an empty one'),
        ({'frame': '{frame}{frame}'}, r'frame: got .* with \{frame\} in it once'),
        ({'question': ''}, r'question: got .., allowed: .* with \{question\} in it once'),
        ({'question': '{question}' + 'x' * 200}, 'a text of up to 200 characters with'),
        ({'context': 'x'}, r'context: got .x., allowed: .* with \{context\}'),
        ({'answer': ['<a>']}, r'answer: got \[.<a>.\], allowed: a text of up to 200'),
        ({'frames_per_camera': 0}, 'frames_per_camera: got 0, allowed: 1 to 16'),
        ({'frames_per_camera': 17}, 'frames_per_camera: got 17, allowed: 1 to 16'),
        ({'frames_per_camera': True}, 'frames_per_camera: got True, allowed: 1 to 16'),
        ({'frames_per_camera': 4.0}, 'frames_per_camera: got 4.0, allowed: 1 to 16'),
        ({'frame_interval_ms': 4}, 'frame_interval_ms: got 4, allowed: 5 to 10000'),
        ({'frame_interval_ms': '100'}, 'frame_interval_ms: got .100., allowed: 5 to 10000'),
        ({'frames': 4}, 'got .frames., allowed: an object with answer, camera, camera_names'),
    ],
)
def test_a_field_that_is_not_allowed_is_named_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        layout(**changes)
    assert str(caught.value).startswith('model: config.json: p2d_prompt')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [[], 'a', 3, {'question': '{question}'}])
def test_a_layout_that_is_no_object_with_names_is_refused(content):
    with pytest.raises(ConfigError, match='p2d_prompt'):
        PromptLayout.from_config({PROMPT_KEY: content})


def test_a_layout_can_be_sent_to_the_process_that_exports_an_engine():
    whole = layout()
    assert ForkingPickler.loads(ForkingPickler.dumps(whole)) == whole
