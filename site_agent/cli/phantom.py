"""`site-agent phantom`: write a synthetic cohort in the real data sets' raw layouts, or a figure of it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import InputError

if TYPE_CHECKING:
    from site_agent.data.phantom.cohort import VendorSummary
    from site_agent.data.phantom.profile import PhantomConfig

HELP = """Write a SYNTHETIC cine cohort (no patient data) in the raw layouts of ACDC and M&Ms, for `site-agent prepare` to read.

The defaults are the demo's cohort: 525 training cases over four scanner vendors and 100 held-out cases for each.

Examples:

  site-agent phantom --out raw --seed 0 --jobs 2

  site-agent phantom --out tiny --scale 0.02 --test-cases 4 --vendors siemens,canon

  site-agent phantom --figure phantom.png

Exit codes: 0 done, 3 an option is wrong or the folder is not empty.
"""


def register(app: typer.Typer) -> None:
    """Add `phantom` to the command line."""
    app.command("phantom", help=HELP)(phantom)


def phantom(
    out: Annotated[Path | None, typer.Option(help="Folder for the raw files; must be empty or absent.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also (or only) save a picture of one case per vendor and class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed and options, same bytes.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="Processes; default one per core. Does not change a byte.")] = None,
    scale: Annotated[
        float, typer.Option(help="Factor on the 273/125/77/50 training cases (at least 4 per vendor).")
    ] = 1.0,
    test_cases: Annotated[int, typer.Option(help="Held-out cases per vendor, half of them healthy.")] = 100,
    vendors: Annotated[str, typer.Option(help="Comma-separated vendors.")] = "siemens,philips,ge,canon",
    layout: Annotated[str, typer.Option(help="acdc (Siemens only), mnms, or both.")] = "both",
    size: Annotated[tuple[int, int, int], typer.Option(help="Voxels in x, y and number of slices.")] = (64, 64, 8),
    spacing: Annotated[tuple[float, float, float], typer.Option(help="mm; the third is the slice distance.")] = (
        2.0,
        2.0,
        10.0,
    ),
    frames: Annotated[int, typer.Option(help="Frames of the beat; 2 = ED and ES only.")] = 2,
    severity: Annotated[float, typer.Option(help="How far disease lies from normal.")] = 1.6,
    noise: Annotated[float, typer.Option(help="Factor on the image noise.")] = 0.6,
    jitter: Annotated[float, typer.Option(help="Factor on position and rotation.")] = 0.6,
    style: Annotated[float, typer.Option(help="0: all vendors look the same, 1: each its own look.")] = 1.0,
    label_shift: Annotated[
        float, typer.Option(help="0: the same healthy share everywhere, 1: each vendor's own.")
    ] = 1.0,
    mix_shift: Annotated[float, typer.Option(help="0: the same disease mix everywhere, 1: each vendor's own.")] = 1.0,
    label_convention: Annotated[
        bool, typer.Option("--label-convention", help="Two vendors call mild disease diseased, two call it healthy.")
    ] = False,
    wall_bias: Annotated[float, typer.Option(help="Factor on the vendors' apparent wall thickness bias.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    from site_agent.data.phantom.cohort import write_cohort
    from site_agent.data.phantom.profile import PhantomConfig

    if out is None and figure is None:
        raise InputError("nothing to write: give --out FOLDER for a cohort, --figure FILE for a picture, or both")
    config = PhantomConfig(
        seed=seed,
        shape=size,
        spacing=spacing,
        n_frames=frames,
        severity=severity,
        noise=noise,
        jitter=jitter,
        style=style,
        label_shift=label_shift,
        mix_shift=mix_shift,
        label_convention=label_convention,
        wall_bias=wall_bias,
        scale=scale,
        test_cases=test_cases,
        vendors=tuple(name.strip().lower() for name in vendors.split(",")),  # type: ignore[misc]  # checked there
        layout=layout,  # type: ignore[arg-type]  # checked there
    )
    if figure is not None:
        _save_figure(config, figure)
    if out is not None:
        summary = write_cohort(config, out, jobs=(os.cpu_count() or 1) if jobs is None else jobs)
        _print(summary, out, seed, as_json)


def _save_figure(config: "PhantomConfig", path: Path) -> None:
    try:
        from site_agent.data.phantom.figure import write_figure
    except ModuleNotFoundError as error:
        raise InputError(f"the figure needs {error.name}: pip install 'med-duallora[report]'") from error
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} for the figure; make it first")
    try:
        write_figure(config, path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot save the figure as {path}: {error}") from error


def _print(summary: "list[VendorSummary]", out: Path, seed: int, as_json: bool) -> None:
    if as_json:
        vendors = {
            one.vendor: {
                "train": one.train,
                "train_healthy": one.train_healthy,
                "test": one.test,
                "test_healthy": one.test_healthy,
                "acdc": one.acdc,
                "mnms": one.mnms,
            }
            for one in summary
        }
        typer.echo(json.dumps({"synthetic": True, "seed": seed, "out": str(out), "vendors": vendors}, indent=2))
        return
    typer.echo(f"SYNTHETIC cohort, seed {seed}, in {out}")
    typer.echo(f"{'vendor':<9}{'train':>6}{'healthy':>9}{'test':>6}{'healthy':>9}{'ACDC':>6}{'M&Ms':>6}")
    for one in summary:
        share = f"{100 * one.train_healthy / one.train:.0f} %"
        tested = f"{100 * one.test_healthy / one.test:.0f} %" if one.test else "-"
        typer.echo(f"{one.vendor:<9}{one.train:>6}{share:>9}{one.test:>6}{tested:>9}{one.acdc:>6}{one.mnms:>6}")
    typer.echo(f"{'all':<9}{sum(one.train for one in summary):>6}{'':>9}{sum(one.test for one in summary):>6}")
