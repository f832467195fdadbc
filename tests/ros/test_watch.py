import json
import math
import struct
import time

from builtin_interfaces.msg import Time
from camera_rig import CameraRig, wait_until
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from memory import peak_growth_bytes
from p2d_msgs.msg import DrivingAnswer, StageTiming
from p2d_node.cli import sweep_feed
from p2d_node.cli.main import main
from p2d_node.cli.sweep_feed import SweepFeed
from p2d_node.cli.table import answer_line, LiveTable, to_dict
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.answer_watcher import MAX_DIAGNOSTICS_BYTES, MAX_MESSAGE_BYTES
from p2d_node.ros.camera_frames import CameraFrames
from p2d_node.ros.conversions import to_time
from p2d_node.ros.kept_messages import KeptMessages
from p2d_node.ros.quiet_node import ToolNode
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.viewers.shown_sweep import image_format
import pytest
from sensor_msgs.msg import Image
from std_msgs.msg import Header


@pytest.mark.parametrize('name', ['/p2d/', 'bad name!', 'ü', '//', 'p2d'])
def test_a_name_that_no_node_has_is_refused(name, capsys):
    assert main(['watch', '--node', name, '--duration', '1']) == 2
    assert f'p2d watch: --node: got {name!r}, allowed: the full name' in capsys.readouterr().err


@pytest.mark.parametrize('number', [math.nan, math.inf])
def test_numbers_that_json_lacks_are_null(number):
    message = DrivingAnswer(mean_log_probability=number, timing=StageTiming(total_ms=number))
    content = json.loads(json.dumps(to_dict(message), allow_nan=False))
    assert content['mean_log_probability'] is content['timing']['total_ms'] is None
    assert content['timing']['queue_ms'] == 0.0


def feed_of(watcher, node):
    viewer, log = Collector(), ThrottledLog(node.get_logger())
    return SweepFeed(watcher, CameraFrames(node, '/p2d'), [viewer], log), viewer


class Collector:
    """A viewer that keeps what it shows."""

    def __init__(self):
        self.sweeps = []

    def show(self, sweep):
        self.sweeps.append(sweep)


@pytest.mark.parametrize('raw', [False, True])
def test_viewers_get_views_kept_tokens_answers_and_times_of_each_sweep_once(
    drive, node, watcher, raw
):
    rig = CameraRig(node, raw=raw)
    frames, viewer = CameraFrames(node, '/p2d'), Collector()
    drive(**{f'cameras__{name}__transport': 'raw' for name in NUSCENES_CAMERAS if raw})
    feed = SweepFeed(watcher, frames, [viewer], ThrottledLog(node.get_logger()))
    # Two subscribers per camera: the drive node and the frames.
    wait_until(lambda: feed.update() or min(map(count_of, rig.publishers.values())) == 2)
    wait_until(lambda: rig.heard)
    for number in range(2):
        stamp_ns = rig.publish_sweep()
        wait_until(lambda: feed.update() or len(viewer.sweeps) > number)  # noqa: B023
        sweep = viewer.sweeps[-1]
        assert (sweep.number, sweep.stamp_ns) == (number, stamp_ns)
        assert set(sweep.views) == set(sweep.tokens_kept) == set(NUSCENES_CAMERAS)
        assert all(len(view) > 100 for view in (*sweep.views.values(), sweep.kept_tokens))
        assert image_format(sweep.kept_tokens) == 'jpeg'
        ((question, answer),) = sweep.answers
        assert question == 'What should the ego vehicle do next?'
        assert answer == watcher.answers[-1].answer
        assert sweep.times_ms['total_ms'] == watcher.timings[-1].total_ms
    feed.update()
    assert len(viewer.sweeps) == 2


@pytest.mark.attack(
    'A peer publishes thousands of timings and answers of one stamp for `p2d watch`',
    'each stamp is shown once, with at most 256 answers; what comes too fast is left out',
)
def test_timings_of_one_stamp_are_one_sweep(watcher, node):
    viewer = Collector()
    feed = SweepFeed(
        watcher, CameraFrames(node, '/p2d'), [viewer], ThrottledLog(node.get_logger())
    )
    header = Header(stamp=Time(sec=7))
    for _ in range(1000):
        watcher._on_timing(StageTiming(header=header))
        watcher._on_answer(answer_of(header=header))
    watcher._on_picture(picture_of(header=header, data=bytes(192)))
    for _ in range(3):
        feed.update()
        watcher._on_timing(StageTiming(header=header))
    (sweep,) = viewer.sweeps
    assert len(sweep.answers) == 256


