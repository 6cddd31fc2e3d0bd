"""Every command that a page shows is one that its program takes, and something runs it: `test_guides.py`, a test that is named, or
`make check-long`."""

import pytest

from tests.docs import live, long, pages, rules
from tests.docs.pages import ROOT, Command

DISTINCT = pages.distinct()


@pytest.mark.parametrize("command", DISTINCT, ids=lambda one: one.where)
def test_its_program_takes_it(command: Command) -> None:
    assert live.problem(command) == "", command.text


def test_something_runs_it() -> None:
    missing = []
    for command in DISTINCT:
        try:
            rules.rule_of(command)
        except LookupError as error:
            missing.append(str(error))
    assert missing == []


def test_what_other_tests_run_they_do() -> None:
    for rule in rules.RULES:
        if rule.test:
            assert (ROOT / rule.test).exists(), f"{rule.pattern}: there is no {rule.test}"


def test_no_rule_is_left_over() -> None:
    used = [rules.rule_of(one) for one in DISTINCT]
    assert [rule.pattern for rule in rules.RULES if rule not in used] == []


def test_what_takes_over_a_minute_is_run_as_it_stands_by_name() -> None:
    given = [one.text for one in long.commands()]
    assert [one.text for one in DISTINCT if rules.where(one) == "long" and one.text not in given] == []
    assert {"make demo", "make test", "make comparison", "make bench-comm"} <= set(given)
    assert all(text.startswith("make bench") for text in (one.text for one in long.commands("^make bench")))
