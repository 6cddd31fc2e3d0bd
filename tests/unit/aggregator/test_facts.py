"""The facts of a federation: where sites stand, who is missing and why, what was sent. A pure function of what the store holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.facts import events, facts, material, sites
from aggregator.facts.calls import Calls, Failure
from aggregator.facts.material import Material
from aggregator.facts.sites import span
from aggregator.rounds import AcceptedUpdate, SiteState
from aggregator.store import agents, audit, engine, evaluations, federations
from shared.errors import InputError
from shared.rpc import CallRecord
from tests.support import adapters, closed_rounds

NOW = 1200.0


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two rounds closed by three sites, the third open since 1003 s; figures of two versions; a refusal in the journal."""
    store = closed_rounds.make(tmp_path_factory.mktemp("facts"), rounds_count=4)
    closed_rounds.run(store)
    told = [("canon", 1, 0.7), ("ge", 1, 0.8), ("canon", 2, 0.75)]
    for site, version, auc in told:
        store.write(evaluations.report, "demo", site, version, version, 9, {"auc": auc}, 1100.0)
    for site in closed_rounds.PATIENTS:
        store.write(federations.join, "demo", site, closed_rounds.PATIENTS[site], 5000.0)
    store.write(agents.heard, "demo", "ge", "agent", 1153.0, 60.0, {"progress": 0.5, "expires_at": NOW + 86400.0})
    refused = {
        "caller": "ge",
        "rpc": "Join",
        "error": "ContractMismatch",
        "why": "another base",
        "round": 0,
        "count": 3,
    }
    store.write(lambda connection: audit.append(connection, "demo", 1101.0, "call_refused", **refused))
    found = store.read(material.read, "demo")
    store.close()
    return found


def of_site(made: dict[str, Any], name: str) -> dict[str, Any]:
    return next(site for site in made["sites"] if site["site"] == name)


def with_sites(read: Material, **sites_: SiteState) -> Material:
    return replace(read, state=replace(read.state, sites={**read.state.sites, **sites_}))


def test_facts_are_json_and_keep_the_keys_that_tools_read(read: Material) -> None:
    made = facts.make(read, NOW)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    before = (
        "federation phase reason round rounds rounds_closed round_phase accepted quorum invited sampling missing quarantined "
        "deadline_at version digest recipe contract_sha256 sites"
    )
    assert set(before.split()) <= made.keys()
    of_a_site = (
        "site phase reason training_patients last_seen authenticated last_round progress invited accepted "
        "certificate_expires_at certificate"
    )
    assert set(of_a_site.split()) <= made["sites"][0].keys()


def test_a_site_that_trains_is_expected_by_its_own_pace(read: Material) -> None:
    """Half of the training in the 150 s from the opening of the round at 1003 s: the other half takes as long."""
    made = facts.make(read, NOW)
    ge = of_site(made, "ge")
    assert (ge["standing"], ge["expected_finish_at"]) == ("training", 1303.0)
    assert made["why_missing"]["ge"] == "training, 50% done"
    assert made["round_expected_finish_at"] is None, "of the two other sites nothing is known"


def test_the_last_missing_site_says_when_the_round_ends_but_not_after_the_deadline(read: Material) -> None:
    accepted = {name: AcceptedUpdate("ab", 10, 1100.0) for name in ("canon", "siemens")}
    state = replace(read.state, round=replace(read.state.round, accepted=accepted))
    assert facts.make(replace(read, state=state), NOW)["round_expected_finish_at"] == 1303.0
    early = replace(state, round=replace(state.round, deadline_at=1250.0))
    assert facts.make(replace(read, state=early), NOW)["round_expected_finish_at"] == 1250.0


def test_the_federation_ends_as_its_closed_rounds_took(read: Material) -> None:
    """Round 2 took 0 s in this store; let it have taken 100: rounds 3 and 4 are left, and 3 is late already."""
    second = replace(read.records[1], state=replace(read.records[1].state, closed_at=1103.0))
    slow = replace(read, records=[read.records[0], second, *read.records[2:]])
    assert facts.make(slow, 1050.0)["expected_finish_at"] == 1003.0 + 100.0 + 100.0
    assert facts.make(slow, NOW)["expected_finish_at"] == NOW + 100.0
    assert facts.make(replace(slow, state=replace(slow.state, phase="paused")), NOW)["expected_finish_at"] is None


