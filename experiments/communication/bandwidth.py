"""How long a round's transfers take on a slow line: 10 Mbit/s each way, 50 ms there and back, four sites on a line each.

The lines are network namespaces with `tc tbf`; the latency comes from a relay of our own beside the aggregator, for not every
kernel has netem. TLS on both ends. A transfer is download + upload of one site and round, by the site's own clock; it is compared
with what the line must take: tensor bytes / rate + 4 round trips.
"""

import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments import output
from experiments.communication import base_adapter, children, federation, namespaces
from experiments.communication.site import SitePlan
from experiments.communication.wire import payload_by_round
from experiments.output import Target

BITS_PER_S = 10_000_000
ROUND_TRIP_S = 0.05
ROUND_TRIPS = 4
FACTOR = 1.3
SITES = ("siemens", "philips", "ge", "canon")
WARM_UP = 2
SETTINGS: Mapping[str, tuple[str, str]] = {
    "f32": ("med-duallora", "f32"),
    "int8": ("med-duallora", "int8"),
    "int4 + FFA": ("ffa-lora", "int4"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One setting: seconds of each counted transfer, and what the line must take for its bytes."""

    setting: str
    payload: float
    """Median of tensor bytes, both ways."""
    seconds: list[float]
    least_s: float

    @property
    def ratio(self) -> float:
        """Median transfer over what the line must take."""
        return output.median(self.seconds) / self.least_s

    def row(self) -> list[object]:
        """Return the table's row."""
        ordered = sorted(self.seconds)
        return [
            self.setting,
            int(self.payload),
            1e3 * self.least_s,
            1e3 * output.median(ordered),
            1e3 * ordered[-1],
            self.ratio,
        ]


def run(rounds: int, out: Path) -> bool:
    """Measure, show, and return whether the target was met. Raises InputError where namespaces cannot be made."""
    machine = output.machine()
    found = [asyncio.run(measure(name, rounds)) for name in SETTINGS]
    head = ["10 Mbit/s, 50 ms, 4 sites", "tensor bytes", "line alone ms", "median ms", "slowest ms", "ratio"]
    targets = [
        Target(f"{one.setting}: transfer of a round over payload/bandwidth + 4 round trips", one.ratio, FACTOR)
        for one in found
    ]
    facts = {"machine": machine, "rows": [asdict(one) | {"ratio": one.ratio} for one in found]}
    return output.show("bandwidth", output.table(head, [one.row() for one in found]), targets, facts, out)


async def measure(setting: str, rounds: int) -> Measured:
    """Run one federation on slow lines."""
    recipe, codec = SETTINGS[setting]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bandwidth-")))
        star = await stack.enter_async_context(namespaces.star(len(SITES), BITS_PER_S))
        certificates = federation.make_certificates(folder / "certificates", namespaces.HUB_ADDRESS, SITES)
        parameters = {"codec": codec, "broadcast_codec": codec}
        store = federation.make_store(folder, base_adapter.make(), SITES, rounds + WARM_UP, recipe, parameters)
        address = await stack.enter_async_context(
            federation.serve(store, folder, certificates["aggregator"], prefix=star.hub)
        )
        program = [*star.hub, sys.executable, "-m", "experiments.communication.delay"]
        delay = await stack.enter_async_context(
            children.started("delay", [*program, namespaces.HUB_ADDRESS, address, ROUND_TRIP_S / 2], folder)
        )
        slow = (await delay.line()).removeprefix("listening on ")
        sites: list[children.Child] = []
        for name, prefix in zip(SITES, star.sites, strict=True):
            plan = SitePlan(
                address=slow,
                name=name,
                base_model=base_adapter.BASE_MODEL,
                log=str(folder / f"{name}.jsonl"),
                certificates=str(folder / "certificates"),
                seed=len(sites),
                fresh=True,
            )
            sites.append(await stack.enter_async_context(federation.site(plan, folder, prefix=prefix)))
        seconds = [second for of_site in await asyncio.gather(*map(_transfers, sites)) for second in of_site]
        payloads = [payload_by_round(folder / f"{name}.jsonl") for name in SITES]
    counted = range(WARM_UP + 1, WARM_UP + rounds + 1)
    payload = output.median([sum(one[number]) for one in payloads for number in counted])
    return Measured(setting, payload, seconds, payload * 8 / BITS_PER_S + ROUND_TRIPS * ROUND_TRIP_S)


async def _transfers(site: children.Child) -> Sequence[float]:
    """Return the seconds of a site's counted transfers, until it has ended."""
    seconds = []
    while "ended" not in (said := await site.facts()):
        if said.get("round", 0) > WARM_UP:
            seconds.append(said["fetch_s"] + said["upload_s"])
    return seconds
