"""Rows of what sites say of a model on their own cases: of each version, and of the models that they compare at the end."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from aggregator.store import schema
from shared.canonical import canonical_json


def report(
    connection: sa.Connection,
    federation: str,
    site: str,
    round_number: int,
    version: int,
    cases: int,
    metrics: Mapping[str, float],
    now: float,
    arm: str = "",
) -> bool:
    """Write a site's metrics of one version, or of one `arm` of its comparison; a repeated report replaces the earlier one.

    Returns whether it is the first.
    """
    key: dict[str, str | int] = {"federation": federation, "site": site}
    of = {"round": round_number, "version": version}
    table, rest = (schema.arms, of) if arm else (schema.evaluations, {})
    key |= {"arm": arm} if arm else of
    replaced = connection.execute(
        table.delete().where(*(table.c[name] == value for name, value in key.items()))
    ).rowcount
    text = canonical_json(dict(metrics)).decode()
    connection.execute(table.insert().values(**key, **rest, cases=cases, metrics=text, reported_at=now))
    return not replaced


def read(connection: sa.Connection, federation: str, since: int = 0) -> list[dict[str, Any]]:
    """Return every evaluation of round `since` and later ones, by round and site."""
    table = schema.evaluations
    mine = (table.c.federation == federation, table.c.round >= since)
    rows = connection.execute(sa.select(table).where(*mine).order_by(table.c.round, table.c.site, table.c.version))
    return [dict(row) | {"metrics": json.loads(row["metrics"])} for row in rows.mappings()]


def arms(connection: sa.Connection, federation: str) -> list[dict[str, Any]]:
    """Return what sites told last of the models they compared, by site and arm."""
    table = schema.arms
    rows = connection.execute(
        sa.select(table).where(table.c.federation == federation).order_by(table.c.site, table.c.arm)
    )
    return [dict(row) | {"metrics": json.loads(row["metrics"])} for row in rows.mappings()]
