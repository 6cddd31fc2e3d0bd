"""What a coordinator does holds at once, may be repeated, and takes nothing from a round that is being closed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator import closing, manifest, rounds, steering, verify
from aggregator.federation import Federation
from aggregator.store import federations
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from shared.errors import InputError, NotFound
from shared.recipe import Recipe
from tests.support import adapters, closed_rounds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three sites, all of them in every round, of which the first is closed."""
    made = closed_rounds.make(tmp_path, rounds_count=4)
    closed_rounds.run(made, rounds_count=1)
    yield made
    made.close()


@pytest.fixture
def federation(store: Store) -> Federation:
    return Federation(store, "demo")


def send(store: Store, site: str) -> None:
    layout = store.read(federations.contract, "demo").manifest.layout
    closed_rounds.send(store, site, adapters.delta(layout, 1))


def course(store: Store) -> list[tuple[int, str, int, int]]:
    """Every round's number, phase, base version and number of accepted updates."""
    found = [record.state for record in store.read(round_rows.records, "demo")]
    return [(state.number, state.phase, state.base_version, len(state.accepted)) for state in found]


# rollback


async def test_a_repeated_rollback_keeps_the_round_that_the_first_began(store: Store, federation: Federation) -> None:
    send(store, "ge")
    assert await steering.rollback(federation, "anna", 0, "") == steering.RolledBack(3, abandoned=2)
    send(store, "ge")
    send(store, "canon")
    assert await steering.rollback(federation, "anna", 0, "") == steering.RolledBack(3, abandoned=None)
    assert course(store) == [(1, "closed", 0, 3), (2, "abandoned", 1, 1), (3, "open", 0, 2)]
    assert store.read(federations.state, "demo").version == 0


async def test_a_rollback_to_the_current_version_begins_its_round_anew(store: Store, federation: Federation) -> None:
    send(store, "ge")
    assert await steering.rollback(federation, "anna", 1, "") == steering.RolledBack(3, abandoned=2)
    assert course(store)[1:] == [(2, "abandoned", 1, 1), (3, "open", 1, 0)]


async def test_after_a_rollback_there_is_another_to_another_version(store: Store, federation: Federation) -> None:
    await steering.rollback(federation, "anna", 0, "")
    assert await steering.rollback(federation, "anna", 1, "") == steering.RolledBack(4, abandoned=3)
    assert course(store)[2:] == [(3, "abandoned", 0, 0), (4, "open", 1, 0)]


async def test_a_round_that_a_rollback_began_is_given_up_by_its_number(store: Store, federation: Federation) -> None:
    await steering.rollback(federation, "anna", 0, "")
    send(store, "ge")
    assert await steering.rollback(federation, "anna", 0, "", 3) == steering.RolledBack(4, abandoned=3)
    with pytest.raises(InputError, match="round 3 cannot be given up: the last one is round 4, and it is open"):
        await steering.rollback(federation, "anna", 0, "", 3)
    assert course(store)[2:] == [(3, "abandoned", 0, 1), (4, "open", 0, 0)]


async def test_a_version_that_is_not_there_changes_nothing(store: Store, federation: Federation) -> None:
    before = store.read(federations.state, "demo")
    with pytest.raises(NotFound, match="no adapter version 2; versions are 0 to 1"):
        await steering.rollback(federation, "anna", 2, "")
    assert store.read(federations.state, "demo") == before


async def test_a_round_that_is_being_closed_is_not_taken_back(store: Store, federation: Federation) -> None:
    for site in closed_rounds.PATIENTS:
        send(store, site)
    seen, parent = store.read(federations.state, "demo"), store.read(federations.adapter, "demo", 1)
    decided = manifest.of_round(seen, Recipe(), parent.digest, 2)
    assert store.write(closing.begin_closing, seen, decided)
    for number in (0, 1, 3):
        with pytest.raises(InputError, match=r"round 2 is being closed this moment; try again .* with --round 2"):
            await steering.rollback(federation, "anna", 0, "", number)
    assert course(store) == [(1, "closed", 0, 3), (2, "closing", 1, 3)]
    assert store.read(federations.state, "demo").version == 1


async def test_a_round_that_cannot_be_closed_is_given_up_by_its_number(store: Store, federation: Federation) -> None:
    for site in closed_rounds.PATIENTS:
        send(store, site)
    seen, parent = store.read(federations.state, "demo"), store.read(federations.adapter, "demo", 1)
    contract = store.read(federations.contract, "demo")
    decided = manifest.of_round(seen, Recipe(), parent.digest, 2)
    assert store.write(closing.begin_closing, seen, decided)
    result = closed_rounds.compute(store)
    assert await steering.rollback(federation, "anna", 1, "", 2) == steering.RolledBack(3, abandoned=2)
    assert not store.write(closing.write_result, contract, decided, result, 9.0)  # a replica that was about to
    assert [check.difference for check in verify.verify(store, "demo")] == ["", "", ""]
    assert course(store)[1:] == [(2, "abandoned", 1, 3), (3, "open", 1, 0)]


async def test_of_a_finished_federation_a_rollback_changes_the_version_alone(tmp_path: Path) -> None:
    store = closed_rounds.make(tmp_path)
    closed_rounds.run(store)
    assert await steering.rollback(Federation(store, "demo"), "anna", 1, "") == steering.RolledBack(2, abandoned=None)
    state = store.read(federations.state, "demo")
    assert (state.version, state.phase, state.round.number) == (1, "finished", 2)
    store.close()


# evictions


async def test_an_eviction_that_leaves_two_must_be_meant_and_warns(store: Store, federation: Federation) -> None:
    with pytest.raises(InputError, match=r"--allow-quorum 2"):
        await steering.evict(federation, "anna", "ge", "left the study")
    assert store.read(federations.state, "demo").sites["ge"].phase == "enrolled"
    said = await steering.evict(federation, "anna", "ge", "left the study", 2)
    assert said == rounds.quorum_warning(2)
    assert await steering.evict(federation, "anna", "ge", "left the study") == ""  # the answer was lost: asked again
    state = store.read(federations.state, "demo")
    assert (state.sites["ge"].phase, rounds.quorum(state)) == ("evicted", 2)
    with pytest.raises(InputError, match=r"--allow-quorum 1"):
        await steering.evict(federation, "anna", "canon", "", 2)
