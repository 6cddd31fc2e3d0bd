"""Uploads that break off, lie or come twice are refused with the text a person sees; the federation goes on regardless."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from med_duallora.v1 import federation_pb2 as pb

from aggregator.server import RunningServer
from aggregator.store import updates
from shared import chunks
from tests.support import adapters, hostile_site
from tests.support.methods import PRIVATE
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration

PREFIX = "base_model.model."


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with hostile_site.one_round(tmp_path) as server:
        yield server


@pytest.fixture
async def site(running: RunningServer) -> AsyncIterator[RawSite]:
    async with hostile_site.trying(running) as made:
        yield made


async def test_the_same_update_again_has_the_same_receipt(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    receipt = await site.upload(payload)
    assert await site.upload(payload) == receipt
    assert (await site.stream(list(chunks.split(payload)), digest(payload))).receipt == receipt


async def test_another_update_for_an_accepted_one_is_a_conflict(site: RawSite) -> None:
    await site.upload(adapters.delta(site.layout, 1))
    code, kind, text = await refusal(site.upload(adapters.delta(site.layout, 2)))
    assert (code, kind) == ("ALREADY_EXISTS", "ConflictingUpdate")
    assert "updates are never replaced" in text


async def test_an_unfinished_upload_gives_way_to_another(site: RawSite) -> None:
    await site.begin(adapters.delta(site.layout, 1))
    await site.upload(adapters.delta(site.layout, 2))


async def test_a_cut_upload_goes_on_from_its_durable_bytes(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    await site.begin(payload)
    pieces = list(chunks.split(payload, chunk_bytes=100))
    code, kind, text = await refusal(site.stream(pieces[:2], digest(payload)))
    assert (code, kind) == ("ABORTED", "BadOffset")
    assert f"ended at byte 200 of {len(payload)}" in text
    assert (await site.begin(payload)).committed == 200
    assert (await site.stream(pieces[2:], digest(payload))).receipt.digest == digest(payload)


async def test_a_silent_upload_is_let_go_and_keeps_its_bytes(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    await site.begin(payload)
    pieces = list(chunks.split(payload, chunk_bytes=100))
    code, _, text = await refusal(site.stream(pieces[:1], digest(payload), then=asyncio.sleep(15)))
    assert code == "ABORTED"
    assert "nothing came for 1 s; what arrived is kept" in text
    assert (await site.begin(payload)).committed == 100


async def test_an_upload_that_never_says_what_it_is_is_let_go(site: RawSite) -> None:
    call = site.stub.UploadDelta(metadata=site.metadata, timeout=10)
    code, kind, text = await refusal(call)
    assert (code, kind) == ("ABORTED", "BadOffset")
    assert "nothing came for 1 s; what arrived is kept" in text


async def test_a_drip_has_an_end(tmp_path: Path) -> None:
    store = make_store(tmp_path, sites=("ge",), quorum=1)
    async with serve(store, upload_s=1.0, chunk_wait_s=60.0) as running, RawSite(running.address, "ge") as site:
        await site.join()
        payload = adapters.delta(site.layout, 1)
        await site.begin(payload)

        async def drip() -> AsyncIterator[pb.UploadDeltaRequest]:
            start = pb.UploadStart(agent_id=site.agent_id, round=1, digest=digest(payload))
            yield pb.UploadDeltaRequest(start=start)
            for piece in chunks.split(payload, chunk_bytes=4):
                yield pb.UploadDeltaRequest(chunk=piece)
                await asyncio.sleep(0.2)

        call = site.stub.UploadDelta(drip(), metadata=site.metadata, timeout=20)
        assert "took longer than 1 s" in (await refusal(call))[2]


async def test_a_cancelled_upload_keeps_what_was_durable(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    await site.begin(payload)
    pieces = list(chunks.split(payload, chunk_bytes=100))
    sending = asyncio.create_task(site.stream(pieces[:3], digest(payload), then=asyncio.sleep(15)))
    await asyncio.sleep(0.5)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert (await site.begin(payload)).committed == 300


async def test_wrong_bytes_are_refused_and_dropped(running: RunningServer, site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    other = adapters.delta(site.layout, 2)
    for size in (1 << 20, 100):
        await site.begin(payload)
        code, kind, text = await refusal(site.stream(list(chunks.split(other, chunk_bytes=size)), digest(payload)))
        assert (code, kind) == ("INVALID_ARGUMENT", "InvalidUpdate")
        assert f"have digest {digest(other)[:12]}, announced was {digest(payload)[:12]}" in text
        key = updates.UpdateKey("demo", 1, "ge", digest(payload))
        assert await running.federation.read(updates.committed, key) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 100])
async def test_non_finite_values_are_refused_by_tensor_name(site: RawSite, value: float, chunk_bytes: int) -> None:
    tensors = {name: array.copy() for name, array in site.layout.split(adapters.delta(site.layout, 1)).items()}
    name = f"{PREFIX}encoder.blocks.1.attn.q.lora_B.weight"
    tensors[name].flat[2] = value
    payload = site.layout.join(tensors)
    code, kind, text = await refusal(site.upload(payload, chunk_bytes=chunk_bytes))
    assert (code, kind) == ("INVALID_ARGUMENT", "InvalidUpdate")
    assert f"tensor '{name}' has 1 non-finite values" in text


async def test_chunks_out_of_place_or_over_the_announced_size_are_refused(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    await site.begin(payload)
    size = len(payload)
    for chunk, kind in (
        (pb.Chunk(offset=4, data=payload[4:8]), "BadOffset"),
        (pb.Chunk(offset=0, data=payload + b"x"), "UpdateTooLarge"),
        (pb.Chunk(offset=0, data=b""), "UpdateTooLarge"),
        (pb.Chunk(offset=2**63, data=b"1234"), "BadOffset"),
    ):
        assert (await refusal(site.stream([chunk], digest(payload))))[1] == kind
    assert (await site.begin(payload)).committed == 0
    assert size == site.layout.size


async def test_an_upload_that_was_not_announced_begins_again(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    code, kind, text = await refusal(site.stream(list(chunks.split(payload)), digest(payload)))
    assert (code, kind) == ("ABORTED", "BadOffset")
    assert "was not announced here; begin again" in text


async def test_an_upload_has_its_parts_in_order(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    await site.begin(payload)
    start = pb.UploadDeltaRequest(start=pb.UploadStart(agent_id=site.agent_id, round=1, digest=digest(payload)))
    chunk = pb.UploadDeltaRequest(chunk=pb.Chunk(data=payload[:100]))
    for requests in ([], [chunk], [pb.UploadDeltaRequest()], [start, chunk, start]):

        async def stream(parts: list[pb.UploadDeltaRequest] = requests) -> AsyncIterator[pb.UploadDeltaRequest]:
            for part in parts:
                yield part

        assert (await refusal(site.stub.UploadDelta(stream(), metadata=site.metadata, timeout=10)))[
            1
        ] == "InvalidUpdate"


async def test_a_message_over_the_limit_is_refused_by_grpc(site: RawSite) -> None:
    code, _, _ = await refusal(site.call("Probe", pb.ProbeRequest(payload=b"x" * (5 << 20))))
    assert code == "RESOURCE_EXHAUSTED"


async def test_two_streams_of_one_upload_cannot_mix(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    await site.begin(payload)
    pieces = list(chunks.split(payload, chunk_bytes=50))
    results = await asyncio.gather(*(site.stream(pieces, digest(payload)) for _ in range(3)), return_exceptions=True)
    assert (await site.upload(payload)).digest == digest(payload)  # whoever won, one more try is enough
    for result in results:
        if isinstance(result, BaseException):
            assert (await refusal(_raise(result)))[1] == "BadOffset"


async def _raise(error: BaseException) -> None:
    raise error


async def test_under_differential_privacy_no_figure_is_taken(tmp_path: Path) -> None:
    values = {name: str(value).lower() for name, value in PRIVATE.items() if name != "name"}
    store = make_store(tmp_path, recipe=PRIVATE["name"], parameters=values)
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        await site.join(recipes=[PRIVATE["name"]])
        payload = adapters.delta(site.layout, 1)
        assert (await refusal(site.begin(payload, metrics={"train_loss": 0.5})))[1:] == (
            "InputError",
            "metric 'train_loss' is computed from cases without noise, and may not be told under differential privacy "
            "(dp_noise 1.5); keep it at the site",
        )
        for metrics in ({"auc": 0.5}, {}):
            request = pb.ReportEvaluationRequest(agent_id=site.agent_id, cases=3, metrics=metrics)
            assert (await refusal(site.call("ReportEvaluation", request)))[1] == "InputError"
