"""What a batch of runs showed, as a table to read."""

import statistics
from collections import Counter
from collections.abc import Sequence

from tests.chaos.federation_run import Outcome
from tests.chaos.points import Fault
from tests.chaos.scenario import AGGREGATOR, Trouble

REPLAY = "python -m tests.chaos run --seed {seed} --keep DIR"


def is_good(outcomes: Sequence[Outcome]) -> bool:
    """Whether every run kept every promise."""
    return not any(outcome.problems for outcome in outcomes)


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table; a failed seed is named with the command that replays it."""
    runs = [outcome for outcome in outcomes if not outcome.is_idle]
    rows = [*_figures(runs, len(outcomes) - len(runs)), "", "faults by kind"]
    rows += _counts(Counter(_kind(fault) for run in runs for fault in run.fired))
    rows += ["", "faults by point"]
    killed = [fault for run in runs for fault in run.fired if isinstance(fault, Fault)]
    rows += _counts(Counter(f"{_party(fault)}: {fault.point}" for fault in killed))
    for run in outcomes:
        if run.problems:
            rows += ["", *run.lines(), f"  replay: {REPLAY.format(seed=run.scenario.seed)}"]
    return rows


def _figures(runs: Sequence[Outcome], idle: int) -> list[str]:
    found = [run.findings for run in runs]
    durations = sorted(run.duration_s for run in runs) or [0.0]
    facts = {
        "runs with at least one fault": len(runs),
        "seeds replaced because their fault did not happen": idle,
        "faults": sum(len(run.fired) for run in runs),
        "processes started again": sum(len(run.ended) for run in runs),
        "finished": sum(run.finished for run in runs),
        "accepted updates in all": sum(finding.accepted for finding in found),
        "updates counted without a receipt at their site": sum(
            run.findings.counted - run.findings.accepted for run in runs if run.finished
        ),
        "accepted updates lost": sum(finding.lost for finding in found),
        "updates counted twice": sum(finding.twice for finding in found),
        "global digest equal to the undisturbed run's": sum(run.equal_global for run in runs),
        "local adapters equal at every site": sum(run.equal_local for run in runs),
        "runs in which something did not hold": sum(bool(run.problems) for run in runs),
    }
    times = {"median duration": statistics.median(durations), "longest duration": durations[-1]}
    return [f"{name:<52}{value:>9}" for name, value in facts.items()] + [
        f"{name:<52}{value:>7.1f} s" for name, value in times.items()
    ]


def _counts(counts: Counter[str]) -> list[str]:
    return [f"  {name:<50}{counts[name]:>9}" for name in sorted(counts)]


def _party(fault: Fault) -> str:
    return AGGREGATOR if fault.role == AGGREGATOR else "agent"


def _kind(fault: Fault | Trouble) -> str:
    if isinstance(fault, Trouble):
        return f"network: {fault.kind.replace('_', '-')}"
    return f"{'SIGKILL of' if fault.action == 'kill' else 'full disk of'} {_party(fault)}"
