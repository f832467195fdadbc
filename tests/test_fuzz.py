from collections.abc import Callable, Iterator
import copy
import hashlib
import json
from pathlib import Path
import random
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from p2d_node.bags.reading import BagReader
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.errors import P2dError
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.evaluation.drivelmm_o1_questions import read_o1_questions
from p2d_node.evaluation.predictions import read_predictions
from p2d_node.vision_encoder.engine_checks import open_engine
from p2d_node.vision_encoder.engine_store import EngineRequest
from p2d_node.vision_encoder.machine import Machine
from p2d_node.vision_encoder.manifest import (
    Artefact,
    DIGEST_KEY,
    EngineManifest,
    MANIFEST_FILE,
    read_manifest,
    VERIFICATION_FILE,
)
import pytest
from sweeps import jpeg, picture, STAMP_NS
import yaml

pytestmark = pytest.mark.faults

CONFIG = Path(__file__).resolve().parents[1] / 'config'
IMAGE = 'samples/CAM_FRONT/n015__CAM_FRONT__1533280036154844.jpg'
GRAPH = {
    'scene': {
        'scene_description': '',
        'key_frames': {
            'frame': {
                'QA': {
                    'perception': [{'Q': 'What is there?', 'A': 'A car.', 'C': None, 'tag': [0, 2]}],
                    'planning': [{'Q': 'What next?', 'A': 'B'}],
                },
                'image_paths': {'CAM_FRONT': f'../nuscenes/{IMAGE}'},
            }
        },
    }
}
FLAT = [
    {
        'id': 'scene_frame_0',
        'image': [IMAGE],
        'conversations': [
            {'from': 'human', 'value': '<image> What is there?'},
            {'from': 'gpt', 'value': 'A car.'},
        ],
    }
]
O1 = [{'idx': 's_f_1', 'image': [IMAGE], 'question': 'q', 'steps': 's', 'final_answer': 'A'}]
ANSWERS = [{'id': 'scene_frame_0', 'answer': 'A car.'}, {'idx': 'b', 'llm-response': 'B'}]

MODEL_FILE = b'not an engine'
MANIFEST = EngineManifest(
    key='onnxruntime-fp32-pixel_values-20260101-abcd',
    backend='onnxruntime',
    runtime_version='1.2',
    precision='fp32',
    model_name='tiny',
    model_type='internvl',
    vision_sha256='a' * 64,
    processing={'size': {'height': 3}, 'image_mean': [0.1, 0.2]},
    input_kind='pixel_values',
    num_views=6,
    height=126,
    width=126,
    num_tokens=81,
    hidden_size=64,
    compute_capabilities=(),
    built_with={'torch': '2'},
    built_at='2026-01-01T00:00:00Z',
    min_cosine=0.99,
    max_relative_difference=0.1,
    artefacts={
        'model.onnx': Artefact(hashlib.sha256(MODEL_FILE).hexdigest(), len(MODEL_FILE)),
    },
)
REQUEST = EngineRequest(
    model_name='tiny',
    model_folder='models/tiny',
    vision_sha256=lambda: MANIFEST.vision_sha256,
    processing=MANIFEST.processing,
    num_views=6,
)
