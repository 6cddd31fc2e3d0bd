"""`python -m experiments.robustness`: what one poisoned site of eight does to the final model, by the aggregator's rule.

SYNTHETIC. Four vendors of the phantom's full profile in the comparison's `shifted` setting, each cut into two hospitals; one of the
two with the most patients sends 100 times its update, or its update turned round, in every round. All sites weigh the same. The
product's own trainers, door out, gate and rules, without a wire. The figure is the balanced accuracy of the dual model on held-out
cases at the sites' thresholds, mean over the seven honest sites.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from experiments import output
from experiments.comparison import statistics
from experiments.comparison.workers import Workers
from shared.canonical import write_atomically
from shared.recipe import Recipe

if TYPE_CHECKING:
    from site_agent.data.cohort import Cohort
    from site_agent.egress import Update

FIRST_SEED = 9500
"""No run of the comparison has these cohorts."""
WEIGHTS = Path(__file__).parents[1] / "site_agent" / "models" / "demo"
POISONED = "siemens-1"
ATTACKS = {"nobody": 1.0, "100 times": 100.0, "turned round": -1.0}
RULES: dict[str, Mapping[str, Any]] = {
    "mean": {},
    "mean, norm gate 4": {"norm_gate": 4.0},
    "trimmed-distance, f = 1": {"robust": "trimmed-distance", "attackers": 1},
    "geometric-median": {"robust": "geometric-median"},
    "krum, f = 1": {"robust": "krum", "attackers": 1},
    "multi-krum, f = 1": {"robust": "multi-krum", "attackers": 1},
    "cosine-gate, norm gate 4": {"robust": "cosine-gate", "norm_gate": 4.0},
    "median (not invariant)": {"robust": "median"},
    "trimmed-mean, f = 1 (not invariant)": {"robust": "trimmed-mean", "attackers": 1},
}
CELL_SECONDS = 30
TEST_CASES = 200
"""Of a vendor, both its hospitals together."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all cells have in common."""

    out: Path
    scale: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Task:
    """One federation: a rule, an attack and a cohort."""

    rule: str
    attack: str
    seed: int

    def path(self, bench: Bench) -> Path:
        """Where its cell is kept: others for other rounds and another scale."""
        name = "".join(c if c.isalnum() else "-" for c in f"{self.rule} {self.attack}")
        return bench.out / "cells" / f"{bench.rounds}-rounds-scale-{bench.scale:g}" / f"{name}-{self.seed}.json"


def halves(cohorts: "Mapping[str, Cohort]") -> "dict[str, Cohort]":
    """Return two hospitals of each vendor: every other case of each split and label, folds as they were drawn."""
    found = {}
    for vendor, one in cohorts.items():
        ordered = sorted(one.cases, key=lambda case: (case.split, case.fold or 0, case.label, case.key))
        for part in (0, 1):
            found[f"{vendor}-{part + 1}"] = replace(one, cases=tuple(ordered[part::2]))
    return found


def tampering(factor: float) -> Any:
    """Return what the poisoned site sends: `factor` times its update."""

    def tamper(site: str, update: "Update") -> "Update":
        if site != POISONED or factor == 1.0:
            return update
        tensors = update.layout.split(update.payload)
        forged = {name: (factor * value).astype(np.float32) for name, value in tensors.items()}
        return replace(update, payload=update.layout.join(forged))

    return tamper


