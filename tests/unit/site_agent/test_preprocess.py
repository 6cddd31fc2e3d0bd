"""Resampling, cropping and scaling against CineMA's own output (golden files) and against hand-worked cases."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InputError
from site_agent.data import nifti, preprocess
from site_agent.data.nifti import Volume

SWAPPED = {1: 3, 2: 2, 3: 1}
SAX, LAX = (1.0, 1.0, 10.0), (1.0, 1.0, 6.0)
IDENTITY = np.eye(3)
OBLIQUE = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]


def volume(voxels: np.ndarray, spacing=(1.0, 1.0, 1.0), direction=IDENTITY, origin=(0.0, 0.0, 0.0)) -> Volume:
    return Volume(voxels, spacing, direction, np.asarray(origin))


def golden_frames(golden: Path, name: str) -> tuple[list[Volume], list[Volume], Path]:
    """(images ED and ES, masks ED and ES, prefix of the expected files) of one golden patient."""
    if name == "acdc":
        folder = golden / "acdc_raw/raw/database/training/patient901"
        images = [nifti.read(folder / f"patient901_frame0{n}.nii.gz") for n in (1, 4)]
        masks = [nifti.read(folder / f"patient901_frame0{n}_gt.nii.gz") for n in (1, 4)]
        return images, masks, golden / "acdc_raw/expected/train/patient901/patient901_sax"
    if name == "mnms":
        folder = golden / "mnms_raw/raw/OpenDataset/Training/Labeled/Z9Q8W7"
        cine, drawn = nifti.read(folder / "Z9Q8W7_sa.nii.gz"), nifti.read(folder / "Z9Q8W7_sa_gt.nii.gz")
        images, masks = [cine.frame(t) for t in (0, 2)], [drawn.frame(t) for t in (0, 2)]
        return images, masks, golden / "mnms_raw/expected/train/Z9Q8W7/Z9Q8W7_sax"
    view = {"mnms2 short axis": "SA", "mnms2 long axis": "LA"}[name]
    folder = golden / "mnms2_raw/raw/MnM2/dataset/007"
    images = [nifti.read(folder / f"007_{view}_{frame}.nii.gz") for frame in ("ED", "ES")]
    masks = [nifti.read(folder / f"007_{view}_{frame}_gt.nii.gz") for frame in ("ED", "ES")]
    expected = golden / f"mnms2_raw/expected/train/007/007_{'sax' if view == 'SA' else 'lax_4c'}"
    return images, masks, expected


@pytest.mark.parametrize(
    ("name", "values", "spacing", "size"),
    [
        ("acdc", {1: 1, 2: 2, 3: 3}, SAX, (192, 192)),
        ("mnms", SWAPPED, SAX, (192, 192)),
        ("mnms2 short axis", SWAPPED, SAX, (192, 192)),
        ("mnms2 long axis", SWAPPED, LAX, (256, 256)),
    ],
)
def test_golden_pair_comes_out_as_cinema_made_it(shared_data, name, values, spacing, size):
    images, masks, expected = golden_frames(shared_data / "golden", name)
    images = [preprocess.resample(image, spacing) for image in images]
    masks = [preprocess.resample(preprocess.canonical_mask(mask, values), spacing, nearest=True) for mask in masks]
    centre = preprocess.mask_centre(masks[0].voxels == preprocess.LV)
    box = preprocess.crop_box(centre, images[0].voxels.shape, size)
    for image, mask, frame in zip(images, masks, ("ed", "es"), strict=True):
        image, mask = preprocess.crop(image, box), preprocess.crop(mask, box)
        wanted, wanted_mask = (
            nifti.read(Path(f"{expected}_{frame}.nii.gz")),
            nifti.read(Path(f"{expected}_{frame}_gt.nii.gz")),
        )
        got = preprocess.to_uint8(image.voxels)
        assert got.shape == wanted.voxels.shape
        difference = np.abs(got.astype(int) - wanted.voxels.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
        np.testing.assert_array_equal(mask.voxels, wanted_mask.voxels)
        np.testing.assert_allclose(image.origin, wanted.origin, atol=1e-4)
        np.testing.assert_allclose(image.direction, wanted.direction, atol=1e-6)


def test_every_frame_of_the_golden_cine_comes_out_as_cinema_made_it(shared_data):
    golden = shared_data / "golden/acdc_raw"
    cine = nifti.read(golden / "raw/database/training/patient901/patient901_4d.nii.gz")
    wanted = nifti.read(golden / "expected/train/patient901/patient901_sax_t.nii.gz")
    _, masks, _ = golden_frames(shared_data / "golden", "acdc")
    cavity = preprocess.resample(masks[0], SAX, nearest=True).voxels == preprocess.LV
    for frame in range(cine.frames):
        image = preprocess.resample(cine.frame(frame), SAX)
        box = preprocess.crop_box(preprocess.mask_centre(cavity), image.voxels.shape, (192, 192))
        got = preprocess.to_uint8(preprocess.crop(image, box).voxels)
        difference = np.abs(got.astype(int) - wanted.voxels[..., frame].astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 12.0)] * 3),
    nearest=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equal_spacing_changes_nothing_even_when_oblique(shape, spacing, nearest, seed):
    voxels = np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)
    result = preprocess.resample(volume(voxels, spacing, OBLIQUE), spacing, nearest=nearest)
    np.testing.assert_array_equal(result.voxels, voxels)
    assert result.voxels.dtype == np.int16


@settings(max_examples=30, deadline=None)
@given(old=st.floats(0.8, 3.0), new=st.floats(0.8, 3.0), value=st.integers(-300, 300))
def test_a_flat_image_stays_flat(old, new, value):
    voxels = np.full((11, 7, 5), value, dtype=np.int16)
    result = preprocess.resample(volume(voxels, (old, old, old)), (new, new, new)).voxels
    inside = result[1:-1, 1:-1, 1:-1]  # the outermost voxels may lie outside the old volume and are 0 there
    assert (inside == value).all()


def test_a_ramp_is_read_half_a_voxel_in_and_truncated():
    ramp = np.array([0, 10, 20, 30], dtype=np.int16).reshape(4, 1, 1)
    result = preprocess.resample(volume(ramp, (2.0, 1.0, 1.0)), (1.0, 1.0, 1.0))
    # positions -0.25, 0.25, 0.75, ...: clamped 0, 2.5 -> 2, 7.5 -> 7, 12.5 -> 12, 17.5, 22.5, 27.5, clamped 30
    assert result.voxels.ravel().tolist() == [0, 2, 7, 12, 17, 22, 27, 30]
    negative = preprocess.resample(volume(-ramp, (2.0, 1.0, 1.0)), (1.0, 1.0, 1.0))
    assert negative.voxels.ravel().tolist() == [0, -2, -7, -12, -17, -22, -27, -30]


def test_a_float_image_is_not_truncated():
    ramp = np.array([0, 10, 20, 30], dtype=np.float32).reshape(4, 1, 1)
    result = preprocess.resample(volume(ramp, (2.0, 1.0, 1.0)), (1.0, 1.0, 1.0))
    assert result.voxels.ravel().tolist() == [0.0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30.0]


def test_the_origin_moves_along_world_axes_not_image_axes():
    turned = np.diag([-1.0, -1.0, 1.0])  # image x and y run against world x and y
    first = [
        positions[0]
        for positions in preprocess.sample_positions(
            volume(np.zeros((8, 8, 4)), (2.0, 2.0, 5.0), turned), (1.0, 1.0, 10.0)
        )
    ]
    # o = 0.5 (new - old) = (-0.5, -0.5, 2.5); R^T o = (0.5, 0.5, 2.5); divided by the old spacing
    assert first == [0.25, 0.25, 0.5]
    straight = preprocess.sample_positions(volume(np.zeros((8, 8, 4)), (2.0, 2.0, 5.0)), (1.0, 1.0, 10.0))
    assert [positions[0] for positions in straight] == [-0.25, -0.25, 0.5]


def test_what_lies_outside_the_old_volume_is_zero():
    turned = np.diag([-1.0, 1.0, 1.0])
    voxels = np.full((4, 1, 1), 9, dtype=np.uint8)
    result = preprocess.resample(volume(voxels, (4.0, 1.0, 1.0), turned), (1.0, 1.0, 1.0)).voxels.ravel()
    # first position (4 - 1) / 2 / 4 = 0.375, step 0.25: the last four positions are 3.375 and 3.5 ... of an axis ending at 3.5
    assert result.tolist() == [9] * 13 + [0] * 3


def test_sizes_round_half_to_even_as_numpy_does():
    assert preprocess.resampled_shape((5, 7, 10), (1.0, 1.0, 1.0), (2.0, 2.0, 4.0)) == (2, 4, 2)


def test_resampling_away_the_only_slice_is_an_error_that_names_the_spacing():
    with pytest.raises(InputError, match=r"4 mm to 1 x 1 x 10 mm gives \(8, 8, 0\) voxels"):
        preprocess.resampled_shape((8, 8, 1), (1.0, 1.0, 4.0), (1.0, 1.0, 10.0))


def test_an_absurd_spacing_is_refused_before_memory_is_taken():
    with pytest.raises(InputError, match="check the spacing"):
        preprocess.resampled_shape((256, 256, 12), (1000.0, 1000.0, 1000.0), (1.0, 1.0, 10.0))


def test_mask_values_are_translated_and_unknown_ones_dropped():
    mask = volume(np.array([0.0, 1.0, 2.0, 3.0, 7.0]).reshape(5, 1, 1))
    assert preprocess.canonical_mask(mask, SWAPPED).voxels.ravel().tolist() == [0, 3, 2, 1, 0]


def test_the_centre_of_a_mask_is_that_of_its_bounding_box():
    mask = np.zeros((20, 20, 3), dtype=bool)
    mask[3:8, 10, 0] = mask[4, 10:16, 2] = True
    assert preprocess.mask_centre(mask) == (5.0, 12.5)


@pytest.mark.parametrize(
    ("centre", "expected"),
    [(50.0, (45, 55)), (50.5, (46, 56)), (2.0, (0, 10)), (99.0, (90, 100))],
    ids=["even", "half voxel rounds up", "at the lower border", "at the upper border"],
)
def test_the_crop_follows_the_centre_and_stays_inside(centre, expected):
    box = preprocess.crop_box((centre, 4.0), (100, 8, 5), (10, 10))
    assert (box[0].start, box[0].stop) == expected
    assert (box[1].start, box[1].stop) == (0, 8)  # shorter than the crop: kept whole, not padded
    assert (box[2].start, box[2].stop) == (0, 5)


def test_cropping_moves_the_origin_along_the_image_axes():
    cut = preprocess.crop(
        volume(np.zeros((9, 9, 2)), (2.0, 3.0, 10.0), OBLIQUE, (1.0, 2.0, 3.0)), (slice(2, 5), slice(1, 9), slice(0, 2))
    )
    np.testing.assert_allclose(cut.origin, np.array([1.0, 2.0, 3.0]) + OBLIQUE @ [4.0, 3.0, 0.0])


def test_uint8_uses_the_whole_range_between_the_percentiles():
    scaled = preprocess.to_uint8(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    # percentiles 9.49 -> 9 and 994.005 -> 994: value v becomes floor((v - 9) / 985 * 255)
    assert scaled.min() == 0
    assert scaled.max() == 255
    assert scaled.ravel()[500] == int((500 - 9) / 985 * 255)


def test_a_constant_volume_is_refused_with_its_value():
    with pytest.raises(InputError, match=r"no contrast: every voxel between the percentiles .* is 7"):
        preprocess.to_uint8(np.full((4, 4, 4), 7, dtype=np.uint8))


def test_volumes_and_ejection_fraction_by_hand():
    ed, es = np.zeros((10, 10, 10), dtype=np.uint8), np.zeros((10, 10, 10), dtype=np.uint8)
    ed[:5, :5, :4], es[:5, :5, :2] = preprocess.LV, preprocess.LV
    found = preprocess.ventricles(ed, es, (2.0, 2.0, 10.0))  # 40 mm^3 a voxel
    assert (found.lv_edv_ml, found.lv_esv_ml, found.lv_ef_percent) == (4.0, 2.0, 50.0)
    assert (found.rv_edv_ml, found.rv_esv_ml, found.rv_ef_percent) == (0.0, 0.0, None)


def test_the_hash_names_the_preprocessing_and_nothing_else():
    base = preprocess.preprocessing_hash((1.0, 1.0, 10.0), (192, 192))
    assert base == preprocess.preprocessing_hash((1, 1, 10), (192, 192))
    assert base != preprocess.preprocessing_hash((2.0, 2.0, 10.0), (192, 192))
    assert base != preprocess.preprocessing_hash((1.0, 1.0, 10.0), (64, 64))


def test_writing_and_reading_keeps_voxels_and_geometry_and_bytes(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (6, 5, 4)).astype(np.uint8)
    written = volume(voxels, (1.5, 2.0, 8.0), OBLIQUE if np.linalg.det(OBLIQUE) > 0 else -OBLIQUE, (-12.0, 30.5, 7.0))
    for name in ("a", "b"):
        nifti.write_uint8(tmp_path / f"{name}.nii.gz", written)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    back = nifti.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.voxels, voxels)
    np.testing.assert_allclose(back.direction, written.direction, atol=1e-6)
    np.testing.assert_allclose(back.origin, written.origin, atol=1e-5)
    assert back.spacing == written.spacing
    image = nib.load(tmp_path / "a.nii.gz")  # the reference reader agrees, in RAS
    np.testing.assert_allclose(image.affine[:3, 3], [12.0, -30.5, 7.0], atol=1e-5)
    assert image.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(image.affine) is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as NIfTI"),
        (b"this is not an image" * 40, "cannot be read as NIfTI"),
        (b"\x1f\x8b\x08\x00 not gzip at all", "cannot be read as NIfTI"),
    ],
    ids=["empty", "text", "broken gzip"],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path, content, reason):
    (tmp_path / "ed.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=rf"ed\.nii\.gz {reason}"):
        nifti.read(tmp_path / "ed.nii.gz")


def test_a_bit_flipped_in_the_pixels_is_noticed(tmp_path):
    nifti.write_uint8(tmp_path / "ed.nii.gz", volume(np.arange(60, dtype=np.uint8).reshape(5, 4, 3)))
    content = bytearray((tmp_path / "ed.nii.gz").read_bytes())
    content[-6] ^= 1  # inside the checksum at the end of the gzip stream
    (tmp_path / "ed.nii.gz").write_bytes(bytes(content))
    with pytest.raises(InputError, match="CRC check failed"):
        nifti.read(tmp_path / "ed.nii.gz")
