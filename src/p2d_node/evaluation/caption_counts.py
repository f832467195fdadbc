"""What BLEU, ROUGE_L and CIDEr count in texts, a text at a time.

pycocoevalcap keeps the n-grams of all texts, which take 170 times their size, and makes a table of
all words of an answer and its reference.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

Gram = tuple[str, ...]
Counts = TypeVar('Counts')

BETA = 1.2
"""Weight of recall in ROUGE_L."""


class CountedTexts(Generic[Counts]):
    """The counts of each text, made when they are asked for and not kept."""

    def __init__(self, texts: Sequence[str], count: Callable[[str], Counts]) -> None:
        """Note the texts and what counts them."""
        self._texts, self._count = texts, count

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._texts)

    def __iter__(self) -> Iterator[Counts]:
        """Yield the counts of each text."""
        return map(self._count, self._texts)


class GramFrequencies:
    """In how many texts an n-gram occurs."""

    def __init__(self, texts: Iterable[Mapping[Gram, int]]) -> None:
        """Keep 8 bytes of each n-gram of each text: its hash."""
        self._hashes = array('q', (hash(gram) for counts in texts for gram in counts))
        np.frombuffer(self._hashes, np.int64).sort()

    def __getitem__(self, gram: Gram) -> int:
        """Return the number of texts."""
        number = hash(gram)
        begin = bisect_left(self._hashes, number)
        return bisect_right(self._hashes, number, begin) - begin


def rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return ROUGE_L of the words of an answer, 0 to 1."""
    common = longest_common(answer, reference)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the usual table grows by 0 or 1 from place to place, so it is one bit per word of
    `other` (Hyyrö, 2004): a 0 where it grows.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = row = (1 << len(other)) - 1
    for word in one:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & everywhere
    return len(other) - row.bit_count()
