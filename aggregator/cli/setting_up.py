"""`aggregator init`, `certificates`, `approve` and `revoke`: who takes part."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aggregator.cli.output import print_json

if TYPE_CHECKING:
    from aggregator.certificates import Authority
    from aggregator.enrolment import Request
    from shared.contract import Contract

DAYS = 397
"""That an approved certificate is good for, unless said otherwise."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="init")(init)
    app.command(name="certificates")(certificates)
    app.command(name="approve")(approve)
    app.command(name="revoke")(revoke)


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
    json_: Annotated[bool, typer.Option("--json", help="Print the contract as JSON.")] = False,
) -> None:
    """Make a store with a new federation in it; with the sites' requests and --host also the certificates of all.

    Example: aggregator init --store fed.db --federation heart --adapter v0.safetensors --site siemens=218 --site ge --site
    canon --rounds 8
    Example: aggregator init --store fed.db --federation heart --adapter v0.safetensors --request siemens.csr --request ge.csr
    --request canon.csr --host fed.example.org --coordinator anna
    """
    import time

    from aggregator import enrolment, setup
    from aggregator.certificates import Authority
    from shared.errors import InputError

    if coordinator and not host:
        raise InputError(
            "--coordinator makes a certificate beside the aggregator's: give --host too, or aggregator certificates"
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
    setup.make_contract(plan)  # what is refused is refused before there are certificates
    if host:
        _make_certificates(certs, host, [], coordinator or [], [], err=json_)
    authority = Authority.read(certs) if asked else None
    contract = setup.create(store, plan, time.time())
    if authority:
        for one in asked:
            _answer(store, authority, one, DAYS, None, None, err=json_)
        _tell_ca(authority, err=json_)
    sampled = contract.policy.invited < len(plan.sites)
    updates = [contract.recipe.upload_layout(contract.manifest, n, contract.policy.invited) for n in (1, 2)]  # by turns
    most, fixed = max(layout.size for layout in updates), all(layout.fixed for layout in updates)
    for warning in _warnings(contract, plan.sites):
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
    coordinator: Annotated[list[str] | None, typer.Option(help="A coordinator, who steers. Repeat.")] = None,
    observer: Annotated[list[str] | None, typer.Option(help="An observer, who reads. Repeat.")] = None,
) -> None:
    """Make a CA and the certificates it signs: ca, aggregator, and one per site and person (.pem and .key).

    A site that asks for its own (site-agent join) needs none from here: its key never leaves it. Whoever holds ca.key can make
    more: keep it where the coordinator's other secrets are. The CA's fingerprint is shown, also where nothing is asked for.

    Example: aggregator certificates --out certs --host aggregator.example.org --site siemens --site ge --coordinator anna
    """
    from aggregator.certificates import Authority

    _make_certificates(out, host or [], site or [], coordinator or [], observer or [])
    _tell_ca(Authority.read(out))


def approve(
    request: Annotated[Path, typer.Argument(help="What the site sent: NAME.csr.")],
    store: Annotated[str, typer.Option(help="The federation's store.")],
    certs: Annotated[Path, typer.Option(help="Folder of the CA: ca.pem, ca.key.")] = Path("certs"),
    key: Annotated[str, typer.Option("--fingerprint", help="What the site reads out; refused if it differs.")] = "",
    patients: Annotated[int | None, typer.Option(min=1, help="Training patients, if not fixed yet.")] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="Days the certificate is good for.")] = DAYS,
    out: Annotated[Path | None, typer.Option(help="File for the site. Default: NAME.approved.pem.")] = None,
) -> None:
    """Sign a site's request. The answer holds no secret: send it back to the site.

    Example: aggregator approve siemens.csr --store fed.db --certs certs --fingerprint "3f0c 9a8e ..."
    """
    from aggregator import enrolment
    from aggregator.certificates import Authority
    from shared import certificates as held
    from shared.errors import InputError

    asked = enrolment.read_request(request)
    if key and not held.is_fingerprint(key, asked.fingerprint):
        raise InputError(
            f"the request's key has fingerprint {asked.fingerprint}, not {key}: it is not the one the site made"
        )
    authority = Authority.read(certs)
    _answer(store, authority, asked, days, patients, out)
    _tell_ca(authority)


