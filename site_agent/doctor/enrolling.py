"""A site before its agent's first start: the key and the request are there, the certificate is not.

The agent takes the coordinator's answer when it starts. Here that is tried in a folder of its own, and the doctor looks at what
came of it. The key is read where it lies: no second copy of it is made, whatever ends this process.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError
from shared.tls import TlsFiles
from site_agent import enrolment
from site_agent.doctor.finding import Finding, failed


@dataclass(frozen=True, slots=True)
class Found:
    """The files to look at. `wrong`: why there is no certificate among them. `origin`: of an answer that was tried, in words."""

    tls: TlsFiles | None
    wrong: Finding | None = None
    origin: str = ""


@contextlib.contextmanager
def files(tls: TlsFiles | None) -> Iterator[Found]:
    """Yield the files that are given, or what the agent would make of an answer that lies beside its request.

    Nothing in the site's folder changes; what is made elsewhere is gone afterwards.
    """
    try:
        enrolled = tls is None or tls.certificate.exists()
    except PermissionError:  # the check of these files says whose they are
        enrolled = True
    if tls is None or enrolled:
        yield Found(tls)
        return
    asked = enrolment.names_of(tls)
    if not asked.key.exists():
        yield Found(tls, None if tls.key.exists() else _no_request(tls))
        return
    if not asked.answer.exists():
        yield Found(tls, _awaited(tls, asked))
        return
    with tempfile.TemporaryDirectory(prefix="doctor-") as made:  # of mode 0700
        try:
            found = _tried(tls, asked, Path(made))
        except (InputError, OSError) as error:
            said = str(error).replace(made, str(tls.certificate.parent))
            found = Found(tls, failed(said, f"the agent would refuse {asked.answer.name}: do what the line above says"))
        yield found


def _tried(tls: TlsFiles, asked: enrolment.Names, made: Path) -> Found:
    """Take the answer in the folder `made`. Raises InputError as `enrolment.finish`, OSError."""
    shutil.copy(asked.answer, made)
    if (authority := tls.certificate.parent / enrolment.CA).exists():
        shutil.copy(authority, made)
    (made / asked.key.name).symlink_to(asked.key.resolve())
    taken = enrolment.finish(made, made / asked.answer.name)
    folder = tls.certificate.parent
    put = {
        folder / taken.ca.name: taken.ca,
        folder / taken.certificate.name: taken.certificate,
        folder / taken.key.name: asked.key,
    }
    return Found(
        TlsFiles(*(put.get(path, path) for path in (tls.ca, tls.certificate, tls.key))),
        origin=f"{asked.answer.name}, which the agent takes at its start; compare its CA's fingerprint: {taken.ca_fingerprint}",
    )


def _awaited(tls: TlsFiles, asked: enrolment.Names) -> Finding:
    said = f"there is no {tls.certificate} yet: its key is made ({asked.key.name})"
    if not asked.csr.exists():
        return failed(
            f"{said}, and neither the request nor an answer is beside it",
            f"make a new request: site-agent join --site {asked.site} --out {tls.certificate.parent}",
        )
    return failed(
        f"{said}, and the coordinator's answer is not beside it",
        f"send {asked.csr} to the coordinator, and put what comes back, {asked.answer.name}, beside it; the agent takes it "
        "at its start",
    )


def _no_request(tls: TlsFiles) -> Finding:
    folder, site = tls.certificate.parent, tls.certificate.stem
    return failed(
        f"there is neither {tls.certificate} nor a request for it",
        f"make the request: site-agent join --site {site} --out {folder}; or correct [tls] in site.toml",
    )
