"""Rows of the audit journal: what happened in a federation, each line in the transaction of what it tells.

So nothing is done without its line, no line tells of what was not done, and all replicas write one chain (`shared.journal`).
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from aggregator.store import schema
from shared import journal
from shared.journal import Head

_TABLE = schema.audit
_MINE = _TABLE.c.federation == sa.bindparam("federation")
_HEAD = sa.select(_TABLE.c.number, _TABLE.c.digest).where(_MINE).order_by(_TABLE.c.number.desc()).limit(1)
_LINES = sa.select(_TABLE.c.line).where(_MINE).order_by(_TABLE.c.number)
_NEWEST = sa.select(_TABLE.c.number, _TABLE.c.line).where(_MINE).order_by(_TABLE.c.number.desc())
_INSERT = _TABLE.insert()


def append(connection: sa.Connection, federation: str, at: float, event: str, **facts: Any) -> None:
    """Write the next line. `at` in seconds since 1970; facts are JSON values."""
    found = connection.execute(_HEAD, {"federation": federation}).first()
    head = Head() if found is None else Head(found.number, found.digest)
    line = journal.line(head, at, event, facts)
    now = journal.after(head, line)
    row = {"federation": federation, "number": now.count, "line": line.decode("ascii"), "digest": now.digest}
    connection.execute(_INSERT, row)


def lines(connection: sa.Connection, federation: str) -> Iterator[bytes]:
    """Yield all lines in order, as they were written."""
    for text in connection.execute(_LINES, {"federation": federation}).scalars():
        yield text.encode()


def newest(connection: sa.Connection, federation: str, count: int) -> list[tuple[int, bytes]]:
    """Return the last lines with their numbers, newest first. Nothing is checked: that takes the whole chain."""
    rows = connection.execute(_NEWEST.limit(count), {"federation": federation})
    return [(row.number, row.line.encode()) for row in rows]
