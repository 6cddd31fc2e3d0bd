"""Whole rounds over real gRPC: joining, waiting, downloading, uploading, closing, restarting, steering."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from med_duallora.v1 import coordinator_pb2 as cpb
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1.coordinator_pb2_grpc import CoordinatorServiceStub

from aggregator import closing, manifest, verify
from aggregator.store import engine, evaluations, federations
from aggregator.store import rounds as round_rows
from shared.adapter import AdapterManifest
from shared.contract import Contract, RoundPolicy
from shared.recipe import Recipe
from tests.support import adapters
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import SITES, make_store, serve

pytestmark = pytest.mark.integration


def name_of(answer: pb.AwaitRoundResponse) -> str:
    return pb.Instruction.Name(answer.instruction).removeprefix("INSTRUCTION_")


async def run_federation(folder: Path, order: tuple[str, ...], rounds: int = 2) -> str:
    """Run every round with sites uploading one after the other in this order; return the final digest."""
    async with serve(make_store(folder, rounds=rounds)) as running:
        sites = {name: RawSite(running.address, name, patients=10 + k) for k, name in enumerate(SITES)}
        for site in sites.values():
            await site.join()
        for number in range(1, rounds + 1):
            for name in order:
                assert name_of(await sites[name].wait("WAIT", number - 1, wait_s=10)) == "TRAIN"
                await sites[name].upload(adapters.delta(sites[name].layout, SITES.index(name) + 7 * number), number)
        last = await sites[order[0]].wait("WAIT", rounds, wait_s=10)
        assert name_of(last) == "FINISHED"
        for site in sites.values():
            await site.channel.close()
        return last.digest


async def test_three_sites_finish_a_federation_together(tmp_path: Path) -> None:
    store = make_store(tmp_path, rounds=3)
    async with serve(store) as running:
        sites = [RawSite(running.address, name, patients=10 + k) for k, name in enumerate(SITES)]
        answers = await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
        assert {name_of(a) for a in answers} == {"FINISHED"}
        assert {(a.round, a.version) for a in answers} == {(3, 3)}
        assert len({a.digest for a in answers}) == 1
        final = await sites[0].adapter(3)
        assert final.digest == answers[0].digest
    reopened = engine.open_store(store)
    assert [c.difference for c in verify.verify(reopened, "demo")] == ["", "", ""]
    reopened.close()


async def test_any_order_of_arrival_gives_the_same_final_bytes(tmp_path: Path) -> None:
    first = await run_federation(tmp_path / "one", ("ge", "philips", "siemens"))
    second = await run_federation(tmp_path / "two", ("siemens", "ge", "philips"))
    assert first == second


async def test_join_says_everything_the_contract_hash_covers(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path, rounds=4)) as running, RawSite(running.address, "ge", patients=33) as site:
        response = await site.join()
        assert (response.federation, response.site, response.training_patients) == ("demo", "ge", 33)
        policy = response.round_policy
        contract = Contract(
            federation=response.federation,
            adapter_digest=response.adapter_digest,
            manifest=AdapterManifest.from_bytes(response.adapter_manifest),
            recipe=Recipe(),
            policy=RoundPolicy(
                rounds=policy.rounds,
                invited=policy.invited,
                quorum=policy.quorum,
                deadline_s=policy.deadline_s,
                grace_s=policy.grace_s,
            ),
        )
        assert contract.sha256 == response.contract_sha256
        again = await site.join()
        assert again == response


async def test_a_waiting_site_hears_of_the_next_round_at_once(tmp_path: Path) -> None:
    store = make_store(tmp_path, sites=("ge", "siemens"), quorum=2)
    async with (
        serve(store) as running,
        RawSite(running.address, "ge") as ge,
        RawSite(running.address, "siemens") as other,
    ):
        for site in (ge, other):
            await site.join()
        await ge.upload(adapters.delta(ge.layout, 1))
        waiting = asyncio.create_task(ge.wait("WAIT", 1, wait_s=20))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        start = time.monotonic()
        await other.upload(adapters.delta(other.layout, 2))
        answer = await waiting
        assert (name_of(answer), answer.round, answer.version) == ("TRAIN", 2, 1)
        assert time.monotonic() - start < 2.0  # no polling: one commit after the last upload


async def test_a_wait_ends_after_its_time_with_the_same_instruction(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        await site.join()
        start = time.monotonic()
        answer = await site.wait("TRAIN", 1, wait_s=0.5)
        assert name_of(answer) == "TRAIN"
        assert 0.4 < time.monotonic() - start < 5.0


@pytest.mark.parametrize("wait_s", [float("nan"), -5.0])
async def test_a_wait_that_is_no_time_ends_at_once(tmp_path: Path, wait_s: float) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        await site.join()
        async with asyncio.timeout(5):
            assert name_of(await site.wait("TRAIN", 1, wait_s=wait_s, progress=float("nan"))) == "TRAIN"


async def test_a_download_goes_on_from_an_offset_and_knows_what_the_site_has(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        await site.join()
        info, payload = await site.fetch(0)
        assert info is not None
        assert (info.size, info.layout_digest) == (len(payload), site.layout.digest)
        _, rest = await site.fetch(0, offset=100)
        assert payload[100:] == rest
        assert await site.fetch(0, if_none_match=info.digest) == (None, b"")
        assert (await refusal(site.fetch(7)))[:2] == ("NOT_FOUND", "NotFound")
        assert (await refusal(site.fetch(0, offset=10**9)))[:2] == ("ABORTED", "BadOffset")


async def test_a_round_closes_at_its_deadline_with_whoever_is_in(tmp_path: Path) -> None:
    store = make_store(tmp_path, quorum=2, deadline_s=1.0, grace_s=0.0)
    async with serve(store) as running:
        sites = [RawSite(running.address, name) for name in SITES]
        for site in sites:
            await site.join()
        for k, site in enumerate(sites[:2]):
            await site.upload(adapters.delta(site.layout, k))
        answer = await sites[0].wait("WAIT", 1, wait_s=10)
        assert (name_of(answer), answer.round, answer.version) == ("TRAIN", 2, 1)
        late = adapters.delta(sites[2].layout, 9)
        code, kind, text = await refusal(sites[2].upload(late))
        assert (code, kind) == ("FAILED_PRECONDITION", "StaleRound")
        assert "round 1 is closed and takes no more updates; this one of site 'siemens' came too late" in text
        assert name_of(await sites[2].wait("TRAIN", 1)) == "ABANDON"
        assert name_of(await sites[2].wait("ABANDON", 1)) == "TRAIN"
        record = await running.federation.read(round_rows.record, "demo", 1)
        decided = manifest.RoundManifest.from_bytes(record.manifest)
        assert decided.left_out == {"siemens": "joined, no update in time"}


async def test_a_round_without_quorum_stays_open_and_says_who_is_missing(tmp_path: Path) -> None:
    store = make_store(tmp_path, deadline_s=0.2, grace_s=0.0)
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        await site.join()
        await site.upload(adapters.delta(site.layout, 1))
        await asyncio.sleep(0.5)
        answer = await site.wait("WAIT", 1)
        assert name_of(answer) == "WAIT"
        assert answer.reason == "round 1 waits for philips, siemens: past its deadline with 1 of 3 updates needed"


async def test_a_restart_goes_on_where_the_store_is(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        await site.join()
        receipt = await site.upload(adapters.delta(site.layout, 1))
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        await site.join()
        assert await site.upload(adapters.delta(site.layout, 1)) == receipt
        assert name_of(await site.wait()) == "WAIT"


async def test_a_round_left_closing_is_finished_at_the_next_start(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    async with serve(store) as running:
        sites = [RawSite(running.address, name) for name in SITES]
        for k, site in enumerate(sites):
            await site.join()
            if k < 2:
                await site.upload(adapters.delta(site.layout, k))
    opened = engine.open_store(store)  # what a process killed right after the swap leaves behind
    state = opened.read(federations.state, "demo")
    decided = manifest.of_round(state, Recipe(), state.digest, 1)
    assert opened.write(closing.begin_closing, state, decided)
    contract = opened.read(federations.contract, "demo")
    expected = closing.compute(opened, contract, decided, opened.read(federations.adapter, "demo", 0)).version
    opened.close()
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        answer = await site.wait("WAIT", 1, wait_s=10)
        assert (name_of(answer), answer.round, answer.digest) == ("TRAIN", 2, expected.digest)


async def test_stopping_answers_whoever_waits(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        await site.join()
        waiting = asyncio.create_task(site.wait("TRAIN", 1, wait_s=30))
        await asyncio.sleep(0.3)
        start = time.monotonic()
        await running.stop(5.0)
        assert name_of(await waiting) == "TRAIN"
        assert time.monotonic() - start < 2.0


async def test_metrics_are_kept_and_only_allowed_ones_are_taken(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        await site.join()
        report = {"agent_id": site.agent_id, "round": 1, "version": 0, "cases": 20}
        await site.call("ReportEvaluation", pb.ReportEvaluationRequest(**report, metrics={"auc": 0.75}))
        (found,) = await running.federation.read(evaluations.read, "demo")
        assert (found["site"], found["cases"], found["metrics"]) == ("ge", 20, {"auc": 0.75})
        of_dual = pb.ReportEvaluationRequest(**report, metrics={"auc": 0.5}, arm=pb.ARM_DUAL)
        await site.call("ReportEvaluation", of_dual)
        assert len(await running.federation.read(evaluations.read, "demo")) == 1, "it stands apart"
        (arm,) = await running.federation.read(evaluations.arms, "demo")
        assert (arm["site"], arm["arm"], arm["cases"], arm["metrics"]) == ("ge", "dual", 20, {"auc": 0.5})
        later = pb.ReportEvaluationRequest.FromString(of_dual.SerializeToString()[:-1] + bytes([9]))
        code, _, message = await refusal(site.call("ReportEvaluation", later))
        assert (code, message.partition(" (")[0]) == (
            "INVALID_ARGUMENT",
            "'number 9' is no model of the comparison",
        )
        for metrics, text in (
            ({"patient_17_score": 1.0}, "metric 'patient_17_score'"),
            ({"auc": float("nan")}, "is nan"),
        ):
            code, _, message = await refusal(
                site.call("ReportEvaluation", pb.ReportEvaluationRequest(**report, metrics=metrics))
            )
            assert code == "INVALID_ARGUMENT"
            assert text in message
        early = pb.ReportEvaluationRequest(**{**report, "round": 2}, metrics={"auc": 0.5})
        assert (await refusal(site.call("ReportEvaluation", early)))[0] == "NOT_FOUND"
        flood = pb.ReportEvaluationRequest(**report, metrics={f"auc{'x' * 10_000}": 0.5})
        assert len((await refusal(site.call("ReportEvaluation", flood)))[2]) < 200
        unknown = pb.ReportEvaluationRequest(**{**report, "version": 5}, metrics={"auc": 0.5})
        assert (await refusal(site.call("ReportEvaluation", unknown)))[0] == "NOT_FOUND"


async def test_a_probe_echoes_and_tells_the_time(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge") as site:
        answer = await site.call("Probe", pb.ProbeRequest(payload=b"x" * 1000, echo=True))
        assert answer.payload == b"x" * 1000
        assert abs(answer.server_time - time.time()) < 5
        assert (await site.call("Probe", pb.ProbeRequest(payload=b"x" * 1000))).payload == b""
        too_large = pb.ProbeRequest(payload=b"x" * ((256 << 10) + 1))
        assert (await refusal(site.call("Probe", too_large)))[:2] == ("RESOURCE_EXHAUSTED", "UpdateTooLarge")


# steering


async def test_a_paused_federation_closes_no_round_until_resumed(tmp_path: Path) -> None:
    store = make_store(tmp_path, sites=("ge",), quorum=1)
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        coordinator = CoordinatorServiceStub(site.channel)
        await site.join()
        await coordinator.Pause(cpb.PauseRequest(reason="maintenance"))
        paused = await site.wait("TRAIN", 1, wait_s=10)
        assert (name_of(paused), paused.reason) == ("PAUSED", "maintenance")
        await site.upload(adapters.delta(site.layout, 1))
        await asyncio.sleep(0.3)
        assert (await coordinator.GetStatus(cpb.GetStatusRequest())).version == 0
        waiting = asyncio.create_task(site.wait("PAUSED", 1, wait_s=20))
        await asyncio.sleep(0.2)
        await coordinator.Resume(cpb.ResumeRequest())
        await waiting
        answer = await site.wait("WAIT", 1, wait_s=10)
        assert (name_of(answer), answer.round, answer.version) == ("TRAIN", 2, 1)


async def test_an_evicted_site_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running:
        sites = {name: RawSite(running.address, name) for name in SITES}
        coordinator = CoordinatorServiceStub(sites["ge"].channel)
        for site in sites.values():
            await site.join()
        for name in ("ge", "philips"):
            await sites[name].upload(adapters.delta(sites[name].layout, 1))
        waiting = asyncio.create_task(sites["siemens"].wait("TRAIN", 1, wait_s=20))
        await asyncio.sleep(0.2)
        await coordinator.Evict(cpb.EvictRequest(site="siemens", reason="left the study", allow_quorum=2))
        answer = await waiting
        assert (name_of(answer), answer.reason) == ("EVICTED", "left the study")
        assert (await refusal(sites["siemens"].join()))[1] == "NotEnrolled"
        assert (await refusal(sites["siemens"].fetch(0)))[1] == "NotEnrolled"
        following = await sites["ge"].wait("WAIT", 1, wait_s=10)
        assert (name_of(following), following.round) == ("TRAIN", 2)  # a quorum of everybody is everybody left


async def test_a_rollback_abandons_the_open_round_and_starts_from_that_version(tmp_path: Path) -> None:
    store = make_store(tmp_path, sites=("ge",), quorum=1, rounds=3)
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        coordinator = CoordinatorServiceStub(site.channel)
        await site.join()
        for number in (1, 2):
            await site.upload(adapters.delta(site.layout, number), number)
            await site.wait("WAIT", number, wait_s=10)
        assert (await refusal(coordinator.Rollback(cpb.RollbackRequest(version=9))))[1] == "NotFound"
        waiting = asyncio.create_task(site.wait("TRAIN", 3, wait_s=20))
        await asyncio.sleep(0.2)
        await coordinator.Rollback(cpb.RollbackRequest(version=1, reason="version 2 diverged"))
        assert name_of(await waiting) == "ABANDON"
        answer = await site.wait("ABANDON", 3)
        assert (name_of(answer), answer.round, answer.version) == ("TRAIN", 4, 1)
        await site.upload(adapters.delta(site.layout, 5), 4, base_version=1)
        last = await site.wait("WAIT", 4, wait_s=10)
        assert (name_of(last), last.version) == ("FINISHED", 3)
        rounds = (await coordinator.ListRounds(cpb.ListRoundsRequest())).rounds
        assert [(r.number, r.state, r.base_version, r.version) for r in rounds] == [
            (1, "closed", 0, 1),
            (2, "closed", 1, 2),
            (3, "abandoned", 2, 0),
            (4, "closed", 1, 3),
        ]
        final = await site.adapter(3)
        assert final.parent_digest == (await site.adapter(1)).digest


async def test_the_status_shows_every_site(tmp_path: Path) -> None:
    async with serve(make_store(tmp_path)) as running, RawSite(running.address, "ge", patients=12) as site:
        await site.join()
        await site.wait("TRAIN", 1, progress=0.5)
        status = await CoordinatorServiceStub(site.channel).GetStatus(cpb.GetStatusRequest(federation="demo"))
        assert (status.state, status.round, status.round_policy.quorum) == ("running", 1, 3)
        found = {s.name: (s.state, s.training_patients, s.progress) for s in status.sites}
        assert found == {"ge": ("joined", 12, 0.5), "philips": ("enrolled", 0, 0.0), "siemens": ("enrolled", 0, 0.0)}


async def test_a_restarted_server_is_found_again_by_the_same_channel(tmp_path: Path) -> None:
    """grpc/grpc#38290: some client releases do not reconnect after the server comes back on the same port."""
    store = make_store(tmp_path)
    async with serve(store) as running:
        address = running.address
        site = RawSite(address, "ge")
        await site.join()
    assert (await refusal(site.wait()))[0] == "UNAVAILABLE"
    async with serve(store, listen=address):
        for _ in range(100):
            try:
                assert name_of(await site.wait()) == "TRAIN"
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
        else:
            pytest.fail("the channel did not come back within 10 s")
        await site.channel.close()


async def test_updates_of_several_chunks_are_averaged_like_those_of_one(tmp_path: Path) -> None:
    adapter = adapters.adapter(rank=64, width=512)
    digests = []
    for chunk_bytes in (1 << 20, 50_000):
        folder = tmp_path / str(chunk_bytes)
        store = make_store(folder, sites=("ge",), quorum=1, adapter=adapter, rounds=1)
        async with serve(store) as running, RawSite(running.address, "ge") as site:
            await site.join()
            payload = adapters.delta(site.layout, 5)
            receipt = await site.upload(payload, chunk_bytes=chunk_bytes)
            assert receipt.digest == digest(payload)
            digests.append((await site.wait("WAIT", 1, wait_s=10)).digest)
    assert digests[0] == digests[1]
