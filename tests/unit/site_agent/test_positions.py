"""The fixed position table: equal to the recorded ones of CineMA, and interpolated as it does."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from site_agent.models import positions


def test_tables_equal_the_recorded_ones_for_square_and_other_grids_in_two_and_three_axes(shared_data):
    recorded = load_file(shared_data / "golden/cinema/pos_embed.safetensors")
    assert len(recorded) >= 7
    for name, table in recorded.items():
        dim, grid = name.removeprefix("dim").split("_grid")
        ours = positions.sincos_table(int(dim), tuple(int(extent) for extent in grid.split("x")))
        np.testing.assert_allclose(ours, table, atol=2e-7, err_msg=name)


def test_rows_follow_sine_and_cosine_of_the_coordinate_with_rows_over_the_second_axis_first():
    table = positions.sincos_table(4, (2, 3))[0]
    # Row 1 is (axis 0 = 1, axis 1 = 0); one frequency, so each axis gives (sin, cos) of its coordinate.
    np.testing.assert_allclose(table[1], [np.sin(1), np.cos(1), 0, 1], atol=1e-7)
    np.testing.assert_allclose(table[4], [0, 1, np.sin(2), np.cos(2)], atol=1e-7)


def test_width_that_does_not_divide_evenly_ends_in_zeros():
    table = positions.sincos_table(16, (2, 2, 3))
    assert table.shape == (1, 12, 16)
    assert not table[..., 12:].any()  # 16 // 3 rounded down to 4 per axis
    assert table[..., :12].any(axis=(0, 1)).all()


def test_interpolation_equals_the_recorded_table_for_a_grid_of_other_proportions(shared_data):
    folder = shared_data / "golden/cinema/mini"
    recorded = load_file(folder / "io_size_128x64x12.safetensors")["pos_embed_interpolated"]
    table = torch.from_numpy(positions.sincos_table(48, (6, 6, 8)))
    ours = positions.interpolate(table, (6, 6, 8), (8, 4, 12))
    np.testing.assert_allclose(ours.numpy(), recorded, atol=1e-6)


def test_interpolation_to_the_same_grid_is_the_table_itself():
    table = torch.from_numpy(positions.sincos_table(12, (2, 4, 2)))
    assert positions.interpolate(table, (2, 4, 2), (2, 4, 2)) is table


@pytest.mark.parametrize("value", [1.0, -0.25])
def test_interpolating_a_constant_keeps_it(value):
    table = torch.full((1, 8, 6), value)
    torch.testing.assert_close(positions.interpolate(table, (2, 2, 2), (3, 5, 4)), torch.full((1, 60, 6), value))
