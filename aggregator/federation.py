"""One federation as it is served: joins, waits, downloads, evaluations. Reads the clock, asks `rounds`, stores the answer.

Nothing here is the truth: the store is. What this object keeps is a copy of the state, good for as long as the store says that
its revision stands, and the events that wake whoever waits for a change, whichever replica made it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar, TypeVarTuple

import sqlalchemy as sa
import structlog

from aggregator import instructions, joining, rounds
from aggregator.heartbeats import Heartbeats
from aggregator.identity import Caller
from aggregator.store import agents, audit, evaluations, federations
from aggregator.store.database import Watch
from aggregator.store.engine import Store
from shared import protocol
from shared.adapter import Adapter
from shared.contract import Contract, check_told
from shared.errors import InputError, NotEnrolled, NotFound
from shared.layout import Layout

log = structlog.get_logger()
P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """Times and counts that bound what one caller can cost. Times in seconds."""

    identity_s: float = 60.0
    """An agent that called within this time keeps its site's certificate to itself."""
    chunk_wait_s: float = 60.0
    """Longest silence inside an upload, its first message included; a download nobody reads for so long lends its slot."""
    upload_s: float = 3600.0
    """Longest time one upload stream may take."""
    concurrent_uploads: int = 64
    """Updates taken in at the same time, and as many versions sent out; other calls wait before they cost memory. One site
    has at most two of each."""
    keep_rounds: int = 0
    """Rounds whose updates keep their bytes; those of older ones are dropped. 0 keeps all."""

    def __post_init__(self) -> None:
        if self.keep_rounds < 0:
            raise InputError(f"keep_rounds must be 0 (all) or more, got {self.keep_rounds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A site's metrics of one version on its validation cases, or of one `arm` of its comparison on cases that it held out."""

    agent_id: str
    round: int
    version: int
    cases: int
    metrics: dict[str, float]
    arm: str = ""


class Federation:
    """Answers the calls about one federation in a store."""

    def __init__(
        self,
        store: Store,
        name: str,
        limits: ServiceLimits = ServiceLimits(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.limits, self.clock = store, limits, clock
        self.contract: Contract = store.read(federations.contract, name)
        self.name = name
        self._copy: tuple[int, rounds.FederationState] | None = None
        self._load: asyncio.Task[rounds.FederationState] | None = None
        self._next_load: asyncio.Task[rounds.FederationState] | None = None
        self._change = asyncio.Event()
        self._news = asyncio.Event()
        self._draining = False
        self._adapters: dict[int, Adapter] = {}
        self._upload_layout: tuple[int, Layout | None] = 0, None
        self.heartbeats = Heartbeats(store, name, limits.identity_s, clock)

    # what everything here is made of

    async def read(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a reading transaction off the event loop."""
        return await asyncio.to_thread(lambda: self.store.read(work, *args, **kwargs))

    async def write(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write something that nobody decides anything by. Once begun, no cancellation stops a write."""
        return await asyncio.shield(asyncio.to_thread(lambda: self.store.write(work, *args, **kwargs)))

    async def record(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write something that matters to when the round closes."""
        return await asyncio.shield(
            self._change_store(False, lambda: self.store.change(self.name, False, work, *args, **kwargs))
        )

    async def record_checked(
        self,
        check: Callable[[], C],
        done: Callable[[T], None],
        work: Callable[Concatenate[sa.Connection, C, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As `record`, after a check off the event loop: if it raises, nothing is written; else `work` gets what it found. `done`
        hears what was written before anybody is woken by it.
        """

        def change() -> T:
            found = check()
            return self.store.change(self.name, False, work, found, *args, **kwargs)

        return await asyncio.shield(self._change_store(False, change, done))

    async def decide(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write something that every waiting site is to hear of at once."""
        return await asyncio.shield(
            self._change_store(True, lambda: self.store.change(self.name, True, work, *args, **kwargs))
        )

    async def decide_made(
        self, make: Callable[[], tuple[*Ts]], work: Callable[[sa.Connection, *Ts], T]
    ) -> tuple[tuple[*Ts], T]:
        """As `decide`, with arguments that take time to make: off the event loop, before the transaction. Returns both."""

        def change() -> tuple[tuple[*Ts], T]:
            made = make()
            return made, self.store.change(self.name, True, work, *made)

        return await asyncio.shield(self._change_store(True, change))

    async def _change_store(
        self, news: bool, change: Callable[[], T], done: Callable[[T], None] = lambda result: None
    ) -> T:
        try:
            result = await asyncio.to_thread(change)
            done(result)
            return result
        finally:
            self._wake(news)

    def advance(self, before: int, change: Callable[[rounds.FederationState], rounds.FederationState]) -> None:
        """Apply to the copy what one transaction changed that found the revision `before`.

        If the copy is of another revision, somebody else changed something too: it stays, and is read anew when it is asked for.
        """
        if self._copy is not None and self._copy[0] == before:
            self._copy = before + 1, change(self._copy[1])

    def watch(self) -> Watch:
        """Hear of what other replicas change, from now until the watch is closed. Call it on the event loop."""
        loop = asyncio.get_running_loop()

        def heard(federation: str, news: bool) -> None:
            if federation in ("", self.name) and not loop.is_closed():
                loop.call_soon_threadsafe(self._wake, news)

        return self.store.watch(heard)

    def _wake(self, news: bool) -> None:
        """Wake the task that closes rounds and, if it is news, the waiting sites."""
        self._change.set()
        self._change = asyncio.Event()
        if news:
            self._news.set()
            self._news = asyncio.Event()

    async def state(self) -> rounds.FederationState:
        """Return the federation as it stands, at least as new as this call.

        However many ask, the store is read one time after another: who asks while it is being read gets the next reading.
        """
        if self._copy is not None and self.store.glance(self.name) == self._copy[0]:
            return self._copy[1]
        if self._next_load is None:
            self._next_load = asyncio.create_task(self._load_after(self._load))
        return await asyncio.shield(self._next_load)

    async def _load_after(self, before: asyncio.Task[rounds.FederationState] | None) -> rounds.FederationState:
        if before is not None:
            await asyncio.wait({before})
        self._load, self._next_load = self._next_load, None
        revision, changed = await self.read(_state_unless, self.name, self._copy[0] if self._copy else None)
        if changed is not None:
            self._copy = revision, changed
        assert self._copy is not None
        return self._copy[1]

    @property
    def last_state(self) -> rounds.FederationState | None:
        """The state as it was read last, nothing newer being asked for; None before the first time."""
        return self._copy[1] if self._copy else None

    @property
    def next_change(self) -> asyncio.Event:
        """The event that the next write sets; take it before reading the state."""
        return self._change

    @property
    def draining(self) -> bool:
        """Whether the server is on its way out."""
        return self._draining

    def drain(self) -> None:
        """Answer every waiting call now, and let none wait from here on."""
        self._draining = True
        self.heartbeats.drain()
        self._wake(True)

    async def adapter(self, version: int) -> Adapter:
        """Return one version of the global adapter; the last two are kept at hand. Raises NotFound."""
        held = self._adapters.get(version)
        if held is None:
            held = await self.read(federations.adapter, self.name, version)
            self.keep(held)
        return held

    def keep(self, adapter: Adapter) -> None:
        """Have a version at hand that is in the store."""
        self._adapters = dict([*self._adapters.items(), (adapter.version, adapter)][-2:])

    def at_hand(self, digest: str) -> Adapter | None:
        """Return the version with this digest if it is at hand."""
        return next((one for one in self._adapters.values() if one.digest == digest), None)

    def upload_layout(self, number: int) -> Layout:
        """Return what an update of a round holds; the last one asked for is kept at hand."""
        held, layout = self._upload_layout
        if layout is None or held != number:
            layout = self.contract.recipe.upload_layout(self.contract.manifest, number, self.contract.policy.invited)
            self._upload_layout = number, layout
        return layout

    # the calls

    async def join(self, caller: Caller, claim: joining.JoinClaim) -> tuple[rounds.FederationState, int]:
        """Take a site in. Returns the state and the number of patients its weight is made of.

        Raises IncompatibleProtocol, NotFound, NotEnrolled, IdentityInUse or ContractMismatch, each saying what differs.
        """
        protocol.check(claim.protocol_version)
        self.check_name(claim.federation)
        site = await self.member(caller)
        joining.check(self.contract, site, claim)
        now, first = self.clock(), site.phase == "enrolled"
        await self.record(
            joining.write, self.name, caller, claim, now, self.limits.identity_s, self.contract.policy.deadline_s
        )
        log.info(
            "site_joined",
            site=caller.site,
            authenticated=caller.authenticated,
            first=first,
            agent_id=claim.agent_id[:8],
            software_version=claim.software_version[:32],
            training_patients=claim.training_patients,
        )
        state = await self.state()
        return state, state.sites[caller.site].training_patients or claim.training_patients

    async def await_round(
        self, caller: Caller, federation: str, agent_id: str, report: instructions.SiteReport, wait_s: float
    ) -> instructions.Answer:
        """Return what the site is to do: at once if that is news to it, else when it becomes so, or after `wait_s`."""
        self.check_name(federation)
        await self.known(caller)
        await self.heartbeats.note(caller, agent_id, report)
        loop = asyncio.get_running_loop()
        end = loop.time() + (min(wait_s, protocol.MAX_WAIT_S) if wait_s > 0 else 0.0)
        while True:
            news = self._news
            await self.check_certificate(caller.serial, caller.expires_at)
            answer = instructions.instruct(await self.state(), caller.site, report, self.clock())
            left = end - loop.time()
            if left <= 0 or self._draining or instructions.is_news(answer, report):
                return answer
            await passed(news, left)

    async def fetch(self, caller: Caller, federation: str, version: int) -> Adapter:
        """Return one version for a member of the federation."""
        self.check_name(federation)
        await self.member(caller)
        return await self.adapter(version)

    async def report_evaluation(self, caller: Caller, federation: str, evaluation: Evaluation) -> None:
        """Write a site's metrics down. Raises InputError naming a metric that is not on the allow-list."""
        self.check_name(federation)
        await self.member(caller)
        check_told(self.contract.recipe, evaluation.metrics, always=True, arm=evaluation.arm)
        await self.adapter(evaluation.version)  # raises NotFound
        last = (await self.state()).round.number
        if evaluation.round > last:
            raise NotFound(f"round {evaluation.round} has not been opened yet; the last one is round {last}")
        await self.write(_report_evaluation, self.name, caller.site, evaluation, self.clock(), self.limits.identity_s)
        log.info(
            "evaluation_reported",
            site=caller.site,
            round=evaluation.round,
            version=evaluation.version,
            cases=evaluation.cases,
            **({"arm": evaluation.arm} if evaluation.arm else {}),
            **{name: round(value, 4) for name, value in evaluation.metrics.items()},
        )

    # who may call

    def check_name(self, federation: str) -> None:
        """Raise NotFound unless a call means this federation; an empty name does."""
        if federation not in ("", self.name):
            raise NotFound(f"federation '{federation[:64]}' is not served here; this aggregator serves '{self.name}'")

    async def check_certificate(self, serial: str, expires_at: float) -> None:
        """Raise NotEnrolled if a certificate is revoked, or has ended since its connection was made."""
        if 0 < expires_at < self.clock():
            raise NotEnrolled("the certificate has ended; ask for another: site-agent join --site NAME")
        if serial and serial in (await self.state()).revoked:
            raise NotEnrolled(
                f"the certificate with serial number {serial} was revoked; ask for another: site-agent join --site NAME"
            )

    async def known(self, caller: Caller) -> rounds.SiteState:
        """Return the calling site's state, also if it is evicted. Raises NotEnrolled if it is none of this federation's, or its
        certificate is revoked.
        """
        await self.check_certificate(caller.serial, caller.expires_at)
        site = (await self.state()).sites.get(caller.site)
        if site is None:
            raise NotEnrolled(
                f"site '{caller.site}' is not enrolled in federation '{self.name}'; ask its coordinator to enrol it"
            )
        return site

    async def member(self, caller: Caller) -> rounds.SiteState:
        """Return the calling site's state. Raises NotEnrolled if it is none of this federation's, or evicted."""
        site = await self.known(caller)
        if site.phase == "evicted":
            raise NotEnrolled(
                f"site '{caller.site}' was evicted from '{self.name}': {site.reason or 'no reason given'}"
            )
        return site


async def passed(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return when the event happens, or after the time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _state_unless(
    connection: sa.Connection, federation: str, held: int | None
) -> tuple[int, rounds.FederationState | None]:
    """Return the revision, and the state unless `held` is that revision."""
    revision = federations.revision(connection, federation)
    return revision, None if revision == held else federations.state(connection, federation)


def _report_evaluation(
    connection: sa.Connection, federation: str, site: str, report: Evaluation, now: float, identity_s: float
) -> None:
    agents.heard(connection, federation, site, report.agent_id, now, identity_s)
    if not evaluations.report(
        connection, federation, site, report.round, report.version, report.cases, report.metrics, now, report.arm
    ):
        return  # it replaces one that has its line
    told = {"site": site, "round": report.round, "version": report.version, "metrics": sorted(report.metrics)}
    if report.arm:
        told["arm"] = report.arm
    audit.append(connection, federation, now, "evaluation_reported", **told)
