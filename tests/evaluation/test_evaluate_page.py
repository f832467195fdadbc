"""The report of an evaluation as a page."""

from types import SimpleNamespace

from p2d_node.cli.evaluate_page import _answers, _lines, MAX_CHARACTERS
import pytest


@pytest.mark.attack(
    'Questions, references or answers of megabytes, of which a report would be gigabytes',
    'a text in a report has up to 4,000 characters',
)
def test_long_texts_are_cut():
    long = '&' * 10_000
    question = SimpleNamespace(id='a', question=long, reference=long)
    ((*cells,),) = _answers([question], {'a': long}).rows
    for text in (*cells, *_lines(question, {'a': long})):
        assert len(text) < MAX_CHARACTERS + 20
        assert text.endswith('&...')
