"""Sampled hearts follow the table, and severity moves them."""

import numpy as np
import pytest

from site_agent.data.phantom import physiology
from site_agent.data.phantom.profile import DISEASES, Diagnosis

# means at severity 1, the table of docs/phantom.md: LV EDVi, LV EF, wall, RV EDVi, RV EF
PUBLISHED: dict[Diagnosis, tuple[float, ...]] = {
    "NOR": (78, 0.62, 8.0, 84, 0.57),
    "DCM": (118, 0.36, 8.0, 90, 0.47),
    "HCM": (74, 0.68, 9.5, 80, 0.60),
    "MINF": (97, 0.47, 7.8, 82, 0.55),
    "ARV": (80, 0.58, 8.0, 126, 0.42),
}


def _means(condition: Diagnosis, severity: float, count: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(7)
    hearts = [physiology.sample(condition, severity, rng) for _ in range(count)]
    return np.mean([(h.lv_edv / h.bsa, h.lv_ef, h.wall, h.rv_edv / h.bsa, h.rv_ef) for h in hearts], axis=0)


@pytest.mark.parametrize("condition", PUBLISHED)
def test_means_at_severity_one_are_those_of_the_table(condition: Diagnosis) -> None:
    # severity spreads by 0.25, so a mean of 1,500 lies within 3 % unless something is wrong
    np.testing.assert_allclose(_means(condition, 1.0), PUBLISHED[condition], rtol=0.03)


def test_severity_scales_the_distance_from_normal() -> None:
    normal, mild, full = (_means("DCM", severity)[1] for severity in (0.0, 0.5, 1.0))
    assert full == pytest.approx(0.36, abs=0.02)
    assert mild == pytest.approx(0.62 - 0.5 * 0.26, abs=0.02)
    assert normal > 0.55  # not 0.62: the floor of 0.15 and the spread leave a little disease


def test_a_normal_heart_has_no_severity_scar_or_thick_septum() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        heart = physiology.sample("NOR", 1.6, rng)
        assert (heart.severity, heart.septal_extra, heart.scar_wall, heart.scar_motion) == (0.0, 0.0, 1.0, 1.0)


def test_only_hypertrophy_thickens_the_septum_and_only_infarction_leaves_a_scar() -> None:
    for condition in DISEASES:
        hearts = [physiology.sample(condition, 1.0, np.random.default_rng(seed)) for seed in range(40)]
        assert (np.mean([h.septal_extra for h in hearts]) > 4.0) == (condition == "HCM")
        assert all((h.scar_wall < 1.0 and h.scar_motion < 1.0) == (condition == "MINF") for h in hearts)


def test_severity_stays_between_floor_and_cap() -> None:
    rng = np.random.default_rng(1)
    drawn = [physiology.sample("ARV", mean, rng).severity for mean in (0.0, 1.6) for _ in range(100)]
    assert min(drawn) == 0.15
    assert max(drawn) == 1.6


def test_height_and_weight_give_the_body_surface_back() -> None:
    """Mosteller: BSA = sqrt(height cm x weight kg / 3600)."""
    heart = physiology.sample("HCM", 1.0, np.random.default_rng(3))
    assert np.sqrt(heart.height * heart.weight / 3600.0) == pytest.approx(heart.bsa, rel=1e-3)
    assert heart.lv_esv == pytest.approx(heart.lv_edv * (1 - heart.lv_ef))
