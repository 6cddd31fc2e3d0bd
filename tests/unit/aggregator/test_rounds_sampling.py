"""Rounds that ask only some of the sites: who is drawn, who takes the place of whom, and when such a round closes."""

from collections import Counter
from dataclasses import replace

import pytest

from aggregator import instructions, rounds
from aggregator.instructions import SiteReport
from aggregator.rounds import AcceptedUpdate, FederationState, RoundState, SiteState
from shared.contract import RoundPolicy
from shared.errors import InputError

SEED, NUMBER = 7, 3
ORDER = ("d", "b", "c", "e", "a", "f")
"""By `printf '[7,3,"d"]' | sha256sum` and so on, sorted: 14929…, 37515…, 44f87…, 76288…, 860b9…, e36b4…"""
DEADLINE, GRACE = 1000.0, 100.0


def federation(
    *accepted: str,
    invited: tuple[str, ...] = ("b", "c", "d"),
    asks: int = 3,
    quorum: int = 3,
    evicted: tuple[str, ...] = (),
    deadline_at: float | None = DEADLINE,
    announced: dict[str, float] | None = None,
) -> FederationState:
    """Six sites of which a round asks `asks`; "b", "c" and "d" are drawn first."""
    return FederationState(
        name="demo",
        policy=RoundPolicy(rounds=8, invited=asks, quorum=quorum, deadline_s=DEADLINE, grace_s=GRACE),
        sites={n: SiteState(name=n, phase="evicted" if n in evicted else "joined") for n in "abcdef"},
        sampling_seed=SEED,
        round=RoundState(
            number=NUMBER,
            base_version=2,
            invited=invited,
            deadline_at=deadline_at,
            accepted={n: AcceptedUpdate(f"digest-{n}", 10, 5.0) for n in accepted},
            announced=announced or {},
        ),
    )


# the draw


def test_the_draw_is_the_order_of_known_hashes() -> None:
    assert tuple(rounds.draw("abcdef", SEED, NUMBER)) == ORDER
    assert rounds.invite("abcdef", 3, SEED, NUMBER) == ("b", "c", "d")


def test_every_round_and_every_seed_draws_anew() -> None:
    names = ("canon", "ge", "philips", "siemens")
    assert rounds.draw(names, 7, 3) == ["canon", "siemens", "philips", "ge"]
    assert rounds.draw(names, 7, 4) == ["philips", "ge", "siemens", "canon"]
    assert rounds.draw(names, 8, 3) == ["philips", "canon", "ge", "siemens"]


def test_asking_for_more_than_there_are_invites_everybody() -> None:
    assert rounds.invite(["ge", "canon"], 5, SEED, 1) == ("canon", "ge")
    assert rounds.invite([], 5, SEED, 1) == ()


def test_every_site_has_its_share_of_the_rounds() -> None:
    """3 of 10 sites, 3,000 rounds under fixed seeds: 900 each, give or take five standard deviations of 25.1."""
    names = [f"site-{k}" for k in range(10)]
    drawn = Counter(
        name for seed in range(10) for number in range(300) for name in rounds.invite(names, 3, seed, number)
    )
    assert sum(drawn.values()) == 9000
    assert all(abs(drawn[name] - 900) < 5 * 25.1 for name in names), drawn


# replacements


def test_a_full_round_that_is_in_time_asks_nobody_else() -> None:
    assert rounds.replacements(federation(), 0.0) == ()
    assert rounds.replacements(federation("b", "c", "d"), DEADLINE + GRACE) == ()


def test_an_evicted_site_is_replaced_by_the_next_of_the_draw() -> None:
    assert rounds.replacements(federation(evicted=("c",)), 0.0) == ("e",)
    assert rounds.replacements(federation(evicted=("c", "e")), 0.0) == ("a",)
    assert rounds.replacements(federation(evicted=("b", "c")), 0.0) == ("e", "a")


def test_with_an_eviction_the_round_waits_for_the_replacement_before_it_closes() -> None:
    state = federation("b", "d", evicted=("c",))
    assert (rounds.quorum(state), rounds.due_at(state)) == (2, None)
    assert rounds.waiting_for(state, 0.0) == "round 3 waits for sites in place of evicted ones"
    asked = federation("b", "d", invited=("b", "c", "d", "e"), evicted=("c",))
    assert (rounds.quorum(asked), rounds.due_at(asked), rounds.missing(asked)) == (3, None, ("e",))
    done = federation("b", "d", "e", invited=("b", "c", "d", "e"), evicted=("c",))
    assert rounds.is_due(done, 0.0)


def test_a_round_whose_every_site_was_evicted_asks_others() -> None:
    state = federation(evicted=("b", "c", "d"))
    assert rounds.replacements(state, 0.0) == ("e", "a", "f")
    assert rounds.due_at(state) is None


def test_with_nobody_left_to_ask_the_quorum_of_all_is_whoever_is_there() -> None:
    state = federation("b", "d", evicted=("a", "c", "e", "f"))
    assert rounds.replacements(state, 0.0) == ()
    assert rounds.is_due(state, 0.0)


def test_after_deadline_and_grace_every_missing_site_gets_a_substitute() -> None:
    state = federation("b")
    assert rounds.replacements(state, DEADLINE + GRACE - 0.001) == ()
    assert rounds.replacements(state, DEADLINE + GRACE) == ("e", "a")
    assert rounds.replacements(federation("b", "d"), DEADLINE + GRACE) == ("e",)


