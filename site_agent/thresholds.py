"""From which probability on a site calls disease under a model of its own, and where that number comes from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.adapter import Adapter
from site_agent import state
from site_agent.report import REPORT

COMMON = 0.5
Arm = Literal["global", "dual"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """probability: disease is called from here on. cases: the validation cases that placed it; 0: nobody did, it is the common one.

    source: a phrase for people.
    """

    probability: float
    cases: int
    source: str

    @property
    def is_own(self) -> bool:
        """Whether the site's validation cases placed it."""
        return self.cases > 0

    @property
    def kind(self) -> str:
        """One word for tables."""
        return "validation" if self.is_own else "common"

    def calls_disease(self, probability: float) -> bool:
        """Whether a case of this probability is called diseased."""
        return probability >= self.probability

    def to_jsonable(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"value": self.probability, "from": self.kind, "cases": self.cases}


def common(why: str) -> Threshold:
    """Return 0.5, and why there is no better one."""
    return Threshold(COMMON, 0, f"the common one: {why}")


def of_site(folder: Path, arm: Arm, version: Adapter) -> Threshold:
    """Return the threshold that a site's validation cases gave under this version.

    From the site's report, else for the dual model from its history; the common one if they do not speak of this version.
    """
    report = read_report(folder)
    if report.get("adapter", {}).get("digest") == version.digest:
        found = report["arms"][arm].get("validation")
        if found:
            return _own(found)
        return common("this site has no validation cases")
    if arm == "global":
        return common(
            "the site's report, which has the global model's own threshold, is written when the federation is finished"
        )
    for entry in _history(folder):
        if entry.get("version") == version.version:
            return _own(entry["validation"])
    return common(f"version {version.version} was not judged on validation cases here")


def _own(found: dict[str, Any]) -> Threshold:
    cut, cases = float(found["at_validation"]["threshold"]), int(found["n"])
    return Threshold(cut, cases, f"this site's own, from {cases} validation cases")


def read_report(folder: Path) -> dict[str, Any]:
    """Return the site's report, nothing of a missing or damaged one: what depends on it falls back, and says so."""
    try:
        value = json.loads((folder / REPORT).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _history(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = [json.loads(line) for line in (folder / state.HISTORY).read_bytes().splitlines()]
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)]
