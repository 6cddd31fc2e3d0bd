"""Codecs and recipes between a real server and real clients: every site rebuilds every version bit for bit, in few bytes."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from aggregator import verify
from aggregator.store import changes, engine, federations, updates
from aggregator.store import rounds as round_rows
from shared.adapter import Adapter
from shared.canonical import canonical_json
from shared.codecs import is_lossy
from shared.errors import ContractMismatch, InputError
from shared.methods import METHODS
from shared.recipe import CODECS, INSTALLED, Recipe
from site_agent import client, egress
from site_agent.client import FederationClient
from site_agent.egress import UpdateFacts
from tests.support import adapters, methods
from tests.support.ledgers import throwaway
from tests.support.serving import SITES, make_store, serve

pytestmark = pytest.mark.integration

ROUNDS = 4
ADAPTER = adapters.adapter(rank=4, width=64)


def trained(received: Adapter, recipe: Recipe, seed: int, number: int) -> dict[str, np.ndarray]:
    """Return received + something, of the tensors that travel."""
    rng = np.random.default_rng([seed, number])
    moved = {n: (a + 0.01 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in received.tensors.items()}
    return {name: array for name, array in moved.items() if recipe.travels(name, number)}


async def take_part(address: str, site: str, skips: frozenset[int] = frozenset()) -> dict[int, Adapter]:
    """Be a site to the end; return the versions it was given. It sleeps through the rounds in `skips`."""
    one = FederationClient(address, None, f"agent-of-{site}", throwaway(), plain_site=site, give_up_after_s=20.0)
    seed, owed, held, versions = SITES.index(site), {}, None, {}
    try:
        joined = await one.join(
            federation="", base_model_sha256=adapters.BASE_MODEL, training_patients=10, software_version=""
        )
        recipe, following, number = joined.contract.recipe, "UNSPECIFIED", 0
        while True:
            task = await one.await_round(round_number=number, following=following, version=0, wait_s=20.0)
            following, number = task.instruction, task.round
            if task.instruction not in ("TRAIN", "FINISHED"):
                continue
            if number not in skips or task.instruction == "FINISHED":
                held = versions[task.version] = await one.fetch(joined.contract, task, held)
            if task.instruction == "FINISHED":
                return versions
            if number in skips:
                following = "TRAIN"
                continue
            facts = UpdateFacts(round=number, base_version=task.version, training_patients=10, metrics={})
            draws = canonical_json([seed, number])
            update, owed = egress.seal(
                held, trained(held, recipe, seed, number), recipe, facts, joined.contract.policy.invited, owed, draws
            )
            await one.upload(update)
            following = "WAIT"
    finally:
        await one.close()


async def run(
    folder: Path, recipe: str, adapter: Adapter = ADAPTER, **parameters: str
) -> tuple[list[dict[int, Adapter]], str]:
    store = make_store(folder, adapter=adapter, rounds=ROUNDS, recipe=recipe, parameters=parameters)
    async with serve(store) as running:
        return await asyncio.gather(*(take_part(running.address, site) for site in SITES)), store


@pytest.mark.parametrize(
    ("recipe", "codec"),
    [
        *((recipe, "int4+zstd") for recipe in INSTALLED),
        *((recipe, codec) for recipe in ("med-duallora", "rolora") for codec in ("f32", "int8", "topk+zstd")),
    ],
)
async def test_all_sites_have_the_same_versions_and_the_store_verifies(tmp_path: Path, recipe: str, codec: str) -> None:
    """A version that is made of products is sent as it is: such recipes take lossy updates and no lossy broadcast."""
    adapter, parameters = adapters.fitting(recipe)
    codecs = {"codec": codec, "broadcast_codec": methods.broadcast(recipe, codec)}
    given, where = await run(tmp_path, recipe, adapter, **parameters, **codecs)
    store = engine.open_store(where)
    for version in range(ROUNDS + 1):
        wanted = store.read(federations.adapter_digest, "demo", version)
        assert [versions[version].digest for versions in given] == [wanted] * len(SITES)
    assert [check.difference for check in verify.verify(store, "demo")] == [""] * ROUNDS
    store.close()


@pytest.mark.parametrize("codec", [codec for codec in CODECS if is_lossy(codec)])
@pytest.mark.parametrize("recipe", [name for name in INSTALLED if METHODS[name].rule != "factors"])
def test_a_recipe_that_aggregates_products_takes_no_lossy_broadcast_codec(
    recipe: str, codec: str, tmp_path: Path
) -> None:
    adapter, parameters = adapters.fitting(recipe)
    with pytest.raises(InputError, match=f"aggregates products: broadcast_codec must be f32, got {re.escape(codec)}"):
        make_store(tmp_path, adapter=adapter, recipe=recipe, parameters={**parameters, "broadcast_codec": codec})


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "f32"])
async def test_an_update_takes_fewer_bytes_than_float32_and_what_arrived_is_near_it(tmp_path: Path, codec: str) -> None:
    """Near: error feedback makes up for what is kept back, so after some rounds it is much nearer than one round's rounding."""
    exact, _ = await run(tmp_path / "exact", "med-duallora")
    given, where = await run(tmp_path / "lossy", "med-duallora", codec=codec)
    store = engine.open_store(where)
    sizes = [sum(len(p) for p in updates.pieces(store, key)) for key in _keys(store)]
    assert len(sizes) == ROUNDS * len(SITES)
    assert max(sizes) < ADAPTER.manifest.layout.size * (1.0 if codec.startswith("f32") else 0.6)
    assert store.read(changes.find, "demo", 1) is None
    wanted, found = exact[0][ROUNDS], given[0][ROUNDS]
    way = np.concatenate([(wanted.tensors[n] - ADAPTER.tensors[n]).ravel() for n in wanted.tensors])
    gap = np.concatenate([(found.tensors[n] - wanted.tensors[n]).ravel() for n in wanted.tensors])
    assert np.linalg.norm(gap) < (0.9 if codec.startswith("topk") else 0.2) * np.linalg.norm(way)
    store.close()


def _keys(store: engine.Store) -> list[updates.UpdateKey]:
    return [
        updates.UpdateKey("demo", number, site, update.digest)
        for number in range(1, ROUNDS + 1)
        for site, update in store.read(round_rows.state, "demo", number).accepted.items()
    ]


async def test_a_site_that_does_not_know_the_broadcast_codec_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, adapter=ADAPTER, parameters={"broadcast_codec": "int4+zstd"})
    monkeypatch.setattr(client, "CODECS", ("f32", "bf16"))
    async with serve(store) as running:
        with pytest.raises(
            ContractMismatch, match=r"codec 'int4\+zstd' is not known at site 'ge' \(it has: f32, bf16\)"
        ):
            await take_part(running.address, "ge")


async def test_a_site_that_slept_through_rounds_gets_the_changes_since_or_all_packed(tmp_path: Path) -> None:
    parameters = {"codec": "int4", "broadcast_codec": "int4"}
    where = make_store(
        tmp_path, adapter=ADAPTER, rounds=ROUNDS, quorum=2, deadline_s=0.5, grace_s=0.0, parameters=parameters
    )
    async with serve(where) as running:
        given = await asyncio.gather(
            take_part(running.address, "ge", frozenset({2, 3})),
            *(take_part(running.address, site) for site in ("philips", "siemens")),
        )
    assert given[0].keys() < given[1].keys()
    assert all(given[0][version].digest == given[1][version].digest for version in given[0])
    assert given[0][ROUNDS].digest == given[2][ROUNDS].digest
