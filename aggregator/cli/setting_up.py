"""`aggregator init`: what a federation is made from, checked, and written to a new store."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli import certifying
from aggregator.cli.output import moment, print_json
from aggregator.cli.stored import keep_events_off_the_screen

if TYPE_CHECKING:
    from aggregator.existing import Existing
    from aggregator.setup import FederationPlan
    from shared.contract import Contract

MOST_NAMED = 8
"""Sites that a line names."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="init")(init)


def init(
    store: Annotated[
        str, typer.Option(help="Where to make the store: a path, sqlite:///path or postgresql://user@host/database.")
    ],
    federation: Annotated[str, typer.Option(help="Name of the federation.")],
    adapter: Annotated[Path, typer.Option(help="Version 0, made by site-agent init-adapter.")],
    site: Annotated[list[str] | None, typer.Option(help="A site, or site=training_patients. Repeat for each.")] = None,
    request: Annotated[
        list[Path] | None, typer.Option(help="A site's request, NAME.csr: also a site, and approved. Repeat.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address sites dial: makes CA and certificates. Repeat.")
    ] = None,
    coordinator: Annotated[
        list[str] | None, typer.Option(help="With --host: a coordinator, who steers. Repeat.")
    ] = None,
    certs: Annotated[Path, typer.Option(help="Folder of the CA, for --host and --request.")] = Path("certs"),
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
    if_missing: Annotated[
        bool,
        typer.Option(
            "--if-missing", help="Leave a federation of the same settings that is there already as it is, and end well."
        ),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the contract as JSON.")] = False,
) -> None:
    """Make a store with a new federation in it; with the sites' requests and --host also the certificates of all.

    A store holds one federation, and this changes none. --if-missing is for what may run twice (a container, a Job): what is there
    is compared with what is asked for, and a setting that differs is refused by name.

    Example: aggregator init --store fed.db --federation heart --adapter v0.safetensors --site siemens=218 --site ge --site
    canon --rounds 8
    Example: aggregator init --store fed.db --federation heart --adapter v0.safetensors --request siemens.csr --request ge.csr
    --request canon.csr --host fed.example.org --coordinator anna
    """
    import time

    from aggregator import enrolment, existing, setup
    from aggregator.certificates import Authority
    from aggregator.store import engine
    from shared.errors import InputError

    keep_events_off_the_screen()
    held = existing.read(store)
    if held and not if_missing:
        raise InputError(
            f"{_there(held)}. Go on with it: {_serve(held.place, certs)}, or aggregator status --store {held.place}. "
            "For another one give another --store: each holds one"
        )
    asked = [enrolment.read_request(file) for file in request or []]
    plan = setup.FederationPlan(
        name=federation,
        adapter=adapter,
        recipe=recipe,
        parameters=setup.parse_parameters(set_ or []),
        sites=setup.parse_sites(site or [], [one.site for one in asked]),
        rounds=rounds,
        invited=invited,
        sampling_seed=setup.random_seed() if sampling_seed is None else sampling_seed,
        quorum=quorum,
        deadline_s=deadline_s,
        grace_s=grace_s,
    )
    if held:
        _leave(held, plan, sampling_seed, certs, bool(asked), json_)
        return
    if coordinator and not host:
        raise InputError(
            "--coordinator makes a certificate beside the aggregator's: give --host too, or aggregator certificates"
        )
    contract, _ = setup.make_contract(plan)  # what is refused is refused before there are certificates
    if host:
        _certify(certs, host, coordinator or [], if_missing, err=json_)
    authority = Authority.read(certs) if asked else None
    setup.create(store, plan, time.time())
    if authority:
        for one in asked:
            certifying.answer(store, authority, one, certifying.DAYS, None, None, err=json_)
        certifying.tell_ca(authority, err=json_)
    for warning in _warnings(contract, plan.sites):
        typer.echo(f"warning: {warning}", err=True)
    place = engine.place_of(store)
    if json_:
        print_json({"made": True, **_facts(place, contract, plan.sites, plan.sampling_seed)})
        return
    most, fixed = _update_bytes(contract)
    sampled = contract.policy.invited < len(plan.sites)
    drawn = f" of {contract.policy.invited} sites each, drawn with seed {plan.sampling_seed}" if sampled else ""
    typer.echo(
        f"federation {contract.federation}: {len(plan.sites)} sites, {contract.policy.rounds} rounds{drawn}, quorum "
        f"{contract.policy.quorum}, recipe {contract.recipe.name}, {contract.manifest.layout.parameters:,} parameters "
        f"({'' if fixed else 'at most '}{most:,} bytes an update, codec {contract.recipe.codec})\n"
        f"next: {_serve(place, certs)}"
    )


def _certify(certs: Path, hosts: list[str], coordinators: list[str], if_missing: bool, err: bool) -> None:
    """Make the aggregator's certificate and people's. `if_missing`: only those that one that was killed did not come to."""
    from shared.errors import InputError

    if (certs / "aggregator.pem").exists():
        if not if_missing:
            raise InputError(
                f"{certs}/aggregator.pem exists already: leave --host and --coordinator out to go on with it, or give another "
                f"--certs; to replace it and keep the CA: aggregator certificates --out {certs} --renew"
            )
        hosts, coordinators = [], [name for name in coordinators if not (certs / f"{name}.pem").exists()]
    certifying.make_certificates(certs, hosts, [], coordinators, [], err=err)


def _leave(
    held: "Existing", plan: "FederationPlan", sampling_seed: int | None, certs: Path, answers: bool, json_: bool
) -> None:
    """Say that what is asked for is there. Raises InputError naming what differs."""
    from aggregator import existing
    from shared.errors import InputError

    if found := existing.differences(held, plan, sampling_seed):
        raise InputError(
            f"store {held.place} holds a federation already, and not the one asked for: {'; '.join(found)}. It stays as it is: ask "
            "for what is there, or give another --store"
        )
    sites = {name: site.training_patients for name, site in held.state.sites.items()}
    if json_:
        print_json({"made": False, **_facts(held.place, held.contract, sites, held.state.sampling_seed)})
        return
    unanswered = ", and no request is answered: that does aggregator approve" if answers else ""
    typer.echo(f"{_there(held)}, as asked for: left as it is{unanswered}\nnext: {_serve(held.place, certs)}")


def _there(held: "Existing") -> str:
    names = list(held.state.sites)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return (
        f"store {held.place} holds federation '{held.contract.federation}' already (made {moment(held.made_at)}; "
        f"{held.closed} of {held.contract.policy.rounds} rounds closed; sites {', '.join(names[:MOST_NAMED])}{more})"
    )


def _serve(place: str, certs: Path) -> str:
    """Return the command that serves a store, with the certificates where they are."""
    if not (certs / "aggregator.pem").exists():
        return f"aggregator serve --store {place} --help"
    tls = f"--tls-ca {certs}/ca.pem --tls-cert {certs}/aggregator.pem --tls-key {certs}/aggregator.key"
    return f"aggregator serve --store {place} --listen 0.0.0.0:50051 {tls}"


def _facts(place: str, contract: "Contract", sites: Mapping[str, int | None], sampling_seed: int) -> dict[str, Any]:
    return {
        "federation": contract.federation,
        "store": place,
        "contract_sha256": contract.sha256,
        "adapter_digest": contract.adapter_digest,
        "parameters": contract.manifest.layout.parameters,
        "payload_bytes": contract.manifest.layout.size,
        "update_bytes_at_most": _update_bytes(contract)[0],
        "recipe": contract.recipe.name,
        "codec": contract.recipe.codec,
        "broadcast_codec": contract.recipe.broadcast_codec,
        "sites": dict(sites),
        "rounds": contract.policy.rounds,
        "invited": contract.policy.invited,
        "sampling_seed": sampling_seed if contract.policy.invited < len(sites) else None,
        "quorum": contract.policy.quorum,
    }


def _update_bytes(contract: "Contract") -> tuple[int, bool]:
    """Return the bytes of the largest update, and whether every one has so many. Recipes share tensors in turns of two rounds."""
    updates = [contract.recipe.upload_layout(contract.manifest, n, contract.policy.invited) for n in (1, 2)]
    return max(layout.size for layout in updates), all(layout.fixed for layout in updates)


def _warnings(contract: "Contract", sites: Mapping[str, int | None]) -> Iterator[str]:
    """Yield what a coordinator should know of a contract that is allowed."""
    from aggregator import gate
    from aggregator import rounds as core
    from shared import compatibility
    from shared.recipe import HOPELESS_EPSILON

    recipe, quorum = contract.recipe, contract.policy.quorum
    if warning := core.quorum_warning(quorum):
        yield warning
    together = compatibility.blended(recipe, quorum)
    if together < min(quorum, core.FEWEST_TO_HIDE_IN):
        yield (
            f"robust rule {recipe.robust} may make the result of a round of {quorum} of {together} update(s), which every site can "
            "read then"
        )
    if recipe.norm_gate and quorum < gate.FEWEST:
        yield f"the norm gate says nothing of rounds below {gate.FEWEST} updates, and the quorum is {quorum}"
    if recipe.dp_noise and recipe.dp_epsilon > HOPELESS_EPSILON:
        yield (
            f"dp_epsilon {recipe.dp_epsilon:g} protects nothing: every site refuses more than {HOPELESS_EPSILON:g} when it joins"
        )
    too_few = [site for site, patients in sites.items() if patients and recipe.dp_delta * patients >= 1]
    if recipe.dp_noise and too_few:
        yield (
            f"dp_delta {recipe.dp_delta:g} would let a patient be published whole: {', '.join(too_few)} will refuse it when "
            "joining; it must be below 1 / training patients"
        )
