"""The status page as HTML of the facts, so that it can be read without JavaScript. `static/page.js` keeps it new."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aggregator.accounts.tables import size
from aggregator.facts.facts import Facts
from aggregator.web import charts, tables
from aggregator.web.elements import ago, badge, clock, left, none
from aggregator.web.markup import Child, Markup, join, tag

REFRESH_S = 10
"""Where there is no JavaScript the whole page is loaded again so often."""
BAD = frozenset({"silent", "evicted", "quarantined", "revoked"})
GOOD = frozenset({"in", "finished"})
BUSY = frozenset({"training", "uploading"})
EVENTS = 20
MOST_SITES, MOST_LINES = 100, 24
"""Sites that the tables list, and that have a line in a chart. status.json has all of them."""
HELPED = (
    "Whether it helped a hospital (probe, alone, global, dual) each one finds at the end on its own cases, for itself: site-agent "
    "report. Those whose settings say so tell their figures."
)
METRICS = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "loss": "loss",
    "train_loss": "training loss",
}


def page(facts: Facts, trouble: str = "") -> str:
    """Return the whole page. `trouble`: why there are no newer facts than these."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{facts['federation']}: {_brief(facts)}"),
        tag("link", rel="icon", href="static/icon.svg"),
        *(tag("link", rel="stylesheet", href=f"static/{name}.css") for name in ("colours", "page")),
        tag("script", src="static/page.js", defer=True),
        tag("noscript", tag("meta", http_equiv="refresh", content=REFRESH_S)),
    )
    sections = (_round, _sites, _model, _communication, _events)
    body = tag(
        "body",
        tag("a", "Skip to the round", href="#round", class_="skip"),
        _header(facts),
        tag("p", id="notice", role="alert"),
        tag(
            "main",
            tag("p", f"{trouble}. What is shown is of ", ago(facts["at"], facts["at"]), class_="trouble", role="alert")
            if trouble
            else None,
            *(section(facts) for section in sections),
            data_now=facts["at"],
        ),
        _footer(facts),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _brief(facts: Facts) -> str:
    if facts["phase"] == "finished":
        return f"finished after {facts['rounds_closed']} rounds"
    state = "paused" if facts["phase"] == "paused" else facts["round_phase"]
    return f"round {facts['round']} is {state}, {facts['accepted']} of {facts['invited']} in"


def _header(facts: Facts) -> Markup:
    phase = facts["phase"]
    kind = {"running": "busy", "finished": "good"}.get(phase, "bad")
    why = f": {facts['reason']}" if facts["reason"] else ""
    return tag(
        "header",
        tag("p", "Med-DualLoRA, status of a federation", class_="quiet"),
        tag("h1", facts["federation"], " ", badge(f"{phase}{why}", kind)),
        tag("p", _sentence(facts), id="summary", role="status"),
        tag("div", *_tiles(facts), class_="tiles"),
    )


def _sentence(facts: Facts) -> str:
    """What a screen reader is told when it changes; so no times in it."""
    if facts["phase"] == "finished":
        return f"All {facts['rounds_closed']} rounds are closed. The result is version {facts['version']}."
    late = " The deadline has passed." if facts["overdue"] else ""
    return (
        f"Round {facts['round']} is {facts['round_phase']}: {facts['accepted']} of {facts['invited']} sites are in, "
        f"{facts['quorum']} are needed.{late}"
    )


def _tiles(facts: Facts) -> list[Markup]:
    tiles: list[tuple[Child, str]] = [
        (facts["round"], f"round; {facts['rounds_closed']} of {facts['rounds']} are closed"),
        (f"{facts['accepted']} of {facts['invited']}", f"sites in, {facts['quorum']} needed"),
    ]
    if facts["phase"] == "running" and facts["round_phase"] == "open":
        tiles.append(_deadline(facts["deadline_at"], facts["at"]))
    if facts["expected_finish_at"]:
        tiles.append((left(facts["expected_finish_at"], facts["at"]), "until the end, expected"))
    tiles.append((facts["version"], f"version, {facts['digest'][:12]}"))
    return [tag("div", tag("b", value), tag("span", text), class_="tile") for value, text in tiles]


def _deadline(at: float | None, now: float) -> tuple[Child, str]:
    if at is None:
        return "-", "the deadline starts when a site joins"
    return (left(at, now), "until the deadline") if at > now else (ago(at, now), "the deadline passed")


def _section(name: str, title: str, *children: Markup | None) -> Markup:
    return tag(
        "section",
        tag("h2", title, id=f"{name}-title"),
        *children,
        id=name,
        aria_labelledby=f"{name}-title",
        tabindex=-1,
    )


def _round(facts: Facts) -> Markup:
    expected, is_open = facts["round_expected_finish_at"], facts["round_phase"] == "open"
    held = [tag("li", badge(name, "good"), data_key=name) for name in facts["in"][:MOST_SITES]]
    absent = facts["why_missing"] if is_open else facts["model"]["rounds"][-1]["left_out"]
    apart = facts["quarantined"]
    return _section(
        "round",
        f"Round {facts['round']}",
        tag("p", f"{facts['waiting_for']}.") if facts["overdue"] else None,
        tag("p", "The last missing update is expected: ", left(expected, facts["at"]), ".") if expected else None,
        _sampling(facts),
        tag(
            "div",
            tag(
                "div",
                tag("h3", f"In ({facts['accepted']})"),
                tag("ul", *held, class_="chips") if held else none("nobody yet"),
            ),
            tag("div", tag("h3", f"{'Missing' if is_open else 'Without'} ({len(absent)})"), _reasons(absent)),
            tag("div", tag("h3", f"Set aside ({len(apart)})"), _reasons(apart)) if apart else None,
            class_="panels",
        ),
    )


def _reasons(why: Mapping[str, str]) -> Markup:
    listed = list(why.items())[:MOST_SITES]
    items = [tag("li", tag("b", name), f" {words}", data_key=name) for name, words in listed]
    return tag("ul", *items) if items else none("nobody")


def _sampling(facts: Facts) -> Markup | None:
    if not (sampling := facts["sampling"]):
        return None
    return tag(
        "p",
        f"A round asks {sampling['invited']} of {sampling['sites']} sites, drawn with seed {sampling['seed']}.",
        class_="quiet",
    )


def _sites(facts: Facts) -> Markup:
    columns = ("Site", "State", "Progress", "Expected", "Heard from", "Patients", "Certificate", "Last error")
    rows = [(site["site"], list(_site(site, facts["at"]))) for site in _listed(facts)]
    return _section("sites", "Sites", _others(facts), tables.stacked("Sites", columns, rows))


def _listed(facts: Facts) -> Sequence[Facts]:
    """The sites that the page has room for; where it has none for all of them, those that somebody must see to come first."""
    sites = facts["sites"]
    if len(sites) <= MOST_SITES:
        return list(sites)
    return sorted(sites, key=lambda site: (site["standing"] not in BAD, site["last_error"] is None, site["accepted"]))[
        :MOST_SITES
    ]


def _others(facts: Facts) -> Markup | None:
    if len(facts["sites"]) <= MOST_SITES:
        return None
    counts = Counter(site["standing"] for site in facts["sites"])
    told = ", ".join(f"{count} {standing}" for standing, count in counts.most_common())
    return tag(
        "p", f"Of {len(facts['sites'])} sites ({told}) the {MOST_SITES} that need a look most; all are in status.json."
    )


def _site(site: dict[str, Any], now: float) -> Sequence[tables.Cell]:
    where, expected, error = site["standing"], site["expected_finish_at"], site["last_error"]
    kind = "bad" if where in BAD else "good" if where in GOOD else "busy" if where in BUSY else ""
    done = 1.0 if site["accepted"] else site["progress"]
    bar = tag(
        "progress", f"{done:.0%}", max=1, value=round(done, 3), aria_label=f"{site['site']}: share of the training done"
    )
    claimed = site["authenticated"] is False
    return (
        join(tag("b", site["site"]), tag("div", "unauthenticated", class_="quiet") if claimed else None),
        join(badge(where, kind), f" {words}" if (words := site["hold"] or site["reason"]) else None),
        join(bar, " ", tag("span", f"{done:.0%}", class_="quiet")) if site["invited"] else "-",
        left(expected, now) if expected else "-",
        ago(site["last_seen"], now) if site["last_seen"] else "never",
        site["training_patients"] if site["training_patients"] is not None else "-",
        tag("span", site["certificate"].removeprefix("certificate "), class_="bad")
        if site["certificate"]
        else _date(site),
        join(tag("span", error["words"]), " ", tag("span", ago(error["at"], now), class_="quiet")) if error else "-",
    )


def _date(site: dict[str, Any]) -> str:
    ends = site["certificate_expires_at"]
    return f"until {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}" if ends else "-"


def _model(facts: Facts) -> Markup:
    model = facts["model"]
    names = [site["site"] for site in facts["sites"]][:MOST_LINES]
    panels = [
        _curve(curve, names)
        for curve in sorted(model["curves"], key=lambda curve: list(METRICS).index(curve["metric"]))
    ]
    shown = [name for name in names if any(name in curve["sites"] for curve in model["curves"])]
    return _section(
        "model",
        "Model",
        tag("p", f"Figures that sites reported, on their own validation cases. Model: {model['figures_of']}."),
        _legend(names, shown) if panels else none("No figures yet."),
        tag("div", *panels, class_="panels") if panels else None,
        tag("p", HELPED, class_="quiet"),
        tables.arms(model["arms"]) if model["arms"] else None,
        tables.rounds(model["rounds"], clock),
    )


def _curve(curve: dict[str, Any], names: Sequence[str]) -> Markup:
    title = METRICS.get(curve["metric"], curve["metric"])
    sites = [(name, curve["sites"].get(name, ())) for name in names]
    last = curve["mean"][-1]
    said = f"{title} over {curve['over']}s; the mean of {last[2]} sites at {curve['over']} {last[0]} is {last[1]:.3f}"
    return tag(
        "figure",
        tag("figcaption", tag("b", title), f" {last[1]:.3f} ", tag("span", f"mean of {last[2]}", class_="quiet")),
        charts.curves(sites, curve["mean"], said, curve["over"]),
        tag("details", tag("summary", f"{title} in numbers"), tables.curve(curve, names)),
        data_key=curve["metric"],
    )


def _legend(names: Sequence[str], shown: Sequence[str]) -> Markup:
    keys = [tag("li", tag("i", class_=charts.colour(k)), name) for k, name in enumerate(names) if name in shown]
    return tag("ul", tag("li", tag("i", class_="mean"), "mean of the sites"), *keys, class_="keys")


def _communication(facts: Facts) -> Markup:
    told = facts["communication"]
    since = (
        tag(
            "p",
            "Messages and retries are those at this replica since it started, ",
            ago(told["since"], facts["at"]),
            ".",
            class_="quiet",
        )
        if told["since"]
        else None
    )
    return _section(
        "communication",
        "Communication",
        _against_full(told),
        since,
        tables.communication(told, [site["site"] for site in _listed(facts)]),
    )


def _against_full(told: dict[str, Any]) -> Markup | None:
    """One update beside the whole model: the newest there is, of the site that sent most."""
    sizes = [max(one["updates_bytes"].values()) for one in told["rounds"] if one["updates_bytes"]]
    if not sizes or not told["full_model_bytes"]:
        return None
    full = told["full_model_bytes"]
    return tag(
        "p",
        f"An update takes {size(sizes[-1])}; the full model would take {size(full)}, ",
        tag("b", f"{full / sizes[-1]:,.0f} times more"),
        ".",
    )


def _events(facts: Facts) -> Markup:
    items = [
        tag(
            "li",
            clock(one["at"]) if one["at"] else None,
            " ",
            one["words"],
            data_key=one["n"],
            class_=_weight(one["event"]),
        )
        for one in facts["events"][:EVENTS]
    ]
    return _section("events", "Events", tag("ol", *items, class_="events", reversed=True))


def _weight(event: str) -> str | None:
    bad = ("call_refused", "site_evicted", "certificate_revoked", "federation_rolled_back", "unreadable")
    return "bad" if event in bad else None


def _footer(facts: Facts) -> Markup:
    links = (tag("a", "status.json", href="status.json"), ", ", tag("a", "metrics", href="metrics"))
    read = ago(facts["at"], facts["at"])
    return tag(
        "footer", tag("p", "Read ", read, ". The same facts: ", *links, ", aggregator status --watch.", class_="quiet")
    )
