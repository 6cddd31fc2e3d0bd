"""Raw folders in, prepared cohorts out: one folder per vendor, and a list of the cases that could not be used.

    OUT/<vendor>/cases.csv, preparation.json        see `cases` and `cohort`
    OUT/<vendor>/<dataset>/<case>/{ed,es}.nii.gz    uint8
    OUT/rejected.csv, preparation.json

Everything is written under OUT/.preparing first; a vendor's folder appears whole, by one rename.
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from shared.errors import InputError
from site_agent.data import cases as table
from site_agent.data import convert, folds, layouts
from site_agent.data.cases import CASES, Case
from site_agent.data.cohort import PREPARATION
from site_agent.data.convert import Converted, Progress
from site_agent.data.layouts import VENDORS, RawCase, Rejection
from site_agent.data.preprocess import Spacing, preprocessing_hash
from site_agent.data.summary import PrepareReport, VendorSummary, summarise, warnings

__all__ = ["PrepareOptions", "PrepareReport", "Progress", "VendorSummary", "prepare"]

log = structlog.get_logger()

REJECTED, UNFINISHED = "rejected.csv", ".preparing"
REPLACED = "replaced"
"""Folder inside the unfinished one where earlier cohorts wait until all new ones are in their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What `site-agent prepare` can be told. `jobs` None means one process per usable core; it never changes the output."""

    spacing_mm: Spacing = (1.0, 1.0, 10.0)
    size: tuple[int, int] = (192, 192)
    layout: str = "auto"
    seed: int = 0
    jobs: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not all(0 < mm < float("inf") for mm in self.spacing_mm):
            raise InputError(f"spacing must be three positive numbers of mm, got {self.spacing_mm}")
        if min(self.size) < 1:
            raise InputError(f"size must be two positive numbers of voxels, got {self.size}")
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"jobs must be at least 1, got {self.jobs}")


def prepare(
    sources: Sequence[Path], out: Path, options: PrepareOptions, progress: Progress | None = None
) -> PrepareReport:
    """Prepare every case of `sources` into `out`.

    Raises InputError before anything is written if a source or `out` cannot be used, and at the end if no case was left.
    """
    work = out / UNFINISHED
    _recover(out, work)
    found = [folder for source in sources for folder in layouts.find(source, options.layout)]
    _check_out(out, sources, overwrite=options.overwrite)
    raw, rejections = _collect([layouts.listing(folder) for folder in found])
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        results = convert.convert_all(raw, work, options.spacing_mm, options.size, _jobs(options), progress)
        return _publish(out, work, raw, results, rejections, options)
    except OSError as error:
        raise InputError(
            f"cannot write to {out}: {error.strerror or error}; make room or choose another --out"
        ) from error
    finally:
        if not (work / REPLACED).exists():  # else the earlier cohorts could not be put back and are only there
            shutil.rmtree(work, ignore_errors=True)


def with_folds(cases: Sequence[Case], seed: int) -> list[Case]:
    """The cases with folds 0-4 given to the training cases of each vendor; test cases have none."""
    assigned: dict[tuple[str, str], int] = {}
    for vendor in VENDORS:
        training = {case.key: case.label for case in cases if case.vendor == vendor and case.split == "train"}
        assigned |= {(vendor, key): fold for key, fold in folds.assign(training, seed).items()}
    return [replace(case, fold=assigned.get((case.vendor, case.key))) for case in cases]


# --- before ---------------------------------------------------------------------------------------------------------


def _collect(listings: Sequence[layouts.Listing]) -> tuple[list[RawCase], list[Rejection]]:
    """All cases once; a case id that comes up again in the same data set is left out."""
    unique: dict[tuple[str, str], RawCase] = {}
    rejections = [rejection for listing in listings for rejection in listing.rejections]
    for case in (case for listing in listings for case in listing.cases):
        if (case.dataset, case.case_id) in unique:
            reason = "a case of this id was already found in another folder; the first one is used"
            rejections.append(Rejection(case.dataset, case.case_id, reason))
        else:
            unique[case.dataset, case.case_id] = case
    return sorted(unique.values(), key=lambda case: (case.vendor, case.dataset, case.case_id)), rejections


def _check_out(out: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    for source in sources:
        if out.resolve().is_relative_to(source.resolve()):
            raise InputError(f"the output folder {out} lies inside the source {source}; choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} exists and is not a folder; choose another --out")
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if present <= {UNFINISHED, REJECTED}:
        return
    if not overwrite:
        raise InputError(
            f"{out} is not empty; choose another --out, or pass --overwrite to replace what prepare wrote there"
        )
    foreign = sorted(present - {UNFINISHED, REJECTED, PREPARATION, *VENDORS})
    if foreign:
        raise InputError(
            f"{out} holds {foreign[0]!r}, which prepare did not write; --overwrite is refused, choose another --out"
        )


def _jobs(options: PrepareOptions) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return options.jobs or usable or 1


# --- after ----------------------------------------------------------------------------------------------------------


def _prepared_case(raw: RawCase, result: Converted, work: Path) -> Case:
    volumes = asdict(result.ventricles) if result.ventricles else {}
    return Case(
        case_id=raw.case_id,
        dataset=raw.dataset,
        vendor=raw.vendor,
        centre=raw.centre,
        diagnosis=raw.diagnosis,
        label=raw.label,
        split=raw.split,
        fold=None,
        n_slices=result.n_slices,
        ed=raw.ed_index,
        es=raw.es_index,
        crop=result.crop,
        **volumes,
        folder=convert.case_folder(work, raw),
    )


def _publish(
    out: Path,
    work: Path,
    raw: Sequence[RawCase],
    results: Sequence[Converted | str],
    listed: Sequence[Rejection],
    options: PrepareOptions,
) -> PrepareReport:
    """Write the list of rejections, put each vendor's folder in its place, then what describes them all."""
    pairs = list(zip(raw, results, strict=True))
    failed = [Rejection(case.dataset, case.case_id, result) for case, result in pairs if isinstance(result, str)]
    rejections = sorted([*listed, *failed], key=lambda each: (each.dataset, each.case_id, each.reason))
    _write_rejections(out / REJECTED, rejections)
    prepared = [_prepared_case(case, result, work) for case, result in pairs if isinstance(result, Converted)]
    if not prepared:
        reason = f", the first one ({rejections[0].case_id}) because: {rejections[0].reason}" if rejections else ""
        raise InputError(f"no case could be prepared; {len(rejections)} left out{reason}; see {out / REJECTED}")
    cases = with_folds(prepared, options.seed)
    cohorts = {vendor: own for vendor in VENDORS if (own := [case for case in cases if case.vendor == vendor])}
    facts = _preparation_facts(options)
    for vendor, own in cohorts.items():
        table.write(work / vendor / CASES, own)
        _write_json(work / vendor / PREPARATION, facts)
    _swap(out, work, list(cohorts))
    summaries = tuple(summarise(vendor, own) for vendor, own in cohorts.items())
    counts = {s.vendor: {"train": s.train, "test": s.test} for s in summaries}
    _write_json(out / PREPARATION, {**facts, "vendors": counts, "rejected": len(rejections)})
    report = PrepareReport(
        out=out,
        preprocessing_hash=facts["preprocessing_hash"],
        vendors=summaries,
        rejections=tuple(rejections),
        warnings=tuple(warning for summary in summaries for warning in warnings(summary)),
    )
    _log(report)
    return report


