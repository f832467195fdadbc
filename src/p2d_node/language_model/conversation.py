"""Questions about a sweep and its visual tokens come in; answers go out.

All questions share one prefix: the pictures, and the words that all questions begin with. `begin`
and `resume` prefill it, with token selection between them; `ask` appends a batch of questions to
it; `generate` decodes their answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
import math
import threading

from p2d_node.errors import ConfigError
from p2d_node.language_model.drafts import Drafter, Drafts
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.generate import cut_at, generate_greedy, Generation, score_answers
from p2d_node.language_model.prefix import PausedPrefill, Prefix
from p2d_node.language_model.prompt import Prompt, split_opening
from p2d_node.latency import MustStop, never
from p2d_node.records import Cut, PassCounts
import torch
from torch import Tensor

OnPartial = Callable[[str, str], None]
"""Gets a question and its answer so far."""

MAX_QUESTION_CHARACTERS = 4000
"""A question is prefilled in one pass, without regard to the deadline: longer ones would delay the
others."""

MAX_PADDED_TOKENS = 4096
"""Of a batch of questions, whose rows are as long as the longest one. A longer question is asked
alone: between two batches a sweep can end."""

INCOMPLETE_CHARACTER = '\ufffd'


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends an answer, besides the model itself.

    Attributes:
        max_new_tokens: Maximum number of generated tokens.
        stop: Texts that end an answer; they are not part of it.
        must_stop: Called between tokens; True cuts all answers.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    must_stop: MustStop = never


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSettings:
    """Where drafts of answers come from; see `Drafter.begin`.

    Attributes:
        source: last_sweep, prompt_lookup or none.
        max_tokens: Largest number of drafted tokens per pass.
    """

    source: str = 'none'
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """One answer as text.

    Attributes:
        text: Without special tokens and stop texts.
        num_tokens: Number of generated tokens, the end token included.
        mean_log_probability: Mean natural-log probability of the tokens; NaN if there are none.
        cut: Why the answer ended.
        passes: What decoding cost.
    """

    text: str
    num_tokens: int
    mean_log_probability: float
    cut: Cut
    passes: PassCounts = field(default_factory=PassCounts)


NO_DRAFTS = DraftSettings()

UNANSWERED = TextAnswer('', 0, math.nan, Cut.DEADLINE)
"""Stands for the answer to a question that was not asked before the deadline."""


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Questions that are answered together.

    Attributes:
        questions: Their texts.
        endings: Per question the token ids after the shared prefix.
    """

    questions: tuple[str, ...]
    endings: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class PausedConversation:
    """The shared prefix, prefilled up to `prune_layer`.

    Attributes:
        prefill: The paused prefill.
        opening: Token ids after the pictures that all questions begin with.
        batch: All questions.
    """

    prefill: PausedPrefill
    opening: tuple[int, ...]
    batch: QuestionBatch

    @property
    def visual_states(self) -> Tensor:
        """The features to select tokens by, float [pictures, tokens, hidden]."""
        return self.prefill.visual_states


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The prefilled part that all questions share.

    Attributes:
        prefix: Its KV cache, one row.
        end_position: Position where the questions continue.
        batch: All questions.
    """

    prefix: Prefix
    end_position: int
    batch: QuestionBatch

    def batches(self, first: int, end: int, size: int) -> Iterator[QuestionBatch]:
        """Yield the questions from number `first` to before `end` in batches of at most `size`.

        A batch has fewer if its rows, padded to the longest, had more than `MAX_PADDED_TOKENS`.
        """
        start, longest = first, 0
        for number in range(first, end):
            num_rows, longest = number - start + 1, max(longest, len(self.batch.endings[number]))
            if num_rows > 1 and (num_rows > size or num_rows * longest > MAX_PADDED_TOKENS):
                yield self._part(start, number)
                start, longest = number, len(self.batch.endings[number])
        if start < end:
            yield self._part(start, end)

    def _part(self, start: int, end: int) -> QuestionBatch:
        part = slice(start, end)
        return QuestionBatch(self.batch.questions[part], self.batch.endings[part])


@dataclass(frozen=True, slots=True)
class AskedBatch:
    """A batch of questions, prefilled; `generate` uses its cache up.

    Attributes:
        questions: Their texts.
        prompts: One row per question.
        logits: [rows, 1 + drafted, vocabulary] after each question and each drafted token.
        drafts: What the answers will probably say.
    """

    questions: tuple[str, ...]
    prompts: Prefix
    logits: Tensor
    drafts: Drafts


class Conversation:
    """Asks a loaded model. Use it from one thread; any thread may call `check_questions`.

    Attributes:
        drafter: Where drafts of answers come from.
        num_features: Features of a visual token.
    """

    def __init__(
        self, family: Family, *, model_name: str, cameras: Sequence[str], num_visual_tokens: int
    ) -> None:
        """Wrap a loaded model.

        Args:
            family: The model.
            model_name: For messages.
            cameras: The camera of each picture of a full clip, in the model's order.
            num_visual_tokens: Of all these pictures, before any is dropped.

        Raises:
            ConfigError: So many tokens take far more than the weights of the model show.
        """
        family.check_num_tokens(num_visual_tokens)
        self._family = family
        self._model_name = model_name
        self.num_features = family.num_features
        self._cameras = tuple(cameras)
        self._num_visual_tokens = num_visual_tokens
        self.drafter = Drafter(family.decoder.pass_costs)
        self._tokenizer_lock = threading.Lock()  # tokenizers are not thread-safe

    def check_questions(self, questions: Sequence[str]) -> None:
        """Raise `ConfigError` for a question that cannot be asked; any thread may call it.

        A question may be too long, or contain special tokens that only the chat template may
        write. A chat template that fails is found here too.
        """
        for question in questions:
            self.count_tokens(question)

    def check_context(self, context: str, questions: Sequence[str] = ('',)) -> None:
        """Raise `ConfigError` for a context that cannot stand before questions.

        Any thread may call it. What is checked is that of `check_questions`.

        Args:
            context: The text.
            questions: Questions that it will stand before, for the length of the prompt.
        """
        self._check_text('context', context)
        for question in questions:
            self._count_suffix('context', question, context)

    def count_tokens(self, question: str) -> int:
        """Return the number of tokens after the pictures; any thread may call it.

        Raises:
            ConfigError: As `check_questions`.
        """
        self._check_text('question', question)
        return self._count_suffix('question', question)

    def _check_text(self, name: str, text: str) -> None:
        if len(text) > MAX_QUESTION_CHARACTERS:
            raise ConfigError(
                f'{name}: got a text of {len(text)} characters, allowed: up to '
                f'{MAX_QUESTION_CHARACTERS}'
            )
        if not _is_unicode(text):
            raise ConfigError(f'{name}: got a text with half a surrogate pair; write it again')
        with self._tokenizer_lock:
            special = self._family.find_special_tokens(text)
        if special:
            raise ConfigError(
                f'{name}: got a text with {special[0]}, which only the chat template of '
                f'{self._model_name} may write; remove it'
            )

    def _count_suffix(self, name: str, question: str, context: str = '') -> int:
        """Return the number of tokens after the pictures, if the whole prompt is short enough."""
        prompt = self._build_prompt(question, self._cameras, context)
        num_text_tokens = sum(map(len, prompt.segments)) + len(prompt.suffix)
        length = num_text_tokens + self._num_visual_tokens
        if length >= self._family.max_positions:
            raise ConfigError(
                f'{name}: got a text of {len(context or question)} characters, which with the '
                f'pictures makes {length} tokens; allowed with {self._model_name}: fewer than '
                f'{self._family.max_positions}; shorten it, or lower view_max_pixels if the model '
                'takes views of any size'
            )
        return len(prompt.suffix)

    def _build_prompt(self, question: str, cameras: Sequence[str], context: str) -> Prompt:
        with self._tokenizer_lock:
            return self._family.build_prompt(question, cameras, context)

    @torch.inference_mode()
    def begin(
        self,
        questions: Sequence[str],
        cameras: Sequence[str],
        visual_tokens: Tensor,
        prune_layer: int,
        *,
        context: str = '',
    ) -> PausedConversation:
        """Run the layers before `prune_layer` over the shared prefix, with all visual tokens.

        Args:
            questions: One or more.
            cameras: The camera of each picture; in a clip once per frame, oldest first.
            visual_tokens: [pictures, tokens, features], as the vision encoder returns them.
            prune_layer: The layer before which tokens are dropped.
            context: What stands before each question, such as a route; may be empty.
        """
        self.drafter.begin_sweep()
        prompts = [self._build_prompt(question, cameras, context) for question in questions]
        opening, endings = split_opening([prompt.suffix for prompt in prompts])
        inputs = self._family.embed_prefix(prompts[0], visual_tokens)
        prefill = self._family.decoder.begin_prefill(inputs, prune_layer)
        batch = QuestionBatch(tuple(questions), tuple(endings))
        return PausedConversation(prefill, opening, batch)

    @torch.inference_mode()
    def resume(
        self, paused: PausedConversation, keep_indices: Sequence[Tensor] | None
    ) -> SharedPrefix:
        """Run the remaining layers over the shared prefix, with the kept tokens.

        Args:
            paused: From `begin`; use it once.
            keep_indices: Per picture the kept tokens, int64, ascending; None keeps all.
        """
        decoder = self._family.decoder
        prefix = decoder.resume_prefill(paused.prefill, keep_indices)
        end_position = paused.prefill.inputs.end_position
        if paused.opening:
            text = self._family.embed_text(paused.opening, end_position)
            prefix, _ = decoder.extend(prefix, [text])
            end_position = text.end_position
        return SharedPrefix(prefix, end_position, paused.batch)

    @torch.inference_mode()
    def ask(
        self,
        shared: SharedPrefix,
        batch: QuestionBatch,
        *,
        max_new_tokens: int = 0,
        drafting: DraftSettings = NO_DRAFTS,
    ) -> AskedBatch:
        """Append questions, and how their answers probably begin, to copies of the shared prefix.

        Args:
            shared: From `resume`; it stays unchanged.
            batch: One of its batches.
            max_new_tokens: Number of tokens to reserve capacity for.
            drafting: Where drafts come from.
        """
        source, max_drafted = drafting.source, min(drafting.max_tokens, max_new_tokens)
        drafts = self.drafter.begin(source, batch.questions, batch.endings, max_drafted)
        texts = [self._family.embed_text(ids, shared.end_position) for ids in batch.endings]
        num_rows, longest = len(texts), max(map(len, batch.endings))
        drafts.propose(num_rows * longest, [max_new_tokens - 1] * num_rows)
        prompts, logits = self._family.decoder.extend(
            shared.prefix,
            texts,
            max_new_tokens=max_new_tokens and max_new_tokens + max_drafted,
            drafts=self._embed_drafts(drafts, shared.prefix.end_positions.device),
        )
        return AskedBatch(batch.questions, prompts, logits, drafts)

    def _embed_drafts(self, drafts: Drafts, device: torch.device) -> Tensor | None:
        """Return the embeddings of the proposed tokens, padded; None if there are none."""
        if drafts.width == 1:
            return None
        return self._family.embed(torch.tensor(drafts.padded, device=device))

    def generate(
        self, asked: AskedBatch, limits: Limits, on_partial: OnPartial | None = None
    ) -> list[TextAnswer]:
        """Decode the answers to a batch of questions.

        Args:
            asked: From `ask`.
            limits: What ends an answer.
            on_partial: Called with a question and its answer so far after each of its tokens.
        """

        def ends_answer(token_ids: Sequence[int]) -> bool:
            text = self._family.detokenize(token_ids)
            return len(cut_at(text, limits.stop)) < len(text)

        def on_token(row: int, token_ids: Sequence[int]) -> None:
            text = cut_at(self._family.detokenize(token_ids), limits.stop)
            # The last character may lack bytes that the next token brings.
            text = text.rstrip(INCOMPLETE_CHARACTER).strip()
            if on_partial is not None:
                on_partial(asked.questions[row], text)

        generations = generate_greedy(
            self._family.decoder,
            asked.prompts,
            asked.logits,
            embed=self._family.embed,
            max_new_tokens=limits.max_new_tokens,
            end_token_ids=self._family.end_token_ids,
            must_stop=limits.must_stop,
            ends_answer=ends_answer if limits.stop else None,
            on_token=on_token if on_partial is not None else None,
            drafts=asked.drafts,
        )
        for question, generation in zip(asked.questions, generations, strict=True):
            self.drafter.end(question, generation.token_ids)
        return [self._to_text(generation, limits.stop) for generation in generations]

    def _to_text(self, generation: Generation, stop: Sequence[str]) -> TextAnswer:
        return TextAnswer(
            text=cut_at(self._family.detokenize(generation.token_ids), stop).strip(),
            num_tokens=len(generation.token_ids),
            mean_log_probability=generation.mean_log_probability,
            cut=generation.cut,
            passes=generation.passes,
        )

    def tokenize_choices(self, choices: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of each choice.

        Raises:
            ConfigError: No choices, or choices that are empty or equal.
        """
        if isinstance(choices, str):
            raise ConfigError(f'choices: got the text {choices!r}, allowed: a list of texts')
        with self._tokenizer_lock:
            answers = [self._family.tokenize(choice) for choice in choices]
        if not answers or not all(answers) or len(set(choices)) < len(choices):
            raise ConfigError(f'choices: got {list(choices)!r}, allowed: different, not empty')
        return answers

    def score(self, asked: AskedBatch, answers: Sequence[Sequence[int]]) -> list[float]:
        """Return the natural-log likelihood of each of `answers` as the whole answer.

        Args:
            asked: One question.
            answers: Token ids of each, from `tokenize_choices`.
        """
        return score_answers(
            self._family.decoder,
            asked.prompts,
            asked.logits,
            answers,
            embed=self._family.embed,
            end_token_ids=self._family.end_token_ids,
        )

    def release(self) -> None:
        """Free the buffers that are reused from sweep to sweep."""
        self._family.decoder.release()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
