"""A closed round recomputes to the same bytes, and whatever was tampered with is named."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from aggregator import verify
from aggregator.manifest import RoundManifest, with_result
from aggregator.store import federations
from shared.adapter import Adapter
from shared.errors import InputError
from tests.support import adapters, closed_rounds
from tests.support.tampered import OTHER, checks, purge, tamper


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


def test_untouched_rounds_recompute_to_the_same_bytes(path: Path) -> None:
    found = checks(path)
    assert [(c.round, c.phase, c.updates, c.version, c.difference) for c in found] == [
        (1, "closed", 3, 1, ""),
        (2, "closed", 3, 2, ""),
    ]
    assert all(len(c.digest) == 64 for c in found)


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


# rounds whose update bytes are gone


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
