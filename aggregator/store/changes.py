"""Rows of what each round changed, where the recipe's broadcast codec is lossy: as it was written, and what it still owes."""

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregator.store import schema
from shared.errors import InputError
from shared.feedback import Sent

TABLE = schema.changes


@dataclass(frozen=True, slots=True)
class Change:
    """What leads from a version's parent to it. `data`: payload of the round's change layout. `owed`: a safetensors file."""

    version: int
    round: int
    data: bytes
    owed: bytes

    @classmethod
    def of(cls, version: int, number: int, sent: Sent) -> "Change":
        """Return the change that was sent in round `number`."""
        return cls(version, number, sent.payload, save(sent.residual))

    def residual(self) -> dict[str, np.ndarray]:
        """Return what the next change has to make up for, float64 by tensor name. Raises InputError if it cannot be read."""
        try:
            return dict(load(self.owed))
        except SafetensorError as error:
            raise InputError(
                f"the store is damaged: what the change to version {self.version} owes cannot be read ({error}); restore a "
                f"copy of the store, or go back to an earlier version: aggregator rollback {self.version - 1}"
            ) from error


def add(connection: sa.Connection, federation: str, change: Change) -> None:
    """Write the change that made a version."""
    connection.execute(
        TABLE.insert().values(
            federation=federation,
            version=change.version,
            round=change.round,
            data=change.data,
            owed=change.owed,
        )
    )


def find(connection: sa.Connection, federation: str, version: int) -> Change | None:
    """Return the change that made a version; None if none was written: it is version 0, or the codec loses nothing."""
    query = sa.select(TABLE).where(TABLE.c.federation == federation, TABLE.c.version == version)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    return Change(row["version"], row["round"], bytes(row["data"]), bytes(row["owed"]))


def chain(connection: sa.Connection, federation: str, held: str, version: int) -> list[Change] | None:
    """Return the changes that lead from the version with digest `held` to `version`, in order; None if there is no such way."""
    adapters, found = schema.adapters, list[Change]()
    while True:
        query = sa.select(adapters.c.digest, adapters.c.parent_digest).where(
            adapters.c.federation == federation, adapters.c.version == version
        )
        row = connection.execute(query).first()
        if row is None:
            raise InputError(f"the store is damaged: federation '{federation}' has no adapter version {version}")
        if row[0] == held:
            return found[::-1]
        change = find(connection, federation, version)
        parent = connection.execute(
            sa.select(adapters.c.version).where(adapters.c.federation == federation, adapters.c.digest == row[1])
        ).scalar()
        if change is None or parent is None:
            return None
        found.append(change)
        version = int(parent)
