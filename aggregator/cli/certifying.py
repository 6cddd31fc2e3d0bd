"""`aggregator certificates`, `approve` and `revoke`: who is who, by which certificate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aggregator.cli.stored import keep_events_off_the_screen

if TYPE_CHECKING:
    from aggregator.certificates import Authority
    from aggregator.enrolment import Request

DAYS = 397
"""That an approved certificate is good for, unless said otherwise."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="certificates")(certificates)
    app.command(name="approve")(approve)
    app.command(name="revoke")(revoke)


def certificates(
    out: Annotated[Path, typer.Option(help="Folder for the files; a CA already in it is used again.")],
    host: Annotated[list[str] | None, typer.Option(help="Name or address sites dial. Repeat.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site. Repeat.")] = None,
    coordinator: Annotated[list[str] | None, typer.Option(help="A coordinator, who steers. Repeat.")] = None,
    observer: Annotated[list[str] | None, typer.Option(help="An observer, who reads. Repeat.")] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="Replace certificates that are there; nobody named: the aggregator's. Keeps the CA, and the old pair.",
        ),
    ] = False,
) -> None:
    """Make a CA and the certificates it signs: ca, aggregator, and one per site and person (.pem and .key).

    A site that asks for its own (site-agent join) needs none from here: its key never leaves it. Whoever holds ca.key can make
    more: keep it where the coordinator's other secrets are. The CA's fingerprint is shown, also where nothing is asked for.

    Before one ends, renew it: aggregator serve takes new files with its next connection, without a restart. What was there stays
    beside it as NAME.old.pem and NAME.old.key.

    Example: aggregator certificates --out certs --host aggregator.example.org --site siemens --site ge --coordinator anna

    Example: aggregator certificates --out certs --renew
    """
    from aggregator.certificates import Authority

    wanted = (host or [], site or [], coordinator or [], observer or [])
    if renew:
        _renew(out, *wanted)
    else:
        make_certificates(out, *wanted)
    tell_ca(Authority.read(out))


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
    answer(store, authority, asked, days, patients, out)
    tell_ca(authority)


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
    keep_events_off_the_screen()
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


def make_certificates(
    folder: Path,
    hosts: Sequence[str],
    sites: Sequence[str],
    coordinators: Sequence[str],
    observers: Sequence[str],
    err: bool = False,
) -> None:
    """Make those that are asked for, and the CA if there is none; say what was written, on stderr if `err`."""
    from aggregator import certificates as authority

    with _writing(folder):
        written = authority.make(folder, hosts, sites, coordinators, observers)
    if written:
        typer.echo(f"wrote {', '.join(path.name for path in written)} in {folder}", err=err)


def _renew(
    folder: Path, hosts: Sequence[str], sites: Sequence[str], coordinators: Sequence[str], observers: Sequence[str]
) -> None:
    from datetime import UTC, datetime

    from aggregator import certificates as authority
    from shared.certificates import holder_in

    with _writing(folder):
        written = authority.renew(folder, hosts, sites, coordinators, observers)
    for path in (path for path in written if path.suffix == ".pem"):
        until, before = datetime.fromtimestamp(holder_in(path).expires_at, UTC), f"{path.stem}.old"
        kept = f"; the old pair: {before}.pem, {before}.key" if (folder / f"{before}.pem").exists() else ""
        typer.echo(f"renewed {path.name} and {path.stem}.key in {folder}, until {until:%Y-%m-%d}{kept}")
    if folder / "aggregator.pem" in written:
        typer.echo("aggregator serve takes them with its next connection; under systemd restart the service")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    from shared.errors import InputError

    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write certificates to {folder}: {error.strerror}; choose another folder") from error


def answer(
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

    keep_events_off_the_screen()
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


def tell_ca(authority: "Authority", err: bool = False) -> None:
    """Show what a site compares, so that it trusts this CA and no other."""
    from shared.certificates import fingerprint

    shown = fingerprint(authority.certificate.public_key())
    typer.echo(f"fingerprint of the CA, to be compared by each site: {shown}", err=err)
