"""report.html of a demo: one file without scripts and without anything to load, from summary.json alone."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from experiments.demo.progress import score
from experiments.demo.summaries import ARMS, RATES
from experiments.demo.terminal import AGENT_PHASES, MEANING, agent_seconds, size
from shared.page import charts, parts
from shared.page.charts import Bar, Line, Span

Facts = Mapping[str, Any]

Z_95 = 1.96
PURPOSES = {
    "adapter_down": "adapter to the sites",
    "delta_up": "change to the aggregator",
    "evaluation": "validation figures",
    "heartbeat": "waiting, heartbeats",
    "control": "joining",
}
"""What the page calls a purpose of `shared.rpc`, in the order of its table; others come after these, under their own names."""
PHASE_COLOURS = dict(zip(AGENT_PHASES, ("global", "dual", "alone", "none", "full", "probe"), strict=True))


def page(summary: Facts) -> str:
    """Return the whole page."""
    sections = (_head, _held_out, _curves, _communication, _time, _facts, _caveats)
    title = f"Med-DualLoRA demo, seed {summary['seed']} (synthetic)"
    return parts.document(title, [section(summary) for section in sections])


def _head(summary: Facts) -> str:
    mean, cost = summary["mean"], summary["communication"]
    dual, each = mean["dual"], cost["per_site_and_round"]
    tiles = [
        (score(dual["auc"]), f"AUC of dual, mean over {len(summary['sites'])} sites"),
        (score(dual["at_validation"]["balanced_accuracy"]), "balanced accuracy of dual at the sites' thresholds"),
        (_signed(dual["auc"], mean["probe"]["auc"]), "AUC over a head on the frozen model (probe)"),
        (_signed(dual["auc"], mean["alone"]["auc"]), "AUC over training alone"),
        (size(each["bytes_up"] + each["bytes_down"]), "a site and round, both ways"),
        (f"{cost['reduction']:.0f} ×", "fewer bytes than the full model both ways"),
    ]
    sites = ", ".join(f"{name} ({site['cases']})" for name, site in summary["sites"].items())
    return (
        f"{parts.stamp('SYNTHETIC DATA')}\n"
        "<h1>Four scanner vendors fine-tune one cardiac-MRI model together</h1>\n"
        f"<p>Federated dual LoRA, {summary['rounds']} rounds, seed {summary['seed']}. An aggregator and one agent for each site "
        f"ran as separate processes over gRPC with mutual TLS. Training cases: {escape(sites)}. Every image was computed; "
        "no patient was scanned, and no figure here says how the method works on patients.</p>\n"
        f"{parts.tiles(tiles)}"
    )


def _held_out(summary: Facts) -> str:
    panels = []
    for name, site in summary["sites"].items():
        diseased = site["test_patients"] - site["test_healthy"]
        groups = _arm_bars(site["test"], lambda f, d=diseased, h=site["test_healthy"]: intervals(f, d, h))
        about = f"{site['cases']} cases, {site['healthy_share']:.0%} healthy; tested on {site['test_patients']}"
        panels.append(
            parts.panel(name, about, charts.score_bars(groups, f"{name}: AUC and balanced accuracy of four arms"))
        )
    means = _arm_bars(summary["mean"], lambda _: {})
    panels.append(parts.panel("mean", "over the sites", charts.score_bars(means, "mean over the sites")))
    worst = _arm_bars(summary["worst_site"], lambda _: {})
    panels.append(
        parts.panel("worst", "lowest over the sites, each figure on its own", charts.score_bars(worst, "worst site"))
    )
    return (
        "<h2>On held-out cases</h2>\n<p class='quiet'>Bars start at 0.5, what a coin scores. Whiskers: 95 % interval of one "
        "figure from the number of test cases alone. They leave out what another seed would change.</p>\n"
        f"{parts.keys({arm: MEANING[arm] for arm in ARMS})}\n{parts.panels(panels)}\n{_result_table(summary)}"
    )


def _arm_bars(arms: Facts, of: Any) -> list[tuple[str, list[Bar]]]:
    groups: list[tuple[str, list[Bar]]] = [("AUC", []), ("balanced accuracy at the site's threshold", [])]
    for arm in ARMS:
        whiskers = of(arms[arm])
        groups[0][1].append(Bar(arm, arms[arm]["auc"], arm, whiskers.get("auc")))
        accuracy = arms[arm]["at_validation"]["balanced_accuracy"]
        groups[1][1].append(Bar(arm, accuracy, arm, whiskers.get("balanced_accuracy")))
    return groups


def intervals(figures: Facts, diseased: int, healthy: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of the AUC (Hanley and McNeil 1982) and of the balanced accuracy at the site's threshold (two binomials)."""
    auc, own = figures["auc"], figures["at_validation"]
    if auc is None or own["balanced_accuracy"] is None or min(diseased, healthy) < 1:
        return {}
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (diseased - 1) * (q1 - auc**2) + (healthy - 1) * (q2 - auc**2)
    found = {"auc": (auc, variance / (diseased * healthy))}
    rates = ((own["sensitivity"], diseased), (own["specificity"], healthy))
    found["balanced_accuracy"] = (own["balanced_accuracy"], sum(p * (1 - p) / n for p, n in rates) / 4)
    half = {name: Z_95 * math.sqrt(max(variance, 0)) for name, (_, variance) in found.items()}
    return {name: (max(0.0, v - half[name]), min(1.0, v + half[name])) for name, (v, _) in found.items()}


