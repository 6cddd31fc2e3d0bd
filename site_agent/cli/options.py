"""Options that several commands have, and choices of a model that are checked alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from site_agent.data.pairs import Geometry

Weights = Annotated[Path, typer.Option(help="Backbone folder or CineMA's safetensors file.")]
Size = Annotated[str, typer.Option("--size", help="tiny or base, for a CineMA file without config.json beside it.")]
State = Annotated[Path | None, typer.Option(help="The agent's state folder: judge with this site's model.")]
Frames = Annotated[str, typer.Option(help="stacked or siamese (classifier files only; a federation says itself).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Like = Annotated[
    Path | None,
    typer.Option(
        help="Prepared cohort: raw images are prepared as its cases. Default: as the site's own, by its report."
    ),
]
Spacing = Annotated[
    tuple[float, float, float] | None, typer.Option(metavar="X Y Z", help="Instead of --like: voxel size in mm.")
]
Crop = Annotated[tuple[int, int] | None, typer.Option(metavar="X Y", help="With --spacing: the crop, in voxels.")]


def geometry(
    like: Path | None, spacing: tuple[float, float, float] | None, crop: tuple[int, int] | None
) -> "Geometry | None":
    """What raw images are to be prepared to, if somebody says so. Raises InputError if it is said half or twice."""
    from shared.errors import InputError
    from site_agent.data.cohort import read_preparation
    from site_agent.data.pairs import Geometry

    if like is not None and (spacing or crop):
        raise InputError("--like says how images are prepared, so --spacing and --crop cannot too; leave one out")
    if bool(spacing) != bool(crop):
        raise InputError("--spacing and --crop go together, for example --spacing 1 1 10 --crop 192 192")
    if like is not None:
        found = read_preparation(like)
        return Geometry(found.spacing_mm, found.size)
    return Geometry(spacing, crop) if spacing and crop else None


def one_of(value: str, allowed: tuple[str, ...], option: str) -> None:
    """Raise InputError unless a value is one of those that an option has."""
    from shared.errors import InputError

    if value not in allowed:
        raise InputError(f"{option} is {value!r}; choose one of {', '.join(allowed)}")
