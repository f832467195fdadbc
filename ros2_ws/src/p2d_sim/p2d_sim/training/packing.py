"""Questions about one sweep come in; one row of tokens after the shared visual prefix goes out.

The positions of each question are those that it has when it is asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.language_model.prompt import describe_views, Prompt, split_at_images
from p2d_node.records import NUSCENES_CAMERAS

from p2d_sim.questions import LETTERS, Question, VIEW_NAMES
from p2d_sim.training.samples import IGNORED

MAX_TOKENS = 704
MAX_QUESTIONS = 44
"""Largest number per sweep in training; further questions are left out."""

PADDING = -1
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Questions of one sweep in one row.

    Attributes:
        tokens: int64 [tokens]; question words, assistant mark and answer words of each question.
        positions: int64 [tokens], counted from the end of the visual prefix.
        owner: int64 [tokens], number of the question, `PADDING` at the end.
        labels: int64 [tokens], the next token where it belongs to an answer, else `IGNORED`.
        answer_at: int64 [questions], place of the token that predicts the first answer token.
        view: int64 [questions], the view if the question is about only one, else `IGNORED`.
        target: bool [questions, views * patches], patches that the question is about.
        content: int64 [questions], first token of the answer; in multiple choice of the words of
            the right option.
        place: int64 [questions, 2], row and column of the patch of the object if the question is
            about only one, else `IGNORED`.
        seen_in: int64 [questions], the view with the targets if only one has them, else `IGNORED`.
        letter: int64 [tokens], number of the option that a token belongs to, else `IGNORED`.
        option: bool [tokens], letter and words of the right option in multiple choice.
        asked: The packed questions.
    """

    tokens: IntArray
    positions: IntArray
    owner: IntArray
    labels: IntArray
    answer_at: IntArray
    view: IntArray
    target: npt.NDArray[np.bool_]
    content: IntArray
    place: IntArray
    seen_in: IntArray
    letter: IntArray
    option: npt.NDArray[np.bool_]
    asked: tuple[Question, ...]


