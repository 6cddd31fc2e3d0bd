"""Random views: pure functions of the seed, ED and ES moved alike, nothing outside [0, 1]."""

import numpy as np
import pytest

from site_agent.training import augment
from site_agent.training.augment import RANGES, Ranges

SIZE = (32, 32, 4)
STILL = Ranges(rotation_rad=0.0, shift=0.0, scale=0.0, gamma=0.0, probability=1.0)


@pytest.fixture(scope="module")
def pair() -> np.ndarray:
    """A bright disc on a dark ramp, the same in both frames."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    volume = np.where((x - 15) ** 2 + (y - 17) ** 2 < 60, 0.9, 0.01 * x) + 0.01 * z
    return np.stack([volume, volume]).astype(np.float32)


def test_the_same_seed_gives_the_same_view_and_another_one_another(pair):
    first, again, other = (augment.view_of(pair, SIZE, [seed, 5], RANGES["cinema"]) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, pair)


@pytest.mark.parametrize("seed", range(5))
def test_both_frames_are_moved_alike_and_stay_in_range(pair, seed):
    view = augment.view_of(pair, SIZE, [seed], RANGES["cinema"])
    assert view.dtype == np.float32
    assert view.shape == (2, *SIZE)
    assert np.array_equal(view[0], view[1])
    assert 0 <= view.min() < view.max() <= 1


def test_cinemas_ranges_are_those_of_its_configuration():
    """rotate_range [0, 0, 180], translate_range [60, 60, 0] of 192 voxels, scale_range 0.2, gamma [0.5, 1.5], prob 0.5."""
    found = RANGES["cinema"]
    assert found.rotation_rad == pytest.approx(np.deg2rad(180))
    assert found.shift * 192 == pytest.approx(60)
    assert (found.scale, 1 - found.gamma, 1 + found.gamma, found.probability) == (0.2, 0.5, 1.5, 0.5)


def test_without_range_nothing_moves(pair):
    np.testing.assert_allclose(augment.view_of(pair, SIZE, [3], STILL), pair, atol=1e-5)


def test_a_shift_moves_the_disc_by_at_most_its_share_of_the_image(pair):
    def centre(volume):
        bright = np.argwhere(volume[..., 0] > 0.5)
        return bright.mean(axis=0)

    moves = [
        centre(augment.view_of(pair, SIZE, [seed], Ranges(0.0, 0.1, 0.0, 0.0, 1.0))[0]) - centre(pair[0])
        for seed in range(12)
    ]
    assert np.abs(moves).max() <= 0.1 * 32 + 0.5  # half a voxel for the edge of the disc
    assert np.abs(moves).max() > 1


def test_a_small_image_is_padded_and_a_tall_one_cropped_to_the_model_s_size(pair):
    small, tall = pair[:, :20, :20], np.repeat(pair, 3, axis=-1)
    assert augment.view_of(small, SIZE, [0], RANGES["cinema"]).shape == (2, *SIZE)
    assert augment.view_of(tall, SIZE, [0], RANGES["cinema"]).shape == (2, *SIZE)


def test_every_case_and_view_has_a_seed_of_its_own():
    seeds = {tuple(augment.case_seed(0, key, view)) for key in ("acdc/a", "mnms/a", "mnms/b") for view in (1, 2, 3)}
    assert len(seeds) == 9
    assert augment.case_seed(0, "acdc/a", 1) == augment.case_seed(0, "acdc/a", 1)
