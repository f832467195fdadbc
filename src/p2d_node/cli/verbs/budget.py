"""`p2d budget`: the computed time of a sweep on a machine that is not at hand."""

from __future__ import annotations

from dataclasses import dataclass

from p2d_node.benchmarks.machines import GPUS
from p2d_node.benchmarks.plans import SweepPlan
from p2d_node.cli.options import argument, Options, same_as
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import json_output
from p2d_node.errors import ConfigError

EXAMPLES = """examples:
  p2d budget --gpu orin-64gb
  p2d budget --model models/drivemm --gpu thor --weights-bits 4 --tokens-per-pass 3
  p2d budget --bandwidth-gb-s 102 --tflops 10 --retention-ratio 0.1 --json
"""


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """Compute, without measuring, how long one sweep takes on another machine.

    From the sizes of the model and the bandwidth and throughput of the machine.
    """

    model: str = argument(
        'drivemm',
        'drivemm (8B) or scaled, p2d-mini, or a checkpoint folder, whose weights are not needed.',
    )
    gpu: str | None = argument(None, 'The machine.', choices=tuple(GPUS))
    bandwidth_gb_s: float | None = argument(
        None, 'Without --gpu: memory bandwidth, 1e9 bytes per second.', above=0.0, unless='gpu'
    )
    tflops: float | None = argument(
        None,
        'Without --gpu: dense float16 throughput, 1e12 operations per second.',
        above=0.0,
        unless='gpu',
    )
    retention_ratios: tuple[float, ...] = same_as(
        SweepPlan,
        'retention_ratio',
        flag='--retention-ratio',
        help="Shares of each view's visual tokens that are kept: kept/total.",
        default=(1.0, 0.25, 0.1),
    )
    prune_layer: int = same_as(SweepPlan, 'prune_layer')
    num_views: int = same_as(SweepPlan, 'num_views', flag='--views')
    num_questions: int = same_as(SweepPlan, 'num_questions', flag='--questions')
    answer_tokens: int = same_as(SweepPlan, 'answer_tokens')
    text_tokens: int = same_as(SweepPlan, 'text_tokens')
    question_tokens: int = same_as(SweepPlan, 'question_tokens')
    weights_bits: str = argument(
        '16', 'Bits per weight of the decoder layers.', choices=('16', '8', '4')
    )
    tokens_per_pass: float = same_as(SweepPlan, 'tokens_per_pass')
    draft_tokens: int = same_as(SweepPlan, 'draft_tokens', needs='tokens_per_pass')
    picture_height_px: int | None = argument(
        None,
        'For models that accept any size: height of the pictures, pixels.',
        flag='--picture-height',
        minimum=1,
        maximum=8192,
        default_text='what the checkpoint makes of 900 x 1600',
        needs='picture_width_px',
    )
    picture_width_px: int | None = argument(
        None,
        'The same: width.',
        flag='--picture-width',
        minimum=1,
        maximum=8192,
        default_text='as for the height',
        needs='picture_height_px',
    )
    bandwidth_efficiency: float = same_as(SweepPlan, 'bandwidth_efficiency')
    compute_efficiency: float = same_as(SweepPlan, 'compute_efficiency')
    json: bool = json_output()

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        if self.gpu is None and None in (self.bandwidth_gb_s, self.tflops):
            raise ConfigError(
                'gpu: got none, needed: --gpu, or both --bandwidth-gb-s and --tflops'
            )


BUDGET = Verb(
    name='budget',
    help='computed time of a sweep on a machine that is not at hand',
    examples=EXAMPLES,
    options=BudgetOptions,
    run='p2d_node.cli.budget:run',
)
