"""Federations that ask only some of their sites, over real gRPC: those drawn train, those that do not answer are replaced."""

import asyncio
from pathlib import Path

import pytest
from med_duallora.v1 import federation_pb2 as pb

from aggregator import rounds, steering, verify
from aggregator.store import engine
from aggregator.store import rounds as round_rows
from tests.support import adapters
from tests.support.raw_site import RawSite
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration

SITES = ("a", "b", "c", "d", "e", "f")
SEED = 7
ORDER = rounds.draw(SITES, SEED, 1)
"""How round 1 draws its sites; the first three are invited."""


def instruction(answer: pb.AwaitRoundResponse) -> str:
    return pb.Instruction.Name(answer.instruction).removeprefix("INSTRUCTION_")


def records(store: str) -> list[round_rows.RoundRecord]:
    opened = engine.open_store(store)
    try:
        assert {check.difference for check in verify.verify(opened, "demo")} == {""}
        return opened.read(round_rows.records, "demo")
    finally:
        opened.close()


async def test_all_sites_finish_a_federation_in_which_each_round_asks_half_of_them(tmp_path: Path) -> None:
    store = make_store(tmp_path, SITES, invited=3, sampling_seed=SEED, rounds=4)
    async with serve(store) as running:
        sites = [RawSite(running.address, name, patients=10 + k) for k, name in enumerate(SITES)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
    assert {(instruction(a), a.round, a.version) for a in answers} == {("FINISHED", 4, 4)}
    for record in records(store):
        assert (
            tuple(record.state.accepted) == record.state.invited == rounds.invite(SITES, 3, SEED, record.state.number)
        )


async def test_sites_that_do_not_answer_are_replaced_and_the_round_closes(tmp_path: Path) -> None:
    """Two of the three that were drawn never come; the quorum stays three."""
    store = make_store(tmp_path, SITES, invited=3, sampling_seed=SEED, rounds=1, deadline_s=1.0, grace_s=0.2)
    present = [ORDER[0], *ORDER[3:5]]
    async with serve(store) as running:
        sites = [RawSite(running.address, name) for name in present]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
    assert {instruction(a) for a in answers} == {"FINISHED"}
    (record,) = records(store)
    assert record.state.invited == tuple(sorted(ORDER[:5]))
    assert sorted(record.state.accepted) == sorted(present)


async def test_an_evicted_site_is_replaced_at_once(tmp_path: Path) -> None:
    store = make_store(tmp_path, SITES, invited=3, sampling_seed=SEED, rounds=1)
    async with serve(store) as running, RawSite(running.address, ORDER[3]) as next_one:
        await next_one.join()
        waiting = asyncio.create_task(next_one.wait("WAIT", 1, wait_s=20))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await steering.evict(running.federation, "anna", ORDER[1], "left the study")
        async with asyncio.timeout(5):
            assert instruction(await waiting) == "TRAIN"
        sites = [next_one, *(RawSite(running.address, name) for name in (ORDER[0], ORDER[2]))]
        for k, site in enumerate(sites):
            await site.join()
            await site.upload(adapters.delta(site.layout, k))
        assert instruction(await next_one.wait("WAIT", 1, wait_s=10)) == "FINISHED"
        for site in sites[1:]:
            await site.channel.close()
    (record,) = records(store)
    assert record.state.invited == tuple(sorted(ORDER[:4]))
    assert sorted(record.state.accepted) == sorted((ORDER[0], ORDER[2], ORDER[3]))
