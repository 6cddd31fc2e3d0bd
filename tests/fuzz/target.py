"""What a target of the fuzz run is, and what may come of a mutation."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from shared import errors, status
from shared.errors import MedDualLoRAError
from site_agent.consent import ConsentWithheld

MARGIN_BYTES = 1 << 20
"""What a case may take in memory beyond what the manifest says its tensors have."""
ACCEPTED = "accepted"
HELD = "held until given up"
"""A question that the aggregator may hold, and does, until the site gives it up."""
NOTHING = "no call left"
HARMLESS = frozenset({ACCEPTED, HELD, NOTHING})
DOCUMENTED = frozenset({*status.TABLE, errors.AggregatorUnreachable, ConsentWithheld})
"""The classes that a refusal may have: those with a status, and two that a site alone raises."""


class Undocumented(Exception):
    """The code under test gave an answer that no document promises; the text says which."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A case about to be run. `payload_bytes`: what the manifest at hand says its tensors have; `run` returns ACCEPTED, or the
    label of a refusal that was answered, and raises what the code under test raises."""

    payload_bytes: int
    run: Callable[[], str]


class Target(Protocol):
    """Code that reads what somebody hostile may have written. Cases are bytes, and independent of each other."""

    def seeds(self) -> list[bytes]:
        """Return cases that a well-behaved peer would send."""
        ...

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return a case made of another one."""
        ...

    def ready(self, data: bytes) -> Ready:
        """Return what is run and measured; what is done here is not."""
        ...

    def close(self) -> None:
        """Let go of files and servers."""
        ...


def is_documented(error: BaseException) -> bool:
    """Return whether a refusal is one of those that callers are told of."""
    return isinstance(error, MedDualLoRAError) and type(error) in DOCUMENTED
