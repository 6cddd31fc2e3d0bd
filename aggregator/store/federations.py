"""Rows of the federation, its sites and its adapters."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from aggregator import rounds
from aggregator.errors import NoStore
from aggregator.rounds import FederationState, SiteState
from aggregator.store import audit, revocations, schema
from aggregator.store import rounds as round_rows
from shared import recipe as recipes
from shared.adapter import Adapter, AdapterManifest
from shared.canonical import canonical_json
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError, NotFound

# Statements are made once: making one takes several times as long as running it.
_ROW = sa.select(schema.federations).where(schema.federations.c.name == sa.bindparam("federation"))
_REVISION = sa.select(schema.federations.c.revision).where(schema.federations.c.name == sa.bindparam("federation"))
_SITES = (
    sa.select(schema.sites).where(schema.sites.c.federation == sa.bindparam("federation")).order_by(schema.sites.c.name)
)
_AGENTS = (
    sa.select(
        schema.agents.c.site,
        schema.agents.c.last_seen,
        schema.agents.c.authenticated,
        schema.agents.c.progress,
        schema.agents.c.version,
        schema.agents.c.expires_at,
        schema.agents.c.serial,
        schema.agents.c.hold,
    )
    .where(schema.agents.c.federation == sa.bindparam("federation"))
    .order_by(schema.agents.c.last_seen, schema.agents.c.agent_id)
)
_OF_VERSION = (
    schema.adapters.c.federation == sa.bindparam("federation"),
    schema.adapters.c.version == sa.bindparam("version"),
)
_INSERT_ADAPTER = schema.adapters.insert()
_ADAPTER = sa.select(schema.adapters.c.data).where(*_OF_VERSION)
_DIGESTS = sa.select(schema.adapters.c.digest, schema.adapters.c.parent_digest).where(*_OF_VERSION)
_LAST_VERSION = sa.select(sa.func.max(schema.adapters.c.version)).where(
    schema.adapters.c.federation == sa.bindparam("federation")
)


def create(
    connection: sa.Connection,
    contract: Contract,
    adapter: Adapter,
    sites: Mapping[str, int | None],
    now: float,
    sampling_seed: int = 0,
) -> None:
    """Write a new federation with version 0 and its first round open. The deadline starts with the first Join."""
    connection.execute(
        schema.federations.insert().values(
            name=contract.federation,
            recipe=contract.recipe.name,
            recipe_parameters=contract.recipe.parameters().decode(),
            manifest=contract.manifest.to_bytes(),
            adapter_digest=contract.adapter_digest,
            policy=canonical_json(asdict(contract.policy)).decode(),
            phase="running",
            reason="",
            version=0,
            created_at=now,
            sampling_seed=sampling_seed,
        )
    )
    for name, patients in sites.items():
        connection.execute(
            schema.sites.insert().values(
                federation=contract.federation, name=name, phase="enrolled", reason="", training_patients=patients
            )
        )
    add_adapter(connection, contract.federation, adapter, now)
    audit.append(
        connection,
        contract.federation,
        now,
        "federation_made",
        contract=contract.sha256,
        adapter=contract.adapter_digest,
        recipe=contract.recipe.name,
        sites=dict(sites),
    )
    invited = rounds.invite(sites, contract.policy.invited, sampling_seed, 1)
    round_rows.open_round(connection, contract.federation, 1, 0, invited, now, None)


def names(connection: sa.Connection) -> list[str]:
    """Return the federations in this store."""
    return list(connection.execute(sa.select(schema.federations.c.name).order_by(schema.federations.c.name)).scalars())


def only_name(connection: sa.Connection) -> str:
    """Return the name of the store's federation. Raises InputError if it has none."""
    found = names(connection)
    if not found:
        raise NoStore("the store holds no federation; make a new one with: aggregator init --help")
    return found[0]


def contract(connection: sa.Connection, federation: str) -> Contract:
    """Return what the sites agreed to."""
    row = _row(connection, federation)
    return Contract(
        federation=federation,
        adapter_digest=row["adapter_digest"],
        manifest=AdapterManifest.from_bytes(row["manifest"]),
        recipe=recipes.make(row["recipe"], json.loads(row["recipe_parameters"])),
        policy=RoundPolicy(**json.loads(row["policy"])),
    )


def state(connection: sa.Connection, federation: str) -> FederationState:
    """Return the federation as it stands: what every decision is made from."""
    row = _row(connection, federation)
    return FederationState(
        name=federation,
        policy=RoundPolicy(**json.loads(row["policy"])),
        phase=row["phase"],
        reason=row["reason"],
        version=row["version"],
        digest=adapter_digest(connection, federation, row["version"]),
        last_version=last_version(connection, federation),
        sampling_seed=row["sampling_seed"],
        norm_gate=float(json.loads(row["recipe_parameters"]).get("norm_gate", 0.0)),
        revoked=revocations.serials(connection, federation),
        sites=_sites(connection, federation),
        round=round_rows.last(connection, federation),
    )


def revision(connection: sa.Connection, federation: str) -> int:
    """Return how often the federation was changed: a copy of its state is good while this stands. Raises NotFound."""
    found = connection.execute(_REVISION, {"federation": federation}).scalar()
    return int(_row(connection, federation)["revision"] if found is None else found)


def standing(connection: sa.Connection, federation: str) -> tuple[str, int, int]:
    """Return the phase, the current version and the sampling seed as they are written, whether or not they make sense."""
    row = _row(connection, federation)
    return row["phase"], row["version"], row["sampling_seed"]


