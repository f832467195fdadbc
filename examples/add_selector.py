"""Adds a token selector that keeps the tokens with the largest norm, and answers with it.

Run it as `python examples/add_selector.py`; the sweep is drawn by p2d_sim.
"""

from collections.abc import Sequence

from example_sweep import draw_sweep
from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.token_selection import select_tokens
from p2d_node.token_selection.factory import SELECTORS
from torch import Tensor


class LargestNormSelector:
    """Keeps the tokens of each view whose features have the largest L2 norm."""

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `p2d_node.token_selection.base.TokenSelector`."""
        norms = visual_tokens.norm(dim=-1)
        pairs = zip(norms, num_keep, strict=True)
        return [view.topk(count).indices.sort().values for view, count in pairs]


SELECTORS['largest_norm'] = lambda grid_size: LargestNormSelector()

sweep = draw_sweep()
pipeline = DrivingPipeline.from_config(DriveConfig(model='p2d-mini'))
visual_tokens = pipeline.encode(sweep)
features = pipeline.selection_features(sweep, visual_tokens)
for method in ('largest_norm', 'tfps'):
    keep = select_tokens(features, [19] * len(sweep.frames), method)
    question = 'What should the ego vehicle do next?'
    (answer,) = pipeline.answer_tokens(sweep, visual_tokens, [question], keep_indices=keep)
    print(f'{method}: {answer.answer} ({sum(answer.tokens_kept.values())} visual tokens)')
pipeline.close()
