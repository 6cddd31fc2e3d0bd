"""Recompute closed rounds from the stored updates and compare every digest on the way: the first difference is the finding.

The weighted mean is element-wise in a fixed order, so the bytes must be equal on any machine. What a rule makes by QR and SVD may
differ in its last bits from what the machine made that closed the round: so far as it does, that is said and is no difference.
Of a round whose update bytes were dropped by the retention setting the manifest is compared with everything that is left, and
that is what is reported. Of rounds that are not closed, what they hold and how they began is compared: accepted updates, the
draw, the first version.

What has nothing to be compared with is not seen: times, phases of sites, agents, reasons, metrics and diagnostics; unfinished
uploads; an accepted update of an open or abandoned round that was removed with its bytes, or marked as unfinished; who else was
asked in place of missing sites, if it was the next of the draw; which version a finished federation was rolled back to. Nor is
the contract: each site compares it with its own copy.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from aggregator import aggregation, gate, manifest, payload, recomputation, rounds
from aggregator.manifest import ManifestEntry, RoundManifest
from aggregator.recomputation import Difference, Ground
from aggregator.rounds import EVICTED, QUARANTINED, SiteState
from aggregator.store import federations, schema, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.rounds import RoundRecord
from aggregator.store.updates import UpdateKey
from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import InputError, MedDualLoRAError, NotFound
from shared.recipe import Recipe

ROUNDED = 1e-6
"""Share of an update's norm by which two machines may differ."""


@dataclass(frozen=True, slots=True)
class RoundCheck:
    """What verifying one round found. `difference` is empty if everything agrees.

    `purged`: the update bytes are gone, so that the manifest was compared and the result not recomputed. A round that is
    not closed is not recomputed either. `rounding`: the result was recomputed to the same numbers but for the last bits of what
    QR and SVD make.
    """

    round: int
    phase: str
    updates: int
    version: int | None
    digest: str
    difference: str
    purged: bool = False
    rounding: bool = False

    @property
    def finding(self) -> str:
        """The finding in words."""
        if self.difference:
            return f"DIFFERS: {self.difference}"
        if self.phase != "closed":
            return self.phase
        if self.purged:
            return "manifest chain ok, update bytes purged by retention: result not recomputable"
        if self.rounding:
            return (
                f"ok, {self.digest[:16]}: recomputed here it is equal to rounding, not bit for bit; the last bits of what QR and "
                "SVD make depend on the machine"
            )
        return f"ok, {self.digest[:16]}"


def verify(store: Store, federation: str, numbers: Sequence[int] | None = None) -> list[RoundCheck]:
    """Check these rounds, or all: then also that no round is missing and every version has its round.

    Raises InputError for a round that does not exist or is not closed.
    """
    ground = _look(store, federation)
    for number in numbers or ():
        if number not in ground.records or ground.records[number].state.phase != "closed":
            closed = [n for n, r in ground.records.items() if r.state.phase == "closed"]
            raise InputError(
                f"round {number} is not closed; closed rounds are {', '.join(map(str, closed)) or 'none yet'}"
            )
    checks = [_check(ground, ground.records[n]) for n in (ground.records if numbers is None else numbers)]
    return checks if numbers is not None else sorted(checks + _gaps(ground), key=lambda check: check.round)


def _look(store: Store, federation: str) -> Ground:
    def read(connection: sa.Connection) -> Ground:
        phase, version, seed = federations.standing(connection, federation)
        return Ground(
            store=store,
            contract=federations.contract(connection, federation),
            sites=federations.enrolled(connection, federation),
            records={r.state.number: r for r in round_rows.records(connection, federation)},
            phase=phase,
            version=version,
            sampling_seed=seed,
            last_version=federations.last_version(connection, federation),
            strays=_strays(connection, federation),
        )

    return store.read(read)


def _strays(connection: sa.Connection, federation: str) -> list[tuple[int, str]]:
    chunks, table = schema.chunks, schema.updates
    update = sa.exists().where(*(table.c[name] == chunks.c[name] for name in ("federation", "round", "site", "digest")))
    found = (
        sa.select(chunks.c.round, chunks.c.site).where(chunks.c.federation == federation, sa.not_(update)).distinct()
    )
    return [(number, site) for number, site in connection.execute(found.order_by(chunks.c.round, chunks.c.site))]


