"""What rounds leave in a store, on every database: draws, further invitations, no half uploads, retention."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator import closing, manifest, rounds, verify
from aggregator.manifest import RoundManifest
from aggregator.store import federations, schema, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store, sa
from aggregator.store.updates import UpdateKey
from shared.errors import BadOffset, InputError, StaleRound
from shared.recipe import Recipe
from tests.support import adapters, closed_rounds

SIX = dict.fromkeys("abcdef", 10)
SEED = 7


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield ""
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
def store(tmp_path: Path, url: str) -> Iterator[Store]:
    """Three sites, all of them in every round."""
    made = closed_rounds.make(tmp_path, url=url, quorum=2, rounds_count=4)
    yield made
    made.close()


@pytest.fixture
def sampled(tmp_path: Path, url: str) -> Iterator[Store]:
    """Six sites, three of them in a round."""
    made = closed_rounds.make(tmp_path, SIX, url=url, invited=3, sampling_seed=SEED, rounds_count=4)
    yield made
    made.close()


def state_of(store: Store) -> rounds.FederationState:
    return store.read(federations.state, "demo")


def payload(store: Store, seed: int = 1) -> bytes:
    return adapters.delta(store.read(federations.contract, "demo").manifest.layout, seed)


def count(store: Store, table: sa.Table, **where: object) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(*(table.c[k] == v for k, v in where.items()))
    return int(store.read(lambda connection: connection.execute(query).scalar_one()))


# who is asked


def test_every_round_asks_the_sites_its_seed_draws(sampled: Store) -> None:
    assert state_of(sampled).sampling_seed == SEED
    closed_rounds.run(sampled, tuple("abcdef"), rounds_count=3)
    asked = [record.state.invited for record in sampled.read(round_rows.records, "demo")]
    assert asked == [rounds.invite("abcdef", 3, SEED, number) for number in (1, 2, 3, 4)]
    assert asked[2] == ("b", "c", "d")  # by hand: test_rounds_sampling.ORDER
    assert len(set(asked)) > 1


def test_an_evicted_site_is_drawn_no_more(sampled: Store) -> None:
    sampled.write(federations.evict, "demo", "d", "left the study")
    for number in (1, 2):
        sampled.write(round_rows.abandon, "demo", number, 9.0)
        sampled.write(round_rows.go_on, "demo", 0, 4, 100.0, 9.0)
    assert state_of(sampled).round.invited == ("b", "c", "e")  # the draw's next in place of "d"


def test_further_sites_join_the_round_with_a_new_deadline(sampled: Store) -> None:
    sampled.write(federations.join, "demo", "a", 10, 1100.0)
    seen = state_of(sampled)
    more = tuple(rounds.draw(set("abcdef") - set(seen.round.invited), SEED, 1)[:1])
    assert sampled.write(closing.invite_more, seen, more, 5000.0)
    found = state_of(sampled).round
    assert (found.invited, found.deadline_at) == (tuple(sorted((*seen.round.invited, *more))), 5000.0)
    assert not sampled.write(closing.invite_more, seen, ("a",), 9000.0)  # decided on an older state
    assert state_of(sampled).round == found


def test_a_clock_that_stands_still_is_not_started_by_an_invitation(sampled: Store) -> None:
    assert sampled.write(closing.invite_more, state_of(sampled), ("a", "e"), 5000.0)
    assert state_of(sampled).round.deadline_at is None


def test_nobody_is_invited_to_a_round_that_is_over(sampled: Store) -> None:
    seen = state_of(sampled)
    sampled.write(round_rows.abandon, "demo", 1, 9.0)
    assert not sampled.write(closing.invite_more, seen, ("a",), 5000.0)
    assert sampled.read(round_rows.state, "demo", 1).invited == seen.round.invited


def test_nobody_is_invited_beside_an_update_that_came_in_meanwhile(sampled: Store) -> None:
    """It may have been the one the quorum lacked."""
    seen = state_of(sampled)
    closed_rounds.send(sampled, seen.round.invited[0], payload(sampled))
    assert not sampled.write(closing.invite_more, seen, ("a",), 5000.0)
    assert state_of(sampled).round.invited == seen.round.invited


def test_racing_invitations_leave_one(sampled: Store) -> None:
    seen, wins = state_of(sampled), []
    others = sorted(set("abcdef") - set(seen.round.invited))
    barrier = threading.Barrier(len(others))

    def invite(name: str) -> None:
        barrier.wait()
        if sampled.write(closing.invite_more, seen, (name,), 5000.0):
            wins.append(name)

    threads = [threading.Thread(target=invite, args=(name,)) for name in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert state_of(sampled).round.invited == tuple(sorted((*seen.round.invited, *wins)))


# closing


def test_no_manifest_is_fixed_on_what_is_no_longer_so(sampled: Store) -> None:
    """Its list of who was left out, and why, would not be true."""
    asked = state_of(sampled).round.invited
    closed_rounds.send(sampled, asked[0], payload(sampled))
    other = min(set(SIX) - set(asked))
    changes: list[Callable[[], object]] = [
        lambda: sampled.write(closing.invite_more, state_of(sampled), (other,), 5000.0),
        lambda: closed_rounds.announce(sampled, asked[1], payload(sampled)),
        lambda: closed_rounds.send(sampled, asked[1], payload(sampled)),
        lambda: sampled.write(federations.evict, "demo", asked[2], "left the study"),
        lambda: sampled.write(federations.set_phase, "demo", "paused", "holiday", 9.0),
    ]
    for change in changes:
        seen = state_of(sampled)
        decided = manifest.of_round(seen, Recipe(), "00" * 32, 1)
        change()
        assert not sampled.write(closing.begin_closing, seen, decided)
        assert state_of(sampled).round.phase == "open"
    seen = state_of(sampled)
    assert sampled.write(closing.begin_closing, seen, manifest.of_round(seen, Recipe(), "00" * 32, 1))


def test_bytes_that_are_no_longer_those_accepted_never_reach_a_version(store: Store) -> None:
    for site in closed_rounds.PATIENTS:
        closed_rounds.send(store, site, payload(store))
    zeroed = schema.chunks.update().where(schema.chunks.c.site == "ge", schema.chunks.c.offset == 100)
    store.write(lambda connection: connection.execute(zeroed.values(data=bytes(100))))
    with pytest.raises(InputError, match=r"round 1's update of site 'ge' have SHA-256 .*, accepted was .*rollback"):
        closed_rounds.close(store)
    store.write(lambda connection: connection.execute(schema.chunks.delete().where(schema.chunks.c.site == "ge")))
    with pytest.raises(InputError, match="round 1's update of site 'ge'"):  # a lost chunk
        closed_rounds.compute(store)


# pauses


def test_a_round_gets_back_the_part_of_a_pause_it_was_there_for(store: Store) -> None:
    store.write(federations.join, "demo", "ge", 10, 1100.0)
    store.write(federations.set_phase, "demo", "paused", "", 1010.0)
    store.write(federations.set_phase, "demo", "running", "", 1040.0)
    assert state_of(store).round.deadline_at == 1130.0
    store.write(federations.set_phase, "demo", "paused", "", 1050.0)
    store.write(round_rows.abandon, "demo", 1, 1060.0)
    store.write(round_rows.go_on, "demo", 0, 4, 100.0, 1060.0)
    store.write(federations.set_phase, "demo", "running", "", 1070.0)
    assert state_of(store).round.deadline_at == 1170.0


# evictions


def test_no_update_counts_whose_site_was_evicted_before_the_manifest_was_fixed(store: Store) -> None:
    for site in closed_rounds.PATIENTS:
        closed_rounds.send(store, site, payload(store))
    seen = state_of(store)
    decided = manifest.of_round(seen, Recipe(), "00" * 32, 1)
    store.write(federations.evict, "demo", "ge", "left the study")
    assert not store.write(closing.begin_closing, seen, decided)
    assert state_of(store).round.phase == "open"
    closed_rounds.close(store)
    final = RoundManifest.from_bytes(store.read(round_rows.record, "demo", 1).manifest)
    assert [entry.site for entry in final.entries] == ["canon", "siemens"]
    assert final.left_out == {"ge": "evicted: left the study"}
    assert final.set_aside == {"ge": seen.round.accepted["ge"].digest}
    assert verify.verify(store, "demo", [1])[0].difference == ""


def test_an_eviction_is_for_good_and_keeps_its_first_reason(store: Store) -> None:
    store.write(federations.evict, "demo", "ge", "left the study")
    store.write(federations.evict, "demo", "ge", "again")
    store.write(federations.join, "demo", "ge", 77, 1100.0)  # a Join that was under way
    site = state_of(store).sites["ge"]
    assert (site.phase, site.reason) == ("evicted", "left the study")


# half uploads


def half_upload(store: Store, site: str) -> UpdateKey:
    data = payload(store, 5)
    key = closed_rounds.announce(store, site, data)
    store.write(updates.stage, key, 0, data[:100])
    return key


def test_closing_a_round_drops_what_was_never_finished_and_the_manifest_says_so(store: Store) -> None:
    kept = [closed_rounds.send(store, site, payload(store)) for site in ("canon", "siemens")]
    half = half_upload(store, "ge")
    assert count(store, schema.chunks, site="ge") == 1
    closed_rounds.close(store)
    assert (count(store, schema.chunks, site="ge"), count(store, schema.updates, site="ge")) == (0, 0)
    assert all(b"".join(updates.pieces(store, key)) == payload(store) for key in kept)
    final = RoundManifest.from_bytes(store.read(round_rows.record, "demo", 1).manifest)
    assert final.left_out == {"ge": "upload begun, not finished in time"}
    assert verify.verify(store, "demo", [1])[0].difference == ""
    late = payload(store, 5)
    with pytest.raises(BadOffset, match="begin again"):
        store.write(updates.stage, half, 100, late[100:])
    again = rounds.UpdateHeader(
        site="ge", agent_id="x", round=1, digest=half.digest, size=len(late), codec="f32", base_version=0,
        training_patients=77,
    )  # fmt: skip
    with pytest.raises(StaleRound, match=r"round 1 is closed .* throw it away and ask for the current round"):
        store.write(updates.announce, "demo", again, 9.0)


def test_abandoning_a_round_drops_half_uploads_and_keeps_accepted_ones_on_record(store: Store) -> None:
    closed_rounds.send(store, "canon", payload(store))
    half_upload(store, "ge")
    store.write(round_rows.abandon, "demo", 1, 9.0)
    assert count(store, schema.updates, site="ge") == count(store, schema.chunks, site="ge") == 0
    assert list(store.read(round_rows.state, "demo", 1).accepted) == ["canon"]


def test_a_close_that_came_second_drops_nothing(store: Store) -> None:
    half_upload(store, "ge")
    assert not store.write(round_rows.close, "demo", 1, b"{}", 1, {}, 9.0)  # not closing: somebody else decides
    assert count(store, schema.chunks, site="ge") == 1


# retention


def test_only_bytes_older_than_the_rounds_to_keep_are_dropped(store: Store) -> None:
    closed_rounds.run(store, rounds_count=3)
    assert store.write(updates.purge, "demo", 3, 50.0) == []
    assert store.write(updates.purge, "demo", 1, 50.0) == [1, 2]
    assert store.write(updates.purge, "demo", 1, 60.0) == []
    purged = [(r.state.number, r.purged_at) for r in store.read(round_rows.records, "demo")]
    assert purged == [(1, 50.0), (2, 50.0), (3, None), (4, None)]
    assert [count(store, schema.chunks, round=number) > 0 for number in (1, 2, 3)] == [False, False, True]
    assert all(len(r.state.accepted) == 3 for r in store.read(round_rows.records, "demo")[:3])
    assert store.read(federations.adapter, "demo", 1).version == 1


def test_the_open_round_is_never_purged_and_an_abandoned_one_is(store: Store) -> None:
    closed_rounds.send(store, "canon", payload(store))
    store.write(round_rows.abandon, "demo", 1, 9.0)
    store.write(round_rows.go_on, "demo", 0, 4, 100.0, 9.0)
    closed_rounds.send(store, "canon", payload(store))
    assert store.write(updates.purge, "demo", 1, 50.0) == []
    closed_rounds.send(store, "ge", payload(store))
    closed_rounds.close(store)
    closed_rounds.send(store, "canon", payload(store))
    assert store.write(updates.purge, "demo", 1, 50.0) == [1]
    assert [count(store, schema.chunks, round=number) > 0 for number in (1, 2, 3)] == [False, True, True]


def test_at_least_one_round_is_kept(store: Store) -> None:
    with pytest.raises(InputError, match="at least 1 round must be kept, got 0"):
        store.write(updates.purge, "demo", 0, 50.0)


def test_a_repeated_announcement_of_a_purged_update_is_still_accepted(store: Store) -> None:
    closed_rounds.run(store, rounds_count=2)
    store.write(updates.purge, "demo", 1, 50.0)
    held = store.read(round_rows.state, "demo", 1).accepted["ge"]
    header = rounds.UpdateHeader(
        site="ge", agent_id="x", round=1, digest=held.digest, size=1, codec="f32", base_version=0, training_patients=77
    )
    assert store.write(updates.announce, "demo", header, 60.0) is None
    assert store.write(updates.accept, UpdateKey("demo", 1, "ge", held.digest), 61.0) == held.at


def test_a_purged_round_is_verified_by_its_chain_and_never_called_recomputed(store: Store) -> None:
    digests = closed_rounds.run(store, rounds_count=3)
    store.write(updates.purge, "demo", 1, 50.0)
    found = verify.verify(store, "demo")[:3]
    assert [check.purged for check in found] == [True, True, False]
    assert [check.digest for check in found] == digests
    assert {check.difference for check in found} == {""}
    words = "manifest chain ok, update bytes purged by retention: result not recomputable"
    assert [check.finding for check in found] == [words, words, f"ok, {digests[2][:16]}"]


class PurgedMeanwhile(Store):
    """A store whose old updates are purged by the serving process right after it was read."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        found = self._store.read(work, *args, **kwargs)
        self._store.write(updates.purge, "demo", 1, 50.0)
        return found


def test_bytes_purged_while_they_are_verified_are_no_difference(store: Store) -> None:
    closed_rounds.run(store, rounds_count=2)
    found = verify.verify(PurgedMeanwhile(store), "demo", [1, 2])
    assert [(check.difference, check.purged) for check in found] == [("", True), ("", False)]
