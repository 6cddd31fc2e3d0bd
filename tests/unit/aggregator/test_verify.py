"""A closed round recomputes to the same bytes, and whatever was tampered with is named."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from aggregator import verify
from aggregator.store import engine, federations
from shared.adapter import Adapter
from shared.errors import InputError
from tests.support import adapters, closed_rounds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = closed_rounds.make(tmp_path)
    closed_rounds.run(store)
    store.close()
    return tmp_path / "fed.db"


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


def test_a_changed_byte_of_an_update_is_found_in_its_round(path: Path) -> None:
    tamper(path, "UPDATE chunks SET data = zeroblob(size) WHERE round = 2 AND site = 'ge' AND offset = 100")
    first, second = checks(path)
    assert first.difference == ""
    assert second.difference.startswith("bytes of the update of site 'ge': recorded digest")


def test_a_missing_chunk_is_found(path: Path) -> None:
    tamper(path, "DELETE FROM chunks WHERE round = 1 AND site = 'siemens' AND offset = 200")
    assert "bytes of the update of site 'siemens'" in checks(path)[0].difference


def test_a_changed_manifest_is_found(path: Path) -> None:
    tamper(path, "UPDATE rounds SET manifest = replace(manifest, '\"weight\":0.', '\"weight\":1.') WHERE number = 1")
    assert checks(path)[0].difference.startswith("manifest: recorded digest")


def test_a_removed_update_is_found(path: Path) -> None:
    tamper(path, "DELETE FROM updates WHERE round = 1 AND site = 'canon'")
    assert checks(path)[0].difference == "update of site 'canon' is in the manifest but not in the store"


def test_changed_patients_are_found(path: Path) -> None:
    tamper(path, "UPDATE updates SET training_patients = 999 WHERE round = 1 AND site = 'canon'")
    assert "weight of site 'canon'" in checks(path)[0].difference


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
