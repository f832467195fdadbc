"""What a bag says its types are: they must not choose what Python imports."""

import sys

from p2d_node.ros.replay import find_message_type
import pytest


@pytest.mark.attack(
    'A bag names a type whose package is any Python module, which does things when imported',
    'nothing is imported: only packages with a folder of messages count',
)
@pytest.mark.parametrize(
    'name',
    [
        'antigravity/msg/X',
        'this/msg/X',
        '.foo/msg/X',
        'venv.__main__/msg/X',
        'std_msgs/msg/__name__',
    ],
)
def test_a_type_of_a_bag_imports_no_other_module(name, capsys):
    assert find_message_type(name) is None
    assert not {'antigravity', 'this'} & set(sys.modules)
    assert capsys.readouterr().out == ''


def test_the_types_of_ros_are_found():
    from std_msgs.msg import String

    assert find_message_type('std_msgs/msg/String') is String
    assert find_message_type('no_such_msgs/msg/String') is None
