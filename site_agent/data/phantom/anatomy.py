"""The shape of one heart through the cycle, as radii about the LV axis.

The LV cavity is half an ellipsoid; everything else is built around it and described by its radius at each of `ANGLES`
directions (0 lateral, pi/2 inferior, pi septum, -pi/2 anterior), at each slice, for each frame. Slices stay fixed in
space while the base moves towards the apex, so basal slices lie in the ventricle at ED and in the atrium at ES.
Lengths in mm, volumes in mm^3, angles in rad.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from site_agent.data.phantom.physiology import Physiology

Floats = npt.NDArray[np.float32]

ANGLES = 360
PHI: Floats = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False, dtype=np.float32)
DEPTHS: Floats = ((np.arange(24) + 0.5) / 24).astype(np.float32)
"""Relative depths (0 base, 1 apex of the cavity) at which volumes are integrated."""

SHORTENING = 0.30
"""Long-axis shortening as a part of the ejection fraction."""
RV_WALL = 3.0
RV_APEX = 0.93
"""Where the RV ends, as a part of the LV's length."""
SEPTUM = np.pi


@dataclass(frozen=True, slots=True)
class Heart:
    """One heart at ED, with what is needed to move it."""

    body: Physiology
    length: float
    radius: float
    """Basal radius of the LV cavity."""
    wall: float
    contour: Floats
    """(ANGLES,) factor on the cavity's radius: ellipticity and roughness, mean square 1."""
    rv_reach: float
    """Half of the angle over which the RV lies against the LV."""
    rv_turn: float
    fat: Floats
    """(ANGLES,) thickness of epicardial fat."""
    papillary_angles: tuple[float, float]
    papillary_radii: tuple[float, float]
    first_depth: float
    """Depth of the first slice's centre below the base at ED."""


@dataclass(frozen=True, slots=True)
class Radii:
    """Radii (frames, slices, ANGLES) in mm; negative where a structure is absent."""

    cavity: Floats
    epicardium: Floats
    rv: Floats
    """Outer border of the RV cavity; equals `epicardium` where there is no RV."""
    depth: Floats
    """(frames, slices): depth of the slice's centre below the base; negative in the atria."""
    relative_depth: Floats
    """(frames, slices): the same as a part of the cavity's length in that frame."""


def build(body: Physiology, wall_offset: float, rng: np.random.Generator) -> Heart:
    """Draw the individual shape of a heart with the given physiology."""
    volume = body.lv_edv * 1000.0
    length = body.sphericity * volume ** (1.0 / 3.0)
    radius = float(np.sqrt(3.0 * volume / (2.0 * np.pi * length)))
    wall = max(3.5, body.wall + wall_offset)
    epicardial = 2.0 / 3.0 * np.pi * (radius + wall) ** 2 * length
    return Heart(
        body=body,
        length=length,
        radius=radius,
        wall=wall,
        contour=_contour(rng),
        rv_reach=float(np.clip(0.85 + 0.65 * body.rv_edv * 1000.0 / epicardial, 1.05, 1.75)),
        rv_turn=float(rng.normal(0.0, 0.08)),
        fat=_fat(rng),
        papillary_angles=(float(rng.normal(-0.9, 0.12)), float(rng.normal(1.6, 0.12))),
        papillary_radii=(float(rng.uniform(3.0, 5.0)), float(rng.uniform(3.0, 5.0))),
        first_depth=float(rng.normal(4.0, 3.0)),
    )


def _contour(rng: np.random.Generator) -> Floats:
    """In-plane ellipticity (5 %) and roughness (3 %) of the LV, scaled so that the area stays what it is."""
    factor = 1.0 + rng.normal(0.0, 0.05) * np.cos(2.0 * (PHI - rng.uniform(-np.pi, np.pi)))
    for harmonic, size in ((3, 0.021), (4, 0.016), (5, 0.011), (6, 0.008)):  # together 3 %, the finer the weaker
        factor = factor + rng.normal(0.0, size) * np.cos(harmonic * PHI + rng.uniform(-np.pi, np.pi))
    return np.asarray(factor / np.sqrt(np.mean(factor**2)), dtype=np.float32)