@pytest.mark.attack(
    'A peer publishes thousands of timings of sweeps that do not exist for `p2d watch`',
    'each waits for its picture from when it comes, and 64 wait at most: true sweeps follow',
)
def test_made_up_timings_delay_no_sweep(watcher, node, monkeypatch):
    viewer = Collector()
    feed = SweepFeed(
        watcher, CameraFrames(node, '/p2d'), [viewer], ThrottledLog(node.get_logger())
    )
    for second in range(3000):
        watcher._on_timing(StageTiming(header=Header(stamp=Time(sec=second))))
    feed.update()
    header = Header(stamp=Time(sec=9999))
    watcher._on_timing(StageTiming(header=header))
    watcher._on_picture(picture_of(header=header, data=bytes(192)))
    wait_until(lambda: feed.update() or 9999 * 10**9 in {s.stamp_ns for s in viewer.sweeps}, 2.0)
    # A viewer that is slower than the sweeps come: `update` returns, and skips what is too old.
    monkeypatch.setattr(sweep_feed, 'UPDATE_S', 0.1)
    monkeypatch.setattr(sweep_feed, 'MAX_AGE_S', 2.0)
    viewer.show = lambda _: time.sleep(0.05)
    for second in range(60):
        watcher._on_timing(StageTiming(header=Header(stamp=Time(sec=second))))
    feed.update()
    time.sleep(1.1)
    begun_s = time.monotonic()
    feed.update()
    assert time.monotonic() - begun_s < 0.5
    assert feed._waiting
    time.sleep(1.0)
    feed.update()
    assert not feed._waiting


def answer_of(num_cameras=1, **fields) -> DrivingAnswer:
    return DrivingAnswer(
        **{
            'cameras': [f'camera {number}' for number in range(num_cameras)],
            'camera_stamps': [Time()] * num_cameras,
            'tokens_total': [9] * num_cameras,
            'tokens_kept': [1] * num_cameras,
            'num_frames': [1] * num_cameras,
            'frame_stamps': [Time()] * num_cameras,
            'tokens_kept_per_frame': [1] * num_cameras,
            **fields,
        }
    )


def clips_of(num_cameras, num_frames):
    total = num_cameras * num_frames
    return {
        'num_frames': [num_frames] * num_cameras,
        'frame_stamps': [Time()] * total,
        'tokens_kept_per_frame': [1] * total,
    }


def picture_of(height=8, **fields) -> Image:
    return Image(**{'height': height, 'width': 8, 'step': 24, 'encoding': 'bgr8', **fields})


@pytest.mark.attack(
    'A peer publishes answers and times with texts of megabytes for `p2d watch`',
    'kept up to 20,000 characters per text and 256 per name, and 64 MiB in all',
)
def test_texts_without_end_of_a_peer_are_cut(node, watcher):
    publisher = node.create_publisher(DrivingAnswer, '/p2d/answer', 10)
    timings = node.create_publisher(StageTiming, '/p2d/timing', 10)
    wait_until(lambda: count_of(publisher) and count_of(timings))
    kinds = DrivingAnswer.get_fields_and_field_types()
    names = [name for name, kind in kinds.items() if kind == 'string']
    message = answer_of(64, **dict.fromkeys(names, 'x' * 200_000), cameras=['c' * 9999] * 64)
    message.header.frame_id = message.timing.header.frame_id = 'x' * 200_000
    publisher.publish(message)
    timings.publish(message.timing)
    wait_until(lambda: watcher.answers and watcher.timings)
    (answer,), (timing,) = watcher.answers, watcher.timings
    assert {len(getattr(answer, name)) for name in names} == {20_003}
    assert {len(name) for name in answer.cameras} == {259}
    headers = (answer.header, answer.timing.header, timing.header)
    assert {len(header.frame_id) for header in headers} == {259}
    assert len(answer_line(answer)) < 2200
    for _ in range(200):
        publisher.publish(message)
        time.sleep(0.002)
    wait_until(lambda: watcher.answers_after(0)[1] > 180)
    assert 100 < len(watcher.answers) < 130


