"""Questions with answers about one sweep, in the words and groups of DriveLM.

The ground truth of a sweep comes in, see `p2d_sim.ground_truth`; a list of `Question` goes out.
"""

from p2d_sim.questions.asking import ask_all, ask_with_seed
from p2d_sim.questions.choices import LETTERS
from p2d_sim.questions.question import Question, VIEW_NAMES

__all__ = ['LETTERS', 'VIEW_NAMES', 'Question', 'ask_all', 'ask_with_seed']