class Packer:
    """Turns questions into the same tokens as the prompt of the node. Not thread-safe.

    Attributes:
        segments: Token ids before each view.
        preamble: Token ids after the last view that every question begins with.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Tokenise the part that all prompts begin with."""
        self._tokenizer = tokenizer
        self._image = tokenizer.convert_tokens_to_ids('<image>')
        self._assistant = tokenizer.convert_tokens_to_ids('<|assistant|>')
        self._end = tokenizer.eos_token_id
        self._letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
        self._dot = tokenizer.convert_tokens_to_ids('.')
        self._words: dict[str, list[int]] = {}
        self.segments = self._prompt('').segments
        self.preamble = self._prompt('').suffix[:-1]

    def _prompt(self, question: str) -> Prompt:
        text = f'{describe_views(NUSCENES_CAMERAS)} {question}'
        content = [{'type': 'image'} for _ in NUSCENES_CAMERAS] + [{'type': 'text', 'text': text}]
        ids = self._tokenizer.apply_chat_template(
            [{'role': 'user', 'content': content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        return split_at_images(ids, self._image, len(NUSCENES_CAMERAS))

    def words(self, text: str) -> list[int]:
        """Return the token ids of `text`; they are cached."""
        if text not in self._words:
            if len(self._words) > 50_000:
                self._words.clear()
            self._words[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._words[text]

    def row_of(self, question: Question) -> tuple[list[int], int]:
        """Return the token ids of a question with its answer, and the number before the answer."""
        asked = [*self.words(question.text), self._assistant]
        return [*asked, *self.words(question.answer), self._end], len(asked)

    def option_of(self, question: Question) -> slice:
        """Return the place of the right option in `row_of`; empty if there are no options."""
        if not question.content:
            return slice(0, 0)
        tokens, _ = self.row_of(question)
        option = self.words(f'{question.answer}. {question.content}')
        starts = range(len(tokens) - len(option))
        start = next(i for i in starts if tokens[i : i + len(option)] == option)
        return slice(start, start + len(option))

    def letters_of(self, question: Question) -> list[int]:
        """Return the number of the option of each token of a question, `IGNORED` outside them."""
        tokens, length = self.row_of(question)
        letters, current = [], IGNORED
        for token, following in pairwise(tokens[:length]):
            if question.content and token in self._letters and following == self._dot:
                current = self._letters.index(token)
            letters.append(current)
        return letters

    def pack(
        self,
        questions: Sequence[Question],
        patch_ids: IntArray,
        *,
        max_tokens: int = MAX_TOKENS,
        max_questions: int = MAX_QUESTIONS,
    ) -> Packed:
        """Pack as many of `questions` as fit.

        Args:
            questions: The questions; the first ones have precedence.
            patch_ids: Id of the object in each patch, int64 [views, patches].
            max_tokens: Length of the row.
            max_questions: Largest number of questions.
        """
        row = _Row(max_tokens, max_questions, patch_ids)
        for question in questions:
            tokens, length = self.row_of(question)
            content = self.words(question.content or question.answer)[0]
            row.add(
                question,
                tokens,
                length,
                content=content,
                option=self.option_of(question),
                letters=self.letters_of(question),
            )
        return row.packed(self._end)


class _Row:
    """Collects the packed questions of one sweep."""

    def __init__(self, max_tokens: int, max_questions: int, patch_ids: IntArray) -> None:
        self._max_questions = max_questions
        self._patch_ids = patch_ids
        self._grid = round(patch_ids.shape[1] ** 0.5)
        self._tokens = np.zeros(max_tokens, np.int64)
        self._positions = np.zeros(max_tokens, np.int64)
        self._owner = np.full(max_tokens, PADDING, np.int64)
        self._labels = np.full(max_tokens, IGNORED, np.int64)
        self._answer_at = np.zeros(max_questions, np.int64)
        self._view = np.full(max_questions, IGNORED, np.int64)
        self._content = np.full(max_questions, IGNORED, np.int64)
        self._place = np.full((max_questions, 2), IGNORED, np.int64)
        self._target = np.zeros((max_questions, patch_ids.size), np.bool_)
        self._seen_in = np.full(max_questions, IGNORED, np.int64)
        self._letter = np.full(max_tokens, IGNORED, np.int64)
        self._option = np.zeros(max_tokens, np.bool_)
        self._asked: list[Question] = []
        self._used = 0

    def add(
        self,
        question: Question,
        tokens: list[int],
        length: int,
        *,
        content: int,
        option: slice,
        letters: list[int],
    ) -> None:
        number, start = len(self._asked), self._used
        end = start + len(tokens)
        if number == self._max_questions or end > len(self._tokens):
            return
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(len(tokens))
        self._owner[start:end] = number
        self._labels[start + length - 1 : end - 1] = tokens[length:]
        self._answer_at[number] = start + length - 1
        self._content[number] = content
        self._option[start + option.start : start + option.stop] = True
        self._letter[start : start + len(letters)] = letters
        if len(question.cameras) == 1:
            self._view[number] = question.cameras[0]
        self._set_targets(number, question)
        self._asked.append(question)
        self._used = end

    def _set_targets(self, number: int, question: Question) -> None:
        target = np.zeros(self._patch_ids.shape, np.bool_)
        for view, owner in question.targets:
            target[view] |= self._patch_ids[view] == owner
        if len({view for view, _ in question.targets}) == 1:
            self._seen_in[number] = question.targets[0][0]
        if len(question.targets) == 1 and target.any():
            patches = np.flatnonzero(target.any(axis=0))
            self._place[number] = (
                round(float((patches // self._grid).mean())),
                round(float((patches % self._grid).mean())),
            )
        if not target.any() and len(question.cameras) < len(VIEW_NAMES):
            target[list(question.cameras)] = True
        self._target[number] = target.ravel()

    def packed(self, padding_token: int) -> Packed:
        self._tokens[self._used :] = padding_token
        return Packed(
            tokens=self._tokens,
            positions=self._positions,
            owner=self._owner,
            labels=self._labels,
            answer_at=self._answer_at,
            view=self._view,
            target=self._target,
            content=self._content,
            place=self._place,
            seen_in=self._seen_in,
            letter=self._letter,
            option=self._option,
            asked=tuple(self._asked),
        )
