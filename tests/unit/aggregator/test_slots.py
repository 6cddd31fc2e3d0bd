"""Slots: how many, whose, and when one is another call's."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from aggregator.slots import PER_SITE, Slots, punctual
from shared.errors import BadOffset


async def hold(slots: Slots, site: str, free: asyncio.Event, held: list[str]) -> None:
    async with slots.one(site):
        held.append(site)
        await free.wait()
        held.remove(site)


@pytest.mark.parametrize(("count", "own", "others"), [(1, 1, 0), (2, 1, 1), (3, PER_SITE, 1), (64, PER_SITE, 6)])
async def test_a_site_has_few_slots_and_never_all_of_several(count: int, own: int, others: int) -> None:
    slots, free, held = Slots(count), asyncio.Event(), []
    tasks = [asyncio.create_task(hold(slots, "greedy", free, held)) for _ in range(5)]
    tasks += [asyncio.create_task(hold(slots, f"site-{k}", free, held)) for k in range(6)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert held.count("greedy") == own
    assert len(held) == own + others
    free.set()
    await asyncio.gather(*tasks)
    assert held == []


async def test_a_call_that_is_cancelled_while_it_waits_or_holds_leaves_its_slot() -> None:
    slots, free, held = Slots(2), asyncio.Event(), []
    tasks = [asyncio.create_task(hold(slots, "ge", free, held)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1), slots.one("ge"), slots.one("siemens"):
        pass


async def test_a_message_that_is_not_taken_lends_the_slot_to_another_call() -> None:
    slots = Slots(1)
    async with slots.one("slow") as slot:
        parts = slot.paced("ab", 0.01)
        assert await anext(parts) == "a"
        async with asyncio.timeout(5), slots.one("other"):
            going_on = asyncio.create_task(anext(parts))
            await asyncio.sleep(0.02)
            assert not going_on.done()
        assert await going_on == "b"
        with pytest.raises(StopAsyncIteration):
            await anext(parts)
    async with asyncio.timeout(5), slots.one("other"):
        pass


async def test_a_message_that_is_taken_in_time_keeps_the_slot() -> None:
    slots = Slots(1)
    async with slots.one("quick") as slot:
        waiting = asyncio.create_task(hold(slots, "other", asyncio.Event(), []))
        assert [part async for part in slot.paced("abc", 5.0)] == ["a", "b", "c"]
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()


async def test_what_a_site_sends_has_its_time_and_its_end() -> None:
    async def sent(*pauses_s: float) -> AsyncIterator[int]:
        for number, pause_s in enumerate(pauses_s):
            await asyncio.sleep(pause_s)
            yield number

    assert [one async for one in punctual(sent(0.0, 0.0), 5.0)] == [0, 1]
    late = punctual(sent(0.0, 60.0), 0.05)
    assert await anext(late) == 0
    with pytest.raises(BadOffset, match="nothing came for 0 s; what arrived is kept, begin again"):
        await anext(late)