def _fat(rng: np.random.Generator) -> Floats:
    """Fat is thickest over the RV's free wall and in the grooves; the lateral wall has almost none."""
    away = _turn(PHI - SEPTUM - rng.normal(0.0, 0.3)) / 1.5
    return np.asarray(rng.uniform(1.5, 4.5) * (0.25 + 0.75 * np.exp(-(away**4))), dtype=np.float32)


def contraction(n_frames: int) -> tuple[Floats, int]:
    """Return how far each frame is from ED (0) to ES (1), and the index of ES; frame 0 is ED."""
    if n_frames == 2:
        return np.array([0.0, 1.0], dtype=np.float32), 1
    end_systole = max(1, round(0.38 * n_frames))
    frame = np.arange(n_frames)
    systole = np.sin(0.5 * np.pi * frame / end_systole) ** 2
    rest = np.clip((frame - end_systole) / (n_frames - end_systole), 0.0, 1.0)
    # fast early filling, then a slow part before the next beat
    diastole = np.cos(0.5 * np.pi * rest**0.75) ** 2
    return np.where(frame <= end_systole, systole, diastole).astype(np.float32), end_systole


def radii(heart: Heart, heights: Floats, phase: Floats) -> Radii:
    """Shape of `heart` at the slices' `heights` (slices,), mm from the first slice towards the apex, at `phase` (frames,)."""
    body = heart.body
    length = heart.length * (1.0 - SHORTENING * body.lv_ef * phase)
    depth = heart.first_depth + heights[None, :] - (heart.length - length)[:, None]  # (frames, slices): the base moves
    relative = depth / length[:, None]
    # the atria are drawn as a short sleeve of the base
    within = np.maximum(relative, 0.0)[:, :, None]
    narrowing = _narrowing(heart, phase, length)
    cavity, epicardium = _left_ventricle(heart, within, narrowing, heart.length / length)
    profile = _rv_profile(heart, within)
    width = _rv_width(heart, narrowing, length, phase)
    rv = np.maximum(epicardium, 0.0) + width[:, None, None] * profile
    rv = np.where((profile > 0.0) & (epicardium > 0.0), rv, epicardium)
    return Radii(
        cavity=cavity.astype(np.float32),
        epicardium=epicardium.astype(np.float32),
        rv=rv.astype(np.float32),
        depth=depth.astype(np.float32),
        relative_depth=relative.astype(np.float32),
    )


def _wall(heart: Heart, relative: Floats) -> Floats:
    """Wall thickness at ED by angle and depth: thinner to the apex, thicker at a hypertrophic septum, thinner in a scar."""
    body = heart.body
    septal = np.exp(-((_turn(PHI - SEPTUM - 0.25) / body.septal_width) ** 2))  # a little to the anterior side
    thickness = heart.wall * (1.0 - 0.25 * relative**2) + body.septal_extra * septal * (1.0 - 0.8 * relative**2)
    return np.asarray(thickness * (1.0 - (1.0 - body.scar_wall) * _scar(heart, relative)), dtype=np.float32)


def _scar(heart: Heart, relative: Floats) -> Floats:
    """0 to 1: how much of a scar there is; stronger to the apex."""
    sector = np.exp(-((_turn(PHI - heart.body.scar_angle) / heart.body.scar_width) ** 4))
    return np.asarray(sector * (0.45 + 0.55 * np.minimum(relative, 1.0)), dtype=np.float32)


