"""The status page: everything that sites say is text and nothing else, whatever they say; and what it says can be read by all."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aggregator.facts import facts, material
from aggregator.facts.facts import Facts
from aggregator.store import audit, evaluations, federations, schema
from aggregator.web import view
from aggregator.web.markup import VOID, tag
from shared.page import parts
from tests.support import closed_rounds

NOW = 1200.0
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;\u202e"
STATIC = Path(view.__file__).with_name("static")


class Document(HTMLParser):
    """Collects elements and text; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Every place that a site or a person can write to holds hostile text."""
    store = closed_rounds.make(tmp_path_factory.mktemp("view"), rounds_count=3)
    closed_rounds.run(store)
    store.write(evaluations.report, "demo", "ge", 1, 1, 9, {"auc": 0.75}, 1100.0)
    store.write(evaluations.report, "demo", "ge", 2, 2, 9, {"auc": 0.625}, 1100.0, "alone")
    store.write(federations.set_phase, "demo", "paused", HOSTILE, 1100.0)
    store.write(lambda c: c.execute(schema.sites.update().values(phase="evicted", reason=HOSTILE)))
    told = {"caller": "ge", "rpc": HOSTILE, "error": HOSTILE, "why": HOSTILE, "round": 0, "count": 1}
    store.write(lambda connection: audit.append(connection, "demo", 1101.0, "call_refused", **told))
    store.write(lambda connection: audit.append(connection, "demo", 1102.0, HOSTILE, **{HOSTILE: [HOSTILE]}))
    found = facts.make(store.read(material.read, "demo"), NOW)
    store.close()
    return found


def test_hostile_text_stays_text(made: Facts) -> None:
    page = Document(view.page(made, HOSTILE))
    assert [one.get("src") for one in page.all("script")] == ["static/page.js"], "no script but our own file"
    assert page.all("img") == []
    assert not [attributes for _, attributes in page.elements if {"onerror", "style", "onload"} & attributes.keys()]
    assert page.text.count("<script>alert(1)</script>") >= 6, "it is shown as it is"


def test_models_that_a_site_compared_stand_in_a_table_and_what_it_does_not_tell_is_a_dash(made: Facts) -> None:
    page = view.page(made, "")
    assert '<th scope="row">ge</th><td>-</td><td>0.625 / -</td><td>-</td><td>-</td><td>9</td>' in page
    without = view.page({**made, "model": {**made["model"], "arms": []}}, "")
    assert "on cases that the site held out" not in without


def test_every_name_of_a_site_is_escaped(made: Facts) -> None:
    """Names are checked when sites are enrolled; a store that was tampered with has others."""
    hostile = json.loads(json.dumps(made).replace('"ge"', json.dumps(HOSTILE)))
    page = Document(view.page({**hostile, "federation": HOSTILE, "in": [HOSTILE], "why_missing": {HOSTILE: HOSTILE}}))
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert len(page.all("script")) == 1
    assert page.all("img") == []


def test_the_page_loads_nothing_from_elsewhere(made: Facts) -> None:
    page = Document(view.page(made))
    where = [one.get(name) for _, one in page.elements for name in ("src", "href") if one.get(name)]
    assert where
    assert all(re.fullmatch(r"static/[a-z.]+|#round|status\.json|metrics", str(one)) for one in where)
    for file in (parts.COLOURS, *STATIC.iterdir()):
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", file.read_text()), file.name


def test_landmarks_headings_and_tables_say_what_they_are(made: Facts) -> None:
    page = Document(view.page(made))
    for landmark in ("header", "main", "footer"):
        assert len(page.all(landmark)) == 1
    ids = {one["id"] for _, one in page.elements if "id" in one}
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert len(page.all("caption")) == len(page.all("table")) >= 3
    assert all(one.get("scope") in ("col", "row") for one in page.all("th"))
    assert all(one["aria-label"] for one in page.all("svg"))
    assert all(one["aria-label"] for one in page.all("progress"))
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in page.all("div") if one.get("class") == "scroll")
    assert [one.get("role") for _, one in page.elements if one.get("role") in ("status", "alert")] == [
        "status",
        "alert",
    ]


def test_it_says_what_there_is_to_say(made: Facts) -> None:
    text = Document(view.page(made)).text
    for said in (
        "Round 3 is open: 0 of 3 sites are in",
        "AUC 0.750 mean of 1",
        "1 → 2",
        "round 2 closed with canon, ge, siemens",
    ):
        assert said in text
    assert "Model: dual (global and local part together)" in text


def test_old_facts_say_so_and_that_it_is_spoken(made: Facts) -> None:
    page = Document(view.page(made, "the store has not answered for 5 s"))
    assert "the store has not answered for 5 s. What is shown is of" in page.text
    assert [one["class"] for _, one in page.elements if one.get("role") == "alert" and "class" in one] == ["trouble"]


def test_a_deadline_that_has_passed_is_no_countdown(made: Facts) -> None:
    running: dict[str, Any] = {**made, "phase": "running", "deadline_at": NOW - 60.0}
    assert "1 min agothe deadline passed" in Document(view.page(running)).text


def test_without_javascript_the_page_loads_itself_again(made: Facts) -> None:
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in view.page(made)


def test_tags_escape_children_and_attributes() -> None:
    assert (
        tag("p", "<b>", tag("b", "&"), title='"<', hidden=True, id=None)
        == '<p title="&quot;&lt;" hidden>&lt;b&gt;<b>&amp;</b></p>'
    )
