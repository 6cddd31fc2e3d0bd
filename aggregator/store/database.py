"""What a kind of database must do for the store: everything in which SQLite and PostgreSQL differ."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import sqlalchemy as sa

Heard = Callable[[str, bool], None]
"""Called with a federation's name ("": any of them) and whether the change is news to waiting sites; from any thread."""


class Watch(Protocol):
    """Listening for what other processes change."""

    def close(self) -> None:
        """Stop; nothing is heard once this has returned."""


class Database(Protocol):
    """One database, opened or about to be. Safe to use from several threads."""

    @property
    def place(self) -> str:
        """Where it is, for messages to its operator; without a password."""

    def check_free(self) -> None:
        """Raise InputError if a new store cannot be made here."""

    def check_there(self) -> None:
        """Raise InputError if there is surely no store here."""

    def transaction(self, *, write: bool) -> AbstractContextManager[sa.Connection]:
        """Yield a connection in a transaction that commits at the end, or rolls back if the block raises.

        One that reads sees one state of the store throughout. One that writes is alone: it begins when every earlier one has
        ended, sees what they committed, and is durable when this returns.
        """

    def glance(self, federation: str) -> int | None:
        """Return a federation's revision if it can be had at once: in microseconds, waiting for nobody. None: ask a transaction.

        It is that of the last commit before this call, whoever made it.
        """

    def unavailable(self, error: sa.exc.SQLAlchemyError) -> str:
        """Say in a few words, without place or values, why trying again later can help; empty if it cannot."""

    def advice(self, error: sa.exc.SQLAlchemyError) -> str:
        """Tell the operator what to do about a database that cannot be opened."""

    def passes(self, error: sa.exc.SQLAlchemyError) -> bool:
        """Whether a database that cannot be opened may be opened later without anybody changing its settings, or ours."""

    def announce(self, connection: sa.Connection, federation: str, news: bool) -> None:
        """Let other processes' watches hear of this transaction's change when it commits."""

    def watch(self, heard: Heard) -> Watch:
        """Call `heard` for changes that other processes make, until the watch is closed."""

    def reserve(self) -> None:
        """Become the one serving process, where the database allows only one. Raises InputError if there is one."""

    def close(self) -> None:
        """Let go of every connection and of the reservation."""
