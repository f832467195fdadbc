from dataclasses import replace
from io import BytesIO
import json
import math
from pathlib import Path
import shutil
import subprocess
import sys
import time

import cv2
from disk_limits import files_up_to
import numpy as np
from p2d_node.bags import limits, writing
from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.nuscenes import NuscenesSelection, read_nuscenes_images
from p2d_node.bags.reading import BagReader
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_sim.generated import generate_images
from PIL import ExifTags, Image
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from sweeps import picture

FIRST_US = 1_533_280_036_154_844
INTRINSIC = [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]


def image_name(camera: str, stamp_us: int) -> str:
    return f'samples/{camera}/n015__{camera}__{stamp_us}.jpg'


def write_image(root: Path, name: str, seed: int) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(seed))


@pytest.fixture
def drivelm(tmp_path) -> Path:
    """A DriveLM file of one scene with three keyframes, in shuffled order, and its images."""
    frames = {}
    for index in (2, 0, 1):
        paths = {}
        for number, camera in enumerate(NUSCENES_CAMERAS):
            name = image_name(camera, FIRST_US + index * 500_000 + number * 7_000)
            write_image(tmp_path, name, index * 10 + number)
            paths[camera] = f'../nuscenes/{name}'
        frames[f'frame{index}'] = {'QA': {}, 'key_object_infos': {}, 'image_paths': paths}
    scenes = {'scene': {'scene_description': '', 'key_frames': frames}}
    (tmp_path / 'drivelm.json').write_text(json.dumps(scenes))
    return tmp_path


@pytest.fixture
def nuscenes(tmp_path) -> Path:
    """A nuScenes data set with two scenes of two samples, sweeps between them, and a lidar."""
    tables = {
        'scene': [{'token': f's{i}', 'name': f'scene-000{i}'} for i in range(2)],
        'sample': [
            {'token': f's{i}k{k}', 'scene_token': f's{i}'} for i in range(2) for k in range(2)
        ],
        'sensor': [{'token': c, 'channel': c} for c in (*NUSCENES_CAMERAS, 'LIDAR_TOP')],
        'calibrated_sensor': [
            {
                'token': f'cal-{c}',
                'sensor_token': c,
                'camera_intrinsic': [] if c == 'LIDAR_TOP' else INTRINSIC,
            }
            for c in (*NUSCENES_CAMERAS, 'LIDAR_TOP')
        ],
        'sample_data': [],
    }
    for sample in tables['sample']:
        scene, keyframe = int(sample['token'][1]), int(sample['token'][3])
        for sweep in range(2):
            start_us = FIRST_US + scene * 10**7 + keyframe * 10**6 + sweep * 83_000
            for number, camera in enumerate((*NUSCENES_CAMERAS, 'LIDAR_TOP')):
                stamp_us = start_us + number * 7_000
                name = image_name(camera, stamp_us)
                if camera != 'LIDAR_TOP':
                    write_image(tmp_path, name, number)
                tables['sample_data'].append(
                    {
                        'filename': name,
                        'timestamp': stamp_us,
                        'is_key_frame': sweep == 0,
                        'sample_token': sample['token'],
                        'calibrated_sensor_token': f'cal-{camera}',
                    }
                )
    (tmp_path / 'v1.0-mini').mkdir()
    for name, rows in tables.items():
        (tmp_path / 'v1.0-mini' / f'{name}.json').write_text(json.dumps(rows))
    return tmp_path


def read_back(bag: Path) -> dict[str, list]:
    messages = {}
    with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        for connection, log_time, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append((log_time, message))
    return messages


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_drivelm_bag_holds_the_files_bytes_at_their_capture_stamps(drivelm, tmp_path, storage):
    bag = tmp_path / 'bag'
    images = read_drivelm_images(drivelm / 'drivelm.json', drivelm)
    assert write_bag(images, bag, storage=storage) == 18
    messages = read_back(bag)
    assert len(messages) == 12
    for number, camera in enumerate(NUSCENES_CAMERAS):
        for index, (log_time, message) in enumerate(messages[f'/{camera}/image_rect/compressed']):
            stamp_us = FIRST_US + index * 500_000 + number * 7_000
            stamp = message.header.stamp
            assert log_time == stamp.sec * 10**9 + stamp.nanosec == stamp_us * 1000
            assert message.header.frame_id == camera
            assert message.format == 'jpeg'
            file = drivelm / image_name(camera, stamp_us)
            assert message.data.tobytes() == file.read_bytes()
        _, info = messages[f'/{camera}/camera_info'][0]
        assert (info.height, info.width) == (90, 160)
        assert not info.k.any()  # uncalibrated: DriveLM has no intrinsics


