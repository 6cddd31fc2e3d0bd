"""A closed round recomputes to the same bytes, and whatever was tampered with is named."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator import verify
from aggregator.store import engine, federations
from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError
from tests.support import adapters, closed_rounds


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
        "weight of site 'canon'",
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
        "announced_at, accepted_at FROM updates WHERE round = 2 AND site = 'canon'",
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
    digest = sha256_hex(canonical_json({**decided, "result_digest": ""}))
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
