"""The tables of exploratory comparisons: methods against both references, switches against the method they are put on, and what
was asked afterwards."""

from collections.abc import Iterator, Mapping, Sequence

from experiments.comparison.report.comparing import Pair
from experiments.comparison.report.finished import Comparison
from experiments.comparison.report.main_tables import AGAINST, METHOD, RUNS, dependence
from experiments.comparison.report.resampling import HALF, MEAN, SPECIFICITY, WORST
from experiments.comparison.report.tables import Adjusted, Column, Table, Value
from experiments.comparison.statistics import McNemar


def pair_tables(comparison: Comparison, pairs: Sequence[Pair]) -> Iterator[Table]:
    """Yield the exploratory comparisons of each scenario."""
    for scenario in comparison.scenarios:
        if rows := [_pair_row(one) for one in pairs if (one.kind, one.scenario) == ("method", scenario)]:
            yield _pairs(f"exploratory-{scenario}", f"Exploratory: scenario {scenario}", rows, comparison, pairs)


def switch_table(comparison: Comparison, pairs: Sequence[Pair]) -> Table:
    """Return each switch against the method it is put on."""
    rows = [_pair_row(one) for one in pairs if one.kind == "switch"]
    return _pairs("extensions", "Exploratory: each switch against the method it is put on", rows, comparison, pairs)


def later_table(comparison: Comparison, pairs: Sequence[Pair]) -> Table:
    """Return what was asked when the results were known."""
    rows = [_pair_row(one) for one in pairs if one.kind == "later"]
    return _pairs("asked-afterwards", "Exploratory: asked when the results were known", rows, comparison, pairs)


def _pairs(
    name: str, caption: str, rows: Sequence[Mapping[str, Value]], comparison: Comparison, pairs: Sequence[Pair]
) -> Table:
    count = sum(len(one.p_values) for one in pairs)
    return Table(
        name=name,
        caption=caption,
        columns=PAIR_COLUMNS,
        rows=rows,
        note="Differences with 95 % intervals: paired bootstrap; of the AUC DeLong's of each site and run, averaged. "
        f"In brackets: p by Holm over all {count} exploratory p values. McNemar's test: how many cases the "
        "first alone and the second alone calls right at the validation thresholds, all runs together."
        + dependence(comparison),
        dependent=not comparison.synthetic,
    )


PAIR_COLUMNS = (
    METHOD,
    AGAINST,
    RUNS,
    Column(MEAN, "mean", "signed", "balanced accuracy, validation thresholds"),
    Column(WORST, "worst site", "signed", "balanced accuracy, validation thresholds"),
    Column("wilcoxon", "p of the mean, Wilcoxon", "p", "balanced accuracy, validation thresholds"),
    Column("least_p", "least possible", "p", "balanced accuracy, validation thresholds"),
    Column(HALF, "mean at 0.5", "signed"),
    Column(SPECIFICITY, "specificity", "signed"),
    Column("auc", "difference", "signed", "AUC, mean over sites"),
    Column("delong", "p, DeLong", "p", "AUC, mean over sites"),
    Column("sensitivity_counts", "only one right", "text", "diseased cases"),
    Column("sensitivity", "p, McNemar", "p", "diseased cases"),
    Column("specificity_counts", "only one right", "text", "normal cases"),
    Column("specificity", "p, McNemar", "p", "normal cases"),
    Column("remark", "", "text"),
)


def _pair_row(one: Pair) -> Mapping[str, Value]:
    row: dict[str, Value] = {"method": one.first, "reference": one.second, "runs": one.runs, **one.differences}
    row |= {name: Adjusted(p, one.holm[name]) for name, p in one.p_values.items()}
    return row | {
        "least_p": one.wilcoxon.least_p if one.wilcoxon else None,
        "auc": one.areas.difference if one.areas else None,
        "sensitivity_counts": _counts(one.sensitivity),
        "specificity_counts": _counts(one.specificity),
        "remark": "the same predictions" if one.same else one.blocks or _primary_remark(one),
    }


def _primary_remark(one: Pair) -> str | None:
    return "Wilcoxon: in the primary family" if one.wilcoxon is None and one.runs > 1 else None


def _counts(found: McNemar | None) -> str | None:
    return f"{found.only_first} : {found.only_second}" if found else None
