"""One training step of CineMA-base on cached activations, against what it replaces."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import output
from experiments.output import Target
from experiments.training import devices, synthetic, timing, variants
from experiments.training.synthetic import BASE
from site_agent.training import compute
from site_agent.training.compute import Compute
from site_agent.training.views import View

CACHED = "cached dual LoRA, 2 blocks"
UNCACHED = "uncached dual LoRA, 2 blocks"
TWELVE = "dual LoRA, 12 blocks"
FULL = "full fine-tuning"
PEFT = "peft, two adapters, 2 blocks"
CACHED_BF16, UNCACHED_BF16 = f"{CACHED}, bfloat16", f"{UNCACHED}, bfloat16"
AT_LEAST = {UNCACHED: 2.8, TWELVE: 6.0, FULL: 7.5, PEFT: 2.9}
"""Times that the cached step must be faster on a CPU, in float32."""


def run(repetitions: int, out: Path, which: devices.Which = "all") -> bool:
    """Measure, show, and return whether every target was met."""
    machine, lines, targets, facts = timing.machine(), list[str](), list[Target](), dict[str, Any]()
    for device in devices.there(which):
        taken = _measure(repetitions, device, out)
        lines += [f"{device.type}:", *table(taken)]
        targets += judged(taken) if device.type == "cpu" else []
        facts[device.type] = timing.spreads(taken)
    what = f"steps: SYNTHETIC CineMA-base, 192 x 192 x 16, batch 1; medians of {repetitions} turns"
    lines = [timing.heading(what, machine), *lines, *devices.not_run("the same rows", which)]
    lines.append(f'precision = "auto" is {_auto()} here, for this width')
    return output.show("steps", lines, targets, {"machine": machine, "synthetic": True, "measured": facts}, out)


def _measure(repetitions: int, device: torch.device, out: Path) -> dict[str, list[float]]:
    out.mkdir(parents=True, exist_ok=True)
    float32, bfloat16 = Compute(device), Compute(device, bfloat16=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="steps-") as name:
        views = [View(case, "plain") for case in synthetic.cohort(Path(name), 1)]
        model = synthetic.dual(BASE).to(device)
        twelve = synthetic.dual(BASE, blocks=tuple(range(BASE.enc_depth))).to(device)
        image = synthetic.images(1).to(device)
        by_precision = {
            how: synthetic.activations(model, Path(name) / "activations", how) for how in (float32, bfloat16)
        }
        by_precision[float32].fill(views)
        return timing.interleaved(
            {
                CACHED: variants.cached(model, by_precision[float32], views),
                UNCACHED: variants.uncached(model, image, float32),
                TWELVE: variants.uncached(twelve, image, float32),
                FULL: variants.full(BASE, image, float32),
                PEFT: variants.peft(BASE, image, float32),
                CACHED_BF16: variants.cached(model, by_precision[bfloat16], views),
                UNCACHED_BF16: variants.uncached(model, image, bfloat16),
            },
            repetitions,
            device,
        )


def _auto() -> str:
    return "bfloat16" if compute.pick("auto", "auto", BASE.enc_embed_dim).bfloat16 else "float32"


def table(taken: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a row for each variant, with the cached step's time as the unit."""
    unit = output.median(taken[CACHED])
    rows = [
        [name, 1e3 * output.median(values), 1e3 * min(values), 1e3 * max(values), output.median(values) / unit]
        for name, values in taken.items()
    ]
    return output.table(["step", "median, ms", "least", "most", "cached steps"], rows)


def judged(taken: Mapping[str, Sequence[float]]) -> list[Target]:
    """Return how many times faster the cached step must be, and is."""
    unit = output.median(taken[CACHED])
    return [
        Target(f"a cached step is faster than: {name}", output.median(taken[name]) / unit, times, "x", least=True)
        for name, times in AT_LEAST.items()
    ]
