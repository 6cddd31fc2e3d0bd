"""A real aggregator on 127.0.0.1:0, inside the test's process."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aggregator import server, setup
from aggregator.federation import ServiceLimits
from aggregator.server import RunningServer
from aggregator.store import engine
from shared.adapter import Adapter
from shared.tls import TlsFiles
from tests.support import adapters

SITES = ("ge", "philips", "siemens")


def make_store(folder: Path, sites: Any = SITES, adapter: Adapter | None = None, url: str = "", **plan: Any) -> str:
    """Write a store with one federation and return where it is: a SQLite file in the folder, or the database at `url`."""
    folder.mkdir(exist_ok=True)
    (adapter or adapters.adapter()).write(folder / "v0.safetensors")
    values = {
        "name": "demo",
        "rounds": 2,
        "sites": dict.fromkeys(sites, None) if not isinstance(sites, dict) else sites,
    }
    made = setup.FederationPlan(adapter=folder / "v0.safetensors", **{**values, **plan})
    where = url or str(folder / "fed.db")
    setup.create(where, made, time.time())
    return where


@asynccontextmanager
async def serve(
    store: str,
    tls: TlsFiles | None = None,
    listen: str = "127.0.0.1:0",
    http: str = "",
    traces: str = "",
    **limits: Any,
) -> AsyncIterator[RunningServer]:
    """Serve a store until the block ends."""
    opened = engine.open_store(store)
    config = server.ServerConfig(listen=listen, tls=tls, http=http, traces=traces, limits=ServiceLimits(**limits))
    running = await server.start(opened, config)
    try:
        yield running
    finally:
        await running.stop(1.0)
        opened.close()


def tls_of(folder: Path, name: str) -> TlsFiles:
    """Return one party's files in a folder made by `aggregator certificates`."""
    return TlsFiles(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
