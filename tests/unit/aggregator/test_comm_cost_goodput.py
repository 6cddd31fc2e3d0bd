"""What was sent once and what was sent again: cases worked by hand. A message's own bytes: see tests/support/rpc_events.py."""

from aggregator.accounts import goodput, logs
from aggregator.accounts.report import report
from tests.support.rpc_events import announcement, event, fetch, poll, read, upload

MB = 1_000_000


def useful(*files: list[str]) -> dict[str, tuple[int, int]]:
    """Return the useful bytes of every call, up and down, and check that they add up with what was repeated."""
    log = read(*files)
    accounts = goodput.accounts(logs.distinct(log.calls))
    total = report(log)["total"]
    for way in ("up", "down"):
        assert total[f"goodput_bytes_{way}"] + total[f"repeated_bytes_{way}"] == total[f"bytes_{way}"]
        assert total[f"goodput_bytes_{way}"] == sum(getattr(one, way).bytes for one in accounts)
    return {one.call.call_id: (one.up.bytes, one.down.bytes) for one in accounts}


def test_an_upload_in_one_go_is_all_goodput() -> None:
    assert useful([announcement("b1"), upload("u1", MB)]) == {"b1": (200, 6), "u1": (MB + 70, 80)}


def test_an_upload_cut_at_700_kb_with_524288_durable_repeats_the_difference() -> None:
    """Of 700,000 bytes 524,288 were kept; 475,712 came later. The cut call's own 70 bytes and the second announcement were in
    vain, besides 175,712 bytes of payload."""
    found = useful(
        [
            announcement("b1"),
            upload("u1", 700_000, code="UNAVAILABLE"),
            announcement("b2", answer=4),
            upload("u2", 475_712, offset=524_288, attempt=1),
        ]
    )
    assert found == {"b1": (200, 6), "u1": (524_288, 0), "b2": (0, 0), "u2": (475_712 + 70, 80)}
    assert sum(up for up, _ in found.values()) - 270 == MB


def test_an_upload_cut_three_times_counts_every_byte_once() -> None:
    found = useful(
        [
            upload("u1", 300, code="UNAVAILABLE"),
            upload("u2", 500, offset=200, code="CANCELLED", attempt=1),
            upload("u3", 100, offset=600, code="DEADLINE_EXCEEDED", attempt=2),
            upload("u4", 400, offset=600, attempt=3),
        ]
    )
    assert found == {"u1": (200, 0), "u2": (400, 0), "u3": (0, 0), "u4": (470, 80)}


def test_an_attempt_that_sent_nothing_does_not_say_where_the_next_one_began() -> None:
    """Its offset is 0 because no chunk named one."""
    found = useful(
        [
            upload("u1", 300, code="UNAVAILABLE"),
            event(call_id="u2", up=(1, 60, 0), down=(0, 0, 0), code="UNAVAILABLE", attempt=1),
            upload("u3", 700, offset=300, attempt=2),
        ]
    )
    assert found == {"u1": (300, 0), "u2": (0, 0), "u3": (770, 80)}


def test_a_lost_receipt_that_is_told_at_the_next_announcement_costs_the_announcement() -> None:
    """Seen from the agent: the upload failed, and nothing of it had to be sent again."""
    found = useful(
        [announcement("b1"), upload("u1", MB, code="UNAVAILABLE"), announcement("b2", answer=90)],
    )
    assert found == {"b1": (200, 6), "u1": (MB, 0), "b2": (0, 0)}


def test_a_lost_receipt_that_the_aggregator_knows_of_costs_the_announcement() -> None:
    """An update of one chunk is announced in the upload itself; the site asks again when it hears nothing."""
    aggregator = [upload("u1", MB), announcement("b2", answer=90)]
    agent = [upload("u1", MB, code="UNAVAILABLE", side="site"), announcement("b2", answer=90, side="site")]
    assert useful(aggregator, agent) == {"u1": (MB + 70, 80), "b2": (0, 0)}


def test_an_announcement_that_answers_with_an_offset_is_no_receipt() -> None:
    found = useful([announcement("b1"), upload("u1", MB, code="UNAVAILABLE"), announcement("b2", answer=11)])
    assert found["u1"] == (0, 0)


def test_a_lost_receipt_after_which_all_is_sent_again_counts_the_payload_once() -> None:
    """The aggregator took the first for complete; the site, which heard nothing, sent the whole update again."""
    found = useful([upload("u1", MB), upload("u2", MB, attempt=1)])
    assert found == {"u1": (70, 80), "u2": (MB + 70, 80)}


