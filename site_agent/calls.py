"""Calls to the aggregator, whatever they are about: every attempt with a deadline, an id, a log event and its lines of the egress
ledger, and another one until it is answered.

A retry repeats the same idempotency key, so a lost reply costs nothing. What says something about the site's data is in the ledger,
durably, before it is handed to the network.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from shared import status
from shared.errors import AggregatorUnreachable
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, MESSAGE_BYTES, SITE_KEY
from shared.rpc import CallRecord, new_id
from shared.tls import TlsFiles
from site_agent import wire
from site_agent.connection import Connection, Stub, is_transient
from site_agent.ledger import Leaving, Ledger

log = structlog.get_logger()

T = TypeVar("T")
CALL_TIMEOUT_S = 30.0
MIN_RATE_BYTES_PER_S = 16_000
"""Slowest uplink a transfer's deadline allows for."""
FIRST_RETRIES_S = 600.0
SMALLEST_CHUNK_BYTES = 1 << 16


def retry_delay_s(attempt: int, elapsed_s: float, rng: random.Random) -> float:
    """Return the wait after failure number `attempt` (from 0) of an outage that has lasted `elapsed_s`: doubling with full
    jitter, at most 5 s in the first ten minutes, then at most 60 s."""
    cap = 5.0 if elapsed_s < FIRST_RETRIES_S else 60.0
    return rng.uniform(0.1, min(cap, 0.2 * 2.0 ** min(attempt, 12)))


Durably = Callable[[Callable[[], int]], Awaitable[int]]


async def at_once(write: Callable[[], int]) -> int:
    """Write once; a disk that is full is the caller's error."""
    return write()


