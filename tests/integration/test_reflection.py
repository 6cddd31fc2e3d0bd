"""A site that sends what is another's: under the other's digest, or the other's very bytes. Nothing of it counts for the other."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from med_duallora.v1 import federation_pb2 as pb

from aggregator.server import RunningServer
from aggregator.store import rounds as round_rows
from aggregator.store import updates
from shared import chunks
from tests.support import adapters
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration
PATIENTS = {"ge": 30, "philips": 50, "siemens": 20}
LAYOUT = adapters.adapter().manifest.layout
OF_GE, OF_PHILIPS, OF_SIEMENS = (adapters.delta(LAYOUT, k) for k in (1, 2, 3))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with serve(make_store(tmp_path, sites=PATIENTS, rounds=1)) as server:
        yield server


@pytest.fixture
async def sites(running: RunningServer) -> AsyncIterator[dict[str, RawSite]]:
    made = {name: RawSite(running.address, name, patients=patients) for name, patients in PATIENTS.items()}
    for site in made.values():
        await site.join()
    yield made
    for site in made.values():
        await site.channel.close()


async def manifest(running: RunningServer, sites: dict[str, RawSite]) -> dict[str, Any]:
    """Return what the only round was made of, once it is closed."""
    answer = await sites["siemens"].wait("WAIT", 1, wait_s=10)
    assert answer.instruction == pb.INSTRUCTION_FINISHED
    (closed,) = await running.federation.read(round_rows.records, "demo")
    return dict(json.loads(closed.manifest))


async def accepted(running: RunningServer) -> dict[str, str]:
    return {site: one.digest for site, one in (await running.federation.state()).round.accepted.items()}


@pytest.mark.parametrize("payload", [OF_GE, OF_PHILIPS], ids=["with the other's bytes", "with its own bytes"])
async def test_an_upload_under_a_digest_that_another_site_announced_is_refused(
    running: RunningServer, sites: dict[str, RawSite], payload: bytes
) -> None:
    await sites["ge"].begin(OF_GE)
    code, kind, text = await refusal(sites["philips"].stream(list(chunks.split(payload)), digest(OF_GE)))
    assert (code, kind) == ("ABORTED", "BadOffset")
    assert "was not announced here" in text
    of_ge = updates.UpdateKey("demo", 1, "ge", digest(OF_GE))
    assert await running.federation.read(updates.committed, of_ge) == 0, "nothing was put in the other's place"
    assert await accepted(running) == {}
    await sites["ge"].upload(OF_GE)
    assert await accepted(running) == {"ge": digest(OF_GE)}


async def test_no_receipt_of_another_sites_update_is_given_out(
    running: RunningServer, sites: dict[str, RawSite]
) -> None:
    await sites["ge"].upload(OF_GE)
    begun = await sites["philips"].begin(OF_GE)
    assert not begun.HasField("receipt")
    assert begun.committed == 0, "all of it is asked for: that the aggregator has these bytes already is not told"


async def test_announcing_another_sites_digest_for_other_bytes_is_refused_and_the_site_may_go_on(
    running: RunningServer, sites: dict[str, RawSite]
) -> None:
    await sites["ge"].upload(OF_GE)
    await sites["philips"].begin(OF_GE)
    code, kind, text = await refusal(sites["philips"].stream(list(chunks.split(OF_PHILIPS)), digest(OF_GE)))
    assert (code, kind) == ("INVALID_ARGUMENT", "InvalidUpdate")
    assert f"announced was {digest(OF_GE)[:12]}" in text
    assert await accepted(running) == {"ge": digest(OF_GE)}
    await sites["philips"].upload(OF_PHILIPS)
    assert await accepted(running) == {"ge": digest(OF_GE), "philips": digest(OF_PHILIPS)}


async def test_the_very_bytes_of_another_site_count_as_the_senders_own_at_its_own_weight(
    running: RunningServer, sites: dict[str, RawSite]
) -> None:
    """Who sent what stays apart: the copy neither replaces the original nor adds to its site's weight, whichever comes first."""
    for name in ("philips", "ge"):
        await sites[name].upload(OF_GE)
    assert (await refusal(sites["philips"].upload(OF_PHILIPS)))[1] == "ConflictingUpdate", "what it sent stands"
    await sites["siemens"].upload(OF_SIEMENS)
    made = await manifest(running, sites)
    entries = {one["site"]: one for one in made["entries"]}
    assert {name: one["digest"] for name, one in entries.items()} == {
        "ge": digest(OF_GE),
        "philips": digest(OF_GE),
        "siemens": digest(OF_SIEMENS),
    }
    assert {name: one["training_patients"] for name, one in entries.items()} == PATIENTS
