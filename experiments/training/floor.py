"""The cached step against the matrix products that it cannot avoid, done alone in the same run."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import output
from experiments.output import Target
from experiments.training import devices, flops, synthetic, timing, variants
from experiments.training.products import Attentions, Products
from experiments.training.synthetic import BASE
from site_agent.models.classifier import ADAPTED_BLOCKS
from site_agent.models.lora import DualLoRAConfig
from site_agent.training.compute import Compute
from site_agent.training.views import View

RATIO = 1.3
STEP, PRODUCTS, ATTENTION, FLOOR = "cached step", "products", "attention", "products and attention"
LORA = DualLoRAConfig()
RANK = LORA.rank_global + LORA.rank_local


def run(repetitions: int, out: Path, which: devices.Which = "all") -> bool:
    """Measure, show, and return whether the target was met."""
    machine, lines, targets, facts = timing.machine(), list[str](), list[Target](), dict[str, Any]()
    for device in devices.there(which):
        taken = _measure(repetitions, device, out)
        lines += [f"{device.type}:", *table(taken)]
        targets += judged(taken) if device.type == "cpu" else []
        facts[device.type] = timing.spreads(taken)
    what = f"floor: SYNTHETIC CineMA-base, batch 1, float32; medians of {repetitions} turns"
    lines = [timing.heading(what, machine), *lines, *devices.not_run("the same rows", which)]
    facts = {"machine": machine, "synthetic": True, "flops": counted(), "measured": facts}
    return output.show("floor", lines, targets, facts, out)


def _measure(repetitions: int, device: torch.device, out: Path) -> dict[str, list[float]]:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="floor-") as name:
        views = [View(case, "plain") for case in synthetic.cohort(Path(name), 1)]
        model = synthetic.dual(BASE).to(device)
        activations = synthetic.activations(model, Path(name) / "activations", Compute(device))
        activations.fill(views)
        works: dict[str, timing.Work] = {
            STEP: variants.cached(model, activations, views),
            PRODUCTS: Products(flops.products(BASE, ADAPTED_BLOCKS, 1, RANK), device),
            ATTENTION: Attentions(flops.attentions(BASE, ADAPTED_BLOCKS, 1), device),
        }
        taken = timing.interleaved(works, repetitions, device)
    return {**taken, FLOOR: [a + b for a, b in zip(taken[PRODUCTS], taken[ATTENTION], strict=True)]}


def counted() -> dict[str, int]:
    """Return the floating-point operations of each part of a cached step of CineMA-base, batch 1."""
    products = flops.total(flops.products(BASE, ADAPTED_BLOCKS, 1, RANK))
    attention = flops.total(flops.attentions(BASE, ADAPTED_BLOCKS, 1))
    both = products + attention
    return {STEP: both, PRODUCTS: products, ATTENTION: attention, FLOOR: both}


def table(taken: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a row for the step and each part of its floor."""
    work, floor = counted(), output.median(taken[FLOOR])
    rows = []
    for name, values in taken.items():
        seconds = output.median(values)
        rows.append([name, work[name] / 1e9, 1e3 * seconds, work[name] / 1e9 / seconds, seconds / floor])
    return output.table(["", "GFLOP", "median, ms", "GFLOP/s", "floors"], rows)


def judged(taken: Mapping[str, Sequence[float]]) -> list[Target]:
    """Return the ratio of the step to its floor: the median over turns, each of which did both."""
    ratios = [step / floor for step, floor in zip(taken[STEP], taken[FLOOR], strict=True)]
    return [Target("a cached step, in its unavoidable products", output.median(ratios), RATIO)]
