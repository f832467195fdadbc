from argparse import Namespace

from p2d_node.cli.option_names import name_options
import pytest


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('engine_dir: got 3', '--engine-dir: got 3'),
        ('rate_hz: got 0, allowed: above 0', '--rate: got 0, allowed: above 0'),
        ('encoder.backend: got 3', 'encoder.backend: got 3'),
        ('drive.json: not valid JSON', 'drive.json: not valid JSON'),
        ('nothing to do', 'nothing to do'),
    ],
)
def test_an_error_names_the_option_of_its_parameter(message, expected):
    args = Namespace(engine_dir=None, rate=1.0, option_names={'rate_hz': '--rate'})
    assert name_options(message, args) == expected


def test_a_verb_without_option_names_keeps_its_messages():
    assert name_options('rate: got 0', Namespace(rate=1.0)) == 'rate: got 0'
