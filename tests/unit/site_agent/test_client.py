"""The agent's side of the protocol against a scripted aggregator: retries, resumed transfers, and what is refused."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from med_duallora.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from aggregator import wire
from shared import chunks, forms
from shared.adapter import Adapter
from shared.contract import Contract, RoundPolicy
from shared.errors import (
    AggregatorUnreachable,
    IncompatibleProtocol,
    InvalidAdapter,
    InvalidUpdate,
    StaleRound,
)
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, ERROR_KEY, SITE_KEY, VERSION
from shared.recipe import CODECS, INSTALLED, Recipe
from shared.status import INTERNAL_TEXT
from site_agent import calls, client
from site_agent.client import FederationClient, Task
from site_agent.connection import Dialled
from site_agent.consent import ConsentWithheld, ContractChanged
from site_agent.download import Download
from site_agent.egress import Update, UpdateFacts
from tests.support import adapters
from tests.support.ledgers import throwaway

ADAPTER = adapters.adapter()
CONTRACT = Contract(
    federation="hearts", adapter_digest=ADAPTER.digest, manifest=ADAPTER.manifest, recipe=Recipe(), policy=RoundPolicy()
)
TASK = Task("TRAIN", 1, 0, ADAPTER.digest, 60.0, "")
FACTS = UpdateFacts(round=1, base_version=0, training_patients=40, metrics={"train_loss": 0.5})
PAYLOAD = adapters.delta(ADAPTER.manifest.layout, seed=1)
RECEIPT = pb.Receipt(round=1, digest="ab", accepted_at=1.0)


def failure(code: grpc.StatusCode, text: str = "", name: str = "") -> grpc.aio.AioRpcError:
    """Return what a call raises when it ends with this status; `name` is the class the aggregator raised."""
    trailing = grpc.aio.Metadata((ERROR_KEY, name)) if name else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, text)


@dataclass
class Aggregator:
    """Plays the stub: answers every call with the next of its script, and notes what was asked."""

    script: list[Any]
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    def _next(self, request: Any, options: dict[str, Any]) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(options["metadata"]))
        self.timeouts.append(options["timeout"])
        return self.script.pop(0)

    async def _answer(self, request: Any, **options: Any) -> Any:
        answer = self._next(request, options)
        if isinstance(answer, Exception):
            raise answer
        return answer

    Join = AwaitRound = BeginUpload = ReportEvaluation = _answer

    async def FetchAdapter(self, request: Any, **options: Any) -> AsyncIterator[Any]:
        for part in self._next(request, options):
            if isinstance(part, Exception):
                raise part
            yield part

    async def UploadDelta(self, requests: AsyncIterator[Any], **options: Any) -> Any:
        return await self._answer([request async for request in requests], **options)


@dataclass
class ScriptedConnection:
    """Plays the connection: every call is made on the same scripted aggregator."""

    aggregator: Aggregator
    name: str = "c0ffee"

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Dialled]:
        yield Dialled(None, self.aggregator, self.name)  # type: ignore[arg-type]

    async def close(self) -> None:
        """Nothing is open."""


class ScriptedClient(FederationClient):
    """A client whose connection is a scripted aggregator."""

    def __init__(self, *script: Any, give_up_after_s: float = 60.0, call_timeout_s: float = 30.0) -> None:
        super().__init__(
            "fed.test:1",
            None,
            "agent-1",
            throwaway(),
            plain_site="ge",
            give_up_after_s=give_up_after_s,
            call_timeout_s=call_timeout_s,
        )
        self.aggregator = Aggregator(list(script))
        self._calls.connection = ScriptedConnection(self.aggregator)  # type: ignore[assignment]
        self._calls.federation = "hearts"


SHORTEST_BACKOFF_S = 0.2
LESS_THAN_SIX_PAUSES_S = 0.5
"""Each pause is a tenth of a second at least."""


def pauses(events: list[Any]) -> list[float]:
    """Return the pauses between attempts, from the log."""
    return [event["retry_in_s"] for event in events if "retry_in_s" in event]


def answer(instruction: str = "WAIT", **values: Any) -> pb.AwaitRoundResponse:
    return pb.AwaitRoundResponse(instruction=f"INSTRUCTION_{instruction}", **values)


def ask(used: FederationClient) -> Awaitable[Task]:
    return used.await_round(round_number=3, following="TRAIN", version=2, wait_s=90.0, progress=0.25)


# --- retries --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0, 1e7), st.integers(0, 2**32))
def test_a_retry_waits_at_most_5_s_in_the_first_ten_minutes_and_60_s_later(attempt, elapsed_s, seed):
    delay = calls.retry_delay_s(attempt, elapsed_s, random.Random(seed))
    assert 0.1 <= delay <= (5.0 if elapsed_s < 600 else 60.0)


async def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends():
    away = [failure(grpc.StatusCode.UNAVAILABLE, "no route") for _ in range(3)]
    refused = failure(grpc.StatusCode.UNAVAILABLE, "full", "StoreUnavailable")
    used, said = ScriptedClient(*away, answer(), refused, answer(), call_timeout_s=5.0), list[str]()
    used._calls._say = said.append
    for _ in range(2):
        await ask(used)
    first, last = said
    assert first.startswith("no answer from fed.test:1 (UNAVAILABLE: no route). The agent tries again by itself")
    assert last.startswith("fed.test:1 answers again, after ")


# --- the contract on another connection -----------------------------------------------------------------------------


def offer(contract: Contract = CONTRACT) -> pb.JoinResponse:
    return wire.join_response(contract, "ge", 40, 0)


async def joined(*script: Any) -> ScriptedClient:
    """Return a client that has joined, and whose next call goes over another connection."""
    used = ScriptedClient(offer(), *script)
    await used.join(federation="", base_model_sha256="ab" * 32, training_patients=40, software_version="1.0")
    used._calls.connection.name = "another"
    return used


def asked(used: ScriptedClient) -> list[str]:
    return [type(one).__name__ for one in used.aggregator.requests]


async def test_the_same_contract_on_another_connection_is_compared_once_and_gone_on_with():
    used = await joined(offer(), pb.ReportEvaluationResponse(), pb.ReportEvaluationResponse())
    for _ in range(2):
        await used.report_evaluation(2, 2, 11, {"auc": 0.75})
    assert asked(used) == ["JoinRequest", "JoinRequest", "ReportEvaluationRequest", "ReportEvaluationRequest"]
    assert used.aggregator.requests[0] == used.aggregator.requests[1]


async def test_a_question_that_says_nothing_of_the_data_needs_no_comparison():
    used = await joined(answer())
    await ask(used)
    assert asked(used) == ["JoinRequest", "AwaitRoundRequest"]


OTHER = replace(CONTRACT, recipe=replace(CONTRACT.recipe, local_epochs=7))
FOREIGN = "federation 'hearts' is not served here; this aggregator serves 'lungs'"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (offer(OTHER), "recipe parameter local_epochs: agreed 2, offered 7"),
        (failure(grpc.StatusCode.NOT_FOUND, FOREIGN, "NotFound"), FOREIGN),
        (failure(grpc.StatusCode.FAILED_PRECONDITION, "base model: ...", "ContractMismatch"), "base model"),
        (pb.JoinResponse(recipe="exfiltrate"), "cannot be agreed to"),
    ],
    ids=["another number", "another federation", "another base model", "none"],
)
async def test_nothing_is_said_to_an_aggregator_with_another_contract(told, said):
    for call in (
        lambda used: used.report_evaluation(2, 2, 11, {"auc": 0.75}),
        lambda used: used.upload(Update(FACTS, ADAPTER.manifest.layout, PAYLOAD), fresh=True),
        lambda used: used.keep_to_contract(),
    ):
        used = await joined(told)
        with pytest.raises(ContractChanged, match=said):
            await call(used)
        assert asked(used) == ["JoinRequest"] * 2


async def test_a_comparison_that_nobody_answers_is_repeated_like_any_call():
    used = await joined(failure(grpc.StatusCode.UNAVAILABLE, "gone"), offer(), pb.ReportEvaluationResponse())
    await used.report_evaluation(2, 2, 11, {"auc": 0.75})
    assert asked(used) == ["JoinRequest"] * 3 + ["ReportEvaluationRequest"]


def test_retries_of_many_agents_spread_out():
    delays = {round(calls.retry_delay_s(8, 100.0, random.Random(seed)), 2) for seed in range(50)}
    assert len(delays) > 30


async def test_a_lost_call_is_repeated_with_the_same_message_under_a_new_call_id():
    used = ScriptedClient(failure(grpc.StatusCode.UNAVAILABLE, "gone"), answer(round=4, version=3, digest="d"))
    task = await ask(used)
    assert task == Task("WAIT", 4, 3, "d", 0.0, "")
    first, second = used.aggregator.requests
    assert first == second
    assert (first.federation, first.agent_id, first.round, first.version) == ("hearts", "agent-1", 3, 2)
    assert (first.following, first.wait_s, first.progress) == (pb.INSTRUCTION_TRAIN, 30.0, 0.25)
    assert [said[ATTEMPT_KEY] for said in used.aggregator.metadata] == ["0", "1"]
    assert len({said[CALL_ID_KEY] for said in used.aggregator.metadata}) == 2
    assert {said[SITE_KEY] for said in used.aggregator.metadata} == {"ge"}


async def test_an_error_that_trying_again_cannot_help_is_raised_at_once_as_the_class_it_was():
    used = ScriptedClient(failure(grpc.StatusCode.FAILED_PRECONDITION, "round 3 is closed", "StaleRound"))
    with pytest.raises(StaleRound, match="round 3 is closed"):
        await ask(used)
    assert len(used.aggregator.requests) == 1


async def test_an_error_without_a_class_keeps_its_status_and_text():
    used = ScriptedClient(failure(grpc.StatusCode.INTERNAL, INTERNAL_TEXT))
    with pytest.raises(AggregatorUnreachable, match="AwaitRound failed with INTERNAL: internal error"):
        await ask(used)


async def test_a_connection_that_broke_in_a_message_is_not_taken_for_the_aggregators_refusal():
    broke = failure(grpc.StatusCode.INTERNAL, "Internal error from Core")
    used = ScriptedClient(broke, answer(round=4))
    assert (await ask(used)).round == 4


async def test_a_call_may_take_its_time_and_what_the_aggregator_was_asked_to_hold_it():
    used = ScriptedClient(answer(), pb.ReportEvaluationResponse(), call_timeout_s=7.0)
    await ask(used)
    await used.report_evaluation(2, 2, 11, {"auc": 0.75})
    assert used.aggregator.timeouts == [7.0 + 30.0, 7.0]


async def test_after_the_longest_outage_it_gives_up_with_address_reason_and_advice():
    lost = itertools.repeat(failure(grpc.StatusCode.UNAVAILABLE, "connection refused"), 50)
    used = ScriptedClient(*lost, give_up_after_s=0.3)
    with pytest.raises(
        AggregatorUnreachable, match=r"no answer from fed\.test:1 .*connection refused.*start the agent again"
    ):
        await ask(used)
    assert 2 <= len(used.aggregator.requests) < 10


async def test_a_question_that_grows_old_is_given_up_before_the_longest_outage():
    lost = itertools.repeat(failure(grpc.StatusCode.UNAVAILABLE, "connection refused"), 50)
    used = ScriptedClient(*lost, give_up_after_s=3600.0)
    began = time.monotonic()
    with pytest.raises(AggregatorUnreachable, match="connection refused"):
        await used.await_round(round_number=3, following="TRAIN", version=2, wait_s=0, give_up_after_s=0.3)
    assert time.monotonic() - began < 5.0
    assert len(used.aggregator.requests) >= 2


async def test_an_instruction_of_a_later_release_is_not_guessed_at():
    with pytest.raises(
        IncompatibleProtocol, match="gave instruction 99, which this release does not know; upgrade the agent"
    ):
        await ask(ScriptedClient(pb.AwaitRoundResponse(instruction=99)))


# --- joining --------------------------------------------------------------------------------------------------------


def join_response(**changes: Any) -> pb.JoinResponse:
    policy = CONTRACT.policy
    values: dict[str, Any] = {
        "federation": "hearts",
        "protocol_version": VERSION,
        "site": "ge",
        "adapter_manifest": ADAPTER.manifest.to_bytes(),
        "adapter_digest": ADAPTER.digest,
        "recipe": CONTRACT.recipe.name,
        "recipe_parameters": CONTRACT.recipe.parameters(),
        "round_policy": pb.RoundPolicy(
            rounds=policy.rounds,
            invited=policy.invited,
            quorum=policy.quorum,
            deadline_s=policy.deadline_s,
            grace_s=policy.grace_s,
        ),
        "training_patients": 40,
        "contract_sha256": CONTRACT.sha256,
        "version": 5,
    }
    return pb.JoinResponse(**{**values, **changes})


def join(used: FederationClient) -> Awaitable[client.Joined]:
    return used.join(federation="", base_model_sha256="cd" * 32, training_patients=40, software_version="0.1")


async def test_joining_tells_the_contract_and_says_what_lies_here():
    used = ScriptedClient(join_response())
    assert await join(used) == client.Joined("ge", CONTRACT, 40, 5)
    (request,) = used.aggregator.requests
    assert (request.protocol_version, request.base_model_sha256, request.training_patients) == (VERSION, "cd" * 32, 40)
    assert list(request.recipes) == list(INSTALLED)
    assert list(request.codecs) == list(CODECS)


async def test_a_contract_that_hashes_differently_here_is_not_entered():
    used = ScriptedClient(join_response(contract_sha256="00" * 32))
    with pytest.raises(ConsentWithheld, match="contract hash 000000000000 is not that of what it sent"):
        await join(used)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "run-this-code"}, "recipe 'run-this-code' is not installed here"),
        ({"recipe_parameters": b'{"shell":"rm"}'}, "has no parameter 'shell'"),
        ({"recipe_parameters": b"{"}, "recipe's parameters is not JSON"),
        ({"recipe_parameters": b"[]"}, "recipe's parameters are a list"),
        ({"recipe_parameters": b'{"views":1,"views":2}'}, "recipe's parameters names 'views' twice"),
        (
            {"recipe_parameters": b'{"views":' + b"[" * 600 + b"]" * 600 + b"}"},
            "recipe's parameters is nested 601 deep",
        ),
        (
            {"recipe_parameters": b"[" + b"[]," * 9000 + b"[]]"},
            "recipe's parameters of 27004 bytes is over the limit of 16384",
        ),
        ({"adapter_manifest": b"[" * 990 + b"]" * 990}, "header is nested 990 deep"),
        ({"recipe_parameters": b'{"local_epochs":0}'}, "local_epochs must be at least 1, got 0"),
        ({"adapter_manifest": b'{"layout":[]}'}, "an adapter manifest has layout and metadata"),
    ],
)
async def test_a_recipe_or_manifest_that_is_not_understood_here_is_refused(changes, message):
    with pytest.raises(ConsentWithheld, match=message):
        await join(ScriptedClient(join_response(**changes)))


async def test_an_answer_that_is_no_message_is_refused():
    layout, none = CONTRACT.manifest.layout, None  # what gRPC hands out for bytes that it cannot parse
    with pytest.raises(IncompatibleProtocol, match="answer to Join cannot be read"):
        await join(ScriptedClient(none))
    with pytest.raises(IncompatibleProtocol, match="answer to FetchAdapter cannot be read"):
        await ScriptedClient([none]).fetch(CONTRACT, TASK, None)
    with pytest.raises(IncompatibleProtocol, match="answer to UploadDelta cannot be read"):
        await ScriptedClient(none).upload(Update(FACTS, layout, PAYLOAD), fresh=True)


async def test_an_answer_larger_than_any_that_is_meant_is_refused():
    with pytest.raises(IncompatibleProtocol, match=r"answer to Join has 30[0-9]{4} bytes, allowed are 262144"):
        await join(ScriptedClient(join_response(recipe="x" * 300_000)))
    with pytest.raises(IncompatibleProtocol, match=r"answer to AwaitRound has 70[0-9]{3} bytes, allowed are 65536"):
        await ask(ScriptedClient(answer(reason="x" * 70_000)))
    chunk = pb.FetchAdapterResponse(chunk=pb.Chunk(data=bytes(1 << 20)))
    with pytest.raises(
        IncompatibleProtocol, match=r"answer to FetchAdapter has 10[0-9]{5} bytes, allowed are 6[0-9]{4}"
    ):
        await ScriptedClient([chunk]).fetch(CONTRACT, TASK, None)


# --- downloads ------------------------------------------------------------------------------------------------------


def info(**changes: Any) -> pb.FetchAdapterResponse:
    size = len(ADAPTER.payload)
    return pb.FetchAdapterResponse(
        info=pb.AdapterInfo(**{"version": 0, "digest": ADAPTER.digest, "size": size, **changes})
    )


def pieces(start: int = 0, step: int = 100, payload: bytes = ADAPTER.payload) -> list[pb.FetchAdapterResponse]:
    return [pb.FetchAdapterResponse(chunk=chunk) for chunk in chunks.split(payload, start, step)]


async def test_a_cut_download_goes_on_where_it_stopped():
    cut = [info(), *pieces()[:3], failure(grpc.StatusCode.UNAVAILABLE, "cut")]
    used = ScriptedClient(cut, [info(), *pieces(300)])
    fetched = await used.fetch(CONTRACT, TASK, None)
    assert fetched.digest == ADAPTER.digest
    assert [request.offset for request in used.aggregator.requests] == [0, 300]


async def test_a_download_that_is_cut_often_but_moves_on_is_not_an_outage():
    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    cuts = [[info(), *pieces(start, step=50)[:1], cut] for start in range(0, 300, 50)]
    used = ScriptedClient(*cuts, [info(), *pieces(300)], give_up_after_s=LESS_THAN_SIX_PAUSES_S)
    with capture_logs() as events:
        assert (await used.fetch(CONTRACT, TASK, None)).digest == ADAPTER.digest
    assert [request.offset for request in used.aggregator.requests] == list(range(0, 350, 50))
    assert max(pauses(events)) <= SHORTEST_BACKOFF_S


async def test_a_version_the_site_has_is_not_downloaded():
    used = ScriptedClient([pb.FetchAdapterResponse(not_modified=True)])
    assert await used.fetch(CONTRACT, TASK, ADAPTER) is ADAPTER
    assert used.aggregator.requests[0].if_none_match == ADAPTER.digest


def other_payload() -> bytes:
    return adapters.adapter(seed=5).payload


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: [info(), *pieces(payload=other_payload())], "version 0 arrived with digest .* announced was"),
        (lambda: [info(size=10**9)], "the aggregator offers 1000000000 bytes, expected"),
        (lambda: [info(), *pieces()[:2]], "the download of version 0 ended at byte 200 of"),
        (lambda: pieces(), "without saying what it sends"),
        (lambda: [pb.FetchAdapterResponse(not_modified=True)], "without saying what it sends"),
    ],
    ids=["other numbers", "another size", "too short", "no description", "what the site never had"],
)
async def test_a_download_that_is_not_what_was_announced_is_refused(parts: Callable[[], list[Any]], message: str):
    with pytest.raises(InvalidAdapter, match=message):
        await ScriptedClient(parts(), parts()).fetch(CONTRACT, TASK, None)  # asked for twice: the second time plainly


def packed(base: Adapter | None = None, **changes: Any) -> list[pb.FetchAdapterResponse]:
    data = forms.pack(ADAPTER.payload, base.payload if base else None)
    values = {"size": len(data), "form": "FORM_PACKED", "base_digest": base.digest if base else "", **changes}
    return [info(**values), *pieces(payload=data)]


async def test_a_version_may_come_packed_alone_or_on_top_of_the_copy_the_site_has():
    base = adapters.adapter(seed=5)
    for held, parts in ((None, packed()), (base, packed()), (base, packed(base))):
        used = ScriptedClient(parts)
        assert (await used.fetch(CONTRACT, TASK, held)).digest == ADAPTER.digest
        assert used.aggregator.requests[0].any_form


async def test_a_version_may_come_as_the_changes_that_lead_to_it():
    recipe = Recipe(broadcast_codec="int8")
    contract, layout = replace(CONTRACT, recipe=recipe), recipe.change_layout(ADAPTER.manifest, 1)
    steps = [{n: (a * k / 100).astype(np.float32) for n, a in adapters.tensors(k).items()} for k in (1, 2)]
    data = [layout.join(step, bytes([k])) for k, step in enumerate(steps)]
    first = ADAPTER.successor(forms.changed(ADAPTER.tensors, layout, data[0]), 1)
    second = first.successor(forms.changed(first.tensors, layout, data[1]), 2)
    about = pb.AdapterInfo(
        version=2,
        parent_digest=first.digest,
        digest=second.digest,
        size=sum(map(len, data)),
        form="FORM_CHANGES",
        base_digest=ADAPTER.digest,
        changes=[pb.Change(version=k + 1, round=k + 1, size=len(part)) for k, part in enumerate(data)],
    )
    parts = [pb.FetchAdapterResponse(info=about), *pieces(payload=b"".join(data))]
    task = Task("TRAIN", 3, 2, second.digest, 60.0, "")
    assert (await ScriptedClient(parts).fetch(contract, task, ADAPTER)).to_bytes() == second.to_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: packed(adapters.adapter(seed=6), base_digest=adapters.adapter(seed=5).digest),
        lambda: [info(size=50, form="FORM_PACKED"), *pieces(payload=bytes(50))],
        lambda: [info(size=50, form="FORM_CHANGES"), *pieces(payload=bytes(50))],
    ],
    ids=["packed on another copy", "no zstd frame", "changes of nothing"],
)
async def test_what_cannot_be_rebuilt_here_is_asked_for_again_plainly(wrong: Callable[[], list[Any]]):
    """So another platform, or another release of zstd, costs bytes and no round."""
    held = adapters.adapter(seed=5)
    used = ScriptedClient(wrong(), [info(), *pieces()])
    with capture_logs() as events:
        assert (await used.fetch(CONTRACT, TASK, held)).digest == ADAPTER.digest
    assert [request.any_form for request in used.aggregator.requests] == [True, False]
    assert [event["event"] for event in events if event["log_level"] == "warning"] == ["download_not_reproduced"]


def test_more_changes_than_there_are_rounds_are_not_applied_one_after_the_other():
    """Each takes as long as the adapter is large, and a message has room for a hundred thousand."""
    held, rounds = adapters.adapter(seed=5), CONTRACT.policy.rounds
    used = Download(CONTRACT, held)
    changes = [pb.Change(size=10)] * (rounds + 1)
    used.begin(pb.AdapterInfo(size=10 * len(changes), form="FORM_CHANGES", base_digest=held.digest, changes=changes))
    used.add(pb.Chunk(data=bytes(10 * len(changes))))
    with pytest.raises(InvalidAdapter, match=f"{rounds + 1} changes are more than there are rounds"):
        used.adapter(1, "")


async def test_a_download_is_not_gone_on_with_in_other_bytes():
    """Another replica may pack otherwise: what had arrived is dropped, and all is asked for plainly."""
    first = packed(payload_digest="aa" * 32)
    cut = [*first[:2], failure(grpc.StatusCode.UNAVAILABLE, "cut")]
    used = ScriptedClient(cut, packed(payload_digest="bb" * 32)[:1], [info(), *pieces()])
    assert (await used.fetch(CONTRACT, TASK, None)).digest == ADAPTER.digest
    assert [(r.offset, r.any_form) for r in used.aggregator.requests] == [(0, True), (100, True), (0, False)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "FORM_PACKED", "base_digest": "ab" * 32}, "the download builds on abababababab, this site has $"),
        ({"form": 9}, "the aggregator sends form 9, which was not asked for"),
        ({"form": "FORM_PACKED", "size": 10**9}, "the aggregator offers 1000000000 bytes"),
        ({"form": "FORM_PLAIN", "size": 10}, "the aggregator offers 10 bytes"),
    ],
)
async def test_a_download_in_a_form_nobody_asked_for_is_refused_before_a_byte_of_it(
    changes: dict[str, Any], message: str
):
    with pytest.raises(InvalidAdapter, match=message):
        await ScriptedClient([info(**changes)]).fetch(CONTRACT, TASK, None)


# --- uploads --------------------------------------------------------------------------------------------------------


def update() -> Update:
    return Update(FACTS, ADAPTER.manifest.layout, PAYLOAD)


def begun(committed: int = 0, receipt: pb.Receipt | None = None) -> pb.BeginUploadResponse:
    return pb.BeginUploadResponse(committed=committed, receipt=receipt)


async def test_an_upload_announces_digest_and_size_and_sends_exactly_the_sealed_bytes():
    used = ScriptedClient(begun(), pb.UploadDeltaResponse(receipt=RECEIPT))
    await used.upload(update())
    announced, stream = used.aggregator.requests
    assert (announced.digest, announced.size, announced.round) == (update().digest, len(PAYLOAD), 1)
    assert announced.WhichOneof("layout") == "layout_digest"
    assert dict(announced.metrics) == {"train_loss": 0.5}
    assert stream[0].start.digest == update().digest
    assert b"".join(request.chunk.data for request in stream[1:]) == PAYLOAD


async def test_a_fresh_update_of_one_chunk_is_announced_with_its_bytes_in_one_call():
    used = ScriptedClient(pb.UploadDeltaResponse(receipt=RECEIPT))
    await used.upload(update(), fresh=True)
    ((start, chunk),) = used.aggregator.requests
    assert start.start == pb.UploadStart(announcement=start.start.announcement)  # what it says is said once
    announced = start.start.announcement
    assert (announced.digest, announced.size, announced.round) == (update().digest, len(PAYLOAD), 1)
    assert (announced.agent_id, announced.layout_digest) == ("agent-1", ADAPTER.manifest.layout.digest)
    assert chunk.chunk.data == PAYLOAD


async def test_a_fresh_update_that_was_cut_is_asked_about_before_it_is_sent_again():
    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    used = ScriptedClient(cut, begun(len(PAYLOAD), RECEIPT))
    await used.upload(update(), fresh=True)
    first, second = used.aggregator.requests
    assert first[0].start.announcement == second


async def test_a_fresh_update_that_left_nothing_durable_is_sent_in_smaller_chunks():
    layout = adapters.adapter(rank=8, width=800).manifest.layout
    one = Update(FACTS, layout, adapters.delta(layout, seed=1))
    assert calls.SMALLEST_CHUNK_BYTES < len(one.payload) <= client.CHUNK_BYTES
    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    used = ScriptedClient(cut, begun(0), pb.UploadDeltaResponse(receipt=RECEIPT), call_timeout_s=0.2)
    await used.upload(one, fresh=True)
    assert len(used.aggregator.requests[0][1].chunk.data) == len(one.payload)
    assert len(used.aggregator.requests[2][1].chunk.data) == calls.SMALLEST_CHUNK_BYTES


async def test_a_fresh_update_of_more_than_a_chunk_is_announced_first():
    layout = adapters.adapter(rank=32, width=1200, blocks=4).manifest.layout
    large = Update(FACTS, layout, adapters.delta(layout, seed=1))
    assert len(large.payload) > client.CHUNK_BYTES
    used = ScriptedClient(begun(), pb.UploadDeltaResponse(receipt=RECEIPT))
    await used.upload(large, fresh=True)
    assert used.aggregator.requests[0].digest == large.digest
    assert len(used.aggregator.requests[1][1].chunk.data) == client.CHUNK_BYTES


async def test_a_cut_upload_begins_again_and_sends_only_what_is_not_durable():
    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    used = ScriptedClient(begun(), cut, begun(committed=40), pb.UploadDeltaResponse(receipt=RECEIPT))
    await used.upload(update())
    first, _, second, stream = used.aggregator.requests
    assert first == second
    assert stream[1].chunk.offset == 40
    assert b"".join(request.chunk.data for request in stream[1:]) == PAYLOAD[40:]


async def test_an_upload_that_is_cut_often_but_moves_on_is_not_an_outage():
    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    cuts = [said for offset in range(0, 60, 10) for said in (begun(offset), cut)]
    used = ScriptedClient(
        *cuts, begun(60), pb.UploadDeltaResponse(receipt=RECEIPT), give_up_after_s=LESS_THAN_SIX_PAUSES_S
    )
    with capture_logs() as events:
        await used.upload(update())
    assert len(pauses(events)) == 6
    assert max(pauses(events)) <= SHORTEST_BACKOFF_S
    attempts = [said[ATTEMPT_KEY] for said in used.aggregator.metadata[1::2]]
    assert attempts == ["0", "1", "2", "3", "4", "5", "6"]


async def test_an_upload_of_which_nothing_arrives_any_more_is_given_up():
    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    used = ScriptedClient(begun(), cut, *[begun(40), cut] * 50, give_up_after_s=0.4)
    with pytest.raises(AggregatorUnreachable, match=r"no answer from fed\.test:1 .*start the agent again"):
        await used.upload(update())
    assert 6 <= len(used.aggregator.requests) < 20


class StandingStill(Aggregator):
    """Takes one chunk of the first two streams, and then nothing more."""

    streams = 0

    async def UploadDelta(self, requests: AsyncIterator[Any], **options: Any) -> Any:
        self.streams += 1
        if self.streams > 2:
            return await super().UploadDelta(requests, **options)
        self._next([await anext(requests), await anext(requests)], options)
        await asyncio.Event().wait()
        return None


async def test_a_transfer_that_stands_still_begins_again_and_with_nothing_durable_in_smaller_chunks():
    layout = adapters.adapter(rank=8, width=800).manifest.layout
    update = Update(FACTS, layout, adapters.delta(layout, seed=1))
    used = ScriptedClient(begun(), None, begun(), None, begun(1), pb.UploadDeltaResponse(), call_timeout_s=0.2)
    used.aggregator = StandingStill(used.aggregator.script)
    used._calls.connection = ScriptedConnection(used.aggregator)  # type: ignore[assignment]
    began = time.monotonic()
    with capture_logs() as events:
        await used.upload(update)
    assert time.monotonic() - began < 2.0
    first, second, third = [request for request in used.aggregator.requests if isinstance(request, list)]
    assert len(first[1].chunk.data) == len(update.payload)
    assert len(second[1].chunk.data) == calls.SMALLEST_CHUNK_BYTES
    assert b"".join(request.chunk.data for request in third[1:]) == update.payload[1:]
    codes = [event["code"] for event in events if event.get("rpc") == "UploadDelta" and "code" in event]
    assert codes.count("DEADLINE_EXCEEDED") >= 2


async def test_an_update_already_accepted_is_not_sent_again():
    used = ScriptedClient(begun(len(PAYLOAD), RECEIPT))
    await used.upload(update())
    assert len(used.aggregator.requests) == 1


async def test_a_refused_update_is_not_sent_again():
    used = ScriptedClient(begun(), failure(grpc.StatusCode.INVALID_ARGUMENT, "tensor 'a' has 1", "InvalidUpdate"))
    with pytest.raises(InvalidUpdate, match="tensor 'a' has 1"):
        await used.upload(update())
    assert len(used.aggregator.requests) == 2


async def test_an_evaluation_reports_counts_and_figures_and_no_case():
    used = ScriptedClient(pb.ReportEvaluationResponse())
    await used.report_evaluation(2, 2, 11, {"auc": 0.75})
    (request,) = used.aggregator.requests
    assert request == pb.ReportEvaluationRequest(
        federation="hearts", agent_id="agent-1", round=2, version=2, cases=11, metrics={"auc": 0.75}
    )


async def test_only_calls_that_were_made_are_logged():
    """An announcement that is refused, or whose update is accepted already, is followed by no stream."""
    update = Update(FACTS, ADAPTER.manifest.layout, PAYLOAD)
    with capture_logs() as events:
        await ScriptedClient(pb.BeginUploadResponse(receipt=RECEIPT)).upload(update)
        refused = failure(grpc.StatusCode.FAILED_PRECONDITION, "round 1 is closed", "StaleRound")
        with pytest.raises(StaleRound):
            await ScriptedClient(refused).upload(update)
    calls = [(event["rpc"], event["code"]) for event in events if event["event"] == "rpc_finished"]
    assert calls == [("BeginUpload", "OK"), ("BeginUpload", "FAILED_PRECONDITION")]


# --- what may leave ------------------------------------------------------------------------------------------------------


async def test_an_aggregator_that_claims_to_hold_more_than_there_is_gets_nothing():
    used = ScriptedClient(pb.BeginUploadResponse(committed=2**40))
    with pytest.raises(ConsentWithheld, match=r"says that it holds 1099511627776 bytes of an update that has \d+"):
        await used.upload(update())
    assert len(used.aggregator.requests) == 1


async def test_what_may_leave_is_asked_before_every_attempt_that_takes_bytes_out():
    asked = []

    def may_send(round_number: int, size: int) -> None:
        asked.append((round_number, size))
        if len(asked) > 2:
            raise ConsentWithheld("enough")

    cut = failure(grpc.StatusCode.UNAVAILABLE, "cut")
    used = ScriptedClient(*[begun(), cut] * 3)
    used._may_send = may_send
    with pytest.raises(ConsentWithheld, match="enough"):
        await used.upload(update())
    assert asked == [(1, len(PAYLOAD))] * 3