def test_a_flat_drivelm_file_is_read_as_well(drivelm, tmp_path):
    data = json.loads((drivelm / 'drivelm.json').read_text())
    frames = data['scene']['key_frames'].values()
    flat = [
        {'id': 'a', 'image': list(f['image_paths'].values()), 'conversations': []} for f in frames
    ]
    (drivelm / 'flat.json').write_text(json.dumps(flat + flat))
    images = list(read_drivelm_images(drivelm / 'flat.json', drivelm))
    assert len(images) == 18
    assert [i.stamp_ns for i in images] == sorted(i.stamp_ns for i in images)


@pytest.mark.parametrize(
    'change',
    [
        lambda names: [name.replace('/', '\\') for name in names],
        lambda names: dict(zip(NUSCENES_CAMERAS, names, strict=True)),
    ],
)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_forms_in_which_drivelm_goes_round_are_read_alike(drivelm, change, encoding):
    right = list(read_drivelm_images(drivelm / 'drivelm.json', drivelm))
    scenes = json.loads((drivelm / 'drivelm.json').read_text())
    frames = scenes['scene']['key_frames'].values()
    names = [list(frame['image_paths'].values()) for frame in frames]
    flat = [{'id': str(number), 'image': change(part)} for number, part in enumerate(names)]
    (drivelm / 'flat.json').write_bytes(json.dumps(flat).encode(encoding))
    assert list(read_drivelm_images(drivelm / 'flat.json', drivelm)) == right


def test_one_image_may_be_given_as_a_text(drivelm):
    name = image_name('CAM_FRONT', FIRST_US)
    (drivelm / 'flat.json').write_text(json.dumps([{'id': '0', 'image': name}]))
    (image,) = read_drivelm_images(drivelm / 'flat.json', drivelm)
    assert image.camera == 'CAM_FRONT'


def test_a_nuscenes_bag_holds_cameras_with_intrinsics_and_no_lidar(nuscenes, tmp_path):
    images = read_nuscenes_images(nuscenes, NuscenesSelection())
    assert write_bag(images, tmp_path / 'bag') == 2 * 2 * 2 * 6
    messages = read_back(tmp_path / 'bag')
    assert set(messages) == {
        f'/{c}/{kind}'
        for c in NUSCENES_CAMERAS
        for kind in ('image_rect/compressed', 'camera_info')
    }
    info = messages['/CAM_BACK/camera_info'][0][1]
    np.testing.assert_array_equal(info.k.reshape(3, 3), INTRINSIC)
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], INTRINSIC)


@pytest.mark.parametrize(
    ('selection', 'count'),
    [
        (NuscenesSelection(scene='scene-0001'), 24),
        (NuscenesSelection(keyframes_only=True), 24),
        (NuscenesSelection(version='v1.0-mini', scene='scene-0000', keyframes_only=True), 12),
    ],
)
def test_part_of_nuscenes_can_be_chosen(nuscenes, selection, count):
    assert len(list(read_nuscenes_images(nuscenes, selection))) == count


def test_a_raw_bag_holds_the_decoded_pixels(drivelm, tmp_path):
    write_bag(
        read_drivelm_images(drivelm / 'drivelm.json', drivelm), tmp_path / 'bag', encoding='bgr8'
    )
    _, message = read_back(tmp_path / 'bag')['/CAM_FRONT/image_rect'][0]
    expected = cv2.imread(str(drivelm / image_name('CAM_FRONT', FIRST_US)))
    assert (message.encoding, message.step) == ('bgr8', 480)
    np.testing.assert_array_equal(message.data.reshape(90, 160, 3), expected)


def test_a_raw_bag_holds_pixels_as_the_sensor_has_them(tmp_path):
    images = generate_images(1, height=90, width=160)
    image = next(image for image in images if image.camera == 'CAM_FRONT')
    turned = BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(BytesIO(image.jpeg)).save(turned, 'JPEG', exif=exif)
    write_bag([replace(image, jpeg=turned.getvalue())], tmp_path / 'bag', encoding='bgr8')
    _, message = read_back(tmp_path / 'bag')['/CAM_FRONT/image_rect'][0]
    assert (message.height, message.width) == (90, 160)


