"""Bags have the topics that image_transport and the presets of the node expect."""

from pathlib import Path

from p2d_node.bags.records import image_topic
from p2d_node.records import NUSCENES_CAMERAS
import pytest
import yaml

PRESETS = Path(__file__).resolve().parents[2] / 'config' / 'cameras'


def topics_of(preset: str) -> dict[str, str]:
    parameters = yaml.safe_load((PRESETS / f'{preset}.yaml').read_text())['/**']['ros__parameters']
    return {name: '/' + c['topic'].lstrip('/') for name, c in parameters['cameras'].items()}


@pytest.mark.parametrize('camera', NUSCENES_CAMERAS)
def test_a_compressed_topic_lies_below_the_raw_one_as_image_transport_expects(camera):
    base = image_topic(camera, 'bgr8')
    assert image_topic(camera, 'jpeg') == f'{base}/compressed'
    assert topics_of('nuscenes')[camera] == image_topic(camera, 'jpeg')
    assert topics_of('nuscenes_raw')[camera] == base


@pytest.mark.parametrize('camera', NUSCENES_CAMERAS)
def test_the_names_of_earlier_bags_are_a_preset(camera):
    assert topics_of('nuscenes_rect_compressed')[camera] == f'/{camera}/image_rect_compressed'
