"""The norm gate: what is measured, who is quarantined, and what becomes of a round with such an update in it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator import gate, rounds
from aggregator.rounds import AcceptedUpdate, FederationState, RoundState, SiteState
from shared.contract import RoundPolicy
from tests.unit.aggregator import test_rules as dense
from tests.unit.aggregator.test_robust import hidden, rotated
from tests.unit.aggregator.test_rules import HEAD, A, B

SITES = ("canon", "ge", "philips", "siemens", "toshiba", "uih")
GATE, DEADLINE = 4.0, 1000.0


# --- how large ------------------------------------------------------------------------------------------------------


def test_what_is_measured_is_what_the_rule_adds_up():
    parent, (delta,) = dense.base(residual=0), dense.deltas(1)
    stream = dense.stream(delta)
    product = dense.product(dense.trained(parent, delta)) - dense.product(parent)
    head = np.linalg.norm(delta[HEAD])
    factors = np.hypot(np.linalg.norm(delta[A]), np.linalg.norm(delta[B]))
    assert gate.norms("factors", parent, stream) == pytest.approx({"low-rank": factors, "others": head}, rel=1e-6)
    for rule in ("products", "exact"):
        expected = {"low-rank": np.linalg.norm(product), "others": head}
        assert gate.norms(rule, parent, stream) == pytest.approx(expected, rel=1e-6)


def test_other_factors_are_longer_and_their_product_is_not():
    parent, (delta,) = dense.base(residual=0), dense.deltas(1)
    one, turned = (gate.norms("products", parent, dense.stream(d)) for d in (delta, rotated(parent, delta)))
    assert turned == pytest.approx(one, rel=1e-5)
    plain, longer = (gate.norms("factors", parent, dense.stream(d)) for d in (delta, rotated(parent, delta)))
    assert longer["low-rank"] > 2 * plain["low-rank"]


def test_factors_that_nearly_cancel_hide_nothing():
    parent, (delta,) = dense.base(residual=0), dense.deltas(1)
    for seed in range(20):
        forged = hidden(parent, delta, seed=seed)
        moved = dense.product(dense.trained(parent, forged)) - dense.product(parent)
        found = gate.norms("products", parent, dense.stream(forged))["low-rank"]
        assert found == pytest.approx(np.linalg.norm(moved), rel=1e-6)


def test_the_norm_of_a_change_that_is_next_to_nothing_is_right():
    parent, (delta,) = dense.base(residual=0), dense.deltas(1)
    small = {name: (1e-6 * value).astype(np.float32) for name, value in delta.items()}
    moved = dense.product(dense.trained(parent, small)) - dense.product(parent)
    found = gate.norms("products", parent, dense.stream(small))["low-rank"]
    assert found == pytest.approx(np.linalg.norm(moved), rel=1e-6)


# --- who is quarantined ---------------------------------------------------------------------------------------------


def sizes(*norms: float, head: float = 1.0) -> dict[str, dict[str, float]]:
    return {site: {"low-rank": norm, "others": head} for site, norm in zip(SITES, norms, strict=False)}


@pytest.mark.parametrize(
    ("norms", "out"),
    [
        ((1, 1, 1, 1, 100), {"toshiba"}),
        ((1, 2, 3, 4, 5), set()),
        ((1, 1, 1, 1, 4), set()),
        ((1, 1, 1, 1, 4.01), {"toshiba"}),
        ((0.001, 1, 1, 1, 1), set()),
        ((100, 100, 1, 1, 1), {"canon", "ge"}),
        ((100, 100, 100, 1, 1), set()),
        ((1, 1, 1, 100), set()),
        ((0, 0, 0, 0, 1), {"toshiba"}),
        ((0, 0, 0, 0, 0), set()),
    ],
)
def test_who_is_far_above_the_median_of_five_or_more_is_quarantined(norms, out):
    assert gate.too_large(sizes(*norms), GATE).keys() == out
    assert gate.too_large(sizes(*norms), 0.0) == {}


def test_an_update_that_is_large_in_its_head_alone_does_not_hide_behind_its_factors():
    found = sizes(50, 50, 50, 50, 50)
    found["ge"]["others"] = 7.0
    expected = "others part has norm 7, the median is 1 and the gate 4 times that"
    assert gate.too_large(found, GATE) == {"ge": expected}


def test_two_parts_cannot_send_away_more_than_half():
    found = sizes(100, 100, 1, 1, 1)
    for site in ("philips", "siemens"):
        found[site]["others"] = 100.0
    assert gate.too_large(found, GATE) == {}
    found = sizes(100, 1, 1, 1, 1)
    found["ge"]["others"] = 100.0
    assert gate.too_large(found, GATE).keys() == {"canon", "ge"}


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=5, max_size=12), st.floats(1.01, 100))
@settings(max_examples=200, deadline=None)
def test_fewer_than_half_are_ever_quarantined(norms, most):
    found = {f"s{k}": {"low-rank": one, "others": two} for k, (one, two) in enumerate(norms)}
    assert 2 * len(gate.too_large(found, most)) < len(norms)


# --- what becomes of the round --------------------------------------------------------------------------------------


def federation(*norms: float, quorum: int = 6, **changes: object) -> FederationState:
    accepted = {
        site: AcceptedUpdate(f"digest-{site}", 10, 5.0, {"low-rank": norm})
        for site, norm in zip(SITES, norms, strict=False)
    }
    state = RoundState(number=3, base_version=2, invited=SITES, deadline_at=DEADLINE, accepted=accepted)
    made = FederationState(
        name="demo",
        policy=RoundPolicy(rounds=8, invited=6, quorum=quorum, deadline_s=DEADLINE, grace_s=100.0),
        sites={name: SiteState(name=name, phase="joined", last_seen=1.0) for name in SITES},
        norm_gate=GATE,
        round=state,
    )
    return replace(made, **changes)


def test_a_quarantined_update_is_in_and_does_not_count():
    state = federation(1, 1, 1, 1, 1, 90)
    assert set(rounds.counted(state)) == set(SITES) - {"uih"}
    assert rounds.missing(state) == ()
    assert rounds.set_aside(state) == {"uih": "digest-uih"}
    reason = "quarantined: low-rank part has norm 90, the median is 1 and the gate 4 times that"
    assert rounds.left_out(state) == {"uih": reason}


def test_a_quorum_of_all_is_all_but_the_quarantined_so_that_no_site_can_end_a_federation():
    state = federation(1, 1, 1, 1, 1, 90)
    assert rounds.quorum(state) == 5
    assert rounds.is_due(state, 10.0)
    assert rounds.waiting_for(state, 10.0) == ""


def test_a_smaller_quorum_stays_what_the_sites_agreed_to_and_the_round_says_what_it_waits_for():
    state = federation(1, 1, 1, 1, 90, quorum=5)
    assert not rounds.is_due(state, 2 * DEADLINE)
    assert rounds.missing(state) == ("uih",)
    everybody = federation(1, 1, 1, 90, 90, 1, quorum=5)
    assert not rounds.is_due(everybody, 2 * DEADLINE)
    assert rounds.is_overdue(everybody, 2 * DEADLINE)
    said = "round 3 has 4 of 5 updates needed, those of siemens, toshiba being quarantined"
    assert rounds.waiting_for(everybody, 10.0) == said
    enough = federation(1, 1, 1, 1, 90, 1, quorum=5)
    assert rounds.is_due(enough, 10.0)


def test_others_are_asked_in_place_of_quarantined_sites_where_a_round_draws():
    state = federation(1, 1, 1, 1, 90, quorum=5)
    state = replace(
        state, policy=replace(state.policy, invited=5, quorum=5), round=replace(state.round, invited=SITES[:5])
    )
    assert rounds.quorum(state) == 4
    drawing = replace(
        state, policy=replace(state.policy, invited=5, quorum=4), round=replace(state.round, invited=SITES[:5])
    )
    assert rounds.is_due(drawing, 10.0)
    short = federation(1, 1, 90, 90, 1, quorum=4)
    short = replace(
        short, policy=replace(short.policy, invited=5, quorum=4), round=replace(short.round, invited=SITES[:5])
    )
    assert rounds.replacements(short, DEADLINE) == ()
    assert rounds.replacements(short, DEADLINE + 100.0) == ("uih",)


def test_an_evicted_site_counts_in_no_median():
    state = federation(1, 1, 1, 1, 90, 90)
    gone = {"uih": replace(state.sites["uih"], phase="evicted")}
    state = replace(state, sites={**state.sites, **gone})
    assert rounds.quarantined(state).keys() == {"toshiba"}
    assert rounds.set_aside(state).keys() == {"toshiba", "uih"}
    assert rounds.left_out(state)["uih"] == "evicted"
