"""Prompts with texts between the pictures, put together without the template."""

import json
import shutil

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.errors import ConfigError
from p2d_node.language_model import chat_template
from p2d_node.language_model.conversation import Conversation
import pytest
from tiny_qwen3 import load, SPECIAL_TOKENS, TEMPLATE, write_byte_qwen3_vl
import torch
from transformers import AutoTokenizer

MARKS = ('<|question_start|>', '<|question_end|>', '<|answer_start|>', '<|answer_end|>')
LAYOUT = {
    'camera_names': [['CAM_FRONT_LEFT', 'Front left camera'], ['CAM_FRONT', 'Front camera']],
    'system': 'You drive.',
    'camera': '{name}: ',
    'frame': 'frame {frame} ',
    'question': '<|question_start|>{question}<|question_end|>',
    'answer': '<|answer_start|>',
    'frames_per_camera': 2,
}
CLIP = ('CAM_FRONT_LEFT', 'CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT')
TEXTS = ('Front left camera: frame 0 ', 'frame 1 ', 'Front camera: frame 0 ', 'frame 1 ')
QUESTION = 'Is the {road} wet?'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('qwen3') / 'laid-out'
    return write_byte_qwen3_vl(path, marks=MARKS, layout=LAYOUT)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / 'copied')


@pytest.fixture(scope='module')
def family(folder):
    return load(folder)


