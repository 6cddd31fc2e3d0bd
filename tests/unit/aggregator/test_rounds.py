"""Rounds are values: every decision about them is tested without a clock, a socket or a store."""

from dataclasses import replace

import pytest

from aggregator import instructions, rounds
from aggregator.instructions import SiteReport
from aggregator.rounds import AcceptedUpdate, FederationState, RoundState, SiteState, UpdateHeader
from shared.contract import RoundPolicy
from shared.errors import ConflictingUpdate, InputError, StaleRound

SITES = ("canon", "ge", "philips", "siemens")
DEADLINE, GRACE = 1000.0, 100.0


def header(site: str = "ge", digest: str = "d1", **changes: object) -> UpdateHeader:
    made = UpdateHeader(
        site=site, agent_id="a", round=3, digest=digest, size=8, codec="f32", base_version=2, training_patients=10
    )
    return replace(made, **changes)


def federation(
    *accepted: str, quorum: int = 4, announced: dict[str, float] | None = None, **changes: object
) -> FederationState:
    state = RoundState(
        number=3,
        base_version=2,
        invited=SITES,
        opened_at=0.0,
        deadline_at=DEADLINE,
        accepted={site: AcceptedUpdate(f"digest-{site}", 10, 5.0) for site in accepted},
        announced=announced or {},
    )
    made = FederationState(
        name="demo",
        policy=RoundPolicy(rounds=8, invited=4, quorum=quorum, deadline_s=DEADLINE, grace_s=GRACE),
        version=2,
        digest="v2",
        sites={name: SiteState(name=name, phase="joined", last_seen=1.0) for name in SITES},
        round=state,
    )
    return replace(made, **changes)


def evicted(state: FederationState, *names: str) -> FederationState:
    gone = {n: replace(state.sites[n], phase="evicted", reason="left the study") for n in names}
    return replace(state, sites={**state.sites, **gone})


# admission


def test_retry_of_an_accepted_update_changes_nothing() -> None:
    once = rounds.admit(federation().round, header(), at=7.0)
    assert rounds.admit(once, header(), at=99.0) is once
    assert once.accepted["ge"] == AcceptedUpdate("d1", 10, 7.0)


def test_another_digest_for_an_accepted_update_is_a_conflict_naming_both() -> None:
    once = rounds.admit(federation().round, header())
    with pytest.raises(ConflictingUpdate, match="already holds update d1 of site 'ge', got d2"):
        rounds.admit(once, header(digest="d2"))


@pytest.mark.parametrize("phase", ["closing", "closed", "abandoned"])
def test_a_late_update_is_stale_with_an_explanation(phase: str) -> None:
    with pytest.raises(StaleRound, match=rf"round 3 is {phase} and takes no more updates; .* came too late"):
        rounds.admit(replace(federation().round, phase=phase), header())


def test_a_retry_after_the_close_still_holds() -> None:
    closed = replace(rounds.admit(federation().round, header()), phase="closed")
    assert rounds.admit(closed, header()) is closed


def test_an_update_from_another_version_is_stale() -> None:
    with pytest.raises(StaleRound, match="starts from version 2, the update was trained from version 1"):
        rounds.admit(federation().round, header(base_version=1))


def test_an_update_for_another_round_is_stale() -> None:
    with pytest.raises(StaleRound, match="round 3 is open, the update is for round 4"):
        rounds.admit(federation().round, header(round=4))


def test_an_uninvited_site_waits_for_the_next_round() -> None:
    with pytest.raises(StaleRound, match="not invited to round 3"):
        rounds.admit(replace(federation().round, invited=("siemens",)), header())


def test_admitting_ends_the_announcement() -> None:
    state = federation(announced={"ge": 1.0, "canon": 2.0}).round
    assert rounds.admit(state, header()).announced == {"canon": 2.0}


# closing


def test_a_round_closes_at_once_when_everybody_is_in() -> None:
    state = federation(*SITES)
    assert rounds.due_at(state) == 0.0
    assert rounds.is_due(state, now=1.0)


def test_a_round_with_quorum_waits_for_its_deadline_and_no_longer() -> None:
    state = federation("ge", "siemens", quorum=2)
    assert not rounds.is_due(state, DEADLINE - 0.001)
    assert rounds.is_due(state, DEADLINE)


