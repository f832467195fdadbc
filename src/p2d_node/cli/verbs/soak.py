"""`p2d soak`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options, same_as
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import json_output
from p2d_node.config import DriveConfig

SOAK_EXAMPLES = """example:
  p2d soak --minutes 20 --seed 1 --out soak
"""


@dataclass(frozen=True, kw_only=True)
class SoakOptions(Options):
    """Run the drive node on drawn cameras with random faults.

    Cameras fail, pictures are damaged, stamps jump, many callers ask, the process is stopped. The
    report tells how the node took each fault, and the exit code is 0 if everything holds that
    docs/reliability.md promises.
    """

    minutes: float = argument(5.0, 'How long.', above=0.0, maximum=10_000.0)
    seed: int = argument(0, 'Random seed of the faults and the drawn drive.', minimum=0)
    rate_hz: float = argument(12.0, 'Sweeps per second.', flag='--rate', above=0.0, maximum=100.0)
    model: str = same_as(DriveConfig, 'model')
    out: Path = argument(Path('soak_output'), 'Folder of the report, the picture and the log.')
    json: bool = json_output('Print the report as JSON.')

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the drawn frames, pixels."""
        return 450, 800


SOAK = Verb(
    name='soak',
    help='run the node under random faults',
    examples=SOAK_EXAMPLES,
    options=SoakOptions,
    run='p2d_node.cli.soak:run',
)
