"""summary.json of a demo: put together from what the commands printed and the agents reported. docs/demo.md has the schema.

Nothing is computed again here but means, minima and ratios.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.demo.progress import mean_of
from shared.errors import InputError, MedDualLoRAError

Facts = Mapping[str, Any]

ARMS = ("probe", "alone", "global", "dual")
POINTS = ("at_half", "at_validation")
RATES = ("balanced_accuracy", "sensitivity", "specificity")
PACKAGES = ("med-duallora", "torch", "monai", "numpy", "grpcio", "safetensors")
_NOT_SENT = ("mask", "decoder", "dec_", "_head", "lax_", "pos_embed")
"""Names with one of these in them belong to pre-training or are fixed tables: full fine-tuning would not send them."""


class Disagreement(MedDualLoRAError):
    """Parts of a finished federation contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a finished federation left behind, each as the command's own JSON."""

    seed: int
    settings: Facts
    prepared: Facts
    """site-agent prepare"""
    initial: Facts
    """site-agent init-adapter"""
    contract: Facts
    """aggregator init"""
    recipe: Facts
    reports: Mapping[str, Facts]
    """The agents' own reports, by site."""
    verified: Facts
    """aggregator verify"""
    costs: Facts
    """aggregator comm-cost"""
    others_cpu_s: float | None
    """CPU seconds that others used on the machine meanwhile; None where the system does not say."""
    reference: Facts | None = None
    """Figures of the centralised model by site, if it was asked for."""


def build(found: Findings, seconds: Facts) -> dict[str, Any]:
    """Return the summary. Raises Disagreement if the sites and the aggregator ended with different global adapters."""
    final = _common_adapter(found)
    sites = {name: _site(report, found.prepared["vendors"][name]) for name, report in found.reports.items()}
    tested = {name: site["test"] for name, site in sites.items()}
    summary: dict[str, Any] = {
        "synthetic": True,
        "seed": found.seed,
        "rounds": found.contract["rounds"],
        "settings": dict(found.settings),
        "sites": sites,
        "mean": {arm: _combine({s: t[arm] for s, t in tested.items()}, mean_of) for arm in ARMS},
        "worst_site": {arm: _worst({s: t[arm] for s, t in tested.items()}) for arm in ARMS},
    }
    if found.reference is not None:
        centralised = {site: _figures(figures) for site, figures in found.reference.items()}
        summary["reference"] = {
            "centralised": {
                "sites": centralised,
                "mean": _combine(centralised, mean_of),
                "worst_site": _worst(centralised),
            }
        }
    return summary | {
        "adapter": {
            "parameters": final["parameters"],
            "bytes": final["bytes"],
            "update_bytes": max(report["update"]["bytes"] for report in found.reports.values()),
            "digest": final["digest"],
            "version": final["version"],
            "initial_digest": found.initial["digest"],
            "base_model_sha256": found.initial["base_model_sha256"],
            "blocks": found.initial["blocks"],
        },
        "contract": {
            "sha256": found.contract["contract_sha256"],
            "federation": found.contract["federation"],
            "quorum": found.contract["quorum"],
            "training_patients": found.contract["sites"],
            "recipe": dict(found.recipe),
        },
        "communication": communication(found.costs),
        "verified_rounds": sum(not check["difference"] for check in found.verified["rounds"]),
        "seconds": dict(seconds),
        "machine": {
            "cores": os.cpu_count(),
            "others_cpu": None if found.others_cpu_s is None else round(max(0.0, found.others_cpu_s), 1),
        },
        "versions": versions(),
    }


def _common_adapter(found: Findings) -> Facts:
    """The final adapter, which every site and the aggregator must agree on."""
    digests = {name: report["adapter"]["digest"] for name, report in found.reports.items()}
    digests["the aggregator"] = found.verified["rounds"][-1]["digest"]
    if len(set(digests.values())) != 1:
        listed = ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items())
        raise Disagreement(f"sites and aggregator ended with different global adapters: {listed}")
    adapter: Facts = next(iter(found.reports.values()))["adapter"]
    return adapter


def _site(report: Facts, prepared: Facts) -> dict[str, Any]:
    counts = ("cases", "healthy_share", "training_patients", "validation_patients", "test_patients")
    return {
        **{name: report[name] for name in counts},
        "test_healthy": prepared["test_normal"],
        "test": {arm: _figures(report["arms"][arm]["test"]) for arm in ARMS},
        "validation": {arm: _figures(report["arms"][arm]["validation"]) for arm in ARMS},
        "history": [
            {"version": entry["version"], "round": entry["round"], **_figures(entry["validation"])}
            for entry in report["history"]
        ],
    }


