"""CineMA's fixed sine-cosine position table and its interpolation to other grids.

Two traits of the original must be kept for its weights to mean the same. The width given to each axis is rounded down to an
even number, and what is left over is zero. And rows run over the *second* axis first, then the first, then the third,
while tokens run over the axes in their own order: the two agree only where height equals width.
Source: `cinema/vit.py` of mathpluscode/CineMA, commit 4e352ac3.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

MAX_PERIOD = 10000.0


def sincos_table(embed_dim: int, grid: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The table for `grid` (two or three axes): (1, product of grid, embed_dim), float32."""
    axis_width = embed_dim // len(grid) // 2 * 2
    table = np.zeros((math.prod(grid), embed_dim), dtype=np.float32)
    for axis, coordinate in enumerate(_coordinates(grid)):
        first = axis * axis_width
        table[:, first : first + axis_width] = _sincos(coordinate, axis_width)
    return table[None]


def interpolate(table: torch.Tensor, grid: tuple[int, ...], new_grid: tuple[int, ...]) -> torch.Tensor:
    """The table (1, N, C) made for `grid`, trilinearly resampled to `new_grid` without aligned corners."""
    if grid == new_grid:
        return table
    channels = table.shape[-1]
    volume = table.float().reshape(1, *grid, channels).movedim(-1, 1)
    resized = F.interpolate(volume, size=new_grid, mode="trilinear", align_corners=False)
    return resized.movedim(1, -1).reshape(1, -1, channels).to(table.dtype)


def _coordinates(grid: tuple[int, ...]) -> list[npt.NDArray[np.float32]]:
    """For each axis the coordinate at every row, rows running over axis 1, axis 0, axis 2."""
    by_axis = np.indices((grid[1], grid[0], *grid[2:])).astype(np.float32)
    return [by_axis[axis].ravel() for axis in (1, 0, *range(2, len(grid)))]


def _sincos(coordinate: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """(M,) → (M, width): first half sines, second half cosines, at periods from 2 pi up to 2 pi MAX_PERIOD.

    In float32 step by step like the original: the table then agrees bit for bit, not only to rounding.
    """
    half = width // 2
    step = np.arange(half, dtype=np.float32)
    frequency = np.exp(np.float32(-math.log(MAX_PERIOD)) * step / np.float32(max(half, 1)))
    angle = coordinate[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
