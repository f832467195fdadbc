"""Greedy decoding of one or several answers at once, and the likelihood of given answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import math

from p2d_node.errors import InferenceError
from p2d_node.language_model.decode import Decoder, most_likely
from p2d_node.language_model.prefix import Prefix
from p2d_node.latency import MustStop, never
from p2d_node.records import Cut
import torch
from torch import Tensor

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class Generation:
    """The generated tokens of one answer.

    Attributes:
        token_ids: The generated ids, including the end token if the model ended the answer.
        mean_log_probability: Mean natural-log probability of these ids; NaN if there are none.
        cut: Why the answer ended.
    """

    token_ids: tuple[int, ...]
    mean_log_probability: float
    cut: Cut


@dataclass(slots=True)
class _Row:
    """One answer while it is decoded."""

    token_ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    cut: Cut | None = None

    def to_generation(self) -> Generation:
        """Return the answer; without another reason it ended at the length limit."""
        mean = self.log_probability / len(self.token_ids) if self.token_ids else math.nan
        return Generation(tuple(self.token_ids), mean, self.cut or Cut.LENGTH)


@torch.inference_mode()
def generate_greedy(
    decoder: Decoder,
    prompts: Prefix,
    logits: Tensor,
    *,
    embed: Callable[[Tensor], Tensor],
    max_new_tokens: int,
    end_token_ids: TokenIds,
    must_stop: MustStop = never,
    ends_answer: Callable[[TokenIds], bool] | None = None,
    on_token: Callable[[int, TokenIds], None] | None = None,
) -> list[Generation]:
    """Decode greedily after `prompts`; their cache is used up.

    Prompts with capacity for `max_new_tokens` are decoded in place; other caches grow.

    Args:
        decoder: The language model.
        prompts: The prefilled prompts, one row each.
        logits: [rows, vocabulary] after each prompt's last token.
        embed: Maps int64 [rows, 1] token ids to their embeddings.
        max_new_tokens: Maximum length of an answer.
        end_token_ids: Ids that end an answer.
        must_stop: Called before every further token; True cuts all answers that have not ended.
        ends_answer: Gets a row's ids after each new one; True ends the answer.
        on_token: Gets a row's number and ids after each new one that is not an end token.

    Returns:
        One per row. Reading the ids is the only synchronisation with the device per token.

    Raises:
        InferenceError: The logits are not finite.
    """
    rows = [_Row() for _ in range(len(logits))]
    loop = decoder.begin_decode_loop(prompts, embed) or _GrowingLoop(decoder, prompts, embed)
    choice = most_likely(logits)
    for step in range(max_new_tokens):
        _append_tokens(rows, choice, end_token_ids, ends_answer, on_token)
        if step + 1 == max_new_tokens or all(row.cut for row in rows):
            break
        if must_stop():
            for row in rows:
                row.cut = row.cut or Cut.DEADLINE
            break
        # Ended rows go on, and their tokens are ignored: the batch keeps its shape.
        choice = loop.advance(choice[0])
    return [row.to_generation() for row in rows]


class _GrowingLoop:
    """Appends tokens over the filled columns of the cache; the counterpart of `DecodeLoop`."""

    def __init__(
        self, decoder: Decoder, prompts: Prefix, embed: Callable[[Tensor], Tensor]
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._embed = embed

    def advance(self, tokens: Tensor) -> Tensor:
        """Append the ids [rows]; returns the result of `most_likely` after them."""
        embeddings = self._embed(tokens.long()[:, None])
        self._prompts, logits = self._decoder.step(self._prompts, embeddings)
        return most_likely(logits)


@torch.inference_mode()
def score_answers(
    decoder: Decoder,
    prompt: Prefix,
    logits: Tensor,
    answers: Sequence[TokenIds],
    *,
    embed: Callable[[Tensor], Tensor],
    end_token_ids: TokenIds,
) -> list[float]:
    """Compute the likelihood of given answers as whole answers: their tokens and then an end.

    Args:
        decoder: The language model.
        prompt: The prefilled prompt, one row; it stays unchanged.
        logits: [1, vocabulary] after its last token.
        answers: The token ids of each answer, without an end token.
        embed: Maps int64 [rows, 1] token ids to their embeddings.
        end_token_ids: Ids that end an answer; their probabilities are added.

    Returns:
        Natural log of each answer's probability.

    Raises:
        InferenceError: The logits are not finite.
    """
    longest = max(len(ids) for ids in answers)
    tokens = torch.zeros(len(answers), longest, dtype=torch.int64, device=logits.device)
    for row, ids in enumerate(answers):
        tokens[row, : len(ids)] = torch.tensor(ids, device=logits.device)
    lengths = torch.tensor([len(ids) for ids in answers], device=logits.device)
    ends = torch.tensor(list(end_token_ids), device=logits.device)
    rows = decoder.fork(prompt, len(answers), max_new_tokens=longest)
    logits = logits.expand(len(answers), -1)
    total = torch.zeros(len(answers), dtype=torch.float64, device=logits.device)
    for step in range(longest + 1):
        scores = logits.double().log_softmax(dim=-1)
        total += torch.where(lengths == step, scores[:, ends].logsumexp(dim=-1), 0.0)
        if step < longest:
            token = tokens[:, step, None]
            total += torch.where(lengths > step, scores.gather(1, token)[:, 0], 0.0)
            rows, logits = decoder.step(rows, embed(token))
    values: list[float] = total.tolist()
    for value in values:
        _require_finite(value)
    return values


def _require_finite(log_probability: float) -> None:
    """Check the log probability of a token; only logits that are not finite make it so."""
    if not math.isfinite(log_probability):
        raise InferenceError(
            'language model: got logits that are NaN or infinite, allowed: finite logits; set '
            'dtype to bfloat16 or float32, or copy the checkpoint again'
        )


def _append_tokens(
    rows: Sequence[_Row],
    choice: Tensor,
    end_token_ids: TokenIds,
    ends_answer: Callable[[TokenIds], bool] | None,
    on_token: Callable[[int, TokenIds], None] | None,
) -> None:
    ids, scores = choice.tolist()
    for index, row in enumerate(rows):
        if row.cut is not None:
            continue
        _require_finite(scores[index])
        row.token_ids.append(int(ids[index]))
        row.log_probability += scores[index]
        if row.token_ids[-1] in end_token_ids:
            row.cut = Cut.END
            continue
        if on_token is not None:
            on_token(index, row.token_ids)
        if ends_answer is not None and ends_answer(row.token_ids):
            row.cut = Cut.STOP


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first occurrence of any of the texts in `stop`."""
    ends = [text.find(mark) for mark in stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