def _row(connection: sa.Connection, federation: str) -> Mapping[str, Any]:
    row = connection.execute(_ROW, {"federation": federation}).mappings().first()
    if row is None:
        raise NotFound(f"no federation '{federation}' in this store (it has: {', '.join(names(connection)) or 'none'})")
    return dict(row)


def enrolled(connection: sa.Connection, federation: str) -> dict[str, SiteState]:
    """Return what is fixed about every site, by name, and nothing of what was heard from its agents."""
    rows = connection.execute(_SITES, {"federation": federation})
    return {
        row.name: SiteState(name=row.name, phase=row.phase, reason=row.reason, training_patients=row.training_patients)
        for row in rows
    }


def _sites(connection: sa.Connection, federation: str) -> dict[str, SiteState]:
    found = enrolled(connection, federation)
    heard = connection.execute(_AGENTS, {"federation": federation})
    # oldest first: what the agent heard from last said is what stands. A row of no site of ours is `verify`'s business
    for row in (row for row in heard if row.site in found):
        found[row.site] = replace(
            found[row.site],
            last_seen=row.last_seen,
            authenticated=row.authenticated,
            progress=row.progress,
            version=row.version,
            expires_at=row.expires_at,
            serial=row.serial or "",
            hold=row.hold or "",
        )
    last = round_rows.last_accepted(connection, federation)
    for site, number in ((site, number) for site, number in last.items() if site in found):
        found[site] = replace(found[site], last_round=number)
    return found


def set_phase(connection: sa.Connection, federation: str, phase: str, reason: str, now: float) -> None:
    """Pause or resume. Resuming gives the open round the time back that the pause took from its deadline."""
    row = _row(connection, federation)
    if row["phase"] == "finished":
        raise InputError(f"federation '{federation}' is finished; there is nothing to pause or resume")
    if phase == row["phase"]:
        return
    if phase == "running" and row["paused_at"] is not None:
        round_rows.give_back(connection, federation, row["paused_at"], now)
    connection.execute(
        schema.federations.update()
        .where(schema.federations.c.name == federation)
        .values(phase=phase, reason=reason, paused_at=now if phase == "paused" else None)
    )


def join(connection: sa.Connection, federation: str, site: str, patients: int, deadline_at: float) -> None:
    """Mark a site as joined, fix its number of patients if nobody has, and start the first round's clock.

    A site that was evicted this moment stays so.
    """
    table = schema.sites
    mine = (table.c.federation == federation, table.c.name == site)
    connection.execute(table.update().where(*mine, table.c.phase == "enrolled").values(phase="joined"))
    fix_patients(connection, federation, site, patients)
    round_rows.start_clock(connection, federation, deadline_at)


def fix_patients(connection: sa.Connection, federation: str, site: str, patients: int) -> None:
    """Fix how many patients a site trains on, if nobody has."""
    table = schema.sites
    mine = (table.c.federation == federation, table.c.name == site, table.c.training_patients.is_(None))
    connection.execute(table.update().where(*mine).values(training_patients=patients))


def evict(connection: sa.Connection, federation: str, site: str, reason: str) -> None:
    """Take a site out for good. Repeating it changes nothing: manifests hold the first reason."""
    table = schema.sites
    connection.execute(
        table.update()
        .where(table.c.federation == federation, table.c.name == site, table.c.phase != "evicted")
        .values(phase="evicted", reason=reason)
    )


def add_adapter(connection: sa.Connection, federation: str, adapter: Adapter, now: float) -> None:
    """Write one version of the global adapter."""
    connection.execute(
        _INSERT_ADAPTER,
        {
            "federation": federation,
            "version": adapter.version,
            "parent_digest": adapter.parent_digest,
            "digest": adapter.digest,
            "data": adapter.to_bytes(),
            "created_at": now,
        },
    )


def adapter(connection: sa.Connection, federation: str, version: int) -> Adapter:
    """Return one version. Raises NotFound, naming the versions there are."""
    return Adapter.from_bytes(adapter_file(connection, federation, version))


def adapter_with(connection: sa.Connection, federation: str, digest: str) -> Adapter | None:
    """Return the version with this digest; None if there is none."""
    table = schema.adapters
    query = sa.select(table.c.data).where(table.c.federation == federation, table.c.digest == digest)
    data = connection.execute(query).scalar()
    return None if data is None else Adapter.from_bytes(bytes(data))


def adapter_file(connection: sa.Connection, federation: str, version: int) -> bytes:
    """Return the stored file of one version as it is. Raises NotFound."""
    data = connection.execute(_ADAPTER, {"federation": federation, "version": version}).scalar()
    if data is None:
        last = last_version(connection, federation)
        raise NotFound(f"federation '{federation}' has no adapter version {version}; versions are 0 to {last}")
    return bytes(data)


def adapter_digest(connection: sa.Connection, federation: str, version: int) -> str:
    """Return the digest of one version, as it was written beside the file."""
    return adapter_digests(connection, federation, version)[0]


def adapter_digests(connection: sa.Connection, federation: str, version: int) -> tuple[str, str]:
    """Return the digests of one version and of its parent, as they were written beside the file."""
    row = connection.execute(_DIGESTS, {"federation": federation, "version": version}).first()
    if row is None:
        raise InputError(
            f"the store is damaged: federation '{federation}' has no adapter version {version}; restore a copy of it"
        )
    return str(row[0]), str(row[1])


def last_version(connection: sa.Connection, federation: str) -> int:
    """Return the highest version ever made."""
    last = connection.execute(_LAST_VERSION, {"federation": federation}).scalar()
    if last is None:
        raise InputError(
            f"the store is damaged: federation '{federation}' has no adapter version at all; restore a copy of it"
        )
    return int(last)
