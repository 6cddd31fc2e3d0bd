"""The crop centre without masks: near the heart where it beats, None where nothing does."""

import numpy as np
import pytest

from site_agent.data import nifti, preprocess
from site_agent.data.motion import motion_centre

SPACING = (2.0, 2.0, 10.0)


def beating_disc(centre: tuple[float, float], noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc of 30 mm that shrinks to 20 mm in a body with noise, (90, 80, 8) voxels of 2 x 2 x 10 mm."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(90), np.arange(80), indexing="ij")
    distance = np.hypot(x - centre[0], y - centre[1]) * SPACING[0]
    frames = [
        (60.0 + 200.0 * (distance < radius))[..., None] + rng.normal(0, noise, (90, 80, 8)) for radius in (30.0, 20.0)
    ]
    return frames[0], frames[1]


@pytest.mark.parametrize("centre", [(45.0, 40.0), (35.0, 48.0), (58.0, 30.0)])
@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_the_centre_of_a_beating_disc_is_found_within_three_millimetres(centre, noise):
    ed, es = beating_disc(centre, noise, seed=1)
    found = motion_centre(ed, es, SPACING)
    assert found is not None
    assert np.hypot(found[0] - centre[0], found[1] - centre[1]) * SPACING[0] < 3.0


def test_a_second_moving_structure_far_away_does_not_pull_the_centre():
    ed, es = beating_disc((45.0, 40.0), 10.0, seed=2)
    ed[:8, :20] += 150.0  # an arm that moved out of the picture
    found = motion_centre(ed, es, SPACING)
    assert found is not None
    assert np.hypot(found[0] - 45.0, found[1] - 40.0) * SPACING[0] < 5.0


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_nothing_is_found_where_nothing_moves(noise):
    ed, _ = beating_disc((45.0, 40.0), 0.0, seed=3)
    es = ed + np.random.default_rng(4).normal(0, noise, ed.shape)
    assert motion_centre(ed, es, SPACING) is None


@pytest.mark.parametrize("name", ["acdc", "mnms"])
def test_in_real_scans_the_centre_is_within_twenty_millimetres_of_the_left_ventricle(shared_data, name):
    # these volumes are 192 x 192 crops around the middle of the LV, so that is where it must be (95.5, 95.5)
    ed, es = (nifti.read(shared_data / f"real/{name}/sax_{frame}.nii.gz").voxels for frame in ("ed", "es"))
    found = motion_centre(ed, es, (1.0, 1.0, 10.0))
    assert found is not None
    assert np.hypot(found[0] - 95.5, found[1] - 95.5) < 20.0


def test_in_the_golden_patient_the_whole_ventricle_stays_inside_the_crop(shared_data):
    folder = shared_data / "golden/mnms2_raw/raw/MnM2/dataset/007"
    ed, es, mask = (
        preprocess.resample(
            nifti.read(folder / f"007_SA_{part}.nii.gz"), (1.0, 1.0, 10.0), nearest=part == "ED_gt"
        ).voxels
        for part in ("ED", "ES", "ED_gt")
    )
    found = motion_centre(ed, es, (1.0, 1.0, 10.0))
    assert found is not None
    box = preprocess.crop_box(found, ed.shape, (128, 128))
    assert (mask[box] > 0).sum() == (mask > 0).sum()
