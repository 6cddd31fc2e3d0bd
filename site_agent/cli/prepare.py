"""`site-agent prepare`: raw folders of a hospital or a public data set to prepared cohorts."""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from site_agent.cli.progress import with_bar

if TYPE_CHECKING:
    from site_agent.data.prepare import PrepareReport

HELP = """Turn raw scans into prepared cohorts, one folder per scanner vendor.

SOURCE is an unpacked ACDC, M&Ms or M&Ms-2 folder, or a folder of NIfTI or DICOM files with one CSV (see docs/data.md). Cases that
cannot be used are listed in OUT/rejected.csv with the reason; the rest is prepared.

Example: site-agent prepare raw/database raw/OpenDataset --out prepared

Exit codes: 0 done, 3 nothing could be prepared or an argument is wrong.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prepare", help=HELP)(prepare_command)


def prepare_command(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Raw folder(s).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to make; must be empty or new.", show_default=False)],
    layout: Annotated[str, typer.Option(help="auto, acdc, mnms, mnms2, dicom or generic.")] = "auto",
    spacing: Annotated[tuple[float, float, float], typer.Option(metavar="X Y Z", help="Voxel size in mm.")] = (
        1.0,
        1.0,
        10.0,
    ),
    size: Annotated[tuple[int, int], typer.Option(metavar="X Y", help="Crop around the heart, in voxels.")] = (
        192,
        192,
    ),
    seed: Annotated[int, typer.Option(help="Decides which case gets which fold.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Processes; default one per core. Does not change the output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what prepare wrote in OUT before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Parse, prepare, print."""
    from shared import logs
    from site_agent.data.prepare import PrepareOptions, prepare  # numpy and nibabel: not for --help

    logs.configure(terminal=io.StringIO() if sys.stderr.isatty() else sys.stderr)  # a person reads the report
    options = PrepareOptions(spacing_mm=spacing, size=size, layout=layout, seed=seed, jobs=jobs, overwrite=overwrite)
    report = with_bar("preparing cases", lambda told: prepare(sources, out, options, told))
    typer.echo(json.dumps(report.facts(), indent=2, sort_keys=True) if as_json else _text(report))


def _text(report: "PrepareReport") -> str:
    lines = []
    for v in report.vendors:
        share = f"{v.healthy_share:.0%} healthy" if v.healthy_share is not None else "none"
        folds = ", ".join(map(str, v.training_patients))
        lines.append(
            f"{v.vendor:<8} train {v.train:>4} ({share}), test {v.test:>4} ({v.test_normal} healthy); "
            f"training patients with fold 0-4 held out: {folds}"
        )
    lines += [f"warning: {warning}" for warning in report.warnings]
    if report.rejections:
        first = report.rejections[0]
        lines.append(f"left out {len(report.rejections)} case(s), e.g. {first.dataset} {first.case_id}: {first.reason}")
        lines.append(f"all of them: {report.out / 'rejected.csv'}")
    lines.append(
        f"prepared cohorts: {report.out} (one folder per vendor; preprocessing {report.preprocessing_hash[:12]})"
    )
    return "\n".join(lines)
