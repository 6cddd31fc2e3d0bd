"""`aggregator observe`: the federation over gRPC, for people who have no access to its store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli import endpoint
from aggregator.cli.output import moment, print_json, print_table
from aggregator.cli.steering import Address, Ca, Key, Plain

if TYPE_CHECKING:
    from med_duallora.v1 import coordinator_pb2 as pb

Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="An observer's or a coordinator's certificate.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(observe)


def observe(
    aggregator: Address,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Every site and every round, as the serving aggregator sees them. An observer's certificate is enough.

    Example: aggregator observe --aggregator host:50051 --tls-ca ca.pem --tls-cert otto.pem --tls-key otto.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, person="observer")

    async def both(stub: Any) -> "tuple[pb.GetStatusResponse, pb.ListRoundsResponse]":
        return (
            await stub.GetStatus(pb.GetStatusRequest(), timeout=endpoint.TIMEOUT_S),
            await stub.ListRounds(pb.ListRoundsRequest(), timeout=endpoint.TIMEOUT_S),
        )

    status, rounds = endpoint.call(aggregator, tls, both)
    facts = _facts(status, rounds)
    if json_:
        print_json(facts)
        return
    policy = status.round_policy
    typer.echo(
        f"federation {status.federation}: {status.state}, round {status.round} of {policy.rounds}, each of {policy.invited} sites "
        f"(quorum {policy.quorum}), version {status.version} {status.digest[:12]}"
    )
    print_table(
        ["site", "state", "patients", "last seen", "last round", "trained", ""],
        [
            [
                s["site"],
                s["standing"],
                s["training_patients"],
                moment(s["last_seen"]),
                s["last_round"],
                f"{s['progress']:.0%}",
                "; ".join(words for words in (s["hold"], s["certificate"]) if words),
            ]
            for s in facts["sites"]
        ],
    )
    print_table(
        ["round", "phase", "version", "updates", "left out", "aggregation error", "closed"],
        [
            [
                r["round"],
                r["phase"],
                r["version"],
                len((r["manifest"] or {"entries": []})["entries"]),
                "; ".join(f"{site}: {why}" for site, why in (r["manifest"] or {"left_out": {}})["left_out"].items()),
                r["diagnostics"].get("aggregation_error"),
                moment(r["closed_at"]),
            ]
            for r in facts["rounds_so_far"]
        ],
    )


def _facts(status: "pb.GetStatusResponse", rounds: "pb.ListRoundsResponse") -> dict[str, Any]:
    import json

    return {
        "federation": status.federation,
        "phase": status.state,
        "round": status.round,
        "rounds": status.round_policy.rounds,
        "invited": status.round_policy.invited,
        "quorum": status.round_policy.quorum,
        "version": status.version,
        "digest": status.digest,
        "sites": [
            {
                "site": site.name,
                "phase": site.state,
                "standing": site.standing,
                "training_patients": site.training_patients or None,
                "last_seen": site.last_seen or None,
                "last_round": site.last_round or None,
                "progress": round(site.progress, 3),
                "hold": site.hold,
                "certificate": site.certificate,
            }
            for site in status.sites
        ],
        "rounds_so_far": [
            {
                "round": one.number,
                "phase": one.state,
                "base_version": one.base_version,
                "version": one.version or None,
                "opened_at": one.opened_at,
                "closed_at": one.closed_at or None,
                "manifest": json.loads(one.manifest) if one.manifest else None,
                "diagnostics": dict(one.diagnostics),
            }
            for one in rounds.rounds
        ],
    }
