"""The aggregator's answers as this side reads them: none is taken for what it is not, or for larger than is meant."""

from typing import Any

from med_duallora.v1 import federation_pb2 as pb

from shared import json_text
from shared.adapter import MAX_HEADER, AdapterManifest
from shared.contract import Contract, RoundPolicy
from shared.errors import IncompatibleProtocol, InputError
from shared.protocol import MESSAGE_BYTES
from shared.recipe import make

MAX_JOIN = MAX_HEADER + MESSAGE_BYTES
MAX_PARAMETERS = 16 << 10
"""Bytes of a recipe's parameters as text: several times what all there are take."""


def contract_of(reply: pb.JoinResponse) -> Contract:
    """Return the contract that an aggregator's answer describes. Raises InputError for one that is none."""
    policy = reply.round_policy
    return Contract(
        federation=reply.federation,
        adapter_digest=reply.adapter_digest,
        manifest=AdapterManifest.from_bytes(reply.adapter_manifest),
        recipe=make(reply.recipe, _parameters(reply.recipe_parameters)),
        policy=RoundPolicy(
            rounds=policy.rounds,
            invited=policy.invited,
            quorum=policy.quorum,
            deadline_s=policy.deadline_s,
            grace_s=policy.grace_s,
        ),
    )


def _parameters(data: bytes) -> dict[str, Any]:
    try:
        value = json_text.read(data, MAX_PARAMETERS)
    except ValueError as error:
        raise InputError(f"the text of the recipe's parameters {error}; upgrade the older side") from error
    if not isinstance(value, dict):
        raise InputError(f"the recipe's parameters are a {type(value).__name__}, expected names and numbers")
    return value


def read(method: str, answer: Any, most_bytes: int) -> Any:
    """Return an answer. Raises IncompatibleProtocol if it is larger than any that is meant, or no message: gRPC hands out None."""
    if answer is None:
        raise IncompatibleProtocol(f"the aggregator's answer to {method} cannot be read; upgrade the older side")
    if answer.ByteSize() > most_bytes:
        raise IncompatibleProtocol(
            f"the aggregator's answer to {method} has {answer.ByteSize()} bytes, allowed are {most_bytes}; upgrade the older side"
        )
    return answer


def instruction(number: int) -> str:
    """Return an instruction's name without its prefix. Raises IncompatibleProtocol for one of a later release."""
    try:
        return pb.Instruction.Name(number).removeprefix("INSTRUCTION_")  # type: ignore[arg-type]
    except ValueError:
        raise IncompatibleProtocol(
            f"the aggregator gave instruction {number}, which this release does not know; upgrade the agent"
        ) from None