class Calls:
    """One site's. Each is repeated until it succeeds, is refused, or nothing was heard for `give_up_after_s`.

    `call_timeout_s` is how long the aggregator may be silent where it should answer or take bytes. `same_contract` is awaited,
    with the number of the attempt, before anything is sent that says something of the site's data, and raises if it may not be.
    `durably` writes a line of the ledger, however long its disk is full: until it is written nothing is sent. `advice`: what to do
    when nobody answers, for the log. `say` takes a sentence for a person, once for each outage and its end.
    """

    def __init__(
        self,
        address: str,
        tls: TlsFiles | None,
        ledger: Ledger,
        *,
        plain_site: str,
        seed: str,
        give_up_after_s: float,
        call_timeout_s: float,
        same_contract: Callable[[int], Awaitable[None]],
        durably: Durably,
        advice: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        self._address, self._ledger, self._durably, self._advice = address, ledger, durably, advice
        self.connection = Connection(address, tls, call_timeout_s)
        self._identity = ((SITE_KEY, plain_site),) if tls is None else ()
        self._give_up_after_s, self.call_timeout_s = give_up_after_s, call_timeout_s
        self._same_contract, self._say = same_contract, say
        self._away_since = 0.0
        """Since when nobody answers (time.monotonic), once that was said; 0 while somebody does."""
        self._rng = random.Random(seed)
        self.site, self.federation = plain_site, ""
        """What events are about; Join says it."""

    async def unary(
        self,
        method: str,
        request: Any,
        leaving: Leaving | None = None,
        holds_s: float = 0.0,
        give_up_after_s: float = math.inf,
    ) -> Any:
        """Make a call that the aggregator may hold for so long before it answers. `leaving`: what it says of the site's data."""

        async def once(stub: Stub, options: dict[str, Any], record: CallRecord) -> Any:
            record.count_up(request)
            answer = await getattr(stub, method)(request, **options)
            reply = wire.read(method, answer, MESSAGE_BYTES)
            record.count_down(reply)
            return reply

        timeout_s = self.call_timeout_s + holds_s
        return await self.until_answered(
            method, lambda attempt: self.attempt(method, attempt, timeout_s, once, leaving), give_up_after_s
        )

    async def until_answered(
        self,
        method: str,
        once: Callable[[int], Awaitable[T]],
        give_up_after_s: float = math.inf,
        durable: Callable[[], int] = lambda: 0,
    ) -> T:
        """Try until it succeeds, an error says that trying again is useless, or the outage lasts too long.

        An attempt that found or left more bytes `durable` than the one before was no part of the outage.
        """
        give_up_after_s = min(give_up_after_s, self._give_up_after_s)
        heard_at, failures, held = time.monotonic(), 0, durable()
        attempt = 0
        while True:
            try:
                done = await once(attempt)
                self._back()
                return done
            except grpc.aio.AioRpcError as error:
                if not is_transient(error):
                    raise (status.error_of(error) or _unexpected(method, error)) from error
                if durable() > held:
                    heard_at, failures, held = time.monotonic(), 0, durable()
                await self._wait(method, error, failures, time.monotonic() - heard_at, give_up_after_s)
            attempt += 1
            failures += 1

    async def attempt(
        self,
        method: str,
        attempt: int,
        timeout_s: float,
        call: Callable[[Stub, dict[str, Any], CallRecord], Awaitable[T]],
        leaving: Leaving | None = None,
    ) -> T:
        """Make one attempt with an id of its own, and write its event however it ends; of one that says something of the site's
        data, the contract is compared and what is `leaving` is in the ledger before."""
        line, bound = 0, leaving is not None and method != "Join"
        if bound:
            await self._same_contract(attempt)
        if leaving is not None:
            line = await self._durably(lambda: self._ledger.leaving(method, attempt, leaving))
        record = CallRecord("site", method, new_id(), attempt, self.site, self.federation)
        metadata = (*self._identity, (CALL_ID_KEY, record.call_id), (ATTEMPT_KEY, str(attempt)))
        code, said = "OK", ""
        try:
            if bound:  # the connection may have gone while the ledger's disk was full; no await from here to its use
                await self._same_contract(attempt)
            async with self.connection.use() as dialled:
                record.connection = dialled.name
                return await call(dialled.stub, {"timeout": timeout_s, "metadata": metadata}, record)
        except grpc.aio.AioRpcError as error:
            code, said = error.code().name, error.details() or ""
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as error:
            code, said = "REFUSED_HERE", f"{type(error).__name__}: {error}"
            raise
        finally:
            record.finish(code, said)
            self._enter(line, record, code)

    def _enter(self, line: int, record: CallRecord, code: str) -> None:
        """Complete a call's lines of the ledger. Where they cannot be written, its first line stands for what may have left."""
        _, size, payload = record.up
        try:
            if line:
                self._ledger.left(line, record.method, code, size, payload)
            else:
                self._ledger.control(record.method, size)
        except OSError as error:
            log.warning("ledger_not_completed", rpc=record.method, line=line, error=error.strerror)

    async def _wait(
        self, method: str, error: grpc.aio.AioRpcError, failures: int, elapsed_s: float, give_up_after_s: float
    ) -> None:
        left = give_up_after_s - elapsed_s
        refused, advice = status.error_of(error) is not None, self._advice()
        if left <= 0:
            raise AggregatorUnreachable(
                f"no answer from {self._address} for {elapsed_s:.0f} s ({error.code().name}: {error.details()}); "
                f"check the address and the network{advice and f' ({advice})'}, then start the agent again: nothing is lost"
            ) from error
        delay = min(retry_delay_s(failures, elapsed_s, self._rng), left)
        log.warning(
            "call_to_repeat" if refused else "aggregator_unreachable",
            address=self._address,
            rpc=method,
            code=error.code().name,
            error=error.details(),
            retry_in_s=round(delay, 2),
            gives_up_in_s=round(left),
            **({"advice": advice} if advice and not refused else {}),
        )
        if not refused:
            self._away(error, time.monotonic() - elapsed_s)
        await asyncio.sleep(delay)

    def _away(self, error: grpc.aio.AioRpcError, since: float) -> None:
        """Say, once for each outage, that nobody answers."""
        if not self._away_since:
            self._away_since = since
            self._say(
                f"no answer from {self._address} ({error.code().name}: {error.details()}). The agent tries again by itself, and "
                "nothing is lost; `site-agent doctor` with the same options says why"
            )

    def _back(self) -> None:
        """Say that an outage is over, if there was one."""
        if self._away_since:
            self._say(f"{self._address} answers again, after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = 0.0

    def transfer_s(self, size: int) -> float:
        """Return the deadline of a transfer of so many bytes."""
        return self.call_timeout_s + size / MIN_RATE_BYTES_PER_S

    def patient_bytes(self) -> int:
        """Return what the slowest uplink carries in half the time a transfer may stand still."""
        return max(SMALLEST_CHUNK_BYTES, int(MIN_RATE_BYTES_PER_S * self.call_timeout_s / 2))


def _unexpected(method: str, error: grpc.aio.AioRpcError) -> Exception:
    return AggregatorUnreachable(f"{method} failed with {error.code().name}: {error.details()}")
