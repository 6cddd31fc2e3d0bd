"""The task that closes rounds: what it does about pauses, damage, and replicas that were faster or computed something else."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from aggregator import closing, manifest
from aggregator.closing import Closer
from aggregator.federation import Federation, ServiceLimits
from aggregator.results import Result
from aggregator.rounds import FederationState
from aggregator.store import federations, schema, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from shared.recipe import Recipe
from tests.support import adapters, closed_rounds

Logs = list[Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three sites, whose updates for round 1 are all in."""
    made = closed_rounds.make(tmp_path, rounds_count=4)
    fill(made)
    yield made
    made.close()


def fill(store: Store) -> None:
    for k, site in enumerate(closed_rounds.PATIENTS):
        closed_rounds.send(store, site, adapters.delta(store.read(federations.contract, "demo").manifest.layout, k))


def state_of(store: Store) -> FederationState:
    return store.read(federations.state, "demo")


def fix_manifest(store: Store) -> None:
    seen = state_of(store)
    assert store.write(closing.begin_closing, seen, manifest.of_round(seen, Recipe(), seen.digest, 1))


def zero_a_chunk(store: Store) -> None:
    zeroed = schema.chunks.update().where(schema.chunks.c.site == "ge", schema.chunks.c.offset == 0)
    store.write(lambda connection: connection.execute(zeroed.values(data=bytes(100))))


async def close_until(store: Store, enough: Callable[[Logs], bool], keep_rounds: int = 0) -> Logs:
    """Let a replica close rounds until its log says enough; return the log."""
    federation = Federation(store, "demo", ServiceLimits(keep_rounds=keep_rounds))
    with capture_logs() as logs:
        task = asyncio.create_task(Closer(federation).run())
        for _ in range(1000):
            if enough(logs) or task.done():
                break
            await asyncio.sleep(0.02)
        federation.drain()
        await task
        assert enough(logs), logs
    return list(logs)


def says(event: str, times: int = 1) -> Callable[[Logs], bool]:
    return lambda logs: sum(entry["event"] == event for entry in logs) >= times


async def test_a_round_whose_manifest_is_fixed_is_finished_in_a_pause_and_no_other_one(store: Store) -> None:
    fix_manifest(store)
    store.write(federations.set_phase, "demo", "paused", "holiday", 2000.0)
    await close_until(store, says("round_closed"))
    fill(store)
    assert not [entry for entry in await close_until(store, lambda logs: True) if entry["event"].startswith("round_")]
    state = state_of(store)
    assert (state.phase, state.round.number, state.round.phase) == ("paused", 2, "open")


async def test_a_round_of_damaged_bytes_stays_as_it_is_and_is_said_again_and_again(store: Store) -> None:
    zero_a_chunk(store)
    logs = await close_until(store, says("closing_failed", 2))
    failed = [entry["error"] for entry in logs if entry["event"] == "closing_failed"]
    assert "round 1's update of site 'ge'" in failed[0]
    state = state_of(store)
    assert (state.round.phase, state.version) == ("closing", 0)


async def test_a_replica_that_lags_behind_the_retention_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it computed round 1, another replica closed rounds 1 to 3 and dropped the bytes of the first two."""
    compute = closing.compute

    def late(*arguments: Any) -> Result:
        monkeypatch.setattr(closing, "compute", compute)
        fix = closed_rounds.compute(store)
        contract = store.read(federations.contract, "demo")
        decided = manifest.RoundManifest.from_bytes(store.read(round_rows.record, "demo", 1).manifest)
        assert store.write(closing.write_result, contract, decided, fix, 1003.0)
        for _ in range(2):
            fill(store)
            closed_rounds.close(store)
        store.change("demo", True, updates.purge, "demo", 1, 1004.0)
        return compute(*arguments)

    monkeypatch.setattr(closing, "compute", late)
    fix_manifest(store)
    logs = await close_until(store, lambda logs: state_of(store).round.number == 4, keep_rounds=1)
    assert not [entry for entry in logs if entry["log_level"] == "error"]


async def test_a_result_that_differs_from_the_one_written_down_is_an_error_in_the_log(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: Any) -> Result:
        monkeypatch.setattr(closing, "compute", compute)
        decided = arguments[2]
        mine = compute(*arguments)
        doubled = {name: 2 * array for name, array in mine.version.tensors.items()}
        assert store.write(closing.write_result, arguments[1], decided, mine, 1003.0)
        return replace(mine, version=arguments[3].successor(doubled, decided.version))

    compute = closing.compute
    monkeypatch.setattr(closing, "compute", other)
    logs = await close_until(store, says("result_differs"))
    (entry,) = [entry for entry in logs if entry["event"] == "result_differs"]
    assert entry["round"] == 1
    assert entry["stored"] == state_of(store).digest != entry["computed"]


@pytest.mark.parametrize(("rank", "warnings"), [(adapters.RESIDUAL_RANK, 0), (1, 1)])
async def test_a_residual_of_too_small_a_rank_is_said(tmp_path: Path, rank: int, warnings: int) -> None:
    made = closed_rounds.make(tmp_path, adapter=adapters.adapter(residual=rank), recipe="fedex-lora")
    contract = made.read(federations.contract, "demo")
    layout = contract.recipe.upload_layout(contract.manifest, 1, 3)
    for k, site in enumerate(closed_rounds.PATIENTS):
        closed_rounds.send(made, site, adapters.delta(layout, k, scale=1.0))
    logs = await close_until(made, says("round_closed"))
    found = [entry for entry in logs if entry["event"] == "residual_truncated"]
    assert len(found) == warnings
    for entry in found:
        assert (entry["round"], entry["residual_rank"]) == (1, 1)
        assert entry["aggregation_error"] > 1e-3
    made.close()
