"""What every store must do, whatever database is behind it."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from aggregator import closing, rounds
from aggregator.manifest import of_round
from aggregator.optimisers import Moments
from aggregator.rounds import UpdateHeader
from aggregator.store import agents, engine, evaluations, federations, moments, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.updates import UpdateKey
from shared.contract import Contract, RoundPolicy
from shared.errors import BadOffset, ConflictingUpdate, IdentityInUse, InputError, NotFound, StaleRound
from shared.recipe import Recipe
from tests.support import adapters

SITES = ("ge", "philips", "siemens")
ADAPTER = adapters.adapter()
CONTRACT = Contract(
    federation="demo",
    adapter_digest=ADAPTER.digest,
    manifest=ADAPTER.manifest,
    recipe=Recipe(server_lr=0.5),
    policy=RoundPolicy(rounds=2, invited=3, quorum=2, deadline_s=100.0, grace_s=10.0),
)
DATA = bytes(range(200))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = engine.create(url)
    made.write(federations.create, CONTRACT, ADAPTER, {"ge": None, "philips": 40, "siemens": None}, 1000.0)
    yield made
    made.close()


def header(site: str = "ge", data: bytes = DATA, round_number: int = 1) -> UpdateHeader:
    return UpdateHeader(
        site=site,
        agent_id="agent",
        round=round_number,
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
        codec="f32",
        base_version=0,
        training_patients=10,
    )


def key(update: UpdateHeader) -> UpdateKey:
    return UpdateKey("demo", update.round, update.site, update.digest)


def stage_and_accept(connection: sa.Connection, key: UpdateKey, data: bytes, now: float) -> float:
    updates.stage(connection, key, 0, data)
    return updates.accept(connection, key, now)


def put(store: Store, site: str, data: bytes = DATA) -> UpdateHeader:
    update = header(site, data)
    store.write(updates.announce, "demo", update, 5.0)
    store.write(stage_and_accept, key(update), data, 6.0)
    return update


def begin_closing(store: Store, manifest: bytes = b"{}") -> bool:
    return store.write(round_rows.begin_closing, "demo", 1, manifest, "input")


# the federation


def test_what_was_agreed_reads_back(store: Store) -> None:
    assert store.read(federations.only_name) == "demo"
    contract = store.read(federations.contract, "demo")
    assert contract == CONTRACT
    assert contract.sha256 == CONTRACT.sha256
    assert store.read(federations.adapter, "demo", 0).to_bytes() == ADAPTER.to_bytes()


def test_a_new_federation_has_round_1_open_and_no_clock_running(store: Store) -> None:
    state = store.read(federations.state, "demo")
    assert (state.phase, state.version, state.digest) == ("running", 0, ADAPTER.digest)
    assert (state.round.number, state.round.phase, state.round.invited) == (1, "open", SITES)
    assert state.round.deadline_at is None
    assert {s.name: s.training_patients for s in state.sites.values()} == {"ge": None, "philips": 40, "siemens": None}


def test_the_first_join_fixes_the_patients_and_starts_the_clock_once(store: Store) -> None:
    store.write(federations.join, "demo", "ge", 12, 1100.0)
    store.write(federations.join, "demo", "ge", 99, 2000.0)
    state = store.read(federations.state, "demo")
    assert (state.sites["ge"].training_patients, state.sites["ge"].phase) == (12, "joined")
    assert state.round.deadline_at == 1100.0


def test_unknown_things_are_named(store: Store) -> None:
    with pytest.raises(NotFound, match=r"no federation 'other' in this store \(it has: demo\)"):
        store.read(federations.state, "other")
    with pytest.raises(NotFound, match="no adapter version 4; versions are 0 to 0"):
        store.read(federations.adapter, "demo", 4)
    with pytest.raises(NotFound, match="no round 9 yet"):
        store.read(round_rows.state, "demo", 9)


def test_a_pause_gives_its_time_back_to_the_deadline(store: Store) -> None:
    store.write(federations.join, "demo", "ge", 12, 1100.0)
    store.write(federations.set_phase, "demo", "paused", "maintenance", 1050.0)
    store.write(federations.set_phase, "demo", "paused", "again", 1060.0)  # no second start of the pause
    state = store.read(federations.state, "demo")
    assert (state.phase, state.reason) == ("paused", "maintenance")
    store.write(federations.set_phase, "demo", "running", "", 1080.0)
    state = store.read(federations.state, "demo")
    assert (state.phase, state.round.deadline_at) == ("running", 1130.0)


def test_a_repeated_evaluation_replaces_the_earlier_one(store: Store) -> None:
    for auc in (0.5, 0.75):
        store.write(evaluations.report, "demo", "ge", 1, 1, 20, {"auc": auc}, 9.0)
    (found,) = store.read(evaluations.read, "demo")
    assert (found["site"], found["cases"], found["metrics"]) == ("ge", 20, {"auc": 0.75})


# agents


def test_a_second_agent_is_refused_until_the_first_was_silent_long_enough(store: Store) -> None:
    store.write(agents.heard, "demo", "ge", "first-agent", 100.0, 60.0)
    with pytest.raises(IdentityInUse, match=r"agent first-ag was heard from 59 s ago, this one is second-a"):
        store.write(agents.heard, "demo", "ge", "second-agent", 159.0, 60.0)
    store.write(agents.heard, "demo", "ge", "second-agent", 160.0, 60.0)
    with pytest.raises(IdentityInUse):
        store.write(agents.heard, "demo", "ge", "first-agent", 161.0, 60.0)
    store.write(agents.heard, "demo", "siemens", "first-agent", 161.0, 60.0)  # another site is another matter


def test_a_refused_agent_leaves_no_trace(store: Store) -> None:
    store.write(agents.heard, "demo", "ge", "first", 100.0, 60.0, {"progress": 0.25})
    with pytest.raises(IdentityInUse):
        store.write(agents.heard, "demo", "ge", "second", 101.0, 60.0, {"progress": 1.0})
    site = store.read(federations.state, "demo").sites["ge"]
    assert (site.last_seen, site.progress) == (100.0, 0.25)


def test_an_agent_may_claim_any_version_the_protocol_can_carry(store: Store) -> None:
    store.write(agents.heard, "demo", "ge", "first", 100.0, 60.0, {"version": 2**32 - 1})
    assert store.read(federations.state, "demo").sites["ge"].version == 2**32 - 1


@pytest.mark.parametrize("agent_id", ["", "x" * 65, "a\0b"])
def test_an_agent_needs_a_usable_id(store: Store, agent_id: str) -> None:
    with pytest.raises(InputError, match="agent_id must have 1 to 64 printable characters"):
        store.write(agents.heard, "demo", "ge", agent_id, 1.0, 60.0)


# uploads


def test_an_upload_in_pieces_reads_back_and_counts_only_when_accepted(store: Store) -> None:
    update = header()
    assert store.write(updates.announce, "demo", update, 5.0) == 0
    for start in (0, 120):
        store.write(updates.stage, key(update), start, DATA[start : start + 120])
    assert store.read(federations.state, "demo").round.accepted == {}
    assert b"".join(updates.pieces(store, key(update))) == DATA
    assert store.write(updates.accept, key(update), 6.0) == 6.0
    assert store.read(federations.state, "demo").round.accepted["ge"].digest == update.digest


def test_announcing_again_tells_how_much_is_durable(store: Store) -> None:
    update = header()
    store.write(updates.announce, "demo", update, 5.0)
    store.write(updates.stage, key(update), 0, DATA[:70])
    assert store.write(updates.announce, "demo", update, 8.0) == 70
    assert store.read(federations.state, "demo").round.announced == {"ge": 5.0}


def test_every_step_repeated_changes_nothing(store: Store) -> None:
    update = put(store, "ge")
    assert store.write(updates.announce, "demo", update, 50.0) is None
    assert store.write(updates.accept, key(update), 51.0) == 6.0
    with pytest.raises(BadOffset):
        store.write(updates.stage, key(update), 0, DATA)
    store.write(updates.drop, key(update))  # an accepted update is never dropped
    assert b"".join(updates.pieces(store, key(update))) == DATA


def test_bytes_that_do_not_continue_are_refused_and_leave_no_trace(store: Store) -> None:
    update = header()
    store.write(updates.announce, "demo", update, 5.0)
    store.write(updates.stage, key(update), 0, DATA[:50])
    for offset in (0, 49, 51):
        with pytest.raises(BadOffset, match=f"chunk starts at byte {offset}, durable are 50"):
            store.write(updates.stage, key(update), offset, DATA[50:60])
    assert store.read(updates.committed, key(update)) == 50


def test_an_incomplete_upload_cannot_be_accepted(store: Store) -> None:
    update = header()
    store.write(updates.announce, "demo", update, 5.0)
    store.write(updates.stage, key(update), 0, DATA[:-1])
    with pytest.raises(BadOffset, match="not complete"):
        store.write(updates.accept, key(update), 6.0)


def test_an_unfinished_upload_may_be_replaced_and_its_bytes_go(store: Store) -> None:
    old, new = header(), header(data=DATA[::-1])
    store.write(updates.announce, "demo", old, 5.0)
    store.write(updates.stage, key(old), 0, DATA[:50])
    assert store.write(updates.announce, "demo", new, 7.0) == 0
    assert store.read(updates.find, key(old)) is None
    assert list(updates.pieces(store, key(old))) == []
    with pytest.raises(BadOffset, match="no unfinished upload"):
        store.write(updates.stage, key(old), 50, DATA[50:])


def test_an_accepted_update_is_never_replaced(store: Store) -> None:
    put(store, "ge")
    with pytest.raises(ConflictingUpdate):
        store.write(updates.announce, "demo", header(data=DATA[::-1]), 7.0)


def test_a_failing_commit_leaves_nothing_behind(store: Store) -> None:
    update = header()
    store.write(updates.announce, "demo", update, 5.0)
    with pytest.raises(BadOffset, match="not complete"):
        store.write(stage_and_accept, key(update), DATA[:10], 6.0)
    assert store.read(updates.committed, key(update)) == 0


def test_nothing_goes_into_a_round_that_is_no_longer_open(store: Store) -> None:
    put(store, "ge")
    late = header("siemens")
    store.write(updates.announce, "demo", late, 5.0)
    assert begin_closing(store)
    for work in (
        lambda: store.write(updates.announce, "demo", header("philips"), 6.0),
        lambda: store.write(updates.stage, key(late), 0, DATA[:10]),
        lambda: store.write(stage_and_accept, key(late), DATA, 6.0),
    ):
        with pytest.raises(StaleRound, match="round 1 is closing"):
            work()


def test_an_update_written_whole_is_as_one_that_was_announced_staged_and_accepted(store: Store) -> None:
    update, other = header(), header("siemens")
    assert store.write(updates.accept_whole, "demo", update, DATA, 5.0, 6.0) == 6.0
    put(store, "siemens")
    assert b"".join(updates.checked_pieces(store, key(update))) == DATA
    assert store.read(updates.find, key(update)) == (update, 6.0)
    assert store.read(updates.announced, key(update)) == store.read(updates.announced, key(other)) == 5.0
    state = store.read(federations.state, "demo")
    assert state.round.accepted["ge"] == state.round.accepted["siemens"]
    assert state.round.announced == {}


def test_an_update_written_whole_again_changes_nothing(store: Store) -> None:
    update = header()
    store.write(updates.accept_whole, "demo", update, DATA, 5.0, 6.0)
    assert store.write(updates.accept_whole, "demo", update, DATA, 50.0, 51.0) == 6.0
    assert store.write(updates.announce, "demo", update, 52.0) is None
    with pytest.raises(ConflictingUpdate):
        store.write(updates.accept_whole, "demo", header(data=DATA[::-1]), DATA[::-1], 53.0, 54.0)
    assert b"".join(updates.pieces(store, key(update))) == DATA


@pytest.mark.parametrize("begun", [DATA, DATA[::-1]], ids=["the same", "another"])
def test_an_update_written_whole_replaces_what_its_site_had_begun(store: Store, begun: bytes) -> None:
    update, before = header(), header(data=begun)
    store.write(updates.announce, "demo", before, 4.0)
    store.write(updates.stage, key(before), 0, begun[:70])
    assert store.write(updates.accept_whole, "demo", update, DATA, 5.0, 6.0) == 6.0
    assert b"".join(updates.pieces(store, key(update))) == DATA
    assert list(updates.pieces(store, key(header(data=DATA[::-1])))) == []
    with pytest.raises((BadOffset, ConflictingUpdate)):
        store.write(updates.stage, key(before), 70, begun[70:])


def test_an_update_written_whole_too_late_leaves_no_trace(store: Store) -> None:
    put(store, "ge")
    late = header("siemens")
    assert begin_closing(store)
    with pytest.raises(StaleRound, match="round 1 is closing"):
        store.write(updates.accept_whole, "demo", late, DATA, 5.0, 6.0)
    assert store.read(updates.find, key(late)) is None
    assert list(updates.pieces(store, key(late))) == []


def test_a_glance_is_at_the_last_commit_whoever_made_it_or_says_nothing(store: Store, url: str) -> None:
    def nothing(connection: object) -> None: ...

    other = engine.open_store(url)
    for one in (store, other, store):
        one.change("demo", False, nothing)
        assert store.glance("demo") in (None, store.read(federations.revision, "demo"))
    other.close()
    assert store.glance("no such federation") is None


# closing


def test_closing_refuses_a_decision_that_has_not_seen_every_accepted_update(store: Store) -> None:
    put(store, "ge")
    seen = store.read(federations.state, "demo")
    put(store, "siemens")
    assert not store.write(closing.begin_closing, seen, of_round(seen, Recipe(), "00" * 32, 1))
    seen = store.read(federations.state, "demo")
    assert seen.round.phase == "open"
    assert store.write(closing.begin_closing, seen, of_round(seen, Recipe(), "00" * 32, 1))


def test_the_first_to_fix_the_manifest_wins(store: Store) -> None:
    put(store, "ge")
    assert begin_closing(store, b'{"first":1}')
    assert not begin_closing(store, b'{"second":1}')
    assert store.read(round_rows.record, "demo", 1).manifest == b'{"first":1}'


def test_racing_closers_leave_one_manifest(store: Store) -> None:
    put(store, "ge")
    wins: list[int] = []
    barrier = threading.Barrier(4)

    def close(number: int) -> None:
        barrier.wait()
        if begin_closing(store, b'{"n":%d}' % number):
            wins.append(number)

    threads = [threading.Thread(target=close, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.read(round_rows.record, "demo", 1).manifest == b'{"n":%d}' % wins[0]


def test_a_round_is_closed_once(store: Store) -> None:
    put(store, "ge")
    assert not store.write(round_rows.close, "demo", 1, b"{}", 1, {}, 9.0)  # not closing yet
    begin_closing(store)
    assert store.write(round_rows.close, "demo", 1, b'{"r":1}', 1, {"update_norm/ge": 0.5}, 9.0)
    assert not store.write(round_rows.close, "demo", 1, b'{"r":2}', 1, {}, 10.0)
    record = store.read(round_rows.record, "demo", 1)
    assert (record.manifest, record.state.closed_at, record.version) == (b'{"r":1}', 9.0, 1)
    assert record.diagnostics == {"update_norm/ge": 0.5}


def test_after_the_last_round_the_federation_is_finished(store: Store) -> None:
    for number in (1, 2):
        state = store.read(federations.state, "demo")
        assert (state.round.number, state.phase) == (number, "running")
        store.write(round_rows.begin_closing, "demo", number, b"{}", "x")
        store.write(round_rows.close, "demo", number, b"{}", number, {}, 9.0)
        store.write(federations.add_adapter, "demo", replace(ADAPTER, version=number), 9.0)
        store.write(round_rows.go_on, "demo", number, 2, 100.0, 9.0)
    state = store.read(federations.state, "demo")
    assert (state.round.number, state.phase, state.version) == (2, "finished", 2)
    with pytest.raises(InputError, match="finished"):
        store.write(federations.set_phase, "demo", "paused", "", 10.0)


def test_the_next_round_invites_everybody_who_is_left(store: Store) -> None:
    store.write(federations.evict, "demo", "philips", "left the study")
    store.write(round_rows.abandon, "demo", 1, 9.0)
    store.write(round_rows.go_on, "demo", 0, 2, 100.0, 9.0)
    state = store.read(federations.state, "demo")
    assert (state.round.number, state.round.invited, state.round.deadline_at) == (2, ("ge", "siemens"), 109.0)
    assert store.read(round_rows.state, "demo", 1).phase == "abandoned"
    assert rounds.quorum(state) == 2


# what a restart finds


def test_everything_committed_is_there_after_opening_again(url: str) -> None:
    first = engine.create(url)
    first.write(federations.create, CONTRACT, ADAPTER, dict.fromkeys(SITES, 10), 1000.0)
    put(first, "ge")
    before = first.read(federations.state, "demo")
    first.close()
    again = engine.open_store(url)
    assert again.read(federations.state, "demo") == before
    again.close()


# what a server optimiser goes on from

MOMENTS = {
    "x": Moments(np.array([[1.0, -2.0], [1e-300, 3.0]]), np.array([[0.5, 0.25], [1e300, 0.0]])),
    "y": Moments(np.arange(3.0)),
}


def test_moments_read_back_bit_for_bit_with_their_version(store: Store) -> None:
    store.write(moments.add, "demo", 1, moments.to_bytes(MOMENTS))
    store.write(moments.add, "demo", 2, moments.to_bytes({"y": Moments(np.zeros(3))}))
    found = store.read(moments.find, "demo", 1)
    assert found.keys() == MOMENTS.keys()
    for name, kept in MOMENTS.items():
        np.testing.assert_array_equal(found[name].first, kept.first)
        assert (found[name].second is None) == (kept.second is None)
    np.testing.assert_array_equal(found["x"].second, MOMENTS["x"].second)  # type: ignore[arg-type]
    assert store.read(moments.file, "demo", 1) == moments.to_bytes(dict(reversed(MOMENTS.items())))
    assert store.read(moments.find, "demo", 2).keys() == {"y"}


def test_version_0_has_no_moments_and_others_must_have_them(store: Store) -> None:
    assert store.read(moments.find, "demo", 0) == {}
    with pytest.raises(InputError, match=r"moments of version 1 are not in it; .* rollback 0"):
        store.read(moments.find, "demo", 1)
    store.write(moments.add, "demo", 1, b"others")
    with pytest.raises(InputError, match="moments of version 1 cannot be read"):
        store.read(moments.find, "demo", 1)