def test_bytes_that_were_lost_on_the_way_are_known_to_their_sender_alone() -> None:
    """The aggregator saw 400 of 1,000 bytes up, at which offset it did not see; the site 300 of 900 down."""
    aggregator = [
        event(call_id="u1", up=(1, 70, 0), down=(0, 0, 0), code="CANCELLED"),
        upload("u2", 1000, offset=400, attempt=1),
        fetch("f1", 900, code="CANCELLED"),
        fetch("f2", 600, offset=300, attempt=1),
    ]
    agent = [
        upload("u1", 1000, code="UNAVAILABLE", side="site"),
        upload("u2", 1000, offset=400, attempt=1, side="site"),
        fetch("f1", 300, code="UNAVAILABLE", side="site"),
        fetch("f2", 600, offset=300, attempt=1, side="site"),
    ]
    accounts = {one.call.call_id: one for one in goodput.accounts(logs.distinct(read(aggregator, agent).calls))}
    assert accounts["u1"].call.up.bytes == 1070
    assert accounts["u1"].up.bytes == 400
    assert accounts["f1"].call.down.bytes == 950
    assert accounts["f1"].down.bytes == 300


def test_an_upload_that_never_counted_was_in_vain() -> None:
    assert useful([upload("u1", MB, code="UNAVAILABLE")]) == {"u1": (0, 0)}


def test_an_upload_goes_on_at_another_replica() -> None:
    """The second replica's log is given first; its clock says that its part came second."""
    second = [
        announcement("b2", answer=4, timestamp="2026-01-01T00:00:09Z"),
        upload("u2", 400, offset=600, attempt=1, timestamp="2026-01-01T00:00:10Z"),
    ]
    first = [
        announcement("b1", timestamp="2026-01-01T00:00:01Z"),
        upload("u1", 650, code="CANCELLED", timestamp="2026-01-01T00:00:05Z"),
    ]
    assert useful(second, first) == {"b1": (200, 6), "u1": (600, 0), "b2": (0, 0), "u2": (470, 80)}


def test_an_agent_that_was_killed_goes_on_where_the_aggregator_is() -> None:
    """Its next process counts attempts from 0 again."""
    found = useful([upload("u1", 500, code="CANCELLED"), upload("u2", 600, offset=400)])
    assert found == {"u1": (400, 0), "u2": (670, 80)}


def test_sites_and_rounds_have_updates_of_their_own() -> None:
    found = useful([upload("u1", 500), upload("u2", 500, round_number=2), upload("u3", 500, site="canon")])
    assert set(found.values()) == {(570, 80)}


def test_a_download_goes_on_where_it_was_cut() -> None:
    """2 MB handed to gRPC by the aggregator, of which 1.5 MB arrived."""
    found = useful(
        [
            fetch("f1", 2 * MB, code="CANCELLED"),
            fetch("f2", MB // 2, offset=3 * MB // 2, attempt=1),
        ]
    )
    assert found == {"f1": (0, 3 * MB // 2), "f2": (20, MB // 2 + 50)}


def test_a_download_that_the_aggregator_took_for_finished_is_still_cut() -> None:
    found = useful([fetch("f1", 900), fetch("f2", 100, offset=800, attempt=1)])
    assert found == {"f1": (20, 850), "f2": (20, 150)}


def test_two_downloads_in_a_round_are_two() -> None:
    """The last round holds the version it started from and the final one."""
    assert useful([fetch("f1", 900), fetch("f2", 900)]) == {"f1": (20, 950), "f2": (20, 950)}


def test_a_download_begun_anew_after_a_cut_is_one() -> None:
    found = useful([fetch("f1", 600, code="CANCELLED"), fetch("f2", 900)])
    assert found == {"f1": (0, 0), "f2": (20, 950)}


def test_a_call_made_again_after_a_lost_answer_was_repeated() -> None:
    """The aggregator answered both; the second one is marked as a retry."""
    assert useful([poll("p1"), poll("p2", attempt=1), poll("p3")]) == {"p1": (0, 0), "p2": (40, 80), "p3": (40, 80)}


def test_a_call_that_failed_was_in_vain() -> None:
    assert useful([poll("p1", code="UNAVAILABLE"), poll("p2", attempt=1)]) == {"p1": (0, 0), "p2": (40, 80)}


def test_without_offsets_a_failed_attempt_was_all_in_vain() -> None:
    """Logs of earlier releases do not say where an attempt began."""
    lines = [upload("u1", 700, code="UNAVAILABLE"), upload("u2", 500, attempt=1)]
    found = useful([line.replace('"offset": 0, ', "") for line in lines])
    assert found == {"u1": (0, 0), "u2": (570, 80)}


def test_an_update_counts_by_its_receipt() -> None:
    lines = [
        upload("u1", 500),
        upload("u2", 500, site="canon", code="UNAVAILABLE"),
        announcement("b2", answer=90, site="canon"),
        upload("u3", 500, site="philips", code="UNAVAILABLE"),
        announcement("b3", answer=6, site="philips"),
    ]
    assert goodput.updates(read(lines).calls) == {("ge", 1), ("canon", 1)}
