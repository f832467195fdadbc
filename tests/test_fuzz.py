from collections.abc import Callable, Iterator
import copy
import hashlib
import json
from pathlib import Path
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from p2d_node.bags.reading import BagReader
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.errors import P2dError
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.evaluation.drivelmm_o1_questions import read_o1_questions
from p2d_node.evaluation.predictions import read_predictions
from p2d_node.vision_encoder.engine_checks import open_engine, OpenedEngine
from p2d_node.vision_encoder.engine_store import EngineRequest
from p2d_node.vision_encoder.machine import Machine
from p2d_node.vision_encoder.manifest import (
    Artefact,
    DIGEST_KEY,
    EngineManifest,
    MANIFEST_FILE,
    read_manifest,
)
from p2d_node.vision_encoder.verifications import record_path, write_record
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
                    'perception': [
                        {'Q': 'What is there?', 'A': 'A car.', 'C': None, 'tag': [0, 2]}
                    ],
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
    artefacts={
        name: Artefact(hashlib.sha256(MODEL_FILE).hexdigest(), len(MODEL_FILE))
        for name in ('model.onnx', 'model.onnx.data')
    },
)
REQUEST = EngineRequest(
    model_name='tiny',
    model_folder='models/tiny',
    vision_sha256=lambda: MANIFEST.vision_sha256,
    processing=MANIFEST.processing,
    num_views=6,
)
MACHINE = Machine(gpu_name='', compute_capability='', driver='', fingerprint='here')
ODD_VALUES = [
    *[None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 1e308, float('nan'), float('inf')],
    *['', 'x', '../x', '/etc', 'a.b', 'A' * 200, [], {}, [[]], [None], {'': ''}, [1, 2]],
    *[['x', 'x'], {'x': {'y': 1}}],
]
ODD_WORDS = (
    *[b'\n', b'-', b'- ', b':', b'{', b'[', b'"', b'&a ', b'*a', b'<<: ', b'? ', b'| ', b'---\n'],
    *[b'\t', b'\xff\xfe', b'#', b'.nan', b'1e999', b'2001-13-40', b'0x', b'1_', b'1:99:99', b'}'],
)

fuzzed = settings(derandomize=True, deadline=None, max_examples=600)
few = settings(derandomize=True, deadline=None, max_examples=300)

