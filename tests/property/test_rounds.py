"""Laws of rounds that hold for any sequence of updates, evictions and waits."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from aggregator import instructions, rounds
from aggregator.instructions import SiteReport
from aggregator.rounds import FederationState, RoundState, SiteState, UpdateHeader
from shared.contract import RoundPolicy
from shared.errors import ConflictingUpdate, InputError, StaleRound

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
    first = instructions.instruct(state, name, report, now)
    if first.instruction == "ABANDON":
        second = instructions.instruct(state, name, SiteReport(round=report.round, following="ABANDON"), now)
        assert second.instruction in ("TRAIN", "WAIT", "PAUSED")
    elif first.instruction not in ("FINISHED", "EVICTED"):
        obeying = SiteReport(round=first.round, following=first.instruction)
        again = instructions.instruct(state, name, obeying, now)
        assert (again.instruction == "ABANDON") or not instructions.is_news(again, obeying)


# sampling


@given(st.data(), st.integers(0, 2**53), st.integers(1, 1000), st.integers(1, 8))
def test_the_draw_hangs_on_seed_round_and_names_alone(data: st.DataObject, seed: int, number: int, count: int) -> None:
    names = data.draw(st.lists(st.text("abcdef-0123456789", min_size=1, max_size=8), unique=True, min_size=1))
    asked = rounds.invite(names, count, seed, number)
    assert asked == rounds.invite(data.draw(st.permutations(names)), count, seed, number)
    assert asked == tuple(sorted(set(asked)))
    assert len(asked) == min(count, len(names))
    assert set(asked) <= set(names)


@given(st.sets(st.sampled_from("abcdefghij"), min_size=2), st.integers(0, 2**53), st.integers(1, 1000))
def test_taking_a_site_out_changes_no_other_sites_place(names: set[str], seed: int, number: int) -> None:
    order = rounds.draw(names, seed, number)
    for gone in names:
        assert rounds.draw(names - {gone}, seed, number) == [name for name in order if name != gone]


DEADLINE_S, GRACE_S = 100.0, 10.0


@dataclass
class Course:
    """A federation that goes on as the aggregator lets it: after every event what is to be done about the round is done."""

    state: FederationState
    now: float = 0.0
    closed: list[int] = field(default_factory=list)
    allow_quorum: int = 0
    """What the coordinator says with every eviction."""

    @classmethod
    def of(cls, sites: int, invited: int, quorum: int, seed: int, allow_quorum: int = 0) -> "Course":
        names = [f"s{k}" for k in range(sites)]
        policy = RoundPolicy(rounds=1000, invited=invited, quorum=quorum, deadline_s=DEADLINE_S, grace_s=GRACE_S)
        first = RoundState(
            number=1, base_version=0, invited=rounds.invite(names, invited, seed, 1), deadline_at=DEADLINE_S
        )
        joined = {name: SiteState(name=name, phase="joined") for name in names}
        state = FederationState(name="demo", policy=policy, sites=joined, sampling_seed=seed, round=first)
        return cls(state, allow_quorum=allow_quorum)

    @property
    def active(self) -> set[str]:
        return {name for name, site in self.state.sites.items() if site.phase != "evicted"}

    def change(self, **values: object) -> None:
        self.state = replace(self.state, round=replace(self.state.round, **values))

    def accept(self, site: str) -> None:
        """An update arrives; refused as the aggregator refuses it."""
        current = self.state.round
        update = UpdateHeader(
            site=site, agent_id="x", round=current.number, digest=site, size=1, codec="f32",
            base_version=current.base_version, training_patients=1,
        )  # fmt: skip
        if self.state.sites[site].phase != "evicted":
            try:
                self.state = replace(self.state, round=rounds.admit(current, update, self.now))
            except StaleRound:
                return

    def announce(self, site: str) -> None:
        current = self.state.round
        if site in current.invited and site not in current.accepted and site in self.active:
            self.change(announced={**current.announced, site: self.now})

    def evict(self, site: str) -> None:
        try:
            rounds.check_eviction(self.state, site, self.allow_quorum)
        except InputError:
            return
        gone = replace(self.state.sites[site], phase="evicted")
        self.state = replace(self.state, sites={**self.state.sites, site: gone})

    def settle(self) -> None:
        """Do what `closing` does, until there is nothing to do."""
        while True:
            current = self.state.round
            if more := rounds.replacements(self.state, self.now):
                assert not rounds.is_due(self.state, self.now)
                assert not set(more) & set(current.invited)
                assert set(more) <= self.active
                self.change(invited=tuple(sorted((*current.invited, *more))), deadline_at=self.now + DEADLINE_S)
            elif rounds.is_due(self.state, self.now):
                self._close()
            else:
                return

    def _close(self) -> None:
        policy, current, held = self.state.policy, self.state.round, rounds.counted(self.state)
        wanted = policy.quorum if policy.quorum < policy.invited else min(policy.quorum, len(self.active))
        assert len(held) >= max(1, wanted), "closed below quorum"
        assert len(held) >= min(policy.quorum, self.allow_quorum or 3), "closed below what the sites agreed to, unsaid"
        assert held.keys() == current.accepted.keys() & self.active, "an accepted update of an active site was lost"
        assert held.keys() | rounds.left_out(self.state).keys() == self.state.sites.keys()
        assert held.keys() | rounds.set_aside(self.state).keys() == current.accepted.keys()
        self.closed.append(current.number)
        number = current.number + 1
        asked = rounds.invite(self.active, policy.invited, self.state.sampling_seed, number)
        opened = RoundState(
            number=number, base_version=number - 1, invited=asked, opened_at=self.now, deadline_at=self.now + DEADLINE_S
        )
        self.state = replace(self.state, round=opened)


@st.composite
def courses(draw: st.DrawFn) -> Course:
    sites = draw(st.integers(1, 9))
    invited = draw(st.integers(1, sites))
    quorum, seed = draw(st.integers(1, invited)), draw(st.integers(0, 2**53))
    return Course.of(sites, invited, quorum, seed, draw(st.integers(0, 2)))


events = st.lists(
    st.tuples(
        st.sampled_from(("accept", "accept", "accept", "announce", "evict", "wait")),
        st.integers(0, 8),
        st.floats(0, 2 * DEADLINE_S),
    ),
    max_size=40,
)


def play(course: Course, happened: Iterable[tuple[str, int, float]]) -> None:
    for kind, index, seconds in happened:
        site = f"s{index % len(course.state.sites)}"
        if kind == "wait":
            course.now += seconds
        else:
            getattr(course, kind)(site)
        course.settle()
        check_alive(course)


def check_alive(course: Course) -> None:
    """Something will happen: time alone brings it, or the sites that are waited for do, and they are named."""
    state = course.state
    waits = rounds.missing(state)
    assert rounds.next_moment(state, course.now) is not None or waits
    if waits:
        assert waits[0] in rounds.waiting_for(state, course.now)
        assert instructions.instruct(state, waits[0], SiteReport(), course.now).instruction == "TRAIN"
    if course.now >= (state.round.deadline_at or 0.0) + GRACE_S:
        assert set(state.round.invited) >= course.active, "sites that might answer were not asked"
        assert rounds.is_overdue(state, course.now)


@given(courses(), events)
def test_no_round_closes_below_its_quorum_loses_an_update_or_waits_for_nothing(
    course: Course, happened: list[tuple[str, int, float]]
) -> None:
    play(course, happened)


@given(courses(), events, st.data())
def test_whatever_happened_the_sites_that_answer_bring_the_round_to_its_end(
    course: Course, happened: list[tuple[str, int, float]], data: st.DataObject
) -> None:
    """As long as a quorum of sites answers when asked, nobody else can end the federation: a bounded time is enough."""
    play(course, happened)
    policy, active = course.state.policy, sorted(course.active)
    needed = min(policy.quorum, len(active))
    answering = data.draw(st.permutations(active))[: data.draw(st.integers(needed, len(active)))]
    number, start = course.state.round.number, course.now
    while course.state.round.number == number:
        for site in answering:
            course.accept(site)
        course.settle()
        if course.state.round.number == number:
            moment = rounds.next_moment(course.state, course.now)
            assert moment is not None, rounds.waiting_for(course.state, course.now)
            course.now = moment
            course.settle()
    assert course.now - start <= (len(active) + 1) * (DEADLINE_S + GRACE_S)