def _turn(angle: Floats | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Wrap to (-pi, pi]."""
    return np.asarray((angle + np.pi) % (2.0 * np.pi) - np.pi, dtype=np.float64)


def _narrowing(heart: Heart, phase: Floats, length: Floats) -> Floats:
    """Inward motion per frame, as a part of the ED radius, where the wall moves freely.

    With r = R (1 - x m), m the motion left in a scar, the volume condition is a quadratic in x: sum R^2 (1 - x m)^2 = q^2 sum R^2.
    """
    body = heart.body
    ratio = (1.0 - body.lv_ef * phase) * heart.length / length  # area at the same relative depth, against ED
    squares = (1.0 - DEPTHS[:, None] ** 2) * heart.contour[None, :] ** 2
    moves = 1.0 - (1.0 - body.scar_motion) * _scar(heart, DEPTHS[:, None])
    total, first, second = squares.sum(), (squares * moves).sum(), (squares * moves**2).sum()
    root = np.sqrt(np.maximum(first**2 - second * total * (1.0 - ratio), 0.0))
    # a large scar in a strongly beating heart may ask for more than the rest can give
    return np.asarray(np.minimum((first - root) / second, 0.8), dtype=np.float32)


def _left_ventricle(heart: Heart, relative: Floats, narrowing: Floats, stretch: Floats) -> tuple[Floats, Floats]:
    """Cavity and epicardial radii (frames, slices, ANGLES) at depths (frames, slices, 1).

    The wall keeps its volume: r_o^2 = r_i^2 + (R_o^2 - R_i^2) L_ED / L, capitals at ED.
    """
    apex = 1.0 + 0.75 * heart.wall / heart.length
    inside = np.sqrt(np.maximum(1.0 - relative**2, 0.0))
    ed_cavity = heart.radius * inside * heart.contour
    reach = np.sqrt(np.maximum(1.0 - (relative / apex) ** 2, 0.0))
    ed_epicardium = (heart.radius * heart.contour + _wall(heart, relative)) * reach
    moves = 1.0 - (1.0 - heart.body.scar_motion) * _scar(heart, relative)
    cavity = ed_cavity * (1.0 - narrowing[:, None, None] * moves)
    area = np.maximum(ed_epicardium**2 - ed_cavity**2, 0.0) * stretch[:, None, None]
    epicardium = np.sqrt(cavity**2 + area)
    return np.where(inside > 0.0, cavity, -10.0), np.where(reach > 0.0, epicardium, -10.0)


def _rv_profile(heart: Heart, relative: Floats) -> Floats:
    """Width of the RV by angle and depth, in units of its largest width: a crescent against the septum."""
    turn = heart.rv_turn + 0.12 * (1.0 - relative)  # the outflow side lies to the anterior
    across = np.maximum(1.0 - (_turn(PHI - SEPTUM - turn) / heart.rv_reach) ** 2, 0.0) ** 0.75
    along = np.maximum(1.0 - (relative / RV_APEX) ** 2, 0.0) ** 0.6 * (0.86 + 0.28 * np.minimum(relative, 0.5))
    return np.asarray(across * along, dtype=np.float32)


def _rv_width(heart: Heart, narrowing: Floats, length: Floats, phase: Floats) -> Floats:
    """Return the width (frames,) that gives the RV its volume: sum (r_o w p + w^2 p^2 / 2) = V, solved for w."""
    depths = np.broadcast_to(DEPTHS[None, :, None], (len(phase), len(DEPTHS), 1))
    _, outside = _left_ventricle(heart, depths, narrowing, heart.length / length)
    profile = _rv_profile(heart, depths[:1])
    volume = 1000.0 * heart.body.rv_edv * (1.0 - heart.body.rv_ef * phase)
    cell = length / len(DEPTHS) * (2.0 * np.pi / ANGLES)
    linear = (np.maximum(outside, 0.0) * profile).sum(axis=(1, 2))
    square = 0.5 * (profile**2).sum(axis=(1, 2))
    return np.asarray((-linear + np.sqrt(linear**2 + 4.0 * square * volume / cell)) / (2.0 * square), dtype=np.float32)
