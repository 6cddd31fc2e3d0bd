"""What commands that read a store share: its option, `--json`, and opening it. It may be served meanwhile."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aggregator.store.engine import Store

StorePath = Annotated[
    str, typer.Option("--store", help="The store: a path, sqlite:///path or postgresql://user@host/database.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def keep_events_off_the_screen() -> None:
    """Have what a store tells a log told to nobody: it would stand between facts on stdout. For commands that have no log."""
    import structlog

    from shared import logs

    if not structlog.is_configured():
        logs.configure(terminal=io.StringIO())


@contextmanager
def opened_store(store: str) -> "Iterator[tuple[Store, str]]":
    """Yield the store and the name of its federation."""
    from aggregator.store import engine, federations

    keep_events_off_the_screen()
    opened = engine.open_store(store)
    try:
        with engine.damage_named(opened):
            yield opened, opened.read(federations.only_name)
    finally:
        opened.close()