@pytest.mark.attack(
    'A peer publishes messages of 100 MB for `p2d watch`, which Python would turn into gigabytes',
    'left out by the size of their bytes, before they are read',
)
def test_messages_of_many_megabytes_are_not_read(node, watcher):
    publisher = node.create_publisher(DrivingAnswer, '/p2d/answer', 10)
    wait_until(lambda: count_of(publisher))
    for size in (MAX_MESSAGE_BYTES, 10):
        publisher.publish(answer_of(6, question='x' * size))
    wait_until(lambda: watcher.answers)
    time.sleep(0.3)
    assert [answer.question for answer in watcher.answers] == ['x' * 10]


@pytest.mark.attack(
    'A peer sends `p2d watch` diagnostics of 4 MiB that claim as many statuses, which takes 1 GiB',
    'left out above 256 KiB, before they are read',
)
def test_diagnostics_that_claim_many_statuses_take_little_memory(node, watcher):
    publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
    wait_until(lambda: count_of(publisher))

    def send():
        for size in (MAX_MESSAGE_BYTES, MAX_DIAGNOSTICS_BYTES):
            # A stamp, an empty name, as many statuses as there are bytes, and a name without end.
            count = size - 60
            head = struct.pack('<IiIIBxxxIBxxxI', 256, 0, 0, 1, 0, count, 0, (1 << 32) - 1)
            publisher.publish(head + bytes(count))
        publisher.publish(
            DiagnosticArray(status=[DiagnosticStatus(name='/p2d: a', level=b'\x02')])
        )
        wait_until(lambda: watcher.problems)

    assert peak_growth_bytes(send) < 192 << 20


@pytest.mark.attack(
    'A peer publishes malformed answers, times and pictures for `p2d watch`, or a million cameras',
    'left out; what is well-formed is shown',
)
def test_malformed_messages_of_a_peer_are_left_out(watcher):
    negative, no_time = Time(sec=-1), Time(nanosec=2**32 - 1)
    for bad in (
        answer_of(0),
        answer_of(65),
        answer_of(cameras=['A', 'B']),
        answer_of(2, tokens_kept=[1]),
        answer_of(2, tokens_total=[1]),
        answer_of(camera_stamps=[negative]),
        answer_of(frame_stamps=[negative]),
        answer_of(**clips_of(1, 17)),
        answer_of(header=Header(stamp=no_time)),
    ):
        watcher._on_answer(bad)
    watcher._on_timing(StageTiming(header=Header(stamp=negative)))
    pixels = bytes(192)
    for bad in (
        picture_of(9, data=pixels),
        picture_of(0),
        picture_of(data=pixels, encoding='mono8'),
        picture_of(data=pixels, step=8),
        picture_of(data=pixels, header=Header(stamp=negative)),
        picture_of(height=3_000_000, data=bytes(72_000_000)),
    ):
        watcher._on_picture(bad)
    assert (watcher.answers, watcher.timings, watcher.pictures) == ([], [], [])
    watcher._on_answer(answer_of(64))
    watcher._on_timing(StageTiming())
    watcher._on_picture(picture_of(data=pixels))
    assert (len(watcher.answers), len(watcher.timings), len(watcher.pictures)) == (1, 1, 1)


@pytest.mark.attack(
    'A peer publishes answers about a thousand frames each for `p2d watch`',
    'left out above 16 frames per camera; up to 64 MiB are kept, frames and cameras included',
)
def test_frames_of_answers_are_bounded(watcher):
    answer = answer_of(64, **clips_of(64, 16))
    for _ in range(500):
        watcher._on_answer(answer)
    assert 200 < len(watcher.answers) < 250


@pytest.mark.attack(
    'A peer publishes pictures of megabytes, or diagnostics without end, for `p2d watch`',
    'pictures are kept up to 64 MiB in all; statuses up to 66, each of 1,000 characters',
)
def test_pictures_and_statuses_of_a_peer_are_bounded(watcher):
    large = picture_of(height=1_000_000, data=bytes(24_000_000))
    for _ in range(5):
        watcher._on_picture(large)
    assert len(watcher.pictures) == 2
    statuses = [
        DiagnosticStatus(name=f'/p2d: {n}{"x" * 300}', level=b'\x02', message='y' * 100_000)
        for n in range(5000)
    ]
    watcher._on_diagnostics(DiagnosticArray(status=statuses))
    assert len(watcher.problems) == 66
    assert max(map(len, watcher.problems)) < 1300


def test_kept_messages_are_handed_out_once():
    kept = KeptMessages(3, 100)
    for number in range(5):
        kept.add(number, 1)
    assert kept.latest() == [2, 3, 4]
    assert kept.after(4) == ([4], 5)
    assert kept.after(5) == ([], 5)
    kept.add('large', 99)
    assert kept.latest() == [4, 'large']
    kept.add('larger than all', 101)
    assert kept.after(0) == ([4, 'large'], 6)


