"""How checks are run: in order, in their time, on firm ground; and that the page about them is true."""

import re
import threading
import time
from pathlib import Path

import pytest

from shared.errors import InputError
from site_agent.doctor import checks
from site_agent.doctor.checks import CHECKS, Check
from site_agent.doctor.finding import Finding, failed, passed, skipped
from tests.support.doctored import examined

DOCS = Path(__file__).resolve().parents[4] / "docs" / "doctor.md"


def check(name: str, look, *needs: str, limit_s: float = 5.0, asks: bool = False) -> Check:
    return Check(name, name.upper(), look, limit_s, "look at it", needs, asks)


def run(tmp_path: Path, *made: Check, **more: object) -> dict[str, Finding]:
    results = checks.examine(examined(tmp_path, None, **more), checks=made)
    return {result.check.name: result.finding for result in results}


def test_what_needs_a_failed_check_is_not_tried_and_says_so(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        check("a", lambda site: failed("no", "do")),
        check("b", lambda site: pytest.fail("tried"), "a"),
        check("c", lambda site: pytest.fail("tried"), "b"),
        check("d", lambda site: passed("yes")),
    )
    assert [one.status for one in found.values()] == ["FAIL", "SKIP", "SKIP", "PASS"]
    assert (found["b"].words, found["c"].words) == ("not tried: needs A", "not tried: needs B")


def test_what_is_missing_blocks_and_what_does_not_exist_does_not(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        check("a", lambda site: skipped("no contract")),
        check("b", lambda site: Finding("SKIP", "no TLS")),
        check("c", lambda site: passed("yes"), "b"),
        check("d", lambda site: passed("yes"), "a"),
    )
    assert (found["c"].status, found["d"].status) == ("PASS", "SKIP")


def test_a_check_that_hangs_fails_in_its_time_and_the_rest_goes_on(tmp_path: Path) -> None:
    end, began = threading.Event(), time.monotonic()
    hangs = check("a", lambda site: end.wait(30) and passed("late"), limit_s=0.05)
    found = run(tmp_path, hangs, check("b", lambda site: passed("yes")))
    took = time.monotonic() - began
    end.set()
    assert (found["a"].status, found["a"].words) == ("FAIL", "it did not end within 0.05 s")
    assert found["b"].status == "PASS"
    assert took < 5


def test_an_error_of_ours_and_a_defect_fail_and_keep_their_text_to_the_screen(tmp_path: Path) -> None:
    def refuses(site: object) -> Finding:
        raise InputError("case mnms/P004 is bad")

    def breaks(site: object) -> Finding:
        raise ZeroDivisionError("mnms/P004")

    found = run(tmp_path, check("a", refuses), check("b", breaks))
    assert found["a"].private == "case mnms/P004 is bad"
    assert "P004" not in f"{found['a'].words}{found['b'].words}{found['b'].remedy}{found['b'].private}"
    assert found["b"].words == "unexpected ZeroDivisionError"


def test_a_defect_shows_where_it_is_to_who_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(site: object) -> Finding:
        raise ZeroDivisionError("in the measure")

    found = run(tmp_path, check("a", breaks))["a"]
    assert f"{checks.TRACEBACK}=1 shows where" in found.remedy
    assert capsys.readouterr().err == ""
    run(tmp_path, check("a", breaks), environ={checks.TRACEBACK: "1"})
    assert "ZeroDivisionError: in the measure" in capsys.readouterr().err


def test_without_an_aggregator_the_network_is_not_asked_for(tmp_path: Path) -> None:
    asking = check("a", lambda site: pytest.fail("tried"), asks=True)
    found = run(tmp_path, asking, check("b", lambda site: passed("yes")), asked=False)
    assert found["a"].words == "not asked for: give --aggregator host:port"
    assert found["b"].status == "PASS"


def test_trouble_without_advice_cannot_be_told() -> None:
    for status in ("WARN", "FAIL"):
        with pytest.raises(ValueError, match="says what to do"):
            Finding(status, "broken")  # type: ignore[arg-type]


def test_every_need_is_a_check_that_comes_before() -> None:
    for number, one in enumerate(CHECKS):
        assert set(one.needs) <= {before.name for before in CHECKS[:number]}, one.name


def test_the_page_has_a_row_for_every_check_in_the_same_order() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` ([^|]+?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(one.name, one.title) for one in CHECKS]
