"""Laws of rounds that hold for any sequence of updates."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aggregator import rounds
from aggregator.rounds import FederationState, RoundState, SiteReport, SiteState, UpdateHeader
from shared.contract import RoundPolicy
from shared.errors import ConflictingUpdate

NAMES = ("a", "b", "c", "d", "e")
headers = st.builds(
    lambda site, digest: UpdateHeader(
        site=site, agent_id="x", round=1, digest=digest, size=1, codec="f32", base_version=0, training_patients=1
    ),
    st.sampled_from(NAMES),
    st.sampled_from(("one", "two")),
)
OPEN = RoundState(number=1, base_version=0, invited=NAMES, deadline_at=100.0)


def admit_all(updates: list[UpdateHeader]) -> RoundState:
    state = OPEN
    for update in updates:
        try:
            state = rounds.admit(state, update)
        except ConflictingUpdate:
            continue
    return state


@given(st.lists(headers))
def test_admitting_twice_is_admitting_once(updates: list[UpdateHeader]) -> None:
    once = admit_all(updates)
    assert admit_all(updates + updates) == once
    for update in updates:
        if once.accepted[update.site].digest == update.digest:
            assert rounds.admit(once, update) is once


@given(st.data())
def test_the_order_of_arrival_does_not_matter(data: st.DataObject) -> None:
    sites = data.draw(st.lists(st.sampled_from(NAMES), unique=True))
    updates = [
        UpdateHeader(site=s, agent_id="x", round=1, digest=s, size=1, codec="f32", base_version=0, training_patients=1)
        for s in sites
    ]
    assert admit_all(updates) == admit_all(data.draw(st.permutations(updates)))


phases = st.sampled_from(("enrolled", "joined", "evicted"))
reports = st.builds(
    SiteReport,
    round=st.integers(0, 3),
    following=st.sampled_from(("NONE", "TRAIN", "WAIT", "ABANDON", "PAUSED", "FINISHED", "EVICTED")),
)


@st.composite
def federations(draw: st.DrawFn) -> FederationState:
    sites = {n: SiteState(name=n, phase=draw(phases)) for n in NAMES}
    state = admit_all(draw(st.lists(headers)))
    quorum = draw(st.integers(1, len(NAMES)))
    announced = draw(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 200)))
    state = replace(
        state,
        number=2,
        phase=draw(st.sampled_from(("open", "closing"))),
        announced={n: at for n, at in announced.items() if n not in state.accepted},
    )
    return FederationState(
        name="demo",
        policy=RoundPolicy(rounds=4, invited=len(NAMES), quorum=quorum, deadline_s=100.0, grace_s=10.0),
        phase=draw(st.sampled_from(("running", "paused", "finished"))),
        sites=sites,
        round=state,
    )


@given(federations())
def test_a_round_never_closes_without_its_quorum_or_without_anybody(state: FederationState) -> None:
    if rounds.due_at(state) is not None:
        assert len(rounds.counted(state)) >= max(1, rounds.quorum(state))
        assert state.phase == "running"
        assert state.round.phase == "open"


@given(federations())
def test_with_its_quorum_a_running_round_is_due_by_deadline_and_grace(state: FederationState) -> None:
    """No site can end a federation: whoever is missing, the round closes."""
    quorate = len(rounds.counted(state)) >= max(1, rounds.quorum(state))
    if quorate and state.phase == "running" and state.round.phase == "open":
        assert rounds.is_due(state, 110.0)


@given(federations())
def test_every_enrolled_site_is_either_in_or_left_out_with_a_reason(state: FederationState) -> None:
    held, out = rounds.counted(state), rounds.left_out(state)
    assert held.keys() | out.keys() == set(NAMES)
    assert not held.keys() & out.keys()
    assert all(out.values())


@given(federations(), st.sampled_from(NAMES), reports, st.floats(0, 300))
def test_an_obedient_site_is_never_answered_the_same_news_for_ever(
    state: FederationState, name: str, report: SiteReport, now: float
) -> None:
    """Following an instruction that is neither an end nor an abandonment makes the next call wait."""
    first = rounds.instruct(state, name, report, now)
    if first.instruction == "ABANDON":
        second = rounds.instruct(state, name, SiteReport(round=report.round, following="ABANDON"), now)
        assert second.instruction in ("TRAIN", "WAIT", "PAUSED")
    elif first.instruction not in ("FINISHED", "EVICTED"):
        obeying = SiteReport(round=first.round, following=first.instruction)
        again = rounds.instruct(state, name, obeying, now)
        assert (again.instruction == "ABANDON") or not rounds.is_news(again, obeying)
