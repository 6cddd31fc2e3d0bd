"""A site that sends an update 100 times too large, or turned round, over real gRPC: it is quarantined, or outvoted, and `verify`
comes to the same or names what was tampered with.
"""

import asyncio
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from aggregator import verify
from aggregator.manifest import RoundManifest
from aggregator.store import audit, engine
from aggregator.store import rounds as round_rows
from tests.support import adapters
from tests.support.raw_site import RawSite
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration

SITES = ("canon", "ge", "philips", "siemens", "toshiba")
FORGER = "philips"
GATED = {"norm_gate": "4"}


async def run(folder: Path, factor: float, chunk_bytes: int = 1 << 20, **parameters: str) -> str:
    """Run two rounds in which all sites but one send much the same, and that one `factor` times it. Return the store."""
    store = make_store(folder, SITES, recipe="med-duallora", parameters=parameters)
    async with serve(store) as running:
        sites = [RawSite(running.address, name) for name in SITES]
        for site in sites:
            await site.join()
        for number in (1, 2):
            for seed, site in enumerate(sites):
                await site.wait("WAIT", number - 1, wait_s=10)
                payload = update(site, 100 * number, 100 * number + seed, factor if site.name == FORGER else 1.0)
                await site.upload(payload, number, chunk_bytes)
        await asyncio.gather(*(site.wait("WAIT", 2, wait_s=10) for site in sites))
        for site in sites:
            await site.channel.close()
    return store


def update(site: RawSite, common: int, own: int, factor: float) -> bytes:
    layout = site.layout
    both = [layout.split(adapters.delta(layout, seed, scale)) for seed, scale in ((common, 0.01), (own, 0.002))]
    return layout.join({name: (factor * (both[0][name] + both[1][name])).astype(np.float32) for name in both[0]})


def decided(store: str, number: int = 1) -> RoundManifest:
    opened = engine.open_store(store)
    try:
        return RoundManifest.from_bytes(opened.read(round_rows.record, "demo", number).manifest)
    finally:
        opened.close()


def figures(store: str, number: int = 1) -> dict[str, float]:
    opened = engine.open_store(store)
    try:
        return opened.read(round_rows.record, "demo", number).diagnostics
    finally:
        opened.close()


def differences(store: str) -> list[str]:
    opened = engine.open_store(store)
    try:
        return [check.difference for check in verify.verify(opened, "demo")]
    finally:
        opened.close()


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 100])
async def test_an_update_100_times_too_large_is_quarantined_visible_and_in_no_manifest(tmp_path, chunk_bytes):
    store = await run(tmp_path, 100.0, chunk_bytes, **GATED)
    for number in (1, 2):
        found = decided(store, number)
        assert [entry.site for entry in found.entries] == [site for site in SITES if site != FORGER]
        assert found.set_aside.keys() == {FORGER}
        assert re.match(r"quarantined: (low-rank|others) part has norm \d", found.left_out[FORGER])
        assert found.norm_gate == 4.0
        assert sum(entry.weight for entry in found.entries) == pytest.approx(1)
    assert differences(store) == ["", ""]
    opened = engine.open_store(store)
    journal = [json.loads(line) for line in opened.read(lambda connection: list(audit.lines(connection, "demo")))]
    lines = [line for line in journal if line["event"] == "round_closed"]
    opened.close()
    assert [line["left_out"][FORGER][:11] for line in lines] == ["quarantined"] * 2


async def test_without_a_gate_it_counts(tmp_path):
    store = await run(tmp_path, 100.0)
    assert [entry.site for entry in decided(store).entries] == list(SITES)
    assert "norm_gate" not in decided(store).to_jsonable()


@pytest.mark.parametrize(
    ("site", "norms", "difference"),
    [
        (FORGER, {"low-rank": 0.05, "others": 0.03}, "the norms in the rows say: none"),
        (FORGER, {"others": 0.5}, "update of site 'philips' has norms"),
        (FORGER, {}, "the norms in the rows say: none"),
        (
            "ge",
            {"low-rank": 900.0, "others": 0.03},
            "quarantine of site 'ge': none; the norms in the rows say: low-rank part has norm 900",
        ),
        ("ge", {"low-rank": 0.05, "others": 0.03}, "quarantine of site 'philips': low-rank part"),
    ],
)
async def test_norms_that_were_tampered_with_are_found(tmp_path, site, norms, difference):
    store = await run(tmp_path, 100.0, **GATED)
    with sqlite3.connect(store) as raw:
        row = "updates WHERE site = ? AND round = 1"
        ((held,),) = raw.execute(f"SELECT norms FROM {row}", (site,))
        changed = {**json.loads(held), **norms} if norms else {}
        statement = f"UPDATE {row.replace(' WHERE', ' SET norms = ? WHERE')}"
        assert raw.execute(statement, (json.dumps(changed), site)).rowcount == 1
    first, second = differences(store)
    assert difference in first
    assert second == ""


async def test_a_quarantine_that_was_made_up_is_found(tmp_path):
    """Somebody who may write the store cannot leave an honest site out under this name."""
    store = await run(tmp_path, 1.0, **GATED)
    found = decided(store).to_jsonable()
    gone = found["entries"].pop(1)
    rest = sum(entry["training_patients"] for entry in found["entries"])
    for entry in found["entries"]:
        entry["weight"] = entry["training_patients"] / rest
    found["left_out"][gone["site"]] = "quarantined: low-rank part has norm 9, the median is 1 and the gate 4 times that"
    found["set_aside"] = {gone["site"]: gone["digest"]}
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    digest = RoundManifest.from_bytes(text.encode()).input_digest
    with sqlite3.connect(store) as raw:
        raw.execute("UPDATE rounds SET manifest = ?, input_digest = ? WHERE number = 1", (text, digest))
    assert differences(store)[0].startswith("manifest: it says of the quarantine of site 'ge': low-rank part")


@pytest.mark.parametrize("factor", [100.0, -1.0])
@pytest.mark.parametrize(
    "parameters",
    [
        {"robust": "trimmed-distance", "attackers": "1"},
        {"robust": "geometric-median"},
        {"robust": "multi-krum", "attackers": "1"},
    ],
)
async def test_a_robust_rule_outvotes_one_site_of_five_and_verify_makes_the_same_of_it(tmp_path, factor, parameters):
    store = await run(tmp_path, factor, **parameters)
    found = decided(store)
    assert found.robust == parameters["robust"]
    assert found.rule == "products"
    assert [entry.weight for entry in found.entries] == pytest.approx([0.2] * 5)
    weights = {
        name.removeprefix("weight/"): value for name, value in figures(store).items() if name.startswith("weight/")
    }
    assert weights.keys() == set(SITES)
    assert weights[FORGER] < 0.05
    assert figures(store)["aggregation_error"] < 0.5
    assert differences(store) == ["", ""]


@pytest.mark.parametrize("parameters", [{"robust": "median"}, {"robust": "trimmed-mean", "attackers": "1"}])
async def test_rules_on_factors_are_recomputed_bit_for_bit(tmp_path, parameters):
    store = await run(tmp_path, 100.0, weighting="uniform", **parameters)
    assert decided(store).rule == "weighted_mean"
    assert differences(store) == ["", ""]
    opened = engine.open_store(store)
    assert not any(check.rounding for check in verify.verify(opened, "demo"))
    opened.close()
