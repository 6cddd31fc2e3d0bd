"""Agents and an aggregator over real gRPC: rounds close, and what they leave behind fits together."""

from tests.integration import federation


async def test_three_sites_finish_their_rounds_and_each_has_a_report(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, rounds=2)
    async with federation.serving(store) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path, running.address))
    federation.assert_finished(store)
