"""The options that stand for settings of `site.toml`: named once for the commands that take them, and read the same way."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from site_agent.config import SiteConfig

Aggregator = Annotated[str | None, typer.Option("--aggregator", help="host:port to dial.")]
Config = Annotated[Path | None, typer.Option("--config", help="site.toml; options here override it.")]
CohortFolder = Annotated[Path | None, typer.Option("--cohort", help="Prepared cohort: a folder with cases.csv.")]
Weights = Annotated[Path | None, typer.Option("--weights", help="Backbone folder or CineMA's safetensors file.")]
Size = Annotated[str | None, typer.Option("--size", help="tiny or base, for a bare CineMA file.")]
State = Annotated[Path | None, typer.Option("--state", help="Folder for the private local adapter and the outbox.")]
CA = Annotated[Path | None, typer.Option("--tls-ca", help="CA certificate (PEM).")]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="This site's certificate (PEM).")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="This site's private key (PEM).")]
PlainSite = Annotated[
    str | None, typer.Option("--plain-site", help="Site name for a trial without TLS, loopback only.")
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder for frozen activations; default: `activations` beside --state.")
]
CacheMB = Annotated[int | None, typer.Option("--cache-mb", help="Disk space for them, MB; 0 keeps none.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Precision = Annotated[str | None, typer.Option("--precision", help="Of matrix products: auto, float32 or bfloat16.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; figures repeat at the same number.")]
Fold = Annotated[int | None, typer.Option("--validation-fold", help="Fold 0-4 kept for validation.")]


def read(
    config: Path | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    unless_set: Mapping[str, Any] | None = None,
    **options: Any,
) -> "SiteConfig":
    """Return what a file and the options beside it say; an option that is None says nothing. `unless_set`: values for settings
    that neither names.

    Raises InputError as `site_agent.config.load`, and for TLS files of which some are missing.
    """
    from shared.errors import InputError
    from shared.tls import TlsFiles
    from site_agent import config as site_config

    tls = TlsFiles(ca, certificate, key) if ca and certificate and key else None
    if tls is None and (ca or certificate or key):
        raise InputError("--tls-ca, --tls-cert and --tls-key go together: give all three, or [tls] in site.toml")
    return site_config.load(config, {**options, "tls": tls}, unless_set)
