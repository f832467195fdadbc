"""The time of a sweep on a machine that is not at hand: computed, never measured.

Sizes of a model, a machine and a plan come in; milliseconds per stage go out. A stage takes as
long as the slower of two: its matrix products at the machine's throughput, and reading its weights
and its cache at the machine's bandwidth. Left out are preprocessing, token selection, and the time
that a runtime itself needs. Attention counts in full, as in the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from p2d_node.benchmarks.machines import Machine
from p2d_node.benchmarks.model_sizes import ModelSizes
from p2d_node.benchmarks.plans import STORED_BITS, SweepPlan
from p2d_node.errors import ConfigError
from p2d_node.token_selection.base import num_keep_from_retention

COMPUTED = 'computed from the sizes of the model and data sheets, not measured'


GIVEN = ('retention_ratio', 'num_keep', 'prompt_tokens')
"""Values of a budget that are not computed times."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one run through a part of the model: operations, and bytes that are read."""

    flops: float
    num_bytes: float


@dataclass(frozen=True, kw_only=True)
class SweepBudget:
    """Computed times of one sweep, milliseconds.

    Attributes:
        retention_ratio: Kept/total.
        num_keep: Kept tokens per picture.
        prompt_tokens: Tokens of the prefill that all questions share.
        encoder_ms: The vision encoder, all pictures.
        prefill_ms: The shared prompt, and the questions after it as one batch.
        pass_ms: One decoder pass, all answers.
        decode_ms: All passes after the prefill, which gives the first token.
        sweep_ms: All of them.
        answers_per_s: Questions over `sweep_ms`.
    """

    retention_ratio: float
    num_keep: int
    prompt_tokens: int
    encoder_ms: float
    prefill_ms: float
    pass_ms: float
    decode_ms: float
    sweep_ms: float
    answers_per_s: float


def compute_budget(sizes: ModelSizes, machine: Machine, plan: SweepPlan) -> SweepBudget:
    """Return the computed times of one sweep.

    Raises:
        ConfigError: The model has no decoder layer `prune_layer`.
    """
    if plan.prune_layer >= sizes.text.count:
        raise ConfigError(
            f'prune_layer: got {plan.prune_layer}, allowed: 0 to {sizes.text.count - 1}'
        )
    encoder_ms = _duration_ms(encoder_work(sizes, plan), machine, plan)
    prefill_ms = sum(_duration_ms(work, machine, plan) for work in prefill_works(sizes, plan))
    pass_ms = _duration_ms(pass_work(sizes, plan), machine, plan)
    decode_ms = pass_ms * (plan.answer_tokens - 1) / plan.tokens_per_pass
    sweep_ms = encoder_ms + prefill_ms + decode_ms
    return SweepBudget(
        retention_ratio=plan.retention_ratio,
        num_keep=_num_keep(sizes, plan),
        prompt_tokens=_prompt_tokens(sizes, plan, _num_keep(sizes, plan)),
        encoder_ms=encoder_ms,
        prefill_ms=prefill_ms,
        pass_ms=pass_ms,
        decode_ms=decode_ms,
        sweep_ms=sweep_ms,
        answers_per_s=1000.0 * plan.num_questions / sweep_ms,
    )


def _duration_ms(work: Work, machine: Machine, plan: SweepPlan) -> float:
    flops_per_ms = machine.tflops * 1e9 * plan.compute_efficiency
    bytes_per_ms = machine.bandwidth_gb_s * 1e6 * plan.bandwidth_efficiency
    return max(work.flops / flops_per_ms, work.num_bytes / bytes_per_ms)


def _num_pictures(sizes: ModelSizes, plan: SweepPlan) -> int:
    return 1 if sizes.stitched else plan.num_views


def _num_keep(sizes: ModelSizes, plan: SweepPlan) -> int:
    return num_keep_from_retention(sizes.tokens, plan.retention_ratio)


def _prompt_tokens(sizes: ModelSizes, plan: SweepPlan, tokens_per_picture: int) -> int:
    per_picture = tokens_per_picture + sizes.extra_tokens
    return _num_pictures(sizes, plan) * per_picture + plan.text_tokens


