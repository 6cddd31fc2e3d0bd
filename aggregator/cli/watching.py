"""`aggregator status --watch`: a live picture on a terminal; a line whenever something has changed where it is piped."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from aggregator.cli.output import moment
from aggregator.cli.status import headline, print_status, trained
from aggregator.cli.stored import opened_store

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from aggregator.facts.facts import Facts

EVERY_S = 2.0
TICK_S = 0.25
EVENTS = 6
MOST_MISSING = 8
STYLES = {
    "in": "green",
    "finished": "green",
    "held up": "yellow",
    "training": "cyan",
    "uploading": "cyan",
    "revoked": "red",
    "silent": "red",
    "evicted": "red",
    "quarantined": "red",
}


def watch_store(store: str, as_json: bool) -> None:
    """Watch the federation of a store; one that is not there yet, or whose database is away, is waited for. Ctrl-C ends it."""
    from aggregator.facts import facts, material

    try:
        _wait_for(store)
    except KeyboardInterrupt:
        return
    with opened_store(store) as (opened, name):
        watch(lambda: facts.make(opened.read(material.read, name), time.time()), as_json)


def _wait_for(store: str) -> None:
    from aggregator.errors import NoStore
    from shared.errors import StoreUnavailable

    said = ""
    while True:
        try:
            with opened_store(store):
                return
        except (NoStore, StoreUnavailable) as error:
            if str(error) != said:
                said = str(error)
                typer.echo(f"waiting: {said}; Ctrl-C ends the waiting", err=True)
        time.sleep(EVERY_S)


def watch(read: "Callable[[], Facts]", as_json: bool) -> None:
    """Show the facts until the federation is finished, or until Ctrl-C. While the store is away, say so and go on."""
    from rich.console import Console

    console = Console()
    try:
        if as_json:
            _each(read, lambda found: typer.echo(json.dumps(found, allow_nan=False)))
        elif console.is_terminal:
            _live(read, console)
        else:
            _changes(read)
    except KeyboardInterrupt:
        return


def _each(read: "Callable[[], Facts]", show: "Callable[[Facts], None]") -> None:
    from shared.errors import StoreUnavailable

    while True:
        try:
            found = read()
            show(found)
            if found["phase"] == "finished":
                return
        except StoreUnavailable as error:
            typer.echo(f"waiting: {error}", err=True)
        time.sleep(EVERY_S)


def _changes(read: "Callable[[], Facts]") -> None:
    """Print the glance once, then a line for each change of it, and the glance again at the end."""
    last = ""

    def show(found: "Facts") -> None:
        nonlocal last
        line = headline(found)
        if not last or found["phase"] == "finished":
            print_status(found)
        elif line != last:
            typer.echo(line)
        last = line

    _each(read, show)


def _live(read: "Callable[[], Facts]", console: object) -> None:
    from rich.console import Console
    from rich.live import Live

    from shared.errors import StoreUnavailable

    assert isinstance(console, Console)
    found, trouble, read_at = read(), "", time.monotonic()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            if time.monotonic() - read_at >= EVERY_S:
                try:
                    found, trouble = read(), ""
                except StoreUnavailable as error:
                    trouble = str(error)
                read_at = time.monotonic()
            live.update(picture(found, time.time(), trouble), refresh=True)
            if found["phase"] == "finished":
                return
            time.sleep(TICK_S)


def picture(facts: "Facts", now: float, trouble: str = "") -> "RenderableType":
    """Return the facts as they are drawn. `trouble`: why there are no newer ones."""
    from rich.console import Group
    from rich.text import Text

    from aggregator.facts.model import arm_words
    from aggregator.facts.sites import span

    parts: list[RenderableType] = [
        Text.assemble(
            (facts["federation"], "bold"), f"  {facts['phase']}", f"  {facts['reason']}" if facts["reason"] else ""
        )
    ]
    if trouble:
        parts.append(Text(f"{trouble}; this is of {span(now - facts['at'])} ago", style="red"))
    parts.append(
        Text(
            f"round {facts['round']} {facts['round_phase']} ({facts['rounds_closed']} of {facts['rounds']} closed): "
            f"{facts['accepted']} of {facts['invited']} in, {facts['quorum']} needed{_left(facts, now)}"
        )
    )
    parts += [Text(""), _sites(facts, now), Text("")]
    parts += [
        Text(f"{site['site']}, {span(now - error['at'])} ago: {error['words']}", style="red")
        for site in facts["sites"]
        if (error := site["last_error"])
    ]
    if curves := facts["model"]["curves"]:
        figures = (f"{one['metric']} {one['mean'][-1][1]:.3f}" for one in curves)
        parts.append(Text(f"version {facts['version']}, means of the sites: {', '.join(figures)}"))
    why = facts["why_missing"]
    parts += [Text(f"missing: {name}, {why[name]}") for name in facts["missing"][:MOST_MISSING]]
    if len(facts["missing"]) > MOST_MISSING:
        parts.append(Text(f"and {len(facts['missing']) - MOST_MISSING} more are missing"))
    for one in facts["model"]["arms"]:
        told = ", ".join(f"{arm} {arm_words(one['figures'], arm)}" for arm in one["figures"])
        parts.append(Text(f"{one['site']}, AUC / balanced accuracy on {one['cases']} cases it held out: {told}"))
    parts += [Text(f"{moment(one['at'])}  {one['words']}", style="dim") for one in facts["events"][:EVENTS]]
    return Group(*parts)


def _left(facts: "Facts", now: float) -> str:
    from aggregator.facts.sites import span

    deadline_at = facts["deadline_at"]
    if facts["round_phase"] != "open" or deadline_at is None:
        return ""
    late = now - deadline_at
    return f"; past its deadline for {span(late)}" if late > 0 else f"; {span(-late)} left"


def _sites(facts: "Facts", now: float) -> "Table":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from aggregator.accounts.tables import size
    from aggregator.facts.sites import span

    table = Table.grid(padding=(0, 2))
    sent = {site["site"]: site["updates_bytes"] for site in facts["communication"]["sites"]}
    columns = ("site", "state", "trained", "", "expected", "heard from", "updates", "certificate")
    table.add_row(*(Text(name, style="dim") for name in columns))
    for site in facts["sites"]:
        expected, seen = site["expected_finish_at"], site["last_seen"]
        done = 1.0 if site["accepted"] else site["progress"]
        bar = ProgressBar(total=1.0, completed=done, width=14, complete_style="cyan", finished_style="green")
        table.add_row(
            Text(site["site"], style="bold"),
            Text(site["standing"], style=STYLES.get(site["standing"], "")),
            bar if site["invited"] else Text(""),
            Text(trained(site), justify="right"),
            Text("" if expected is None else f"in {span(expected - now)}" if expected > now else "any moment"),
            Text(f"{span(now - seen)} ago" if seen else "never"),
            Text(size(sent[site["site"]]), justify="right"),
            Text(site["certificate"].removeprefix("certificate "), style="red"),
        )
    return table
