"""Vendors look as the table says, labels hold the sampled volumes, noise is Rician."""

from dataclasses import replace

import numpy as np
import pytest

from site_agent.data.phantom import DIAGNOSES, VENDORS, PhantomConfig, imaging, sample_case, sample_pair
from site_agent.data.preprocess import to_uint8

CONFIG = PhantomConfig()


def test_labels_hold_the_sampled_volumes_on_the_coarse_grid() -> None:
    """Ten thick slices and a lost apex cost some per cent; the mean over cases must stay near the truth."""
    ratios = []
    for seed in range(40):
        case = sample_case(CONFIG, "siemens", DIAGNOSES[seed % 5], np.random.default_rng(seed))
        voxel_ml = np.prod(CONFIG.spacing) / 1000.0
        counted = [
            (case.masks[..., frame] == label).sum() * voxel_ml for label in (3, 1) for frame in (case.ed, case.es)
        ]
        body = case.body
        ratios.append(np.array(counted) / (body.lv_edv, body.lv_esv, body.rv_edv, body.rv_esv))
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1.0, atol=0.06)
    assert np.abs(np.array(ratios)[:, 0] - 1.0).max() < 0.20


def test_structures_nest_as_in_a_heart() -> None:
    case = sample_case(CONFIG, "ge", "NOR", np.random.default_rng(1))
    ed = case.frames[:, :, 3, case.ed].astype(float)
    label = case.masks[:, :, 3, case.ed]
    assert ed[label == 3].mean() > 2.0 * ed[label == 2].mean()  # bright blood, dark wall
    x = [np.argwhere(label == value)[:, 0].mean() for value in (1, 3)]
    assert x[0] < x[1]  # the RV lies on the left of the picture


def test_a_pair_is_the_case_with_prepared_grey_values() -> None:
    pair = sample_pair(CONFIG, "canon", "HCM", np.random.default_rng(9))
    case = sample_case(CONFIG, "canon", "HCM", np.random.default_rng(9))
    assert (pair.shape, pair.dtype) == ((2, 64, 64, 8), np.uint8)
    np.testing.assert_array_equal(pair[0], to_uint8(case.frames[..., case.ed]))
    np.testing.assert_array_equal(pair[1], to_uint8(case.frames[..., case.es]))


def test_style_runs_from_one_common_look_to_the_vendors_own() -> None:
    common = [imaging.vendor_look(vendor, 0.0) for vendor in VENDORS]
    assert all(look == common[0] for look in common)
    assert common[0].blood == pytest.approx((0.86 + 0.76 + 0.92 + 0.64) / 4)
    assert imaging.vendor_look("philips", 1.0).gamma == pytest.approx(0.80)
    assert imaging.blend(imaging.LOOKS["ge"], imaging.LOOKS["canon"], 0.5).blood == pytest.approx(0.78)


def test_noise_without_signal_is_rayleigh() -> None:
    """A magnitude of pure noise has mean sigma sqrt(pi/2) and standard deviation sigma sqrt(2 - pi/2)."""
    sigma, gain = 0.05, 10_000.0
    values = imaging._rician(np.zeros((1, 8, 4096), dtype=np.float32), sigma, gain, np.random.default_rng(0)) / gain
    assert values.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert values.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.02)


def test_the_noise_knob_changes_the_noise_and_nothing_else() -> None:
    quiet, loud = (
        sample_case(replace(CONFIG, noise=noise), "siemens", "NOR", np.random.default_rng(4)) for noise in (0.0, 2.0)
    )
    np.testing.assert_array_equal(quiet.masks, loud.masks)
    assert quiet.body == loud.body
    lung = quiet.frames[:, :, :, 0] < np.percentile(quiet.frames[..., 0], 20)
    assert loud.frames[:, :, :, 0][lung].std() > 5.0 * quiet.frames[:, :, :, 0][lung].std()


def test_jitter_moves_the_heart() -> None:
    still = replace(CONFIG, jitter=0.0)
    centres = [
        np.argwhere(sample_case(still, "siemens", "NOR", np.random.default_rng(seed)).masks[..., 4, 0] == 3).mean(
            axis=0
        )
        for seed in range(5)
    ]
    # 12 mm off the centre at 2 mm per voxel; an uneven contour moves the centroid a little
    np.testing.assert_allclose(centres, np.tile([31.5 + 6.0, 31.5], (5, 1)), atol=0.6)


def test_wall_bias_thickens_the_apparent_wall_where_the_table_says() -> None:
    def wall_voxels(vendor: str, bias: float) -> int:
        case = sample_case(replace(CONFIG, wall_bias=bias), vendor, "NOR", np.random.default_rng(3))  # type: ignore[arg-type]
        return int((case.masks[..., case.ed] == 2).sum())

    assert wall_voxels("canon", 1.0) > 1.15 * wall_voxels("canon", 0.0)
    assert wall_voxels("ge", 1.0) < wall_voxels("ge", 0.0)
    assert wall_voxels("siemens", 1.0) == wall_voxels("siemens", 0.0)


def test_a_beating_cine_has_its_ed_and_es_where_it_says() -> None:
    case = sample_case(replace(CONFIG, n_frames=10), "philips", "NOR", np.random.default_rng(2))
    cavity = (case.masks == 3).sum(axis=(0, 1, 2))
    assert case.frames.shape == (64, 64, 8, 10)
    assert (case.ed, case.es) == (int(cavity.argmax()), int(cavity.argmin()))


@pytest.mark.parametrize("shape", [(96, 80, 6), (32, 32, 1), (40, 64, 12)])
def test_any_grid_works(shape: tuple[int, int, int]) -> None:
    config = replace(CONFIG, shape=shape, spacing=(1.5, 1.25, 8.0))
    case = sample_case(config, "canon", "ARV", np.random.default_rng(0))
    assert case.frames.shape == (*shape, 2)
    assert (case.masks == 3).any()
