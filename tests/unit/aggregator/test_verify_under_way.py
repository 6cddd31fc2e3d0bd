"""What was tampered with in a federation that is under way is named before any manifest says so; what goes on meanwhile is not."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from aggregator import closing, rounds, steering, verify
from aggregator.store import engine, federations, schema, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from tests.support import adapters, closed_rounds
from tests.support.postgres import PostgresServer

FIVE = dict.fromkeys("abcde", 10)
SEED = 3


def begin(folder: Path, url: str = "") -> None:
    store = closed_rounds.make(folder, FIVE, url=url, rounds_count=3, invited=4, quorum=3, sampling_seed=SEED)
    closed_rounds.run(store, tuple(FIVE), rounds_count=1)
    layout = store.read(federations.contract, "demo").manifest.layout
    closed_rounds.send(store, "a", adapters.delta(layout, 5))
    store.write(round_rows.abandon, "demo", 2, 1004.0)
    store.write(round_rows.go_on, "demo", 1, 3, 100.0, 1004.0)
    closed_rounds.run(store, tuple(FIVE), rounds_count=1)
    for seed, site in enumerate("ab"):
        closed_rounds.send(store, site, adapters.delta(layout, 6 + seed))
    closed_rounds.announce(store, "e", adapters.delta(layout, 9))
    asked = [record.state.invited for record in store.read(round_rows.records, "demo")]
    assert asked == [rounds.invite("abcde", 4, SEED, number) for number in (1, 2, 3, 4)]
    store.close()


@pytest.fixture(scope="module")
def begun_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    begin(folder)
    return folder / "fed.db"


@pytest.fixture(scope="module")
def begun_database(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        begin(tmp_path_factory.mktemp("begun"), url)
        yield url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def begun(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("begun_file"), tmp_path / "fed.db")
        store = engine.open_store(str(tmp_path / "fed.db"))
        yield store
        store.close()
        return
    template, server = request.getfixturevalue("begun_database"), request.getfixturevalue("postgres")
    name = f"copy{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    store = engine.open_store(server.url(name))
    yield store
    store.close()
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def differences(store: Store) -> dict[int, str]:
    """What is found, by round; the first of each."""
    found: dict[int, str] = {}
    for check in verify.verify(store, "demo"):
        if check.difference:
            found.setdefault(check.round, check.difference)
    return found


def test_a_federation_under_way_agrees(begun: Store) -> None:
    assert [(c.round, c.phase, c.updates, c.difference) for c in verify.verify(begun, "demo")] == [
        (1, "closed", 4, ""),
        (2, "abandoned", 1, ""),
        (3, "closed", 4, ""),
        (4, "open", 2, ""),
    ]


UNDER_WAY = {
    "the current version": (
        "UPDATE federations SET version = 1",
        {4: "round 4 starts from version 2, the federation's row says that version 1 is the current one"},
    ),
    "a federation called finished": (
        "UPDATE federations SET phase = 'finished'",
        {4: "round 4 is open, the federation's row says 'finished'"},
    ),
    "the open round's first version": (
        "UPDATE rounds SET base_version = 1 WHERE number = 4",
        {4: "update of site 'a' is of version, codec and size (2, 'f32', 400), expected (1, 'f32', 400)"},
    ),
    "a first version that an abandoned round may not have": (
        "UPDATE rounds SET base_version = 0 WHERE number = 2",
        {2: "update of site 'a' is of version"},
    ),
    "the seed": ("UPDATE federations SET sampling_seed = 4", {2: "round 2: site 'b' was drawn and is not invited"}),
    "an invited site removed": (
        """UPDATE rounds SET invited = '["a","b","d"]' WHERE number = 4""",
        {4: "round 4: site 'e' was drawn and is not invited"},
    ),
    "an invited site exchanged": (
        """UPDATE rounds SET invited = '["a","b","c","d"]' WHERE number = 4""",
        {4: "round 4: site 'e' was drawn and is not invited"},
    ),
    "a stranger invited": (
        """UPDATE rounds SET invited = '["a","b","d","e","x"]' WHERE number = 4""",
        {4: "round 4: the invited are not sites of the federation"},
    ),
    "the open round removed": (
        "DELETE FROM rounds WHERE number = 4",
        {4: "no round is open, and 2 of 3 are closed: round 4 is not in the store"},
    ),
    "an unknown phase": ("UPDATE rounds SET phase = 'opened' WHERE number = 4", {4: "round 4 is marked 'opened'"}),
    "an open round called closing": (
        "UPDATE rounds SET phase = 'closing' WHERE number = 4",
        {4: "the store holds a manifest that cannot be read"},
    ),
    "an open round called purged": (
        "UPDATE rounds SET purged_at = 5.0 WHERE number = 4",
        {4: "round 4 is marked open and as purged"},
    ),
    "a manifest's digest too early": (
        "UPDATE rounds SET input_digest = 'ab' WHERE number = 4",
        {4: "round 4 is marked open and has the digest of a manifest"},
    ),
    "a chunk of an update in the open round": (
        "DELETE FROM chunks WHERE round = 4 AND site = 'b' AND \"offset\" = 300",
        {4: "bytes of the update of site 'b': recorded digest"},
    ),
    "a chunk of an update in the abandoned round": (
        'DELETE FROM chunks WHERE round = 2 AND "offset" = 300',
        {2: "bytes of the update of site 'a': recorded digest"},
    ),
    "an abandoned round's bytes called purged": (
        "UPDATE rounds SET purged_at = 5.0 WHERE number = 2",
        {2: "round 2 is marked as purged and holds 400 bytes of site 'a'"},
    ),
    "a chunk's length": (
        "UPDATE chunks SET size = size + 1 WHERE round = 3 AND site = 'a' AND \"offset\" = 0",
        {3: "bytes of the update of site 'a': 400, the rows of its chunks say 401"},
    ),
    "an update's patients": (
        "UPDATE updates SET training_patients = 11 WHERE round = 4 AND site = 'b'",
        {4: "site 'b' has 10 training patients, its update says 11"},
    ),
    "an update's codec": (
        "UPDATE updates SET codec = 'bf16' WHERE round = 2",
        {2: "update of site 'a' is of version, codec and size (1, 'bf16', 400)"},
    ),
    "an update given to another site": (
        "UPDATE updates SET site = 'd' WHERE round = 4 AND site = 'b'",
        {4: "bytes of the update of site 'd'"},
    ),
    "an update given to a site that was not asked": (
        "UPDATE updates SET site = 'c' WHERE round = 4 AND site = 'b'",
        {4: "update of site 'c' is accepted, and the site was not invited"},
    ),
    "an update removed, its bytes not": (
        "DELETE FROM updates WHERE round = 4 AND site = 'b'",
        {4: "there are bytes of site 'b' that belong to no update"},
    ),
    "an update moved to a round that is not there": (
        "UPDATE updates SET round = 7 WHERE round = 4 AND site = 'b'",
        {4: "there are bytes of site 'b' that belong to no update"},
    ),
    "a site marked as evicted": (
        "UPDATE sites SET phase = 'evicted' WHERE name = 'c'",
        {},  # in none of these manifests it is anything but not invited
    ),
}


CORE = (
    "the current version",
    "the seed",
    "a chunk of an update in the open round",
    "a chunk's length",
    "an update's patients",
)


@pytest.mark.parametrize(
    ("begun", "name"),
    [*(("sqlite", name) for name in UNDER_WAY), *(("postgresql", name) for name in CORE)],
    indirect=["begun"],
)
def test_a_tampered_row_is_found_before_any_manifest_says_so(begun: Store, name: str) -> None:
    statement, expected = UNDER_WAY[name]
    changed = begun.write(lambda connection: connection.execute(sa.text(statement)).rowcount)
    assert changed == 1
    found = differences(begun)
    for number, text in expected.items():
        assert found[number].startswith(text)
    assert min(found, default=0) == min(expected, default=0)


def test_an_empty_chunk_does_not_keep_verify_for_ever(begun: Store) -> None:
    empty = schema.chunks.update().where(schema.chunks.c.round == 4, schema.chunks.c.offset == 100).values(data=b"")
    begun.write(lambda connection: connection.execute(empty))
    assert differences(begun)[4].startswith("bytes of the update of site 'a'")


class Overtaken(Store):
    """A store in which something happens right after the first time it was read."""

    def __init__(self, store: Store, happens: Callable[[], object]) -> None:
        self._store, self._happens, self._calls = store, happens, 0

    def read(self, *args: Any, **kwargs: Any) -> Any:
        found = self._store.read(*args, **kwargs)
        self._calls += 1
        if self._calls == 1:
            self._happens()
        return found


@pytest.mark.parametrize(
    "happens",
    [
        lambda store: closed_rounds.close(store),
        lambda store: (
            store.write(round_rows.abandon, "demo", 2, 9.0),
            store.write(round_rows.go_on, "demo", 0, 5, 100.0, 9.0),
        ),
        lambda store: store.write(federations.evict, "demo", "ge", "left the study"),
        lambda store: (closed_rounds.close(store), closed_rounds.run(store, rounds_count=2)),
        lambda store: (closed_rounds.close(store), store.write(updates.purge, "demo", 1, 9.0)),
    ],
    ids=["closed", "rolled back", "evicted", "three more rounds", "purged"],
)
def test_what_goes_on_meanwhile_is_no_difference(tmp_path: Path, happens: Callable[[Store], object]) -> None:
    store = closed_rounds.make(tmp_path, rounds_count=5)
    closed_rounds.run(store, rounds_count=1)
    layout = store.read(federations.contract, "demo").manifest.layout
    for seed, site in enumerate(closed_rounds.PATIENTS):
        closed_rounds.send(store, site, adapters.delta(layout, seed))
    found = verify.verify(Overtaken(store, lambda: happens(store)), "demo")
    assert [(check.round, check.difference) for check in found] == [(1, ""), (2, "")]
    assert {check.difference for check in verify.verify(store, "demo")} == {""}
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_no_course_of_a_federation_is_taken_for_a_difference(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = closed_rounds.make(
        tmp_path, dict.fromkeys("abcdefg", 10), rounds_count=6, invited=5, quorum=3, sampling_seed=seed
    )
    layout, left = store.read(federations.contract, "demo").manifest.layout, "abcdefg"
    for step in range(24):
        state = store.read(federations.state, "demo")
        match int(rng.integers(8)):
            case 0 if len(left) > 4:
                gone, left = left[step % len(left)], left.replace(left[step % len(left)], "")
                store.write(federations.evict, "demo", gone, "left the study")
            case 1 if state.phase == "running":
                asked = [name for name in left if name not in state.round.invited]
                more = rounds.draw(asked, seed, state.round.number)[: int(rng.integers(3))]
                assert store.write(closing.invite_more, state, tuple(more), 9e9)
                for site in rounds.missing(state):
                    closed_rounds.announce(store, site, adapters.delta(layout, step))
            case 2:
                version = int(rng.integers(store.read(federations.last_version, "demo") + 1))
                store.write(steering._rollback, "demo", version, 0, 6, 100.0, "anna", "", 1005.0)
            case 3:
                store.write(updates.purge, "demo", 2, 1006.0)
            case 4 if len(rounds.counted(state)) >= 3 and state.phase == "running":
                closed_rounds.close(store)
            case _ if state.phase == "running":
                for site in rounds.missing(state)[:2]:
                    closed_rounds.send(store, site, adapters.delta(layout, step))
        assert {check.difference for check in verify.verify(store, "demo")} <= {""}
    store.close()
