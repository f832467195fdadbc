"""Small data under the names that the commands in the documents use."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
import shutil

from p2d_node.bags.nuscenes import NuscenesSelection, read_nuscenes_images
from p2d_node.bags.writing import write_bag
from p2d_sim.nuscenes_folder import FolderOptions, VERSION, write_nuscenes_folder

SCENE = 'scene-0061'
QUESTIONS = (
    'v1_1_train_nus.json',
    'v1_1_val_nus.json',
    'v1_1_val_nus_q_only_with_tag.json',
    'v1_1_val_with_answers.json',
)


def write_samples(root: Path, checkpoint: Path, shipped_model: Path) -> Path:
    """Write a drawn scene, its bag, questions and answers about it, and two models."""
    options = FolderOptions(scenarios=('lead-brakes',), duration_s=1.0, height=90, width=160)
    nuscenes = root / 'nuscenes'
    for _ in write_nuscenes_folder(nuscenes, options):
        pass
    scenes = nuscenes / VERSION / 'scene.json'
    scenes.write_text(scenes.read_text().replace('scene-0001', SCENE))
    write_bag(read_nuscenes_images(nuscenes, NuscenesSelection()), root / SCENE)
    for name in QUESTIONS:
        shutil.copy(nuscenes / 'drivelm.json', root / name)
    (root / 'submission.json').write_text(json.dumps(answers_to(nuscenes / 'drivelm.json')))
    shutil.copytree(checkpoint, root / 'models' / 'drivemm')
    shutil.copytree(shipped_model, root / 'models' / 'p2d-mini')
    return root


def answers_to(data: Path) -> list[dict[str, str]]:
    """Return the right answer to every question, as a submission has them."""
    return [
        {'id': f'{scene}_{frame}_{number}', 'question': item['Q'], 'answer': item['A']}
        for scene, content in json.loads(data.read_text()).items()
        for frame, keyframe in content['key_frames'].items()
        for number, item in enumerate(item for part in keyframe['QA'].values() for item in part)
    ]


def link_samples(samples: Path, folder: Path, words: Sequence[str]) -> None:
    """Link the samples into a folder, without what a command writes."""
    written = words[words.index('--out') + 1] if '--out' in words else ''
    for path in samples.iterdir():
        if path.name != written:
            (folder / path.name).symlink_to(path)
