"""Joins and announcements that must be refused, with the text a person sees, and a federation that goes on regardless."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from aggregator.server import RunningServer
from aggregator.store import agents
from shared import chunks, protocol
from shared.canonical import canonical_json
from shared.layout import Layout
from tests.support import adapters, hostile_site
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
