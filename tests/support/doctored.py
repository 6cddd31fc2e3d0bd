"""A site for the doctor to look at, whose files and settings a test makes wrong in one way."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aggregator import certificates
from shared.tls import TlsFiles
from site_agent.config import SiteConfig
from site_agent.doctor.finding import Examined
from tests.support.serving import tls_of


def certified(folder: Path, *hosts: str, sites: tuple[str, ...] = ("ge",), **when: Any) -> TlsFiles:
    """Make a CA, an aggregator's certificate for these hosts, and the sites'; return the first site's files."""
    certificates.make(folder, hosts or ("127.0.0.1",), sites, **when)
    return tls_of(folder, sites[0])


@contextmanager
def mounted(*commands: str, folder: Path) -> Iterator[Path]:
    """Mount what the commands, run in `folder`, mount: for nobody else. Yield the folder as it is seen there."""
    namespace = ["unshare", "-m" if os.getuid() == 0 else "-Urm"]
    script = "; ".join(["set -e", *commands, "echo ready", "exec cat"])
    with subprocess.Popen(
        [*namespace, "sh", "-c", script], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield Path(f"/proc/{process.pid}/root{folder}")
        finally:
            process.stdin.close()  # which ends it, and with it the namespace


def examined(folder: Path, tls: TlsFiles | None, port: int = 1, host: str = "127.0.0.1", **more: Any) -> Examined:
    """Return a site in `folder` that dials this port; `more` are settings, or fields of Examined by their names."""
    fields = {name: more.pop(name) for name in list(more) if name in Examined.__dataclass_fields__}
    settings: dict[str, Any] = {
        "aggregator": f"{host}:{port}",
        "cohort": folder / "cohort",
        "weights": folder / "backbone",
        "state": folder / "state",
        "tls": tls,
        "plain_site": "" if tls else "ge",
    }
    return Examined(SiteConfig(**{**settings, **more}), **fields)