def expected_ids(folder, question_text):
    """The chat as transformers renders it, with texts and pictures in turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = []
    for text in TEXTS:
        content += [{'type': 'text', 'text': text}, {'type': 'image'}]
    content.append({'type': 'text', 'text': question_text})
    messages = [
        {'role': 'system', 'content': [{'type': 'text', 'text': 'You drive.'}]},
        {'role': 'user', 'content': content},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': '<|answer_start|>'}]},
    ]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=False, continue_final_message=True
    )
    return tokenizer.encode(text, add_special_tokens=False), tokenizer


@pytest.mark.parametrize('context', ['', 'Turn left.'])
def test_a_prompt_is_what_transformers_renders(family, folder, context):
    before = 'Turn left. ' if context else ''
    text = f'{before}<|question_start|>{QUESTION}<|question_end|>'
    ids, tokenizer = expected_ids(folder, text)
    prompt = family.build_prompt(QUESTION, CLIP, context)
    picture = tokenizer.convert_tokens_to_ids('<|image_pad|>')
    assert [i for s in prompt.segments for i in (*s, picture)] + list(prompt.suffix) == ids
    assert len(prompt.segments) == len(CLIP)
    suffix = tokenizer.decode(prompt.suffix)
    assert suffix == (f'<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n<|answer_start|>')


def test_no_further_rendering_for_any_number_of_pictures(family, monkeypatch):
    monkeypatch.setattr(chat_template, 'render_limited', None)
    for number in (1, 3, 40):
        assert len(family.build_prompt('Why?', ('CAM_FRONT',) * number).segments) == number


def test_a_camera_without_a_name_is_refused(family):
    with pytest.raises(ConfigError, match='cameras: got CAM_BACK, allowed: CAM_FRONT_LEFT, CAM'):
        family.build_prompt('Why?', ('CAM_BACK',))


def conversation_of(family, num_visual_tokens=4):
    return Conversation(
        family, model_name='tiny', cameras=CLIP, num_visual_tokens=num_visual_tokens
    )


@pytest.mark.parametrize('mark', [*MARKS, '<|image_pad|>', '<|im_end|>'])
def test_only_the_layout_writes_its_marks(family, mark):
    conversation = conversation_of(family)
    with pytest.raises(ConfigError, match=r'question: got a text with <\|'):
        conversation.check_questions([f'Is {mark} here?'])
    with pytest.raises(ConfigError, match=r'context: got a text with <\|.* remove it'):
        conversation.check_context(f'Is {mark} here?')


@pytest.mark.parametrize(
    ('context', 'message'),
    [
        ('x' * 4001, 'context: got a text of 4001 characters, allowed: up to 4000'),
        ('\ud800', 'context: got a text with half a surrogate pair'),
    ],
)
def test_a_context_is_checked_like_a_question(family, context, message):
    with pytest.raises(ConfigError, match=message):
        conversation_of(family).check_context(context)


def test_a_context_counts_for_the_length_of_the_prompt_but_not_for_a_question(family):
    question = 'Why? ' * 100
    roomy = conversation_of(family)
    length = roomy.count_tokens(question)
    roomy.check_context('x' * 200, [question])
    used = sum(map(len, family.build_prompt(question, CLIP).segments)) + length
    tight = conversation_of(family, family.max_positions - used - 100)
    assert tight.count_tokens(question) == length
    tight.check_context('x' * 200)
    with pytest.raises(ConfigError, match='context: got a text of 200 characters, which with the'):
        tight.check_context('x' * 200, [question])


def test_questions_share_the_context_as_their_beginning(family):
    conversation = conversation_of(family)
    tokens = torch.zeros(len(CLIP), family.grid[0] * family.grid[1], family.num_features)
    paused = conversation.begin(['Why?', 'How?'], CLIP, tokens, 0, context='Turn left.')
    assert family.detokenize(paused.opening) == 'Turn left. '
    assert paused.batch.questions == ('Why?', 'How?')
    without = conversation.begin(['Why?', 'How?'], CLIP, tokens, 0)
    assert [*paused.batch.endings] == [*without.batch.endings]


def test_a_generation_prompt_ends_a_prompt_without_a_beginning_of_the_answer(copied):
    change(copied, LAYOUT | {'answer': '', 'system': ''})
    template = TEMPLATE.replace('assistant\n', 'assistant\n<think>')
    (copied / 'chat_template.jinja').write_text(template)
    family = load(copied)
    prompt = family.build_prompt('Why?', CLIP)
    decode = family._tokenizer.decode
    assert decode(prompt.suffix).endswith('<|im_start|>assistant\n<think>')
    assert decode(prompt.segments[0]).startswith('<|im_start|>user\nFront left camera: frame 0 ')


def change(folder, layout, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'p2d_prompt': layout} | changes))


@pytest.mark.parametrize(
    ('template', 'reason'),
    [
        (TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] | trim }}"), 'as they are, in'),
        (TEMPLATE.replace("{{ part['text'] }}", "{{ part['text'] * 2 }}"), 'as they are, in'),
        (
            TEMPLATE.replace("message['content'] %}", "message['content'] | reverse %}"),
            'as they are, in their order',
        ),
        (
            TEMPLATE.replace('<|vision_start|>', '{{ loop.index }}<|vision_start|>'),
            'different things around one picture and around two',
        ),
        (
            TEMPLATE.replace('in messages %}', "in messages if message['role'] != 'system' %}"),
            'it writes the system text 0 times',
        ),
        ("{{ raise_exception('no pictures') }}", 'no pictures'),
        (TEMPLATE + 'x' * 40_000, 'different|characters, allowed'),
        (TEMPLATE.replace('<|vision_start|>', 'x' * 9000), 'they write .* characters, allowed'),
        (
            TEMPLATE.replace('<|vision_start|>', 'xy' * 1500),
            'writes .* tokens, allowed: up to 4096',
        ),
    ],
)
def test_a_template_that_does_not_fit_the_layout_is_refused_at_start(copied, template, reason):
    change(copied, LAYOUT | ({'answer': ''} if template.endswith('xx') else {}))
    (copied / 'chat_template.jinja').write_text(template)
    with pytest.raises(ConfigError, match=f'does not fit p2d_prompt in config.json: .*{reason}'):
        load(copied)


@pytest.mark.attack(
    'a chat template that never ends, in a folder with a prompt layout',
    'stopped by the time limit, as without a layout',
)
def test_a_template_that_hangs_is_stopped(copied):
    (copied / 'chat_template.jinja').write_text(
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'
    )
    with pytest.raises(ConfigError, match='its tokenizer or chat template fails'):
        load(copied)


def test_a_layout_and_a_stitched_picture_exclude_each_other(copied):
    change(copied, LAYOUT, p2d_mosaic=[['CAM_FRONT']])
    with pytest.raises(ConfigError, match='got p2d_mosaic and p2d_prompt, allowed: one of them'):
        open_checkpoint(copied)


def test_a_layout_that_is_not_allowed_is_refused_with_the_checkpoint(copied):
    change(copied, LAYOUT | {'frames_per_camera': 99})
    with pytest.raises(ConfigError, match=r'p2d_prompt\.frames_per_camera: got 99, allowed: 1 to'):
        open_checkpoint(copied)


def test_the_marks_are_no_part_of_answers(family):
    ids = family.tokenize('It is.<|answer_end|>')
    assert family.detokenize(ids) == 'It is.'
    assert set(SPECIAL_TOKENS) & set(family.find_special_tokens('<|im_end|>'))
