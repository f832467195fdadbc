"""Greedy decoding of one or several answers at once, and the likelihood of given answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import math

from p2d_node.errors import InferenceError
from p2d_node.language_model.decode import Decoder, most_likely
from p2d_node.language_model.drafts import Drafts, no_drafts
from p2d_node.language_model.prefix import Prefix
from p2d_node.latency import MustStop, never
from p2d_node.records import Cut, PassCounts
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
        passes: What the answer cost.
    """

    token_ids: tuple[int, ...]
    mean_log_probability: float
    cut: Cut
    passes: PassCounts


@dataclass(slots=True)
class _Row:
    """One answer while it is decoded."""

    token_ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    cut: Cut | None = None
    num_passes: int = 1
    num_drafted: int = 0
    num_accepted: int = 0

    def to_generation(self) -> Generation:
        """Return the answer; without another reason it ended at the length limit."""
        mean = self.log_probability / len(self.token_ids) if self.token_ids else math.nan
        counts = PassCounts(self.num_passes, self.num_drafted, self.num_accepted)
        return Generation(tuple(self.token_ids), mean, self.cut or Cut.LENGTH, counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """What ends an answer, and who hears of its tokens; see `generate_greedy`."""

    max_new_tokens: int
    end_token_ids: TokenIds
    ends_answer: Callable[[TokenIds], bool] | None
    on_token: Callable[[int, TokenIds], None] | None

    def append(self, index: int, row: _Row, token: int, log_probability: float) -> None:
        """Append a token to an answer that has not ended."""
        _require_finite(log_probability)
        row.token_ids.append(token)
        row.log_probability += log_probability
        if token in self.end_token_ids:
            row.cut = Cut.END
            return
        if self.on_token is not None:
            self.on_token(index, row.token_ids)
        if self.ends_answer is not None and self.ends_answer(row.token_ids):
            row.cut = Cut.STOP
        elif len(row.token_ids) == self.max_new_tokens:
            row.cut = Cut.LENGTH


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
    drafts: Drafts | None = None,
) -> list[Generation]:
    """Decode greedily after `prompts`; their cache is used up.

    Prompts with capacity for `max_new_tokens` and a draft are decoded in place; other caches grow,
    and are decoded without drafts.

    Args:
        decoder: The language model.
        prompts: The prefilled prompts, one row each.
        logits: [rows, 1 + drafted, vocabulary] after each prompt's last token, and after each
            token of `drafts.proposed`.
        embed: Maps int64 [rows, tokens] token ids to their embeddings.
        max_new_tokens: Maximum length of an answer.
        end_token_ids: Ids that end an answer.
        must_stop: Called before every further pass; True cuts all answers that have not ended.
        ends_answer: Gets a row's ids after each new one; True ends the answer.
        on_token: Gets a row's number and ids after each new one that is not an end token.
        drafts: What the answers will probably say; it changes how long they take, not the answers.

    Returns:
        One per row. Reading the ids is the only synchronisation with the device per pass.

    Raises:
        InferenceError: The logits are not finite.
    """
    rows = [_Row() for _ in range(len(logits))]
    ends = _Ends(
        max_new_tokens=max_new_tokens,
        end_token_ids=end_token_ids,
        ends_answer=ends_answer,
        on_token=on_token,
    )
    loop = decoder.begin_decode_loop(prompts, embed) or _GrowingLoop(decoder, prompts, embed)
    drafts = drafts or no_drafts(len(rows))
    choice = most_likely(logits)
    while True:
        _read_choice(rows, choice, drafts, ends)
        if all(row.cut for row in rows):
            break
        if must_stop():
            for row in rows:
                row.cut = row.cut or Cut.DEADLINE
            break
        if loop.takes_drafts:
            room = [-1 if row.cut else max_new_tokens - len(row.token_ids) - 1 for row in rows]
            drafts.propose(len(rows), room)
        choice = loop.advance(*_next_tokens(rows, drafts))
    return [row.to_generation() for row in rows]


def _read_choice(rows: Sequence[_Row], choice: Tensor, drafts: Drafts, ends: _Ends) -> None:
    """Append to each answer the tokens that the pass has chosen, as far as its draft was right."""
    ids, scores = choice.tolist()
    for index, (row, draft) in enumerate(zip(rows, drafts.proposed, strict=True)):
        if row.cut is not None:
            continue
        row.num_drafted += len(draft)
        for place, number in enumerate(ids[index]):
            token = int(number)
            ends.append(index, row, token, scores[index][place])
            drafts.follow(index, token)
            if row.cut is not None or place == len(draft) or draft[place] != token:
                row.num_accepted += place + (place < len(draft) and draft[place] == token)
                break


def _next_tokens(
    rows: Sequence[_Row], drafts: Drafts
) -> tuple[Sequence[int], Sequence[Sequence[int]]]:
    """Return per row the number of cached tokens, and the tokens of the next pass.

    Ended rows go on, and their tokens are ignored: the batch keeps its shape.
    """
    for row in rows:
        row.num_passes += row.cut is None
    tokens = [[row.token_ids[-1], *draft] for row, draft in zip(rows, drafts.padded, strict=True)]
    return [len(row.token_ids) - 1 for row in rows], tokens


class _GrowingLoop:
    """Appends tokens over the filled columns of the cache; the counterpart of `DecodeLoop`."""

    takes_drafts = False

    def __init__(
        self, decoder: Decoder, prompts: Prefix, embed: Callable[[Tensor], Tensor]
    ) -> None:
        self._decoder = decoder
        self._prompts = prompts
        self._embed = embed

    def advance(self, num_cached: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append a token to every row; see `DecodeLoop.advance`."""
        ids = torch.tensor(tokens, device=self._prompts.end_positions.device)
        self._prompts, logits = self._decoder.step(self._prompts, self._embed(ids))
        return most_likely(logits[:, None])


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
        logits: [1, 1, vocabulary] after its last token.
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
    logits = logits[:, -1].expand(len(answers), -1)
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


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first occurrence of any of the texts in `stop`."""
    ends = [text.find(mark) for mark in stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
