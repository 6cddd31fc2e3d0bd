"""`aggregator status`: the federation at a glance, once or until it is finished."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli.output import moment, print_json, print_table
from aggregator.cli.stored import Json, StorePath, opened_store

if TYPE_CHECKING:
    from aggregator.facts.facts import Facts


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(status)


def status(
    store: StorePath,
    json_: Json = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on until the federation is finished, or Ctrl-C; wait for a store to come. With --json: a line each time.",
        ),
    ] = False,
) -> None:
    """The federation at a glance: round, version, and where every site stands.

    Example: aggregator status --store fed.db --watch
    """
    import time

    from aggregator.facts import facts, material

    if watch:
        from aggregator.cli import watching

        watching.watch_store(store, json_)
        return
    with opened_store(store) as (opened, name):
        found = facts.make(opened.read(material.read, name), time.time())
    if json_:
        print_json(found)
    else:
        print_status(found)


def print_status(facts: "Facts") -> None:
    """Print what matters of the facts."""
    typer.echo(headline(facts))
    if sampling := facts["sampling"]:
        asked = [site["site"] for site in facts["sites"] if site["invited"]]
        typer.echo(
            f"a round asks {sampling['invited']} of {sampling['sites']} sites, drawn with seed {sampling['seed']}; "
            f"this one: {', '.join(asked[:8])}{' and others' if len(asked) > 8 else ''}"
        )
    if facts["waiting_for"]:
        typer.echo(facts["waiting_for"])
    for site, reason in facts["quarantined"].items():
        typer.echo(f"quarantined, unless later updates change the median: {site}, whose {reason}")
    print_sites(facts["sites"])
    print_arms(facts["model"]["arms"])


def headline(facts: "Facts") -> str:
    """Return the federation and its round in a line."""
    why = f" ({facts['reason']})" if facts["reason"] else ""
    return (
        f"federation {facts['federation']}: {facts['phase']}{why}, round {facts['round']} {facts['round_phase']} "
        f"({facts['rounds_closed']} of {facts['rounds']} closed), {facts['accepted']} of {facts['invited']} in (quorum "
        f"{facts['quorum']}), version {facts['version']} {facts['digest'][:12]}"
    )


def print_sites(sites: "Sequence[Facts]") -> None:
    """Print a line for each site."""
    print_table(
        ["site", "state", "trained", "patients", "last seen", "last round", ""],
        [
            [
                site["site"] + (" (unauthenticated)" if site["authenticated"] is False else ""),
                site["standing"],
                trained(site),
                site["training_patients"],
                moment(site["last_seen"]),
                site["last_round"] or None,
                "; ".join(words for words in (site["hold"] or site["reason"], site["certificate"]) if words),
            ]
            for site in sites
        ],
    )


def print_arms(told: "Sequence[Facts]") -> None:
    """Print what each site that tells of it found in its comparison of models; nothing if none does."""
    from aggregator.facts.model import arm_words
    from shared.contract import ARMS

    if told:
        typer.echo("AUC / balanced accuracy of the models that sites compared, each on cases that it held out:")
        print_table(
            ["site", *ARMS, "cases"],
            [[one["site"], *(arm_words(one["figures"], arm) for arm in ARMS), one["cases"]] for one in told],
        )


def trained(site: Mapping[str, Any]) -> str:
    """Return how far a site is with the open round; nothing if it was not asked."""
    return f"{1.0 if site['accepted'] else site['progress']:.0%}" if site["invited"] else ""
