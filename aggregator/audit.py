"""Reading the audit journal: the chain, and whether it tells of every update that counts and of no other."""

import sqlalchemy as sa

from aggregator.store import audit, schema
from aggregator.store.engine import Store
from shared import journal
from shared.errors import InputError
from shared.journal import Chain

ACCEPTED = "update_accepted"


def lines(store: Store, federation: str) -> list[bytes]:
    """Return the journal's lines as they were written."""
    return store.read(lambda connection: list(audit.lines(connection, federation)))


def check(store: Store, federation: str, noted: str = "") -> Chain:
    """Return the journal of a store.

    Raises InputError naming the line at which the chain breaks; the accepted update that has no line, or the line that has no
    update; or a `noted` head that is nobody's (see `shared.journal.verify`).
    """
    written, accepted = store.read(
        lambda connection: (list(audit.lines(connection, federation)), _accepted(connection, federation))
    )
    chain = journal.verify(written, noted)
    told = {
        (one.facts["round"], one.facts["site"], one.facts["digest"]) for one in chain.entries if one.event == ACCEPTED
    }
    since = chain.entries[0].at if chain.entries else float("inf")
    for (number, site, digest), at in accepted.items():
        if (number, site, digest) not in told and at >= since:  # a store of an older release has a past without lines
            raise InputError(
                f"round {number}'s update {digest[:12]} of site '{site}' counts and has no line in the audit journal: one of the "
                "two was changed"
            )
        told.discard((number, site, digest))
    for number, site, digest in sorted(told):
        raise InputError(
            f"the audit journal tells of round {number}'s update {digest[:12]} of site '{site}', and the store has none that "
            "counts: it was taken out"
        )
    return chain


def _accepted(connection: sa.Connection, federation: str) -> dict[tuple[int, str, str], float]:
    table = schema.updates
    query = sa.select(table.c.round, table.c.site, table.c.digest, table.c.accepted_at)
    rows = connection.execute(query.where(table.c.federation == federation, table.c.accepted_at.is_not(None)))
    return {(row.round, row.site, row.digest): row.accepted_at for row in rows}
