"""torch.compile on the trained blocks: what starting it costs, and after how many steps that is won back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments import output
from experiments.training import devices, synthetic, timing
from experiments.training.precision import DEMO, DEMO_BATCH
from experiments.training.synthetic import BASE
from experiments.training.variants import Step
from site_agent.models.config import ConvViTConfig
from site_agent.training.compute import Compute

ROUND_STEPS = 60
"""About what a site of 270 cases takes in a round of two epochs and batches of 16, after a start of its agent."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One network. start_s: the first step, with compilation. eager_s, compiled_s: a later one."""

    what: str
    start_s: float
    eager_s: float
    compiled_s: float

    @property
    def break_even(self) -> float:
        """Steps until the start is won back; infinite if a step gains nothing."""
        gain = self.eager_s - self.compiled_s
        return max(0.0, self.start_s - self.compiled_s) / gain if gain > 0 else float("inf")

    def row(self) -> list[object]:
        """Return it as a line of the table."""
        times = [self.start_s, 1e3 * self.eager_s, 1e3 * self.compiled_s]
        return [self.what, *times, self.compiled_s / self.eager_s, self.break_even]


def run(repetitions: int, out: Path, which: devices.Which = "all") -> bool:
    """Measure and show; there is no target, only a verdict."""
    machine, found, failed = timing.machine(), list[Compiled](), list[str]()
    for device in devices.there(which):
        for name, network, batch in (("CineMA-base", BASE, 1), ("demo's", DEMO, DEMO_BATCH)):
            what = f"{name}, batch {batch}, {device.type}"
            try:
                found.append(_measure(what, network, batch, device, repetitions))
            except (RuntimeError, OSError) as error:  # how torch says that there is no compiler, or that it failed
                failed.append(f"{what}: not compiled: {type(error).__name__}: {_first_line(error)}")
    heading = timing.heading(f"compile: SYNTHETIC; cached step in float32, medians of {repetitions} turns", machine)
    lines = [heading, *table(found), *failed, *devices.not_run("the same rows", which), verdict(found)]
    facts: dict[str, Any] = {"machine": machine, "synthetic": True, "failed": failed}
    return output.show("compile", lines, [], {**facts, "measured": [asdict(one) for one in found]}, out)


def _measure(what: str, network: ConvViTConfig, batch: int, device: torch.device, repetitions: int) -> Compiled:
    from torch._inductor.utils import fresh_cache

    model = synthetic.dual(network).to(device)
    with torch.no_grad():
        prefix = model.frozen(synthetic.images(batch, network).to(device))
    eager = Step.of(model, lambda: model.suffix(prefix), batch, Compute(device))
    suffix = torch.compile(model.suffix)
    compiled = Step.of(model, lambda: suffix(prefix), batch, Compute(device))
    with fresh_cache():  # nothing that an earlier run compiled
        start_s = timing.seconds(compiled, device)
        taken = timing.interleaved({"eager": eager, "compiled": compiled}, repetitions, device)
    torch.compiler.reset()
    return Compiled(what, start_s, output.median(taken["eager"]), output.median(taken["compiled"]))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no details"])[0]


def table(found: Sequence[Compiled]) -> list[str]:
    """Return a row for each network."""
    head = ["network", "first step, s", "step as it is, ms", "compiled, ms", "ratio", "steps to win it back"]
    return output.table(head, [one.row() for one in found])


def verdict(found: Sequence[Compiled]) -> str:
    """Return whether to compile, in words."""
    if not found:
        return "verdict: nothing could be compiled here; training does not try to"
    steps: Mapping[str, float] = {one.what: one.break_even for one in found}
    within = [what for what, count in steps.items() if count <= ROUND_STEPS]
    if not within:
        return f"verdict: not worth it: nothing wins its start back within {ROUND_STEPS} steps, a large site's round"
    return f"verdict: won back within {ROUND_STEPS} steps, a large site's round: {'; '.join(within)}"
