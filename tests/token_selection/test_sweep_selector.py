from p2d_node.config import DriveConfig
from p2d_node.token_selection import num_keep_of_regions, SweepSelector
from p2d_node.views import make_views, Mosaic, SeparateViews
import pytest
import torch

CAMERAS = ('CAM_FRONT', 'CAM_BACK')
RATIOS = {'CAM_FRONT': 0.5, 'CAM_BACK': 0.25}
CPU = torch.device('cpu')


def states(num_pictures: int, num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_pictures, num_tokens, 8, generator=generator)


def config(**changes) -> DriveConfig:
    return DriveConfig(retention_ratio=RATIOS, **changes)


@pytest.mark.parametrize('method', ['tfps', 'random', 'grid'])
def test_each_camera_keeps_its_share(method):
    selector = SweepSelector(SeparateViews((4, 4), padded=False))
    kept = selector.select(states(2, 16), CAMERAS, config(selector=method))
    assert [len(indices) for indices in kept] == [8, 4]
    assert all(indices.tolist() == sorted(set(indices.tolist())) for indices in kept)


def test_an_adaptive_sweep_keeps_the_same_number_of_tokens_in_all():
    features = states(2, 16)
    features[1] = features[1, :1]  # all tokens alike: one of them covers the view
    selector = SweepSelector(SeparateViews((4, 4), padded=False))
    front, back = selector.select(features, CAMERAS, config(allocation='adaptive'))
    assert (len(front), len(back)) == (11, 1)


@pytest.mark.parametrize('allocation', ['fixed', 'adaptive'])
def test_kept_tokens_of_a_mosaic_lie_in_the_region_of_their_camera(allocation):
    views = make_views(Mosaic((CAMERAS,)), (4, 4), padded=False, device=CPU, model='m')
    kept = SweepSelector(views).select(states(1, 16), CAMERAS, config(allocation=allocation))
    assert sum(map(len, kept)) == 4 + 2
    for side, indices in enumerate(kept):
        assert {index % 4 // 2 for index in indices.tolist()} == {side}
    (merged,) = views.merge_indices(kept, CAMERAS)
    assert merged.tolist() == sorted(index for indices in kept for index in indices.tolist())


NUSCENES_ROWS = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_RIGHT', 'CAM_BACK', 'CAM_BACK_LEFT'),
)


def test_a_mosaic_keeps_the_published_total_of_its_whole_picture():
    mosaic = Mosaic(NUSCENES_ROWS)
    views = make_views(mosaic, (16, 16), padded=False, device=CPU, model='m')
    kept = SweepSelector(views).select(states(1, 256), mosaic.cameras, DriveConfig(model='m'))
    assert sum(map(len, kept)) == 25  # int(256 x 0.1); rounded region by region it would be 24
    assert {len(indices) for indices in kept} == {4, 5}


@pytest.mark.parametrize(
    ('totals', 'ratios', 'counts'),
    [
        ([40, 48, 40], [0.1, 0.1, 0.1], [4, 4, 4]),
        ([48, 48, 40], [0.1, 0.1, 0.1], [5, 4, 4]),
        ([40, 49, 40], [0.1, 0.1, 0.3], [4, 4, 12]),
        ([45, 49], [0.1, 0.1], [4, 5]),
        ([5, 5], [0.01, 0.01], [1, 1]),
        ([7, 9], [1.0, 1.0], [7, 9]),
    ],
)
def test_the_total_of_regions_is_split_by_largest_remainder(totals, ratios, counts):
    assert num_keep_of_regions(totals, ratios) == counts


def test_selectors_are_held_from_sweep_to_sweep():
    selector = SweepSelector(SeparateViews((4, 4), padded=False))
    selector.select(states(2, 16), CAMERAS, config())
    (first,) = selector._selectors.values()
    selector.select(states(2, 16), CAMERAS, config())
    assert list(selector._selectors.values()) == [first]
    selector.select(states(2, 16), CAMERAS, config(selector='grid'))
    assert len(selector._selectors) == 2