def _figures(figures: Facts) -> dict[str, Any]:
    """The same figures in the order the schema has them."""
    points = {point: {rate: figures[point][rate] for rate in RATES} for point in POINTS}
    points["at_validation"]["threshold"] = figures["at_validation"]["threshold"]
    return {"auc": figures["auc"], "n": figures["n"], **points}


def _combine(by_site: Mapping[str, Facts], how: Callable[[list[float | None]], float | None]) -> dict[str, Any]:
    """One figure from those of all sites, for the AUC and each rate at both thresholds."""
    return {
        "auc": how([figures["auc"] for figures in by_site.values()]),
        **{point: {rate: how([f[point][rate] for f in by_site.values()]) for rate in RATES} for point in POINTS},
    }


def _worst(by_site: Mapping[str, Facts]) -> dict[str, Any]:
    """The smallest of each figure, on its own, and the site it belongs to for those that are compared."""
    lowest = _combine(by_site, lambda values: None if None in values else min(v for v in values if v is not None))
    auc = {site: figures["auc"] for site, figures in by_site.items()}
    lowest["site"] = {"auc": _lowest(auc)}
    for point in POINTS:
        lowest["site"][point] = _lowest({site: f[point]["balanced_accuracy"] for site, f in by_site.items()})
    return lowest


def _lowest(values: Mapping[str, float | None]) -> str | None:
    present = {site: value for site, value in values.items() if value is not None}
    return min(present, key=lambda site: present[site]) if len(present) == len(values) and present else None


def communication(costs: Facts) -> dict[str, Any]:
    """Bytes of all messages by site and round ("0" is what was said before the first round), and against the full model."""
    bytes_by: dict[str, dict[str, dict[str, int]]] = {"up": {}, "down": {}}
    purposes: dict[str, dict[str, int]] = {}
    for row in costs["rows"]:
        direction, site, number = row["direction"], row["site"], str(row["round"])
        rounds = bytes_by[direction].setdefault(site, {})
        rounds[number] = rounds.get(number, 0) + row["bytes"]
        of_purpose = purposes.setdefault(row["purpose"], {"bytes_up": 0, "bytes_down": 0})
        of_purpose[f"bytes_{direction}"] += row["bytes"]
    total, full = costs["total"], costs["full_model"]
    whole = total["bytes_up"] + total["bytes_down"]
    updates = full["updates"]
    return {
        "bytes_up": _sorted(bytes_by["up"]),
        "bytes_down": _sorted(bytes_by["down"]),
        "total": {"bytes_up": total["bytes_up"], "bytes_down": total["bytes_down"], "bytes": whole},
        "per_site_and_round": {
            "bytes_up": round(total["bytes_up"] / updates),
            "bytes_down": round(total["bytes_down"] / updates),
        },
        "by_purpose": dict(sorted(purposes.items())),
        "updates": updates,
        "full_model_bytes": full["full_model_bytes"],
        "reduction": 2 * full["full_model_bytes_each_way"] / whole,
        "reduction_up": full["reduction_up"],
        "reduction_down": full["reduction_down"],
        "wire_model": {name: costs["wire_model"][name] for name in ("tls", "wire_up", "wire_down")},
        "calls": total["calls"],
        "retried_calls": costs["retried_calls"],
        "calls_compared": costs["reconciliation"]["compared"],
        "calls_agreed": costs["reconciliation"]["agreed"],
    }


def _sorted(by_site: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {site: dict(sorted(rounds.items(), key=lambda item: int(item[0]))) for site, rounds in by_site.items()}


def full_model_bytes(weights: Path) -> int:
    """Bytes of the backbone in float32: what full fine-tuning sends one way.

    Read from the header of the safetensors file or of the one in a backbone folder. Raises InputError if there is none.
    """
    from math import prod

    from safetensors import SafetensorError, safe_open

    names = ("model.safetensors", "pretrained.safetensors")
    files = [weights / name for name in names if (weights / name).is_file()] if weights.is_dir() else [weights]
    try:
        with safe_open(files[0], "numpy") as file:
            sent = [name for name in file.keys() if not any(part in name for part in _NOT_SENT)]  # noqa: SIM118
            return sum(4 * prod(file.get_slice(name).get_shape()) for name in sent)
    except (IndexError, OSError, SafetensorError) as error:
        raise InputError(
            f"no backbone at {weights}: expected a .safetensors file or a folder with model.safetensors; "
            "name another one with --weights"
        ) from error


def versions() -> dict[str, str]:
    """Python and the packages that the figures depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
