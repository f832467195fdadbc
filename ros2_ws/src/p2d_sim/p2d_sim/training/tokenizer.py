"""The tokenizer of p2d-mini: one token per word, and a chat template that numbers the views.

A view name of two words is one token, so that the first token of an answer identifies the view.
"""

from __future__ import annotations

from p2d_node.checkpoints.checkpoint_files import make_word_tokenizer, WORD_OR_MARK
from p2d_node.language_model.prompt import describe_views, NUMBER_WORDS
from p2d_node.records import NUSCENES_CAMERAS
from transformers import PreTrainedTokenizerFast

from p2d_sim.questions import VIEW_NAMES

VIEW_MARKS = tuple(f'<view{number}>' for number in range(1, 9))
SPECIAL_TOKENS = ('<unk>', '<|user|>', '<|assistant|>', '<|end|>', '<image>', '<video>')

WORDS = (
    'What Is Which How Will Predict Select Would Are There Should Where is are there the a an of '
    'in to and or it will be show shows should do next why now because many kind '
    'car truck bus cyclist pedestrian cone barrier cars trucks buses cyclists pedestrians cones '
    'barriers object objects vehicle closest important current scene color moving status part '
    'red blue green yellow white black near far left middle right front back view views ego '
    'weather light conditions day dusk rain state traffic none yes no zero one two three '
    'braking parked walking standing path keep speed slow down brake ahead road clear close way '
    'behavior goes straight at constant slows brakes stop action dangerous change lane safe these '
    'correct answer A B C D image images This These . , ? :'
)

CHAT_TEMPLATE = (
    '{% for message in messages %}'
    "{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}"
    '{% set seen = namespace(views=0) %}'
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set seen.views = seen.views + 1 %}"
    "{{ '<view' ~ seen.views ~ '><image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    '{% endfor %}'
    "{% if message['role'] != 'user' %}<|end|>{% endif %}"
    '{% endfor %}'
    '{% if add_generation_prompt %}<|assistant|>{% endif %}'
)
"""A token of its own precedes each view."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of p2d-mini."""
    words = [*WORDS.split(), *describe_views(NUSCENES_CAMERAS).replace(',', '').split()]
    words += list(NUMBER_WORDS)
    view_names = [name for name in VIEW_NAMES if ' ' in name]
    return make_word_tokenizer(
        (*SPECIAL_TOKENS, *VIEW_MARKS),
        (*(word.strip('.') or '.' for word in words), *view_names),
        end_token='<|end|>',
        chat_template=CHAT_TEMPLATE,
        pattern='|'.join((*view_names, WORD_OR_MARK)),
    )
