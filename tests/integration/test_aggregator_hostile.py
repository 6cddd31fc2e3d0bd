"""Calls that must be refused, with the text a person sees, and a federation that goes on regardless."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from med_duallora.v1 import federation_pb2 as pb

from aggregator.server import RunningServer
from aggregator.store import agents, updates
from shared import chunks, protocol
from shared.canonical import canonical_json
from shared.layout import Layout
from tests.support import adapters
from tests.support.methods import PRIVATE
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration

PREFIX = "base_model.model."


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    store = make_store(tmp_path, sites={"ge": None, "siemens": 218}, quorum=2, rounds=1)
    async with serve(store, chunk_wait_s=1.0) as server:
        yield server


@pytest.fixture
async def site(running: RunningServer) -> AsyncIterator[RawSite]:
    async with RawSite(running.address, "ge") as made:
        await made.join()
        yield made
        await finish(running, made)


async def finish(running: RunningServer, site: RawSite) -> None:
    """Whatever was tried before, the federation goes on: both sites deliver and the only round closes."""
    async with RawSite(running.address, "siemens", patients=218) as other:
        await other.join()
        for k, one in enumerate((site, other)):
            answer = await one.wait()
            if answer.instruction == pb.INSTRUCTION_TRAIN:
                await one.upload(adapters.delta(one.layout, 50 + k))
        last = await other.wait("WAIT", 1, wait_s=10)
        assert last.instruction == pb.INSTRUCTION_FINISHED


# taking turns


LARGE = 300_000
"""Width of an adapter of several messages: more than the windows of a connection that nobody reads take."""


async def unread_downloads(site: RawSite, count: int) -> list[Any]:
    """Ask for version 0 so many times; return the calls once one of them has begun, of which only the first message is read."""
    calls = [site.stub.FetchAdapter(pb.FetchAdapterRequest(), metadata=site.metadata) for _ in range(count)]
    reads = [asyncio.create_task(call.read()) for call in calls]
    await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    return calls


async def test_downloads_that_one_site_does_not_read_keep_no_other_site_waiting(tmp_path: Path) -> None:
    store = make_store(tmp_path, adapter=adapters.adapter(width=LARGE))
    async with (
        serve(store, concurrent_uploads=2) as running,
        RawSite(running.address, "ge") as greedy,
        RawSite(running.address, "siemens") as other,
    ):
        held = await unread_downloads(greedy, 5)
        info, payload = await asyncio.wait_for(other.fetch(0), 10)
        assert info is not None
        assert len(payload) == info.size
        for call in held:
            call.cancel()
        assert (await asyncio.wait_for(greedy.fetch(0), 10))[1] == payload


async def test_a_download_that_nobody_reads_gives_way_and_goes_on_when_it_is_read(tmp_path: Path) -> None:
    version = adapters.adapter(width=LARGE)
    async with (
        serve(make_store(tmp_path, adapter=version), concurrent_uploads=1, chunk_wait_s=0.5) as running,
        RawSite(running.address, "ge") as silent,
        RawSite(running.address, "siemens") as other,
    ):
        held = silent.stub.FetchAdapter(pb.FetchAdapterRequest(), metadata=silent.metadata)
        assert (await held.read()).info.size == len(version.payload)
        for _ in range(2):
            assert (await asyncio.wait_for(other.fetch(0), 10))[1] == version.payload
        received = b""
        while (part := await asyncio.wait_for(held.read(), 10)) is not grpc.aio.EOF:
            received += part.chunk.data
        assert received == version.payload


async def test_uploads_that_one_site_does_not_go_on_with_keep_no_other_site_waiting(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    async with (
        serve(store, concurrent_uploads=2) as running,
        RawSite(running.address, "ge") as greedy,
        RawSite(running.address, "siemens") as other,
    ):
        await greedy.join()
        await other.join()
        payload = adapters.delta(greedy.layout, 1)
        await greedy.begin(payload)
        held = [asyncio.create_task(greedy.stream([], digest(payload), then=asyncio.sleep(15))) for _ in range(5)]
        await asyncio.sleep(0.5)  # by now they have been heard
        assert await asyncio.wait_for(other.upload(adapters.delta(other.layout, 2)), 10)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


# joining


async def test_another_base_model_is_refused_with_both_hashes(running: RunningServer, site: RawSite) -> None:
    code, kind, text = await refusal(site.join(base_model_sha256="cd" * 32))
    assert (code, kind) == ("FAILED_PRECONDITION", "ContractMismatch")
    assert "adapts abababababab" in text
    assert "site 'ge' has cdcdcdcdcdcd" in text


async def test_another_number_of_patients_is_refused_with_both_numbers(running: RunningServer, site: RawSite) -> None:
    for name, claimed, fixed in (("ge", 11, 10), ("siemens", 219, 218)):
        async with RawSite(running.address, name) as other:
            code, kind, text = await refusal(other.join(training_patients=claimed))
            assert (code, kind) == ("FAILED_PRECONDITION", "ContractMismatch")
            assert f"claims {claimed} training patients, {fixed} were fixed" in text


@pytest.mark.parametrize("claimed", [0, 1_000_001])
async def test_an_absurd_number_of_patients_is_refused(running: RunningServer, site: RawSite, claimed: int) -> None:
    async with RawSite(running.address, "siemens") as other:
        _, kind, text = await refusal(other.join(training_patients=claimed))
        assert kind == "ContractMismatch"
        assert f"claims {claimed} training patients, allowed are 1 to 1000000" in text


@pytest.mark.parametrize(
    ("version", "advice"),
    [("9.0", "upgrade the aggregator"), ("0.9", "upgrade the agent"), ("latest", "expected 'major.minor'")],
)
async def test_an_unknown_protocol_is_refused_with_both_versions(site: RawSite, version: str, advice: str) -> None:
    code, kind, text = await refusal(site.join(protocol_version=version))
    assert (code, kind) == ("FAILED_PRECONDITION", "IncompatibleProtocol")
    assert version in text
    assert protocol.VERSION in text
    assert advice in text


async def test_a_missing_recipe_or_codec_is_named(site: RawSite) -> None:
    assert "recipe 'med-duallora' is not installed" in (await refusal(site.join(recipes=["other"])))[2]
    assert "codec 'f32' is not known" in (await refusal(site.join(codecs=[])))[2]


async def test_another_federation_is_not_served_here(site: RawSite) -> None:
    code, kind, text = await refusal(site.join(federation="elsewhere"))
    assert (code, kind) == ("NOT_FOUND", "NotFound")
    assert "'elsewhere' is not served here; this aggregator serves 'demo'" in text
    assert (await refusal(site.wait(federation="elsewhere")))[1] == "NotFound"
    assert (await refusal(site.fetch(0, federation="elsewhere")))[1] == "NotFound"


async def test_a_stranger_is_refused_everywhere(running: RunningServer, site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    async with RawSite(running.address, "stranger") as other:
        calls = (other.join(), other.wait(), other.fetch(0), other.begin(payload), other.upload(payload))
        for call in calls:
            code, kind, text = await refusal(call)
            assert (code, kind) == ("PERMISSION_DENIED", "NotEnrolled")
            assert "site 'stranger' is not enrolled in federation 'demo'" in text
        streamed = await refusal(other.stream(list(chunks.split(payload)), digest(payload)))
        assert streamed[1] == "NotEnrolled"


async def test_a_call_without_a_name_is_refused(running: RunningServer, site: RawSite) -> None:
    async with RawSite(running.address, "ge") as other:
        other.metadata = ()
        assert "the call names no site" in (await refusal(other.join()))[2]


async def test_a_second_agent_is_told_when_the_first_was_heard_from(running: RunningServer, site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    async with RawSite(running.address, "ge", agent_id="the-second-agent") as other:
        for call in (other.join(), other.wait(), other.begin(payload)):
            code, kind, text = await refusal(call)
            assert (code, kind) == ("ALREADY_EXISTS", "IdentityInUse")
            assert "agent agent-of was heard from 0 s ago, this one is the-seco" in text


async def test_an_agent_that_called_a_replica_whose_clock_is_ahead_called_just_now(
    running: RunningServer, site: RawSite
) -> None:
    ahead = time.time() + 30.0
    await running.federation.write(agents.heard, "demo", "ge", site.agent_id, ahead, 60.0)
    async with RawSite(running.address, "ge", agent_id="the-second-agent") as other:
        assert "was heard from 0 s ago" in (await refusal(other.join()))[2]


async def test_a_second_agent_takes_over_after_silence(tmp_path: Path) -> None:
    async with (
        serve(make_store(tmp_path), identity_s=0.5) as running,
        RawSite(running.address, "ge") as first,
        RawSite(running.address, "ge", agent_id="second") as second,
    ):
        await first.join()
        assert (await refusal(second.join()))[1] == "IdentityInUse"
        await asyncio.sleep(0.6)
        await second.join()
        assert (await refusal(first.wait()))[1] == "IdentityInUse"


async def test_an_upload_needs_a_join_first(running: RunningServer, site: RawSite) -> None:
    async with RawSite(running.address, "siemens", patients=218) as other:
        _, kind, text = await refusal(other.begin(adapters.delta(other.layout, 1)))
        assert kind == "ContractMismatch"
        assert "site 'siemens' has not joined; Join first" in text


# announcing


async def test_an_extra_tensor_is_refused_by_its_name(site: RawSite) -> None:
    leaked = f"{PREFIX}encoder.blocks.0.attn.q.local_A.weight"
    tensors = {**adapters.tensors(), leaked: np.ones((2, 6), np.float32)}
    layout = Layout.of(tensors)
    payload = layout.join(tensors)
    code, kind, text = await refusal(site.begin(payload, layout_json=canonical_json(layout.to_jsonable())))
    assert (code, kind) == ("INVALID_ARGUMENT", "InvalidAdapter")
    assert f"extra tensor '{leaked}'" in text


async def test_a_missing_and_a_reshaped_tensor_are_refused_by_name(site: RawSite) -> None:
    tensors = adapters.tensors()
    name = f"{PREFIX}pred_head_dict.cls.weight"
    for changed, text in (
        ({n: t for n, t in tensors.items() if n != name}, f"missing tensor '{name}'"),
        ({**tensors, name: np.ones((3, 6), np.float32)}, f"tensor '{name}' is {name} F32[3, 6], expected"),
    ):
        layout = Layout.of(changed)
        found = await refusal(site.begin(layout.join(changed), layout_json=canonical_json(layout.to_jsonable())))
        assert found[1] == "InvalidAdapter"
        assert text in found[2]


async def test_the_right_layout_spelled_out_is_accepted(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    begun = await site.begin(payload, layout_json=canonical_json(site.layout.to_jsonable()))
    assert begun.committed == 0


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"7", b"[" * 100_000, b'[["a", [1e400], "F32"]]', b"x" * (128 << 10) + b"x"]
)
async def test_a_layout_that_is_none_is_refused(site: RawSite, data: bytes) -> None:
    code, kind, _ = await refusal(site.begin(b"1234", layout_json=data))
    assert (code, kind) == ("INVALID_ARGUMENT", "InvalidAdapter")


async def test_an_unknown_layout_digest_asks_for_the_layout(site: RawSite) -> None:
    _, kind, text = await refusal(site.begin(adapters.delta(site.layout, 1), layout_digest="77" * 32))
    assert kind == "InvalidAdapter"
    assert "spell it out in layout_json" in text


async def test_too_many_bytes_are_refused_before_they_are_sent(site: RawSite) -> None:
    code, kind, text = await refusal(site.begin(b"", size=2**60, digest="11" * 32))
    assert (code, kind) == ("RESOURCE_EXHAUSTED", "UpdateTooLarge")
    assert f"{2**60} bytes was announced, round 1 takes {site.layout.size}" in text
    assert (await refusal(site.begin(b"1234")))[1] == "InvalidUpdate"


async def test_a_digest_that_is_none_is_refused(site: RawSite) -> None:
    for bad in ("", "xyz", "AB" * 32, "../../etc/passwd"):
        assert (await refusal(site.begin(b"1234", digest=bad)))[1] == "InvalidUpdate"


async def test_rounds_and_versions_that_are_not_open_are_stale(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    assert (await refusal(site.begin(payload, 7)))[1] == "NotFound"
    _, kind, text = await refusal(site.begin(payload, base_version=3))
    assert kind == "StaleRound"
    assert "starts from version 0, the update was trained from version 3" in text


async def test_another_codec_patients_or_metric_is_refused(site: RawSite) -> None:
    payload = adapters.delta(site.layout, 1)
    assert "codec 'zip', the recipe says 'f32'" in (await refusal(site.begin(payload, codec="zip")))[2]
    assert (
        "claims 500 training patients, 10 were fixed" in (await refusal(site.begin(payload, training_patients=500)))[2]
    )
    assert "metric 'age' is not on the allow-list" in (await refusal(site.begin(payload, metrics={"age": 60.0})))[2]


# sending


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
