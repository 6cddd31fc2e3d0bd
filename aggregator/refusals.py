"""What was refused, to whom and why, in the audit journal: at most a line a minute for each caller, call and class of error."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from aggregator.federation import Federation
from aggregator.store import audit
from shared.errors import MedDualLoRAError
from shared.names import plain
from shared.rpc import CallRecord

log = structlog.get_logger()
BETWEEN_S = 60.0
MOST_KINDS = 1000
"""Callers, calls and classes told apart; the rest is counted together, so that made-up names cost no memory."""
MOST_TEXT = 300
Kind = tuple[str, str, str]
OTHERS: Kind = ("", "", "")


@dataclass(slots=True)
class _Told:
    """When a kind of refusal was last written (time.monotonic), and what has come since."""

    at: float
    since: int = 0
    error: str = ""
    round: int = 0


class Refusals:
    """Takes notes on the event loop, and writes beside it. What is not written yet is written by `close`."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._told: dict[Kind, _Told] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def note(self, record: CallRecord, error: MedDualLoRAError) -> None:
        """Note that a call was refused. An error that another try may get round is none."""
        if error.retryable:
            return
        kind: Kind = (record.site, record.method, type(error).__name__)
        if kind not in self._told and len(self._told) >= MOST_KINDS:
            kind = OTHERS
        now = time.monotonic()
        told = self._told.setdefault(kind, _Told(now - BETWEEN_S))
        told.since, told.error, told.round = told.since + 1, plain(str(error), MOST_TEXT), record.round
        if now - told.at >= BETWEEN_S:
            told.at = now
            self._begin(kind, told)

    async def close(self) -> None:
        """Write what has come since the last lines, and wait for all that is being written."""
        for kind, told in self._told.items():
            if told.since:
                self._begin(kind, told)
        while self._writing:
            await asyncio.wait(self._writing)

    def _begin(self, kind: Kind, told: _Told) -> None:
        task = asyncio.create_task(self._write(kind, told, told.since))
        told.since = 0
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, kind: Kind, told: _Told, count: int) -> None:
        caller, method, error = kind
        facts = {
            "caller": caller,
            "rpc": method,
            "error": error,
            "why": told.error,
            "round": told.round,
            "count": count,
        }
        federation = self._federation
        try:
            await federation.write(
                lambda connection: audit.append(
                    connection, federation.name, federation.clock(), "call_refused", **facts
                )
            )
        except MedDualLoRAError:
            told.since += count
            log.warning("refusals_not_written", **{**facts, "why": "the store is away"})
