"""A closed round recomputes to the same bytes, and whatever was tampered with is named."""

import json
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from aggregator import closing, rounds, steering, verify
from aggregator.manifest import RoundManifest, with_result
from aggregator.store import engine, federations, schema, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError
from tests.support import adapters, closed_rounds
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closed")
    store = closed_rounds.make(folder)
    closed_rounds.run(store)
    store.close()
    return folder / "fed.db"


@pytest.fixture
def path(closed: Path, tmp_path: Path) -> Path:
    """Two rounds of three sites, all of them in."""
    return Path(shutil.copy(closed, tmp_path / "tampered.db"))


def checks(path: Path) -> list[verify.RoundCheck]:
    store = engine.open_store(str(path))
    try:
        return verify.verify(store, "demo")
    finally:
        store.close()


def tamper(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as raw:
        assert raw.execute(statement, values).rowcount == 1


def test_untouched_rounds_recompute_to_the_same_bytes(path: Path) -> None:
    found = checks(path)
    assert [(c.round, c.phase, c.updates, c.version, c.difference) for c in found] == [
        (1, "closed", 3, 1, ""),
        (2, "closed", 3, 2, ""),
    ]
    assert all(len(c.digest) == 64 for c in found)


OTHER = "ab" * 32

ROWS = {
    "a flipped byte in a chunk": (
        "UPDATE chunks SET data = zeroblob(size) WHERE round = 2 AND site = 'ge' AND offset = 100",
        "bytes of the update of site 'ge': recorded digest",
    ),
    "a deleted chunk": (
        "DELETE FROM chunks WHERE round = 2 AND site = 'siemens' AND offset = 200",
        "bytes of the update of site 'siemens'",
    ),
    "a changed accepted digest": (
        f"UPDATE updates SET digest = '{OTHER}' WHERE round = 2 AND site = 'canon'",
        "update of site 'canon': recorded digest",
    ),
    "changed training patients": (
        "UPDATE updates SET training_patients = 999 WHERE round = 2 AND site = 'canon'",
        "weight of site 'canon' is 0.125 for 50 patients in the manifest, 0.125 for 999 patients by the updates",
    ),
    "changed training patients of the site": (
        "UPDATE sites SET training_patients = 999 WHERE name = 'canon'",
        "site 'canon' has 999 training patients, its update says 50",
    ),
    "an update moved to another version": (
        "UPDATE updates SET base_version = 0 WHERE round = 2 AND site = 'canon'",
        "update of site 'canon' is of version, codec and size (0, 'f32',",
    ),
    "a removed update": (
        "DELETE FROM updates WHERE round = 2 AND site = 'canon'",
        "update of site 'canon' is in the manifest but not in the store",
    ),
    "an update that is no longer accepted": (
        "UPDATE updates SET accepted_at = NULL WHERE round = 2 AND site = 'canon'",
        "update of site 'canon' is in the manifest but not in the store",
    ),
    "an added update": (
        "INSERT INTO updates SELECT federation, 2, 'philips', digest, agent_id, size, codec, base_version, 40, metrics, "
        "announced_at, accepted_at, norms FROM updates WHERE round = 2 AND site = 'canon'",
        "update of site 'philips' is accepted but stands in no manifest",
    ),
    "a manifest": (
        "UPDATE rounds SET manifest = replace(manifest, '\"weight\":0.', '\"weight\":1.') WHERE number = 2",
        "manifest: recorded digest",
    ),
    "a manifest's form": (
        "UPDATE rounds SET manifest = replace(manifest, ',', ', ') WHERE number = 2",
        "manifest: it does not have the form it was written in",
    ),
    "an input digest": (f"UPDATE rounds SET input_digest = '{OTHER}' WHERE number = 2", "manifest: recorded digest"),
    "who was invited": (
        'UPDATE rounds SET invited = \'["canon","ge"]\' WHERE number = 2',
        "manifest: its sites are not sorted, each once and invited",
    ),
    "the version a round made": (
        "UPDATE rounds SET version = 1 WHERE number = 2",
        "manifest: version is 2, expected 1",
    ),
    "the version a round started from": (
        "UPDATE rounds SET base_version = 0 WHERE number = 2",
        "manifest: parent_version is 1, expected 0",
    ),
    "a closed round called abandoned": (
        "UPDATE rounds SET phase = 'abandoned' WHERE number = 2",
        "round 2 is marked abandoned and has what only a closed round has",
    ),
    "a closed round called open": (
        "UPDATE rounds SET phase = 'open' WHERE number = 2",
        "round 2 is marked open and has what only a closed round has",
    ),
    "a digest beside an adapter": (
        f"UPDATE adapters SET digest = '{OTHER}' WHERE version = 2",
        "row of adapter version 2: recorded digest abab",
    ),
    "a parent beside an adapter": (
        f"UPDATE adapters SET parent_digest = '{OTHER}' WHERE version = 2",
        "parent in the row of adapter version 2: recorded digest abab",
    ),
    "a removed adapter": ("DELETE FROM adapters WHERE version = 2", "no adapter version 2; versions are 0 to 1"),
    "a mark that hides a round's bytes": (
        "UPDATE rounds SET purged_at = 5.0 WHERE number = 2",
        "round 2 is marked as purged and holds",
    ),
}


@pytest.mark.parametrize(("statement", "difference"), ROWS.values(), ids=list(ROWS))
def test_a_tampered_row_is_found_in_its_round(path: Path, statement: str, difference: str) -> None:
    tamper(path, statement)
    found = {check.round: check.difference for check in checks(path)}
    assert difference in found[2]
    if "UPDATE sites" not in statement:  # a site's patients count in every round
        assert found[1] == ""


def test_a_removed_round_is_found(path: Path) -> None:
    tamper(path, "DELETE FROM rounds WHERE number = 1")
    assert [(c.round, c.difference) for c in checks(path)] == [(1, "round 1 is not in the store"), (2, "")]


def test_a_removed_last_round_is_found_by_the_version_it_made(path: Path) -> None:
    tamper(path, "DELETE FROM rounds WHERE number = 2")
    assert [c.difference for c in checks(path)] == ["", "version 2 is in the store, the round that made it is not"]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x08]) + data[place + 1 :]


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_flipped_bit_of_an_adapter_file_is_found(path: Path, version: int) -> None:
    with sqlite3.connect(path) as raw:
        (data,) = raw.execute("SELECT data FROM adapters WHERE version = ?", (version,)).fetchone()
    header = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(version).integers(0, len(data), 12)
    for place in (0, 7, 8, header - 1, header, len(data) - 1, *random):
        tamper(path, "UPDATE adapters SET data = ? WHERE version = ?", flipped(data, int(place)), version)
        assert any(check.difference for check in checks(path)), f"byte {place} of {len(data)}, header {header}"
    tamper(path, "UPDATE adapters SET data = ? WHERE version = ?", data, version)
    assert not any(check.difference for check in checks(path))