def _result_table(summary: Facts) -> str:
    groups = {name: site["test"] for name, site in summary["sites"].items()}
    groups |= {"mean": summary["mean"], "worst": summary["worst_site"]}
    if reference := summary.get("reference"):
        groups["centralised"] = {"one model": reference["centralised"]["mean"]}
    rows = []
    for name, arms in groups.items():
        for index, (arm, figures) in enumerate(arms.items()):
            own = figures["at_validation"]
            cells = [figures.get("n", ""), score(figures["auc"])]
            cells += [score(point[rate]) for point in (figures["at_half"], own) for rate in RATES]
            cells.append(score(own["threshold"]) if "threshold" in own else "")
            style = " ".join(filter(None, ("first" if index == 0 else "", "best" if arm == "dual" else "")))
            rows.append(parts.row([name if index == 0 else "", arm, *cells], style))
    columns = ["site", "arm", "cases", "AUC", *("BA", "sens.", "spec.") * 2, "threshold"]
    above = (
        '<tr><th colspan="4"></th><th class="over" colspan="3">threshold 0.5</th>'
        '<th class="over" colspan="4">threshold of the site</th></tr>'
    )
    return parts.table(columns, rows, above, "arms")


def _curves(summary: Facts) -> str:
    panels = []
    for name, site in summary["sites"].items():
        history = site["history"]
        lines = [
            Line("AUC", [entry["auc"] for entry in history], "dual"),
            Line("balanced accuracy", [entry["at_validation"]["balanced_accuracy"] for entry in history], "alone"),
        ]
        about = f"{site['validation_patients']} validation cases"
        panels.append(
            parts.panel(name, about, charts.curves(lines, f"{name}: validation figures by version", "version"))
        )
    return (
        "<h2>Round by round</h2>\n<p class='quiet'>Each new version of the global adapter, with the site's own local part, on the "
        "site's validation cases. They are few: a step of one case is a visible step. The threshold is chosen on the same cases, "
        f"so balanced accuracy flatters here.</p>\n{parts.panels(panels, 'curves')}"
    )


def _communication(summary: Facts) -> str:
    cost = summary["communication"]
    each, full, total = cost["per_site_and_round"], cost["full_model_bytes"], cost["total"]
    bars = [
        ("this federation, up", each["bytes_up"], size(each["bytes_up"]), "dual"),
        ("this federation, down", each["bytes_down"], size(each["bytes_down"]), "global"),
        ("full model, up", full, size(full), "full"),
        ("full model, down", full, size(full), "full"),
    ]
    purposes = [
        parts.row([PURPOSES.get(name, name), f"{row['bytes_up']:,}", f"{row['bytes_down']:,}"])
        for name in dict.fromkeys([*PURPOSES, *cost["by_purpose"]])
        if (row := cost["by_purpose"].get(name))
    ]
    rounds = sorted({int(number) for site in cost["bytes_up"].values() for number in site})
    by_round = [
        parts.row([f"{site}, {way}", *(f"{cost[f'bytes_{way}'][site].get(str(number), 0):,}" for number in rounds)])
        for site in cost["bytes_up"]
        for way in ("up", "down")
    ]
    wire = cost["wire_model"]
    return (
        "<h2>Communication</h2>\n<p>Mean of one site and round, all messages counted, against sending every weight of the model. "
        f"Linear scale: the full model both ways is {cost['reduction']:.0f} times as much. In all {size(total['bytes'])} for "
        f"{cost['updates']} updates.</p>\n"
        f'<div class="panels pair"><div class="panel">{charts.length_bars(bars, "bytes of one site and round")}</div>'
        f"{parts.table(['bytes of messages', 'up', 'down'], purposes)}</div>\n"
        f"<p class='quiet'>Exact sizes of serialised messages: {cost['calls_agreed']} of {cost['calls_compared']} calls have the "
        f"same bytes in the aggregator's and the agents' logs. With TLS and HTTP/2 the wire carries, by a measured model, about "
        f"{size(wire['wire_up'])} up and {size(wire['wire_down'])} down. How many times less depends on the model: this one is "
        "small.</p>\n<details><summary>Every site and round</summary>"
        f"{parts.table(['bytes', *('start' if n == 0 else f'round {n}' for n in rounds)], by_round)}</details>"
    )


