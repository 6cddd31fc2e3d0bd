"""The model of the wire: one call's frames added up by hand, connections counted by name. What it is worth as a whole is shown
against a relay (tests/integration/test_comm_cost_relay.py)."""

from typing import Any

import pytest

from aggregator.accounts import framing, logs, overhead
from aggregator.accounts.framing import Wire
from tests.support.rpc_events import event, fetch, poll, read, upload

ID = "0123456789abcdef"


def added(line: str, tls: bool = False, first: bool = False, windows: bool = False) -> Wire:
    (call,) = read([line]).calls
    return framing.call(call, first=first, windows=windows, tls=tls)


def model(*files: list[str], tls: bool = False) -> dict[str, Any]:
    log = read(*files)
    return overhead.model(log.calls, logs.distinct(log.calls), tls)


def test_a_poll_costs_its_frames() -> None:
    """Up: HEADERS 9 + 9 indexed + med-call-id 3 + 11 + 16 + med-attempt 3 + 11 + 1 + med-site 3 + 8 + 2, DATA 9 + 5, two
    window updates of 13. Down: HEADERS 9 + 3 and 9 + 16, DATA 9 + 5."""
    assert added(poll(ID)) == Wire(76 + 14 + 26, 37 + 14)


def test_a_connection_that_has_taken_much_renews_its_window_with_every_call() -> None:
    assert added(poll(ID), windows=True) == Wire(116, 51 + 13)


def test_tls_adds_a_record_each_way_and_leaves_the_site_to_the_certificate() -> None:
    assert added(poll(ID), tls=True) == Wire(116 - 13 + 22, 51 + 22)


def test_the_first_call_of_a_method_spells_path_and_time_limit_out() -> None:
    """:path 5 + 35 + len(AwaitRound), grpc-timeout 12 + 6, 3 bytes each, one of which also an indexed field takes."""
    assert added(poll(ID), first=True).up - added(poll(ID)).up == 5 + 35 + 10 + 2 + 18 + 2


def test_a_megabyte_up_is_64_more_frames_and_records() -> None:
    """2^20 + 70 bytes in two messages: 64 frames of 16,384 are full; 64 records of 16,284 are."""
    small, large = upload(ID, 1000), upload(ID, 1 << 20)
    assert added(large).up - added(small).up == 64 * 9
    assert added(large, tls=True).up - added(small, tls=True).up == 64 * (9 + 22)


def test_a_refusal_carries_its_text_in_place_of_an_answer() -> None:
    """One frame: 9, three indexed fields, the text's field 3 + 12, the name's field 3 + 9."""
    error = "NotFound: no such round"
    refused = event(rpc="AwaitRound", call_id=ID, up=(1, 40, 0), down=(0, 0, 0), code="NOT_FOUND", error=error)
    assert added(refused).down == 9 + 3 + 15 + 12 + len(error)


def test_a_call_without_an_answer_ends_with_a_reset() -> None:
    cancelled = poll(ID, code="CANCELLED", down=(0, 0, 0))
    assert added(cancelled) == Wire(116 + 13, 0)
    assert added(cancelled, tls=True) == Wire(116 - 13 + 13 + 2 * 22, 0)


@pytest.mark.parametrize(("held_s", "pings"), [(0.1, 0), (14.9, 0), (15.1, 1), (29.9, 1), (30.01, 2)])
def test_a_held_call_is_pinged_every_15_seconds(held_s: float, pings: int) -> None:
    """A ping is 9 + 8 bytes, and so is its answer."""
    line = poll(ID).replace('"duration_s": 0.1', f'"duration_s": {held_s}')
    assert added(line) == Wire(116 + 17 * pings, 51 + 17 * pings)
    assert added(line, tls=True).down == 73 + (17 + 22) * pings


def test_a_connection_has_a_beginning() -> None:
    """Up: preface 24, settings 39, window 13, acknowledgement 9, fields spelled out once 199. Down: 33, 9, 89."""
    one = model([poll(ID, connection="a")])
    assert one["connections"] == 1
    assert one["overhead_up"] == 24 + 39 + 13 + 9 + 199 + added(poll(ID), first=True).up
    assert one["overhead_down"] == 33 + 9 + 89 + 51
    assert one["wire_up"] == 40 + one["overhead_up"]
    assert one["wire_down"] == 80 + one["overhead_down"]


def test_connections_are_counted_by_their_names() -> None:
    lines = [poll("p1", connection="a"), poll("p2", connection="b"), poll("p3", connection="a")]
    found = model(lines)
    assert (found["connections"], found["connections_counted"]) == (2, True)
    again = model([*lines, poll("p4", connection="c")])
    assert again["overhead_up"] - found["overhead_up"] == framing.CONNECTION.up + added(poll("p4"), first=True).up


def test_a_connection_has_a_name_on_either_side_and_counts_once() -> None:
    """The agent's own third call belongs to the same connection as its first two, which the aggregator logged under "x"."""
    aggregator = [poll("p1", connection="x"), poll("p2", connection="x")]
    agent = [poll(name, side="site", connection="a") for name in ("p1", "p2", "p3")]
    found = model(aggregator, agent)
    assert (found["connections"], found["connections_counted"]) == (1, True)


def test_an_agent_alone_sees_at_least_as_many_connections_as_it_dialled() -> None:
    """gRPC mends a connection that was idle when it broke without telling anybody."""
    found = model([poll("p1", side="site", connection="a")])
    assert (found["connections"], found["connections_counted"]) == (1, False)


def test_a_connection_that_never_stood_costs_nothing() -> None:
    """Nobody listened: gRPC took the first message of each call and ended it."""
    dialled = {"code": "UNAVAILABLE", "down": (0, 0, 0), "side": "site"}
    found = model([poll("p1", side="site", connection="a"), *(poll(n, connection=n, **dialled) for n in ("p2", "p3"))])
    assert (found["connections"], found["calls_never_connected"], found["messages_up"]) == (1, 2, 40)


def test_a_cut_upload_shows_that_its_connection_stood() -> None:
    """Its second message was taken."""
    found = model([upload("u1", 500, code="UNAVAILABLE", side="site", connection="a")])
    assert (found["connections"], found["calls_never_connected"]) == (1, 0)


def test_logs_of_earlier_releases_have_at_least_one_connection_a_site() -> None:
    found = model([poll("p1"), poll("p2"), poll("p3", site="canon")])
    assert (found["connections"], found["connections_counted"]) == (2, False)


def test_windows_are_renewed_after_61439_bytes() -> None:
    """A poll of 40 bytes takes 45 of the window: 1,365 polls take 61,425, and every further one is answered with an update."""
    few = model([poll(f"p{n:015}", connection="a") for n in range(1365)])
    more = model([poll(f"p{n:015}", connection="a") for n in range(1375)])
    assert more["overhead_down"] - few["overhead_down"] == 10 * (51 + 13)


def test_downloads_and_uploads_move_windows() -> None:
    """A download: two updates for each chunk that comes. An upload: one for each of two chunks, and seven for a megabyte."""
    down = added(fetch(ID, payload=(1 << 20) + 1)).up - added(fetch(ID, payload=900)).up
    assert down == 2 * 13
    assert added(upload(ID, (1 << 20) + 1)).down - added(upload(ID, 900)).down == (2 + 7 - 1) * 13


def test_the_model_states_its_bound_and_what_is_not_in_it() -> None:
    found = model([poll("p1")])
    assert "0.5 % + 8 KB a connection" in found["bound"]
    assert "tests/integration/test_comm_cost_relay.py" in found["bound"]
    assert "TCP/IP headers" in found["unaccounted"]
