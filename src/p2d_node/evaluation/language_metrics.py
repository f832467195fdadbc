"""BLEU, ROUGE_L and CIDEr as the COCO caption evaluation computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
import re
import shutil
import statistics
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.errors import BackendUnavailableError, ConfigError

NUM_GRAMS = 4
"""BLEU-1 to BLEU-4."""

MAX_WORDS = 4096
"""Of a text that is scored: ROUGE_L makes a table of all words of the answer and the reference. No
answer of a model has more tokens."""

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
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as err:
        raise BackendUnavailableError(
            f'language metrics: {err}; pip install -r requirements/evaluation.txt'
        ) from err
    answers, references = _cut(answers), _cut(references)
    bleu = BleuScorer(n=NUM_GRAMS)
    for answer, reference in zip(answers, references, strict=True):
        bleu += (answer, [reference])
    predicted = {i: [text] for i, text in enumerate(answers)}
    expected = {i: [text] for i, text in enumerate(references)}
    _, rouge_l = Rouge().compute_score(expected, predicted)
    _, cider = Cider().compute_score(expected, predicted)
    return ComparedTexts(bleu, rouge_l, cider)


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


def _tokenize_ptb(texts: Sequence[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = {i: [{'caption': text}] for i, text in enumerate(texts)}
    tokenized: Mapping[int, list[str]] = PTBTokenizer().tokenize(captions)
    return [tokenized[i][0] for i in range(len(texts))]


def _tokenize_treebank(texts: Sequence[str]) -> list[str]:
    from nltk.tokenize import TreebankWordTokenizer

    tokenizer = TreebankWordTokenizer()
    lines = []
    for text in texts:
        parted = COMMA_AFTER_WORD.sub(' ,', text.lower())
        words = tokenizer.tokenize(parted, convert_parentheses=True)
        kept = (word.lower().rstrip('.') for word in words if word not in PUNCTUATION)
        lines.append(' '.join(word for word in kept if word))
    return lines


TOKENIZE: Mapping[str, Tokenize] = {'ptb': _tokenize_ptb, 'treebank': _tokenize_treebank}
