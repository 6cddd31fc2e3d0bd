"""The page: everything the other outputs say, nothing to load, and nothing that a log line could put into it."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from aggregator.accounts.comparison import Baseline
from aggregator.accounts.page import page
from aggregator.accounts.report import report
from shared.adapter import AdapterManifest
from tests.support import adapters
from tests.support.pages import parsed
from tests.support.rpc_events import event, fetch, poll, read, upload

LINES = [
    fetch("f1", connection="a"),
    upload("u1", 700_000, code="UNAVAILABLE", connection="a"),
    upload("u2", 475_712, offset=524_288, attempt=1, connection="b"),
    poll("p1", side="site", connection="a"),
    poll("p2", connection="b"),
    poll("p2", side="site", connection="a"),
    "broken",
]


class Tables(HTMLParser):
    """Collects tables as rows of cell texts, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data


def tables_of(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of each table by its first column's name."""
    parser = Tables()
    parser.feed(text)
    return {table[0][0]: table[1:] for table in parser.tables}


def made(by: str | None = None, *more: str) -> str:
    small = adapters.adapter()
    facts = replace(small.manifest.metadata, base_parameters=1000, base_blocks=12)
    base = Baseline.of(replace(small, manifest=AdapterManifest(small.manifest.layout, facts)))
    return page(report(read([*LINES, *more]), by=by, baseline=base, full_model_bytes=5000))


def test_the_page_has_the_tables() -> None:
    found = tables_of(made())
    assert [row[0] for row in found["purpose"][::2]] == ["adapter_down", "delta_up", "heartbeat", "all"]
    assert found["purpose"][2] == ["delta_up", "up", "2", "4", "1,175,852", "1,175,712", "1,000,070", "175,782"]
    assert found["purpose"][7] == ["all", "down", "5", "5", "1,190", "900", "1,190", "0"]
    uploads = ["ge", "1", "up", "delta_up", "2", "4", "1,175,852", "1,175,712", "1,000,070", "175,782"]
    assert uploads in found["site"]
    assert len(found["site"]) == 6  # three purposes each way
    assert [row[0] for row in found["direction"]] == ["up", "down"]


def test_computed_rows_are_labelled_computed_and_this_runs_measured() -> None:
    labels = {row[0]: row[1] for row in tables_of(made())["method"]}
    assert labels.pop("this run: tensors, each once") == labels.pop("this run: all messages") == "measured"
    assert len(labels) == 6
    assert set(labels.values()) == {"computed"}


def test_rows_are_grouped_as_asked() -> None:
    assert [row[:2] for row in tables_of(made("site"))["site"]] == [["ge", "up"], ["ge", "down"]]
    assert list(tables_of(made("purpose"))) == ["purpose", "method", "direction"]


def test_the_page_says_what_did_not_reconcile_and_what_the_bound_is() -> None:
    text = parsed(made()).text
    assert "1 of 1 calls that ended well agree to the byte" in text
    assert "calls in one side's log only: 4" in text
    assert "a.jsonl:7: " in text
    assert "within 0.5 % + 8 KB a connection" in text
    assert "TCP/IP headers" in text


def test_the_page_loads_nothing() -> None:
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import|https?:", made())


def test_a_log_cannot_write_into_the_page() -> None:
    text = made(None, event(site="<script>alert(1)</script>", call_id="x"), '{"event": "rpc_finished", "side": "<b>"}')
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_one_side_alone_is_said_to_be_alone() -> None:
    assert "Only one side's log was given" in page(report(read([fetch()])))