def _gaps(ground: Ground) -> list[RoundCheck]:
    """Return a finding for each round that is not there: a gap in the numbers, or something that only a round can have left."""
    records, end = ground.records, max(ground.records, default=0) + 1
    missing = [n for n in range(1, end) if n not in records]
    if missing:
        return [_missing(n, f"round {n} is not in the store") for n in missing]
    made = {record.version for record in records.values()}
    lost = [v for v in range(1, ground.last_version + 1) if v not in made]
    if lost:
        return [_missing(end, f"version {v} is in the store, the round that made it is not", v) for v in lost]
    closed, agreed = sum(r.state.phase == "closed" for r in records.values()), ground.contract.policy.rounds
    if not _is_under_way(records.get(end - 1)) and (ground.phase != "finished" or closed < agreed):
        return [
            _missing(end, f"no round is open, and {closed} of {agreed} are closed: round {end} is not in the store")
        ]
    if not 0 <= ground.version <= ground.last_version:
        return [_missing(end, f"version {ground.version} is said to be the current one and is not in the store")]
    return [
        _missing(number, f"bytes of site '{site}' for round {number}, which is not in the store")
        for number, site in ground.strays
        if number not in records
    ]


def _missing(number: int, difference: str, version: int | None = None) -> RoundCheck:
    return RoundCheck(number, "missing", 0, version, "", difference)


def _is_under_way(record: RoundRecord | None) -> bool:
    return record is not None and record.state.phase in ("open", "closing")


def _check(ground: Ground, record: RoundRecord) -> RoundCheck:
    state, purged = record.state, record.purged_at is not None
    digest, difference, rounding = "", "", False
    try:
        if state.phase == "closed":
            digest, rounding = _check_closed(ground, record)
        else:
            _check_unclosed(ground, record)
        _check_start(ground, record)
        _check_invited(ground, record)
        for number, site in ground.strays:
            if number == state.number:
                raise Difference(f"there are bytes of site '{site}' that belong to no update")
    except (Difference, MedDualLoRAError) as error:
        difference = str(error)
        now = _look(ground.store, ground.contract.federation)
        if now.records[state.number].purged_at is not None and not purged:  # its bytes were dropped while we read them
            return _check(now, now.records[state.number])
    version = record.version if state.phase == "closed" else None
    return RoundCheck(state.number, state.phase, len(state.accepted), version, digest, difference, purged, rounding)


def _check_start(ground: Ground, record: RoundRecord) -> None:
    """Compare the version a round started from with the one that was current then, and is now if the round is under way."""
    number, version = record.state.number, record.state.base_version
    before = ground.records.get(number - 1)
    if number == 1 or (before is not None and before.state.phase == "closed"):
        made = 0 if before is None else before.version
        if version != made:
            raise Difference(f"round {number} starts from version {version}, the round before it made version {made}")
    elif not 0 <= version <= max((r.version or 0 for n, r in ground.records.items() if n < number), default=version):
        raise Difference(f"round {number} starts from version {version}, which was not there")
    if _is_under_way(record):
        if ground.version != version:
            raise Difference(
                f"round {number} starts from version {version}, the federation's row says that version {ground.version} is "
                "the current one"
            )
        if ground.phase not in ("running", "paused"):
            raise Difference(f"round {number} is {record.state.phase}, the federation's row says '{ground.phase}'")


def _check_invited(ground: Ground, record: RoundRecord) -> None:
    """Compare who was invited with the draw. Only sites that were evicted, then or since, may have been passed over."""
    number, invited, asked = record.state.number, record.state.invited, ground.contract.policy.invited
    if list(invited) != sorted(set(invited)) or not ground.sites.keys() >= set(invited):
        raise Difference(f"round {number}: the invited are not sites of the federation, sorted, each once")
    order = rounds.draw(ground.sites, ground.sampling_seed, number)
    stayed = [name for name in order if ground.sites[name].phase != "evicted"]
    reached = max([asked, *(order.index(name) + 1 for name in invited)])
    for name in order[:reached]:
        if name in stayed and name not in invited:
            raise Difference(f"round {number}: site '{name}' was drawn and is not invited")
    if len(invited) < min(asked, len(stayed)):
        raise Difference(f"round {number}: {len(invited)} sites are invited, the draw is of {asked}")