def test_every_flipped_bit_of_a_chunk_is_found(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        rows = raw.execute("SELECT rowid, round, site, data FROM chunks").fetchall()
    rng = np.random.default_rng(1)
    for _ in range(20):
        row, number, site, data = rows[int(rng.integers(len(rows)))]
        tamper(path, "UPDATE chunks SET data = ? WHERE rowid = ?", flipped(data, int(rng.integers(len(data)))), row)
        found = {check.round: check.difference for check in checks(path)}
        assert found.pop(number).startswith(f"bytes of the update of site '{site}'")
        assert set(found.values()) == {""}
        tamper(path, "UPDATE chunks SET data = ? WHERE rowid = ?", data, row)


def test_a_result_that_was_rewritten_with_its_row_and_its_manifest_is_found(path: Path) -> None:
    """All that is recorded agrees: only the mean of the updates does not."""
    with sqlite3.connect(path) as raw:
        (data,) = raw.execute("SELECT data FROM adapters WHERE version = 2").fetchone()
        (text,) = raw.execute("SELECT manifest FROM rounds WHERE number = 2").fetchone()
    real = Adapter.from_bytes(data)
    other = Adapter(real.manifest, 2, real.parent_digest, {name: array + 1 for name, array in real.tensors.items()})
    decided = with_result(RoundManifest.from_bytes(text.encode()), other.digest)
    tamper(path, "UPDATE rounds SET manifest = ? WHERE number = 2", decided.to_bytes().decode())
    tamper(path, "UPDATE adapters SET digest = ?, data = ? WHERE version = 2", other.digest, other.to_bytes())
    first, second = checks(path)
    assert first.difference == ""
    assert second.difference.startswith(
        f"result of round 2: recorded digest {other.digest[:16]}, found {real.digest[:16]}"
    )


# a federation that is under way: a closed round, an abandoned one, another closed one, an open one


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


def test_a_round_that_is_being_closed_is_compared_with_its_manifest(path: Path) -> None:
    tamper(path, "DELETE FROM adapters WHERE version = 2")
    tamper(path, "UPDATE federations SET version = 1, phase = 'running'")
    with sqlite3.connect(path) as raw:
        (text,) = raw.execute("SELECT manifest FROM rounds WHERE number = 2").fetchone()
    decided = with_result(RoundManifest.from_bytes(text.encode()), "").to_bytes().decode()
    closing_again = (
        "UPDATE rounds SET phase = 'closing', version = NULL, diagnostics = NULL, manifest = ? WHERE number = 2"
    )
    tamper(path, closing_again, decided)
    assert [(check.phase, check.difference) for check in checks(path)] == [("closed", ""), ("closing", "")]
    tamper(path, "UPDATE chunks SET data = zeroblob(size) WHERE round = 2 AND site = 'ge' AND offset = 100")
    assert checks(path)[1].difference.startswith("bytes of the update of site 'ge'")
    tamper(path, closing_again, text)
    assert checks(path)[1].difference.startswith("result of round 2: recorded digest")
    tamper(path, closing_again, decided.replace('"weight":0.', '"weight":1.'))
    assert checks(path)[1].difference.startswith("manifest: recorded digest")


# a manifest that was edited by somebody who then computed its digest anew


@pytest.fixture(scope="module")
def closed_with_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partial")
    patients = {**closed_rounds.PATIENTS, "philips": 40, "toshiba": 30}
    store = closed_rounds.make(folder, patients, rounds_count=1, quorum=3)
    layout = adapters.adapter().manifest.layout
    for seed, site in enumerate(sorted(patients.keys() - {"philips"})):
        closed_rounds.send(store, site, adapters.delta(layout, seed))
    store.write(federations.evict, "demo", "toshiba", "left the study")
    closed_rounds.close(store)
    assert [check.difference for check in verify.verify(store, "demo")] == [""]
    store.close()
    return folder / "fed.db"


@pytest.fixture
def partial(closed_with_three: Path, tmp_path: Path) -> Path:
    """One round of five sites: three in, one late, and one evicted after its update was accepted."""
    return Path(shutil.copy(closed_with_three, tmp_path / "tampered.db"))


def edit_entry(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda decided: decided["entries"][0].update({name: value})


def edit(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda decided: decided.update({name: value})


def shift_weight(decided: dict[str, Any]) -> None:
    decided["entries"][0]["weight"] += 0.01
    decided["entries"][1]["weight"] -= 0.01


def drop_entry(decided: dict[str, Any]) -> None:
    entry = decided["entries"].pop(0)
    decided["left_out"][entry["site"]] = "joined, no update in time"
    total = sum(other["training_patients"] for other in decided["entries"])
    for other in decided["entries"]:
        other["weight"] = other["training_patients"] / total


def set_entry_aside(decided: dict[str, Any]) -> None:
    entry = decided["entries"][0]
    drop_entry(decided)
    decided["set_aside"][entry["site"]] = entry["digest"]


def add_entry(decided: dict[str, Any]) -> None:
    decided["left_out"].pop("philips")
    decided["entries"].insert(2, {**decided["entries"][1], "site": "philips"})


MANIFESTS = {
    "weights": shift_weight,
    "patients": edit_entry("training_patients", 51),
    "digest": edit_entry("digest", OTHER),
    "site": edit_entry("site", "canon2"),
    "one fewer": drop_entry,
    "one set aside": set_entry_aside,
    "one more": add_entry,
    "rule": edit("rule", "median"),
    "weighting": edit("weighting", "uniform"),
    "server_lr": edit("server_lr", 0.5),
    "weight_cap": edit("weight_cap", 2.0),
    "server_optimiser": edit("server_optimiser", "adam"),
    "server_beta1": edit("server_beta1", 0.5),
    "moments_digest": edit("moments_digest", OTHER),
    "parent_version": edit("parent_version", 1),
    "parent_digest": edit("parent_digest", OTHER),
    "version": edit("version", 2),
    "round": edit("round", 2),
    "federation": edit("federation", "other"),
    "result_digest": edit("result_digest", OTHER),
    "nobody left out": edit("left_out", {}),
    "somebody invented left out": lambda decided: decided["left_out"].update(nobody="never joined"),
    "an eviction invented": lambda decided: decided["left_out"].update(philips="evicted: no reason"),
    "an eviction's reason": lambda decided: decided["left_out"].update(toshiba="evicted: bad data"),
    "an eviction denied": lambda decided: decided["left_out"].update(toshiba="joined, no update in time"),
    "an invitation denied": lambda decided: decided["left_out"].update(philips="not invited"),
    "nothing set aside": edit("set_aside", {}),
    "another set aside": lambda decided: decided["set_aside"].update(toshiba=OTHER),
    "something more": edit("note", "hello"),
}


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with sqlite3.connect(path) as raw:
        (text,) = raw.execute("SELECT manifest FROM rounds WHERE number = 1").fetchone()
    decided = json.loads(text)
    change(decided)
    edited = canonical_json(decided).decode()
    inputs = {name: value for name, value in decided.items() if name != "moments_digest"}
    digest = sha256_hex(canonical_json({**inputs, "result_digest": ""}))
    assert edited != text
    tamper(path, "UPDATE rounds SET manifest = ?, input_digest = ? WHERE number = 1", edited, digest)


@pytest.mark.parametrize("purged", [False, True], ids=["bytes kept", "bytes purged"])
@pytest.mark.parametrize("change", MANIFESTS.values(), ids=list(MANIFESTS))
def test_an_edited_manifest_is_found_though_its_digest_was_recomputed(
    partial: Path, change: Callable[[dict[str, Any]], None], purged: bool
) -> None:
    if purged:
        purge(partial)
    edit_manifest(partial, change)
    (found,) = checks(partial)
    assert found.difference


# rounds whose update bytes are gone


def purge(path: Path, number: int = 1) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM chunks WHERE round = ?", (number,))
        raw.execute("UPDATE rounds SET purged_at = 9.0 WHERE number = ?", (number,))


@pytest.mark.parametrize("name", [n for n in ROWS if "chunk" not in n and "hides" not in n])
def test_a_tampered_row_of_a_purged_round_is_found(path: Path, name: str) -> None:
    purge(path, 2)
    assert [(c.difference, c.purged) for c in checks(path)] == [("", False), ("", True)]
    statement, difference = ROWS[name]
    tamper(path, statement)
    assert difference in checks(path)[1].difference


def test_bytes_that_are_missing_without_having_been_purged_are_a_difference(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM chunks WHERE round = 1")
    first, second = checks(path)
    assert first.finding.startswith("DIFFERS: bytes of the update of site 'canon'")
    assert (second.difference, second.purged) == ("", False)


# adapters and results


def test_a_swapped_adapter_is_found_by_its_own_round_and_the_next(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        (data,) = raw.execute("SELECT data FROM adapters WHERE version = 1").fetchone()
    real = Adapter.from_bytes(data)
    other = {name: (array + np.float32(1)) for name, array in real.tensors.items()}
    fake = Adapter(real.manifest, 1, real.parent_digest, other)
    tamper(path, "UPDATE adapters SET data = ? WHERE version = 1", fake.to_bytes())
    first, second = checks(path)
    assert first.difference.startswith("adapter version 1: recorded digest")
    assert second.difference.startswith("adapter version 1: recorded digest")


def test_an_adapter_that_is_no_adapter_is_a_finding_and_no_crash(path: Path) -> None:
    tamper(path, "UPDATE adapters SET data = x'00' WHERE version = 2")
    assert "adapter file" in checks(path)[1].difference


def test_only_closed_rounds_can_be_asked_for(tmp_path: Path) -> None:
    store = closed_rounds.make(tmp_path, rounds_count=3)
    closed_rounds.run(store, rounds_count=1)
    assert [c.phase for c in verify.verify(store, "demo")] == ["closed", "open"]
    assert len(verify.verify(store, "demo", [1])) == 1
    with pytest.raises(InputError, match="round 2 is not closed; closed rounds are 1"):
        verify.verify(store, "demo", [2])
    store.close()


def test_the_order_of_arrival_does_not_change_a_bit(tmp_path: Path) -> None:
    digests = []
    for order in (("canon", "ge", "siemens"), ("siemens", "canon", "ge")):
        folder = tmp_path / "-".join(order)
        folder.mkdir()
        store = closed_rounds.make(folder)
        digests.append(closed_rounds.run(store, order))
        store.close()
    assert digests[0] == digests[1]


def test_the_result_is_the_weighted_mean_computed_by_hand(tmp_path: Path) -> None:
    store = closed_rounds.make(tmp_path)
    closed_rounds.run(store, rounds_count=1)
    layout = adapters.adapter().manifest.layout
    total = sum(closed_rounds.PATIENTS.values())
    name = layout.tensors[1].name
    expected = adapters.adapter().tensors[name].astype(np.float64)
    for k, (site, patients) in enumerate(sorted(closed_rounds.PATIENTS.items())):
        del site
        expected = expected + patients / total * layout.split(adapters.delta(layout, 100 + k))[name].astype(np.float64)
    found = store.read(federations.adapter, "demo", 1).tensors[name]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    store.close()
