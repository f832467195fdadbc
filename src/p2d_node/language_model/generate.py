"""Greedy decoding of one or several answers at once, and the likelihood of given ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import math

from p2d_node.language_model.decode import Decoder, most_likely, Prefix
from p2d_node.records import Cut
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Generation:
    """What greedy decoding gave for one question.

    Attributes:
        token_ids: The generated ids, the end token included where the model ended.
        mean_log_probability: Mean natural-log probability of these ids; NaN if there are none.
        cut: Why it ended.
    """

    token_ids: tuple[int, ...]
    mean_log_probability: float
    cut: Cut


@dataclass(slots=True)
class _Row:
    """One answer while it grows."""

    token_ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    cut: Cut | None = None

    def finished(self) -> Generation:
        """Return the answer; one that nothing has ended ran into the length limit."""
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
    end_token_ids: Sequence[int],
    must_stop: Callable[[], bool] = lambda: False,
    is_answered: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[Generation]:
    """Decode greedily after `prompts`, which are used up by it.

    Prompts with room for `max_new_tokens` are decoded in place; the cache of others grows.

    Args:
        decoder: The language model.
        prompts: The prefilled prompts, one row each.
        logits: [rows, vocabulary] after each prompt's last token.
        embed: Maps int64 [rows, 1] token ids to their embeddings.
        max_new_tokens: Longest answer.
        end_token_ids: Ids that end an answer.
        must_stop: Asked before every further token; True cuts all answers that have not ended.
        is_answered: Told a row's number and ids after each new one that does not end it; True ends
            it.

    Returns:
        One per row. Reading the rows' ids is the one synchronisation per token.
    """
    rows = [_Row() for _ in range(len(logits))]
    steps = decoder.begin_fixed_steps(prompts, embed) or _PlainSteps(decoder, prompts, embed)
    choice = most_likely(logits)
    for step in range(max_new_tokens):
        _append_tokens(rows, choice, end_token_ids, is_answered)
        if step + 1 == max_new_tokens or all(row.cut for row in rows):
            break
        if must_stop():
            for row in rows:
                row.cut = row.cut or Cut.DEADLINE
            break
        # Rows that have ended go on with what nobody reads: the batch keeps its shape.
        choice = steps.advance(choice[0])
    return [row.finished() for row in rows]


class _PlainSteps:
    """Appends tokens over the columns of the cache that are filled."""

    def __init__(
        self, decoder: Decoder, prompts: Prefix, embed: Callable[[Tensor], Tensor]
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._embed = embed

    def advance(self, tokens: Tensor) -> Tensor:
        """Append the ids [rows]; returns what `most_likely` gives after them."""
        embeddings = self._embed(tokens.long()[:, None])
        self._prompts, logits = self._decoder.step(self._prompts, embeddings)
        return most_likely(logits)


@torch.inference_mode()
def score_answers(
    decoder: Decoder,
    prompt: Prefix,
    logits: Tensor,
    answers: Sequence[Sequence[int]],
    *,
    embed: Callable[[Tensor], Tensor],
    end_token_ids: Sequence[int],
) -> list[float]:
    """Compute how likely given answers are, as whole answers: their tokens and then an end.

    Args:
        decoder: The language model.
        prompt: The prefilled prompt, of one row; it stays as it is.
        logits: [1, vocabulary] after its last token.
        answers: The token ids of each answer, without an end token.
        embed: Maps int64 [rows, 1] token ids to their embeddings.
        end_token_ids: Ids that end an answer; any of them will do.

    Returns:
        Natural log of each answer's probability.
    """
    longest = max(len(ids) for ids in answers)
    tokens = torch.zeros(len(answers), longest, dtype=torch.int64, device=logits.device)
    for row, ids in enumerate(answers):
        tokens[row, : len(ids)] = torch.tensor(ids, device=logits.device)
    lengths = torch.tensor([len(ids) for ids in answers], device=logits.device)
    ends = torch.tensor(list(end_token_ids), device=logits.device)
    rows = decoder.fork(prompt, len(answers), room=longest)
    logits = logits.expand(len(answers), -1)
    total = torch.zeros(len(answers), dtype=torch.float64, device=logits.device)
    for step in range(longest + 1):
        scores = logits.double().log_softmax(dim=-1)
        total += torch.where(lengths == step, scores[:, ends].logsumexp(dim=-1), 0.0)
        if step < longest:
            token = tokens[:, step, None]
            total += torch.where(lengths > step, scores.gather(1, token)[:, 0], 0.0)
            rows, logits = decoder.step(rows, embed(token))
    return [float(value) for value in total.tolist()]


def _append_tokens(
    rows: Sequence[_Row],
    choice: Tensor,
    end_token_ids: Sequence[int],
    is_answered: Callable[[int, Sequence[int]], bool] | None,
) -> None:
    ids, scores = choice.tolist()
    for index, row in enumerate(rows):
        if row.cut is not None:
            continue
        row.token_ids.append(int(ids[index]))
        row.log_probability += scores[index]
        if row.token_ids[-1] in end_token_ids:
            row.cut = Cut.END
        elif is_answered is not None and is_answered(index, row.token_ids):
            row.cut = Cut.STOP


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to where the first of the texts in `stop` appears."""
    ends = [text.find(mark) for mark in stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
