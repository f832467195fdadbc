"""The parameter file that a search writes."""

from p2d_node.config import DriveConfig
from p2d_node.tuning.retention_file import write_retention_file
from p2d_node.tuning.search_space import SearchSpace
import pytest
import yaml

RATIOS = {'CAM_FRONT': 0.5}
SPACE = SearchSpace(
    num_tokens={'CAM_FRONT': 10}, min_retention=0.1, max_retention=1.0, mean_retention=None
)


@pytest.mark.attack(
    'the name of a data file or model holds a line end and parameters of the node',
    'it stays one line of comment in the parameter file of `p2d tune-ratios`',
)
@pytest.mark.parametrize('end', ['\n', '\r', '\x85', '\u2028'])
def test_a_name_in_the_header_cannot_set_a_parameter(tmp_path, end):
    header = [f'data: x{end}/p2d: {{ros__parameters: {{model: /tmp/evil}}}}{end}#.json']
    path = tmp_path / 'ratios.yaml'
    write_retention_file(path, RATIOS, space=SPACE, config=DriveConfig(), header=header)
    assert yaml.safe_load(path.read_text()) == {
        '/**': {'ros__parameters': {'retention_ratio': {'CAM_FRONT': 0.5}}}
    }


@pytest.mark.parametrize('num_frames', [1, 2])
def test_ratios_that_were_searched_with_clips_come_with_the_clips(tmp_path, num_frames):
    config = DriveConfig(
        frames_per_camera=num_frames, frame_interval_ms=500.0, selection_scope='frame'
    )
    path = tmp_path / 'ratios.yaml'
    write_retention_file(path, RATIOS, space=SPACE, config=config, header=[])
    clip = {'frames_per_camera': 2, 'frame_interval_ms': 500.0} if num_frames == 2 else {}
    assert yaml.safe_load(path.read_text())['/**']['ros__parameters'] == {
        'selection_scope': 'frame',
        **clip,
        'retention_ratio': RATIOS,
    }
