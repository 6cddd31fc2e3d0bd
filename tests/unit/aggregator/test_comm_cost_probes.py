"""What `site-agent doctor` sends to measure the line is no part of a federation's communication."""

from typing import Any

import pytest

from aggregator.accounts import logs, page
from aggregator.accounts.report import report
from aggregator.report.page import _logged
from tests.support.rpc_events import event, fetch, probe, read, upload

RUN = (upload("u1", 900, connection="a"), fetch("f1", connection="a"))
PROBES = (probe("p1", connection="b"), probe("p2", connection="b", code="UNAVAILABLE", down=(0, 0, 0)))


def told(*lines: str, by: str | None = None) -> dict[str, Any]:
    return report(read(lines), by=by, full_model_bytes=5000)


def test_every_figure_of_a_run_is_the_same_with_a_doctors_probes_in_its_log() -> None:
    without, found = told(*RUN), told(*RUN, *PROBES)
    assert without.pop("probes") is None
    probes = found.pop("probes")
    assert (probes["calls"], probes["bytes_up"], probes["bytes_down"]) == (2, 2 * 262_150, 262_160)
    assert (probes["goodput_bytes_up"], probes["repeated_bytes_up"]) == (0, 0)
    assert [row for row in found.pop("rows") if row["purpose"] != "probe"] == without.pop("rows")
    assert found == without


@pytest.mark.parametrize(("by", "names"), [("purpose", "probe"), ("method", "Probe"), ("site", None), ("round", None)])
def test_probes_have_a_row_only_where_it_is_theirs_alone(by: str, names: str | None) -> None:
    own = [row for row in told(*RUN, *PROBES, by=by)["rows"] if row[by] == names]
    assert [(row["calls"], row["goodput_bytes_up"]) for row in own] == ([(2, 0)] if names else [])
    assert told(*RUN, *PROBES, by="site")["rows"] == told(*RUN, by="site")["rows"]


def test_logs_that_call_a_probe_control_are_read_the_same() -> None:
    assert told(*RUN, probe("p1", purpose="control")) == told(*RUN, probe("p1"))


def test_a_doctor_writes_no_log_and_is_not_missed_in_the_sites() -> None:
    log = read([event(), *PROBES], [event(side="site-agent")])
    reconciliation = report(log)["reconciliation"]
    assert (reconciliation["agreed"], reconciliation["one_sided"]) == (1, [])
    assert len(logs.distinct(log.calls)) == 3


def test_both_pages_name_probes_apart_and_a_log_of_nothing_else_has_a_page() -> None:
    found = told(*RUN, *PROBES)
    for text in (page.page(found), _logged(found), page.page(told(*PROBES, by="site"))):
        assert "2 probes of site-agent doctor, random bytes to measure the line, 524,300 bytes up, 262,160 down" in text
    assert "probes of" not in page.page(told(*RUN))
