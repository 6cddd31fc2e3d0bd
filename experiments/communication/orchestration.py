"""Rounds without training, against the least that the same bytes can cost.

A real aggregator on a SQLite file and sites as processes, with the agent's own client and its sealing of updates; then the plain
exchange of `experiments.communication.plain` on the same disk, in turns. A round's time is taken from the store: from its opening
to its close, which is when the next one opens.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import output
from experiments.communication import children, federation
from experiments.communication.federation import Size
from experiments.communication.plain import Exchange
from experiments.communication.site import SitePlan
from experiments.output import Target

WARM_UP = 3
"""First rounds that are not counted: processes start, connections are made, libraries are used for the first time."""
SITES = (4, 8)
RATIO = 2.0
SECONDS = {(4, "0.1"): 0.1, (4, "1.2"): 0.3}
"""Most seconds a round may take on a quiet machine, by sites and size."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of every counted round of one number of sites and one size, ours and the plain exchange's, by repetition."""

    sites: int
    size: Size
    payload: int
    ours: list[list[float]]
    plain: list[list[float]]

    @property
    def ours_s(self) -> float:
        return output.median([s for rounds in self.ours for s in rounds])

    @property
    def plain_s(self) -> float:
        return output.median([s for rounds in self.plain for s in rounds])

    @property
    def ratio(self) -> float:
        return self.ours_s / self.plain_s

    def row(self) -> list[object]:
        """Return the table's row."""
        by_turn = [output.median(a) / output.median(b) for a, b in zip(self.ours, self.plain, strict=True)]
        turns = " ".join(f"{ratio:.2f}" for ratio in by_turn)
        return [f"{self.size.name} MB", self.sites, 1e3 * self.ours_s, 1e3 * self.plain_s, self.ratio, turns]

    def targets(self) -> list[Target]:
        """Return what must hold of it."""
        label = f"{self.sites} sites, {self.size.name} MB"
        found = [Target(f"{label}: a round, in plain exchanges", self.ratio, RATIO)]
        if (limit := SECONDS.get((self.sites, self.size.name))) is not None:
            found.append(Target(f"{label}: a round", self.ours_s, limit, "s"))
        return found

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "sites": self.sites,
            "size": asdict(self.size),
            "payload_bytes": self.payload,
            "round_s": output.spread([s for rounds in self.ours for s in rounds]),
            "plain_s": output.spread([s for rounds in self.plain for s in rounds]),
            "ratio": self.ratio,
            "rounds_s": self.ours,
            "plain_rounds_s": self.plain,
        }


def run(rounds: int, turns: int, sites: Sequence[int], sizes: Sequence[str], disk: Path | None, out: Path) -> bool:
    """Measure, show, and return whether every target was met."""
    machine = output.machine()
    chosen = [size for size in federation.SIZES if size.name in sizes]
    with tempfile.TemporaryDirectory(dir=disk, prefix="orchestration-") as folder:
        found = [asyncio.run(_measure(Path(folder), size, n, rounds, turns)) for n in sites for size in chosen]
    head = ["adapter", "sites", "round, ms", "plain exchange, ms", "ratio", "ratio by turn"]
    load = f"load average before: {machine['load_average'][0]:.2f} on {machine['cores']} cores"
    lines = [
        f"orchestration: medians of {turns} x {rounds} rounds; {load}",
        *output.table(head, [m.row() for m in found]),
    ]
    facts = {"machine": machine, "measured": [m.facts() for m in found]}
    return output.show("orchestration", lines, [t for m in found for t in m.targets()], facts, out)


async def _measure(folder: Path, size: Size, sites: int, rounds: int, turns: int) -> Measured:
    ours, plain, payload = [], [], federation.make_adapter(size).manifest.layout.size
    for turn in range(turns):
        for kind in ("ours", "plain"):
            place = folder / f"{size.name}-{sites}-{turn}-{kind}"
            place.mkdir()
            if kind == "ours":
                ours.append(await federated(place, size, sites, rounds + WARM_UP))
            else:
                plain.append(await exchanged(place, payload, sites, rounds + WARM_UP))
            _discard(place)
    return Measured(sites, size, payload, ours, plain)


def _discard(folder: Path) -> None:
    """Remove what a run wrote, and let the disk finish with it before the next one begins."""
    for path in folder.iterdir():
        path.unlink()
    os.sync()


async def federated(folder: Path, size: Size, sites: int, rounds: int) -> list[float]:
    """Run a federation to its end; return the seconds of each round but the first ones."""
    names = [f"site-{number}" for number in range(sites)]
    store = federation.make_store(folder, federation.make_adapter(size), names, rounds)
    async with federation.serve(store, folder) as address, contextlib.AsyncExitStack() as stack:
        plans = [
            SitePlan(
                address=address,
                name=name,
                base_model=federation.BASE_MODEL,
                seed=number,
                log=str(folder / f"{name}.jsonl"),
            )
            for number, name in enumerate(names)
        ]
        running = [await stack.enter_async_context(federation.site(plan, folder)) for plan in plans]
        async with asyncio.TaskGroup() as group:
            for child in running:
                group.create_task(_to_its_end(child))
    closed = [record.state for record in federation.records(store)]
    return [(state.closed_at or 0.0) - state.opened_at for state in closed[WARM_UP:]]


async def _to_its_end(child: children.Child) -> None:
    while "ended" not in await child.facts():
        continue


async def exchanged(folder: Path, size: int, sites: int, rounds: int) -> list[float]:
    """Run the plain exchange to its end; return the seconds of each round but the first ones."""
    exchange = Exchange(sites=sites, rounds=rounds, size=size, folder=str(folder))
    async with (
        children.started("server", _plain("serve", exchange), folder) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        address = (await server.facts())["address"]
        for number in range(sites):
            one = Exchange(**{**asdict(exchange), "address": address, "site": number})
            await stack.enter_async_context(children.started(f"plain-{number}", _plain("site", one), folder))
        opened = (await server.facts())["opened"]
    return [after - before for before, after in zip(opened[WARM_UP:], opened[WARM_UP + 1 :], strict=False)]


def _plain(role: str, exchange: Exchange) -> list[object]:
    return [sys.executable, "-m", "experiments.communication.plain", role, json.dumps(asdict(exchange))]