def revoke(
    store: Annotated[str, typer.Option(help="The federation's store.")],
    certificate: Annotated[Path | None, typer.Option(help="The certificate (.pem).")] = None,
    serial: Annotated[str, typer.Option(help="Or its serial number, hex, as `approve` and `audit` show it.")] = "",
    reason: Annotated[str, typer.Option(help="Why; it stands in the audit journal.")] = "",
) -> None:
    """Make a site's or a person's certificate good for nothing from now on, at every replica, without a restart.

    It cannot be taken back. An update that was accepted before stays in its round; to take the site out, evict it. The
    aggregator's own certificate and the CA are not revoked but replaced.

    Example: aggregator revoke --store fed.db --certificate siemens.pem --reason "key lost"
    """
    import time

    from aggregator import enrolment
    from aggregator.store import engine
    from shared.errors import InputError

    if bool(serial) == (certificate is not None):
        raise InputError("give --certificate FILE or --serial NUMBER")
    number, who = serial.lower().removeprefix("0x").lstrip("0"), ""
    named: Sequence[str] = ()
    if certificate is not None:
        found = enrolment.revocable(certificate)
        number, named = found.serial, found.names["site"]
        who = ", ".join(f"{role} {name}" for role, names in found.names.items() for name in names)
    if not number or not set(number) <= set("0123456789abcdef"):
        raise InputError(f"a serial number is hexadecimal digits, got '{serial[:60]}'")
    opened = engine.open_store(store)
    try:
        done = enrolment.revoke(opened, number, who, reason, time.time(), named)
    finally:
        opened.close()
    typer.echo(
        f"certificate {number}{f' of {who}' if who else ''} {'is revoked' if done.new else 'was revoked already'}"
    )
    for site in done.accepted:
        typer.echo(
            f"the update of {site} in round {done.round} was accepted before, stays in it and counts; to take the site out: "
            f"aggregator evict {site}"
        )


def _make_certificates(
    folder: Path,
    hosts: Sequence[str],
    sites: Sequence[str],
    coordinators: Sequence[str],
    observers: Sequence[str],
    err: bool = False,
) -> None:
    from aggregator import certificates as authority
    from shared.errors import InputError

    try:
        written = authority.make(folder, hosts, sites, coordinators, observers)
    except OSError as error:
        raise InputError(f"cannot write certificates to {folder}: {error.strerror}; choose another folder") from error
    if written:
        typer.echo(f"wrote {', '.join(path.name for path in written)} in {folder}", err=err)


def _answer(
    store: str,
    authority: "Authority",
    asked: "Request",
    days: int,
    patients: int | None,
    out: Path | None,
    err: bool = False,
) -> None:
    """Approve a request and write the answer for its site."""
    from datetime import UTC, datetime

    from aggregator import enrolment
    from aggregator.store import engine
    from shared.canonical import write_atomically

    opened = engine.open_store(store)
    try:
        approval = enrolment.approve(opened, authority, asked, datetime.now(UTC), days, patients)
    finally:
        opened.close()
    file = out or Path(f"{asked.site}.approved.pem")
    write_atomically(file, approval.pem)
    until = datetime.fromtimestamp(approval.holder.expires_at, UTC)
    typer.echo(
        f"site {asked.site}, key {asked.fingerprint}: serial number {approval.holder.serial}, until {until:%Y-%m-%d}",
        err=err,
    )
    typer.echo(f"wrote {file}; when the site has read out the same fingerprint, send it there", err=err)


def _tell_ca(authority: "Authority", err: bool = False) -> None:
    """Show what a site compares, so that it trusts this CA and no other."""
    from shared.certificates import fingerprint

    shown = fingerprint(authority.certificate.public_key())
    typer.echo(f"fingerprint of the CA, to be compared by each site: {shown}", err=err)


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