def _check_unclosed(ground: Ground, record: RoundRecord) -> None:
    """Compare what a round without a result holds. Its accepted updates stay as they are, whatever becomes of the round."""
    number, phase = record.state.number, record.state.phase
    if phase not in ("open", "closing", "abandoned"):
        raise Difference(f"round {number} is marked '{phase}', which no round is")
    if record.version is not None or (record.manifest and phase != "closing"):
        raise Difference(f"round {number} is marked {phase} and has what only a closed round has")
    if record.purged_at is not None and phase != "abandoned":
        raise Difference(f"round {number} is marked {phase} and as purged")
    if phase == "closing":
        decided, _ = _check_manifest(ground, record, ground.last_version + 1)
        recomputation.same(f"result of round {number}", decided.result_digest, "")
        recomputation.same(f"moments of round {number}", decided.moments_digest, "")
    elif record.input_digest:
        raise Difference(f"round {number} is marked {phase} and has the digest of a manifest")
    for site in sorted(record.state.accepted):
        _check_update(ground, record, site)


def _check_closed(ground: Ground, record: RoundRecord) -> tuple[str, bool]:
    """Return the digest of the round's result, recomputed unless the bytes were purged, and whether that gave other last bits.

    Raises Difference.
    """
    decided, parent = _check_manifest(ground, record, record.version)
    for site in sorted(record.state.accepted):
        _check_update(ground, record, site)
    return recomputation.result(ground, decided, parent, purged=record.purged_at is not None)


def _check_manifest(ground: Ground, record: RoundRecord, version: int | None) -> tuple[RoundManifest, Adapter]:
    """Return the manifest and the version the round started from, compared with the rows. `version`: what the result becomes."""
    decided = RoundManifest.from_bytes(record.manifest)
    recomputation.same("manifest", record.input_digest, decided.input_digest)
    _check_decision(ground.contract, record, decided, version)
    parent = recomputation.adapter(ground, decided.parent_version, decided.parent_digest)
    if decided.parent_version == 0:
        recomputation.same("version 0", ground.contract.adapter_digest, parent.digest)
    _check_participants(ground, record, decided)
    patients = {entry.site: entry.training_patients for entry in decided.entries}
    weights = aggregation.weights(patients, decided.weighting, decided.weight_cap)
    for entry in decided.entries:
        _check_entry(record, entry, weights[entry.site])
    return decided, parent


def _check_decision(contract: Contract, record: RoundRecord, decided: RoundManifest, version: int | None) -> None:
    """Compare what the manifest says about the round as a whole with the round's row and the contract."""
    expected = {
        "federation": contract.federation,
        "round": record.state.number,
        **manifest.settings(contract.recipe),
        **_written(contract.recipe, decided),
        "parent_version": record.state.base_version,
        "version": version,
    }
    for name, value in expected.items():
        if getattr(decided, name) != value:
            raise Difference(f"manifest: {name} is {getattr(decided, name)}, expected {value}")
    if decided.to_bytes() != record.manifest:
        raise Difference("manifest: it does not have the form it was written in")


def _written(recipe: Recipe, decided: RoundManifest) -> dict[str, str]:
    """Return how updates and change were written, unless the manifest is from before it said so."""
    if not (decided.recipe or decided.codec or decided.broadcast_codec):
        return {}
    return {"recipe": recipe.name, "codec": recipe.codec, "broadcast_codec": recipe.broadcast_codec}


def _check_participants(ground: Ground, record: RoundRecord, decided: RoundManifest) -> None:
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
        recomputation.same(f"update of site '{site}', set aside", digest, found)
    for site, reason in decided.left_out.items():
        evicted = reason.startswith(EVICTED)
        if evicted != _was_evicted(ground.sites[site], reason) or (
            not evicted and (reason == "not invited") != (site not in invited)
        ):
            raise Difference(f"manifest: site '{site}' was left out as '{reason}', which its row does not say")
        out = reason.startswith((EVICTED, QUARANTINED))
        if site in decided.set_aside and not out:
            raise Difference(
                f"manifest: the update of site '{site}' is set aside, and the site neither evicted nor quarantined"
            )
    _check_quarantined(ground.contract.recipe.norm_gate, record, decided)


