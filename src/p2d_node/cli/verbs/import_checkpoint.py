"""`p2d import-checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2d_node.cli.options import argument, Options
from p2d_node.cli.verb import Verb
from p2d_node.cli.verbs.shared import json_output
from p2d_node.errors import ConfigError

EXAMPLES = """examples:
  p2d import-checkpoint --from drivemm downloads/DriveMM --out models/drivemm
  p2d import-checkpoint --from drivelmm-o1 downloads/DriveLMMo1 --out models/drivelmm-o1
  p2d import-checkpoint --from drivelmm-o1 adapter --base downloads/InternVL2_5-8B --out models/o1
  p2d import-checkpoint --from alpamayo1.5 downloads/Alpamayo --base Qwen3-VL --out models/alpamayo
"""
DRIVEMM, DRIVELMM_O1, ALPAMAYO = 'drivemm', 'drivelmm-o1', 'alpamayo1.5'


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    """Translate a published driving model's checkpoint into one that the node loads."""

    folder: Path = argument(help='The published checkpoint, in safetensors.', positional=True)
    kind: str = argument(
        help='The published model.', flag='--from', choices=(DRIVEMM, DRIVELMM_O1, ALPAMAYO)
    )
    base: Path | None = argument(
        None,
        f'With --from {DRIVELMM_O1}: the model that the checkpoint, a LoRA adapter, adapts. With '
        f'--from {ALPAMAYO}: a Qwen3-VL with config, tokenizer and picture settings.',
    )
    out: Path = argument(help='Folder to create.')
    json: bool = json_output()

    def __post_init__(self) -> None:
        """Check the values and how they fit together."""
        super().__post_init__()
        if self.base is not None and self.kind not in (DRIVELMM_O1, ALPAMAYO):
            raise ConfigError(
                f'base: got {str(self.base)!r}, allowed only with --from {DRIVELMM_O1} and '
                f'{ALPAMAYO}'
            )


IMPORT_CHECKPOINT = Verb(
    name='import-checkpoint',
    help="translate a published driving model's checkpoint into one that the node loads",
    examples=EXAMPLES,
    options=ImportOptions,
    run='p2d_node.cli.import_checkpoint:run',
)
