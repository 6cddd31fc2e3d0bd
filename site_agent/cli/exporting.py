"""`site-agent export`: the trained model for other programs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from site_agent.cli import options
from site_agent.cli.options import AsJson, Crop, Like, Size, Spacing, Weights

if TYPE_CHECKING:
    from site_agent.predict import Model

FORMATS = ("peft", "merged", "bundle")
PARTS = ("dual", "global", "local")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    state: Annotated[Path, typer.Option(help="The agent's state folder.")],
    weights: Weights,
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or new.")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="peft (adapters), merged (all weights, for CineMA's code) or bundle (for MONAI)."
        ),
    ] = "peft",
    part: Annotated[str, typer.Option(help="dual (global and this site's own), global, or local.")] = "dual",
    size: Size = "",
    like: Like = None,
    spacing: Spacing = None,
    crop: Crop = None,
    as_json: AsJson = False,
) -> None:
    """Write this site's model for other programs: a PEFT folder, merged weights, or a MONAI bundle.

    What holds the site's own part is PRIVATE, and says so: keep it in the hospital. --like, --spacing and --crop
    are for a bundle: how raw images are prepared in it.

    Example: site-agent export --state state/ --weights weights/ --format bundle --out bundle/
    """
    options.one_of(form, FORMATS, "--format")
    options.one_of(part, PARTS, "--part")
    from site_agent import predict
    from site_agent.state import read_contract

    chosen: Any = part
    model = predict.site_model(weights, size, state, chosen, options.geometry(like, spacing, crop)).to_be_given_away()
    if form == "peft":
        from site_agent.export import peft

        peft.write(out, model, read_contract(state).manifest.metadata)
    elif form == "merged":
        from site_agent.export import merged

        merged.write(out, model)
    else:
        from site_agent.export import bundle

        bundle.write(out, model)
    print(json.dumps({**model.facts(), "format": form, "out": str(out)}) if as_json else _text(out, form, model))


def _text(out: Path, form: str, model: "Model") -> str:
    from site_agent.export import folders
    from site_agent.predict import WORDS

    version = f", version {model.version.version}" if model.version else ""
    return f"wrote {out} ({form}): {WORDS[model.part]}{version}\n{folders.whose(model.private)}"