places = st.floats(0, 1, exclude_max=True)
byte_edits = st.lists(
    st.tuples(
        places,
        st.sampled_from(['flip', 'cut', 'end', 'zero', 'repeat', 'random', 'word']),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=5,
)
tree_edits = st.lists(
    st.tuples(
        places,
        st.sampled_from(['delete', 'replace', 'copy', 'rename', 'repeat']),
        places,
    ),
    min_size=1,
    max_size=4,
)


def edit_bytes(content: bytes, edits: list) -> bytes:
    data = bytearray(content)
    for place, kind, number in edits:
        at, rng = int(place * len(data)), random.Random(number)
        stop = min(at + rng.choice([1, 2, 10, 100]), len(data))
        if kind == 'flip' and at < stop:
            data[at] ^= 1 << number % 8
        elif kind == 'cut':
            del data[at:stop]
        elif kind == 'end':
            del data[at:]
        elif kind == 'zero':
            data[at:stop] = bytes(stop - at)
        elif kind == 'repeat':
            data[at:at] = data[at:stop]
        elif kind == 'random':
            data[at:stop] = rng.randbytes(stop - at)
        elif kind == 'word':
            data[at:at] = rng.choice(ODD_WORDS)
    return bytes(data)


def edit_tree(content: Any, edits: list) -> Any:
    """Return JSON or YAML data with values deleted, replaced, copied, renamed or repeated."""
    tree = copy.deepcopy(content)
    for place, kind, choice in edits:
        slots = list(slots_of(tree))
        if not slots:
            return tree
        holder, key = slots[int(place * len(slots))]
        odd = copy.deepcopy(ODD_VALUES[int(choice * len(ODD_VALUES))])
        if kind == 'delete':
            del holder[key]
        elif kind == 'copy':
            other, other_key = slots[int(choice * len(slots))]
            holder[key] = copy.deepcopy(other[other_key])
        elif kind == 'rename' and isinstance(holder, dict):
            holder[str(odd)[:20]] = holder.pop(key)
        elif kind == 'repeat' and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = odd
    return tree


def slots_of(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from slots_of(tree[key])


def is_read(read: Callable[[], object]) -> bool:
    """Return whether `read` succeeds; it may only refuse with an error of one line."""
    try:
        read()
    except P2dError as err:
        lines = str(err).splitlines()
    else:
        return True
    assert len(lines) == 1, lines
    return False


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    ('read', 'content'),
    [
        (read_questions, GRAPH),
        (read_questions, FLAT),
        (read_o1_questions, O1),
        (read_predictions, ANSWERS),
        (read_predictions, {'results': ANSWERS}),
    ],
    ids=['graph', 'flat', 'o1', 'answers', 'submission'],
)
def test_damaged_json_of_questions_and_answers_is_read_or_refused_in_one_line(
    read, content, tmp_path
):
    path = tmp_path / 'data.json'
    outcomes = set()

    @fuzzed
    @given(
        st.builds(edit_bytes, st.just(as_json(content)), byte_edits)
        | st.builds(edit_tree, st.just(content), tree_edits).map(as_json)
    )
    def check(data):
        path.write_bytes(data)
        outcomes.add(is_read(lambda: read(path)))

    check()
    assert outcomes == {True, False}


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
    folder = tmp_path / 'engines' / 'tiny' / MANIFEST.key
    folder.mkdir(parents=True)
    for name in MANIFEST.artefacts:
        (folder / name).write_bytes(MODEL_FILE)
    (folder / MANIFEST_FILE).write_bytes(as_json(MANIFEST.to_json()))
    write_record(MANIFEST, MACHINE, {'passed': True, 'summary': 'every token fits'})
    return folder


def open_it(folder: Path) -> OpenedEngine:
    return open_engine(
        folder.parents[1], folder, REQUEST, MACHINE, runtime_version='1.2', allow_unverified=False
    )


def with_digest(tree: Any) -> Any:
    """Return a changed manifest whose digest is right, so that its values are read."""
    if isinstance(tree, dict):
        content = {key: value for key, value in tree.items() if key != DIGEST_KEY}
        text = json.dumps(content, sort_keys=True, separators=(',', ':'))
        return {**content, DIGEST_KEY: hashlib.sha256(text.encode()).hexdigest()}
    return tree


manifests = st.builds(edit_tree, st.just(MANIFEST.to_json()), tree_edits)


def test_a_damaged_manifest_is_refused_in_one_line_or_has_the_same_values(engine):
    sound = as_json(MANIFEST.to_json())
    assert is_read(lambda: open_it(engine))

    @fuzzed
    @given(st.builds(edit_bytes, st.just(sound), byte_edits) | manifests.map(as_json))
    def check(data):
        (engine / MANIFEST_FILE).write_bytes(data)
        if is_read(lambda: read_manifest(engine)):
            assert read_manifest(engine) == MANIFEST

    check()


def test_a_manifest_with_other_values_and_a_right_digest_is_used_or_refused_in_one_line(engine):
    outcomes = set()

    @fuzzed
    @given(manifests.map(with_digest))
    def check(tree):
        (engine / MANIFEST_FILE).write_bytes(as_json(tree))
        outcomes.add(is_read(lambda: read_manifest(engine)))
        is_read(lambda: open_it(engine))

    check()
    assert outcomes == {True, False}


def test_a_damaged_verification_is_used_or_refused_in_one_line(engine):
    record, outcomes = record_path(MANIFEST), set()
    proof = json.loads(record.read_text())

    @fuzzed
    @given(
        st.builds(edit_bytes, st.just(as_json(proof)), byte_edits)
        | st.builds(edit_tree, st.just(proof), tree_edits).map(as_json)
    )
    def check(data):
        record.write_bytes(data)
        outcomes.add(is_read(lambda: open_it(engine)))

    check()
    assert outcomes == {True, False}


def damaged_yaml(content: bytes) -> st.SearchStrategy[bytes]:
    trees = st.builds(edit_tree, st.just(yaml.safe_load(content)), tree_edits)
    return st.builds(edit_bytes, st.just(content), byte_edits) | trees.map(
        lambda tree: yaml.safe_dump(tree).encode()
    )


def without_comments(path: Path) -> bytes:
    lines = path.read_bytes().splitlines(keepends=True)
    return b''.join(line for line in lines if not line.lstrip().startswith(b'#'))


@pytest.mark.parametrize('name', ['drive.yaml', 'cameras/triggered.yaml'])
def test_a_damaged_parameter_file_is_read_or_refused_in_one_line(name, tmp_path):
    path = tmp_path / 'parameters.yaml'
    content = without_comments(CONFIG / name)
    outcomes = set()

    @few
    @given(damaged_yaml(content))
    def check(data):
        path.write_bytes(data)
        outcomes.add(is_read(lambda: read_drive_config(path)))

    check()
    assert outcomes == {True, False}


def small_images() -> Iterator[BagImage]:
    data = jpeg(picture(height=16, width=24)).data
    for sweep in range(3):
        for number, camera in enumerate(('CAM_FRONT', 'CAM_BACK')):
            stamp_ns = STAMP_NS + sweep * 500_000_000 + number * 7_000_000
            yield BagImage(camera=camera, stamp_ns=stamp_ns, jpeg=data, height=16, width=24)


def read_all(bag: Path) -> list[bytes]:
    with BagReader(bag) as reader:
        return [bytes(message.data) for message in reader.messages()]


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_damaged_bag_is_read_or_refused_in_one_line(storage, tmp_path):
    bag = tmp_path / 'bag'
    write_bag(small_images(), bag, storage=storage)
    (file,) = (path for path in bag.iterdir() if path.suffix != '.yaml')
    content, num_messages = file.read_bytes(), len(read_all(bag))
    outcomes = set()

    @few
    @given(byte_edits, st.booleans())
    def check(edits, has_metadata):
        file.write_bytes(edit_bytes(content, edits))
        outcomes.add(is_read(lambda: read_all(bag if has_metadata else file)))

    check()
    assert outcomes == {True, False}
    file.write_bytes(content)
    assert len(read_all(bag)) == num_messages


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_damaged_metadata_of_a_bag_is_read_or_refused_in_one_line(storage, tmp_path):
    bag = tmp_path / 'bag'
    write_bag(small_images(), bag, storage=storage)
    metadata = bag / 'metadata.yaml'
    content = metadata.read_bytes()
    outcomes = set()

    @few
    @given(damaged_yaml(content))
    def check(data):
        metadata.write_bytes(data)
        outcomes.add(is_read(lambda: read_all(bag)))

    check()
    assert outcomes == {True, False}