def test_bags_are_read_as_they_were_written(tmp_path):
    images = list(generate_images(3, height=90, width=160))
    write_bag(images, tmp_path / 'bag')
    with BagReader(tmp_path / 'bag') as bag:
        assert bag.start_ns == images[0].stamp_ns
        assert bag.duration_ns == images[-1].stamp_ns - images[0].stamp_ns + 1
        assert bag.topics['/CAM_FRONT/camera_info'] == 'sensor_msgs/msg/CameraInfo'
        times = [message.log_time_ns for message in bag.messages()]
    assert len(times) == 2 * 18
    assert times == sorted(times)


def test_the_real_sample_makes_a_bag_of_five_keyframes(nuscenes_sample, tmp_path):
    json_path = nuscenes_sample / 'drivelm_sample.json'
    assert write_bag(read_drivelm_images(json_path, nuscenes_sample), tmp_path / 'bag') == 30
    info = read_back(tmp_path / 'bag')['/CAM_FRONT/camera_info'][0][1]
    assert (info.height, info.width) == (900, 1600)


def broken_images():
    yield BagImage(camera='CAM_FRONT', stamp_ns=1, jpeg=b'x', height=1, width=1)
    raise ConfigError('the source broke')


def test_a_bag_that_fails_half_way_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match='the source broke'):
        write_bag(broken_images(), tmp_path / 'bag')
    with pytest.raises(ConfigError, match='there are no images'):
        write_bag([], tmp_path / 'bag')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['file/bag', 'x' * 300])
def test_a_bag_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'^bag: .* cannot be written: (Not a d|File (n|ex))'):
        write_bag(generate_images(1, height=90, width=160), tmp_path / name)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    images = generate_images(12, height=90, width=160)
    with (
        files_up_to(20_000),
        pytest.raises(ConfigError, match=r'^bag: .* cannot be written: .* free disk space'),
    ):
        write_bag(images, tmp_path / 'bag', storage='sqlite3')
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bag_is_not_overwritten(tmp_path):
    (tmp_path / 'bag').mkdir()
    with pytest.raises(ConfigError, match='exists already'):
        write_bag(generate_images(1), tmp_path / 'bag')


def test_of_two_writers_of_one_bag_the_second_is_refused(tmp_path):
    def images_while_another_writes():
        yield from generate_images(1)
        write_bag(generate_images(2), tmp_path / 'bag')

    with pytest.raises(ConfigError, match='was written by another process meanwhile'):
        write_bag(images_while_another_writes(), tmp_path / 'bag')
    with BagReader(tmp_path / 'bag') as bag:
        assert len(list(bag.messages())) == 4 * len(NUSCENES_CAMERAS)
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


def test_bad_sources_are_named(drivelm, nuscenes, tmp_path):
    with pytest.raises(ConfigError, match=r'nothing\.json is missing'):
        list(read_drivelm_images(tmp_path / 'nothing.json', drivelm))
    (tmp_path / 'bad.json').write_text('{"scene": 3}')
    with pytest.raises(ConfigError, match='not DriveLM data'):
        list(read_drivelm_images(tmp_path / 'bad.json', drivelm))
    (tmp_path / 'bad.json').write_text('')
    with pytest.raises(ConfigError, match='not valid JSON'):
        list(read_drivelm_images(tmp_path / 'bad.json', drivelm))
    (tmp_path / 'bad.json').write_text(json.dumps([{'image': ['samples/../../etc/x.jpg']}]))
    with pytest.raises(ConfigError, match='not a nuScenes image name'):
        list(read_drivelm_images(tmp_path / 'bad.json', drivelm))
    (tmp_path / 'bad.json').write_text(json.dumps([{'image': [5]}]))
    with pytest.raises(ConfigError, match="'5': not a nuScenes image name"):
        list(read_drivelm_images(tmp_path / 'bad.json', drivelm))
    (tmp_path / 'bad.json').write_text('[' * 100_000)
    with pytest.raises(ConfigError, match='not valid JSON: maximum recursion depth'):
        list(read_drivelm_images(tmp_path / 'bad.json', drivelm))
    with pytest.raises(ConfigError, match=r"got 'scene-9', allowed: 'scene-0000', 'scene-0001'$"):
        list(read_nuscenes_images(nuscenes, NuscenesSelection(scene='scene-9')))
    with pytest.raises(ConfigError, match=r"nuscenes: got '.*samples', which has no tables"):
        list(read_nuscenes_images(tmp_path / 'samples', NuscenesSelection()))
    (drivelm / image_name('CAM_BACK', FIRST_US + 3 * 7_000)).unlink()
    with pytest.raises(ConfigError, match='there is no such image'):
        list(read_drivelm_images(drivelm / 'drivelm.json', drivelm))
    other = drivelm / image_name('CAM_FRONT', FIRST_US)
    other.write_bytes(other.read_bytes()[:-300])
    with pytest.raises(ConfigError, match=r'CAM_FRONT.*: not an image .*: Premature.*; copy it'):
        list(read_drivelm_images(drivelm / 'drivelm.json', drivelm))


