"""`aggregator comm-cost` on a screen: a summary by default, every row when asked. Sums are worked out by hand."""

import json
from pathlib import Path

import pytest

from aggregator.accounts.report import report
from tests.support.command import run
from tests.support.rpc_events import event, fetch, poll, probe, read, upload

JOIN = event(rpc="Join", purpose="control", call_id="j1", round_number=0, up=(1, 240, 0), down=(1, 1900, 0))
LINES = [
    JOIN,
    *(upload(f"u{n}", size, round_number=n) for n, size in ((1, 100), (2, 200), (3, 900))),
    *(fetch(f"f{n}", 400, round_number=n) for n in (2, 3)),
    *(poll(f"p{n}", round_number=n) for n in range(4)),
    upload("c1", 500, site="canon"),
    poll("c2", site="canon"),
    probe("d1"),
]
"""Site ge in three rounds, canon in one: an upload is its payload and 70 bytes, a fetch 20 up and its payload and 50 down."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("\n".join(LINES) + "\n")
    return tmp_path / "a.jsonl"


def words(columns: str) -> list[str]:
    return columns.replace(",", "").split()


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_round_is_the_median_over_a_sites_rounds_and_joining_is_in_none() -> None:
    found = report(read(LINES))
    ge = {1: (170 + 40, 80 + 80), 2: (270 + 20 + 40, 80 + 450 + 80), 3: (970 + 20 + 40, 80 + 450 + 80)}
    assert found["a_round"] == {"rounds": 4, "bytes_up": (330 + 610) // 2, "bytes_down": (160 + 610) // 2}
    canon, of_ge = found["by_site"]
    assert (canon["site"], canon["a_round"]) == ("canon", {"rounds": 1, "bytes_up": 610, "bytes_down": 160})
    assert of_ge["a_round"] == {"rounds": 3, "bytes_up": ge[2][0], "bytes_down": ge[2][1]}
    assert of_ge["bytes_up"] == 240 + 40 + sum(up for up, _ in ge.values())
    assert of_ge["bytes_down"] == 1900 + 80 + sum(down for _, down in ge.values())


def test_where_no_call_is_of_a_round_there_is_no_median() -> None:
    found = report(read([JOIN]))
    assert found["a_round"] is None
    assert found["by_site"][0]["a_round"] is None


def test_the_summary_has_sites_and_calls_and_says_where_the_rest_is(log: Path) -> None:
    text = run("comm-cost", log).stdout
    found = rows(text)
    assert found[0] == ["site", "calls", *words("bytes up, bytes down, a round up, a round down")]
    assert ["canon", "2", "610", "160", "610", "160"] in found
    assert ["ge", "10", "1,850", "3,360", "330", "610"] in found
    assert ["all", "12", "2,460", "3,520", "470", "385"] in found
    calls = [row[0] for row in found[5:10]]
    assert found[5] == ["call", "calls", *words("bytes up, bytes down, tensors up, tensors down")]
    assert calls[1:5] == ["UploadDelta", "Join", "FetchAdapter", "AwaitRound"], "most bytes first"
    assert ["UploadDelta", "4", "1,980", "320", "1,700", "0"] in found
    assert "Every row: --all, as CSV: --csv; beside sending a whole model: --full-model-bytes N" in text
    assert "1 probes of site-agent doctor" in text
    assert "round  direction" not in text
    beside = run("comm-cost", log, "--full-model-bytes", 1_000_000).stdout
    assert "full fine-tuning would send 4,000,000 bytes each way for 4 updates" in beside
    assert "--full-model-bytes" not in beside


def test_all_rows_are_printed_when_asked_and_always_for_programs(log: Path) -> None:
    facts = json.loads(run("comm-cost", log, "--json").stdout)
    assert len(facts["rows"]) == len(run("comm-cost", log, "--csv").stdout.splitlines()) - 1 == 26
    shown = run("comm-cost", log, "--all").stdout.partition("\n\n")[0].splitlines()
    assert shown[0].split() == list(facts["rows"][0])
    assert len(shown) - 1 == 26
    by = rows(run("comm-cost", log, "--by", "method").stdout)
    assert [row[0] for row in by[1:6]] == ["AwaitRound", "FetchAdapter", "Join", "Probe", "UploadDelta"]
    assert "a round up" not in run("comm-cost", log, "--by", "method").stdout


def test_a_log_of_probes_alone_has_no_rows_and_says_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(probe("d1") + "\n")
    for more in ([], ["--by", "site"]):
        ended = run("comm-cost", tmp_path / "d.jsonl", *more)
        assert ended.returncode == 0
        assert "1 probes of site-agent doctor" in ended.stdout
