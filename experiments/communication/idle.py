"""What a site costs that only waits: the bytes of its line while nothing happens.

A real aggregator with TLS on both ends, and one real client behind a relay that counts. The site has sent its update and the other
sites never do. Counted is from the end of one poll to the end of a later one, both directions together.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments import output
from experiments.communication import federation
from experiments.communication.children import Child
from experiments.communication.site import SitePlan
from experiments.output import Target
from experiments.relay import Relay
from shared.protocol import MAX_WAIT_S

MOST_BYTES_PER_S = 20.0
SITES = ("waiting", "absent", "away")
SETTLE_S = 0.2
"""After an answer: the next question is on its way."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What passed in so many polls; `by_poll` holds bytes up and down of each."""

    seconds: float
    by_poll: list[tuple[int, int]]
    connections: int

    @property
    def up(self) -> int:
        return sum(up for up, _ in self.by_poll)

    @property
    def down(self) -> int:
        return sum(down for _, down in self.by_poll)

    @property
    def bytes_per_s(self) -> float:
        return (self.up + self.down) / self.seconds

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "seconds": self.seconds,
            "polls": len(self.by_poll),
            "bytes_up": self.up,
            "bytes_down": self.down,
            "bytes_per_s": self.bytes_per_s,
            "bytes_by_poll": self.by_poll,
            "connections": self.connections,
        }


def run(polls: int, wait_s: float, out: Path) -> bool:
    """Measure, show, and return whether the target was met."""
    machine = output.machine()
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        found = asyncio.run(measure(Path(folder), polls, wait_s))
    head = ["a site that waits", "polls", "seconds", "bytes up", "bytes down", "bytes/s"]
    rows = [["TLS on both ends", polls, found.seconds, found.up, found.down, found.bytes_per_s]]
    targets = (
        []
        if wait_s < MAX_WAIT_S
        else [Target("chatter of a site between rounds, both ways", found.bytes_per_s, MOST_BYTES_PER_S, "B/s")]
    )
    return output.show("idle", output.table(head, rows), targets, {"machine": machine, **found.facts()}, out)


async def measure(folder: Path, polls: int, wait_s: float) -> Idle:
    """Let a site take part in a round that never closes, and count while it waits."""
    certificates = federation.make_certificates(folder / "certificates", "127.0.0.1", SITES)
    store = federation.make_store(folder, federation.make_adapter(federation.SIZES[0]), SITES, rounds=1)
    async with federation.serve(store, folder, certificates["aggregator"]) as address, Relay([address]) as relay:
        plan = SitePlan(
            address=relay.address,
            name=SITES[0],
            base_model=federation.BASE_MODEL,
            log=str(folder / "site.jsonl"),
            certificates=str(folder / "certificates"),
            wait_s=wait_s,
        )
        async with federation.site(plan, folder) as site:
            for _ in range(2):  # the answer that it is to wait comes at once, and the one after tables are filled
                await _waited(site)
            counts, began = [_count(relay)], time.monotonic()
            for _ in range(polls):
                await _waited(site)
                counts.append(_count(relay))
            seconds = time.monotonic() - began
    passed = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(counts)]
    return Idle(seconds, passed, len(relay.links))


async def _waited(site: Child) -> None:
    """Return when another poll was answered and the next one is under way."""
    while "waited" not in await site.facts():
        continue
    await asyncio.sleep(SETTLE_S)


def _count(relay: Relay) -> tuple[int, int]:
    return relay.bytes_up, relay.bytes_down