def test_scenes_are_named_up_to_a_number(nuscenes):
    path = nuscenes / 'v1.0-mini' / 'scene.json'
    scenes = [{'token': f's{i}', 'name': f'scene-{i:04}'} for i in range(850)]
    path.write_text(json.dumps(scenes))
    with pytest.raises(ConfigError, match=r"'scene-0019' and 830 more$"):
        list(read_nuscenes_images(nuscenes, NuscenesSelection(scene='q' * 900)))


@pytest.mark.attack(
    'nuScenes tables that name one image a million times, also through links, so that make-bag '
    'fills the disk',
    'refused: a file has one name, however it is spelled',
)
@pytest.mark.parametrize('spelled', ['./{}', 'more/{}', 'samples/more/../{}'])
def test_nuscenes_tables_name_a_file_once(nuscenes, spelled):
    (nuscenes / 'more').symlink_to('.')
    (nuscenes / 'samples/more').symlink_to('.')
    path = nuscenes / 'v1.0-mini' / 'sample_data.json'
    rows = json.loads(path.read_text())
    rows.append({**rows[0], 'filename': spelled.format(rows[0]['filename']), 'token': 'again'})
    path.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=r"samples/.*': the file of another image, allowed: one"):
        list(read_nuscenes_images(nuscenes, NuscenesSelection()))


@pytest.mark.attack(
    'DriveLM data that name one image a million times, through links, so that make-bag fills the '
    'disk',
    'refused: a file has one name, however it is spelled',
)
def test_drivelm_data_names_a_file_once(drivelm):
    (drivelm / 'samples/more').symlink_to('.')
    name = image_name('CAM_FRONT', FIRST_US)
    names = [name, f'../nuscenes/{name}', name.replace('samples', 'samples/more')]
    data = drivelm / 'flat.json'
    data.write_text(json.dumps([{'image': [name]} for name in names[:2]]))
    assert len(list(read_drivelm_images(data, drivelm))) == 1
    data.write_text(json.dumps([{'image': [name]} for name in names]))
    with pytest.raises(ConfigError, match=r"^'samples/.*': the file of another image, allowed"):
        list(read_drivelm_images(data, drivelm))


def test_folders_of_data_may_be_links(drivelm, nuscenes, tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path)
    data = tmp_path / 'link' / 'drivelm.json'
    assert len(list(read_drivelm_images(data, tmp_path / 'link'))) == 18
    assert len(list(read_nuscenes_images(tmp_path / 'link', NuscenesSelection()))) == 48


@pytest.mark.attack(
    'a bag for make-bag with a link to a large file, so that its images may fill the disk',
    'only bytes on the disk of files in the folder count',
)
def test_a_link_in_a_bag_allows_no_more_images(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'ALWAYS_ALLOWED_FILE_BYTES', 10)
    monkeypatch.setattr(limits, 'MAX_FILE_RATIO', 1)
    write_bag(generate_images(1, height=90, width=160), tmp_path / 'source')
    (tmp_path / 'large').write_bytes(bytes(4 << 20))
    (tmp_path / 'source' / 'notes.txt').symlink_to(tmp_path / 'large')
    with pytest.raises(ConfigError, match=r'got images of \d+ bytes, allowed: at most \d+'):
        write_bag(
            generate_images(9, height=90, width=160),
            tmp_path / 'bag',
            source=tmp_path / 'source',
        )


