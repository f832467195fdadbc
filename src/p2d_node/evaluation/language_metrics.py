"""BLEU, ROUGE_L and CIDEr as the COCO caption evaluation computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
import re
import shutil
import statistics
import subprocess
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.evaluation.caption_counts import CountedTexts, GramFrequencies, rouge_l

NUM_GRAMS = 4
"""BLEU-1 to BLEU-4."""

MAX_WORDS = 4096
"""Of a text that is scored. No answer of a model has more tokens."""

MAX_CHARACTERS = 8 * MAX_WORDS
"""Of a text that is tokenised."""

LONG_WORD = re.compile(r'\S{256}(?=\S)')
"""Stanford's tokenizer takes time that grows with the square of a word."""

LINE_END = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]')
"""All that Stanford's tokenizer may take for the end of a line, and other control characters."""

JAVA_S, JAVA_CHARACTERS_PER_S = 30.0, 100_000
"""Longest time of Stanford's tokenizer, and for each second more as many characters. It reads ten
times as fast."""

TOKENIZERS = ('auto', 'ptb', 'treebank')

PUNCTUATION = frozenset(("''", "'", '``', '`', '.', '?', '!', ',', ':', '-', '--', '...', ';'))
"""Tokens that the COCO evaluation leaves out. (Its list has brackets in capitals too, which never
occur in its tokens, so brackets stay.)"""

COMMA_AFTER_WORD = re.compile(r'(?<=[a-z_]),(?=\d)')
"""As in `<c1,CAM_FRONT,714.3,503.6>`; Stanford's tokenizer splits the word from the number."""

Tokenize = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True)
class LanguageScores:
    """Scores of a corpus.

    Attributes:
        bleu: BLEU-1 to BLEU-4, 0 to 1.
        rouge_l: ROUGE_L, 0 to 1.
        cider: CIDEr, 0 to 10.
        tokenizer: `ptb`, Stanford's as the official evaluation uses it, or `treebank`, NLTK's,
            which splits a few words differently.
    """

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider: float
    tokenizer: str

    @property
    def score(self) -> float:
        """The official mean of BLEU, ROUGE_L and a tenth of CIDEr."""
        return (statistics.fmean(self.bleu) + self.rouge_l + self.cider / 10.0) / 3.0


@dataclass(frozen=True, slots=True)
class ComparedTexts:
    """Answers compared with their references.

    Attributes:
        bleu: pycocoevalcap's BLEU scorer with the counts of all answers.
        rouge_l: ROUGE_L of each answer, float [answers].
        cider: CIDEr of each answer, float [answers].
    """

    bleu: Any
    rouge_l: npt.NDArray[np.float64]
    cider: npt.NDArray[np.float64]


def score_language(
    answers: Sequence[str], references: Sequence[str], *, tokenizer: str = 'auto'
) -> LanguageScores:
    """Compare answers with one reference each.

    Args:
        answers: Predicted texts.
        references: Their references, in the same order.
        tokenizer: `ptb` needs Java; `auto` is `ptb` if Java is installed, else `treebank`.

    Raises:
        BackendUnavailableError: The metrics, or Java for `ptb`, are not installed.
    """
    chosen = choose_tokenizer(tokenizer)
    tokenize = TOKENIZE[chosen]
    compared = compare_texts(tokenize(answers), tokenize(references))
    bleu_scores, _ = compared.bleu.compute_score(option='closest', verbose=0)
    one, two, three, four = (float(score) for score in bleu_scores)
    rouge_l, cider = float(np.mean(compared.rouge_l)), float(np.mean(compared.cider))
    return LanguageScores((one, two, three, four), rouge_l, cider, chosen)


