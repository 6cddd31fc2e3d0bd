"""What the benchmarks run: adapters of a given size, a store, certificates, `aggregator serve` and sites as processes."""

import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aggregator import certificates, setup
from aggregator.store import engine, federations
from aggregator.store import rounds as round_rows
from aggregator.store.rounds import RoundRecord
from experiments.communication import children
from experiments.communication.children import Child
from experiments.communication.site import SitePlan
from shared.adapter import Adapter, AdapterManifest, AdapterMetadata
from shared.layout import Layout
from shared.tls import TlsFiles

BASE_MODEL = "cd" * 32
WIDTH, TARGETS = 768, {"kv": 2 * 768, "proj": 768, "q": 768}
"""Of CineMA-base's blocks: features in, and features out of each adapted layer."""


@dataclass(frozen=True, slots=True)
class Size:
    """An adapter of so many blocks of CineMA-base."""

    name: str
    blocks: int
    rank: int


SIZES = (Size("0.1", 1, 5), Size("1.2", 7, 8), Size("6", 12, 24))
"""Named by their megabytes: 107,520, 1,204,224 and 6,193,152 bytes."""


def make_adapter(size: Size, base_model: str = BASE_MODEL) -> Adapter:
    """Return version 0 of an adapter without a head: A random, B zero."""
    rng, tensors = np.random.default_rng(0), dict[str, np.ndarray]()
    for block in range(size.blocks):
        for target, out in TARGETS.items():
            name = f"base_model.model.encoder.blocks.{block}.attn.{target}"
            tensors[f"{name}.lora_A.weight"] = rng.uniform(-0.03, 0.03, (size.rank, WIDTH)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = np.zeros((out, size.rank), np.float32)
    metadata = AdapterMetadata(
        base_model_sha256=base_model,
        rank=size.rank,
        alpha=2.0 * size.rank,
        target_modules=tuple(TARGETS),
        blocks=tuple(range(size.blocks)),
        head_policy="local",
        frames="stacked",
        task="benchmark",
        class_names=("normal", "disease"),
    )
    return Adapter(AdapterManifest(Layout.of(tensors), metadata), 0, "", tensors)


def make_store(
    folder: Path,
    adapter: Adapter,
    sites: Sequence[str],
    rounds: int,
    recipe: str = "med-duallora",
    parameters: Mapping[str, str] | None = None,
) -> str:
    """Write a new store with a federation of these sites, all of whom are needed for every round."""
    adapter.write(folder / "v0.safetensors")
    store = str(folder / "fed.db")
    plan = setup.FederationPlan(
        name="bench",
        adapter=folder / "v0.safetensors",
        recipe=recipe,
        parameters=parameters or {},
        sites=dict.fromkeys(sites),
        rounds=rounds,
        quorum=len(sites),
    )
    setup.create(store, plan, time.time())
    return store


def make_certificates(folder: Path, host: str, sites: Sequence[str]) -> dict[str, TlsFiles]:
    """Make certificates for the aggregator at `host` and the sites; return the files by name."""
    certificates.make(folder, [host], sites)
    return {n: TlsFiles(folder / "ca.pem", folder / f"{n}.pem", folder / f"{n}.key") for n in ("aggregator", *sites)}


@asynccontextmanager
async def serve(
    store: str, folder: Path, tls: TlsFiles | None = None, *, host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> AsyncIterator[str]:
    """Run `aggregator serve` until the block ends; yield its address. `prefix` comes before the command."""
    program = Path(sys.executable).with_name("aggregator")
    command: list[object] = [*prefix, program, "serve", "--store", store, "--listen", f"{host}:0"]
    command += ["--log", folder / "aggregator.jsonl"]
    if tls is None:
        command += ["--plain"]
    else:
        command += ["--tls-ca", tls.ca, "--tls-cert", tls.certificate, "--tls-key", tls.key]
    async with children.started("aggregator", command, folder) as child:
        yield (await child.line()).split("listening on ")[1].split()[0]


@asynccontextmanager
async def site(plan: SitePlan, folder: Path, *, prefix: Sequence[str] = ()) -> AsyncIterator[Child]:
    """Run a site until the block ends. What it prints is said in `experiments.communication.site`."""
    command = [*prefix, sys.executable, "-m", "experiments.communication.site", json.dumps(asdict(plan))]
    async with children.started(plan.name, command, folder) as child:
        yield child


def records(store: str) -> list[RoundRecord]:
    """Return every round of a store's federation, oldest first."""
    opened = engine.open_store(store)
    try:
        return opened.read(round_rows.records, opened.read(federations.only_name))
    finally:
        opened.close()
