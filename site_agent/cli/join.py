"""`site-agent join`: becoming a site of a federation without the key ever leaving."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("join")(join)


def join(
    site: Annotated[str, typer.Option(help="The name that the coordinator gave this site.")] = "",
    finish: Annotated[Path | None, typer.Option(help="The coordinator's answer: NAME.approved.pem.")] = None,
    ca_fingerprint: Annotated[
        str, typer.Option(help="What the coordinator reads out of the CA, with --finish; refused if it differs.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of this site's certificate files.")] = Path(),
) -> None:
    """Ask for a certificate, then put the answer in place. The private key is made here and never leaves.

    Send NAME.csr to the coordinator. An agent that is started without its certificate takes the answer by itself.

    Example: site-agent join --site siemens
    Example: site-agent join --finish siemens.approved.pem --ca-fingerprint "5b71 02cd ..."
    """
    from datetime import UTC, datetime

    from shared.errors import InputError
    from site_agent import enrolment

    if bool(site) == (finish is not None):
        raise InputError("give --site NAME to ask for a certificate, or --finish FILE to put the answer in place")
    if site and ca_fingerprint:
        raise InputError("--ca-fingerprint is of the CA in the coordinator's answer: give it with --finish FILE")
    if finish is None:
        asked = enrolment.request(out, site)
        print(f"wrote {asked.csr}: send it to the coordinator. {asked.key} stays here, readable by you alone")
        print(f"fingerprint of the key, to be compared with them: {asked.fingerprint}")
        print(
            f"then put their answer, {site}.approved.pem, into {out.resolve()} and start the agent: it shows the CA's, too"
        )
        print(
            "or, while one runs with an older certificate, and to have the CA's fingerprint checked before it is trusted:"
        )
        print(f'site-agent join --finish {site}.approved.pem --out {out} --ca-fingerprint "what they read out"')
        return
    enrolled = enrolment.finish(out, finish, ca_fingerprint=ca_fingerprint)
    until = datetime.fromtimestamp(enrolled.holder.expires_at, UTC)
    print(f"this is site {enrolled.holder.site}, until {until:%Y-%m-%d} (serial number {enrolled.holder.serial})")
    print(enrolled.to_compare)
    if not ca_fingerprint:
        print(
            "the CA decides whom this site talks to: compare its fingerprint with the coordinator by telephone before you start"
        )
    print(f'in site.toml:\n[tls]\nca = "{enrolled.ca}"\ncertificate = "{enrolled.certificate}"\nkey = "{enrolled.key}"')
    print("an agent that runs with these files takes the new ones with its next connection")
