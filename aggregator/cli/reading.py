"""Commands that read a store: status, rounds, sites, contract, export, verify, audit. They work while it is being served."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli.output import moment, print_json, print_table

if TYPE_CHECKING:
    from aggregator.rounds import FederationState, SiteState
    from aggregator.store.engine import Store
    from aggregator.store.rounds import RoundRecord

StorePath = Annotated[
    str, typer.Option("--store", help="The store: a path, sqlite:///path or postgresql://user@host/database.")
]
DIGEST_LENGTH = 64
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (status, rounds, sites, contract, export, verify, audit):
        app.command()(command)


@contextmanager
def _opened(store: str) -> "Iterator[tuple[Store, str]]":
    """Yield the store and the name of its federation."""
    from aggregator.store import engine, federations

    opened = engine.open_store(store)
    try:
        with engine.damage_named(opened):
            yield opened, opened.read(federations.only_name)
    finally:
        opened.close()


def status(store: StorePath, json_: Json = False) -> None:
    """The federation at a glance: round, version, and where every site stands.

    Example: aggregator status --store fed.db
    """
    import time

    from aggregator import rounds as core
    from aggregator.store import federations
    from aggregator.store import rounds as round_rows

    with _opened(store) as (opened, name):
        state = opened.read(federations.state, name)
        contract = opened.read(federations.contract, name)
        closed = opened.read(round_rows.count_closed, name)
    now = time.time()
    facts = {
        "federation": state.name,
        "phase": state.phase,
        "reason": state.reason,
        "round": state.round.number,
        "rounds": state.policy.rounds,
        "rounds_closed": closed,
        "round_phase": state.round.phase,
        "accepted": len(core.counted(state)),
        "quorum": core.quorum(state),
        "invited": len(state.round.invited),
        "sampling": _sampling(state),
        "missing": list(core.missing(state)) if state.round.phase == "open" else [],
        "quarantined": core.quarantined(state) if state.round.phase == "open" else {},
        "deadline_at": state.round.deadline_at,
        "version": state.version,
        "digest": state.digest,
        "recipe": contract.recipe.name,
        "contract_sha256": contract.sha256,
        "sites": [_site_facts(state, site) for site in state.sites.values()],
    }
    if json_:
        print_json(facts)
        return
    typer.echo(
        f"federation {state.name}: {state.phase}{f' ({state.reason})' if state.reason else ''}, round {state.round.number} "
        f"{state.round.phase} ({closed} of {state.policy.rounds} closed), {facts['accepted']} of {facts['invited']} in (quorum "
        f"{facts['quorum']}), version {state.version} {state.digest[:12]}"
    )
    if core.is_sampled(state):
        asked = state.round.invited
        typer.echo(
            f"a round asks {state.policy.invited} of {len(state.sites)} sites, drawn with seed {state.sampling_seed}; "
            f"this one: {', '.join(asked[:8])}{' and others' if len(asked) > 8 else ''}"
        )
    if waiting := core.waiting_for(state, now):
        typer.echo(waiting)
    for site, reason in core.quarantined(state).items() if state.round.phase == "open" else ():
        typer.echo(f"quarantined, unless later updates change the median: {site}, whose {reason}")
    _print_sites(state)


def _sampling(state: "FederationState") -> dict[str, int] | None:
    """How rounds draw their sites; None where every site is invited to every round."""
    from aggregator import rounds as core

    if not core.is_sampled(state):
        return None
    return {"invited": state.policy.invited, "sites": len(state.sites), "seed": state.sampling_seed}


def sites(store: StorePath, json_: Json = False) -> None:
    """Every site: what it is, when it was heard from, and its reported metrics.

    Example: aggregator sites --store fed.db --json
    """
    from aggregator.store import federations

    with _opened(store) as (opened, name):
        state = opened.read(federations.state, name)
        evaluations = opened.read(federations.evaluations, name)
    if not json_:
        _print_sites(state)
        return
    kept = ("round", "version", "cases", "metrics", "reported_at")
    print_json(
        [
            _site_facts(state, site)
            | {"evaluations": [{k: e[k] for k in kept} for e in evaluations if e["site"] == site.name]}
            for site in state.sites.values()
        ]
    )


def _site_facts(state: "FederationState", site: "SiteState") -> dict[str, Any]:
    return {
        "site": site.name,
        "phase": site.phase,
        "reason": site.reason,
        "training_patients": site.training_patients,
        "last_seen": site.last_seen or None,
        "authenticated": site.authenticated if site.last_seen else None,
        "last_round": site.last_round,
        "progress": round(site.progress, 3),
        "invited": site.name in state.round.invited,
        "accepted": site.name in state.round.accepted,
        "certificate_expires_at": site.expires_at or None,
        "certificate": _certificate(site),
    }


def _certificate(site: "SiteState") -> str:
    """What is to be said of a site's certificate; nothing if it is good for long."""
    import time

    from shared.certificates import expiry_words

    return f"certificate {words}" if site.expires_at and (words := expiry_words(site.expires_at, time.time())) else ""


def _print_sites(state: "FederationState") -> None:
    print_table(
        ["site", "phase", "patients", "last seen", "last round", "update", ""],
        [
            [
                site.name + ("" if site.authenticated else " (unauthenticated)"),
                site.phase,
                site.training_patients,
                moment(site.last_seen),
                site.last_round or None,
                _update(state, site),
                _certificate(site),
            ]
            for site in state.sites.values()
        ],
    )


def _update(state: "FederationState", site: "SiteState") -> str:
    if site.name in state.round.accepted:
        return "in"
    if site.name not in state.round.invited:
        return "not invited"
    return f"{site.progress:.0%} trained" if site.progress else ""


def rounds(store: StorePath, json_: Json = False) -> None:
    """Every round: how many updates it is made of, who was left out and why; with --json the whole manifest, weights and all.

    Example: aggregator rounds --store fed.db
    """
    from aggregator import rounds as core
    from aggregator.store import federations
    from aggregator.store import rounds as round_rows

    with _opened(store) as (opened, name):
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

    with _opened(store) as (opened, name):
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

    with _opened(store) as (opened, name):
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
    with _opened(store) as (opened, name):
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
    from shared.canonical import write_atomically
    from shared.errors import InputError

    with _opened(store) as (opened, name):
        if out is not None:
            write_atomically(out, b"".join(line + b"\n" for line in journals.lines(opened, name)))
        try:
            chain = journals.check(opened, name, head)
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