@pytest.mark.parametrize(
    ("changes", "standing", "why"),
    [
        ({"phase": "enrolled"}, "never joined", "never joined"),
        ({"last_seen": NOW - 300.0}, "silent", "not heard from for 5 min"),
        ({}, "silent", "not heard from yet"),
        ({"last_seen": NOW - 30.0, "progress": 0.25}, "training", "training, 25% done"),
        ({"last_seen": NOW - 30.0}, "waiting", "has not begun to train"),
        ({"last_seen": NOW - 30.0, "hold": "RELEASE", "progress": 1.0}, "held up", sites.HOLDS["RELEASE"]),
        ({"last_seen": NOW - 300.0, "hold": "WINDOW"}, "silent", "not heard from for 5 min"),
    ],
)
def test_who_is_missing_and_why(read: Material, changes: dict[str, Any], standing: str, why: str) -> None:
    site = replace(SiteState(name="canon", phase="joined"), **changes)
    made = facts.make(with_sites(read, canon=site), NOW)
    assert of_site(made, "canon")["standing"] == standing
    assert made["why_missing"]["canon"] == why


def test_evicted_uploading_and_in(read: Material) -> None:
    base = SiteState(name="canon", phase="joined", last_seen=NOW)
    assert sites.standing(read.state, replace(base, phase="evicted"), NOW) == "evicted"
    uploading = replace(read.state, round=replace(read.state.round, announced={"canon": 1199.0}))
    assert sites.standing(uploading, base, NOW) == "uploading"
    held = replace(read.state, round=replace(read.state.round, accepted={"canon": AcceptedUpdate("ab", 10, 1.0)}))
    assert sites.standing(held, replace(base, last_seen=0.0), NOW) == "in"
    assert sites.standing(replace(read.state, phase="finished"), base, NOW) == "finished"


def test_of_a_site_that_has_shown_no_certificate_the_one_that_was_approved_last_is_told(read: Material) -> None:
    """The newest line counts, one that cannot be read does not, and what a site has shown counts more."""
    lines = [
        {"at": 2.0, "event": "site_approved", "site": "canon", "expires": "1970-01-09"},
        {"at": 2.0, "event": "site_approved", "site": "siemens", "expires": 5},
        {"at": 1.0, "event": "site_approved", "site": "canon", "expires": "1970-02-09"},
        {"at": 1.0, "event": "site_approved", "site": "ge", "expires": "1970-02-09"},
    ]
    journal = [(9 - n, json.dumps(line).encode()) for n, line in enumerate(lines)]
    made = facts.make(replace(read, journal=journal), NOW)
    ends = {name: of_site(made, name)["certificate_expires_at"] for name in ("canon", "siemens", "ge")}
    assert ends == {"canon": 8 * 86400.0, "siemens": None, "ge": NOW + 86400.0}
    assert "in 8 days" in of_site(made, "canon")["certificate"]


def test_a_certificate_that_ends_soon_is_spoken_of(read: Material) -> None:
    assert "in 1 days" in of_site(facts.make(read, NOW), "ge")["certificate"]
    assert of_site(facts.make(read, NOW), "canon")["certificate"] == ""


def test_a_site_whose_last_certificate_is_revoked_is_told_so_and_an_earlier_one_does_not_count(read: Material) -> None:
    canon = SiteState(name="canon", phase="joined", last_seen=NOW, serial="2b")
    taken = replace(with_sites(read, canon=canon), state=replace(read.state, revoked=frozenset({"2b", "1a"})))
    taken = with_sites(taken, canon=canon, ge=replace(read.state.sites["ge"], serial="3c"))
    made = facts.make(taken, NOW)
    told = of_site(made, "canon")
    assert (told["certificate_revoked"], told["certificate"], told["standing"]) == (
        True,
        "certificate revoked",
        "revoked",
    )
    assert "its certificate is revoked" in made["why_missing"]["canon"]
    assert of_site(made, "ge")["certificate_revoked"] is False
    assert of_site(made, "siemens")["certificate_revoked"] is False, "of it no certificate is known"
    held = replace(taken.state.round, accepted={"canon": AcceptedUpdate("ab", 10, 1.0)})
    accepted = of_site(facts.make(replace(taken, state=replace(taken.state, round=held)), NOW), "canon")
    assert (accepted["standing"], accepted["certificate"]) == ("in", "certificate revoked")


def test_the_last_error_is_the_newer_one_of_the_journals_and_of_this_process(read: Material) -> None:
    journal = of_site(facts.make(read, NOW), "ge")["last_error"]
    assert journal == {"at": 1101.0, "rpc": "Join", "words": "ContractMismatch: another base"}
    calls = Calls(lambda: read.state, lambda: 1150.0)
    calls.failures["ge"] = Failure(1150.0, "UploadDelta", "UNAVAILABLE", "StoreUnavailable: away")
    assert of_site(facts.make(read, NOW, calls.counted()), "ge")["last_error"]["words"] == "StoreUnavailable: away"
    calls.failures["ge"] = Failure(1000.0, "UploadDelta", "UNAVAILABLE", "older")
    assert of_site(facts.make(read, NOW, calls.counted()), "ge")["last_error"] == journal


