"""The tables of the status page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aggregator.accounts.tables import size
from aggregator.facts import model
from aggregator.facts.sites import span
from aggregator.web.markup import Child, Markup, join, tag
from shared.contract import ARMS

Cell = Child
LAST_ROUNDS = 12
"""Rows of the table of rounds, newest first."""
COLUMNS = 5
"""Rounds side by side in the table of bytes."""


def stacked(caption: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> Markup:
    """Return a table whose rows become cards on a narrow screen. Each row has a key. The roles say what it is there too, where
    the style sheet takes it out of the layout of tables."""
    head = tag("tr", *(tag("th", name, scope="col", role="columnheader") for name in columns), role="row")
    body = [
        tag("tr", _first(columns[0], cells[0]), *map(_labelled, columns[1:], cells[1:]), role="row", data_key=key)
        for key, cells in rows
    ]
    return tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", head, role="rowgroup"),
        tag("tbody", *body, role="rowgroup"),
        role="table",
        class_="stacked",
    )


def _first(label: str, cell: Cell) -> Markup:
    return tag("th", cell, scope="row", role="rowheader", data_label=label)


def _labelled(label: str, cell: Cell) -> Markup:
    """A cell that says which column it is of, for cards; one without anything in it is left out there."""
    return tag("td", tag("div", cell), role="cell", data_label=label, class_="none" if cell == "-" else None)


def scrolling(caption: str, columns: Sequence[str], rows: Sequence[tuple[Any, Sequence[Cell]]]) -> Markup:
    """Return a table in a box that scrolls sideways, by keyboard too. Each row has a key."""
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = [
        tag("tr", tag("th", cells[0], scope="row"), *(tag("td", c) for c in cells[1:]), data_key=key)
        for key, cells in rows
    ]
    table = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)


def rounds(made: Sequence[Mapping[str, Any]], clock: Callable[[float], Markup]) -> Markup:
    """Return the last rounds, newest first: what each is made of, and whom it is without."""
    columns = ("Round", "Version", "Updates", "Without", "Aggregation error", "Closed", "Took")
    rows = []
    for one in reversed(made[-LAST_ROUNDS:]):
        error, closed = one["aggregation_error"], one["closed_at"]
        without = [f"{site}: {why}" for site, why in one["left_out"].items() if why != "not invited"]
        cells = (
            one["round"],
            f"{one['base_version']} → {one['version']}" if one["version"] else f"from {one['base_version']}",
            f"{one['updates']} of {one['invited']}",
            join(*(tag("div", text) for text in without)) if without else "-",
            "-" if error is None else f"{error:.2%}",
            clock(closed) if closed else one["phase"],
            span(closed - one["opened_at"]) if closed else "-",
        )
        rows.append((one["round"], cells))
    return scrolling("Rounds, newest first", columns, rows)


def arms(told: Sequence[Mapping[str, Any]]) -> Markup:
    """Return what each site that tells of it found in its comparison of models."""
    rows = [
        (one["site"], (one["site"], *(model.arm_words(one["figures"], arm) for arm in ARMS), one["cases"]))
        for one in told
    ]
    return scrolling("AUC / balanced accuracy on cases that the site held out", ("Site", *ARMS, "Cases"), rows)


def curve(told: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Return a curve's points as a table, newest first."""
    shown = [name for name in names if name in told["sites"]]
    points = {name: dict(map(tuple, told["sites"][name])) for name in shown}
    rows = [
        (x, (x, f"{mean:.3f}", *(f"{points[name][x]:.3f}" if x in points[name] else "-" for name in shown)))
        for x, mean, _ in reversed(told["mean"][-LAST_ROUNDS:])
    ]
    return scrolling(f"{told['metric']} by {told['over']}", (told["over"], "mean", *shown), rows)


def communication(told: Mapping[str, Any], names: Sequence[str]) -> Markup:
    """Return the bytes of updates by site and round, and what this replica counted of all messages. `names`: the sites listed."""
    last = told["rounds"][-COLUMNS:]
    counted = told["since"] is not None
    columns = ["Site", *(f"Update {one['round']}" for one in last), "All updates"]
    columns += ["Messages in", "Messages out", "Calls", "Retries"] if counted else []
    rows = []
    by_name = {site["site"]: site for site in told["sites"]}
    for site in (by_name[name] for name in names):
        sizes = (one["updates_bytes"].get(site["site"]) for one in last)
        cells: list[Cell] = [
            site["site"],
            *("-" if found is None else size(found) for found in sizes),
            size(site["updates_bytes"]),
        ]
        if counted:
            of = site["counted"]
            cells += [size(of["bytes_up"]), size(of["bytes_down"]), f"{of['calls']:,}", f"{of['retries']:,}"]
        rows.append((site["site"], cells))
    return scrolling("Bytes by site and round", columns, rows)
