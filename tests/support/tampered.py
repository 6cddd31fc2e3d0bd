"""A store that somebody changes behind the aggregator's back, and what verify finds in it."""

import sqlite3
from pathlib import Path

from aggregator import verify
from aggregator.store import engine

OTHER = "ab" * 32
"""The digest of nothing that is there."""


def checks(path: Path) -> list[verify.RoundCheck]:
    store = engine.open_store(str(path))
    try:
        return verify.verify(store, "demo")
    finally:
        store.close()


def tamper(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as raw:
        assert raw.execute(statement, values).rowcount == 1


def purge(path: Path, number: int = 1) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM chunks WHERE round = ?", (number,))
        raw.execute("UPDATE rounds SET purged_at = 9.0 WHERE number = ?", (number,))
