"""The tables of what each method reaches, of what it costs, and of the primary family."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from experiments.comparison import metrics
from experiments.comparison.report import primary, resampling
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.report.resampling import MEAN, WORST
from experiments.comparison.report.tables import Column, Spread, Table, Value

KEY = Column("key", "key", "text", machine=True)
METHOD = Column("method", "method", "text")
RUNS = Column("runs", "runs", "count")
SCENARIO = Column("scenario", "scenario", "text")
AGAINST = Column("reference", "against", "text")
SITES = {MEAN: "mean", WORST: "worst"}
AT_SITE = {
    "balanced_accuracy_validation": "balanced accuracy",
    "sensitivity_validation": "sensitivity",
    "specificity_validation": "specificity",
    "auc": "AUC",
}
OVER_RUNS = "mean ± standard deviation over runs"
CALLED = (
    "Balanced accuracy: the unweighted mean over sites, the worst site of each run, and pooled over all cases; sensitivity, "
    f"specificity and MCC are pooled. {OVER_RUNS.capitalize()}."
)


def main_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield four tables a scenario: at the sites' validation thresholds, at 0.5, each site's, and what needs no threshold."""
    for scenario, text in comparison.scenarios.items():
        if rows := [_main_row(one) for one in comparison.within(scenario).values()]:
            for at, said in (("validation", "thresholds chosen on validation cases"), ("half", "threshold 0.5")):
                caption = f"Scenario {scenario} ({text}): {said}"
                yield Table(name=f"main-{scenario}-{at}", caption=caption, columns=_called(at), rows=rows, note=CALLED)
            yield _sites_table(scenario, list(comparison.within(scenario).values()))
            yield Table(
                name=f"main-{scenario}-ranking",
                caption=f"Scenario {scenario} ({text}): ranking and calibration",
                columns=RANKING,
                rows=rows,
                note=f"ECE with {metrics.BINS} bins on n cases of all runs, above 0 by chance the more the fewer cases a run has. "
                f"{OVER_RUNS.capitalize()}.",
            )


def _called(at: str) -> Sequence[Column]:
    accuracy = f"balanced_accuracy_{at}"
    return (
        KEY,
        METHOD,
        RUNS,
        Column(f"{accuracy}_site_mean", "mean", group="balanced accuracy"),
        Column(f"{accuracy}_worst_site", "worst site", group="balanced accuracy"),
        Column(accuracy, "pooled", group="balanced accuracy"),
        Column(f"sensitivity_{at}", "sensitivity"),
        Column(f"specificity_{at}", "specificity"),
        Column(f"mcc_{at}", "MCC"),
    )


RANKING = (
    KEY,
    METHOD,
    RUNS,
    Column("auc_site_mean", "mean", group="AUC"),
    Column("auc_worst_site", "worst site", group="AUC"),
    Column("auc", "pooled", group="AUC"),
    Column("specificity_at_90", "90 %", group="specificity at sensitivity"),
    Column("specificity_at_95", "95 %", group="specificity at sensitivity"),
    Column("brier", "Brier"),
    Column("ece", "ECE"),
    Column("n", "n", "count"),
)


def _main_row(one: Result) -> Mapping[str, Value]:
    row: dict[str, Value] = {
        "key": one.method,
        "method": one.contender.title,
        "runs": len(one.cells),
        "n": len(one.every()),
    }
    return row | {name: spread(list(runs.values())) for name, runs in one.figures.items()}


def _sites_table(scenario: str, held: Sequence[Result]) -> Table:
    """Return what each method reaches at each site."""
    sites = sorted({site for one in held for site in one.sites})
    return Table(
        name=f"sites-{scenario}",
        caption=f"Scenario {scenario}: each site, at its validation threshold",
        columns=(
            KEY,
            METHOD,
            *(Column(f"{site}_{name}", title, group=site) for site in sites for name, title in AT_SITE.items()),
        ),
        rows=[_sites_row(one) for one in held],
        note=f"{OVER_RUNS.capitalize()}.",
    )


