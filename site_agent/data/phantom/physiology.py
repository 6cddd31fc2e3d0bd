"""Whose heart it is: body size, volumes, ejection fractions and wall thickness per diagnosis.

The means and spreads are plausible values written down from memory of published reference ranges; they are not measured
and must not be cited. Severity s moves the means: normal + s x (disease - normal).
"""

from dataclasses import dataclass

import numpy as np

from site_agent.data.phantom.profile import Diagnosis

SEVERITY_SPREAD = 0.25
SEVERITY_FLOOR, SEVERITY_CAP = 0.15, 1.6


@dataclass(frozen=True, slots=True)
class Range:
    """Mean and standard deviation."""

    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Ranges of one diagnosis: volumes in ml/m^2 of body surface, fractions, wall in mm at ED."""

    lv_edvi: Range
    lv_ef: Range
    wall: Range
    rv_edvi: Range
    rv_ef: Range


TABLE: dict[Diagnosis, ClassTable] = {
    "NOR": ClassTable(Range(78, 12), Range(0.62, 0.05), Range(8.0, 1.0), Range(84, 13), Range(0.57, 0.06)),
    "DCM": ClassTable(Range(118, 22), Range(0.36, 0.09), Range(8.0, 1.2), Range(90, 18), Range(0.47, 0.09)),
    "HCM": ClassTable(Range(74, 13), Range(0.68, 0.06), Range(9.5, 1.3), Range(80, 14), Range(0.60, 0.07)),
    "MINF": ClassTable(Range(97, 19), Range(0.47, 0.08), Range(7.8, 1.1), Range(82, 15), Range(0.55, 0.07)),
    "ARV": ClassTable(Range(80, 14), Range(0.58, 0.06), Range(8.0, 1.0), Range(126, 22), Range(0.42, 0.09)),
}
LIMITS = ClassTable(Range(35, 260), Range(0.10, 0.80), Range(4.5, 20.0), Range(40, 260), Range(0.10, 0.80))
"""Lowest and highest value of each quantity (in the places of mean and spread)."""


@dataclass(frozen=True, slots=True)
class Physiology:
    """One subject. Volumes in ml, lengths in mm, angles in rad (0 lateral, pi septum), body sizes in cm and kg."""

    condition: Diagnosis
    severity: float
    """0 for a normal heart."""
    bsa: float
    lv_edv: float
    lv_ef: float
    wall: float
    rv_edv: float
    rv_ef: float
    sphericity: float
    """LV length / cube root of LV volume; the smaller the rounder."""
    septal_extra: float
    septal_width: float
    scar_angle: float
    scar_width: float
    scar_wall: float
    """Wall thickness left in the scar, as a part of the rest (1: no scar)."""
    scar_motion: float
    """Inward motion left in the scar, as a part of the rest."""
    age: int
    sex: str
    height: float
    weight: float

    @property
    def lv_esv(self) -> float:
        return self.lv_edv * (1.0 - self.lv_ef)

    @property
    def rv_esv(self) -> float:
        return self.rv_edv * (1.0 - self.rv_ef)


def sample(condition: Diagnosis, severity: float, rng: np.random.Generator) -> Physiology:
    """Draw one subject with `condition`; `severity` is the mean severity of the diseased."""
    drawn = float(np.clip(rng.normal(severity, SEVERITY_SPREAD), SEVERITY_FLOOR, SEVERITY_CAP))
    s = 0.0 if condition == "NOR" else drawn
    bsa = float(np.clip(rng.normal(1.88, 0.20), 1.4, 2.5))
    value = {name: _draw(condition, name, s, rng) for name in ("lv_edvi", "lv_ef", "wall", "rv_edvi", "rv_ef")}
    sphericity = rng.normal(1.62, 0.07) - (0.14 * s if condition == "DCM" else 0.0)
    # every subject takes the same number of draws, so that two conditions from one generator share all the rest
    extra, septal_width = rng.normal(5.5 * s, 2.2), rng.uniform(0.7, 1.2)
    angle, scar_width = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.1)
    scar_wall, scar_motion = rng.uniform(0.45, 0.80), rng.uniform(0.05, 0.40)
    height = float(np.clip(rng.normal(171.0, 9.0), 145.0, 200.0))
    scarred, thick_septum = condition == "MINF", condition == "HCM"
    return Physiology(
        condition=condition,
        severity=s,
        bsa=bsa,
        lv_edv=value["lv_edvi"] * bsa,
        lv_ef=value["lv_ef"],
        wall=value["wall"],
        rv_edv=value["rv_edvi"] * bsa,
        rv_ef=value["rv_ef"],
        sphericity=float(np.clip(sphericity, 1.15, 1.9)),
        septal_extra=max(0.0, float(extra)) if thick_septum else 0.0,
        septal_width=float(septal_width),
        scar_angle=float(angle),
        scar_width=float(scar_width),
        scar_wall=max(0.3, 1.0 - s * (1.0 - float(scar_wall))) if scarred else 1.0,
        scar_motion=max(0.0, 1.0 - s * (1.0 - float(scar_motion))) if scarred else 1.0,
        age=int(np.clip(rng.normal(52.0, 15.0), 18, 88)),
        sex="F" if rng.random() < 0.45 else "M",
        height=round(height, 1),
        weight=round(bsa**2 * 3600.0 / height, 1),  # Mosteller's body surface formula, solved for weight
    )


def _draw(condition: Diagnosis, name: str, s: float, rng: np.random.Generator) -> float:
    normal: Range = getattr(TABLE["NOR"], name)
    disease: Range = getattr(TABLE[condition], name)
    limits: Range = getattr(LIMITS, name)
    mean = normal.mean + s * (disease.mean - normal.mean)
    # the spread grows to the disease's own and no further: a mild case is nearly as uniform as a normal one
    spread = normal.spread + min(s, 1.0) * (disease.spread - normal.spread)
    return float(np.clip(rng.normal(mean, spread), limits.mean, limits.spread))
