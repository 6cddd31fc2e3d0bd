"""`site-agent cache`: what the folder of frozen activations holds, and its end."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path | None, typer.Option(help="Folder of frozen activations.")]
Config = Annotated[Path | None, typer.Option(help="site.toml that says where it is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    area = typer.Typer(
        help="The frozen activations of this site's images: derived patient data, as private as the images.\n\n"
        "Example: site-agent cache show --config site.toml",
        no_args_is_help=True,
    )
    area.command("show")(show)
    area.command("purge")(purge)
    app.add_typer(area, name="cache")


def show(cache: Folder = None, config: Config = None, as_json: AsJson = False) -> None:
    """Say how much is kept, and for which base model.

    Example: site-agent cache show --config site.toml
    """
    from site_agent.cache.folder import CacheFolder

    folder = _folder(cache, config)
    found = CacheFolder(folder, 0).usage()
    if as_json:
        scopes = [{"scope": u.scope, "entries": u.entries, "bytes": u.size, "of": u.facts} for u in found]
        print(json.dumps({"folder": str(folder), "bytes": sum(u.size for u in found), "scopes": scopes}))
        return
    print(f"{folder}: {sum(u.size for u in found) / 1e6:,.1f} MB in {sum(u.entries for u in found):,} entries")
    for usage in found:
        print(f"  {usage.size / 1e6:>10,.1f} MB {usage.entries:>7,}  {_of(usage.facts)}")


def _of(facts: Mapping[str, Any]) -> str:
    """Return in words what all entries of a scope have in common."""
    try:
        return (
            f"base model {facts['base_model'][:12]}, {facts['frames']} frames, before block {facts['first_block']}, "
            f"{facts['stored']}, preprocessing {facts['preprocessing'][:12]}"
        )
    except (KeyError, TypeError):
        return "of an unknown base model: its scope.json is missing or damaged"


def purge(cache: Folder = None, config: Config = None, as_json: AsJson = False) -> None:
    """Remove all of it. An agent that runs goes on, and computes what it needs anew.

    Example: site-agent cache purge --config site.toml
    """
    from site_agent.cache.folder import CacheFolder

    folder = _folder(cache, config)
    freed = CacheFolder(folder, 0).purge()
    print(
        json.dumps({"folder": str(folder), "freed": freed}) if as_json else f"{folder}: {freed / 1e6:,.1f} MB removed"
    )


def _folder(cache: Path | None, config: Path | None) -> Path:
    from shared.errors import InputError
    from site_agent import config as site_config

    if cache is None and config is None:
        raise InputError("say which folder: --cache FOLDER, or --config site.toml of the agent that fills it")
    folder = cache or site_config.load(config, {"aggregator": "localhost:1"}).cache_folder
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: nothing is kept there; check the path")
    return folder
