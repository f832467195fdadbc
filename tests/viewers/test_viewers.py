"""Sweeps come out of rerun's recordings and Foxglove's server as they went in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
import json
import socket
import time

import cv2
from memory import peak_growth_bytes
import numpy as np
from p2d_node.cli.main import main
from p2d_node.cli.sweep_feed import camera_of
from p2d_node.errors import BackendUnavailableError, ConfigError, P2dError
from p2d_node.viewers import shown_sweep
from p2d_node.viewers.foxglove_viewer import (
    FoxgloveViewer,
    MAX_CHANNELS,
    MAX_CLIENTS,
    MAX_PICTURE_BYTES,
)
from p2d_node.viewers.rerun_viewer import RerunViewer
from p2d_node.viewers.shown_sweep import ShownSweep
import pytest

STAMP_NS = 1_533_280_000_123_456_789
JPEG = cv2.imencode('.jpg', np.zeros((9, 16, 3), np.uint8))[1].tobytes()
PNG = cv2.imencode('.png', np.zeros((9, 16, 3), np.uint8))[1].tobytes()


def sweep(number: int) -> ShownSweep:
    return ShownSweep(
        number=number,
        stamp_ns=STAMP_NS + number * 10**9,
        views={'CAM_FRONT': JPEG, 'CAM_BACK': PNG},
        kept_tokens=JPEG,
        answers=[('What next?', f'brake {number}')],
        tokens_kept={'CAM_FRONT': 28},
        times_ms={'total_ms': 12.5},
    )


def test_a_recording_has_both_timelines_and_every_entity(tmp_path):
    pytest.importorskip('rerun', reason='pip install -r requirements/watch.txt')
    from rerun.chunk import RrdReader

    path = tmp_path / 'deep' / 'drive.rrd'
    viewer = RerunViewer(path)
    for number in range(3):
        viewer.show(sweep(number))
    viewer.close()
    chunks = list(RrdReader(path).stream())
    entities = {str(chunk.entity_path).lstrip('/') for chunk in chunks}
    names = ('views/CAM_FRONT', 'views/CAM_BACK', 'kept_tokens', 'answers', 'tokens/CAM_FRONT')
    assert {*names, 'times/total_ms'} <= entities
    lines = {name for chunk in chunks for name in chunk.timeline_names}
    assert {'capture', 'sweep'} <= lines


@pytest.mark.attack(
    'An answer holds a link or image in Markdown for the viewer of rerun, or terminal escapes',
    'it is logged as plain text in one line',
)
def test_answers_are_no_markdown_in_rerun(tmp_path):
    pytest.importorskip('rerun', reason='pip install -r requirements/watch.txt')
    from rerun.chunk import RrdReader

    viewer = RerunViewer(tmp_path / 'drive.rrd')
    viewer.show(replace(sweep(0), answers=[('What?', '![](http://evil/x)\x1b[2J\nnext')]))
    viewer.close()
    chunks = RrdReader(tmp_path / 'drive.rrd').stream()
    (batch,) = [c.to_record_batch() for c in chunks if str(c.entity_path) == '/answers']
    values = {
        name.rpartition(':')[2]: batch[name].to_pylist()[0]
        for name in batch.schema.names
        if name.startswith('TextDocument:')
    }
    assert values['media_type'] == ['text/plain']
    assert values['text'] == ['What?\n\n![](http://evil/x) [2J next']


def test_a_file_of_rerun_that_cannot_be_written_is_named(tmp_path):
    pytest.importorskip('rerun', reason='pip install -r requirements/watch.txt')
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'^rerun: .*x\.rrd'):
        RerunViewer(tmp_path / 'file' / 'x.rrd')


def test_foxglove_gets_pictures_answers_and_times_with_capture_stamps():
    pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    client = pytest.importorskip('websockets', reason='the test speaks the protocol itself')
    viewer = FoxgloveViewer('/p2d', 0)

    async def receive() -> dict[str, tuple[int, bytes]]:
        address = f'ws://127.0.0.1:{viewer.port}'
        async with client.connect(address, subprotocols=['foxglove.sdk.v1']) as connection:
            viewer.show(sweep(0))
            found: dict[str, tuple[int, bytes]] = {}
            topics: dict[int, str] = {}
            while len(found) < 5:
                message = await asyncio.wait_for(connection.recv(), 10.0)
                if isinstance(message, bytes):
                    number = int.from_bytes(message[1:5], 'little')
                    stamp_ns = int.from_bytes(message[5:13], 'little')
                    found[topics[number]] = (stamp_ns, message[13:])
                    continue
                new = json.loads(message).get('channels', [])
                topics |= {channel['id']: channel['topic'] for channel in new}
                wanted = [{'id': c['id'], 'channelId': c['id']} for c in new]
                if wanted:
                    request = {'op': 'subscribe', 'subscriptions': wanted}
                    await connection.send(json.dumps(request))
                if len(topics) == 5:
                    await asyncio.sleep(0.2)
                    viewer.show(sweep(1))
        return found

    try:
        found = asyncio.run(receive())
    finally:
        viewer.close()
    assert set(found) == {
        '/CAM_FRONT/image_rect/compressed',
        '/CAM_BACK/image_rect/compressed',
        '/p2d/kept_tokens',
        '/p2d/timing',
        '/p2d/answer',
    }
    assert {stamp for stamp, _ in found.values()} == {STAMP_NS + 10**9}
    assert JPEG in found['/CAM_FRONT/image_rect/compressed'][1]
    assert json.loads(found['/p2d/timing'][1]) == {'total_ms': 12.5}
    assert json.loads(found['/p2d/answer'][1])['answer'] == 'brake 1'


@pytest.mark.attack(
    'Another machine of the network connects to the server of `p2d watch --foxglove`',
    'it cannot: only this machine is served, unless `--foxglove-host` says otherwise',
)
def test_foxglove_serves_this_machine_only_by_default():
    pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    viewer = FoxgloveViewer('/p2d', 0)
    try:
        with pytest.raises(ConfigError, match=rf'^foxglove_port: got {viewer.port} on 127'):
            FoxgloveViewer('/p2d', viewer.port)
        # The port is free on another address of this machine: nobody listens there.
        with socket.create_server(('127.0.0.2', viewer.port)):
            pass
    finally:
        viewer.close()


@pytest.mark.parametrize(
    'viewer', [lambda: RerunViewer('x.rrd'), lambda: FoxgloveViewer('/p2d', 0)]
)
def test_a_library_that_is_missing_is_named_with_the_command(monkeypatch, viewer):
    monkeypatch.setattr(shown_sweep, 'find_spec', lambda _: None)
    with pytest.raises(BackendUnavailableError, match=r'pip install -r requirements/watch\.txt'):
        viewer()


@pytest.mark.parametrize('verb', ['watch', 'demo'])
def test_a_recording_of_another_kind_is_refused(verb, capsys):
    assert main([verb, '--rerun', 'drive.mp4']) == 2
    assert "--rerun: got 'drive.mp4', allowed: a file *.rrd" in capsys.readouterr().err


def test_a_topic_belongs_to_the_camera_whose_name_it_has():
    cameras = ['CAM_FRONT', 'CAM_BACK']
    assert camera_of('/CAM_BACK/image_rect/compressed', cameras) == 'CAM_BACK'
    assert camera_of('/nuscenes/cam_front/image_raw', cameras) == 'CAM_FRONT'
    assert camera_of('/camera_3/image', cameras) == 'camera_3/image'


def wait_until(condition):
    end_s = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


class Client:
    """A client of Foxglove's protocol that subscribes to all and reads nothing more."""

    def __init__(self, port: int, num_channels: int):
        from websockets.sync.client import connect

        self.connection = connect(
            f'ws://127.0.0.1:{port}',
            subprotocols=['foxglove.sdk.v1'],
            max_size=None,
            ping_interval=None,
            close_timeout=0.1,
        )
        found = []
        while len(found) < num_channels:
            found += json.loads(self.connection.recv(5.0)).get('channels', [])
        wanted = [{'id': c['id'], 'channelId': c['id']} for c in found]
        self.connection.send(json.dumps({'op': 'subscribe', 'subscriptions': wanted}))