@pytest.mark.attack(
    'a source for make-bag whose images would fill the disk',
    'refused above 1000 times the size of a bag (at least 1 GiB) and half of the free space',
)
@pytest.mark.parametrize('is_bag', [True, False])
def test_a_bag_is_written_up_to_a_limit(tmp_path, monkeypatch, is_bag):
    write_bag(generate_images(1, height=90, width=160), tmp_path / 'source')
    before = sorted(tmp_path.rglob('*'))
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 40 if is_bag else 9000)
    monkeypatch.setattr(writing.shutil, 'disk_usage', lambda folder: usage)
    monkeypatch.setattr(limits, 'ALWAYS_ALLOWED_FILE_BYTES', 10)
    monkeypatch.setattr(limits, 'MAX_FILE_RATIO', 1)
    source = tmp_path / 'source' if is_bag else None
    images = generate_images(9, height=90, width=160)
    with pytest.raises(
        ConfigError, match=r'got images of \d+ bytes, allowed: at most \d+, .*free'
    ):
        write_bag(images, tmp_path / 'bag', source=source)
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.attack(
    'make-bag is ended by SIGTERM, as by a service manager',
    'it leaves no hidden folder of an unfinished bag',
)
def test_a_bag_that_is_ended_leaves_nothing_behind(tmp_path):
    command = [sys.executable, '-m', 'p2d_node.cli.main', 'make-bag', '--synthetic', 'cruise']
    out = tmp_path / 'bags' / 'bag'
    with subprocess.Popen([*command, '--sweeps', '100000', '--out', str(out)]) as process:
        try:
            end_s = time.monotonic() + 60.0
            while not list(tmp_path.glob('bags/.bag-*')) and time.monotonic() < end_s:
                time.sleep(0.05)
            assert list(tmp_path.glob('bags/.bag-*'))
            process.terminate()
            process.wait(30)
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_nuscenes_names_the_option_that_works_with_it(nuscenes):
    rows = json.loads((nuscenes / 'v1.0-mini' / 'sample_data.json').read_text())
    images = [row for row in rows if 'LIDAR' not in row['filename']]

    def remove(rows) -> None:
        for row in rows:
            (nuscenes / row['filename']).unlink(missing_ok=True)

    def read(**selection):
        return list(read_nuscenes_images(nuscenes, NuscenesSelection(**selection)))

    remove(row for row in images if not row['is_key_frame'])
    with pytest.raises(ConfigError, match='is missing; set keyframes_only'):
        read()
    assert len(read(keyframes_only=True)) == 24
    remove(row for row in images if row['sample_token'].startswith('s0'))
    with pytest.raises(ConfigError, match=r'is missing; name a scene .* completely: scene-0001$'):
        read(keyframes_only=True)
    assert len(read(keyframes_only=True, scene='scene-0001')) == 12


@pytest.mark.parametrize(
    ('table', 'column', 'value', 'reason'),
    [
        ('sample_data', 'timestamp', 'noon', r"sample_data\.json: timestamp: got 'noon', allowed"),
        ('sample_data', 'timestamp', FIRST_US * 1000, r'timestamp: got \d+, allowed: whole micro'),
        (
            'sample_data',
            'timestamp',
            FIRST_US // 1000,
            r'timestamp: got \d+, allowed: whole micro',
        ),
        ('sample_data', 'timestamp', FIRST_US / 1e6, r'timestamp: got [\d.]+, allowed: whole'),
        ('sample_data', 'timestamp', -5, 'timestamp: got -5, allowed: whole microseconds'),
        ('sample_data', 'calibrated_sensor_token', 'nowhere', "KeyError: 'nowhere'"),
        ('calibrated_sensor', 'camera_intrinsic', [[1.0, 0.0]], 'allowed: 3 rows of 3 finite'),
        ('calibrated_sensor', 'camera_intrinsic', [[1.0] * 9], 'allowed: 3 rows of 3 finite'),
        (
            'calibrated_sensor',
            'camera_intrinsic',
            [[math.nan] * 3] * 3,
            'allowed: 3 rows of 3 finite',
        ),
        ('calibrated_sensor', 'camera_intrinsic', None, 'TypeError'),
        ('calibrated_sensor', 'camera_intrinsic', [[10**400] * 3] * 3, 'OverflowError'),
        (
            'sample_data',
            'timestamp',
            10**4000,
            r'timestamp: got 10{199}\.\.\. \(4001 characters\)',
        ),
    ],
)
def test_nuscenes_tables_with_wrong_values_are_named(nuscenes, table, column, value, reason):
    path = nuscenes / 'v1.0-mini' / f'{table}.json'
    rows = json.loads(path.read_text())
    for row in rows:
        row[column] = value
    path.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=f'not nuScenes tables: .*{reason}.*; check the down'):
        list(read_nuscenes_images(nuscenes, NuscenesSelection()))


