import numpy as np
from p2d_node.ros.overlay import kept_mask


def test_a_kept_patch_of_a_padded_frame_lies_in_the_square_around_it():
    # 4 x 4 patches over a square of 160 px; the frame is its middle 90 rows.
    mask = kept_mask(np.array([0, 5]), (4, 4), 90, 160, padded=True)
    square = np.zeros((160, 160), bool)
    square[:40, :40] = square[40:80, 40:80] = True
    np.testing.assert_array_equal(mask, square[35:125])


def test_a_kept_patch_of_a_squashed_frame_lies_in_the_frame():
    mask = kept_mask(np.array([0, 7]), (2, 4), 90, 160, padded=False)
    expected = np.zeros((90, 160), bool)
    expected[:45, :40] = expected[45:, 120:] = True
    np.testing.assert_array_equal(mask, expected)