def test_with_its_quorum_a_late_round_closes_and_asks_nobody() -> None:
    state = federation("b", "d", quorum=2)
    assert rounds.replacements(state, DEADLINE + GRACE) == ()
    assert rounds.is_due(state, DEADLINE)


def test_substitutes_never_raise_the_quorum() -> None:
    state = federation("b", invited=("a", "b", "c", "d", "e"))
    assert rounds.quorum(state) == 3
    assert rounds.quorum(federation("b", invited=("a", "b", "c", "d", "e"), quorum=2)) == 2


def test_a_round_with_substitutes_closes_when_it_has_as_many_updates_as_a_round_asks_for() -> None:
    everybody = ("a", "b", "c", "d", "e")
    assert rounds.due_at(federation("a", "b", invited=everybody)) is None
    assert rounds.due_at(federation("a", "b", "e", invited=everybody)) == 0.0


def test_a_site_that_was_replaced_may_still_send_its_update() -> None:
    state = federation("b", invited=("a", "b", "c", "d", "e"))
    assert instructions.instruct(state, "c", SiteReport(), 0.0).instruction == "TRAIN"


def test_with_everybody_asked_the_round_stays_open_and_says_who_is_missing() -> None:
    state = federation("b", invited=tuple("abcdef"), evicted=("a",))
    late = DEADLINE + GRACE + 1
    assert rounds.replacements(state, late) == ()
    assert (rounds.due_at(state), rounds.next_moment(state, late)) == (None, None)
    assert rounds.is_overdue(state, late)
    assert (
        rounds.waiting_for(state, late) == "round 3 waits for c, d, e, f: past its deadline with 1 of 3 updates needed"
    )


def test_no_round_asks_further_sites_while_paused_or_closing() -> None:
    state = federation(evicted=("b",))
    assert rounds.replacements(replace(state, phase="paused"), 9e9) == ()
    assert rounds.replacements(replace(state, round=replace(state.round, phase="closing")), 9e9) == ()


def test_full_participation_asks_nobody_else_ever() -> None:
    state = federation("b", invited=tuple("abcdef"), asks=6, quorum=6, evicted=("c",))
    assert rounds.replacements(state, 9e9) == ()
    assert rounds.quorum(state) == 5


def test_before_the_clock_runs_only_evictions_are_made_up_for() -> None:
    assert rounds.replacements(federation(deadline_at=None), 9e9) == ()
    assert rounds.replacements(federation(deadline_at=None, evicted=("b",)), 9e9) == ("e",)
    assert rounds.next_moment(federation(deadline_at=None), 0.0) is None


# when something happens next


def test_the_next_moment_is_the_deadline_and_then_when_further_sites_are_asked() -> None:
    state = federation("b")
    assert rounds.next_moment(state, 0.0) == DEADLINE
    assert rounds.next_moment(state, DEADLINE) == DEADLINE + GRACE


def test_a_late_round_says_that_others_will_be_asked() -> None:
    text = rounds.waiting_for(federation("b"), DEADLINE)
    assert text == (
        "round 3 waits for c, d: past its deadline with 1 of 3 updates needed; "
        "after the grace others are invited in their place"
    )
    assert rounds.is_overdue(federation("b"), DEADLINE)
    assert not rounds.is_overdue(federation("b", "d", quorum=2), DEADLINE)


def test_a_site_that_is_not_invited_waits_and_learns_for_whom() -> None:
    answer = instructions.instruct(federation("b", "c"), "f", SiteReport(), 400.0)
    assert (answer.instruction, answer.reason) == ("WAIT", "round 3 waits for d")
    asked = instructions.instruct(
        federation("b", invited=tuple("bcdf")), "f", SiteReport(round=3, following="WAIT"), 400.0
    )
    assert asked.instruction == "TRAIN"
    assert instructions.is_news(asked, SiteReport(round=3, following="WAIT"))


def test_those_that_were_not_drawn_are_left_out_as_not_invited() -> None:
    state = federation("b", announced={"c": 1.0}, evicted=("f",))
    assert rounds.left_out(state) == {
        "a": "not invited",
        "c": "upload begun, not finished in time",
        "d": "joined, no update in time",
        "e": "not invited",
        "f": "evicted",
    }


def test_the_update_of_an_evicted_site_is_set_aside_by_its_digest() -> None:
    assert rounds.set_aside(federation("b", "c", evicted=("c",))) == {"c": "digest-c"}
    assert rounds.set_aside(federation("b", "c")) == {}


def test_an_eviction_may_not_leave_fewer_sites_than_an_agreed_quorum() -> None:
    state = federation(asks=3, quorum=2, evicted=("a", "b", "c", "d"))
    with pytest.raises(InputError, match="would leave 1 sites, fewer than the quorum of 2"):
        rounds.check_eviction(state, "e", 1)


def test_an_eviction_that_others_make_up_for_leaves_the_quorum_as_it_is() -> None:
    assert rounds.check_eviction(federation(asks=3, quorum=3, evicted=("a", "b")), "c") == ""
    with pytest.raises(InputError, match=r"would leave 2 sites: with a quorum of 2 .* --allow-quorum 2"):
        rounds.check_eviction(federation(asks=3, quorum=3, evicted=("a", "b", "c")), "d")
