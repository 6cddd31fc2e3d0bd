"""The communication tables from log lines whose sums are worked out by hand."""

from typing import Any

import pytest

from aggregator.accounts import goodput, logs, tables
from aggregator.accounts.logs import Call
from aggregator.accounts.reconciliation import Reconciliation, reconcile
from aggregator.accounts.report import report
from tests.support.rpc_events import event, fetch, poll, read, upload


def rows(*lines: str, by: str | None = None) -> list[dict[str, Any]]:
    return tables.table(goodput.accounts(logs.distinct(read(lines).calls)), by)


def test_rows_are_per_site_round_direction_and_purpose() -> None:
    found = rows(event(call_id="c2", rpc="BeginUpload", up=(1, 50, 0), down=(1, 10, 0)), event(), fetch("c3"))
    assert found == [
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
        "goodput_bytes": size,
        "repeated_bytes": 0,
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
    found = rows(event(), fetch("c2"), event(call_id="c3", site="canon", round_number=2), by=by)
    assert {r[by]: r["bytes_up"] for r in found} == expected
    assert sum(r["payload_bytes_down"] for r in found) == 900


def test_a_call_in_both_logs_counts_once() -> None:
    log = read(
        [event(), event(side="site-agent"), event(call_id="", round_number=2), event(call_id="", round_number=3)]
    )
    assert report(log)["total"]["bytes_up"] == 3000  # calls without an id stand alone


def test_retries_are_counted() -> None:
    assert report(read([event(), event(call_id="c2", code="UNAVAILABLE", attempt=1)]))["retried_calls"] == 1


# order


def ids(calls: list[Call]) -> list[str]:
    return [call.call_id for call in calls]


def test_calls_of_two_replicas_are_ordered_by_their_clocks() -> None:
    first = [poll("p1", timestamp="2026-01-01T00:00:01Z"), poll("p4", timestamp="2026-01-01T00:00:04Z")]
    second = [poll("p2", timestamp="2026-01-01T00:00:02Z"), poll("p3", timestamp="2026-01-01T00:00:02.5Z")]
    assert ids(logs.distinct(read(first, second).calls)) == ["p1", "p2", "p3", "p4"]


def test_a_call_that_only_the_agent_logged_stands_where_the_agent_made_it() -> None:
    """The site's clock is a year off, and is not asked."""
    aggregator = [poll("p1", timestamp="2026-01-01T00:00:01Z"), poll("p3", timestamp="2026-01-01T00:00:03Z")]
    agent = [poll(name, side="site", timestamp="2025-01-01T00:00:00Z") for name in ("p1", "p2", "p3", "p4")]
    assert ids(logs.distinct(read(aggregator, agent).calls)) == ["p1", "p2", "p3", "p4"]
    assert ids(logs.distinct(read(agent, aggregator).calls)) == ["p1", "p2", "p3", "p4"]


def test_what_an_agent_said_before_it_knew_its_name_is_its_sites() -> None:
    agent = [event(rpc="Join", side="site", site="", call_id="j1", code="UNAVAILABLE"), poll("p1", side="site")]
    assert [call.site for call in read(agent).calls] == ["ge", "ge"]


def test_a_file_of_several_agents_does_not_say_whose_a_nameless_call_was() -> None:
    agents = [poll("j1", side="site", site=""), poll("p1", side="site"), poll("p2", side="site", site="canon")]
    assert [call.site for call in read(agents).calls] == ["", "ge", "canon"]


# both sides


def test_both_sides_agree_to_the_byte() -> None:
    log = read([event(), fetch("c2")], [event(side="site-agent"), fetch("c2", side="site-agent")])
    assert reconcile(log.calls) == Reconciliation(2, 2, [], [], [], [])


def test_one_side_alone_is_not_reconciled() -> None:
    assert reconcile(read([event()]).calls) is None


def test_a_difference_of_one_byte_is_listed() -> None:
    found = reconcile(read([event(), event(side="site-agent", up=(2, 1001, 900))]).calls)
    assert found is not None
    assert (found.compared, found.agreed) == (1, 0)
    assert found.differing == [
        "c1 UploadDelta ge round 1: up 1001 and 1000, down 80 and 80 bytes at site and aggregator"
    ]


def test_calls_that_ended_badly_or_stand_in_one_log_are_listed_and_not_compared() -> None:
    log = read(
        [
            event(),
            event(side="site-agent"),
            event(call_id="c2", code="CANCELLED"),
            event(side="site-agent", call_id="c2", code="UNAVAILABLE"),
            event(side="site-agent", call_id="c3", code="UNAVAILABLE"),
            event(call_id="c4", site="canon"),
        ]
    )
    found = reconcile(log.calls)
    assert found is not None
    assert (found.compared, found.agreed) == (1, 1)
    assert found.ended_badly == ["c2 UploadDelta ge round 1: UNAVAILABLE at the site, CANCELLED at the aggregator"]
    assert found.one_sided == ["c3 UploadDelta ge round 1: in the site-agent's log only, UNAVAILABLE"]
    assert found.sites_without_agent_log == ["canon"]


# lines


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
        event().replace('"duration_s": 0.1', '"duration_s": NaN'),
        event().replace('"duration_s": 0.1', '"duration_s": "long"'),
        event(offset=-1),
        "[" * 100_000,
    ],
)
def test_a_malformed_line_is_named_and_not_fatal(line: str) -> None:
    log = read([event(), line, event(call_id="c2")])
    assert len(log.calls) == 2
    assert len(log.malformed) == 1
    assert log.malformed[0].startswith("a.jsonl:2: ")


def test_other_events_and_blank_lines_are_passed_over() -> None:
    log = read(['{"event": "site_joined", "site": "ge"}', "", event(), '{"event": "serving", "tls": false}'])
    assert (len(log.calls), log.malformed, log.tls) == (1, [], False)


def test_a_log_of_an_earlier_release_is_read() -> None:
    """It names no connection, no offset and no time."""
    line = upload("u1", 900).replace('"offset": 0, ', "")
    assert "offset" not in line
    (call,) = read([line]).calls
    assert (call.connection, call.offset, call.at) == ("", 0, "")
