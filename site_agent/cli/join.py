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
    out: Annotated[Path, typer.Option(help="Folder of this site's certificate files.")] = Path(),
) -> None:
    """Ask for a certificate, then put the answer in place. The private key is made here and never leaves.

    Send NAME.csr to the coordinator. An agent that is started without its certificate takes the answer by itself.

    Example: site-agent join --site siemens
    Example: site-agent join --finish siemens.approved.pem
    """
    from datetime import UTC, datetime

    from shared.errors import InputError
    from site_agent import enrolment

    if bool(site) == (finish is not None):
        raise InputError("give --site NAME to ask for a certificate, or --finish FILE to put the answer in place")
    if finish is None:
        asked = enrolment.request(out, site)
        print(f"wrote {asked.csr}: send it to the coordinator. {asked.key} stays here, readable by you alone")
        print(f"fingerprint of the key, to be compared with them: {asked.fingerprint}")
        print(f"then put their answer, {site}.approved.pem, into {out.resolve()} and start the agent")
        print(f"(while one runs with an older certificate: site-agent join --finish {site}.approved.pem --out {out})")
        return
    enrolled = enrolment.finish(out, finish)
    until = datetime.fromtimestamp(enrolled.holder.expires_at, UTC)
    print(f"this is site {enrolled.holder.site}, until {until:%Y-%m-%d} (serial number {enrolled.holder.serial})")
    print(f'in site.toml:\n[tls]\nca = "{enrolled.ca}"\ncertificate = "{enrolled.certificate}"\nkey = "{enrolled.key}"')
    print("an agent that runs with these files takes the new ones with its next connection")
