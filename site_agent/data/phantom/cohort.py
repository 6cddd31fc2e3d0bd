"""Writes a whole synthetic cohort: raw ACDC and M&Ms folders, a card that says SYNTHETIC, and the truth beside them.

Every case has its own generator, so the bytes do not depend on the number of processes or the order of work.
"""

import csv
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from shared.errors import InputError
from site_agent.data.phantom import raw_files
from site_agent.data.phantom.case import PhantomCase, sample_case
from site_agent.data.phantom.profile import PhantomConfig, PlannedCase, Split, Vendor, generator, plan

ACDC_SHARE: dict[Split, float] = {"train": 100 / 273, "test": 0.5}
"""Part of the Siemens cases laid out as ACDC: the real sets hold 100 ACDC cases among 273 for training."""

CARD = "SYNTHETIC.txt"
FEW_CASES = 24
"""Below this, starting processes costs more than it saves."""
TRUTH = "phantom_truth.csv"
TRUTH_COLUMNS = (
    "case", "dataset", "split", "vendor", "diagnosis", "condition", "severity", "lv_edv", "lv_esv", "lv_ef", "rv_edv", "rv_esv",
    "rv_ef", "wall", "ed", "es",
)  # fmt: skip

Row = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A planned case with its place on disk."""

    planned: PlannedCase
    dataset: str
    name: str


@dataclass(frozen=True, slots=True)
class VendorSummary:
    """What one vendor got."""

    vendor: Vendor
    train: int
    train_healthy: int
    test: int
    test_healthy: int
    acdc: int
    mnms: int


def assignments(config: PhantomConfig) -> list[Assignment]:
    """List every case of the cohort with its data set and name, training first."""
    result: list[Assignment] = []
    patients = 0
    for split in get_args(Split):
        for vendor in config.vendors:
            planned = plan(config, split, vendor)
            in_acdc = _acdc_count(config, split, vendor, len(planned))
            for case in planned:
                if case.index <= in_acdc:
                    patients += 1
                    result.append(Assignment(case, "acdc", f"patient{patients:03d}"))
                else:
                    result.append(Assignment(case, "mnms", raw_files.mnms_code(config.seed, case)))
    return result


def _acdc_count(config: PhantomConfig, split: Split, vendor: Vendor, total: int) -> int:
    if vendor != "siemens" or config.layout == "mnms":
        return 0
    return total if config.layout == "acdc" else round(total * ACDC_SHARE[split])


def write_cohort(config: PhantomConfig, out_dir: Path, *, jobs: int = 1) -> list[VendorSummary]:
    """Write the cohort into `out_dir`, which must be empty or absent.

    Raises InputError if it is not. The card is written first, so that nothing ever lies there unlabelled; the tables last.
    """
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, got {jobs}")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError(f"{out_dir} is not an empty folder; choose another one or remove it first")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out_dir}: {error.strerror}; choose another one") from error
    (out_dir / CARD).write_text(card(config), encoding="utf-8")
    cases = assignments(config)
    write = partial(_write_case, config, out_dir)
    if jobs == 1 or len(cases) < FEW_CASES:
        written = [write(case) for case in cases]
    else:
        # fork would copy whatever threads the caller runs
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            written = list(pool.map(write, cases, chunksize=8))
    rows = [row for row, _ in written if row is not None]
    if rows:
        raw_files.write_mnms_csv(out_dir, sorted(rows, key=lambda row: str(row["External code"])))
    with (out_dir / TRUTH).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, TRUTH_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(truth for _, truth in written)
    return [_summary(vendor, cases) for vendor in config.vendors]


def _write_case(config: PhantomConfig, root: Path, case: Assignment) -> tuple[Row | None, Row]:
    """Draw and write one case; return its line of the M&Ms table, if any, and its truth."""
    planned = case.planned
    rng = generator(config.seed, planned.split, planned.vendor, planned.index)
    drawn = sample_case(config, planned.vendor, planned.condition, rng, severity=planned.severity)
    truth = _truth(case, drawn)
    drawn = replace(drawn, diagnosis=planned.diagnosis)  # what the records say, which the truth may contradict
    if case.dataset == "acdc":
        raw_files.write_acdc(root, case.name, drawn, planned.split, config.spacing)
        return None, truth
    raw_files.write_mnms(
        root, case.name, drawn, planned.split, config.spacing, raw_files.oblique_affine(config.spacing, rng)
    )
    return raw_files.mnms_row(planned, case.name, drawn), truth


def _truth(case: Assignment, drawn: PhantomCase) -> Row:
    body, planned = drawn.body, case.planned
    volumes = {"lv_edv": body.lv_edv, "lv_esv": body.lv_esv, "lv_ef": 100.0 * body.lv_ef}
    volumes |= {"rv_edv": body.rv_edv, "rv_esv": body.rv_esv, "rv_ef": 100.0 * body.rv_ef, "wall": body.wall}
    return {
        "case": case.name,
        "dataset": case.dataset,
        "split": planned.split,
        "vendor": planned.vendor,
        "diagnosis": planned.diagnosis,
        "condition": planned.condition,
        "severity": f"{body.severity:.4f}",
        **{name: f"{value:.3f}" for name, value in volumes.items()},
        "ed": drawn.ed,
        "es": drawn.es,
    }


def _summary(vendor: Vendor, cases: list[Assignment]) -> VendorSummary:
    mine = [case for case in cases if case.planned.vendor == vendor]
    train = [case for case in mine if case.planned.split == "train"]
    test = [case for case in mine if case.planned.split == "test"]
    return VendorSummary(
        vendor=vendor,
        train=len(train),
        train_healthy=sum(case.planned.diagnosis == "NOR" for case in train),
        test=len(test),
        test_healthy=sum(case.planned.diagnosis == "NOR" for case in test),
        acdc=sum(case.dataset == "acdc" for case in mine),
        mnms=sum(case.dataset == "mnms" for case in mine),
    )


def card(config: PhantomConfig) -> str:
    """Return the text that marks the folder as synthetic and says how to make it again."""
    return (
        "SYNTHETIC DATA. No patient was scanned for any file in this folder.\n"
        "Computed cine cardiac MRI phantoms in the file layouts of ACDC and M&Ms, made by `site-agent phantom`.\n"
        "Not for clinical use, and no measure of how a method works on patients.\n"
        f"{TRUTH} holds what was drawn (volumes in ml, EF in per cent, wall in mm); no data set has such a file.\n\n"
        f"configuration = {json.dumps(asdict(config), sort_keys=True)}\n"
    )