def run_one(bench: Bench, task: Task) -> str:
    """Run one cell in this process, write it, and return a line about it."""
    import torch

    from experiments import simulation
    from experiments.comparison.scenarios import SHIFTED, VALIDATION_FOLD, Phantom
    from site_agent.training import evaluate

    torch.set_num_threads(1)
    began = time.perf_counter()
    phantom = Phantom(folder=bench.out / "cohorts", scale=bench.scale, test_cases=TEST_CASES // 4)
    sites = halves(phantom.pilot_sites(SHIFTED, FIRST_SEED + task.seed).cohorts)
    setting = simulation.Setting(
        cohort=WEIGHTS,
        weights=WEIGHTS,
        seed=FIRST_SEED + task.seed,
        rounds=bench.rounds,
        recipe=Recipe(weighting="uniform", **RULES[task.rule]),
        cache=bench.out / "activations",
        cache_dtype="float16",
        validation_fold=VALIDATION_FOLD,
    )
    contract, initial = setting.start(len(sites))
    trainers = {site: setting.trainer(site, contract, cohort) for site, cohort in sites.items()}
    *_, last = simulation.federate(contract, initial, trainers, tampering(ATTACKS[task.attack]))
    figures = []
    for site, trainer in trainers.items():
        if site != POISONED:
            validation, test = (
                trainer.score(last.version, last.private[site], cases)
                for cases in (trainer.validation_cases, trainer.cohort.test())
            )
            figures.append(evaluate.figures(validation, test))
    mean = simulation.mean_of(figures)
    weight = {name.removeprefix("weight/"): value for name, value in last.figures.items() if name.startswith("weight/")}
    facts = {
        "rule": task.rule,
        "attack": task.attack,
        "seed": FIRST_SEED + task.seed,
        **mean,
        "weights_of_last_round": weight,
    }
    facts["seconds"] = round(time.perf_counter() - began, 1)
    write_atomically(task.path(bench), json.dumps(facts, indent=1).encode())
    return f"balanced accuracy {mean['at_validation']:.3f}, AUC {mean['auc']:.3f}; {facts['seconds']:.0f} s"


def main(
    out: Annotated[Path, typer.Option(help="Folder for cohorts, activations, cells and the table.")],
    seeds: Annotated[int, typer.Option(min=2, help="Cohorts.")] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = 8,
    scale: Annotated[float, typer.Option(help="Factor on the vendors' numbers of training cases.")] = 1.0,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, each on one core.")] = 2,
    rule: Annotated[list[str] | None, typer.Option(help=f"Only these of: {'; '.join(RULES)}.")] = None,
) -> None:
    """One poisoned site of eight, by the aggregator's rule. Goes on where it stopped. All data is SYNTHETIC.

    Example: python -m experiments.robustness --out runs/robustness
    """
    bench = Bench(out, scale, rounds)
    for name in rule or ():
        if name not in RULES:
            print(f"robustness: no rule is called '{name}'; there are: {'; '.join(RULES)}", file=sys.stderr)
            raise typer.Exit(3)
    names = rule or list(RULES)
    tasks = [Task(name, attack, seed) for seed in range(seeds) for name in names for attack in ATTACKS]
    missing = [task for task in tasks if not task.path(bench).exists()]
    minutes = len(missing) * CELL_SECONDS * scale / 60 / jobs
    print(f"SYNTHETIC. {len(missing)} of {len(tasks)} federations to run, about {minutes:.0f} min", flush=True)
    failed = 0
    with closing(Workers(partial(run_one, bench), missing, jobs).outcomes()) as outcomes:
        for number, (task, line, error) in enumerate(outcomes, 1):
            failed += error is not None
            said = line if error is None else f"FAILED: {error}"
            print(f"[{number}/{len(missing)}] {task.rule}, {task.attack}, seed {task.seed}: {said}", flush=True)
    if failed:
        print(f"robustness: {failed} federation(s) failed; the same command runs them again", file=sys.stderr)
        raise typer.Exit(1)
    cells = [json.loads(task.path(bench).read_text(encoding="utf-8")) for task in tasks]
    lines, rows = summary(cells)
    print("\n".join(lines))
    text = json.dumps({"synthetic": True, "seeds": seeds, "rounds": rounds, "scale": scale, "rows": rows}, indent=1)
    write_atomically(out / "robustness.json", text.encode())
    write_atomically(out / "robustness.md", markdown(rows).encode())
    print(f"written: {out / 'robustness.md'}")


def summary(cells: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the table as lines and as rows. An attack is neutralised if the mean does not lie below the interval of clean runs.

    The interval: Student's, 95 %, over the seeds' figures with nobody poisoned; `neutralised` by the same rule's clean runs,
    `as_good_as_mean` by the plain mean's, which a rule that leaves honest sites out need not reach even with nobody poisoned.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        values.setdefault((cell["rule"], cell["attack"]), []).append(cell["at_validation"])
    rows = []
    for rule in dict.fromkeys(cell["rule"] for cell in cells):
        row: dict[str, Any] = {"rule": rule, **{attack: float(np.mean(values[rule, attack])) for attack in ATTACKS}}
        if (clean := statistics.student(values[rule, "nobody"])) is not None:
            row |= {"low": clean.low, "high": clean.high, "neutralised": _not_below(row, clean.low)}
        rows.append(row)
    lows = {row["rule"]: row["low"] for row in rows if "low" in row}
    if (low := lows.get(next(iter(RULES)))) is not None:
        rows = [row | {"as_good_as_mean": _not_below(row, low)} for row in rows]
    return output.table(HEAD, [_shown(row) for row in rows]), rows


HEAD = ("rule", *ATTACKS, "interval of clean runs", "not below it", "nor below the plain mean's")


def _not_below(row: Mapping[str, Any], low: float) -> list[str]:
    return [attack for attack in ATTACKS if attack != "nobody" and row[attack] >= low]


def _shown(row: Mapping[str, Any]) -> list[str]:
    figures = [f"{row[attack]:.3f}" for attack in ATTACKS]
    held = [", ".join(row.get(name, [])) or "-" for name in ("neutralised", "as_good_as_mean")]
    interval = f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else "-"
    return [str(row["rule"]), *figures, interval, *held]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [HEAD, ["---", *["---:"] * len(ATTACKS), *["---"] * 3], *map(_shown, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\nSYNTHETIC.\n"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
