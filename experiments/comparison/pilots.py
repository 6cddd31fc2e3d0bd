"""How our recipe was looked for: its variants on pilot cohorts that neither tuning nor any run of the comparison sees.

A variant's name says its numbers: d12r4 global rank 12 and local rank 4, l2e3 local learning rate 2e-3, s1 a prior of one patient
on the local part, m.5 server momentum, slr1.5 server learning rate. Pilots decide nothing by themselves: what they suggest is tuned
like every other method, and compared on fresh cohorts.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from experiments.comparison import cells, metrics, records
from experiments.comparison.contenders import (
    FEW,
    ONE_PART,
    R8,
    R12,
    R16,
    SCALE,
    TWO_HEADS,
    TWO_PARTS,
    Contender,
    Options,
    Setting,
)
from experiments.comparison.plan import Plan
from experiments.comparison.scenarios import PILOT_SEEDS, Phantom
from experiments.comparison.workers import Workers
from shared.errors import InputError

SCENARIOS = ("homogeneous", "shifted", "convention")
FIGURES = ("auc_site_mean", "balanced_accuracy_validation_site_mean", "balanced_accuracy_validation_worst_site")

TWELVE_FOUR = {"rank_local": FEW, "alpha_local": SCALE * FEW}
HALF, HURRIED = {"server_optimiser": "momentum", "server_beta1": 0.5}, {"server_lr": 1.5}


def _rates(shared: float, local: float) -> Options:
    return {"lr_global": shared, "lr_local": local}


def _prior(patients: float) -> Options:
    return {"shrinkage_patients": patients}


def _variant(key: str, recipe: Options, adapter: Options, method: str = "med-duallora") -> Contender:
    return Contender(
        key=key, title=key, method=method, sent="", stays="", recipe=recipe, adapter=adapter, settings=(Setting(),)
    )


SLOW, QUICK = _rates(5e-3, 5e-4), _rates(5e-3, 2e-3)
VARIANTS = (
    _variant("fedit16", {**ONE_PART, **_rates(5e-3, 5e-3)}, R16),
    _variant("fedit16-m.5", {**ONE_PART, **_rates(5e-3, 5e-3), **HALF}, R16),
    _variant("fedit16-slr1.5", {**ONE_PART, **_rates(5e-3, 5e-3), **HURRIED}, R16),
    _variant("dual-plain", {**TWO_PARTS, **_rates(5e-3, 5e-3)}, R8),
    _variant("ffa16", {**ONE_PART, **_rates(1e-2, 1e-2)}, R16, "ffa-lora"),
    _variant("ffadual-l5e4-s.1", {**TWO_PARTS, **_rates(1e-2, 5e-4), **_prior(0.1)}, R16, "ffa-lora"),
    _variant("d16-l5e4", {**TWO_PARTS, **SLOW, **_prior(0.1)}, R16),
    _variant("d16-l5e4-m.5", {**TWO_PARTS, **SLOW, **_prior(0.1), **HALF}, R16),
    _variant("d16-l2e3-s1-m.5", {**TWO_PARTS, **QUICK, **_prior(1.0), **HALF}, R16),
    _variant("d16-l5e4-2heads-m.5", {**TWO_PARTS, **SLOW, **_prior(0.1), **HALF}, R16 | TWO_HEADS),
    _variant("d12r4-l5e4", {**TWELVE_FOUR, **SLOW, **_prior(0.1)}, R12),
    _variant("d12r4-l2e3-s1", {**TWELVE_FOUR, **QUICK, **_prior(1.0)}, R12),
    _variant("d12r4-l2e3-s3", {**TWELVE_FOUR, **QUICK, **_prior(3.0)}, R12),
    _variant("d12r4-l5e4-prox.01", {**TWELVE_FOUR, **SLOW, **_prior(0.1), "proximal": 0.01}, R12),
    _variant("d12r4-l5e4-capped", {**TWELVE_FOUR, **SLOW, **_prior(0.1), "weighting": "capped"}, R12),
    _variant("d12r4-l5e4-uniform", {**TWELVE_FOUR, **SLOW, **_prior(0.1), "weighting": "uniform"}, R12),
)
Pilot = tuple[str, str, int]
"""Scenario, variant, seed."""


def run(plan: Plan, jobs: int, names: Sequence[str] = ()) -> bool:
    """Run the pilots that are missing, print the table, and return whether all went well. Raises InputError for a variant there is
    not.
    """
    known = {one.key: one for one in VARIANTS}
    for name in names:
        if name not in known:
            raise InputError(f"no variant is called '{name}'; there are: {', '.join(known)}")
    wanted = [(place, key, seed) for seed in PILOT_SEEDS for place in SCENARIOS for key in names or known]
    missing = [one for one in wanted if not _record(plan.out, one).exists()]
    well = True
    with closing(Workers(partial(_run, plan), missing, jobs).outcomes()) as outcomes:
        for number, (pilot, line, error) in enumerate(outcomes, 1):
            well &= error is None
            print(f"[{number}/{len(missing)}] {'/'.join(map(str, pilot))}  {error or line}", flush=True)
    print("\n".join(table(plan.out, names or list(known))))
    return well


def _record(out: Path, pilot: Pilot) -> Path:
    scenario, key, seed = pilot
    return out / "cells" / scenario / f"{records.stem(key, seed)}.json"


def _run(plan: Plan, pilot: Pilot) -> str:
    import torch

    from site_agent.training.site import load_base

    torch.set_num_threads(1)
    scenario, key, seed = pilot
    source = plan.source
    assert isinstance(source, Phantom)
    sites = source.pilot_sites(scenario, seed)
    network = load_base(plan.weights, plan.weights_size, "stacked").model
    bench = plan.bench(len(network.blocks), network.embed_dim)
    contender = next(one for one in VARIANTS if one.key == key)
    cell, predictions = cells.run(bench, contender, sites, scenario, seed)
    records.write(_record(plan.out, pilot).parent, cell, predictions)
    return ", ".join(f"{metrics.over_runs(predictions, metrics.FIGURES[name]):.3f}" for name in FIGURES)


def table(out: Path, names: Sequence[str]) -> list[str]:
    """Return the means over the pilot cohorts: AUC, balanced accuracy and that of the worst site, at the validation thresholds."""
    lines = [f"{'':<22}" + "".join(f"{scenario:>22}" for scenario in SCENARIOS)]
    lines.append(f"{'SYNTHETIC':<22}" + f"{'AUC    mean  worst':>22}" * len(SCENARIOS))
    for name in names:
        row = f"{name:<22}"
        for scenario in SCENARIOS:
            files = [_record(out, (scenario, name, seed)).with_suffix(".csv") for seed in PILOT_SEEDS]
            if not all(file.exists() for file in files):
                row += f"{'-':>22}"
                continue
            found = [one for file in files for one in records.read_predictions(file)]
            row += f"{'  '.join(f'{metrics.over_runs(found, metrics.FIGURES[figure]):.3f}' for figure in FIGURES):>22}"
        lines.append(row)
    return [*lines, f"means over the cohorts of seeds {', '.join(map(str, PILOT_SEEDS))}"]
