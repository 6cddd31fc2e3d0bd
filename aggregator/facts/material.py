"""All that the facts are made of, in one reading transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from aggregator.rounds import FederationState
from aggregator.store import audit, evaluations, federations, updates
from aggregator.store import rounds as round_rows
from aggregator.store.rounds import RoundRecord
from aggregator.store.updates import AcceptedSize
from shared.contract import Contract

ROUNDS = 100
"""The last rounds that curves and tables are made of."""
LINES = 1000
"""The last lines of the audit journal, where a site's last error is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A federation as one moment of the store has it. `journal`: the last lines with their numbers, newest first."""

    state: FederationState
    contract: Contract
    closed: int
    records: Sequence[RoundRecord]
    accepted: Sequence[AcceptedSize]
    bytes_by_site: Mapping[str, int]
    evaluations: Sequence[Mapping[str, Any]]
    arms: Sequence[Mapping[str, Any]]
    journal: Sequence[tuple[int, bytes]]


def read(connection: sa.Connection, federation: str) -> Material:
    """Return the material of a federation."""
    state = federations.state(connection, federation)
    since = max(1, state.round.number - ROUNDS + 1)
    return Material(
        state=state,
        contract=federations.contract(connection, federation),
        closed=round_rows.count_closed(connection, federation),
        records=round_rows.records(connection, federation, since),
        accepted=updates.accepted(connection, federation, since),
        bytes_by_site=updates.bytes_by_site(connection, federation),
        evaluations=evaluations.read(connection, federation, since - 1),
        arms=evaluations.arms(connection, federation),
        journal=audit.newest(connection, federation, LINES),
    )
