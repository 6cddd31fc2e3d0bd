"""Recompute closed rounds from the stored updates and compare every digest on the way: the first difference is the finding.

The weighted mean is element-wise in a fixed order, so the bytes must be equal on any machine. Of a round whose update bytes
were dropped by the retention setting the manifest is compared with everything that is left, and that is what is reported.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregator import aggregation, closing
from aggregator.manifest import RULE, ManifestEntry, RoundManifest
from aggregator.rounds import SiteState
from aggregator.store import federations, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.rounds import RoundRecord
from aggregator.store.updates import UpdateKey
from shared.adapter import Adapter
from shared.canonical import sha256_hex
from shared.contract import Contract
from shared.errors import InputError, MedDualLoRAError, NotFound


class Difference(Exception):
    """What is stored is not what was recomputed."""


@dataclass(frozen=True, slots=True)
class RoundCheck:
    """What verifying one round found. `difference` is empty if everything agrees.

    `purged`: the update bytes are gone, so that the manifest was compared and the result not recomputed. A round that is
    not closed is not recomputed either.
    """

    round: int
    phase: str
    updates: int
    version: int | None
    digest: str
    difference: str
    purged: bool = False

    @property
    def finding(self) -> str:
        """The finding in words."""
        if self.difference:
            return f"DIFFERS: {self.difference}"
        if self.phase != "closed":
            return self.phase
        if self.purged:
            return "manifest chain ok, update bytes purged by retention: result not recomputable"
        return f"ok, {self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class _Ground:
    """What every round is compared with."""

    store: Store
    contract: Contract
    sites: Mapping[str, SiteState]


def verify(store: Store, federation: str, numbers: Sequence[int] | None = None) -> list[RoundCheck]:
    """Check these rounds, or all: then also that no round is missing and every version has its round.

    Raises InputError for a round that does not exist or is not closed.
    """
    records = {r.state.number: r for r in store.read(round_rows.records, federation)}
    for number in numbers or ():
        if number not in records or records[number].state.phase != "closed":
            closed = [n for n, r in records.items() if r.state.phase == "closed"]
            raise InputError(
                f"round {number} is not closed; closed rounds are {', '.join(map(str, closed)) or 'none yet'}"
            )
    ground = _Ground(store, store.read(federations.contract, federation), store.read(federations.enrolled, federation))
    checks = [_check(ground, records[n]) for n in (records if numbers is None else numbers)]
    return checks if numbers is not None else sorted(checks + _gaps(ground, records), key=lambda check: check.round)


def _gaps(ground: _Ground, records: Mapping[int, RoundRecord]) -> list[RoundCheck]:
    """Return a finding for each round that is not there: a gap in the numbers, or a version that no closed round made."""
    end = max(records, default=0) + 1
    missing = [n for n in range(1, end) if n not in records]
    if missing:
        return [RoundCheck(n, "missing", 0, None, "", f"round {n} is not in the store") for n in missing]
    made = {record.version for record in records.values()}
    last = ground.store.read(federations.last_version, ground.contract.federation)
    return [
        RoundCheck(end, "missing", 0, v, "", f"version {v} is in the store, the round that made it is not")
        for v in range(1, last + 1)
        if v not in made
    ]


def _check(ground: _Ground, record: RoundRecord) -> RoundCheck:
    state, purged = record.state, record.purged_at is not None
    digest, difference = "", ""
    try:
        if state.phase == "closed":
            digest = _recompute(ground, record)
        elif record.version is not None or (record.manifest and state.phase != "closing"):
            raise Difference(f"round {state.number} is marked {state.phase} and has what only a closed round has")
    except (Difference, MedDualLoRAError) as error:
        difference = str(error)
        now = ground.store.read(round_rows.record, ground.contract.federation, state.number)
        if now.purged_at is not None and not purged:  # its bytes were dropped while we were reading them
            return _check(ground, now)
    version = record.version if state.phase == "closed" else None
    return RoundCheck(state.number, state.phase, len(state.accepted), version, digest, difference, purged)


def _recompute(ground: _Ground, record: RoundRecord) -> str:
    """Return the digest of the round's result, recomputed unless the bytes were purged. Raises Difference."""
    decided = RoundManifest.from_bytes(record.manifest)
    _same("manifest", record.input_digest, decided.input_digest)
    _check_decision(ground.contract, record, decided)
    parent = _adapter(ground, decided.parent_version, decided.parent_digest)
    if decided.parent_version == 0:
        _same("version 0", ground.contract.adapter_digest, parent.digest)
    _check_participants(ground, record, decided)
    weights = aggregation.weights({e.site: e.training_patients for e in decided.entries}, decided.weighting)
    for entry in decided.entries:
        _check_entry(ground, record, decided, entry, weights[entry.site])
    if record.purged_at is None:
        result, _ = closing.compute(ground.store, ground.contract, decided, parent)
        _same(f"result of round {decided.round}", decided.result_digest, result.digest)
    stored = _adapter(ground, decided.version, decided.result_digest)
    _same(f"parent of version {decided.version}", stored.parent_digest, parent.digest)
    return stored.digest


