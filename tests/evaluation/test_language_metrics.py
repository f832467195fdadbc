"""Texts that make the language metrics slow, large or wrong; and the metrics themselves."""

import random
import shutil
import subprocess
import time

from memory import peak_growth_bytes
from p2d_node.errors import BackendUnavailableError
from p2d_node.evaluation import language_metrics
from p2d_node.evaluation.language_metrics import compare_texts, MAX_WORDS, score_language, TOKENIZE
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
import pytest

needs_java = pytest.mark.skipif(
    shutil.which('java') is None, reason='Java is not installed, which the ptb tokenizer needs'
)
both_tokenizers = pytest.mark.parametrize(
    'tokenizer', [pytest.param('ptb', marks=needs_java), 'treebank']
)


def test_the_metrics_are_those_of_the_coco_evaluation():
    rng = random.Random(0)
    texts = [' '.join(rng.choices('abcdefg', k=rng.randint(0, 30))) for _ in range(200)]
    answers, references = texts[:100], texts[100:]
    predicted, expected = ({i: [t] for i, t in enumerate(ts)} for ts in (answers, references))
    compared = compare_texts(answers, references)
    bleu, _ = compared.bleu.compute_score(option='closest')
    assert bleu == Bleu(4).compute_score(expected, predicted, verbose=0)[0]
    assert compared.rouge_l.tolist() == Rouge().compute_score(expected, predicted)[1].tolist()
    assert compared.cider.tolist() == Cider().compute_score(expected, predicted)[1].tolist()


@both_tokenizers
def test_texts_without_words_are_scored_too(tokenizer):
    scores = score_language(['.', ''], ['', '!'], tokenizer=tokenizer)
    assert scores.cider == 0.0


@pytest.mark.attack(
    'answers or references of thousands of words that are all different, 11 MB of them together',
    'n-grams are counted text by text; a few bytes of each n-gram of the references are kept',
)
@pytest.mark.parametrize('long', ['answers', 'references'])
def test_the_words_of_all_texts_take_little_memory(long):
    texts = [' '.join(f'{16 * n:x}{i:x}' for i in range(1000)) for n in range(50)]
    short = ['a car'] * len(texts)
    pair = (texts, short) if long == 'answers' else (short, texts)
    compare_texts(short, short)  # imports the metrics
    assert peak_growth_bytes(lambda: compare_texts(*pair)) < 10 << 20


@pytest.mark.attack(
    'an answer and a reference of 4,096 words each, all of which ROUGE_L compares with each other',
    'they are compared in milliseconds and without a table',
)
def test_two_long_texts_are_compared_at_once():
    text = ' '.join(f'a{number % 50}' for number in range(MAX_WORDS))
    compare_texts(['a'], ['a'])
    begin = time.process_time()
    assert peak_growth_bytes(lambda: compare_texts([text], [text])) < 32 << 20
    assert time.process_time() - begin < 1.0


@pytest.mark.attack(
    'an answer of megabytes, which is tokenised before its first 4,096 words are scored',
    'only the first 32,768 characters are tokenised',
)
@both_tokenizers
def test_only_the_beginning_of_a_text_is_tokenised(tokenizer):
    TOKENIZE[tokenizer](['a'])
    text = 'ж;' * (1 << 20)
    assert peak_growth_bytes(lambda: TOKENIZE[tokenizer]([text])) < 32 << 20


@pytest.mark.attack(
    "a word of 200,000 characters, for which Stanford's tokenizer takes two minutes",
    'words are parted after 256 characters',
)
@needs_java
def test_a_long_word_is_tokenised_in_parts(monkeypatch):
    monkeypatch.setattr(language_metrics, 'MAX_CHARACTERS', 1 << 17)
    monkeypatch.setattr(language_metrics, 'JAVA_S', 10.0)
    (tokens,) = TOKENIZE['ptb'](['&a' * (1 << 16)])
    assert tokens.split()[:3] == ['&', 'a', '&']


@pytest.mark.attack(
    "a text on which Stanford's tokenizer takes hours",
    'it is ended after 30 s and 1 s more per 100,000 characters; the run ends with a line',
)
@needs_java
def test_the_tokenizer_has_a_limited_time(monkeypatch):
    monkeypatch.setattr(language_metrics, 'JAVA_S', 0.0)
    with pytest.raises(BackendUnavailableError, match='tokenizer: ptb takes longer than 0 s'):
        TOKENIZE['ptb'](['a'])


@pytest.mark.attack(
    'an answer holds a carriage return or another line end, which shifts all later answers',
    'line ends and control characters are spaces; a wrong number of lines ends the run',
)
@pytest.mark.parametrize('line_end', ['\r', '\r\n', '\v', '\f', '\x85', '\u2028', '\u2029'])
@both_tokenizers
def test_a_line_end_in_an_answer_shifts_no_other(tokenizer, line_end):
    texts = [f'a car{line_end}ahead', 'two cars', 'stop']
    assert TOKENIZE[tokenizer](texts) == ['a car ahead', 'two cars', 'stop']


@needs_java
def test_a_wrong_number_of_lines_is_refused(monkeypatch):
    monkeypatch.setattr(language_metrics, '_plain', str)
    with pytest.raises(BackendUnavailableError, match='ptb made 3 lines of 2 texts'):
        TOKENIZE['ptb'](['a\rb', 'c'])


@needs_java
def test_a_tokenizer_that_fails_is_one_line(monkeypatch):
    def fail(words, **options):
        raise subprocess.CalledProcessError(1, 'java')

    monkeypatch.setattr(subprocess, 'run', fail)
    with pytest.raises(BackendUnavailableError, match=r'tokenizer: ptb: .* exit status 1'):
        TOKENIZE['ptb'](['a'])
