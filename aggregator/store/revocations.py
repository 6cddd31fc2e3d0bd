"""Rows of certificates that are not good any more, by serial number."""

import sqlalchemy as sa

from aggregator.store import audit, schema

_TABLE = schema.revocations
_SERIALS = sa.select(_TABLE.c.serial).where(_TABLE.c.federation == sa.bindparam("federation"))


def add(connection: sa.Connection, federation: str, serial: str, holder: str, reason: str, by: str, now: float) -> bool:
    """Revoke a certificate for good. Returns False, changing nothing, if it is already."""
    if serial in serials(connection, federation):
        return False
    row = {"federation": federation, "serial": serial, "holder": holder, "reason": reason, "at": now}
    connection.execute(_TABLE.insert().values(**row))
    told = {"serial": serial, "holder": holder, "reason": reason, "by": by}
    audit.append(connection, federation, now, "certificate_revoked", **told)
    return True


def serials(connection: sa.Connection, federation: str) -> frozenset[str]:
    """Return the serial numbers of all revoked certificates, hex."""
    return frozenset(connection.execute(_SERIALS, {"federation": federation}).scalars())
