"""Recompute closed rounds from the stored updates and compare every digest on the way: the first difference is the finding.

The weighted mean is element-wise in a fixed order, so the bytes must be equal on any machine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator import aggregation, closing
from aggregator.manifest import RoundManifest
from aggregator.store import federations, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.rounds import RoundRecord
from aggregator.store.updates import UpdateKey
from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import InputError, MedDualLoRAError


class Difference(Exception):
    """What is stored is not what was recomputed."""


@dataclass(frozen=True, slots=True)
class RoundCheck:
    """What verifying one round found. `difference` is empty if everything agrees; a round not closed is not checked."""

    round: int
    phase: str
    updates: int
    version: int | None
    digest: str
    difference: str


def verify(store: Store, federation: str, numbers: Sequence[int] | None = None) -> list[RoundCheck]:
    """Check these rounds, or all. Raises InputError for a round that does not exist or is not closed."""
    contract = store.read(federations.contract, federation)
    records = {r.state.number: r for r in store.read(round_rows.records, federation)}
    for number in numbers or ():
        if number not in records or records[number].state.phase != "closed":
            closed = [n for n, r in records.items() if r.state.phase == "closed"]
            raise InputError(
                f"round {number} is not closed; closed rounds are {', '.join(map(str, closed)) or 'none yet'}"
            )
    return [_check(store, contract, records[n]) for n in (records if numbers is None else numbers)]


def _check(store: Store, contract: Contract, record: RoundRecord) -> RoundCheck:
    number, phase = record.state.number, record.state.phase
    if phase != "closed":
        return RoundCheck(number, phase, len(record.state.accepted), None, "", "")
    digest, difference = "", ""
    try:
        digest = _recompute(store, contract, record)
    except (Difference, MedDualLoRAError) as error:
        difference = str(error)
    return RoundCheck(number, phase, len(record.state.accepted), record.version, digest, difference)


def _recompute(store: Store, contract: Contract, record: RoundRecord) -> str:
    decided = RoundManifest.from_bytes(record.manifest)
    _same("manifest", record.input_digest, decided.input_digest)
    parent = _adapter(store, contract, decided.parent_version, decided.parent_digest)
    if decided.parent_version == 0:
        _same("version 0", contract.adapter_digest, parent.digest)
    _check_entries(store, record, decided)
    result, _ = closing.compute(store, contract, decided, parent)
    _same(f"result of round {decided.round}", decided.result_digest, result.digest)
    stored = _adapter(store, contract, decided.version, decided.result_digest)
    _same(f"parent of version {decided.version}", stored.parent_digest, parent.digest)
    return result.digest


def _check_entries(store: Store, record: RoundRecord, decided: RoundManifest) -> None:
    accepted = record.state.accepted
    named = {entry.site for entry in decided.entries}
    for site in sorted(accepted.keys() - named - decided.left_out.keys()):
        raise Difference(f"update of site '{site}' is accepted but stands in no manifest")
    weights = aggregation.weights({e.site: e.training_patients for e in decided.entries}, decided.weighting)
    for entry in decided.entries:
        if entry.site not in accepted:
            raise Difference(f"update of site '{entry.site}' is in the manifest but not in the store")
        _same(f"update of site '{entry.site}'", entry.digest, accepted[entry.site].digest)
        if (entry.training_patients, entry.weight) != (accepted[entry.site].training_patients, weights[entry.site]):
            raise Difference(f"weight of site '{entry.site}' is {entry.weight}, its update says {weights[entry.site]}")
        hashed = hashlib.sha256()
        for piece in updates.pieces(store, UpdateKey(decided.federation, decided.round, entry.site, entry.digest)):
            hashed.update(piece)
        _same(f"bytes of the update of site '{entry.site}'", entry.digest, hashed.hexdigest())


def _adapter(store: Store, contract: Contract, version: int, digest: str) -> Adapter:
    adapter = store.read(federations.adapter, contract.federation, version)
    _same(f"adapter version {version}", digest, adapter.digest)
    return adapter


def _same(what: str, recorded: str, found: str) -> None:
    if recorded != found:
        raise Difference(f"{what}: recorded digest {recorded[:16]}, found {found[:16]}")
