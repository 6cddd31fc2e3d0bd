"""Rows of what the server optimiser keeps, where the recipe has one that does: moments go with the version they lead on from."""

from collections.abc import Mapping

import numpy as np
import sqlalchemy as sa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregator.optimisers import Moments, State
from aggregator.store import schema
from shared.errors import InputError

TABLE = schema.moments
_FIRST, _SECOND = "first/", "second/"


def to_bytes(state: State) -> bytes:
    """Return a safetensors file of float64 arrays; the same moments, the same bytes."""
    arrays = {_FIRST + name: held.first for name, held in state.items()}
    arrays |= {_SECOND + name: held.second for name, held in state.items() if held.second is not None}
    return bytes(save(arrays))


def from_bytes(data: bytes, version: int) -> dict[str, Moments]:
    """Read what `to_bytes` made. Raises InputError if it is something else."""
    try:
        arrays: Mapping[str, np.ndarray] = load(data)
    except SafetensorError as error:
        raise InputError(
            f"the store is damaged: the moments of version {version} cannot be read ({error}); restore a copy of the store, or go "
            f"back to an earlier version: aggregator rollback {version - 1}"
        ) from error
    names = sorted(name.removeprefix(_FIRST) for name in arrays if name.startswith(_FIRST))
    return {name: Moments(arrays[_FIRST + name], arrays.get(_SECOND + name)) for name in names}


def add(connection: sa.Connection, federation: str, version: int, data: bytes) -> None:
    """Write the moments that go with a version, as `to_bytes` made them."""
    connection.execute(TABLE.insert().values(federation=federation, version=version, data=data))


def file(connection: sa.Connection, federation: str, version: int) -> bytes | None:
    """Return the stored bytes of a version's moments; None if there are none."""
    query = sa.select(TABLE.c.data).where(TABLE.c.federation == federation, TABLE.c.version == version)
    data = connection.execute(query).scalar()
    return None if data is None else bytes(data)


def find(connection: sa.Connection, federation: str, version: int) -> dict[str, Moments]:
    """Return the moments that go with a version, by tensor; none with version 0. Raises InputError if they are lost."""
    if version == 0:
        return {}
    data = file(connection, federation, version)
    if data is None:
        raise InputError(
            f"the store is damaged: the moments of version {version} are not in it; restore a copy of it, or go back to "
            f"an earlier version: aggregator rollback {version - 1}"
        )
    return from_bytes(data, version)
