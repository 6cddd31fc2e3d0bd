"""How much memory a site's process takes that trains CineMA-base on a CPU: the kernel's own mark of its peak."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from experiments import output
from experiments.output import Target
from experiments.training import synthetic, timing
from experiments.training.synthetic import BASE
from shared.contract import Contract, RoundPolicy
from shared.recipe import Recipe
from site_agent.models import weights
from site_agent.new_adapter import AdapterChoices, init_adapter

MOST_GB = 1.5
RECIPE = Recipe(batch_size=1)
CHILD = "experiments.training.site_process"
LIMIT_S = 1200.0
PRECISIONS = ("float32", "bfloat16")
PARTS = {
    "imported": "Python, torch, gRPC imported",
    "loaded": "base model and cohort loaded",
    "filled": "cache filled, random views by MONAI",
    "trained": "one round trained",
    "evaluated": "validated, four arms compared",
}


def run(cases: int, out: Path) -> bool:
    """Measure, show, and return whether the target was met."""
    machine, peaks, entries = timing.machine(), dict[str, dict[str, int]](), 0
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="memory-") as name:
        _write(Path(name), cases)
        for precision in PRECISIONS:
            words = [sys.executable, "-m", CHILD, name, precision]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=LIMIT_S)
            found = json.loads(done.stdout.splitlines()[-1])
            peaks[precision], entries = found["peaks"], found["entries"]
    what = f"memory: SYNTHETIC CineMA-base, batch 1, {cases} cases, {entries} entries"
    lines = [timing.heading(what, machine), *table(peaks)]
    facts = {"machine": machine, "synthetic": True, "entries": entries, "peak_bytes": peaks}
    return output.show("memory", lines, judged(peaks), facts, out)


def _write(folder: Path, cases: int) -> None:
    """Write what a site has, and what the aggregator would give it."""
    weights.save_backbone(folder / "weights", BASE, synthetic.classifier(BASE).backbone.state_dict())
    synthetic.cohort(folder / "cohort", cases)
    initial = init_adapter(folder / "weights", "", AdapterChoices())
    initial.write(folder / "v0.safetensors")
    contract = Contract(
        federation="memory",
        adapter_digest=initial.digest,
        manifest=initial.manifest,
        recipe=RECIPE,
        policy=RoundPolicy(rounds=1),
    )
    (folder / "contract.json").write_bytes(contract.to_bytes())


def table(peaks: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a row for each part of the work, a column for each precision."""
    rows: list[list[object]] = [
        [what, *(of_parts[part] / 1e9 for of_parts in peaks.values())] for part, what in PARTS.items()
    ]
    return output.table(["peak after, GB", *peaks], rows)


def judged(peaks: Mapping[str, Mapping[str, int]]) -> list[Target]:
    """Return the peak of each process, against the most it may be."""
    return [
        Target(f"peak memory of a site on a CPU, {precision}", max(of_parts.values()) / 1e9, MOST_GB, "GB")
        for precision, of_parts in peaks.items()
    ]