def test_an_upload_begun_before_the_deadline_has_the_grace() -> None:
    state = federation("ge", "siemens", quorum=2, announced={"canon": DEADLINE - 1})
    assert not rounds.is_due(state, DEADLINE + GRACE - 0.001)
    assert rounds.is_due(state, DEADLINE + GRACE)


def test_an_upload_begun_after_the_deadline_holds_nobody_up() -> None:
    assert rounds.due_at(federation("ge", "siemens", quorum=2, announced={"canon": DEADLINE + 1})) == DEADLINE


def test_a_round_without_quorum_stays_open_and_says_who_is_missing() -> None:
    state = federation("ge", quorum=2)
    assert rounds.due_at(state) is None
    assert rounds.is_overdue(state, DEADLINE)
    text = rounds.waiting_for(state, DEADLINE + 5)
    assert text == "round 3 waits for canon, philips, siemens: past its deadline with 1 of 2 updates needed"


def test_a_quorum_of_everybody_shrinks_with_an_eviction() -> None:
    state = evicted(federation("canon", "ge", "siemens"), "philips")
    assert rounds.quorum(state) == 3
    assert rounds.is_due(state, 1.0)


def test_the_update_of_an_evicted_site_is_left_out_of_the_open_round() -> None:
    state = evicted(federation(*SITES), "ge")
    assert list(rounds.counted(state)) == ["canon", "philips", "siemens"]
    assert rounds.left_out(state) == {"ge": "evicted: left the study"}


def test_no_round_closes_while_paused() -> None:
    state = federation(*SITES, phase="paused")
    assert rounds.due_at(state) is None
    assert rounds.next_moment(state, 1.0) is None


def test_a_round_whose_clock_has_not_started_waits_for_everybody() -> None:
    state = federation("ge", "siemens", quorum=2)
    state = replace(state, round=replace(state.round, deadline_at=None))
    assert rounds.due_at(state) is None
    assert not rounds.is_overdue(state, 1e12)


def test_the_next_moment_is_the_deadline_then_the_end_of_the_grace_then_none() -> None:
    state = federation("ge", "siemens", quorum=2, announced={"canon": 1.0})
    assert rounds.next_moment(state, 0.0) == DEADLINE
    assert rounds.next_moment(state, DEADLINE) == DEADLINE + GRACE
    assert rounds.next_moment(federation("ge"), DEADLINE) is None


def test_everyone_left_out_has_a_reason() -> None:
    state = federation("siemens", quorum=1, announced={"ge": 1.0})
    state = replace(state, sites={**state.sites, "canon": SiteState(name="canon")})
    state = replace(state, round=replace(state.round, invited=("canon", "ge", "siemens")))
    assert rounds.left_out(state) == {
        "canon": "never joined",
        "ge": "upload begun, not finished in time",
        "philips": "not invited",
    }
    assert rounds.left_out(federation("siemens", quorum=1))["ge"] == "joined, no update in time"


def test_an_eviction_that_breaks_an_agreed_quorum_is_refused() -> None:
    with pytest.raises(InputError, match="would leave 2 sites, fewer than the quorum of 3"):
        rounds.check_eviction(evicted(federation(quorum=3), "canon"), "ge")
    assert rounds.check_eviction(federation(quorum=3), "ge") == ""
    assert rounds.check_eviction(federation(), "ge") == ""  # quorum of everybody shrinks


@pytest.mark.parametrize(("gone", "left"), [(("canon",), 2), (("canon", "ge"), 1)])
def test_an_eviction_makes_rounds_of_fewer_than_three_only_if_that_is_said(gone: tuple[str, ...], left: int) -> None:
    state = evicted(federation(), *gone)
    for allowed in (0, left + 1, 3):
        with pytest.raises(InputError, match=rf"leave {left} sites: with a quorum of {left} .* --allow-quorum {left}"):
            rounds.check_eviction(state, "philips", allowed)
    for allowed in range(1, left + 1):
        assert rounds.check_eviction(state, "philips", allowed) == rounds.quorum_warning(left) != ""


