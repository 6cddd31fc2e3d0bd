"""The federation's report as one HTML file, for everybody in the consortium: it holds what sites told, and nothing of a patient."""

import statistics
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aggregator.accounts.tables import DIRECTIONS, probed, size
from aggregator.facts.model import arm_words
from shared.contract import ARMS
from shared.page import charts, parts
from shared.page.charts import Line

Facts = Mapping[str, Any]
SHOWN = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
NOT_INVITED = "not invited"
MOST_PANELS = 12
"""Sites up to which each has curves of its own; of more, a table has the last figures."""


def page(facts: Facts) -> str:
    """Return the page of what `facts.gather` found."""
    sections = (_head, _sites, _agreed, _rounds, _model, _communication, _belief, _reading)
    return parts.document(f"Federation {facts['federation']}", [section(facts) for section in sections])


def _head(facts: Facts) -> str:
    stands = facts["phase"] + (f" ({facts['reason']})" if facts["reason"] else "")
    made = f"Report of {_time(facts['made_at'])}, by med-duallora {facts['software']}"
    version = f"version {facts['version']}, digest {facts['digest']}"
    warning = (
        "" if _is_sound(facts) else '<p class="note bad">Something does not agree: see “Can it be believed” below.</p>'
    )
    return (
        f"<h1>Federation {escape(facts['federation'])}: {escape(stands)}</h1>\n{parts.quiet(f'{made}: {version}.')}\n{warning}"
        f'<p class="answer">{escape(summary(facts))}</p>\n{parts.tiles(_tiles(facts))}'
    )


def summary(facts: Facts) -> str:
    """Return what came of the federation so far, in two or three sentences."""
    taking_part = [site for site in facts["sites"] if site["rounds_in"]]
    patients = sum(site["training_patients"] or 0 for site in taking_part)
    told = [
        f"{len(taking_part)} of {len(facts['sites'])} sites with {patients:,} training patients made version {facts['version']}; "
        f"{facts['rounds_closed']} of {facts['rounds']} rounds are closed."
    ]
    curve = _curve(facts, "auc")
    means = (
        [point for point in curve["mean"] if point[0] <= facts["version"]] if curve else []
    )  # a rollback leaves some behind
    if len(means) > 1:
        (first, before, _), (last, after, count) = means[0], means[-1]
        told.append(
            f"The mean AUC that sites reported on their own validation cases was {before:.3f} for version {first} and {after:.3f} "
            f"for version {last} ({count} sites)."
        )
    told.append(_recomputed(facts["verified"]))
    return " ".join(told)


def _recomputed(verified: Facts | None) -> str:
    if verified is None:
        return "Rounds were not recomputed for this report: aggregator verify does it."
    if not verified["ok"]:
        return f"{len(verified['differences'])} finding(s) in recomputing the rounds."
    fresh = verified["closed"] - verified["purged"]
    words = f"{fresh} of {verified['closed']} closed rounds recompute from the stored updates"
    words += f", {verified['rounding']} of them to rounding" if verified["rounding"] else " to the same bytes"
    return f"{words}; of {verified['purged']} the update bytes are purged." if verified["purged"] else f"{words}."


def _tiles(facts: Facts) -> list[tuple[str, str]]:
    sites, cost = facts["sites"], facts["communication"]
    patients = sum(site["training_patients"] or 0 for site in sites)
    shown = [
        (str(len(sites)), f"sites, {patients:,} training patients declared"),
        (f"{facts['rounds_closed']} of {facts['rounds']}", "rounds closed"),
        (str(cost["updates"]), f"updates accepted, {size(cost['updates_bytes'])} in all"),
    ]
    if cost["times_less_up"]:
        shown.append((f"{cost['times_less_up']:.0f} ×", "fewer bytes up than the full model in each update"))
    if curve := _curve(facts, "auc"):
        shown.append((f"{curve['mean'][-1][1]:.3f}", f"mean AUC reported of version {curve['mean'][-1][0]}"))
    return shown


def _curve(facts: Facts, metric: str) -> Facts | None:
    return next((curve for curve in facts["curves"] if curve["metric"] == metric and curve["mean"]), None)


def _is_sound(facts: Facts) -> bool:
    return bool(facts["audit"]["ok"] and (facts["verified"] is None or facts["verified"]["ok"]))


