"""What answers, and how: gRPC servers on loopback that are no aggregator of this federation, or one that differs in one thing."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1 import federation_pb2_grpc as rpc

from aggregator import wire
from shared import protocol
from shared.contract import Contract, RoundPolicy
from shared.recipe import Recipe
from site_agent.doctor import answer, contract, uplink
from tests.support import adapters
from tests.support.doctored import certified, examined

V0 = adapters.adapter()
CONTRACT = Contract(
    federation="hearts",
    adapter_digest=V0.digest,
    manifest=V0.manifest,
    recipe=Recipe(),
    policy=RoundPolicy(invited=2, quorum=2),
)
Reply = Callable[[pb.ProbeRequest, Any], pb.ProbeResponse]


class Probed(rpc.FederationServiceServicer):
    """Answers Probe as it is told."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        return self._reply(request, context)


@contextmanager
def serving(reply: Reply | None) -> Iterator[int]:
    """Yield the port of a server; without a reply it has no service at all."""
    threads = ThreadPoolExecutor(2)
    server = grpc.server(threads)
    if reply is not None:
        rpc.add_FederationServiceServicer_to_server(Probed(reply), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
        threads.shutdown()


def telling(**changes: Any) -> Reply:
    """Answer as an aggregator does, but for these fields of what Join would say."""

    def reply(request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        joined = wire.join_response(CONTRACT, "ge", 0, 0)
        for name, value in changes.items():
            setattr(joined, name, value)
        echo = request.payload if request.echo else b""
        return pb.ProbeResponse(payload=echo, server_time=time.time(), joined=joined if request.describe else None)

    return reply


def test_an_aggregator_that_knows_us_passes(tmp_path: Path) -> None:
    with serving(telling()) as port:
        found = answer.knows_us(site := examined(tmp_path, None, port))
    assert found.status == "PASS"
    assert found.words.startswith("it takes us for site ge of federation hearts, in ")
    assert [answer.clock(site).status, answer.version(site).status] == ["PASS", "PASS"]


def test_another_grpc_service_is_told_from_an_aggregator(tmp_path: Path) -> None:
    with serving(None) as port:
        found = answer.knows_us(examined(tmp_path, None, port))
    assert (found.status, found.words) == ("FAIL", "another gRPC service answers, not an aggregator's")


def test_an_aggregator_that_hangs_fails_within_patience(tmp_path: Path) -> None:
    def hang(request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        while context.is_active():
            time.sleep(0.01)
        return pb.ProbeResponse()

    with serving(hang) as port:
        found = answer.knows_us(examined(tmp_path, None, port, patience_s=0.1))
    assert found.status == "FAIL"
    assert found.facts["code"] == "DEADLINE_EXCEEDED"


def test_an_aggregator_that_nobody_runs_fails_with_grpcs_code(tmp_path: Path) -> None:
    with serving(None) as port:
        pass
    found = answer.knows_us(examined(tmp_path, None, port))
    assert found.status == "FAIL"
    assert found.words.startswith("no answer by gRPC (UNAVAILABLE: ")
    assert "ask the coordinator whether the aggregator runs" in found.remedy


def test_what_the_aggregator_itself_says_is_passed_on(tmp_path: Path) -> None:
    def refuse(request: pb.ProbeRequest, context: Any) -> None:
        context.set_trailing_metadata(((protocol.ERROR_KEY, "StoreUnavailable"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "the store does not answer")

    with serving(refuse) as port:
        found = answer.knows_us(examined(tmp_path, None, port))
    assert (found.status, found.words) == ("FAIL", "the store does not answer")
    assert found.remedy == "ask the coordinator, naming this message"


def test_certificate_files_that_have_gone_since_they_were_looked_at_fail_by_name(tmp_path: Path) -> None:
    files = certified(tmp_path)
    files.ca.unlink()
    found = answer.knows_us(examined(tmp_path, files))
    assert found.status == "FAIL"
    assert found.words == f"cannot read TLS file {files.ca}: No such file or directory"


@pytest.mark.parametrize(
    ("ahead_s", "status"), [(0.0, "PASS"), (45.0, "WARN"), (-45.0, "WARN"), (3600.0, "FAIL"), (-3600.0, "FAIL")]
)
def test_a_skewed_clock_is_measured(tmp_path: Path, ahead_s: float, status: str) -> None:
    with serving(telling()) as port:
        site = examined(tmp_path, None, port, clock=lambda: time.time() + ahead_s)
        answer.knows_us(site)
    found = answer.clock(site)
    assert found.status == status
    assert found.facts["skew_s"] == pytest.approx(ahead_s, abs=2.0)


@pytest.mark.parametrize(
    ("theirs", "said"), [("1.0", "upgrade the aggregator"), ("1.9", "upgrade the agent"), ("2.0", "upgrade the agent")]
)
def test_a_protocol_that_does_not_meet_ours_fails_with_both_versions(tmp_path: Path, theirs: str, said: str) -> None:
    with serving(telling(protocol_version=theirs)) as port:
        answer.knows_us(site := examined(tmp_path, None, port))
    found = answer.version(site)
    assert found.status == "FAIL"
    assert found.words == f"the agent speaks protocol {protocol.VERSION}, the aggregator {theirs}: {said}"


def test_an_aggregator_from_before_1_3_fails_as_one_that_will_refuse_us(tmp_path: Path) -> None:
    with serving(lambda request, context: pb.ProbeResponse(server_time=time.time())) as port:
        found = answer.knows_us(site := examined(tmp_path, None, port))
    assert found.status == "PASS"
    assert answer.version(site).status == "FAIL"
    assert "older than 1.3" in answer.version(site).words
    assert contract.hashes(site).status == "SKIP"


# --- the contract that is offered ---------------------------------------------------------------------------------------


def offered(tmp_path: Path, reply: Reply, **more: Any) -> Any:
    """What the contract's check finds of an answer."""
    with serving(reply) as port:
        answer.knows_us(site := examined(tmp_path, None, port, **more))
    return contract.hashes(site)


def test_an_offer_at_first_contact_passes_as_new(tmp_path: Path) -> None:
    found = offered(tmp_path, telling())
    assert (found.status, found.facts["contract"]) == ("PASS", CONTRACT.sha256)
    assert "the first join agrees to it" in found.words


def test_an_offer_that_was_agreed_to_passes_as_that(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/contract.json").write_bytes(CONTRACT.to_bytes())
    found = offered(tmp_path, telling())
    assert found.status == "PASS"
    assert found.words.endswith("what this site agreed to; nothing is pinned in [agreed]")


def test_a_hash_that_is_not_that_of_the_contract_fails(tmp_path: Path) -> None:
    found = offered(tmp_path, telling(contract_sha256="0" * 64))
    assert found.status == "FAIL"
    assert found.words.startswith("the aggregator names contract 000000000000, and what it sent has hash ")


def test_a_recipe_that_is_not_installed_fails(tmp_path: Path) -> None:
    found = offered(tmp_path, telling(recipe="alchemy"))
    assert found.status == "FAIL"
    assert "alchemy" in found.words


@pytest.mark.parametrize("handed_over", [True, False])
def test_an_offer_that_is_not_what_was_agreed_to_fails_with_what_differs(tmp_path: Path, handed_over: bool) -> None:
    path = tmp_path / ("theirs.json" if handed_over else "state/contract.json")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(replace(CONTRACT, policy=RoundPolicy(rounds=3, invited=2, quorum=2)).to_bytes())
    found = offered(tmp_path, telling(), contract_file=path if handed_over else None)
    assert (found.status, found.words) == ("FAIL", "the contract has changed: rounds: agreed 3, offered 8")
    assert ("site-agent accept" in found.remedy) != handed_over


# --- the uplink ---------------------------------------------------------------------------------------------------------


def test_the_line_is_measured_with_random_bytes_and_a_rounds_time_follows(tmp_path: Path) -> None:
    sent: list[bytes] = []

    def reply(request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        sent.append(request.payload)
        return telling()(request, context)

    with serving(reply) as port:
        found = uplink.speed(examined(tmp_path, None, port, contract=CONTRACT))
    assert found.status == "PASS"
    assert found.facts["probe_bytes"] == 256 << 10 == max(map(len, sent))
    assert len(set(sent)) > 5
    assert found.facts["round_up_bytes"] == CONTRACT.recipe.upload_layout(V0.manifest, 1, 2).size


def test_a_line_that_eats_the_rounds_time_is_warned_of(tmp_path: Path) -> None:
    policy = RoundPolicy(invited=2, quorum=2, deadline_s=1e-6)
    with serving(telling()) as port:
        site = examined(tmp_path, None, port, contract=replace(CONTRACT, policy=policy))
        assert uplink.speed(site).status == "WARN"


def test_a_line_that_carries_small_calls_only_fails(tmp_path: Path) -> None:
    def reply(request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        if len(request.payload) > 1400:
            context.abort(grpc.StatusCode.UNAVAILABLE, "too large for the tunnel")
        return telling()(request, context)

    with serving(reply) as port:
        found = uplink.speed(examined(tmp_path, None, port))
    assert (found.status, found.words) == ("FAIL", "a payload did not get through (UNAVAILABLE)")
    assert "MTU" in found.remedy
