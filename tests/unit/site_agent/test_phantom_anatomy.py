"""The shapes hold the volumes they were built for, and move as a heart does."""

import numpy as np
import pytest

from site_agent.data.phantom import anatomy, physiology
from site_agent.data.phantom.anatomy import Heart, Radii
from site_agent.data.phantom.profile import DIAGNOSES, Diagnosis

FINE = np.arange(-30.0, 150.0, 0.5, dtype=np.float32)
"""Heights of imaginary slices, mm, close enough to integrate over."""


def _heart(condition: Diagnosis, seed: int, severity: float = 1.0) -> Heart:
    rng = np.random.default_rng(seed)
    return anatomy.build(physiology.sample(condition, severity, rng), 0.0, rng)


def _volume(outer: np.ndarray, inner: np.ndarray | None, depth: np.ndarray) -> np.ndarray:
    """ml per frame between two borders, below the base: 1/2 (r_o^2 - r_i^2) dphi dz."""
    squares = np.maximum(outer, 0.0) ** 2 - (np.maximum(inner, 0.0) ** 2 if inner is not None else 0.0)
    area = 0.5 * squares.sum(axis=2) * (2.0 * np.pi / anatomy.ANGLES)
    return (area * (depth >= 0.0)).sum(axis=1) * 0.5 / 1000.0


def _beat(heart: Heart, frames: int = 2) -> Radii:
    return anatomy.radii(heart, FINE, anatomy.contraction(frames)[0])


@pytest.mark.parametrize("condition", DIAGNOSES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_ventricles_hold_their_sampled_volumes_at_ed_and_es(condition: Diagnosis, seed: int) -> None:
    heart = _heart(condition, seed)
    beat, body = _beat(heart), heart.body
    lv = _volume(beat.cavity, None, beat.depth)
    assert lv == pytest.approx([body.lv_edv, body.lv_esv], rel=0.03)
    rv = _volume(beat.rv, beat.epicardium, beat.depth)
    assert rv == pytest.approx([body.rv_edv, body.rv_esv], rel=0.03)


@pytest.mark.parametrize("condition", DIAGNOSES)
def test_the_wall_thickens_without_gaining_volume(condition: Diagnosis) -> None:
    beat = _beat(_heart(condition, 5))
    ed, es = _volume(beat.epicardium, beat.cavity, beat.depth)
    assert es == pytest.approx(ed, rel=0.04)  # what lies beyond the apex does not follow the stretch exactly
    at_ed, at_es = (np.abs(beat.relative_depth[frame] - 0.3).argmin() for frame in (0, 1))
    thickness = [
        float((beat.epicardium[frame, at] - beat.cavity[frame, at]).mean()) for frame, at in ((0, at_ed), (1, at_es))
    ]
    assert thickness[1] > thickness[0]


def test_the_base_moves_down_and_the_apex_stays() -> None:
    heart = _heart("NOR", 2)
    depth = _beat(heart).depth
    assert depth[0, 0] - depth[1, 0] == pytest.approx(0.30 * heart.body.lv_ef * heart.length, rel=1e-4)


def test_a_scar_moves_less_than_the_wall_across_from_it() -> None:
    heart = _heart("MINF", 4, severity=1.6)
    beat = _beat(heart)
    frames = [np.abs(beat.relative_depth[frame] - 0.6).argmin() for frame in (0, 1)]
    inward = beat.cavity[0, frames[0]] - beat.cavity[1, frames[1]]
    scar = np.abs(anatomy._turn(anatomy.PHI - heart.body.scar_angle)) < 0.2
    across = np.abs(anatomy._turn(anatomy.PHI - heart.body.scar_angle + np.pi)) < 0.2
    assert inward[scar].mean() < 0.5 * inward[across].mean()


def test_a_hypertrophic_septum_is_thicker_than_the_lateral_wall() -> None:
    heart = _heart("HCM", 6, severity=1.6)
    beat = _beat(heart)
    at = np.abs(beat.relative_depth[0] - 0.3).argmin()
    wall = beat.epicardium[0, at] - beat.cavity[0, at]
    assert (
        wall[0] - wall[anatomy.ANGLES // 2] > 0.6 * heart.body.septal_extra
    )  # index 0 is the septum, half way lateral


@pytest.mark.parametrize("frames", [2, 3, 10, 25, 30])
def test_a_beat_starts_at_ed_empties_to_es_and_fills_again(frames: int) -> None:
    phase, es = anatomy.contraction(frames)
    assert len(phase) == frames
    assert (phase[0], phase[es]) == (0.0, 1.0)
    assert (np.diff(phase[: es + 1]) > 0).all()
    assert (np.diff(phase[es:]) < 0).all()
    assert np.abs(np.diff(phase)).max() <= max(1.0, 6.0 / frames)


def test_volumes_of_a_full_beat_are_smallest_at_es() -> None:
    beat = _beat(_heart("NOR", 8), frames=12)
    _, es = anatomy.contraction(12)
    volumes = _volume(beat.cavity, None, beat.depth)
    assert volumes.argmin() == es
    assert volumes.argmax() == 0
