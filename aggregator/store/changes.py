"""Rows of what each round changed, where the recipe's broadcast codec is lossy: as it was written, and what it still owes."""

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Step:
    """One change on the way from a version to a later one. `size`: bytes of its data."""

    version: int
    round: int
    size: int


def chain(connection: sa.Connection, federation: str, held: str, version: int, most: int) -> list[Step] | None:
    """Return the changes that lead from the version with digest `held` to `version`, in order.

    None if there is no such way, or if they have `most` bytes or more together: then nobody wants them.
    """
    rows = connection.execute(_WAYS, {"federation": federation, "version": version}).all()
    by_digest, found, size = {row.digest: row for row in rows}, list[Step](), 0
    row = next((row for row in rows if row.version == version), None)
    while row is not None and row.digest != held:
        size += row.size or 0
        if row.size is None or size >= most:
            return None
        found.append(Step(row.version, row.round, row.size))
        row = by_digest.get(row.parent_digest)
    return found[::-1] if row is not None else None


def data(connection: sa.Connection, federation: str, steps: Sequence[Step]) -> bytes:
    """Return the bytes of these changes, one after the other."""
    return b"".join(
        bytes(connection.execute(_DATA, {"federation": federation, "version": step.version}).scalar_one())
        for step in steps
    )


_WAYS = (
    sa.select(
        schema.adapters.c.version,
        schema.adapters.c.digest,
        schema.adapters.c.parent_digest,
        TABLE.c.round,
        sa.func.length(TABLE.c.data).label("size"),
    )
    .select_from(
        schema.adapters.outerjoin(
            TABLE,
            sa.and_(TABLE.c.federation == schema.adapters.c.federation, TABLE.c.version == schema.adapters.c.version),
        )
    )
    .where(
        schema.adapters.c.federation == sa.bindparam("federation"),
        schema.adapters.c.version <= sa.bindparam("version"),
    )
)
_DATA = sa.select(TABLE.c.data).where(
    TABLE.c.federation == sa.bindparam("federation"), TABLE.c.version == sa.bindparam("version")
)
