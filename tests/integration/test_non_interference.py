"""In mode non-interference nothing that an agent says depends on what is private at its site: every message of a federation is the
same, byte for byte, whatever local adapter the site begins with. In mode joint it is not.
"""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from med_duallora.v1 import federation_pb2 as pb
from safetensors.numpy import save_file

from site_agent import connection
from site_agent.agent import Agent
from site_agent.client import Joined
from site_agent.consent import Pins
from site_agent.training.site import SiteTrainer
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

SITE, ROUNDS = "siemens", 3
Message = tuple[str, bytes]


class Recording:
    """A channel that notes every message that is sent through it, as it is serialised."""

    def __init__(self, channel: grpc.aio.Channel, sent: list[Message]) -> None:
        self._channel, self._sent = channel, sent

    def __getattr__(self, kind: str) -> Any:
        make = getattr(self._channel, kind)

        def call(method: str, request_serializer: Any, **others: Any) -> Any:
            def noted(message: Any) -> bytes:
                self._sent.append((method.rpartition("/")[2], without_chance(message)))
                return bytes(request_serializer(message))

            return make(method, request_serializer=noted, **others)

        return call


def without_chance(message: Any) -> bytes:
    """Return a message's bytes without the agent's random id, and without what a clock says in a poll."""
    copy = type(message)()
    copy.CopyFrom(message)
    if isinstance(copy, pb.AwaitRoundRequest):
        copy.ClearField("progress")
        copy.ClearField("wait_s")
    for part in (copy, getattr(copy, "start", None), getattr(getattr(copy, "start", None), "announcement", None)):
        if part is not None and getattr(part, "agent_id", ""):
            part.ClearField("agent_id")
    return bytes(copy.SerializeToString(deterministic=True))


class BeginningWith(Agent):
    """An agent that begins with a local adapter of its own."""

    spread = 0.0

    async def _join(self) -> tuple[Joined, SiteTrainer]:
        joined, trainer = await super()._join()
        rng = np.random.default_rng(99)
        folder = self._state.folder / "rounds/0000"
        folder.mkdir(parents=True)
        private = {
            name: rng.uniform(-self.spread, self.spread, value.shape).astype(np.float32)
            for name, value in trainer.initial_local().items()
        }
        save_file(private, folder / "local.safetensors")
        return joined, trainer


class BeginningFarAway(BeginningWith):
    spread = 2.0


async def said(
    materials: Materials, folder: Path, patch: pytest.MonkeyPatch, kind: type[Agent], **parameters: str
) -> tuple[set[Message], list[Message], dict[str, np.ndarray]]:
    """Run a federation of one site; return its polls, all its other messages in order, and the local adapter it ended with."""
    sent: list[Message] = []
    stub = connection.rpc.FederationServiceStub
    store = federation.create_store(folder, materials.adapter, (SITE,), rounds=ROUNDS, **parameters)
    with patch.context() as patched:
        patched.setattr(connection.rpc, "FederationServiceStub", lambda channel: stub(Recording(channel, sent)))
        async with serve(store) as running:
            open_ = Pins(arms=True)  # it would tell all that may be told
            agent = kind(federation.site_config(materials, folder, running.address, SITE, agreed=open_), Silent())
            await federation.finish(agent)
    federation.assert_finished(store, rounds=ROUNDS)
    private = agent._state.rounds.local(ROUNDS)
    assert private is not None
    polls = {message for message in sent if message[0] == "AwaitRound"}
    return polls, [message for message in sent if message[0] != "AwaitRound"], private


async def both(
    materials: Materials, folder: Path, patch: pytest.MonkeyPatch, **parameters: str
) -> list[tuple[set[Message], list[Message], dict[str, np.ndarray]]]:
    """Run the same federation beginning with two local adapters that have nothing in common."""
    return [
        await said(materials, folder / kind.__name__, patch, kind, **parameters)
        for kind in (BeginningWith, BeginningFarAway)
    ]


@pytest.mark.parametrize("name", ["med-duallora", "ffa-lora"])
async def test_every_message_is_the_same_whatever_is_private(materials, tmp_path, monkeypatch, name):
    one, other = await both(
        materials,
        tmp_path,
        monkeypatch,
        recipe=name,
        mode="non-interference",
        codec="int8+zstd",
        shrinkage_patients="3",
    )
    assert {call for call, _ in one[1]} >= {"Join", "UploadDelta", "ReportEvaluation"}
    assert sum(call == "ReportEvaluation" for call, _ in one[1]) == ROUNDS
    assert one[:2] == other[:2]
    assert all(not np.array_equal(one[2][key], other[2][key]) for key in one[2])  # they stayed apart all the time


async def test_in_joint_training_updates_and_figures_tell_them_apart(materials, tmp_path, monkeypatch):
    one, other = await both(materials, tmp_path, monkeypatch, recipe="med-duallora")
    assert one[1] != other[1]
    for call in ("UploadDelta", "ReportEvaluation"):
        assert [m for m in one[1] if m[0] == call] != [m for m in other[1] if m[0] == call]