def _sites_row(one: Result) -> Mapping[str, Value]:
    row: dict[str, Value] = {"key": one.method, "method": one.contender.title}
    return row | {
        f"{site}_{name}": spread(list(one.of(metrics.of_site(metrics.ALONE[name], site)).values()))
        for site in one.sites
        for name in AT_SITE
    }


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of what is not NaN."""
    known = [value for value in values if value == value]
    mean = float(np.mean(known)) if known else float("nan")
    return Spread(mean, float(np.std(known, ddof=1)) if len(known) > 1 else None)


def cost_table(comparison: Comparison) -> Table:
    """Return steps, bytes and seconds of a cell of each method, of all scenarios together."""
    return Table(
        name="cost",
        caption="What a cell costs: one method, one run",
        columns=(
            KEY,
            METHOD,
            Column("cells", "cells", "count"),
            Column("steps", "optimiser steps", "count"),
            Column("bytes_up_per_site_and_round", "up", "bytes", "a site and round"),
            Column("bytes_up", "up", "bytes", "in all"),
            Column("bytes_down", "down", "bytes", "in all"),
            Column("seconds", "seconds", "seconds"),
        ),
        rows=[_cost_row(held) for held in comparison.by_method().values()],
        note="Steps of all sites and rounds together. Bytes are payloads of updates and of versions, without transport. Seconds: "
        "training and evaluation on one thread, without making the cohort; mean ± standard deviation over cells.",
    )


def _cost_row(held: Sequence[Result]) -> Mapping[str, Value]:
    cells = [cell for one in held for cell in one.cells.values()]
    federated = held[0].contender.together == "federated"
    row: dict[str, Value] = {"key": held[0].method, "method": held[0].contender.title, "cells": len(cells)}
    row |= {"steps": round(np.mean([one.steps for one in cells])), "seconds": spread([one.seconds for one in cells])}
    if federated:
        row |= {name: float(np.mean([getattr(one, name) for one in cells])) for name in ("bytes_up", "bytes_down")}
        row["bytes_up_per_site_and_round"] = bytes_up(held)
    return row


def bytes_both_ways(held: Sequence[Result]) -> float:
    """Return the mean payload of an update and of what comes down in a round for each site, over all cells."""
    each = [
        (cell.bytes_up + cell.bytes_down) / (len(one.sites) * max(1, len(cell.rounds)))
        for one in held
        for cell in one.cells.values()
    ]
    return float(np.mean(each))


def bytes_up(held: Sequence[Result]) -> float:
    """Return the mean payload of an update, over all cells."""
    each = [cell.bytes_up / (len(one.sites) * max(1, len(cell.rounds))) for one in held for cell in one.cells.values()]
    return float(np.mean(each))


def primary_table(comparison: Comparison, found: primary.Primary) -> Table:
    """Return the primary family."""
    return Table(
        name="primary",
        caption=f"Primary family, fixed in advance: our recipe against two references, {len(found.tests)} tests",
        columns=(
            SCENARIO,
            AGAINST,
            Column("sites", "sites", "text"),
            RUNS,
            Column("ours", "ours"),
            Column("theirs", "reference"),
            Column("over_runs", "over runs", "signed", "difference [95 %]"),
            Column("patients", "of patients", "signed", "difference [95 %]"),
            Column("used", "used", "count", "Wilcoxon over runs"),
            Column("p", "p", "p", "Wilcoxon over runs"),
            Column("least_p", "least possible", "p", "Wilcoxon over runs"),
            Column("holm", f"Holm over {len(found.tests)}", "p", "Wilcoxon over runs"),
            Column("verdict", "verdict", "text"),
        ),
        rows=[_primary_row(one) for one in found.tests],
        note="Balanced accuracy, mean over sites and worst site, at the thresholds chosen on validation cases. Used: runs "
        "whose difference is not 0. Least possible: the p of as many that all differ in one direction. Intervals: Student's over "
        "runs, each a cohort, a training and a test set of its own; and paired bootstrap of patients, "
        f"B = {resampling.DRAWS:,}, of these very models. Tests that are not run yet count in Holm's adjustment with p = 1."
        + dependence(comparison),
        dependent=not comparison.synthetic,
    )


def dependence(comparison: Comparison) -> str:
    """Return what must be said of p values on folds, or nothing on phantoms."""
    if comparison.synthetic:
        return ""
    return (
        " DEPENDENT: runs are folds of one cohort, trained on shared patients and tested on the same ones in every shuffle, so p "
        "values are too small: they describe and prove nothing."
    )


def _primary_row(one: primary.Outcome) -> Mapping[str, Value]:
    planned, tested = one.planned, one.wilcoxon
    return {
        "scenario": planned.scenario,
        "reference": planned.reference,
        "sites": SITES[planned.figure],
        "runs": one.runs,
        "ours": one.ours,
        "theirs": one.theirs,
        "over_runs": one.over_runs,
        "patients": one.patients,
        "used": tested.n if tested else None,
        "p": tested.p if tested else None,
        "least_p": tested.least_p if tested else None,
        "holm": one.holm,
        "verdict": one.verdict,
    }


def no_loss_table(found: primary.Primary) -> Table:
    """Return the differences where sites differ in size alone."""
    return Table(
        name="no-loss",
        caption=f"Homogeneous scenario: the mean's lower bound is to be above {primary.LOSS}",
        columns=(
            AGAINST,
            RUNS,
            Column("mean", "mean, over runs", "signed", "difference [95 %]"),
            Column("patients", "mean, of patients", "signed", "difference [95 %]"),
            Column("worst", "worst site, over runs", "signed", "difference [95 %]"),
            Column("held", "above", "text"),
        ),
        rows=[
            {
                "reference": one.reference,
                "runs": one.runs,
                "mean": one.mean,
                "patients": one.patients,
                "worst": one.worst,
                "held": None if one.held is None else "yes" if one.held else "no",
            }
            for one in found.no_loss
        ],
        note="Our recipe less the reference in balanced accuracy at the validation thresholds. The criterion is the mean's over "
        "runs alone.",
    )