def _layer_bytes(sizes: ModelSizes, plan: SweepPlan) -> float:
    return sizes.text.weights * STORED_BITS[plan.weights_bits] / 8


def _output_weights(sizes: ModelSizes) -> int:
    return sizes.vocabulary * sizes.text.width


def _cache_bytes(sizes: ModelSizes, plan: SweepPlan) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    text = sizes.text
    return 2 * text.count * text.key_value_heads * text.head_size * plan.value_bytes


def encoder_work(sizes: ModelSizes, plan: SweepPlan) -> Work:
    """Return the work of the vision encoder and the projector."""
    vision = sizes.vision
    embedding = vision.width * sizes.patch_values
    flops = 2.0 * sizes.patches * (embedding + vision.weights)
    flops += vision.attention_flops(sizes.patches, sizes.patches)
    flops += 2 * sizes.tokens * sizes.projector
    weights = embedding + vision.weights + sizes.projector
    return Work(flops=_num_pictures(sizes, plan) * flops, num_bytes=weights * plan.value_bytes)


def prefill_works(sizes: ModelSizes, plan: SweepPlan) -> Iterator[Work]:
    """Yield the work of the shared prompt, and that of all questions after it."""
    text = sizes.text
    all_tokens = _prompt_tokens(sizes, plan, sizes.tokens)
    kept_tokens = _prompt_tokens(sizes, plan, _num_keep(sizes, plan))
    before = plan.prune_layer / text.count
    shared = 0.0
    for share, tokens in ((before, all_tokens), (1 - before, kept_tokens)):
        per_model = 2 * tokens * text.weights + text.attention_flops(tokens, tokens)
        shared += share * per_model
    yield Work(flops=shared, num_bytes=_layer_bytes(sizes, plan))
    asked, length = plan.num_questions, plan.question_tokens
    mean_tokens = before * all_tokens + (1 - before) * kept_tokens
    flops = 2.0 * asked * (length * text.weights + _output_weights(sizes))
    flops += asked * text.attention_flops(length, mean_tokens + length)
    num_bytes = _layer_bytes(sizes, plan) + _output_weights(sizes) * plan.value_bytes
    num_bytes += asked * mean_tokens * _cache_bytes(sizes, plan)
    yield Work(flops=flops, num_bytes=num_bytes)


def pass_work(sizes: ModelSizes, plan: SweepPlan) -> Work:
    """Return the work of one decoder pass in the middle of the answers."""
    text = sizes.text
    kept_tokens = _prompt_tokens(sizes, plan, _num_keep(sizes, plan))
    all_tokens = _prompt_tokens(sizes, plan, sizes.tokens)
    before = plan.prune_layer / text.count
    context = before * all_tokens + (1 - before) * kept_tokens
    context += plan.question_tokens + plan.answer_tokens / 2
    columns = plan.num_questions * plan.pass_width
    flops = 2.0 * columns * (text.weights + _output_weights(sizes))
    flops += text.attention_flops(columns, context)
    num_bytes = _layer_bytes(sizes, plan) + _output_weights(sizes) * plan.value_bytes
    num_bytes += plan.num_questions * context * _cache_bytes(sizes, plan)
    return Work(flops=flops, num_bytes=num_bytes)


def budget_report(sizes: ModelSizes, machine: Machine, plans: list[SweepPlan]) -> dict[str, Any]:
    """Return the budgets of several plans and what they rest on, ready for JSON.

    Every computed value is named so.
    """
    rows = []
    for plan in plans:
        budget = asdict(compute_budget(sizes, machine, plan))
        given = {name: budget.pop(name) for name in GIVEN}
        rows.append({**given, **{f'computed_{name}': value for name, value in budget.items()}})
    assumed = asdict(plans[0])
    del assumed['retention_ratio']
    return {
        'budget': f'milliseconds per sweep, {COMPUTED}',
        'model': sizes.name,
        'tokens_per_picture': sizes.tokens,
        'pictures': _num_pictures(sizes, plans[0]),
        'machine': asdict(machine),
        'assumed': assumed,
        'rows': rows,
    }
