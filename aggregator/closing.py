"""Closing rounds: fix the manifest, compute the result as a pure function of it, write it down once.

Kill this at any instruction and start it anywhere: a round left closing is finished from its manifest, with the same bytes.
"""

import asyncio
from collections.abc import Mapping

import numpy as np
import sqlalchemy as sa
import structlog

from aggregator import manifest, optimisers, payload, results, rounds
from aggregator.aggregation import Tensors
from aggregator.federation import Federation, passed
from aggregator.manifest import RoundManifest
from aggregator.results import Result
from aggregator.store import audit, changes, federations, moments, updates
from aggregator.store import rounds as round_rows
from aggregator.store.changes import Change
from aggregator.store.engine import Store
from aggregator.store.updates import UpdateKey
from shared import memory
from shared.adapter import Adapter
from shared.canonical import sha256_hex
from shared.contract import Contract
from shared.errors import InputError, MedDualLoRAError, StoreUnavailable

log = structlog.get_logger()
LONGEST_PAUSE_S = 10.0
GIVE_BACK_S = 10.0
"""Memory that is freed is kept for so long: rounds may follow each other fast."""
EXACT = 1e-5
"""Above this an exact rule's error is more than float32's rounding."""
LONGEST_WAIT_S = 30.0
"""A round is looked at so often even if nothing is heard: what another replica changed may never have been announced."""


