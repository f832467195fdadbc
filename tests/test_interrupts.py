"""Ctrl-C in a moment in which Python cannot raise it."""

import signal
import sys
import time

from p2d_node.cli.termination import end_as_by_ctrl_c
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


@pytest.fixture
def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_ended_cleans_up(handlers, number):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    end_as_by_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_a_program_under_nohup_goes_on_when_its_terminal_is_closed(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_as_by_ctrl_c()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_other_errors_in_finalisers_are_shown(capsys):
    Finalised(ValueError('told'))
    assert capsys.readouterr().err.count('ValueError: told') == 1
