"""The site's own report. Here: what the agent keeps for it when a federation is finished, and the times it names.

What is made of that: `facts` (every figure, with `intervals` and `words`), `page` (HTML). None of it ever leaves the site: the
figures are of few patients, and the scores are beside their names.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.adapter import Adapter
from shared.canonical import sha256_hex

if TYPE_CHECKING:
    from site_agent.client import Joined
    from site_agent.training.arms import Compared
    from site_agent.training.site import SiteTrainer

REPORT = "report.json"
CASES = "report-cases.csv"
"""How every arm scores every case, beside the case's key (site_agent/training/case_scores.py)."""


@dataclass
class Phases:
    """Seconds spent in each phase, for the breakdown that the demo prints."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, began: float) -> None:
        """Add the time since `began` (monotonic) to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count seconds of one phase as another's: it was at work meanwhile."""
        self.seconds[source] = self.seconds.get(source, 0.0) - seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    def rounded(self, suffix: str = "") -> dict[str, float]:
        """Return seconds by phase, the name with a suffix, in name order."""
        return {f"{name}{suffix}": round(value, 3) for name, value in sorted(self.seconds.items())}


def make(
    joined: "Joined",
    trainer: "SiteTrainer",
    final: Adapter,
    compared: "Compared",
    history: list[dict[str, Any]],
    phases: Phases,
) -> dict[str, Any]:
    """Return report.json.

    `cases_sha256` names the table of scores that its figures are computed from, `contract` what they were trained under. `adapter`
    counts what a version holds, `update` the most that left in a round: an update may hold less, more shortly.
    """
    contract = joined.contract
    recipe, manifest, policy = contract.recipe, contract.manifest, contract.policy
    updates = [recipe.upload_layout(manifest, number, policy.invited) for number in (1, 2)]  # no recipe has more turns
    return {
        "site": joined.site,
        "federation": contract.federation,
        "contract": contract.sha256,
        "rounds": policy.rounds,
        **trainer.facts(),
        "adapter": {
            "version": final.version,
            "digest": final.digest,
            "parameters": final.manifest.layout.parameters,
            "bytes": final.manifest.layout.size,
        },
        "update": {
            "parameters": max(layout.parameters for layout in updates),
            "bytes": max(layout.size for layout in updates),
        },
        "arms": compared.figures,
        "cases_sha256": sha256_hex(compared.scores.to_csv()),
        "history": history,
        "phases_s": phases.rounded(),
    }


def finite(value: Any) -> Any:
    """Replace NaN (an AUC without both classes) by None: reports are strict JSON."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