def _time(summary: Facts) -> str:
    seconds = summary["seconds"]
    phases = [
        (name, [Span(p["began"], p["wall"], "dual", name)], f"{p['wall']:.1f} ({p['cpu']:.1f})")
        for name, p in seconds["phases"].items()
    ]
    agents = []
    for name, own in seconds["sites"].items():
        spans, at = [], 0.0
        for phase, value in agent_seconds(own).items():
            spans.append(Span(at, value, PHASE_COLOURS[phase], f"{phase}: {value:.1f} s"))
            at += value
        agents.append((name, spans, f"{own['wall']:.1f} ({own['cpu']:.1f})"))
    keys = "".join(f'<li><i class="{colour}"></i>{phase}</li>' for phase, colour in PHASE_COLOURS.items())
    return (
        f"<h2>Time</h2>\n<p>{seconds['total']:.1f} seconds on the clock, {seconds['cpu']:.1f} of CPU; one thread for each process. "
        "Beside each bar: seconds, and CPU seconds in brackets.</p>\n"
        '<div class="panels pair">'
        f'<div class="panel"><h3>Phases</h3>{charts.timeline(phases, "phases over time")}</div>'
        f'<div class="panel"><h3>Agents</h3>{charts.timeline(agents, "agents by kind of work")}<ul class="keys">{keys}</ul>'
        '<span class="quiet">Summed by kind, not in the order they happened. comparing: training alone and fitting the probe, '
        "for the arms above; other: loading Python and its libraries, joining, sending, ending.</span></div></div>"
    )


def _facts(summary: Facts) -> str:
    adapter, contract, settings = summary["adapter"], summary["contract"], summary["settings"]
    patients = ", ".join(f"{site} {number}" for site, number in contract["training_patients"].items())
    recipe = ", ".join(f"{key} {value}" for key, value in contract["recipe"].items())
    phantom = ", ".join(f"{key} {value}" for key, value in settings["phantom"].items())
    facts = [
        ("federation", f"{contract['federation']}, {summary['rounds']} rounds, quorum {contract['quorum']}"),
        ("weight of a site", f"its training patients: {patients}"),
        (
            "global adapter",
            f"{adapter['parameters']:,} numbers, {adapter['bytes']:,} bytes, blocks {adapter['blocks']}",
        ),
        ("final digest", f"{adapter['digest']} (version {adapter['version']}, the same at every site)"),
        ("version 0", adapter["initial_digest"]),
        ("base model", adapter["base_model_sha256"]),
        ("contract", contract["sha256"]),
        ("recipe", recipe),
        ("frames", f"{settings['frames']}: ED and ES as two channels, each with a kernel of its own"),
        (
            "recomputed",
            f"{summary['verified_rounds']} of {summary['rounds']} rounds, from stored updates to the same bytes",
        ),
        ("phantom", f"scale {settings['scale']}, {settings['test_cases']} test cases a site, {phantom}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in summary["versions"].items())),
    ]
    return f"<h2>What was agreed and what came of it</h2>\n{parts.facts(facts)}"


def _caveats(summary: Facts) -> str:
    tested = next(iter(summary["sites"].values()))["test_patients"]
    points = [
        "Synthetic phantoms with invented vendor styles. They show that the system works, not how well the method does on "
        "patients or on these vendors' scanners.",
        f"One seed and {tested} test cases a site. A difference that is not there in several seeds is not a finding: run more "
        "seeds and put them side by side with python -m experiments.table.",
        "alone trains as many steps with as many low-rank numbers as dual, but with fewer cases. Plain federated LoRA without "
        "local parts is not among the arms, so what the local part adds to it is not shown here.",
        "global is the jointly trained model with its local part switched off: it keeps its ranking and loses its offset. Judge "
        "it by its AUC or at the site's threshold, not at 0.5.",
        "A site's threshold comes from its validation cases and is shrunk towards 0.5 where they are few.",
        "Local adapters never leave a site. This is about parameters: a global change is trained on local data and may hold "
        "information about it.",
    ]
    return f"<h2>How to read this</h2>\n{parts.bullets(points)}"


def _signed(value: float | None, other: float | None) -> str:
    return "-" if value is None or other is None else f"{value - other:+.3f}"