def test_where_the_sites_agreed_to_a_small_quorum_an_eviction_only_warns() -> None:
    assert "of two sites can subtract" in rounds.check_eviction(federation(quorum=2), "ge")
    assert "one site's update alone" in rounds.check_eviction(federation(quorum=1), "ge")
    pair = evicted(federation(quorum=2), "canon", "ge")
    with pytest.raises(InputError, match="would leave 1 sites, fewer than the quorum of 2 the sites agreed to"):
        rounds.check_eviction(pair, "philips", 1)


def test_a_repeated_eviction_is_no_further_one() -> None:
    assert rounds.check_eviction(evicted(federation(), "canon", "ge"), "ge") == ""


def test_the_last_site_cannot_be_evicted_and_an_unknown_one_is_named() -> None:
    with pytest.raises(InputError, match="would leave 0 sites"):
        rounds.check_eviction(evicted(federation(), "canon", "ge", "philips"), "siemens", 1)
    with pytest.raises(InputError, match="no site 'nobody' in federation 'demo'"):
        rounds.check_eviction(federation(), "nobody")


# instructions


def instruction(state: FederationState, report: SiteReport = SiteReport(), now: float = 0.0) -> str:
    return instructions.instruct(state, "ge", report, now).instruction


def test_a_site_without_an_update_in_the_open_round_trains() -> None:
    answer = instructions.instruct(federation("siemens"), "ge", SiteReport(), now=400.0)
    assert (answer.instruction, answer.round, answer.version, answer.digest) == ("TRAIN", 3, 2, "v2")
    assert answer.remaining_s == 600.0


def test_a_site_whose_update_is_in_waits_and_learns_for_whom() -> None:
    answer = instructions.instruct(federation("ge", "siemens"), "ge", SiteReport(), now=0.0)
    assert (answer.instruction, answer.reason) == ("WAIT", "round 3 waits for canon, philips")


def test_a_site_at_work_on_a_round_that_is_over_abandons_it_and_then_trains() -> None:
    state = federation()
    assert instruction(state, SiteReport(round=2, following="TRAIN")) == "ABANDON"
    assert instruction(state, SiteReport(round=2, following="ABANDON")) == "TRAIN"


def test_a_site_at_work_on_a_closing_round_abandons_it_and_then_waits() -> None:
    state = federation("siemens", quorum=1)
    state = replace(state, round=replace(state.round, phase="closing"))
    assert instruction(state, SiteReport(round=3, following="TRAIN")) == "ABANDON"
    assert instruction(state, SiteReport(round=3, following="ABANDON")) == "WAIT"


def test_a_heartbeat_of_a_site_at_work_is_no_news() -> None:
    report = SiteReport(round=3, following="TRAIN", progress=0.4)
    answer = instructions.instruct(federation(), "ge", report, 0.0)
    assert answer.instruction == "TRAIN"
    assert not instructions.is_news(answer, report)


def test_paused_finished_and_evicted_come_with_their_reason() -> None:
    paused = federation(phase="paused", reason="maintenance")
    assert instructions.instruct(paused, "ge", SiteReport(), 0.0).reason == "maintenance"
    assert instruction(paused) == "PAUSED"
    assert instruction(federation(phase="finished")) == "FINISHED"
    gone = instructions.instruct(evicted(federation(), "ge"), "ge", SiteReport(), 0.0)
    assert (gone.instruction, gone.reason) == ("EVICTED", "left the study")


def test_eviction_outranks_a_pause_and_the_end() -> None:
    for phase in ("paused", "finished"):
        assert instruction(evicted(federation(phase=phase), "ge")) == "EVICTED"


@pytest.mark.parametrize(
    ("instruction_", "following", "news"),
    [
        ("FINISHED", "FINISHED", True),
        ("EVICTED", "EVICTED", True),
        ("PAUSED", "PAUSED", False),
        ("PAUSED", "TRAIN", True),
        ("WAIT", "WAIT", False),
        ("WAIT", "NONE", True),
        ("TRAIN", "WAIT", True),
    ],
)
def test_only_news_goes_out_at_once(instruction_: str, following: str, news: bool) -> None:
    answer = instructions.Answer(instruction=instruction_, round=3, version=2, digest="")
    assert instructions.is_news(answer, SiteReport(round=3, following=following)) is news


def test_a_next_round_is_news_to_an_uninvited_site_too() -> None:
    answer = instructions.Answer(instruction="WAIT", round=4, version=3, digest="")
    assert instructions.is_news(answer, SiteReport(round=3, following="WAIT"))
