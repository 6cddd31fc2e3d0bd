"""Commands that read a store: rounds, sites, contract, export, verify, audit. They work while it is being served."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli.output import moment, print_json, print_table
from aggregator.cli.status import print_sites
from aggregator.cli.stored import Json, StorePath, opened_store

if TYPE_CHECKING:
    from aggregator.store.rounds import RoundRecord

DIGEST_LENGTH = 64


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (rounds, sites, contract, export, verify, audit):
        app.command()(command)


def sites(store: StorePath, json_: Json = False) -> None:
    """Every site: what it is, when it was heard from, and its reported metrics.

    Example: aggregator sites --store fed.db --json
    """
    import time

    from aggregator.facts import facts, material
    from aggregator.store import evaluations

    with opened_store(store) as (opened, name):
        found = opened.read(material.read, name)
        reported = opened.read(evaluations.read, name)
    of_sites = facts.make(found, time.time())["sites"]
    if not json_:
        print_sites(of_sites)
        return
    kept = ("round", "version", "cases", "metrics", "reported_at")
    print_json(
        [
            {name: value for name, value in site.items() if name != "last_error"}
            | {"evaluations": [{k: e[k] for k in kept} for e in reported if e["site"] == site["site"]]}
            for site in of_sites
        ]
    )


def rounds(store: StorePath, json_: Json = False) -> None:
    """Every round: how many updates it is made of, who was left out and why; with --json the whole manifest, weights and all.

    Example: aggregator rounds --store fed.db
    """
    from aggregator import rounds as core
    from aggregator.store import federations
    from aggregator.store import rounds as round_rows

    with opened_store(store) as (opened, name):
        records = opened.read(round_rows.records, name)
        sampled = core.is_sampled(opened.read(federations.state, name))
    if json_:
        print_json([_round_facts(record) for record in records])
        return
    columns = ["round", "phase", "version", "updates", "left out", "aggregation error", "digest", "closed"]
    rows = [_round_row(record, sampled) for record in records]
    if sampled:
        columns.insert(3, "invited")
        for row, record in zip(rows, records, strict=True):
            row.insert(3, len(record.state.invited))
    print_table(columns, rows)


def _round_row(record: "RoundRecord", sampled: bool) -> list[Any]:
    """One line of the table. Where sites are sampled, those that were not drawn go without saying."""
    facts = _round_facts(record)
    manifest = facts["manifest"] or {"entries": [], "left_out": {}, "result_digest": ""}
    left_out = {site: why for site, why in manifest["left_out"].items() if not (sampled and why == "not invited")}
    base = record.state.base_version
    return [
        record.state.number,
        record.state.phase,
        f"{base} -> {record.version}" if record.version else str(base),
        len(record.state.accepted),
        "; ".join(f"{site}: {why}" for site, why in left_out.items()),
        record.diagnostics.get("aggregation_error"),
        manifest["result_digest"][:12],
        moment(record.state.closed_at),
    ]


def _round_facts(record: "RoundRecord") -> dict[str, Any]:
    import json

    state = record.state
    return {
        "round": state.number,
        "phase": state.phase,
        "base_version": state.base_version,
        "version": record.version,
        "invited": list(state.invited),
        "accepted": {site: update.digest for site, update in state.accepted.items()},
        "opened_at": state.opened_at,
        "deadline_at": state.deadline_at,
        "closed_at": state.closed_at,
        "purged_at": record.purged_at,
        "input_digest": record.input_digest or None,
        "manifest": json.loads(record.manifest) if record.manifest else None,
        "diagnostics": record.diagnostics,
    }


def contract(store: StorePath, out: Annotated[Path, typer.Option(help="File to write.")]) -> None:
    """Write what sites agree to as a file, for a site that wants to know before it joins: site-agent dry-run --contract FILE.

    Example: aggregator contract --store fed.db --out contract.json
    """
    from aggregator.store import federations
    from shared.canonical import write_atomically

    with opened_store(store) as (opened, name):
        agreed = opened.read(federations.contract, name)
    write_atomically(out, agreed.to_bytes())
    typer.echo(f"wrote contract {agreed.sha256[:16]} of federation {name} to {out}")


def export(
    store: StorePath,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    version: Annotated[int | None, typer.Option(min=0, help="Version. Default: the current one.")] = None,
) -> None:
    """Write a version of the global adapter as a Hugging Face PEFT folder.

    Example: aggregator export --store fed.db --version 8 --out heart-v8
    """
    from aggregator import export as folders
    from aggregator.store import federations

    with opened_store(store) as (opened, name):
        wanted = opened.read(federations.state, name).version if version is None else version
        adapter = opened.read(federations.adapter, name, wanted)
    folders.write(adapter, out)
    typer.echo(f"wrote version {wanted} ({adapter.digest[:12]}) to {out}; load it with peft.PeftModel.from_pretrained")


def verify(
    store: StorePath,
    round_: Annotated[int | None, typer.Option("--round", min=1, help="One round.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every closed round (the default).")] = False,
    json_: Json = False,
) -> None:
    """Recompute closed rounds from the stored updates; exit code 1 and the first difference if something does not agree.

    Of rounds whose update bytes the retention setting dropped, manifests and adapters are compared, and that is said. Of open and
    abandoned rounds, accepted updates, the draw of sites and the first version are. It cannot see changed times, phases of sites,
    agents, reasons, metrics and diagnostics, nor an update that was taken out of an open or abandoned round with its bytes.
    Nor changed settings of the federation: each site compares those with its own copy.

    Example: aggregator verify --store fed.db --all
    """
    from dataclasses import asdict

    from aggregator import verify as verification
    from shared.errors import InputError

    if round_ is not None and all_:
        raise InputError("--round and --all exclude each other; give one of them")
    with opened_store(store) as (opened, name):
        checks = verification.verify(opened, name, None if round_ is None else [round_])
    shown = [check for check in checks if check.phase == "closed" or check.difference]
    bad = [check for check in shown if check.difference]
    purged = sum(check.purged and not check.difference for check in shown)
    rounding = sum(check.rounding and not check.difference for check in shown)
    if json_:
        facts = [asdict(check) | {"finding": check.finding} for check in shown]
        print_json({"federation": name, "ok": not bad, "purged": purged, "rounding": rounding, "rounds": facts})
    else:
        for check in shown:
            typer.echo(f"round {check.round}: {check.updates} updates, {check.finding}")
        same = len(shown) - len(bad) - purged - rounding
        typer.echo(f"{same} of {len(shown)} closed rounds recompute to the same bytes")
        if rounding:
            typer.echo(
                f"{rounding} to the same numbers but for rounding: closed on another machine, or by other libraries"
            )
        if purged:
            typer.echo(
                f"{purged} cannot be recomputed, their update bytes are purged: only the manifest chain was checked"
            )
    if bad:
        raise typer.Exit(1)


def audit(
    store: StorePath,
    out: Annotated[Path | None, typer.Option(help="Write the journal's lines to this file, as they are.")] = None,
    head: Annotated[str, typer.Option(help="A digest noted earlier: it must have been the last line's once.")] = "",
    json_: Json = False,
) -> None:
    """Check the audit journal and show it: who joined or was evicted, what was accepted or refused and why.

    Every line holds the digest of the one before. Note the last one's digest elsewhere from time to time: with --head, lines cut
    off at the end and a journal written anew are seen too. Exit code 1 and the finding if something is wrong.

    Example: aggregator audit --store fed.db --out audit.jsonl --head 3f0c9a8e41d2
    """
    from aggregator import audit as journals
    from shared import journal
    from shared.canonical import write_atomically
    from shared.errors import InputError

    noted = journal.check_noted(head) if head else ""
    with opened_store(store) as (opened, name):
        if out is not None:
            write_atomically(out, b"".join(line + b"\n" for line in journals.lines(opened, name)))
        try:
            chain = journals.check(opened, name, noted)
        except InputError as error:
            typer.echo(f"DIFFERS: {error}")
            raise typer.Exit(1) from error
    if json_:
        entries = [{"n": one.n, "at": one.at, "event": one.event, **one.facts} for one in chain.entries]
        print_json({"federation": name, "lines": len(entries), "head": chain.head.digest, "entries": entries})
        return
    print_table(
        ("line", "time", "event", "facts"),
        [(one.n, moment(one.at), one.event, _facts_text(one.facts)) for one in chain.entries],
    )
    typer.echo(f"{len(chain.entries)} lines hold together; head {chain.head.digest}")


def _facts_text(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in facts.items() if value not in ("", None))


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == DIGEST_LENGTH and value.isalnum():
        return value[:12]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
