"""The site's report as one HTML file. It names cases: the file is as private as the table it is made from."""

from collections.abc import Mapping
from html import escape
from typing import Any

from shared.contract import ARMS
from shared.page import charts, parts
from shared.page.charts import Bar, Line
from site_agent.report import words
from site_agent.report.words import MEANING, NAMES, SETS, between, score, signed

Facts = Mapping[str, Any]
LABELS = ("normal", "disease")
CHANGED = {"right": "now\u00a0right", "wrong": "now\u00a0wrong"}


def page(facts: Facts) -> str:
    """Return the page of what `facts.gather` found."""
    sections = [_head(facts)]
    if facts["compared"]:
        sections += [_arms(facts["compared"]), _differences(facts["compared"]), _changes(facts["compared"])]
    sections += [_rounds(facts), _facts(facts), _reading(facts)]
    return parts.document(f"Did the federation help? {facts['federation']} (private)", sections)


def _head(facts: Facts) -> str:
    site = f"{facts['site']} in " if "site" in facts else ""
    stands = f"version {facts['adapter']['version']}" if "adapter" in facts else "in progress"
    colour = {"better": "good", "worse": "bad"}.get(facts["verdict"], "")
    about = f"{site}federation {facts['federation']}, {facts['rounds']} rounds, {stands}. {_counts(facts)}"
    answer = f'<p class="answer">{escape(facts["answer"])}</p>' if facts["answer"] else ""
    return "\n".join(
        [
            parts.stamp(f"PRIVATE: {facts['private']}", "private"),
            f'<h1 class="{colour}">{escape(facts["headline"])}</h1>',
            parts.quiet(about),
            *(f'<p class="note">{escape(line)}</p>' for line in facts["missing"]),
            answer,
            _tiles(facts["compared"]),
        ]
    )


def _counts(facts: Facts) -> str:
    if "training_patients" not in facts:
        return f"{len(facts['rounds_here'])} rounds trained here so far."
    return (
        f"{facts['training_patients']} patients trained on, {facts['validation_patients']} for validation, "
        f"{facts['test_patients']} held out."
    )


def _tiles(compared: Facts | None) -> str:
    if not compared:
        return ""
    dual, first = compared["arms"]["dual"], compared["differences"][0]["figures"]
    point, at = _point(compared)
    changes = compared["changes"]
    shown = []
    if dual["auc"]:
        shown.append((score(dual["auc"]["value"]), f"AUC of dual, 95 % interval {between(dual['auc'])}"))
    for name in ("sensitivity", "specificity"):
        if found := dual[point][name]:
            shown.append((f"{found['right']} of {found['of']}", f"{name} of dual {at}, {between(found)}"))
    if first["auc"]:
        shown.append((signed(first["auc"]["value"]), f"AUC over training alone, {_range(first['auc'])}"))
    shown.append(
        (f"+{changes['now_right']} −{changes['now_wrong']}", "cases that turned right, and wrong, against alone")
    )
    return parts.tiles(shown)


def _point(compared: Facts) -> tuple[str, str]:
    return ("at_threshold", "at your threshold") if compared["at"] == "threshold" else ("at_half", "at 0.5")


def _range(found: Facts | None) -> str:
    return f"{signed(found['low'])} to {signed(found['high'])}" if found else "-"


# --- sections -------------------------------------------------------------------------------------------------------------


def _arms(compared: Facts) -> str:
    point, at = _point(compared)
    shown = []
    for name, title in NAMES.items():
        chart = charts.estimates([("", _bars(compared, point, name))], f"{title} of four arms")
        shown.append(parts.panel(title, "", chart))
    count = f"{compared['cases']} cases, {compared['diseased']} with disease and {compared['normal']} normal"
    return (
        f"<h2>Four models on your {SETS[compared['set']]}</h2>\n{parts.quiet(f'{count}. Rates {at}; whiskers are 95 % intervals.')}"
        f"{parts.keys(MEANING)}\n{parts.panels(shown, 'curves')}\n{_arm_table(compared)}"
    )


def _bars(compared: Facts, point: str, name: str) -> list[Bar]:
    bars = []
    for arm in ARMS:
        found = compared["arms"][arm]["auc"] if name == "auc" else compared["arms"][arm][point][name]
        ends = (found["low"], found["high"]) if found else None
        bars.append(Bar(arm, found["value"] if found else None, arm, ends))
    return bars


def _arm_table(compared: Facts) -> str:
    rows = []
    for arm in ARMS:
        found = compared["arms"][arm]
        cells = [arm, _with_interval(found["auc"])]
        for point in filter(None, (found["at_half"], found["at_threshold"])):
            cells += [_with_interval(point[name]) for name in ("balanced_accuracy", "sensitivity", "specificity")]
        if own := found["at_threshold"]:
            cells.append(score(own["threshold"]))
        rows.append(parts.row(cells, "best" if arm == "dual" else ""))
    rates = ["BA", "sens.", "spec."]
    own_columns = [*rates, "threshold"] if compared["at"] == "threshold" else []
    above = '<tr><th colspan="2"></th><th class="over" colspan="3">at probability 0.5</th>'
    above += '<th class="over" colspan="4">at your threshold</th></tr>' if own_columns else "</tr>"
    return parts.table(["arm", "AUC", *rates, *own_columns], rows, above, "stacked")


def _with_interval(found: Facts | None) -> str:
    return f"{score(found['value'])}\n{between(found)}" if found else "-"


