"""How a scanner shows a heart: grey values, bias field, blur, slice mixing and noise, by vendor.

The look table is invented: it makes four sites that differ, it does not describe real scanners.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from site_agent.data.phantom.anatomy import ANGLES, PHI, RV_WALL, Floats, Heart, Radii
from site_agent.data.phantom.profile import VENDORS, Vendor
from site_agent.data.preprocess import LV, MYO, RV

EDGE = 0.55
"""mm over which an edge is soft, before a voxel's own width."""
TEXTURE = 0.06
GAIN = 1000.0
"""Raw units of signal 1; a scanner's scale is arbitrary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Signal of the tissues (1 = full scale) and what the scanner does to it. `blur` in mm, `mix` the neighbours' share."""

    blood: float
    myo: float
    fat: float
    lung: float
    body: float
    gamma: float
    bias: float
    sigma: float
    blur: float
    mix: float
    fov: float
    """Factor on the field of view: apparent sizes shrink by it."""


def _row(*values: float) -> Look:
    return Look(**dict(zip((field.name for field in fields(Look)), values, strict=True)))


LOOKS: dict[Vendor, Look] = {
    "siemens": _row(0.86, 0.33, 0.75, 0.08, 0.38, 1.00, 0.15, 0.030, 0.7, 0.08, 1.00),
    "philips": _row(0.76, 0.38, 0.85, 0.10, 0.45, 0.80, 0.30, 0.045, 0.9, 0.12, 1.02),
    "ge": _row(0.92, 0.28, 0.65, 0.05, 0.33, 1.30, 0.22, 0.050, 1.1, 0.16, 0.98),
    "canon": _row(0.64, 0.40, 0.90, 0.14, 0.50, 0.95, 0.38, 0.055, 1.4, 0.22, 1.03),
}
WALL_BIAS: dict[Vendor, float] = {"siemens": 0.0, "philips": 1.2, "ge": -0.8, "canon": 2.0}
"""mm by which a vendor's protocol makes the wall appear thicker (knob `wall_bias`)."""


def blend(first: Look, second: Look, share: float) -> Look:
    """Return the look `share` of the way from `first` to `second`."""
    return Look(
        **{
            field.name: (1.0 - share) * getattr(first, field.name) + share * getattr(second, field.name)
            for field in fields(Look)
        }
    )


def vendor_look(vendor: Vendor, style: float = 1.0) -> Look:
    """Return a vendor's look: 0 the average of all vendors, 1 its own."""
    average = Look(
        **{field.name: float(np.mean([getattr(LOOKS[v], field.name) for v in VENDORS])) for field in fields(Look)}
    )
    return blend(average, LOOKS[vendor], style)


def vary(look: Look, rng: np.random.Generator) -> Look:
    """Return the look of one scan: the same scanner never gives the same picture twice."""
    blood, myo, gamma, sigma, blur = rng.normal(size=5)
    return Look(
        blood=look.blood * (1.0 + 0.05 * blood),
        myo=look.myo * (1.0 + 0.07 * myo),
        fat=look.fat,
        lung=look.lung,
        body=look.body,
        gamma=look.gamma * float(np.exp(0.08 * gamma)),
        bias=look.bias,
        sigma=look.sigma * float(np.exp(0.2 * sigma)),
        blur=look.blur * float(np.exp(0.12 * blur)),
        mix=look.mix,
        fov=look.fov,
    )


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixels of a slice in the heart's own frame, (pixels,), in file order: x fastest."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    x: Floats
    y: Floats
    rho: Floats
    direction: npt.NDArray[np.intp]
    """Index into the ANGLES table."""


HEART_OFFSET = 12.0
"""mm by which the LV lies off the centre of the field of view, so that the RV is in it."""


def place(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    fov: float,
    jitter: float,
    rng: np.random.Generator,
) -> Grid:
    """Draw a pose and express the pixels in the heart's frame: origin on the LV axis, x to lateral, y to inferior."""
    dx, dy = rng.normal(0.0, 4.0 * jitter, size=2)
    turn = rng.normal(0.0, 0.25 * jitter)
    columns = ((np.arange(shape[0]) - 0.5 * (shape[0] - 1)) * spacing[0] * fov - HEART_OFFSET - dx).astype(np.float32)
    rows = ((np.arange(shape[1]) - 0.5 * (shape[1] - 1)) * spacing[1] * fov - dy).astype(np.float32)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x = (cos * columns[None, :] + sin * rows[:, None]).ravel()
    y = (cos * rows[:, None] - sin * columns[None, :]).ravel()
    direction = np.rint((np.arctan2(y, x) + np.pi) * (ANGLES / (2.0 * np.pi))).astype(np.intp) % ANGLES
    return Grid(shape=shape, spacing=spacing, x=x, y=y, rho=np.hypot(x, y), direction=direction)


