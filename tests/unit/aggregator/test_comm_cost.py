"""The communication table from log lines whose sums are worked out by hand."""

import json
from typing import Any

import pytest

from aggregator import comm_cost


def event(
    side: str = "aggregator",
    rpc: str = "UploadDelta",
    site: str = "ge",
    round_number: int = 1,
    call_id: str = "c1",
    up: tuple[int, int, int] = (2, 1000, 900),
    down: tuple[int, int, int] = (1, 80, 0),
    code: str = "OK",
    attempt: int = 0,
    purpose: str = "delta_up",
) -> str:
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
    }
    for name, counts in (("up", up), ("down", down)):
        fields |= {f"messages_{name}": counts[0], f"bytes_{name}": counts[1], f"payload_bytes_{name}": counts[2]}
    return json.dumps(fields)


def fetch(**changes: Any) -> str:
    return event(rpc="FetchAdapter", purpose="adapter_down", up=(1, 20, 0), down=(2, 950, 900), **changes)


def read(*lines: str, log: comm_cost.Log | None = None, source: str = "a.jsonl") -> comm_cost.Log:
    log = log or comm_cost.Log()
    comm_cost.read(log, lines, source)
    return log


def test_rows_are_per_site_round_direction_and_purpose() -> None:
    log = read(event(), event(call_id="c2", up=(1, 50, 0), down=(1, 10, 0)), fetch(call_id="c3"))
    rows = comm_cost.table(comm_cost.distinct(log.calls))
    assert rows == [
        row("down", "adapter_down", 1, 2, 950, 900),
        row("down", "delta_up", 2, 2, 90, 0),
        row("up", "adapter_down", 1, 1, 20, 0),
        row("up", "delta_up", 2, 3, 1050, 900),
    ]


def row(direction: str, purpose: str, calls: int, messages: int, size: int, payload: int) -> dict[str, Any]:
    return {
        "site": "ge",
        "round": 1,
        "direction": direction,
        "purpose": purpose,
        "calls": calls,
        "messages": messages,
        "bytes": size,
        "payload_bytes": payload,
        "failed_bytes": 0,
    }


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("site", {"canon": 1000, "ge": 1020}),
        ("round", {1: 1020, 2: 1000}),
        ("purpose", {"adapter_down": 20, "delta_up": 2000}),
        ("method", {"FetchAdapter": 20, "UploadDelta": 2000}),
    ],
)
def test_rows_can_be_grouped(by: str, expected: dict[Any, int]) -> None:
    log = read(event(), fetch(call_id="c2"), event(call_id="c3", site="canon", round_number=2))
    rows = comm_cost.table(log.calls, by)
    assert {r[by]: r["bytes_up"] for r in rows} == expected
    assert sum(r["payload_bytes_down"] for r in rows) == 900


def test_a_call_in_both_logs_counts_once() -> None:
    log = read(event(), event(side="site-agent"), event(call_id=""), event(call_id=""))
    assert comm_cost.report(log)["total"]["bytes_up"] == 3000  # calls without an id stand alone


def test_bytes_of_calls_that_failed_are_kept_apart() -> None:
    log = read(event(), event(call_id="c2", code="UNAVAILABLE", attempt=1))
    report = comm_cost.report(log)
    assert report["total"]["bytes_up"] == 2000
    assert report["total"]["failed_bytes_up"] == 1000
    assert report["retried_calls"] == 1


def test_both_sides_agree_to_the_byte() -> None:
    log = read(event(), fetch(call_id="c2"), event(side="site-agent"), fetch(side="site-agent", call_id="c2"))
    found = comm_cost.reconcile(log.calls)
    assert found == comm_cost.Reconciliation(2, 2, [], [], [], [])


def test_one_side_alone_is_not_reconciled() -> None:
    assert comm_cost.reconcile(read(event()).calls) is None


def test_a_difference_of_one_byte_is_listed() -> None:
    log = read(event(), event(side="site-agent", up=(2, 1001, 900)))
    found = comm_cost.reconcile(log.calls)
    assert found is not None
    assert (found.compared, found.agreed) == (1, 0)
    assert found.differing == [
        "c1 UploadDelta ge round 1: up 1001 and 1000, down 80 and 80 bytes at site and aggregator"
    ]


def test_calls_that_ended_badly_or_stand_in_one_log_are_listed_and_not_compared() -> None:
    log = read(
        event(),
        event(side="site-agent"),
        event(call_id="c2", code="CANCELLED"),
        event(side="site-agent", call_id="c2", code="UNAVAILABLE"),
        event(side="site-agent", call_id="c3", code="UNAVAILABLE"),
        event(call_id="c4", site="canon"),
    )
    found = comm_cost.reconcile(log.calls)
    assert found is not None
    assert (found.compared, found.agreed) == (1, 1)
    assert found.ended_badly == ["c2 UploadDelta ge round 1: UNAVAILABLE at the site, CANCELLED at the aggregator"]
    assert found.one_sided == ["c3 UploadDelta ge round 1: in the site-agent's log only, UNAVAILABLE"]
    assert found.sites_without_agent_log == ["canon"]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"event": "rpc_finished"}',
        '["event"]',
        "7",
        event().replace('"bytes_up": 1000', '"bytes_up": -1'),
        event().replace('"bytes_up": 1000', '"bytes_up": "many"'),
        event().replace('"round": 1', '"round": true'),
        "[" * 100_000,
    ],
)
def test_a_malformed_line_is_named_and_not_fatal(line: str) -> None:
    log = read(event(), line, event(call_id="c2"))
    assert len(log.calls) == 2
    assert len(log.malformed) == 1
    assert log.malformed[0].startswith("a.jsonl:2: ")


def test_other_events_and_blank_lines_are_passed_over() -> None:
    log = read('{"event": "site_joined", "site": "ge"}', "", event(), '{"event": "serving", "tls": false}')
    assert (len(log.calls), log.malformed, log.tls) == (1, [], False)


def test_the_reduction_against_the_full_model() -> None:
    """Two updates of 1000 bytes up against 2 x 358 MB; 950 bytes down each."""
    lines = [event(), fetch(call_id="c2"), event(call_id="c3", site="canon"), fetch(call_id="c4", site="canon")]
    found = comm_cost.against_full_model(read(*lines).calls, 358_000_000)
    assert found["updates"] == 2
    assert found["reduction_up"] == pytest.approx(358_000)
    assert found["reduction_down"] == pytest.approx(358_000_000 / 950)


def test_without_updates_there_is_no_reduction() -> None:
    assert comm_cost.against_full_model([], 1000)["reduction_up"] is None


def test_the_wire_model_states_its_terms() -> None:
    calls = read(event(), event(call_id="c2", site="canon")).calls
    found = comm_cost.overhead(calls, tls=False)
    assert found["overhead_up"] == round(2000 * 0.00005) + 2 * comm_cost.PLAIN.call_up + 2 * 396
    assert found["wire_up"] == 2000 + found["overhead_up"]
    assert comm_cost.overhead(calls, tls=True)["wire_up"] > found["wire_up"]
    assert "pings" in found["unaccounted"]