def _differences(compared: Facts) -> str:
    groups, sentences = [], []
    for one in compared["differences"]:
        bars = []
        for name, found in one["figures"].items():
            ends = (found["low"], found["high"]) if found else None
            bars.append(Bar(NAMES[name], found["value"] if found else None, one["first"], ends))
        groups.append((f"{one['first']} − {one['second']}", bars))
        for name in ("auc", "balanced_accuracy"):
            if found := one["figures"][name]:
                sentences.append(
                    f"{one['first']} against {one['second']}. {words.interval_words(name, found, compared)}"
                )
    chart = charts.differences(groups, "paired differences between arms with 95 % intervals")
    return (
        "<h2>The difference it made</h2>\n"
        + parts.quiet("The same cases under two models, so that differences are paired. Right of 0 is better for dual.")
        + parts.panels(
            [parts.panel("paired differences", "", chart), f'<div class="panel">{parts.bullets(sentences)}</div>'],
            "pair",
        )
    )


def _changes(compared: Facts) -> str:
    changes, (_, at) = compared["changes"], _point(compared)
    counts = parts.tiles(
        [
            (f"{changes['both_right']}", "right under both"),
            (f"{changes['now_right']}", "wrong alone, right with the federation"),
            (f"{changes['now_wrong']}", "right alone, wrong with the federation"),
            (f"{changes['both_wrong']}", "wrong under both"),
        ]
    )
    rows = [
        parts.row(
            [one["case"], LABELS[one["label"]], f"{one['alone']:.3f}", f"{one['dual']:.3f}", CHANGED[one["now"]]],
            "gained" if one["now"] == "right" else "lost",
            text=(1, 4),
        )
        for one in changes["cases"]
    ]
    table = (
        parts.table(["case", "label", "alone", "dual", "with it"], rows, text=(1, 4))
        if rows
        else parts.quiet("No call changed.")
    )
    thresholds = f"alone {changes['threshold_alone']:.3f}, dual {changes['threshold_dual']:.3f}"
    return (
        f"<h2>Which cases changed</h2>\n{parts.quiet(f'Calls {at} ({thresholds}); the numbers are probabilities of disease.')}"
        f"{counts}{table}"
    )


def _rounds(facts: Facts) -> str:
    history, rounds = facts["history"], facts["rounds_here"]
    if not history and not rounds:
        return "<h2>Over the rounds</h2>\n" + parts.quiet("No round is finished here yet, and no version judged.")
    figures = {entry["version"]: entry["validation"] for entry in history}
    last = max(figures, default=0)
    over = range(1, last + 1)
    lines = [
        Line("AUC", [figures[v]["auc"] if v in figures else None for v in over], "dual"),
        Line(
            "balanced accuracy",
            [figures[v]["at_validation"]["balanced_accuracy"] if v in figures else None for v in over],
            "alone",
        ),
    ]
    count = next(iter(figures.values()))["n"] if figures else 0
    rows = [
        parts.row(
            [one["round"], one["update"], "-" if one["train_loss"] is None else f"{one['train_loss']:.3f}"], text=(1,)
        )
        for one in rounds
    ]
    sides = []
    if figures:
        sides.append(
            parts.panel(
                "validation figures", f"{count} cases", charts.curves(lines, "validation figures by version", "version")
            )
        )
    if rows:
        sides.append(f"<div>{parts.table(['round', 'your update', 'training loss'], rows, text=(1,))}</div>")
    return (
        "<h2>Over the rounds</h2>\n"
        + parts.quiet(
            "Each version of the federated model with your local part, on your validation cases, as the agent judged it then. The "
            "threshold is chosen on the same cases, so balanced accuracy flatters here; with few cases one case is a visible step."
        )
        + parts.panels(sides, "pair")
    )


def _facts(facts: Facts) -> str:
    recipe = facts["recipe"]
    shown = [("federation", f"{facts['federation']}, {facts['rounds']} rounds")]
    if "adapter" in facts:
        adapter = facts["adapter"]
        shown.append(
            (
                "global part",
                f"version {adapter['version']}, {adapter['parameters']:,} numbers, digest {adapter['digest']}",
            )
        )
    shown.append(("contract", facts.get("contract", "not noted in this report")))
    shown.append(("recipe", ", ".join(f"{key} {value}" for key, value in recipe.items())))
    if privacy := facts["privacy"]:
        spent = "nothing yet" if privacy["epsilon"] is None else f"epsilon {privacy['epsilon']:.4g}"
        shown.append(
            ("privacy", f"{spent} of {privacy['budget']:g} at delta {privacy['delta']:g}; noise {privacy['noise']:g}")
        )
    return f"<h2>What this is about</h2>\n{parts.facts(shown)}"


def _reading(facts: Facts) -> str:
    points = [
        *facts["cautions"],
        "The answer goes by the AUC of dual less that of alone: it needs no threshold. An interval that includes 0 says that these "
        "cases cannot tell, not that there is no difference.",
        "global is the jointly trained model with your local part switched off: it keeps its ranking and loses its offset. Judge "
        "it by its AUC.",
        "Intervals: DeLong for AUCs and their differences, Wilson for sensitivity and specificity, Newcombe for their paired "
        "differences; balanced accuracy from those of both classes.",
    ]
    return f"<h2>How to read this</h2>\n{parts.bullets(points)}"
