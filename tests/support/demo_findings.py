"""Findings of a demo as its commands would have printed them, with numbers that can be checked by hand."""

from typing import Any

from experiments.demo.summaries import ARMS, Findings

SITES = ("siemens", "philips", "ge", "canon")
DIGEST = "d1" * 32
FULL_MODEL = 3_000_000
UP, DOWN = 45_000, 60_000
"""Bytes of one site and round."""
AUC = {"probe": 0.80, "alone": 0.84, "global": 0.86, "dual": 0.88}
"""Of the first site; each further site has 0.02 less."""


def point(accuracy: float) -> dict[str, float]:
    return {"specificity": accuracy + 0.1, "balanced_accuracy": accuracy, "sensitivity": accuracy - 0.1}


def figures(auc: float | None, n: int = 100) -> dict[str, Any]:
    own = {**point(0.75), "threshold": 0.45}
    return {"n": n, "auc": auc, "at_half": point(0.70), "at_validation": own}


def site_report(index: int, rounds: int) -> dict[str, Any]:
    return {
        "cases": 50 + index,
        "healthy_share": 0.25,
        "training_patients": 40 + index,
        "validation_patients": 10,
        "test_patients": 100,
        "adapter": {"version": rounds, "digest": DIGEST, "parameters": 11_136, "bytes": 44_544},
        "update": {"parameters": 11_136, "bytes": 44_544},
        "arms": {
            arm: {"test": figures(AUC[arm] - 0.02 * index), "validation": figures(0.9, 10)} for arm in reversed(ARMS)
        },
        "history": [
            {"round": number, "version": number, "validation": figures(0.7 + 0.02 * number, 10)}
            for number in range(1, rounds + 1)
        ],
        "phases_s": {"activations": 2.0, "training": 10.0, "evaluating": 1.0, "waiting": 3.0, "comparing": 8.0},
    }


def costs(rounds: int) -> dict[str, Any]:
    rows = [
        {"site": site, "round": number, "direction": way, "purpose": purpose, "bytes": size}
        for site in SITES
        for number in range(1, rounds + 1)
        for way, purpose, size in (
            ("up", "delta_up", UP - 100),
            ("up", "heartbeat", 100),
            ("down", "adapter_down", DOWN - 100),
            ("down", "heartbeat", 100),
        )
    ]
    updates = rounds * len(SITES)
    return {
        "rows": rows,
        "total": {"calls": 9 * updates, "bytes_up": UP * updates, "bytes_down": DOWN * updates},
        "retried_calls": 0,
        "reconciliation": {"compared": 9 * updates, "agreed": 9 * updates},
        "wire_model": {"tls": True, "wire_up": UP * updates + 9, "wire_down": DOWN * updates + 9},
        "full_model": {
            "full_model_bytes": FULL_MODEL,
            "updates": updates,
            "full_model_bytes_each_way": FULL_MODEL * updates,
            "reduction_up": FULL_MODEL / UP,
            "reduction_down": FULL_MODEL / DOWN,
        },
    }


def findings(seed: int = 0, rounds: int = 3, **changes: Any) -> Findings:
    values: dict[str, Any] = {
        "seed": seed,
        "settings": {
            "rounds": rounds,
            "scale": 1.0,
            "test_cases": 100,
            "frames": "stacked",
            "phantom": {"severity": 1.6},
        },
        "prepared": {"vendors": {site: {"test_normal": 50} for site in SITES}},
        "initial": {"digest": "00" * 32, "base_model_sha256": "ba" * 32, "blocks": [4, 5]},
        "contract": {
            "rounds": rounds,
            "contract_sha256": "c0" * 32,
            "federation": "demo",
            "quorum": 4,
            "sites": {site: 40 + index for index, site in enumerate(SITES)},
        },
        "recipe": {"name": "med-duallora", "views": 2},
        "reports": {site: site_report(index, rounds) for index, site in enumerate(SITES)},
        "verified": {"rounds": [{"digest": DIGEST, "difference": ""} for _ in range(rounds)]},
        "costs": costs(rounds),
        "others_cpu_s": 1.0,
    }
    return Findings(**{**values, **changes})


def seconds(total: float = 80.0) -> dict[str, Any]:
    phases = {
        "phantom": {"began": 0.2, "wall": 9.0, "cpu": 15.0},
        "federation": {"began": 9.2, "wall": 70.0, "cpu": 99.0},
    }
    agent = {"cpu": 20.0, "wall": 60.0, "activations": 2.0, "training": 10.0, "waiting": 3.0, "comparing": 8.0}
    return {
        "total": total,
        "cpu": 114.0,
        "phases": phases,
        "aggregator": {"cpu": 2.0},
        "sites": dict.fromkeys(SITES, agent),
    }
