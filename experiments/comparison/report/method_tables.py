"""Tables of what was compared: each method with its paper and what leaves a site, the settings tried, switches, new vendors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.comparison import metrics, tuning
from experiments.comparison.contenders import CONTENDERS, Contender
from experiments.comparison.extensions import PLUS, SWITCHES, everyone
from experiments.comparison.report.finished import Comparison
from experiments.comparison.report.main_tables import KEY, METHOD, OVER_RUNS, RUNS, spread
from experiments.comparison.report.tables import Column, Table, Value

TOGETHER = {
    "federated": "sites, by rounds",
    "alone": "nobody: a model for each site",
    "pooled": "one model on all cases",
}


def methods_table(comparison: Comparison) -> Table:
    """Return the methods that have a finished cell, without extensions."""
    there = [key for key in comparison.by_method() if PLUS not in key]
    return Table(
        name="methods",
        caption="Methods: paper, formula, what leaves a site in every round and what never does",
        columns=(
            METHOD,
            Column("key", "key", "text"),
            Column("group", "group", "text"),
            Column("source", "paper", "words"),
            Column("formula", "formula", "words"),
            Column("sent", "sent", "words"),
            Column("stays", "stays", "words"),
            Column("together", "trained together", "words"),
            Column("setting", "chosen setting", "words"),
        ),
        rows=[_method_row(comparison, one) for one in everyone() if one.key in there],
        note="W0: frozen weight; dW = s B A, s = alpha / r; subscripts g and l: global and local; w_k: weight of site k.",
    )


def _method_row(comparison: Comparison, one: Contender) -> Mapping[str, Value]:
    return {
        "method": one.title,
        "key": one.key,
        "group": one.group,
        "source": one.source,
        "formula": one.formula,
        "sent": one.sent,
        "stays": one.stays,
        "together": TOGETHER[one.together],
        "setting": _chosen(comparison, one.key),
    }


def _chosen(comparison: Comparison, key: str) -> str | None:
    method = tuning.origin(key)
    held = comparison.tuned.get(method)
    return _in_words(method, held, held["chosen"]) if held else None


def _in_words(method: str, held: Mapping[str, Any], number: int) -> str:
    """Return a setting that was tried as its method says it now, or as it was written if the method has none like it."""
    what = str(held["settings"][number]["what"])
    said = {setting.text: one.said(setting) for one in CONTENDERS if one.key == method for setting in one.settings}
    return said.get(what, what)


def tuning_table(comparison: Comparison) -> Table:
    """Return all settings that were tried."""
    known = {one.key: one for one in everyone()}
    return Table(
        name="tuning",
        caption="Settings tried on the tuning cohort, the same number for every method at most",
        columns=(
            KEY,
            METHOD,
            Column("what", "setting", "text"),
            *(Column(name, TUNED_BY.get(name, name)) for name in tuning.FIGURES_USED),
            Column("merit", "mean of both"),
            Column("chosen", "chosen", "text"),
        ),
        rows=[
            {
                "key": key,
                "method": known[key].title if key in known else key,
                "what": _in_words(key, held, number),
                **{name: setting[name] for name in tuning.FIGURES_USED},
                "merit": float(np.mean([setting[name] for name in tuning.FIGURES_USED])),
                "chosen": _choice(known.get(key), number) if number == held["chosen"] else None,
            }
            for key, held in comparison.tuned.items()
            for number, setting in enumerate(held["settings"])
        ],
        note="One cell a setting, on a cohort that no run sees. Edge: of numbers of which the highest or the lowest was chosen "
        "(of two that is always so) a better one may lie beyond. Before that our recipe was looked for in pilots, on other "
        "cohorts; docs/comparison.md says how."
        if comparison.synthetic
        else "One cell a setting, on the held-out fold of a further shuffle: its patients are held out in other folds too.",
    )


def _choice(one: Contender | None, number: int) -> str:
    found = tuning.edge(one, number) if one else ""
    return f"yes; edge: {found}" if found else "yes"


TUNED_BY = {
    "auc_site_mean": "AUC, mean over sites",
    "balanced_accuracy_validation_site_mean": "balanced accuracy, mean over sites",
}


def switches_table(comparison: Comparison) -> Table:
    """Return what the names of the extensions mean."""
    used = {name for key in comparison.by_method() for name in key.split(PLUS)[1:]}
    return Table(
        name="switches",
        caption="Switches: each alone on top of a tuned method, one value chosen before it was tried",
        columns=(Column("name", "name", "text"), Column("title", "what it changes", "text")),
        rows=[{"name": name, "title": one.title} for name, one in SWITCHES.items() if name in used],
    )


def unseen_table(comparison: Comparison) -> Table:
    """Return figures of vendors that the federation did not have."""
    rows: Sequence[Mapping[str, Value]] = [
        {
            "key": one.method,
            "method": one.contender.title,
            "runs": len(one.cells),
            "n": len(one.every()),
            **{name: spread(list(one.figures[name].values())) for name in metrics.FIGURES},
        }
        for one in comparison.unseen
    ]
    accuracy = "balanced accuracy at 0.5"
    return Table(
        name="unseen",
        caption="A vendor that no site has: every vendor left out in turn, then adapted to a few of its cases",
        columns=(
            KEY,
            METHOD,
            RUNS,
            Column("balanced_accuracy_half_site_mean", "mean over vendors", group=accuracy),
            Column("balanced_accuracy_half_worst_site", "worst vendor", group=accuracy),
            Column("sensitivity_half", "sensitivity"),
            Column("specificity_half", "specificity"),
            Column("auc_site_mean", "AUC, mean over vendors"),
            Column("n", "n", "count"),
        ),
        rows=rows,
        note=f"0 shots: the global part alone. k shots: a new local part trained on k cases. {OVER_RUNS.capitalize()}.",
    )
