"""Overlapping windows: the grid, the cut, and how their answers are combined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_agent.data import windows


def test_the_grid_overlaps_by_half_and_ends_flush():
    # CineMA's own example, `get_patch_grid`: length 10, window 5, overlap 2 -> step 3; here the overlap is 5 // 2 = 2
    assert windows.starts((10, 5, 5), (5, 5, 5))[:, 0].tolist() == [0, 3, 5]
    assert windows.starts((192, 192, 20), (192, 192, 16)).tolist() == [[0, 0, 0], [0, 0, 4]]
    assert windows.starts((192, 192, 26), (192, 192, 16))[:, 2].tolist() == [0, 8, 10]


def test_a_volume_of_the_models_size_is_one_window():
    volume = np.random.default_rng(0).random((2, 8, 8, 4), dtype=np.float32)
    np.testing.assert_array_equal(windows.split(volume, (8, 8, 4)), volume[None])


@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    shrink=st.tuples(*[st.integers(0, 19)] * 3),
)
def test_every_voxel_is_in_some_window_and_no_window_leaves_the_volume(shape, shrink):
    window = tuple(max(1, n - less) for n, less in zip(shape, shrink, strict=True))
    seen = np.zeros(shape, dtype=bool)
    for i, j, k in windows.starts(shape, window):
        part = seen[i : i + window[0], j : j + window[1], k : k + window[2]]
        assert part.shape == window
        part[...] = True
    assert seen.all()


def test_windows_hold_the_voxels_of_their_place():
    volume = np.arange(2 * 4 * 4 * 6, dtype=np.float32).reshape(2, 4, 4, 6)
    parts = windows.split(volume, (4, 4, 4))
    assert parts.shape == (2, 2, 4, 4, 4)
    np.testing.assert_array_equal(parts[1], volume[..., 2:6])


def test_a_volume_shorter_than_the_window_must_be_padded_first():
    with pytest.raises(ValueError, match="an axis of 3 is shorter than the window of 4"):
        windows.starts((4, 4, 3), (4, 4, 4))


def test_one_windows_logits_pass_through_unchanged():
    np.testing.assert_array_equal(windows.combine_logits([[0.3, -1.2]]), [0.3, -1.2])


def test_probabilities_are_averaged_not_logits():
    logits = np.log([[0.9, 0.1], [0.5, 0.5]]) + np.array([[3.0], [-2.0]])  # an offset per window does not matter
    np.testing.assert_allclose(np.exp(windows.combine_logits(logits)), [0.7, 0.3])


def test_a_class_hopeless_in_every_window_keeps_a_finite_logit():
    assert np.isfinite(windows.combine_logits([[2000.0, 0.0], [2100.0, 0.0]])).all()
