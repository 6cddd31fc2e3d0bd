"""A comparison's folder with made-up cells: margins drawn from a seed, better for some methods than for others."""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from experiments.comparison import config, records
from experiments.comparison.contenders import CONTENDERS
from experiments.comparison.plan import Plan
from experiments.comparison.records import Cell, Prediction, RoundRecord

SITES = ("Canon", "GE", "Philips", "Siemens")
CORE = tuple(one.key for one in CONTENDERS if one.group == "core")
WITH_LOCAL_PART = ("med-duallora", "ours", "feddpa", "fdlora", "ditto")
ROUNDS = 3


def make(
    out: Path,
    cells: Iterable[tuple[str, str, Iterable[int]]],
    *,
    synthetic: bool = True,
    cases: int = 20,
    tuned: bool = True,
) -> Path:
    """Write a folder with these cells: scenario, method, runs. Planned are three runs of the core, and two of the rest."""
    weights, prepared = out / "files" / "some.safetensors", out / "files" / "prepared"
    (prepared / "ge").mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"no network")
    (prepared / "ge" / "cases.csv").write_text("no cases")
    config.freeze(Plan(out=out, weights=weights, data=None if synthetic else prepared, runs=3, other_runs=2))
    if tuned:
        (out / "tuned.json").write_text(json.dumps(choices()))
    for scenario, method, runs in cells:
        for run in runs:
            records.write(out / "cells" / scenario, cell(scenario, method, run), drawn(scenario, method, run, cases))
    return out


def choices() -> dict[str, object]:
    """Every method's second setting is the best of those tried."""
    figures = {"auc_site_mean": 0.8, "balanced_accuracy_validation_site_mean": 0.7}
    return {
        one.key: {
            "chosen": min(1, len(one.settings) - 1),
            "settings": [
                {"what": setting.text, **{name: value + 0.01 * (number == 1) for name, value in figures.items()}}
                for number, setting in enumerate(one.settings)
            ],
        }
        for one in CONTENDERS
        if len(one.settings) > 1
    }


def drawn(scenario: str, method: str, run: int, cases: int = 20) -> list[Prediction]:
    """Return predictions of `cases` cases at each site, 60 % diseased; what is hard about a case is the same for all methods."""
    shared, own = (np.random.default_rng([zlib.crc32(text.encode()), run]) for text in (scenario, scenario + method))
    quality = 0.6 + 0.08 * CORE.index(method) if method in CORE else 0.9
    return [
        Prediction(
            run=run,
            fold=0,
            site=site,
            case=f"{site.lower()}-{run}-{number:03d}",
            label=int(number % 5 < 3),
            margin=float(quality * (1 if number % 5 < 3 else -1) + 0.7 * shared.normal() + 0.6 * own.normal()),
            threshold=0.1 * SITES.index(site),
        )
        for site in SITES
        for number in range(cases)
    ]


def predictions(run: int, margins: Sequence[float], labels: Sequence[int], site: str = "a") -> list[Prediction]:
    """Return cases of one site with threshold 0."""
    return [
        Prediction(run=run, fold=0, site=site, case=f"{i:03d}", label=label, margin=margin, threshold=0.0)
        for i, (margin, label) in enumerate(zip(margins, labels, strict=True))
    ]


def cell(scenario: str, method: str, run: int) -> Cell:
    """Return the record of a cell: 4 sites, 3 rounds, 1 kB an update."""
    alone = method in ("local-only", "centralised")
    return Cell(
        scenario=scenario,
        method=method,
        run=run,
        seconds=20.0 + run,
        steps=1200,
        bytes_up=0 if alone else 1000 * _width(method) * len(SITES) * ROUNDS,
        bytes_down=0 if alone else 800 * _width(method) * len(SITES) * ROUNDS,
        digest="" if alone else "0" * 64,
        rounds=tuple(round_record(method, number, run) for number in range(1, ROUNDS + 1)),
    )


def _width(method: str) -> int:
    return {"head-only": 1, "full": 400}.get(method, 16 if "16" in method else 8)


def round_record(method: str, number: int, run: int = 0) -> RoundRecord:
    """Return a round in which the local part grows, for methods that have one."""
    local = method.partition("+")[0] in WITH_LOCAL_PART
    exact = method in ("fedex", "flexlora")
    averaged = method not in ("local-only", "centralised", "head-only", "full")
    return RoundRecord(
        number=number,
        train_loss=0.7 / number,
        aggregation_error=(1e-7 if exact else 0.1 * number + 0.01 * run) if averaged else None,
        factor_error=0.12 * number if exact else None,
        norm_ratio={site: 0.2 * number + 0.1 * i for i, site in enumerate(SITES)} if local else {},
        cosine={site: 0.1 * i - 0.05 * number for i, site in enumerate(SITES)} if local else {},
    )