def left_out(reasons: Mapping[Any, str]) -> str:
    """Return who, or which rounds, for which reason; where sites are drawn, how many were not drawn is enough."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(str(name))
    return "; ".join(_group(why, names) for why, names in by_reason.items()) or "-"


def _group(why: str, names: Sequence[str]) -> str:
    return f"{len(names)} {why}" if why == NOT_INVITED else f"{', '.join(names)}: {why}"


# --- sections -------------------------------------------------------------------------------------------------------------


def _sites(facts: Facts) -> str:
    rows = []
    for site in facts["sites"]:
        rows.append(
            parts.row(
                [
                    site["site"],
                    site["phase"] + (f": {site['reason']}" if site["reason"] else ""),
                    "-" if site["training_patients"] is None else f"{site['training_patients']:,}",
                    "-" if site["share"] is None else f"{site['share']:.1%}",
                    len(site["rounds_in"]),
                    f"{site['updates_bytes']:,}",
                    left_out(site["rounds_out"]),
                    {True: "certificate", False: "NO certificate", None: "never heard from"}[site["authenticated"]],
                    f"{site['software'] or '-'} / {site['protocol'] or '-'}",
                ],
                text=(1, 6, 7),
            )
        )
    columns = [
        "site",
        "standing",
        "patients",
        "share",
        "rounds in",
        "bytes up",
        "left out of",
        "named by",
        "software / protocol",
    ]
    return f"<h2>Who took part</h2>\n{parts.table(columns, rows, text=(1, 6, 7))}"


def _agreed(facts: Facts) -> str:
    agreed = facts["contract"]
    digests = [
        ("contract", agreed["sha256"]),
        ("version 0", agreed["adapter_digest"]),
        ("base model", agreed["base_model_sha256"]),
        ("recipe", ", ".join(f"{name} {value}" for name, value in agreed["recipe"].items())),
    ]
    return f"<h2>What was agreed</h2>\n{parts.bullets(agreed['words'])}\n{parts.facts(digests)}"


def _rounds(facts: Facts) -> str:
    rows = []
    for one in facts["rounds_so_far"]:
        norms = sorted(one["update_norms"].values())
        aside = dict.fromkeys(one["set_aside"], "set aside") | one["left_out"]
        rows.append(
            parts.row(
                [
                    one["round"],
                    one["phase"],
                    f"{one['base_version']} → {one['version']}" if one["version"] else f"{one['base_version']}",
                    f"{len(one['weights']) or len(one['accepted'])} of {len(one['invited'])}",
                    left_out(aside),
                    _number(one["aggregation_error"]),
                    f"{norms[0]:.3g} / {statistics.median(norms):.3g} / {norms[-1]:.3g}" if norms else "-",
                    f"{_number(one['cosine_least'])} / {_number(one['cosine_median'])}"
                    if one["cosine_least"] is not None
                    else "-",
                    _time(one["closed_at"]),
                ],
                text=(1, 4),
            )
        )
    columns = [
        "round",
        "state",
        "version",
        "updates",
        "left out, and why",
        "aggregation error",
        "update norms",
        "cosines",
        "closed",
    ]
    about = (
        "Aggregation error: what averaging factors instead of products costs, as a share. Update norms: least / median / largest. "
        "Cosines between two sites' changes: least / median; near 1 they agree, near 0 they have nothing in common."
    )
    return f"<h2>Rounds</h2>\n{parts.quiet(about)}\n{parts.table(columns, rows, text=(1, 4))}"


def _model(facts: Facts) -> str:
    head = "<h2>How the model did</h2>\n"
    if not facts["curves"]:
        return head + parts.quiet(f"No figures were reported. Figures of: {facts['figures_of']}.")
    about = (
        f"As sites reported it, each on its own validation cases, of {facts['figures_of']}. Thresholds were chosen on the same "
        "cases, which flatters all but the AUC. Means are plain means over the sites that reported."
    )
    shown = []
    for metric, name in SHOWN.items():
        if curve := _curve(facts, metric):
            line = Line("mean over sites", _dense([(x, value) for x, value, _ in curve["mean"]]), "dual")
            shown.append(parts.panel(name, "", charts.curves([line], f"mean {name} by version", "version")))
    of_sites = _site_panels(facts) if len(facts["sites"]) <= MOST_PANELS else ""
    return f"{head}{parts.quiet(about)}\n{parts.panels(shown, 'curves')}\n{of_sites}{_last_figures(facts)}\n{_arms(facts['arms'])}"


def _arms(told: Sequence[Facts]) -> str:
    """What sites found in their own comparison of models, of those that tell it."""
    if not told:
        return parts.quiet(
            "Whether it helped a hospital each one finds for itself at the end (site-agent report). None tells its figures."
        )
    rows = [
        parts.row([one["site"], *(arm_words(one["figures"], arm) for arm in ARMS), one["cases"]], text=range(1, 5))
        for one in told
    ]
    about = (
        "Did it help? AUC / balanced accuracy on cases that each site held out of everything, at its own threshold: a head on the "
        "frozen base model (probe), its own adapter trained alone, the federated model without its own part (global) and with it "
        "(dual). Only sites that agreed to tell."
    )
    return f"{parts.quiet(about)}\n{parts.table(['site', *ARMS, 'cases'], rows, text=range(1, 5))}"


def _site_panels(facts: Facts) -> str:
    area, accuracy = _curve(facts, "auc"), _curve(facts, "balanced_accuracy")
    shown = []
    for site in facts["sites"]:
        lines = [
            Line(name, _dense(curve["sites"].get(site["site"], [])), colour)
            for name, curve, colour in (("AUC", area, "dual"), ("balanced accuracy", accuracy, "alone"))
            if curve
        ]
        if site["evaluations"] and lines:
            cases = site["evaluations"][-1]["cases"]
            chart = charts.curves(lines, f"{site['site']}: reported figures by version", "version")
            shown.append(parts.panel(site["site"], f"{cases} validation cases", chart))
    return parts.panels(shown, "curves")


def _dense(points: Sequence[Sequence[float]]) -> list[float | None]:
    """Values at 1, 2, ... of (x, value) pairs; None where there is none."""
    found = {int(x): value for x, value, *_ in points}
    return [found.get(x) for x in range(1, max(found, default=0) + 1)]


def _last_figures(facts: Facts) -> str:
    loss = _curve(facts, "train_loss")
    rows = []
    for site in facts["sites"]:
        last = site["evaluations"][-1] if site["evaluations"] else None
        losses = loss["sites"].get(site["site"], []) if loss else []
        figures = last["metrics"] if last else {}
        cells = [site["site"], *(last[name] if last else "-" for name in ("version", "cases"))]
        cells += [_number(figures.get(metric), ".3f") for metric in SHOWN]
        rows.append(parts.row([*cells, f"{losses[0][1]:.3f} → {losses[-1][1]:.3f}" if losses else "-"]))
    return parts.table(["site", "version", "cases", *SHOWN.values(), "training loss"], rows)


def _communication(facts: Facts) -> str:
    cost = facts["communication"]
    told = f"{cost['updates']} updates with {cost['updates_bytes']:,} bytes were accepted."
    if cost["full_model_bytes"]:
        told += f" The full model in their place would be {size(cost['full_model_bytes'] * cost['updates'])}."
    unknown = parts.quiet("Downloads and calls are not in the store: give logs (--log) for every byte of every call.")
    logged = cost["from_logs"]
    return f"<h2>Communication</h2>\n<p>{escape(told)}</p>\n{_logged(logged) if logged else unknown}"


def _logged(logged: Facts) -> str:
    rows = [
        parts.row(
            [
                one["purpose"].replace("_", " "),
                f"{one['calls']:,}",
                *(f"{one[f'{what}_{way}']:,}" for way in DIRECTIONS for what in ("bytes", "repeated_bytes")),
            ],
            "best" if one["purpose"] == "all" else "",
        )
        for one in (*logged["by_purpose"], {"purpose": "all", **logged["total"]})
    ]
    both, wire = logged["reconciliation"], logged["wire_model"]
    sent = f"{size(wire['wire_up'])} up, {size(wire['wire_down'])} down"
    told = f"Messages of every kind, from the logs. On the wire, modelled: {sent}."
    if both:
        told += f" {both['agreed']:,} of {both['compared']:,} calls have the same bytes in both sides' logs."
    if probes := logged["probes"]:
        told += f" {probed(probes)}"
    columns = ["purpose", "calls", "bytes up", "of them repeated", "bytes down", "of them repeated"]
    return f"{parts.quiet(told)}\n{parts.table(columns, rows)}"


def _belief(facts: Facts) -> str:
    verified, audit = facts["verified"], facts["audit"]
    told = [_recomputed(verified), *(verified["differences"] if verified else [])]
    if audit["ok"]:
        events = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in audit["events"].items())
        told.append(f"The audit journal's {audit['lines']} lines hold together ({events}); head {audit['head']}.")
    else:
        told.append(f"The audit journal DIFFERS: {audit['finding']}.")
    rows = [parts.row([one["n"], _time(one["at"]), one["words"]], text=(1, 2)) for one in audit["steered"]]
    happened = (
        f"<h3>Evictions, rollbacks, pauses, revocations, refusals</h3>\n{parts.table(['line', 'time', 'what'], rows, text=(1, 2))}"
        if rows
        else parts.quiet("No eviction, rollback, pause, revocation or refused call is in the journal.")
    )
    return f"<h2>Can it be believed</h2>\n{parts.bullets(told)}\n{parts.bullets(facts['security'])}\n{happened}"


def _reading(facts: Facts) -> str:
    del facts
    return "<h2>What this does not say</h2>\n" + parts.bullets(
        [
            "Whether federation helped a hospital that does not tell: how its model compares with one trained alone, on cases it "
            "held out, each site finds for itself (site-agent report).",
            "How certain the figures are: validation sets may be small, and only their sizes are known here. A step of one case is "
            "a visible step.",
            "Patients are as each site declared them.",
            "Times, reasons and reported figures are as they were written: recomputing rounds does not check them.",
        ]
    )


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _time(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d\u00a0%H:%M\u00a0UTC", time.gmtime(seconds)) if seconds else "-"
