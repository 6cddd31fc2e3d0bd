"""What a batch of runs showed, as a table to read."""

import statistics
from collections import Counter
from collections.abc import Sequence

from tests.chaos.federation_run import Outcome
from tests.chaos.points import Fault
from tests.chaos.scenario import AGGREGATOR, Trouble, kind_of, strikes_training

REPLAY = "python -m tests.chaos run --seed {seed} --keep DIR"


ENOUGH_TO_RESUME = 50
"""Among so many runs agents are killed in mid-epoch for sure, and must go on from a checkpoint."""


def problems(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what is wrong with the batch as a whole, whatever its runs kept."""
    runs = [outcome for outcome in outcomes if outcome.is_hard]
    found = [] if runs else ["in no run was a process killed, or did the network fail"]
    if len(runs) >= ENOUGH_TO_RESUME and not any(_resumed(run) for run in runs):
        found.append(f"in {len(runs)} runs no training went on from a checkpoint")
    return found


def is_good(outcomes: Sequence[Outcome]) -> bool:
    """Whether every run kept every promise, and the batch shows what it is for."""
    return not problems(outcomes) and not any(outcome.problems for outcome in outcomes)


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table; a failed seed is named with the command that replays it."""
    runs = [outcome for outcome in outcomes if not outcome.is_idle]
    rows = [*_figures(runs, len(outcomes) - len(runs)), "", "faults by kind"]
    rows += _counts(Counter(_kind(fault) for run in runs for fault in run.fired))
    rows += ["", "faults by point"]
    killed = _struck(runs)
    rows += _counts(Counter(f"{_party(fault)}: {fault.point}" for fault in killed))
    rows += [f"FAILED: {problem}" for problem in problems(outcomes)]
    for run in outcomes:
        if run.problems:
            rows += ["", *run.lines(), f"  replay: {REPLAY.format(seed=run.scenario.seed)}"]
    return rows


def _figures(runs: Sequence[Outcome], idle: int) -> list[str]:
    found = [run.findings for run in runs]
    kills = [fault for fault in _struck(runs) if kind_of(fault) == "kill agent"]
    durations = sorted(run.duration_s for run in runs) or [0.0]
    facts = {
        "runs with a SIGKILL or a network fault": sum(run.is_hard for run in runs),
        "seeds replaced because no such fault happened": idle,
        "faults": sum(len(run.fired) for run in runs),
        "processes started again": sum(len(run.ended) for run in runs),
        "SIGKILLs of agents while they trained": sum(map(strikes_training, kills)),
        "training resumed from a checkpoint": sum(map(_resumed, runs)),
        "finished": sum(run.finished for run in runs),
        "accepted updates in all": sum(finding.accepted for finding in found),
        "updates counted without a receipt at their site": sum(
            run.findings.counted - run.findings.accepted for run in runs if run.finished
        ),
        "accepted updates lost": sum(finding.lost for finding in found),
        "accepted updates that were forgotten and sent again": sum(finding.forgotten for finding in found),
        "updates counted twice": sum(finding.twice for finding in found),
        "global digest equal to the undisturbed run's": sum(run.equal_global for run in runs),
        "local adapters equal at every site": sum(run.equal_local for run in runs),
        "runs in which something did not hold": sum(bool(run.problems) for run in runs),
    }
    times = {"median duration": statistics.median(durations), "longest duration": durations[-1]}
    return [f"{name:<52}{value:>9}" for name, value in facts.items()] + [
        f"{name:<52}{value:>7.1f} s" for name, value in times.items()
    ]


def _struck(runs: Sequence[Outcome]) -> list[Fault]:
    return [fault for run in runs for fault in run.fired if isinstance(fault, Fault)]


def _resumed(run: Outcome) -> int:
    return sum(map(len, run.findings.resumed.values()))


def _counts(counts: Counter[str]) -> list[str]:
    return [f"  {name:<50}{counts[name]:>9}" for name in sorted(counts)]


def _party(fault: Fault) -> str:
    return AGGREGATOR if fault.role == AGGREGATOR else "agent"


def _kind(fault: Fault | Trouble) -> str:
    if isinstance(fault, Trouble):
        return f"network: {fault.kind.replace('_', '-')}"
    return f"{'SIGKILL of' if fault.action == 'kill' else 'full disk of'} {_party(fault)}"