def compare_texts(answers: Sequence[str], references: Sequence[str]) -> ComparedTexts:
    """Compare tokenised answers with one tokenised reference each, up to `MAX_WORDS` of each.

    Raises:
        BackendUnavailableError: The metrics are not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    except ImportError as err:
        raise BackendUnavailableError(
            f'language metrics: {err}; pip install -r requirements/evaluation.txt'
        ) from err
    answers, references = _cut(answers), _cut(references)
    bleu = BleuScorer(n=NUM_GRAMS)
    for answer, reference in zip(answers, references, strict=True):
        bleu += (answer, [reference])
        bleu.crefs.clear()  # the sums of the answer are made
    # A text without words has one that is empty, as in the COCO evaluation.
    rouge = (rouge_l(a.split(' '), b.split(' ')) for a, b in zip(answers, references, strict=True))
    return ComparedTexts(bleu, np.fromiter(rouge, np.float64), _cider(answers, references))


def _cider(answers: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return CIDEr of each answer; the scorer gets the counts one by one."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, precook

    scorer = CiderScorer(n=NUM_GRAMS)
    scorer.document_frequency = GramFrequencies(CountedTexts(references, precook))
    scorer.ctest = CountedTexts(answers, precook)
    scorer.crefs = CountedTexts(references, lambda text: cook_refs([text]))
    return np.array(scorer.compute_cider())


def _cut(texts: Sequence[str]) -> list[str]:
    """Return the first words of each text; words have spaces between them."""
    return [' '.join(text.split()[:MAX_WORDS]) for text in texts]


def choose_tokenizer(name: str) -> str:
    """Return `ptb` or `treebank`; see `score_language`."""
    if name not in TOKENIZERS:
        raise ConfigError(f'tokenizer: got {name!r}, allowed: {", ".join(TOKENIZERS)}')
    for package in ('pycocoevalcap', 'nltk'):
        if find_spec(package) is None:
            raise BackendUnavailableError(
                f'{package} is not installed, and scores need it; install the extra: '
                "pip install '.[evaluation]', or requirements/evaluation.txt"
            )
    has_java = shutil.which('java') is not None
    if name == 'ptb' and not has_java:
        raise BackendUnavailableError(
            'tokenizer: ptb needs Java, which is not installed; install a JRE, or use treebank'
        )
    return 'ptb' if has_java and name == 'auto' else name.replace('auto', 'treebank')


def _plain(text: str) -> str:
    """Return the beginning of a text in one line, and without long words."""
    line = LINE_END.sub(' ', text[:MAX_CHARACTERS])
    return LONG_WORD.sub(r'\g<0> ', line)


def _tokenize_ptb(texts: Sequence[str]) -> list[str]:
    lines = _run_stanford([_plain(text) for text in texts])
    if len(lines) != len(texts):
        raise BackendUnavailableError(
            f'tokenizer: ptb made {len(lines)} lines of {len(texts)} texts; use treebank'
        )
    return [
        ' '.join(word for word in line.rstrip().split(' ') if word not in PUNCTUATION)
        for line in lines
    ]


def _run_stanford(lines: Sequence[str]) -> list[str]:
    """Return the tokens of each line, as pycocoevalcap asks for them, but for a limited time."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    words = ['java', '-cp', str(jar), 'edu.stanford.nlp.process.PTBTokenizer']
    words += ['-preserveLines', '-lowerCase', '-encoding', 'UTF-8']
    text = ''.join(f'{line}\n' for line in lines)
    limit_s = JAVA_S + len(text) / JAVA_CHARACTERS_PER_S
    try:
        # Its warnings hold characters of the texts, which a terminal might execute.
        done = subprocess.run(
            words,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limit_s,
            check=True,
        )
    except subprocess.TimeoutExpired as err:
        raise BackendUnavailableError(
            f'tokenizer: ptb takes longer than {limit_s:.0f} s; use treebank'
        ) from err
    except (OSError, subprocess.CalledProcessError) as err:
        raise BackendUnavailableError(f'tokenizer: ptb: {err}; use treebank') from err
    return done.stdout.decode().split('\n')[:-1]


def _tokenize_treebank(texts: Sequence[str]) -> list[str]:
    from nltk.tokenize import TreebankWordTokenizer

    tokenizer = TreebankWordTokenizer()
    lines = []
    for text in texts:
        parted = COMMA_AFTER_WORD.sub(' ,', _plain(text).lower())
        words = tokenizer.tokenize(parted, convert_parentheses=True)
        kept = (word.lower().rstrip('.') for word in words if word not in PUNCTUATION)
        lines.append(' '.join(word for word in kept if word))
    return lines


TOKENIZE: Mapping[str, Tokenize] = {'ptb': _tokenize_ptb, 'treebank': _tokenize_treebank}
