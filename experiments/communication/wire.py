"""Bytes on the wire of a site and round, by codec and recipe, counted by a relay outside the processes.

A real aggregator with TLS on both ends and one real client that sends random updates of CineMA-base's adapter; no training. A round
is counted from before its first call to after its receipt, when nothing is on its way: the one question that brings the task
(AwaitRound), the evaluation report, download and upload with all that HTTP/2 and TLS add. Handshake and Join come before, further
heartbeats are measured by `idle`.
"""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import output
from experiments.communication import base_adapter, federation
from experiments.communication.site import SitePlan
from experiments.output import Target
from experiments.relay import Relay
from shared.adapter import Adapter

SITE = "siemens"
WARM_UP = 2
QUIET_S = 0.15
"""After the receipt: acknowledgements of what was sent are under way for a moment."""
SHARE, SLACK_BYTES = 1.01, 4000
TIMES_LESS = {("med-duallora", "f32"): 950.0, ("med-duallora", "int8"): 3800.0, ("ffa-lora", "int4"): 12000.0}
AIM = {("med-duallora", "int8"): 4000.0}
RECIPES = ("med-duallora", "ffa-lora", "fedsa-lora", "rolora")


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over rounds. Wire bytes and, within, tensor payload, each way."""

    frames: str
    recipe: str
    codec: str
    rounds: int
    wire_up: float
    wire_down: float
    payload_up: float
    payload_down: float

    @property
    def times_less(self) -> float:
        """How many times fewer bytes go up than in full fine-tuning."""
        return base_adapter.FULL_MODEL_BYTES / self.wire_up

    @property
    def over(self) -> float:
        """Bytes beyond 1.01 x payload, both ways: at most 4 KB is allowed."""
        return self.wire_up + self.wire_down - SHARE * (self.payload_up + self.payload_down)

    def row(self) -> list[object]:
        """Return the table's row."""
        sizes = (self.payload_up, self.wire_up, self.payload_down, self.wire_down)
        return [f"{self.frames} {self.recipe}", self.codec, *map(int, sizes), int(self.over), f"{self.times_less:,.0f}"]


HEAD = (
    "frames, recipe",
    "codec",
    "payload up",
    "wire up",
    "payload down",
    "wire down",
    "over 1.01 x",
    "x below full, up",
)


def run(rounds: int, codecs: Sequence[str], recipes: Sequence[str], out: Path) -> bool:
    """Measure, show, and return whether every target was met."""
    machine = output.machine()
    wanted = [(frames, recipe, codec) for frames in ("stacked", "siamese") for recipe in recipes for codec in codecs]
    adapters = {frames: base_adapter.make(frames) for frames in ("stacked", "siamese")}
    found = [asyncio.run(measure(adapters[frames], recipe, codec, rounds)) for frames, recipe, codec in wanted]
    worst = max(found, key=lambda one: one.over)
    targets = [
        Target(
            f"wire beyond 1.01 x payload, both ways, worst of all ({worst.recipe} {worst.codec})",
            worst.over,
            SLACK_BYTES,
            "B",
        )
    ]
    for one in found:
        if one.frames == "stacked" and (least := TIMES_LESS.get((one.recipe, one.codec))):
            aim = AIM.get((one.recipe, one.codec))
            what = f"{one.recipe} {one.codec}, up, below full fine-tuning{f' (aim {aim:,.0f})' if aim else ''}"
            targets.append(Target(what, one.times_less, least, "x", least=True))
    sizes = {frames: adapter.manifest.layout.parameters for frames, adapter in adapters.items()}
    scalars = ", ".join(f"{number:,} scalars {frames}" for frames, number in sizes.items())
    note = f"CineMA-base, last two blocks, q+kv+proj, rank 8, two-class head: {scalars}"
    facts = {
        "machine": machine,
        "scalars": sizes,
        "rows": [asdict(one) | {"times_less": one.times_less} for one in found],
    }
    return output.show("wire", [note, *output.table(HEAD, [one.row() for one in found])], targets, facts, out)


async def measure(adapter: Adapter, recipe: str, codec: str, rounds: int) -> Measured:
    """Count some rounds of one federation."""
    with tempfile.TemporaryDirectory(prefix="wire-") as name:
        folder = Path(name)
        certificates = federation.make_certificates(folder / "certificates", "127.0.0.1", [SITE])
        parameters = {"codec": codec, "broadcast_codec": codec}
        store = federation.make_store(folder, adapter, [SITE], rounds + WARM_UP + 1, recipe, parameters)
        async with federation.serve(store, folder, certificates["aggregator"]) as address, Relay([address]) as relay:
            plan = SitePlan(
                address=relay.address,
                name=SITE,
                base_model=base_adapter.BASE_MODEL,
                log=str(folder / "site.jsonl"),
                certificates=str(folder / "certificates"),
                fresh=True,
                held=True,
                reports=True,
            )
            async with federation.site(plan, folder) as site:
                await site.facts()  # joined
                counts = []
                for _ in range(WARM_UP + rounds):
                    await asyncio.sleep(QUIET_S)
                    counts.append((relay.bytes_up, relay.bytes_down))
                    site.go()
                    while "round" not in await site.facts():
                        continue
                await asyncio.sleep(QUIET_S)
                counts.append((relay.bytes_up, relay.bytes_down))
        payload = payload_by_round(folder / "site.jsonl")
    counted = range(WARM_UP + 1, WARM_UP + rounds + 1)
    return Measured(
        frames=adapter.manifest.metadata.frames,
        recipe=recipe,
        codec=codec,
        rounds=rounds,
        wire_up=output.median([counts[n][0] - counts[n - 1][0] for n in counted]),
        wire_down=output.median([counts[n][1] - counts[n - 1][1] for n in counted]),
        payload_up=output.median([payload[n][0] for n in counted]),
        payload_down=output.median([payload[n][1] for n in counted]),
    )


def payload_by_round(log: Path) -> dict[int, tuple[int, int]]:
    """Return tensor bytes up and down by round, from a site's log."""
    sums: dict[int, tuple[int, int]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "rpc_finished":
            up, down = sums.get(event["round"], (0, 0))
            sums[event["round"]] = up + event["payload_bytes_up"], down + event["payload_bytes_down"]
    return sums
