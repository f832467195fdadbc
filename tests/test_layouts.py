"""The layouts for rqt, Foxglove and PlotJuggler show what the node publishes."""

import ast
import json
from pathlib import Path
import runpy
from xml.etree import ElementTree

from p2d_node.bags.records import image_topic
from p2d_node.records import NUSCENES_CAMERAS
import pytest

ROOT = Path(__file__).resolve().parents[1]
PERSPECTIVE = ROOT / 'config' / 'p2d.perspective'


def plugin_settings(text: str) -> dict[str, dict[str, object]]:
    """Return the settings of each plugin that the perspective opens."""
    manager = json.loads(text)['groups']['pluginmanager']
    running = ast.literal_eval(manager['keys']['running-plugins']['repr'])
    found = {}
    for name, numbers in running.items():
        for number in numbers:
            groups = manager['groups'][f'plugin__{name.replace("/", "__")}__{number}']['groups']
            keys = groups.get('plugin', {'keys': {}})['keys'].items()
            values = {key: value['repr'] for key, value in keys if value['type'] == 'repr'}
            found[f'{name} {number}'] = {k: ast.literal_eval(v) for k, v in values.items()}
    return found


def test_the_perspective_has_plots_picture_monitor_parameters_and_log():
    settings = plugin_settings(PERSPECTIVE.read_text())
    assert set(settings) == {
        'rqt_plot/Plot 1',
        'rqt_plot/Plot 2',
        'rqt_image_view/ImageView 1',
        'rqt_runtime_monitor/RuntimeMonitor 1',
        'rqt_reconfigure/Param 1',
        'rqt_console/Console 1',
    }
    assert settings['rqt_image_view/ImageView 1'] == {'topic': '/p2d/kept_tokens'}
    assert settings['rqt_reconfigure/Param 1']['selected_nodes'] == ['/p2d']


def plotted_in_rqt() -> list[str]:
    settings = plugin_settings(PERSPECTIVE.read_text())
    return [topic for name, s in settings.items() if 'Plot' in name for topic in s['topics']]


def plotted_in_plotjuggler() -> list[str]:
    root = ElementTree.parse(ROOT / 'config' / 'plotjuggler.xml').getroot()
    return [curve.attrib['name'] for curve in root.iter('curve')]


def panels() -> dict[str, dict[str, object]]:
    return json.loads((ROOT / 'config' / 'foxglove.json').read_text())['configById']


def plotted_in_foxglove() -> list[str]:
    paths = [path for panel in panels().values() for path in panel.get('paths', [])]
    return [path['value'].replace('.', '/') for path in paths]


@pytest.mark.parametrize('plotted', [plotted_in_rqt, plotted_in_plotjuggler, plotted_in_foxglove])
def test_every_plotted_topic_is_a_field_of_the_published_times(plotted):
    messages = pytest.importorskip('p2d_msgs.msg', reason='ros2_ws is not built or not sourced')
    fields = messages.StageTiming.get_fields_and_field_types()
    topics = plotted()
    assert len(topics) == 8
    for topic in topics:
        topic_name, _, field = topic.rpartition('/')
        assert topic_name == '/p2d/timing'
        assert fields[field] == 'double'


def test_the_layout_of_foxglove_has_every_camera_and_only_panels_that_it_describes():
    layout = json.loads((ROOT / 'config' / 'foxglove.json').read_text())['layout']

    def leaves(part) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [leaf for side in ('first', 'second') for leaf in leaves(part[side])]

    assert sorted(leaves(layout)) == sorted(panels())
    shown = {
        panel['imageMode']['imageTopic'] for panel in panels().values() if 'imageMode' in panel
    }
    cameras = {image_topic(camera, 'jpeg') for camera in NUSCENES_CAMERAS}
    assert shown == {*cameras, '/p2d/kept_tokens'}


def test_the_launch_file_opens_the_perspective_of_the_node_that_is_named():
    pytest.importorskip('launch_ros', reason='launch_ros comes with a ROS distribution only')
    launch_file = runpy.run_path(str(ROOT / 'launch' / 'watch.launch.py'))
    text = launch_file['perspective_of']('/car1/left')
    settings = plugin_settings(text)
    assert settings['rqt_image_view/ImageView 1'] == {'topic': '/car1/left/kept_tokens'}
    assert settings['rqt_reconfigure/Param 1']['selected_nodes'] == ['/car1/left']
    assert '/p2d' not in text
    assert launch_file['perspective_of']('/p2d') == PERSPECTIVE.read_text()
