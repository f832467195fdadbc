"""Ctrl-C in a moment in which Python cannot raise it."""

import sys
import time

from p2d_node.interrupts import raise_lost_interrupts_again
import pytest


class Finalised:
    """Raises an error when it is collected."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


@pytest.fixture(autouse=True)
def raised_again(monkeypatch):
    monkeypatch.setattr(sys, 'unraisablehook', sys.__unraisablehook__)
    raise_lost_interrupts_again()
    raise_lost_interrupts_again()  # a second time changes nothing


def test_a_ctrl_c_in_a_finaliser_is_raised_again_and_prints_nothing(capsys):
    def lose_and_wait():
        Finalised(KeyboardInterrupt())
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        lose_and_wait()
    assert capsys.readouterr().err == ''


def test_other_errors_in_finalisers_are_shown(capsys):
    Finalised(ValueError('told'))
    assert capsys.readouterr().err.count('ValueError: told') == 1
