"""What a preparation amounted to: counts per vendor, and what a person should look at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from site_agent.data.cases import Case
from site_agent.data.folds import FOLDS
from site_agent.data.layouts import Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorSummary:
    """Counts of one prepared cohort. `training_patients[f]`: training cases when fold f is held out for validation."""

    vendor: str
    train: int
    train_normal: int
    test: int
    test_normal: int
    training_patients: tuple[int, ...]
    crop: dict[str, int]

    @property
    def healthy_share(self) -> float | None:
        """Share of normal cases among the training cases."""
        return self.train_normal / self.train if self.train else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareReport:
    """What was made, what was left out, and what a person should look at."""

    out: Path
    preprocessing_hash: str
    vendors: tuple[VendorSummary, ...]
    rejections: tuple[Rejection, ...]
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """For --json."""
        return {
            "out": str(self.out),
            "preprocessing_hash": self.preprocessing_hash,
            "vendors": {v.vendor: {**asdict(v), "healthy_share": v.healthy_share} for v in self.vendors},
            "rejected": [asdict(rejection) for rejection in self.rejections],
            "warnings": list(self.warnings),
        }


def summarise(vendor: str, cases: Sequence[Case]) -> VendorSummary:
    """Count the cases of one vendor."""
    train = [case for case in cases if case.split == "train"]
    test = [case for case in cases if case.split == "test"]
    in_fold = Counter(case.fold for case in train)
    return VendorSummary(
        vendor=vendor,
        train=len(train),
        train_normal=sum(case.label == 0 for case in train),
        test=len(test),
        test_normal=sum(case.label == 0 for case in test),
        training_patients=tuple(len(train) - in_fold[fold] for fold in range(FOLDS)),
        crop=dict(sorted(Counter(case.crop for case in cases).items())),
    )


def warnings(summary: VendorSummary) -> list[str]:
    """What a person should know before training on this cohort."""
    found = []
    rarest = min(summary.train_normal, summary.train - summary.train_normal)
    if summary.train == 0:
        found.append(f"{summary.vendor}: no training case, only {summary.test} held-out ones")
    elif rarest == 0:
        only = "normal" if summary.train_normal else "disease"
        found.append(
            f"{summary.vendor}: single class: all {summary.train} training cases are {only}; training needs both"
        )
    elif rarest < FOLDS:
        found.append(f"{summary.vendor}: only {rarest} training case(s) of the rarer class, so some folds have none")
    if fallen_back := summary.crop.get("centre", 0):
        found.append(f"{summary.vendor}: no motion found in {fallen_back} case(s); cropped around the image centre")
    return found
