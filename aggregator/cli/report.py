"""`aggregator report`: the federation's report for its consortium."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from aggregator.cli.output import print_json, print_table
from aggregator.cli.status import print_arms
from aggregator.cli.stored import Json, StorePath, opened_store

Facts = Mapping[str, Any]
WIDTH = 100


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    store: StorePath,
    html: Annotated[Path | None, typer.Option(help="Write everything as a page without anything to load.")] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Log of the aggregator or of an agent, for the bytes of every call. Repeat."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Recompute closed rounds from the stored updates.")
    ] = True,
    json_: Json = False,
) -> None:
    """What came of the federation: who took part, what was agreed, rounds, figures that sites reported, bytes, and if it holds.

    Nothing of a patient is in it: the store has only what sites were allowed to tell. Exit code 1 if a round does not recompute or
    the audit journal does not hold together; the report is written all the same.

    Example: aggregator report --store fed.db --html federation.html

    Example: aggregator report --store fed.db --log aggregator.jsonl --log siemens.jsonl --json
    """
    import time

    from aggregator.report import facts, page
    from shared.canonical import write_atomically
    from shared.errors import InputError

    with opened_store(store) as (opened, name):
        found = facts.gather(opened, name, time.time(), _costs(log or []), recompute=recompute)
    if html is not None:
        try:
            write_atomically(html, page.page(found).encode())
        except OSError as error:
            raise InputError(f"cannot write {html}: {error.strerror}; name another --html file") from error
    if json_:
        print_json(found)
    else:
        _print(found, page.summary(found))
        if html is not None:
            typer.echo(f"wrote {html}")
    if not found["audit"]["ok"] or (found["verified"] and not found["verified"]["ok"]):
        raise typer.Exit(1)


def _costs(logs: list[Path]) -> dict[str, Any] | None:
    if not logs:
        return None
    from aggregator.accounts.report import report as accounts
    from aggregator.cli.accounts import read_logs

    return accounts(read_logs(logs), by="site")


def _print(facts: Facts, summary: str) -> None:
    typer.echo(textwrap.fill(f"federation {facts['federation']}, {facts['phase']}: {summary}", WIDTH) + "\n")
    print_table(
        ["site", "phase", "patients", "share", "rounds in", "left out", "AUC reported", "cases"],
        [_site_row(site) for site in facts["sites"]],
    )
    print_arms(facts["arms"])
    typer.echo()
    for sentence in facts["security"]:
        typer.echo(textwrap.fill(sentence, WIDTH, subsequent_indent="  "))
    for finding in (facts["verified"] or {"differences": []})["differences"]:
        typer.echo(f"DIFFERS: {finding}")
    audit = facts["audit"]
    typer.echo(
        f"audit journal: {audit['lines']} lines hold together" if audit["ok"] else f"DIFFERS: {audit['finding']}"
    )
    if audit["steered"]:
        typer.echo(
            f"{len(audit['steered'])} evictions, rollbacks, pauses, revocations or refusals: see --html or --json"
        )


def _site_row(site: Facts) -> list[Any]:
    from aggregator.report.page import NOT_INVITED

    last = site["evaluations"][-1] if site["evaluations"] else {"metrics": {}, "cases": None}
    return [
        site["site"],
        site["phase"],
        site["training_patients"],
        "" if site["share"] is None else f"{site['share']:.1%}",
        len(site["rounds_in"]),
        sum(why != NOT_INVITED for why in site["rounds_out"].values()),
        last["metrics"].get("auc"),
        last["cases"],
    ]