class Closer:
    """Closes every round of a federation when it is due. Each serving process has one; they may race."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._warned = 0
        self._gave_back_at = 0.0

    async def run(self) -> None:
        """Go on until the server drains.

        While the store is away nothing closes, and nothing is lost. A round that cannot be computed is said again and again, and
        stays as it is: sites and coordinators are still answered.
        """
        federation, failures = self._federation, 0
        while not federation.draining:
            change = federation.next_change
            try:
                wait_s = await self._step()
                failures = 0
            except (MedDualLoRAError, np.linalg.LinAlgError) as error:
                failures += 1
                wait_s = min(LONGEST_PAUSE_S, 0.25 * 2.0 ** min(failures, 10))
                event = "closing_postponed" if isinstance(error, StoreUnavailable) else "closing_failed"
                log.error(event, error=str(error), retry_in_s=wait_s)
            if wait_s > 0:
                await self._give_back_memory()
                await passed(change, wait_s)

    async def _give_back_memory(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._gave_back_at >= GIVE_BACK_S:
            self._gave_back_at = now
            await asyncio.to_thread(memory.give_back)

    async def _step(self) -> float:
        """Do what is to be done about the round. Returns seconds until there may be more to do, 0 for at once.

        A round whose manifest is fixed is finished in a paused federation too.
        """
        federation = self._federation
        state, now = await federation.state(), federation.clock()
        if state.round.phase == "closing":
            await self._finish(state.round.number)
        elif more := rounds.replacements(state, now):
            await self._invite_more(state, more)
        elif rounds.is_due(state, now):
            await self._begin(state)
        else:
            self._warn_overdue(state, now)
            moment = rounds.next_moment(state, now)
            return LONGEST_WAIT_S if moment is None else min(max(moment - now, 0.001), LONGEST_WAIT_S)
        return 0.0

    def _warn_overdue(self, state: rounds.FederationState, now: float) -> None:
        if rounds.is_overdue(state, now) and self._warned != state.round.number:
            self._warned = state.round.number
            log.warning("round_overdue", round=self._warned, reason=rounds.waiting_for(state, now))

    def _warn_truncated(self, number: int, figures: Mapping[str, float]) -> None:
        """An exact rule is exact as long as the rank of its residual is enough."""
        missed = figures.get("aggregation_error", 0.0)
        if self._federation.contract.recipe.method.rule == "exact" and missed > EXACT:
            rank = self._federation.contract.manifest.metadata.residual_rank
            log.warning("residual_truncated", round=number, residual_rank=rank, aggregation_error=round(missed, 9))

    async def _invite_more(self, state: rounds.FederationState, more: tuple[str, ...]) -> None:
        """Ask further sites in place of those that were evicted or did not answer; the round gets a new deadline."""
        federation, number = self._federation, state.round.number
        deadline_at = federation.clock() + federation.contract.policy.deadline_s
        if await federation.decide(invite_more, state, more, deadline_at):
            log.warning("round_invited_more", round=number, sites=more, missing=rounds.missing(state))

    async def _begin(self, state: rounds.FederationState) -> None:
        federation, recipe = self._federation, self._federation.contract.recipe
        parent = await federation.adapter(state.round.base_version)
        decided = manifest.of_round(state, recipe, parent.digest, state.last_version + 1)
        if await federation.decide(begin_closing, state, decided):
            log.info(
                "round_closing",
                round=decided.round,
                sites=[e.site for e in decided.entries],
                left_out=decided.left_out,
                input_digest=decided.input_digest[:12],
            )
            await self._close(decided)

    async def _finish(self, number: int) -> None:
        """Close a round that was left closing."""
        federation = self._federation
        record = await federation.read(round_rows.record, federation.name, number)
        if record.state.phase == "closing":
            await self._close(RoundManifest.from_bytes(record.manifest))

    async def _close(self, decided: RoundManifest) -> None:
        federation, number = self._federation, decided.round
        parent = await federation.adapter(decided.parent_version)

        def make() -> tuple[Contract, RoundManifest, Result, float]:
            result = compute(federation.store, federation.contract, decided, parent)
            return federation.contract, decided, result, federation.clock()

        try:
            (_, _, result, _), closed = await federation.decide_made(make, write_result)
        except InputError:
            record = await federation.read(round_rows.record, federation.name, number)
            if record.state.phase != "closing":
                return  # another replica was faster by so much that what it was made of is purged
            raise
        version = result.version
        if not closed:
            _compare(await federation.read(round_rows.record, federation.name, number), version)
            return
        federation.keep(version)
        log.info(
            "round_closed",
            round=number,
            version=version.version,
            digest=version.digest[:12],
            sites_count=len(decided.entries),
            left_out=decided.left_out,
            aggregation_error=round(result.figures.get("aggregation_error", 0.0), 6),
        )
        self._warn_truncated(number, result.figures)
        if (keep := federation.limits.keep_rounds) and (
            purged := await federation.write(updates.purge, federation.name, keep, federation.clock())
        ):
            log.info("updates_purged", rounds=purged)
        if (await federation.state()).phase == "finished":
            log.info("federation_finished", rounds=number, version=version.version, digest=version.digest)


def compute(store: Store, contract: Contract, decided: RoundManifest, parent: Adapter) -> Result:
    """Return the round's result: a pure function of the manifest and the immutable rows it names.

    Raises InputError naming the update whose stored bytes are not those its digest was given for.
    """
    name, number = decided.federation, decided.round
    layout = contract.recipe.upload_layout(contract.manifest, number, contract.policy.invited)

    def deltas() -> dict[str, Tensors]:
        return {
            entry.site: payload.tensors(
                layout, updates.checked_pieces(store, UpdateKey(name, number, entry.site, entry.digest))
            )
            for entry in decided.entries
        }

    weight = {entry.site: entry.weight for entry in decided.entries}
    before = store.read(changes.find, name, parent.version)
    owed = before.residual() if before else {}
    keeps = optimisers.keeps_moments(contract.recipe)
    held = store.read(moments.find, name, parent.version) if keeps else {}
    return results.make(contract, number, decided.version, parent, deltas, weight, owed, held)


def invite_more(
    connection: sa.Connection, seen: rounds.FederationState, more: tuple[str, ...], deadline_at: float
) -> bool:
    """Ask further sites to take part in the open round and move its deadline, so that they have their time.

    Returns False, changing nothing, if anything that was `seen` has changed: decide again. A clock that has not started stands
    still.
    """
    if not _is_as(connection, seen):
        return False
    state = seen.round
    until = None if state.deadline_at is None else max(state.deadline_at, deadline_at)
    round_rows.invite(connection, seen.name, state.number, sorted({*state.invited, *more}), until)
    return True


def begin_closing(connection: sa.Connection, seen: rounds.FederationState, decided: RoundManifest) -> bool:
    """Fix what the round is made of.

    Returns False, changing nothing, if anything that was `seen` has changed: decide again. So no accepted update is ever lost,
    none counts whose site had left, and a manifest says of every site what is true of it.
    """
    return _is_as(connection, seen) and round_rows.begin_closing(
        connection, seen.name, decided.round, decided.to_bytes(), decided.input_digest
    )


def _is_as(connection: sa.Connection, seen: rounds.FederationState) -> bool:
    """Return whether the federation is still the one that was seen; until this transaction ends it stays so."""
    round_rows.lock(connection, seen.name, seen.round.number)
    return federations.state(connection, seen.name).basis == seen.basis


def write_result(
    connection: sa.Connection,
    contract: Contract,
    decided: RoundManifest,
    result: Result,
    now: float,
) -> bool:
    """Close the round and open the next in one transaction. Returns False if the round was closed already."""
    name, version = contract.federation, result.version
    kept = moments.to_bytes(result.moments) if optimisers.keeps_moments(contract.recipe) else None
    final = manifest.with_result(decided, version.digest, "" if kept is None else sha256_hex(kept))
    if not round_rows.close(connection, name, decided.round, final.to_bytes(), version.version, result.figures, now):
        return False
    audit.append(
        connection,
        name,
        now,
        "round_closed",
        round=decided.round,
        version=version.version,
        digest=version.digest,
        inputs=decided.input_digest,
        sites=[entry.site for entry in decided.entries],
        left_out=dict(decided.left_out),
    )
    federations.add_adapter(connection, name, version, now)
    if result.change is not None:
        changes.add(connection, name, Change.of(version.version, decided.round, result.change))
    if kept is not None:
        moments.add(connection, name, version.version, kept)
    round_rows.go_on(connection, name, version.version, contract.policy.rounds, contract.policy.deadline_s, now)
    return True


def _compare(record: round_rows.RoundRecord, version: Adapter) -> None:
    """Log an error if whoever closed the round computed something else. A round may have been given up meanwhile."""
    if record.state.phase != "closed":
        return
    theirs = RoundManifest.from_bytes(record.manifest).result_digest
    if theirs != version.digest:
        log.error("result_differs", round=record.state.number, stored=theirs, computed=version.digest)