def _swap(out: Path, work: Path, vendors: Sequence[str]) -> None:
    """Put the new cohorts in the place of all earlier ones; if one move fails, the earlier ones are put back."""
    placed: list[str] = []
    (work / REPLACED).mkdir()
    try:
        for vendor in VENDORS:
            if (out / vendor).exists():
                (out / vendor).rename(work / REPLACED / vendor)
            if vendor in vendors:
                (work / vendor).rename(out / vendor)
                placed.append(vendor)
        (work / REPLACED).rename(work / "dropped")  # from here on the earlier cohorts are left to be deleted
    except OSError:
        _restore(out, work, placed)
        raise


def _restore(out: Path, work: Path, placed: Sequence[str] = ()) -> None:
    """Undo an unfinished swap: the `placed` cohorts go back into `work`, the earlier ones to where they were."""
    earlier = sorted(path.name for path in (work / REPLACED).iterdir())
    for vendor in {*placed, *earlier}:
        if (out / vendor).exists():
            (out / vendor).rename(work / f"undone-{vendor}")
    for vendor in earlier:
        (work / REPLACED / vendor).rename(out / vendor)
    (work / REPLACED).rmdir()


def _recover(out: Path, work: Path) -> None:
    """Put back what a run that was killed in the middle of a swap had set aside."""
    try:
        if (work / REPLACED).is_dir():
            _restore(out, work)
    except OSError as error:
        raise InputError(
            f"cannot put the earlier cohorts in {work / REPLACED} back: {error.strerror or error}; move them to {out}"
        ) from error


def _preparation_facts(options: PrepareOptions) -> dict[str, Any]:
    packages = ("med-duallora", "nibabel", "numpy")
    return {
        "format": 1,
        "spacing_mm": [float(mm) for mm in options.spacing_mm],
        "size": [int(n) for n in options.size],
        "seed": options.seed,
        "preprocessing_hash": preprocessing_hash(options.spacing_mm, options.size),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def _log(report: PrepareReport) -> None:
    """Counts only: neither case ids nor file names belong in a log."""
    for summary in report.vendors:
        log.info("cohort_prepared", vendor=summary.vendor, train_count=summary.train, test_count=summary.test)
        if summary.crop.get("motion"):
            log.info("crop_centre_found_from_motion", vendor=summary.vendor, case_count=summary.crop["motion"])
        if summary.crop.get("centre"):
            log.warning("crop_fell_back_to_image_centre", vendor=summary.vendor, case_count=summary.crop["centre"])
    if report.rejections:
        log.warning("cases_rejected", case_count=len(report.rejections))


def _write_rejections(path: Path, rejections: Sequence[Rejection]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("dataset", "case_id", "reason"))
    writer.writerows((rejection.dataset, rejection.case_id, rejection.reason) for rejection in rejections)
    path.write_text(text.getvalue(), encoding="utf-8")


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
