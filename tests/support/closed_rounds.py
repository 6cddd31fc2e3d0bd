"""A store with closed rounds in it, made through the store's own functions without a server."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator import closing, manifest, rounds, setup
from aggregator.manifest import RoundManifest
from aggregator.results import Result
from aggregator.store import engine, federations, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.updates import UpdateKey
from shared.adapter import Adapter
from tests.support import adapters

PATIENTS = {"canon": 50, "ge": 77, "siemens": 273}


def make(
    folder: Path,
    patients: Mapping[str, int] = PATIENTS,
    rounds_count: int = 2,
    url: str = "",
    adapter: Adapter | None = None,
    **plan: Any,
) -> Store:
    """Return a new store, a SQLite file in the folder or the database at `url`, with round 1 open.

    Every site has joined in name only.
    """
    (adapter or adapters.adapter()).write(folder / "v0.safetensors")
    made = setup.FederationPlan(
        name="demo", adapter=folder / "v0.safetensors", sites=dict(patients), rounds=rounds_count, **plan
    )
    where = url or str(folder / "fed.db")
    setup.create(where, made, 1000.0)
    return engine.open_store(where)


def announce(store: Store, site: str, payload: bytes) -> UpdateKey:
    """Begin an upload into the open round."""
    state = store.read(federations.state, "demo")
    digest = hashlib.sha256(payload).hexdigest()
    header = rounds.UpdateHeader(
        site=site,
        agent_id=f"agent-{site}",
        round=state.round.number,
        digest=digest,
        size=len(payload),
        codec=store.read(federations.contract, "demo").recipe.codec,
        base_version=state.round.base_version,
        training_patients=state.sites[site].training_patients or 0,
    )
    key = UpdateKey("demo", state.round.number, site, digest)
    store.write(updates.announce, "demo", header, 1001.0)
    return key


def send(store: Store, site: str, payload: bytes, chunk: int = 100) -> UpdateKey:
    """Put one accepted update into the open round, in several chunks."""
    key = announce(store, site, payload)
    for start in range(0, len(payload), chunk):
        store.write(updates.stage, key, start, payload[start : start + chunk])
    store.write(updates.accept, key, 1002.0)
    return key


def close(store: Store) -> str:
    """Close the open round with whoever is in; return the digest of the result."""
    state = store.read(federations.state, "demo")
    contract = store.read(federations.contract, "demo")
    parent = store.read(federations.adapter, "demo", state.round.base_version)
    version = store.read(federations.last_version, "demo") + 1
    decided = manifest.of_round(state, contract.recipe, parent.digest, version)
    assert store.write(closing.begin_closing, state, decided)
    result = compute(store)
    assert store.write(closing.write_result, contract, decided, result, 1003.0)
    return result.version.digest


def compute(store: Store) -> Result:
    """Return what the round that is closing makes."""
    number = store.read(round_rows.last, "demo").number
    decided = RoundManifest.from_bytes(store.read(round_rows.record, "demo", number).manifest)
    parent = store.read(federations.adapter, "demo", decided.parent_version)
    return closing.compute(store, store.read(federations.contract, "demo"), decided, parent)


def run(store: Store, order: Sequence[str] = tuple(PATIENTS), rounds_count: int = 2) -> list[str]:
    """Run rounds, from round 1, with the invited sites reporting in this order; return the digests of the results."""
    contract = store.read(federations.contract, "demo")
    digests = []
    for number in range(1, rounds_count + 1):
        layout = contract.recipe.upload_layout(contract.manifest, number, len(PATIENTS))
        invited = store.read(federations.state, "demo").round.invited
        for site in (name for name in order if name in invited):
            send(store, site, adapters.delta(layout, seed=100 * number + sorted(order).index(site)))
        digests.append(close(store))
    return digests
