"""Uploads of 6 MB through a relay that cuts the connection at random points: what the cuts cost, and what arrived.

Counted is what the relay took from the client, so that whatever left the client counts, wherever it was lost. The aggregator
is a process of its own; every second batch of uploads goes over mTLS.
"""

import asyncio
import hashlib
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator import certificates
from aggregator.store import engine, updates
from aggregator.store.updates import UpdateKey
from experiments.relay import Fault, FaultPlan, Relay
from shared import logs
from shared.protocol import CHUNK_BYTES
from shared.tls import TlsFiles
from site_agent.client import FederationClient
from site_agent.egress import Update, UpdateFacts
from tests.chaos import served
from tests.support import adapters
from tests.support.ledgers import throwaway
from tests.support.serving import make_store, tls_of

SHAPE = {"rank": 32, "width": 768, "blocks": 16}
"""Of an adapter of 6.3 MB."""
CHUNKS_A_CUT = 2
MOST_CUTS = 3
BATCH = 10
KEEPER = "keeper"
"""A site that never sends, so that the round stays open."""


@dataclass(frozen=True, slots=True)
class CutUpload:
    """One upload. `bytes_up` is all that the relay took from the client, the calls before the upload included."""

    seed: int
    secure: bool
    size: int
    cuts: int
    bytes_up: int
    duration_s: float
    receipts: int
    """How often the aggregator says it accepted an update of this site."""
    intact: bool
    """Whether the stored bytes are those that were sent."""

    @property
    def more_a_cut(self) -> float:
        """Bytes beyond the payload, per cut."""
        return (self.bytes_up - self.size) / self.cuts

    @property
    def kept_its_promise(self) -> bool:
        return self.intact and self.receipts == 1 and self.more_a_cut <= CHUNKS_A_CUT * CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Figures:
    """What a number of cut uploads showed."""

    uploads: tuple[CutUpload, ...]

    @property
    def is_good(self) -> bool:
        return all(upload.kept_its_promise for upload in self.uploads)

    def lines(self) -> list[str]:
        """Return the figures to print; a failed upload is named with its seed."""
        limit = CHUNKS_A_CUT * CHUNK_BYTES / 2**20
        rows = [
            f"{'uploads cut at random points':<52}{len(self.uploads):>9}",
            f"{'cuts':<52}{sum(upload.cuts for upload in self.uploads):>9}",
            f"{'accepted exactly once, stored bytes as sent':<52}"
            f"{sum(upload.intact and upload.receipts == 1 for upload in self.uploads):>9}",
        ]
        for name, secure in (("plain", False), ("mTLS", True)):
            more = sorted(upload.more_a_cut / 2**20 for upload in self.uploads if upload.secure == secure)
            if more:
                rows.append(
                    f"{f'{name}: sent beyond the payload, a cut':<52}  median {statistics.median(more):.2f}, "
                    f"most {more[-1]:.2f} MiB (allowed {limit:.2f})"
                )
        failed = [upload for upload in self.uploads if not upload.kept_its_promise]
        return rows + [f"FAILED: {upload}" for upload in failed]


def run(runs: int, seed: int = 0) -> Figures:
    """Cut `runs` uploads, with consecutive seeds."""
    found: list[CutUpload] = []
    for number, first in enumerate(range(seed, seed + runs, BATCH)):
        seeds = range(first, min(first + BATCH, seed + runs))
        with tempfile.TemporaryDirectory() as folder:
            logs.configure(Path(folder) / "clients.jsonl", terminal=io.StringIO())  # the screen is for the figures
            found += asyncio.run(batch(Path(folder), seeds, secure=bool(number % 2)))
    return Figures(tuple(found))


async def batch(folder: Path, seeds: Sequence[int], *, secure: bool) -> list[CutUpload]:
    """Cut one upload a seed, at one aggregator with a new store in `folder`."""
    sites = {seed: f"site-{seed}" for seed in seeds}
    big = adapters.adapter(**SHAPE)
    store = make_store(folder, sites=(KEEPER, *sites.values()), adapter=big, quorum=len(seeds) + 1)
    if secure:
        certificates.make(folder / "certs", ["127.0.0.1"], tuple(sites.values()))
    found = []
    log = folder / "aggregator.jsonl"
    with served.serve(store, log, tls_of(folder / "certs", "aggregator") if secure else None) as aggregator:
        for seed, site in sites.items():
            update = make_update(seed)
            tls = tls_of(folder / "certs", site) if secure else None
            relay, duration_s = await _send(aggregator.address, site, tls, update, seed)
            found.append(
                CutUpload(
                    seed=seed,
                    secure=secure,
                    size=len(update.payload),
                    cuts=sum(link.fault_came for link in relay.links),
                    bytes_up=relay.bytes_up,
                    duration_s=duration_s,
                    receipts=_accepted(log, update.digest),
                    intact=stored(store, site, update.digest) == update.payload,
                )
            )
    return found


def make_update(seed: int, round_number: int = 1) -> Update:
    """Return the random update of 6.3 MB that this seed stands for."""
    layout = adapters.adapter(**SHAPE).manifest.layout
    facts = UpdateFacts(round=round_number, base_version=round_number - 1, training_patients=10, metrics={})
    return Update(facts, layout, adapters.delta(layout, seed))


def draw_cuts(seed: int, size: int) -> tuple[Fault, ...]:
    """Return one to three cuts, each after a random number of a connection's bytes; the first always comes."""
    rng = random.Random(seed)
    return tuple(Fault("reset", rng.randrange(size)) for _ in range(rng.randint(1, MOST_CUTS)))


async def joined(
    address: str, site: str, tls: TlsFiles | None = None, call_timeout_s: float = 30.0
) -> FederationClient:
    """Return the client of a site that has joined."""
    client = FederationClient(
        address,
        tls,
        f"agent-of-{site}",
        throwaway(),
        plain_site="" if tls else site,
        give_up_after_s=60.0,
        call_timeout_s=call_timeout_s,
    )
    await client.join(
        federation="", base_model_sha256=adapters.BASE_MODEL, training_patients=10, software_version="chaos"
    )
    return client


async def _send(address: str, site: str, tls: TlsFiles | None, update: Update, seed: int) -> tuple[Relay, float]:
    async with Relay([address], FaultPlan(seed=seed, script=draw_cuts(seed, len(update.payload)))) as relay:
        client = await joined(relay.address, site, tls)
        began = time.monotonic()
        await client.upload(update)
        duration_s = time.monotonic() - began
        await client.close()
    return relay, duration_s


def stored(store: str, site: str, digest: str, round_number: int = 1) -> bytes:
    """Return the accepted bytes a store holds; nothing if the update is not accepted."""
    opened = engine.open_store(store)
    try:
        key = UpdateKey("demo", round_number, site, digest)
        found = opened.read(updates.find, key)
        whole = b"".join(updates.pieces(opened, key)) if found is not None and found[1] is not None else b""
        assert not whole or hashlib.sha256(whole).hexdigest() == digest
        return whole
    finally:
        opened.close()


def _accepted(log: Path, digest: str) -> int:
    events = map(json.loads, log.read_text().splitlines())
    return sum(event["event"] == "update_accepted" and digest.startswith(event["digest"]) for event in events)