def masks(radii: Radii, grid: Grid) -> npt.NDArray[np.uint8]:
    """Return labels (frames, slices, pixels): 1 RV, 2 MYO, 3 LV, 0 elsewhere and in the atria."""
    cavity, epicardium, rv = (_at(table, grid) for table in (radii.cavity, radii.epicardium, radii.rv))
    label = np.zeros(cavity.shape, dtype=np.uint8)
    label[grid.rho < rv] = RV
    label[grid.rho < epicardium] = MYO
    label[grid.rho < cavity] = LV
    label[radii.depth < 0.0] = 0
    return label


def _at(table: Floats, grid: Grid) -> Floats:
    """Look radii (frames, slices, ANGLES) up for every pixel: (frames, slices, pixels)."""
    return np.take(table, grid.direction, axis=2)


def draw(
    heart: Heart, radii: Radii, grid: Grid, look: Look, noise: float, rng: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Return the raw images (frames, slices, pixels) of a beating heart."""
    signal = _tissue(heart, radii, grid, look, rng)
    shape = (grid.shape[2], grid.shape[1], grid.shape[0])  # slices, rows, columns
    texture = _smooth(rng.standard_normal(shape, dtype=np.float32), (1.0, 1.0))
    field = 1.0 + TEXTURE / float(texture.std() + 1e-6) * texture.reshape(shape[0], -1)
    np.maximum(signal, 0.0, out=signal)
    if abs(look.gamma - 1.0) > 1e-6:
        np.power(signal, np.float32(look.gamma), out=signal)
    signal *= field * _bias(grid, look.bias, rng)
    signal = _mix_slices(signal, look.mix)
    signal = _smooth(signal.reshape(-1, *shape), (look.blur / grid.spacing[1], look.blur / grid.spacing[0])).reshape(
        signal.shape
    )
    gain = GAIN * float(np.exp(rng.normal(0.0, 0.15)))
    return _rician(signal, look.sigma * noise, gain, rng)


def _rician(signal: Floats, sigma: float, gain: float, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Magnitude of a complex signal with independent noise in both parts, in raw units."""
    real = rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = rng.standard_normal(signal.shape, dtype=np.float32)
    real *= np.float32(sigma)
    imaginary *= np.float32(sigma)
    real += signal
    real *= real
    imaginary *= imaginary
    real += imaginary
    np.sqrt(real, out=real)
    real *= np.float32(gain)
    return np.minimum(real, 32767.0).astype(np.int16)


def _ramp(distance: Floats, width: float) -> Floats:
    """Return how much of a pixel lies inside a border: 0 outside to 1 inside, over `width` mm."""
    distance *= np.float32(1.0 / width)
    distance += np.float32(0.5)
    return np.clip(distance, 0.0, 1.0, out=distance)


def _paint(signal: Floats, part: Floats, value: np.float32 | Floats) -> None:
    """Cover `signal` by tissue of `value` where `part` says so, in place."""
    part *= value - signal
    signal += part


def _tissue(heart: Heart, radii: Radii, grid: Grid, look: Look, rng: np.random.Generator) -> Floats:
    """Paint the tissues from the outside in: (frames, slices, pixels)."""
    # an edge is soft by itself and by the width of the pixel it falls into
    width = float(np.hypot(2.0 * EDGE, grid.spacing[0]))
    myo, blood = np.float32(look.myo), np.float32(look.blood)
    open_wall = np.clip(1.0 + radii.depth / (0.5 * grid.spacing[2]), 0.0, 1.0)[:, :, None]  # 0 in the atria
    rv_wall = np.where(radii.rv > radii.epicardium, radii.rv + RV_WALL, radii.epicardium)
    thin = np.maximum(radii.epicardium - 2.5, radii.cavity)
    cavity = radii.cavity + (1.0 - open_wall) * 0.8 * (thin - radii.cavity)
    signal = np.repeat(_surroundings(grid, look, rng)[None], radii.cavity.shape[0], axis=0)
    for border, value in (
        (_fat_border(heart, rv_wall), np.float32(look.fat)),
        (rv_wall, myo),
        (radii.rv, np.float32(0.97) * blood),
        (radii.epicardium, myo),
        (cavity.astype(np.float32), blood),
    ):
        _paint(signal, _ramp(_at(border, grid) - grid.rho, width), value)
    _paint_papillaries(signal, heart, radii, grid, myo, width)
    return signal


def _fat_border(heart: Heart, outside: Floats) -> Floats:
    """Fat lies on the heart and half fills the grooves where the RV meets the LV."""
    steps = ANGLES // 18
    smooth = sum((np.roll(outside, shift, axis=2) for shift in (-2 * steps, -steps, steps, 2 * steps)), outside) / 5.0
    return np.where(outside > 0.0, np.maximum(outside, 0.5 * (outside + smooth)) + heart.fat, np.float32(-10.0)).astype(
        np.float32
    )


def _paint_papillaries(signal: Floats, heart: Heart, radii: Radii, grid: Grid, myo: np.float32, width: float) -> None:
    """Two papillary muscles at middle depth, nearer to the wall as the cavity closes; labels count them as cavity."""
    present = (radii.relative_depth > 0.2) & (radii.relative_depth < 0.8)
    for angle, radius in zip(heart.papillary_angles, heart.papillary_radii, strict=True):
        wall = radii.cavity[:, :, int(np.argmin(np.abs(PHI - angle)))]
        size = np.where(present, np.minimum(np.float32(radius), np.float32(0.2) * wall), np.float32(-10.0))[:, :, None]
        far = np.float32(0.68) * wall[:, :, None]
        distance = _distance(grid, far * np.float32(np.cos(angle)), far * np.float32(np.sin(angle)))
        _paint(signal, _ramp(size - distance, width), myo)


def _distance(grid: Grid, x: float | np.float32 | Floats, y: float | np.float32 | Floats) -> Floats:
    """Return the distance of every pixel from (x, y)."""
    across: Floats = grid.x - np.asarray(x, dtype=np.float32)
    down: Floats = grid.y - np.asarray(y, dtype=np.float32)
    across *= across
    down *= down
    across += down
    np.sqrt(across, out=across)
    return across


def _surroundings(grid: Grid, look: Look, rng: np.random.Generator) -> Floats:
    """Lung with vessels, chest wall and skin, liver below and the descending aorta: (slices, pixels)."""
    slices = np.arange(grid.shape[2], dtype=np.float32)[:, None] * np.float32(grid.spacing[2])
    width = 2.0 * grid.spacing[0]
    signal = np.full((grid.shape[2], grid.x.size), look.lung, dtype=np.float32)
    for _ in range(7):  # pulmonary vessels, each through a few slices
        angle, far, size = rng.uniform(-2.0, 0.6), rng.uniform(46.0, 80.0), rng.uniform(1.0, 2.6)
        through = np.exp(-(((slices - rng.uniform(0.0, 70.0)) / 14.0) ** 2))
        distance = _distance(grid, far * np.cos(angle), far * np.sin(angle))
        _paint(signal, through.astype(np.float32) * _ramp(size - distance, 2.0), np.float32(0.8 * look.blood))
    lean, wave = rng.normal(0.0, 0.08), rng.uniform(-np.pi, np.pi)
    edge = 40.0 + rng.normal(0.0, 4.0) - 0.12 * slices  # the diaphragm comes nearer towards the apex
    liver = grid.y - np.float32(lean) * grid.x - 3.0 * np.cos(grid.x / 25.0 + wave).astype(np.float32) - edge
    _paint(signal, _ramp(liver.astype(np.float32), width), np.float32(look.body))
    aorta = _distance(grid, 38.0 + rng.normal(0.0, 3.0), 44.0 + rng.normal(0.0, 3.0))
    _paint(signal, _ramp(np.float32(10.5) - aorta, width) * np.ones_like(slices), np.float32(0.95 * look.blood))
    tilt = 0.35 + rng.normal(0.0, 0.08)
    chest = -grid.x * np.cos(tilt) - grid.y * np.sin(tilt) - (74.0 + rng.normal(0.0, 3.0) - 0.1 * slices)
    _paint(signal, _ramp(chest.astype(np.float32), width), np.float32(look.fat))
    _paint(signal, _ramp((chest - 24.0).astype(np.float32), width), np.float32(0.0))  # air beyond the skin
    return signal


def _bias(grid: Grid, amplitude: float, rng: np.random.Generator) -> Floats:
    """A smooth field of sensitivity over the field of view, (pixels,): 1 +- amplitude."""
    span = 0.5 * max(grid.shape[0] * grid.spacing[0], grid.shape[1] * grid.spacing[1])
    x, y = grid.x / span, grid.y / span
    weights = rng.normal(size=4)
    weights /= np.linalg.norm(weights)
    field = weights[0] * x + weights[1] * y + weights[2] * x * y + weights[3] * (x * x + y * y - 0.7)
    return np.asarray(np.maximum(1.0 + amplitude * field, 0.25), dtype=np.float32)


def _mix_slices(signal: Floats, share: float) -> Floats:
    """Partial volume along z: a slice holds `share` of its neighbours' signal (the end slices repeat themselves)."""
    mixed = np.float32(1.0 - share) * signal
    side = np.float32(0.5 * share)
    mixed[:, 1:] += side * signal[:, :-1]
    mixed[:, :-1] += side * signal[:, 1:]
    mixed[:, 0] += side * signal[:, 0]
    mixed[:, -1] += side * signal[:, -1]
    return mixed


def _smooth(volume: Floats, sigma: tuple[float, float]) -> Floats:
    """Gaussian blur of (..., rows, columns) with `sigma` in pixels; the border is repeated."""
    for axis, width in zip((-2, -1), sigma, strict=True):
        reach = max(1, int(np.ceil(2.5 * width)))
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width, 1e-3)) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        pad = [(0, 0)] * volume.ndim
        pad[axis % volume.ndim] = (reach, reach)
        padded = np.pad(volume, pad, mode="edge")
        size = volume.shape[axis]
        pieces = [
            padded[..., k : k + size] if axis == -1 else padded[..., k : k + size, :] for k in range(2 * reach + 1)
        ]
        volume = taps[reach] * pieces[reach]
        for k in range(reach):
            volume += taps[k] * (pieces[k] + pieces[2 * reach - k])
    return volume