def _check_decision(contract: Contract, record: RoundRecord, decided: RoundManifest) -> None:
    """Compare what the manifest says about the round as a whole with the round's row and the contract."""
    expected = {
        "federation": contract.federation,
        "round": record.state.number,
        "rule": RULE,
        "weighting": contract.recipe.weighting,
        "server_lr": contract.recipe.server_lr,
        "parent_version": record.state.base_version,
        "version": record.version,
    }
    for name, value in expected.items():
        if getattr(decided, name) != value:
            raise Difference(f"manifest: {name} is {getattr(decided, name)}, expected {value}")
    if decided.to_bytes() != record.manifest:
        raise Difference("manifest: it does not have the form it was written in")


def _check_participants(ground: _Ground, record: RoundRecord, decided: RoundManifest) -> None:
    """Compare who is in and who was left out with who was invited, whose update was accepted, and who was evicted."""
    accepted, invited = record.state.accepted, set(record.state.invited)
    sites = [entry.site for entry in decided.entries]
    if sites != sorted(set(sites)) or not invited.issuperset(sites):
        raise Difference("manifest: its sites are not sorted, each once and invited")
    if set(sites) & decided.left_out.keys() or not invited <= {*sites, *decided.left_out} <= ground.sites.keys():
        raise Difference("manifest: not every invited site is either in or left out")
    for site in sorted(accepted.keys() - set(sites) - decided.set_aside.keys()):
        raise Difference(f"update of site '{site}' is accepted but stands in no manifest")
    for site, digest in decided.set_aside.items():
        found = accepted[site].digest if site in accepted else "none"
        _same(f"update of site '{site}', set aside", digest, found)
    for site, reason in decided.left_out.items():
        if reason.startswith("evicted") != _was_evicted(ground.sites[site], reason) or (
            reason == "not invited" and site in invited
        ):
            raise Difference(f"manifest: site '{site}' was left out as '{reason}', which its row does not say")
        if site in decided.set_aside and not reason.startswith("evicted"):
            raise Difference(f"manifest: the update of site '{site}' is set aside and the site was not evicted")


def _was_evicted(site: SiteState, reason: str) -> bool:
    return site.phase == "evicted" and reason == (f"evicted: {site.reason}" if site.reason else "evicted")


def _check_entry(
    ground: _Ground, record: RoundRecord, decided: RoundManifest, entry: ManifestEntry, weight: float
) -> None:
    """Compare one site's entry with its update's row and, unless they were purged, its bytes."""
    site, accepted = entry.site, record.state.accepted.get(entry.site)
    if accepted is None:
        raise Difference(f"update of site '{site}' is in the manifest but not in the store")
    _same(f"update of site '{site}'", entry.digest, accepted.digest)
    if (entry.training_patients, entry.weight) != (accepted.training_patients, weight):
        raise Difference(f"weight of site '{site}' is {entry.weight}, its update says {weight}")
    if entry.training_patients != ground.sites[site].training_patients:
        raise Difference(
            f"site '{site}' has {ground.sites[site].training_patients} training patients, its update says "
            f"{entry.training_patients}"
        )
    key = UpdateKey(decided.federation, decided.round, site, entry.digest)
    _check_header(ground, key, decided.parent_version)
    if record.purged_at is not None:
        if left := ground.store.read(updates.committed, key):
            raise Difference(f"round {decided.round} is marked as purged and holds {left} bytes of site '{site}'")
        return
    hashed = hashlib.sha256()
    for piece in updates.pieces(ground.store, key):
        hashed.update(piece)
    _same(f"bytes of the update of site '{site}'", entry.digest, hashed.hexdigest())


def _check_header(ground: _Ground, key: UpdateKey, base_version: int) -> None:
    """Compare what an update was announced as with what the round takes."""
    contract, found = ground.contract, ground.store.read(updates.find, key)
    if found is None:
        raise NotFound(f"update of site '{key.site}' is no longer in the store")
    layout = contract.recipe.upload_layout(contract.manifest, key.round, contract.policy.invited)
    announced = (found[0].base_version, found[0].codec, found[0].size)
    expected = (base_version, contract.recipe.codec, layout.size)
    if announced != expected:
        raise Difference(f"update of site '{key.site}' is of version, codec and size {announced}, expected {expected}")


def _adapter(ground: _Ground, version: int, digest: str) -> Adapter:
    """Return one version as it is stored. Raises Difference unless file and row have this digest and agree on the parent."""
    store, name = ground.store, ground.contract.federation
    file = store.read(federations.adapter_file, name, version)
    adapter = Adapter.from_bytes(file)
    _same(f"adapter version {version}", digest, sha256_hex(file))
    recorded, parent = store.read(federations.adapter_digests, name, version)
    _same(f"row of adapter version {version}", recorded, adapter.digest)
    _same(f"parent in the row of adapter version {version}", parent, adapter.parent_digest)
    if adapter.version != version:
        raise Difference(f"adapter version {version} says that it is version {adapter.version}")
    return adapter


def _same(what: str, recorded: str, found: str) -> None:
    if recorded != found:
        raise Difference(f"{what}: recorded digest {recorded[:16] or 'none'}, found {found[:16] or 'none'}")