def test_curves_are_of_each_site_and_of_their_mean(read: Material) -> None:
    (curve,) = facts.make(read, NOW)["model"]["curves"]
    assert curve["metric"] == "auc"
    assert curve["sites"] == {"canon": [[1, 0.7], [2, 0.75]], "ge": [[1, 0.8]]}
    assert curve["mean"] == [[1, 0.75, 2], [2, 0.75, 1]]


def test_bytes_are_the_stores_and_calls_this_processs(read: Material) -> None:
    size = adapters.adapter().manifest.layout.size
    told = facts.make(read, NOW)["communication"]
    assert [one["updates_bytes"] for one in told["rounds"]] == 2 * [dict.fromkeys(("canon", "ge", "siemens"), size)]
    assert {one["site"]: one["updates_bytes"] for one in told["sites"]} == dict.fromkeys(
        ("canon", "ge", "siemens"), 2 * size
    )
    assert told["since"] is None
    calls = Calls(lambda: read.state, lambda: 1100.0)
    record = CallRecord("aggregator", "UploadDelta", "id", attempt=1, site="ge", round=3)
    record.up, record.down = [2, 500, 400], [1, 60, 0]
    calls.note(record, "OK", "", 0.1)
    probe = CallRecord("aggregator", "Probe", "id", attempt=0, site="ge")
    probe.up, probe.down = [1, 262_144, 0], [1, 262_144, 0]
    calls.note(probe, "OK", "", 0.1)
    told = facts.make(read, NOW, calls.counted())["communication"]
    counted = {"calls": 1, "retries": 1, "bytes_up": 500, "bytes_down": 60}
    assert told["sites"][1]["counted"] == counted
    assert told["rounds"][-1] == {"round": 3, "updates_bytes": {}, "counted": {"ge": counted}}


def test_made_up_names_and_rounds_are_counted_under_one_name(read: Material) -> None:
    calls = Calls(lambda: read.state, lambda: 1100.0)
    for number in range(50):
        record = CallRecord("aggregator", "Join", "id", attempt=0, site=f"stranger-{number}", round=2**31 + number)
        calls.note(record, "PERMISSION_DENIED", "NotEnrolled: no", 0.1)
    calls.note(CallRecord("aggregator", "Join", "id", 0, site="ge", round=2**31), "OK", "", 0.1)
    calls.note(CallRecord("aggregator", "Pause", "id", 0, site="coordinator:anna"), "OK", "", 0.1)
    assert {caller for caller, _, _ in calls.by_kind} == {"(other)", "ge", "(coordinator)"}
    assert calls.failures == {}
    assert calls.by_round == {}


def test_rounds_that_are_long_over_are_forgotten(read: Material) -> None:
    number = 1
    calls = Calls(lambda: replace(read.state, round=replace(read.state.round, number=number)), lambda: 1100.0)
    for number in range(1, 31):
        calls.note(CallRecord("aggregator", "UploadDelta", "id", 0, site="ge", round=number), "OK", "", 0.1)
    assert sorted(round_ for round_, _ in calls.by_round) == list(range(11, 31))


def test_events_are_told_newest_first_and_in_words(read: Material) -> None:
    told = facts.make(read, NOW)["events"]
    assert [one["n"] for one in told] == sorted((one["n"] for one in told), reverse=True)
    assert told[0]["words"] == "Join of ge refused (3 times): another base"
    assert told[1]["words"] == "round 2 closed with canon, ge, siemens: version 2"


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{", b'{"n":1,"at":"x","event":"round_closed","previous":""}', b"\xff", b"[" * 100_000],
    ids=["empty", "list", "cut", "no time", "no text", "deep"],
)
def test_a_line_that_was_changed_does_not_hide_the_others(line: bytes) -> None:
    good = b'{"at":1.0,"event":"federation_resumed","by":"anna","n":1,"previous":""}'
    found = list(events.read([(2, line), (1, good)]))
    assert [one.event for one in found] == ["unreadable", "federation_resumed"]
    assert "aggregator audit" in found[0].words
    assert found[1].words == "resumed by anna"


def test_a_line_without_its_facts_is_still_told() -> None:
    (found,) = events.read([(1, b'{"at":1.0,"event":"round_closed","round":3,"n":1,"previous":""}')])
    assert found.words == "round 3"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (150, "2 min 30 s"),
        (601, "10 min"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (86400 * 4, "4 days"),
    ],
)
def test_spans_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_damaged_row_is_an_error_of_input_that_names_the_store(tmp_path: Path) -> None:
    store = closed_rounds.make(tmp_path)
    store.write(lambda c: c.exec_driver_sql("UPDATE rounds SET invited = '{'"))
    with pytest.raises(InputError, match="cannot be read"), engine.damage_named(store):
        store.read(material.read, "demo")
    store.close()
