"""float32 or bfloat16 matrix products, by the width of the network: what `site_agent.training.compute.WIDE` is chosen by.

The demo's network is narrow; the others are CineMA-base's last two blocks at several widths, on its 2305 tokens. Entries are in
memory; of the demo's network the step with the frozen blocks is measured too.

On a GPU the narrowest and the widest are measured.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import site_agent.models
from experiments import output
from experiments.output import Target
from experiments.training import devices, synthetic, timing, variants
from experiments.training.variants import Step
from site_agent.models.config import ConvViTConfig
from site_agent.training import compute
from site_agent.training.compute import Compute

SIZES = {"cpu": ((128, 1), (192, 1), (384, 1), (768, 1)), "cuda": ((768, 1), (768, 16))}
"""Width and batch of what is measured beside the demo's network."""
DEMO = ConvViTConfig.from_json(Path(site_agent.models.__file__).parent / "demo" / "config.json")
DEMO_BATCH = 16
SLOWER = 1.1
"""Most that the precision `auto` picks may take, in units of the other one."""

Taken = Mapping[str, Sequence[float]]


def run(repetitions: int, out: Path, which: devices.Which = "all") -> bool:
    """Measure, show, and return whether every target was met."""
    machine, lines, targets, measured = timing.machine(), list[str](), list[Target](), dict[str, Any]()
    for device in devices.there(which):
        taken, picked = dict[str, dict[str, list[float]]](), dict[str, str]()
        for name, (width, make) in networks(device).items():
            steps = {"float32": make(Compute(device)), "bfloat16": make(Compute(device, bfloat16=True))}
            taken[name], picked[name] = timing.interleaved(steps, repetitions, device), _auto(device, width)
        lines += [f"{device.type}:", *table(taken, picked)]
        targets += judged(taken, picked, device)
        measured[device.type] = {name: timing.spreads(by) for name, by in taken.items()} | {"auto": picked}
    what = f"precision: SYNTHETIC networks, dual LoRA on the last two blocks; medians of {repetitions} turns"
    lines = [timing.heading(what, machine), *lines, *devices.not_run("two rows", which), f"WIDE = {compute.WIDE}"]
    facts = {"machine": machine, "synthetic": True, "wide": compute.WIDE, "measured": measured}
    return output.show("precision", lines, targets, facts, out)


def networks(device: torch.device) -> dict[str, tuple[int, Callable[[Compute], Step]]]:
    """Return what is measured: width, and what makes a step of a precision."""
    demo, image = synthetic.dual(DEMO).to(device), synthetic.images(DEMO_BATCH, DEMO).to(device)
    name = f"demo's, width {DEMO.enc_embed_dim}, batch {DEMO_BATCH}"
    found: dict[str, tuple[int, Callable[[Compute], Step]]] = {
        f"{name}, cached": (DEMO.enc_embed_dim, in_memory(DEMO, DEMO_BATCH, device)),
        f"{name}, uncached": (DEMO.enc_embed_dim, lambda how: variants.uncached(demo, image, how)),
    }
    for width, batch in SIZES[device.type]:
        network = synthetic.of_width(width, 2)
        found[f"width {width}, batch {batch}, cached"] = (width, in_memory(network, batch, device))
    return found


def in_memory(network: ConvViTConfig, batch: int, device: torch.device) -> Callable[[Compute], Step]:
    """Return what makes a cached step whose entries are on the device already."""
    model = synthetic.dual(network).to(device)
    with torch.no_grad():
        prefix = model.frozen(synthetic.images(batch, network).to(device))
    return lambda how: Step.of(model, lambda: model.suffix(prefix), batch, how)


def _auto(device: torch.device, width: int) -> str:
    return "bfloat16" if compute.pick("cuda" if device.type == "cuda" else "cpu", "auto", width).bfloat16 else "float32"


def table(taken: Mapping[str, Taken], picked: Mapping[str, str]) -> list[str]:
    """Return a row for each network."""
    rows = []
    for name, by in taken.items():
        wide, narrow = output.median(by["float32"]), output.median(by["bfloat16"])
        rows.append([name, 1e3 * wide, 1e3 * narrow, narrow / wide, picked[name]])
    return output.table(["network", "float32, ms", "bfloat16, ms", "ratio", "auto picks"], rows)


def judged(taken: Mapping[str, Taken], picked: Mapping[str, str], device: torch.device) -> list[Target]:
    """Return whether the precision that `auto` picks is the quicker one, or nearly."""
    found = []
    for name, by in taken.items():
        other = "float32" if picked[name] == "bfloat16" else "bfloat16"
        ratio = output.median(by[picked[name]]) / output.median(by[other])
        found.append(Target(f"{device.type}, {name}: {picked[name]}, in steps of {other}", ratio, SLOWER))
    return found
