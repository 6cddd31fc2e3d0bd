"""The sites' weights, and what they sent added up with them tensor by tensor. Pure; what is made of it `aggregator.rules` says."""

import math
import statistics
from collections.abc import Iterator, Mapping

import numpy as np

from aggregator import rules
from aggregator.diagnostics import Diagnosis
from aggregator.rules import Errors, Finish, Sum
from shared.errors import InputError
from shared.layout import TensorSpec
from shared.methods import Rule

MAX_DIAGNOSED_SITES = 64
"""Figures about pairs of sites cost sites squared, and a tensor of every site in memory; above this many they are left out."""

Tensors = Iterator[tuple[TensorSpec, np.ndarray]]


def weights(patients: Mapping[str, int], weighting: str, cap: float = 1.0) -> dict[str, float]:
    """Return each site's weight: c_k / sum c for "patients" and "capped", 1 / K for "uniform". They sum to 1.

    c_k = n_k, or min(n_k, cap * median of all n), so that no site outweighs a middling one by more than `cap`.
    """
    if weighting == "uniform":
        return {site: 1.0 / len(patients) for site in sorted(patients)}
    if weighting not in ("patients", "capped"):
        raise InputError(f"weighting '{weighting}' is none of patients, capped and uniform")
    most = cap * statistics.median(patients.values()) if weighting == "capped" and patients else math.inf
    counts = {site: min(patients[site], most) for site in sorted(patients)}
    total = sum(counts.values())
    return {site: count / total for site, count in counts.items()}


def aggregate(
    base: Mapping[str, np.ndarray],
    deltas: Mapping[str, Tensors],
    weight: Mapping[str, float],
    finish: Finish,
    rule: Rule = "factors",
    cut: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return what the round makes of every tensor that was sent, float32, and of those its rule adds; and its figures by name.

    `deltas` yields each site's tensors in an adapter's order; what is averaged plainly goes through `finish`. `cut`: see
    `rules.begin`; then one unit of every site is in memory however many there are. Up to
    MAX_DIAGNOSED_SITES one unit of every site is in memory at a time, with more the sums and one unit of one site: the same bytes
    either way. Sites are summed in sorted order whatever order they come in.
    """
    sites = sorted(deltas)
    if len(sites) > MAX_DIAGNOSED_SITES and not cut:
        return _site_by_site(base, deltas, weight, finish, rule)
    shares = [weight[site] for site in sites]
    result: dict[str, np.ndarray] = {}
    diagnosis, errors = Diagnosis(sites, shares, by_factor=rule == "factors"), Errors()
    for together in zip(*(rules.units(rule, deltas[site]) for site in sites), strict=True):
        unit = rules.begin(rule, base, together[0], finish, cut)
        for share, arrays in zip(shares, together, strict=True):
            unit.add(share, arrays)
        made, missed = unit.outcome()
        result |= made
        errors += missed
        for name in together[0]:
            diagnosis.add(name, base[name], [arrays[name] for arrays in together])
    diagnosis.add_unmoved(base)
    return result, diagnosis.figures() | errors.figures()


def _site_by_site(
    base: Mapping[str, np.ndarray],
    deltas: Mapping[str, Tensors],
    weight: Mapping[str, float],
    finish: Finish,
    rule: Rule,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    sums: dict[tuple[str, ...], Sum] = {}
    figures: dict[str, float] = {}
    for site in sorted(deltas):
        squared = 0.0
        for arrays in rules.units(rule, deltas[site]):
            names = tuple(arrays)
            if names not in sums:
                sums[names] = rules.begin(rule, base, names, finish)
            sums[names].add(weight[site], arrays)
            squared += sum(float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values())
        figures[f"update_norm/{site}"] = math.sqrt(squared)
    result: dict[str, np.ndarray] = {}
    errors = Errors()
    for unit in sums.values():
        made, missed = unit.outcome()
        result |= made
        errors += missed
    return result, figures | errors.figures()