@pytest.fixture(
    params=[('MCAP', None), ('MCAP', 'STORAGE'), ('SQLITE3', 'MESSAGE'), ('SQLITE3', 'FILE')]
)
def small_bag(request, tmp_path):
    """A bag of 40 texts, and its file."""
    storage, compression = request.param
    writer = Writer(tmp_path / 'bag', version=8, storage_plugin=StoragePlugin[storage])
    if compression is not None:
        writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    store = get_typestore(Stores.ROS2_HUMBLE)
    text = store.types['std_msgs/msg/String']('a text')
    with writer:
        connection = writer.add_connection('/text', text.__msgtype__, typestore=store)
        for number in range(40):
            writer.write(connection, number, store.serialize_cdr(text, text.__msgtype__))
    (file,) = (path for path in (tmp_path / 'bag').iterdir() if path.suffix != '.yaml')
    return tmp_path / 'bag', file


def read_all(bag):
    with BagReader(bag) as reader:
        return list(reader.messages())


def test_a_damaged_bag_is_an_error_of_one_line_whatever_is_damaged(small_bag):
    bag, file = small_bag
    content, random = file.read_bytes(), np.random.default_rng(1)
    reasons = []
    for count in [1, 8, 64] * 15:
        damaged = bytearray(content)
        for place in random.integers(len(content), size=count):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        try:
            read_all(bag)
        except ConfigError as err:
            reasons.append(str(err))
    assert reasons
    assert all(reason.startswith(f'bag: {bag}') and '\n' not in reason for reason in reasons)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r'(cannot be read|is damaged): .*; '):
        read_all(bag)


@pytest.mark.parametrize('small_bag', [('MCAP', None)], indirect=True)
@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        ('nanoseconds: 39', 'nanoseconds: null', 'cannot be read: .*copy it again'),
        ('storage_identifier: mcap', 'storage_identifier: lmdb', "'lmdb'.*allowed: .* mcap or sq"),
        ('nanoseconds_since_epoch: 0', 'nanoseconds_since_epoch: -5', 'got a log time of -5 ns'),
        ('rosbag2_bagfile_information:', 'a: [b', r'metadata\.yaml: line \d+: .*expected'),
    ],
)
def test_metadata_that_cannot_be_right_is_named(small_bag, old, new, reason):
    bag, _ = small_bag
    metadata = bag / 'metadata.yaml'
    assert old in metadata.read_text()
    metadata.write_text(metadata.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=f'^bag: .*{reason}') as error:
        BagReader(bag)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('small_bag', [('MCAP', None)], indirect=True)
def test_a_type_without_msg_in_its_name_is_the_same_type(small_bag):
    bag, _ = small_bag
    metadata = bag / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('std_msgs/msg/String', 'std_msgs/String'))
    with BagReader(bag) as reader:
        assert reader.topics == {'/text': 'std_msgs/msg/String'}


@pytest.mark.parametrize('small_bag', [('MCAP', None)], indirect=True)
def test_a_folder_without_metadata_names_the_file_to_read(small_bag):
    bag, file = small_bag
    (bag / 'metadata.yaml').unlink()
    with pytest.raises(ConfigError, match=f'has no metadata.yaml; name its file {file.name}'):
        BagReader(bag)
    assert len(read_all(file)) == 40
    file.rename(bag / 'bag.txt')
    with pytest.raises(ConfigError, match=r'got the file .*; allowed: .*\(\.mcap or \.db3\)'):
        BagReader(bag / 'bag.txt')


def test_bags_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^bag: got '.*nowhere', which does not exist"):
        BagReader(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ConfigError, match=r'has no metadata\.yaml; allowed: the folder of a ros'):
        BagReader(tmp_path / 'empty')