@pytest.mark.attack(
    'A web page asks `p2d watch --foxglove` for thousands of channels that do not exist',
    'the server logs nothing of what clients send',
)
def test_odd_messages_of_clients_are_not_logged(capfd, caplog):
    pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    pytest.importorskip('websockets', reason='the test speaks the protocol itself')
    viewer = FoxgloveViewer('/p2d', 0)
    try:
        viewer.show(sweep(0))
        client = Client(viewer.port, 1)
        odd = [{'id': 10**6 + number, 'channelId': 10**6} for number in range(2000)]
        client.connection.send(json.dumps({'op': 'subscribe', 'subscriptions': odd}))
        time.sleep(0.5)
        client.connection.close()
    finally:
        viewer.close()
    assert len(capfd.readouterr().err) + len(caplog.text) < 1000


@pytest.mark.attack(
    'Clients of the server of `p2d watch --foxglove` subscribe and read nothing',
    '64 messages are kept per client; with more than four clients no pictures are sent',
)
def test_clients_that_do_not_read_take_little_memory():
    pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    pytest.importorskip('websockets', reason='the test speaks the protocol itself')
    viewer = FoxgloveViewer('/p2d', 0)
    picture = JPEG + bytes(1 << 20)
    shown = replace(sweep(0), views={'CAM_FRONT': picture}, kept_tokens=b'', answers=())
    clients = []
    try:
        viewer.show(shown)
        clients.append(Client(viewer.port, 2))
        wait_until(lambda: viewer._clients.num == 1)

        def show_many():
            for _ in range(300):
                viewer.show(shown)
                time.sleep(0.002)

        assert peak_growth_bytes(show_many) < 120 << 20
        clients += [Client(viewer.port, 2) for _ in range(MAX_CLIENTS)]
        wait_until(lambda: viewer._clients.num == MAX_CLIENTS + 1)
        with pytest.raises(P2dError, match='pictures: got more than 4 clients'):
            viewer.show(shown)
        clients.pop().connection.close()
        wait_until(lambda: viewer._clients.num == MAX_CLIENTS)
        viewer.show(shown)
    finally:
        for client in clients:
            client.connection.close()
        viewer.close()


def test_a_picture_of_many_megabytes_is_left_out_and_named():
    pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    viewer = FoxgloveViewer('/p2d', 0)
    try:
        with pytest.raises(P2dError, match=r'^/CAM_BACK/image_rect/compressed: got 4194305 bytes'):
            viewer.show(replace(sweep(0), views={'CAM_BACK': bytes(MAX_PICTURE_BYTES + 1)}))
        assert '/p2d/answer' in viewer._channels
        assert '/CAM_BACK/image_rect/compressed' not in viewer._channels
    finally:
        viewer.close()


@pytest.mark.attack(
    'A peer names another camera in each answer, for `p2d watch --foxglove`',
    'up to 128 topics are served',
)
def test_foxglove_serves_a_bounded_number_of_topics():
    pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    viewer = FoxgloveViewer('/p2d', 0)
    try:
        for number in range(200):
            viewer.show(replace(sweep(0), views={f'CAM_{number}': b'\xff\xd8'}))
        assert len(viewer._channels) <= MAX_CHANNELS + 2  # and answers and times
        assert '/CAM_0/image_rect/compressed' in viewer._channels
    finally:
        viewer.close()