def test_a_line_per_answer_goes_on_when_old_answers_are_dropped(watcher, capsys):
    watcher._answers = KeptMessages(2, 1 << 20)
    with LiveTable(watcher) as table:
        for number in range(5):
            watcher._on_answer(answer_of(question=f'question {number}?'))
            table.update()
    lines = capsys.readouterr().out.splitlines()
    assert [f'question {n}?' in line for n, line in enumerate(lines)] == [True] * 5


@pytest.mark.attack(
    'A peer publishes times of a sweep that has a broken camera frame, for `p2d watch --foxglove`',
    'the other views are shown; a line every 5 s says what is not',
)
def test_a_view_or_sweep_that_cannot_be_shown_ends_no_viewer(drive, node, watcher, capfd):
    rig = CameraRig(node, raw=True)
    frames, viewer = CameraFrames(node, '/p2d'), Collector()
    drive(**{f'cameras__{name}__transport': 'raw' for name in NUSCENES_CAMERAS})
    feed = SweepFeed(watcher, frames, [viewer], ThrottledLog(node.get_logger()))
    wait_until(lambda: feed.update() or min(map(count_of, rig.publishers.values())) == 2)
    wait_until(lambda: rig.heard)

    def spoil(camera, message):
        message.step = 1 if camera == 'CAM_BACK' else message.step
        return message

    stamp_ns = rig.publish_sweep(change=spoil)
    header, names = Header(stamp=to_time(stamp_ns)), list(NUSCENES_CAMERAS)
    stamps = [stamp_ns + rig.offset_ns(n) - rig.offset_ns(names[0]) for n in names]
    answer = answer_of(6, header=header, cameras=names, camera_stamps=list(map(to_time, stamps)))
    watcher._on_answer(answer)
    wait_until(lambda: len(frames.frames_at(stamps)) == 6)
    watcher._on_timing(StageTiming(header=header))
    wait_until(lambda: feed.update() or viewer.sweeps)
    assert set(viewer.sweeps[0].views) == set(NUSCENES_CAMERAS) - {'CAM_BACK'}
    assert 'a view is not shown: : got a row step of 1 bytes' in capfd.readouterr().err
    viewer.show = raise_overflow
    watcher._on_timing(StageTiming(header=Header(stamp=Time(sec=7))))
    wait_until(lambda: feed.update() or 'a sweep is not shown whole: too large' in read(capfd))
    del viewer.show
    watcher._on_timing(StageTiming(header=Header(stamp=Time(sec=8))))
    wait_until(lambda: feed.update() or len(viewer.sweeps) == 2)


@pytest.mark.attack(
    'A peer publishes camera frames whose frame_id has megabytes, for `p2d watch --foxglove`',
    'they are not kept',
)
def test_frames_with_long_texts_are_not_kept(drive, node):
    rig, frames = CameraRig(node), CameraFrames(node, '/p2d')
    drive()
    wait_until(lambda: frames.look() or min(map(count_of, rig.publishers.values())) == 2)

    def spoil(camera, message):
        message.header.frame_id = 'x' * 300 if camera == 'CAM_BACK' else 'x'
        return message

    def kept_of(stamp_ns):
        first_ns = rig.offset_ns(NUSCENES_CAMERAS[0])
        return frames.frames_at([stamp_ns + rig.offset_ns(n) - first_ns for n in rig.publishers])

    spoiled_ns, whole_ns = rig.publish_sweep(change=spoil), rig.publish_sweep()
    wait_until(lambda: len(kept_of(whole_ns)) == 6)
    assert len(kept_of(spoiled_ns)) == 5


def raise_overflow(sweep) -> None:
    raise OverflowError('too large')


def read(capfd) -> str:
    return capfd.readouterr().err


def count_of(publisher) -> int:
    return publisher.get_subscription_count()


@pytest.mark.attack(
    'A peer sends the node of a command a request of 8 MB for its parameters, which takes 2 GB',
    'the nodes of commands have no services',
)
def test_nodes_of_commands_have_no_services(node):
    tool = ToolNode('tool', context=node.context)
    assert node.get_service_names_and_types_by_node(node.get_name(), '/')
    assert node.get_service_names_and_types_by_node('tool', '/') == []
    tool.destroy_node()