def _check_quarantined(most: float, record: RoundRecord, decided: RoundManifest) -> None:
    """Compare whose update was quarantined with what the gate makes of the norms in the rows."""
    arrived = {
        site: update.norms
        for site, update in record.state.accepted.items()
        if not decided.left_out.get(site, "").startswith(EVICTED)
    }
    expected = gate.too_large(arrived, most)
    said = {
        site: reason.removeprefix(f"{QUARANTINED}: ")
        for site, reason in decided.left_out.items()
        if reason.startswith(QUARANTINED)
    }
    for site in sorted(said.keys() | expected.keys()):
        if said.get(site) != expected.get(site):
            raise Difference(
                f"manifest: it says of the quarantine of site '{site}': {said.get(site, 'none')}; the norms in the rows say: "
                f"{expected.get(site, 'none')}"
            )


def _was_evicted(site: SiteState, reason: str) -> bool:
    return site.phase == "evicted" and reason == (f"{EVICTED}: {site.reason}" if site.reason else EVICTED)


def _check_entry(record: RoundRecord, entry: ManifestEntry, weight: float) -> None:
    """Compare one site's entry with its update's row."""
    site, accepted = entry.site, record.state.accepted.get(entry.site)
    if accepted is None:
        raise Difference(f"update of site '{site}' is in the manifest but not in the store")
    recomputation.same(f"update of site '{site}'", entry.digest, accepted.digest)
    if (entry.training_patients, entry.weight) != (accepted.training_patients, weight):
        raise Difference(
            f"weight of site '{site}' is {entry.weight:.6g} for {entry.training_patients} patients in the manifest, "
            f"{weight:.6g} for {accepted.training_patients} patients by the updates"
        )


def _check_update(ground: Ground, record: RoundRecord, site: str) -> None:
    """Compare an accepted update with what is fixed for its site and round and, unless they were purged, with its bytes."""
    state, accepted = record.state, record.state.accepted[site]
    if site not in state.invited or site not in ground.sites:
        raise Difference(f"update of site '{site}' is accepted, and the site was not invited")
    if accepted.training_patients != ground.sites[site].training_patients:
        raise Difference(
            f"site '{site}' has {ground.sites[site].training_patients} training patients, its update says "
            f"{accepted.training_patients}"
        )
    key = UpdateKey(ground.contract.federation, state.number, site, accepted.digest)
    _check_header(ground, key, state.base_version)
    held = ground.store.read(updates.committed, key)
    if record.purged_at is not None:
        if held:
            raise Difference(f"round {state.number} is marked as purged and holds {held} bytes of site '{site}'")
        return
    hashed, size = hashlib.sha256(), 0
    for piece in updates.pieces(ground.store, key):
        if not piece:
            break  # no store writes such a chunk, and the next one would be itself
        hashed.update(piece)
        size += len(piece)
    recomputation.same(f"bytes of the update of site '{site}'", accepted.digest, hashed.hexdigest())
    if size != held:
        raise Difference(f"bytes of the update of site '{site}': {size}, the rows of its chunks say {held}")
    _check_norms(ground, key, state.base_version, accepted.norms)


def _check_norms(ground: Ground, key: UpdateKey, base_version: int, held: Mapping[str, float]) -> None:
    """Compare how large the row says an update is with its bytes."""
    recipe = ground.contract.recipe
    found: Mapping[str, float] = {}
    if recipe.norm_gate:
        layout = recipe.upload_layout(ground.contract.manifest, key.round, ground.contract.policy.invited)
        before = ground.store.read(federations.adapter, ground.contract.federation, base_version).tensors
        found = gate.norms(recipe.rule, before, payload.tensors(layout, updates.pieces(ground.store, key)))
    if held.keys() != found.keys() or any(
        not math.isclose(held[part], found[part], rel_tol=ROUNDED, abs_tol=ROUNDED) for part in found
    ):
        raise Difference(f"update of site '{key.site}' has norms {dict(found)}, its row says {dict(held)}")


def _check_header(ground: Ground, key: UpdateKey, base_version: int) -> None:
    """Compare what an update was announced as with what the round takes."""
    contract, found = ground.contract, ground.store.read(updates.find, key)
    if found is None:
        raise NotFound(f"update of site '{key.site}' is no longer in the store")
    layout = contract.recipe.upload_layout(contract.manifest, key.round, contract.policy.invited)
    announced = (found[0].base_version, found[0].codec, found[0].size)
    expected = (base_version, contract.recipe.codec, layout.size)
    if announced[:2] != expected[:2] or not layout.fits(found[0].size):
        raise Difference(f"update of site '{key.site}' is of version, codec and size {announced}, expected {expected}")
