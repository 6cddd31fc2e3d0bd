"""`aggregator init` and `aggregator certificates`."""

from pathlib import Path
from typing import Annotated

import typer

from aggregator.cli.output import print_json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="init")(init)
    app.command(name="certificates")(certificates)


def init(
    store: Annotated[
        str, typer.Option(help="Where to make the store: a path, sqlite:///path or postgresql://user@host/database.")
    ],
    federation: Annotated[str, typer.Option(help="Name of the federation.")],
    adapter: Annotated[Path, typer.Option(help="Version 0, made by site-agent init-adapter.")],
    site: Annotated[list[str], typer.Option(help="A site, or site=training_patients. Repeat for each.")],
    recipe: Annotated[str, typer.Option(help="Installed recipe.")] = "med-duallora",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A recipe parameter, key=value. Repeat.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds until the federation is finished.")] = 8,
    invited: Annotated[
        int | None, typer.Option(help="Sites asked in a round, drawn anew each time. Default: every site.")
    ] = None,
    sampling_seed: Annotated[int | None, typer.Option(help="What the draws are made from. Default: random.")] = None,
    quorum: Annotated[int | None, typer.Option(help="Updates a round needs. Default: as many as are invited.")] = None,
    deadline_s: Annotated[float, typer.Option(help="Seconds until a round closes with whoever is in.")] = 3600.0,
    grace_s: Annotated[float, typer.Option(help="More seconds for an upload begun before the deadline.")] = 300.0,
    json_: Annotated[bool, typer.Option("--json", help="Print the contract as JSON.")] = False,
) -> None:
    """Make a store with a new federation in it.

    Example: aggregator init --store fed.db --federation heart --adapter v0.safetensors --site siemens=218 --site ge --site
    canon --rounds 8
    """
    import time

    from aggregator import rounds as core
    from aggregator import setup

    plan = setup.FederationPlan(
        name=federation,
        adapter=adapter,
        recipe=recipe,
        parameters=setup.parse_parameters(set_ or []),
        sites=setup.parse_sites(site),
        rounds=rounds,
        invited=invited,
        sampling_seed=setup.random_seed() if sampling_seed is None else sampling_seed,
        quorum=quorum,
        deadline_s=deadline_s,
        grace_s=grace_s,
    )
    contract = setup.create(store, plan, time.time())
    sampled = contract.policy.invited < len(plan.sites)
    updates = [contract.recipe.upload_layout(contract.manifest, n, contract.policy.invited) for n in (1, 2)]  # by turns
    most, fixed = max(layout.size for layout in updates), all(layout.fixed for layout in updates)
    if warning := core.quorum_warning(contract.policy.quorum):
        typer.echo(f"warning: {warning}", err=True)
    if json_:
        print_json(
            {
                "federation": contract.federation,
                "store": store,
                "contract_sha256": contract.sha256,
                "adapter_digest": contract.adapter_digest,
                "parameters": contract.manifest.layout.parameters,
                "payload_bytes": contract.manifest.layout.size,
                "update_bytes_at_most": most,
                "recipe": contract.recipe.name,
                "codec": contract.recipe.codec,
                "broadcast_codec": contract.recipe.broadcast_codec,
                "sites": dict(plan.sites),
                "rounds": contract.policy.rounds,
                "invited": contract.policy.invited,
                "sampling_seed": plan.sampling_seed if sampled else None,
                "quorum": contract.policy.quorum,
            }
        )
        return
    layout = contract.manifest.layout
    drawn = f" of {contract.policy.invited} sites each, drawn with seed {plan.sampling_seed}" if sampled else ""
    typer.echo(
        f"federation {contract.federation}: {len(plan.sites)} sites, {contract.policy.rounds} rounds{drawn}, quorum "
        f"{contract.policy.quorum}, recipe {contract.recipe.name}, {layout.parameters:,} parameters "
        f"({'' if fixed else 'at most '}{most:,} bytes an update, codec {contract.recipe.codec})\n"
        f"next: aggregator serve --store {store} --help"
    )


def certificates(
    out: Annotated[Path, typer.Option(help="Folder for the files; a CA already in it is used again.")],
    host: Annotated[list[str] | None, typer.Option(help="Name or address sites dial. Repeat.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site. Repeat.")] = None,
    coordinator: Annotated[list[str] | None, typer.Option(help="A coordinator. Repeat.")] = None,
) -> None:
    """Make a CA and the certificates it signs: ca, aggregator, and one per site and coordinator (.pem and .key).

    Whoever holds ca.key can make more: keep it where the coordinator's other secrets are.

    Example: aggregator certificates --out certs --host aggregator.example.org --site siemens --site ge --coordinator anna
    """
    from aggregator import certificates as authority
    from shared.errors import InputError

    try:
        written = authority.make(out, host or [], site or [], coordinator or [])
    except OSError as error:
        raise InputError(f"cannot write certificates to {out}: {error.strerror}; choose another --out") from error
    typer.echo(f"wrote {', '.join(path.name for path in written)} in {out}")
