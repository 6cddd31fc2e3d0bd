"""`rpc_finished` events as both sides write them, with counts a person can add up."""

import json
from collections.abc import Iterable
from typing import Any

from aggregator.accounts import logs
from aggregator.accounts.logs import Log

Counts = tuple[int, int, int]
"""Messages, bytes, tensor bytes."""


def event(
    side: str = "aggregator",
    rpc: str = "UploadDelta",
    site: str = "ge",
    round_number: int = 1,
    call_id: str = "c1",
    up: Counts = (2, 1000, 900),
    down: Counts = (1, 80, 0),
    code: str = "OK",
    attempt: int = 0,
    purpose: str = "delta_up",
    **more: Any,
) -> str:
    """Return one line; `more` are fields that not every release writes (connection, offset, timestamp, error)."""
    fields: dict[str, Any] = {
        "event": "rpc_finished",
        "side": side,
        "rpc": rpc,
        "purpose": purpose,
        "call_id": call_id,
        "attempt": attempt,
        "site": site,
        "federation": "demo",
        "round": round_number,
        "code": code,
        "duration_s": 0.1,
        **more,
    }
    for name, counts in (("up", up), ("down", down)):
        fields |= {f"messages_{name}": counts[0], f"bytes_{name}": counts[1], f"payload_bytes_{name}": counts[2]}
    return json.dumps(fields)


def upload(call_id: str, payload: int, offset: int = 0, code: str = "OK", **changes: Any) -> str:
    """Return an upload of one start message (60 bytes) and one chunk (its payload and 10 bytes); 80 bytes of receipt if OK."""
    answer = (1, 80, 0) if code == "OK" else (0, 0, 0)
    sent = (2, 70 + payload, payload)
    return event(call_id=call_id, up=sent, down=answer, code=code, offset=offset, **changes)


def announcement(call_id: str, answer: int = 6, **changes: Any) -> str:
    """Return a BeginUpload of 200 bytes. An answer of up to 11 bytes is an offset, a longer one is a receipt."""
    return event(rpc="BeginUpload", call_id=call_id, up=(1, 200, 0), down=(1, answer, 0), **changes)


def fetch(call_id: str = "f1", payload: int = 900, offset: int = 0, **changes: Any) -> str:
    """Return a download: a request of 20 bytes, an answer of two messages and its payload and 50 bytes."""
    counts = {"up": (1, 20, 0), "down": (2, 50 + payload, payload)}
    return event(rpc="FetchAdapter", purpose="adapter_down", call_id=call_id, offset=offset, **{**counts, **changes})


def poll(call_id: str, **changes: Any) -> str:
    """Return an AwaitRound of 40 bytes with an answer of 80."""
    counts = {"up": (1, 40, 0), "down": (1, 80, 0)}
    return event(rpc="AwaitRound", purpose="heartbeat", call_id=call_id, **{**counts, **changes})


def probe(call_id: str, **changes: Any) -> str:
    """Return a Probe of 262,150 random bytes that are echoed."""
    counts = {"up": (1, 262_150, 0), "down": (1, 262_160, 0)}
    return event(rpc="Probe", call_id=call_id, round_number=0, **{"purpose": "probe", **counts, **changes})


def read(*files: Iterable[str]) -> Log:
    """Return what `comm-cost` reads from some log files, each given as its lines."""
    log = Log()
    for number, lines in enumerate(files):
        logs.read(log, lines, f"{'abcdef'[number]}.jsonl")
    return log
