"""Rounds of the rules that use QR and SVD, and of server optimisers, recompute; what was tampered with in them is named."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from aggregator import cli, closing, steering, verify
from aggregator.federation import Federation
from aggregator.manifest import RoundManifest, with_result
from aggregator.optimisers import Moments
from aggregator.store import federations, moments, schema, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from shared.adapter import Adapter
from shared.canonical import sha256_hex
from tests.support import adapters, closed_rounds

DECOMPOSING = {"flex-lora": "lora_A", "fedex-lora": "lora_residual_B"}
"""Recipes with such a rule, and tensors that it makes so."""
KEEPING = ("momentum", "adam", "yogi")
ROUNDS = 3


def made(folder: Path, recipe: str = "med-duallora", rounds_run: int = ROUNDS, **parameters: str) -> Store:
    folder.mkdir(exist_ok=True)
    adapter, needed = adapters.fitting(recipe)
    store = closed_rounds.make(
        folder, adapter=adapter, recipe=recipe, parameters={**needed, **parameters}, rounds_count=ROUNDS + 2
    )
    closed_rounds.run(store, rounds_count=rounds_run)
    return store


def differences(store: Store) -> list[str]:
    return [check.difference for check in verify.verify(store, "demo")]


def versions(store: Store) -> list[str]:
    return [store.read(federations.adapter_digest, "demo", number) for number in range(ROUNDS + 1)]


@pytest.fixture(params=list(DECOMPOSING))
def decomposed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    store = made(tmp_path, request.param)
    yield store, DECOMPOSING[request.param]
    store.close()


@pytest.fixture(params=KEEPING)
def keeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = made(tmp_path, server_optimiser=request.param)
    yield store
    store.close()


# QR and SVD


def replace_version(store: Store, number: int, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """Write a version as another machine might have made it: the row and the manifest's result agree with it."""
    real = store.read(federations.adapter, "demo", number)
    tensors = {name: change(name, array.copy()) for name, array in real.tensors.items()}
    other = Adapter(real.manifest, number, real.parent_digest, tensors)
    decided = RoundManifest.from_bytes(store.read(round_rows.record, "demo", number).manifest)
    text = with_result(decided, other.digest, decided.moments_digest).to_bytes().decode()

    def write(connection: sa.Connection) -> None:
        rows, files = schema.rounds, schema.adapters
        connection.execute(rows.update().where(rows.c.number == number).values(manifest=text))
        values = {"digest": other.digest, "data": other.to_bytes()}
        connection.execute(files.update().where(files.c.version == number).values(**values))

    store.write(write)


def nudged(mark: str, share: float) -> Callable[[str, np.ndarray], np.ndarray]:
    def change(name: str, array: np.ndarray) -> np.ndarray:
        if mark in name:
            array.flat[0] += np.float32(share * np.abs(array).max())
        return array

    return change


def test_rounds_recompute_to_the_same_bytes_here(decomposed: tuple[Store, str]) -> None:
    checks = verify.verify(decomposed[0], "demo")
    assert [(check.difference, check.rounding) for check in checks] == [("", False)] * len(checks)
    record = decomposed[0].read(round_rows.record, "demo", 1)
    assert json.loads(record.manifest)["rule"] in ("products", "exact")


def test_last_bits_of_another_machine_are_said_and_are_no_difference(decomposed: tuple[Store, str]) -> None:
    store, mark = decomposed
    replace_version(store, ROUNDS, nudged(mark, 5e-7))
    *before, last = verify.verify(store, "demo", list(range(1, ROUNDS + 1)))
    assert not any(check.rounding or check.difference for check in before)
    assert (last.difference, last.rounding) == ("", True)
    assert "equal to rounding, not bit for bit" in last.finding
    place = store.place.removeprefix("sqlite:///")
    shown = CliRunner().invoke(cli.build(), ["verify", "--store", place])
    assert shown.exit_code == 0
    assert f"{ROUNDS - 1} of {ROUNDS} closed rounds recompute to the same bytes" in shown.stdout
    assert "1 to the same numbers but for rounding" in shown.stdout
    facts = json.loads(CliRunner().invoke(cli.build(), ["verify", "--store", place, "--json"]).stdout)
    assert (facts["ok"], facts["rounding"]) == (True, 1)
    assert [check["rounding"] for check in facts["rounds"]] == [False, False, True]


def test_more_than_rounding_is_a_difference(decomposed: tuple[Store, str]) -> None:
    store, mark = decomposed
    replace_version(store, ROUNDS, nudged(mark, 1e-4))
    found = {check.round: check for check in verify.verify(store, "demo")}[ROUNDS]
    assert f"result of round {ROUNDS}: tensor" in found.difference
    assert "allowed for rounding is" in found.difference


def test_what_is_averaged_element_by_element_has_no_rounding(decomposed: tuple[Store, str]) -> None:
    store, _ = decomposed
    replace_version(store, ROUNDS, nudged("pred_head_dict", 2e-7))
    found = {check.round: check for check in verify.verify(store, "demo")}[ROUNDS]
    assert "allowed for rounding is 0" in found.difference


def test_under_plain_averaging_no_last_bit_may_differ(tmp_path: Path) -> None:
    store = made(tmp_path)
    replace_version(store, ROUNDS, nudged("lora_A", 2e-7))
    assert "result of round 3: recorded digest" in differences(store)[ROUNDS - 1]
    store.close()


# moments


def test_rounds_of_a_server_optimiser_recompute(keeping: Store) -> None:
    assert set(differences(keeping)) == {""}
    value = json.loads(keeping.read(round_rows.record, "demo", 1).manifest)
    assert value["server_beta1"] == 0.9
    assert ("server_tau" in value) == (value["server_optimiser"] != "momentum")
    assert keeping.read(moments.file, "demo", 0) is None


@pytest.mark.parametrize("recipe", ["flex-lora", "fedex-lora"])
def test_replicas_make_the_same_bytes_by_decomposition(tmp_path: Path, recipe: str) -> None:
    one, two = made(tmp_path / "one", recipe), made(tmp_path / "two", recipe)
    assert versions(one) == versions(two)
    one.close()
    two.close()


def test_replicas_make_the_same_versions_and_moments(tmp_path: Path) -> None:
    one, two = (made(tmp_path / name, server_optimiser="yogi") for name in ("one", "two"))
    assert versions(one) == versions(two)
    for number in range(1, ROUNDS + 1):
        assert one.read(moments.file, "demo", number) == two.read(moments.file, "demo", number) is not None
    one.close()
    two.close()


def test_without_a_server_optimiser_nothing_is_kept(tmp_path: Path) -> None:
    store = made(tmp_path)
    assert [store.read(moments.file, "demo", number) for number in range(ROUNDS + 1)] == [None] * (ROUNDS + 1)
    store.close()


def write_moments(store: Store, number: int, data: bytes | None, in_manifest: bool = False) -> None:
    """Replace or remove a version's moments; with their digest in the manifest of the round that made it."""
    table, rows = schema.moments, schema.rounds
    text = store.read(round_rows.record, "demo", number).manifest
    decided = RoundManifest.from_bytes(text)
    edited = with_result(decided, decided.result_digest, sha256_hex(data or b"")).to_bytes().decode()

    def write(connection: sa.Connection) -> None:
        if data is None:
            connection.execute(table.delete().where(table.c.version == number))
        else:
            connection.execute(table.update().where(table.c.version == number).values(data=data))
        if in_manifest:
            connection.execute(rows.update().where(rows.c.number == number).values(manifest=edited))

    store.write(write)


def doubled(store: Store, number: int) -> bytes:
    held = store.read(moments.find, "demo", number)
    return moments.to_bytes({name: Moments(2 * kept.first, kept.second) for name, kept in held.items()})


@pytest.mark.parametrize("purged", [False, True])
def test_tampered_moments_are_named(keeping: Store, purged: bool) -> None:
    if purged:
        keeping.write(updates.purge, "demo", 1, 9.0)
    write_moments(keeping, 2, doubled(keeping, 2))
    assert differences(keeping)[1].startswith("moments of version 2: recorded digest")
    assert differences(keeping)[0] == ""


@pytest.mark.parametrize("purged", [False, True])
def test_tampered_moments_are_named_though_the_manifest_agrees(keeping: Store, purged: bool) -> None:
    if purged:
        keeping.write(updates.purge, "demo", 1, 9.0)
    write_moments(keeping, 2, doubled(keeping, 2), in_manifest=True)
    found = differences(keeping)[1]
    assert found.startswith("moments of version 2")
    assert ("do not lead to tensor" in found) == purged


def test_lost_moments_are_named_and_no_round_starts_without_them(keeping: Store) -> None:
    write_moments(keeping, ROUNDS, None)
    assert differences(keeping)[ROUNDS - 1].startswith(f"moments of version {ROUNDS}: none are stored")
    contract = keeping.read(federations.contract, "demo")
    for k, site in enumerate(closed_rounds.PATIENTS):
        closed_rounds.send(keeping, site, adapters.delta(contract.manifest.layout, k))
    with pytest.raises(closing.InputError, match=f"moments of version {ROUNDS} are not in it.*rollback {ROUNDS - 1}"):
        closed_rounds.close(keeping)


def test_unreadable_moments_are_named(keeping: Store) -> None:
    write_moments(keeping, 2, b"not moments", in_manifest=True)
    assert "moments of version 2" in differences(keeping)[1]


async def test_after_a_rollback_the_optimiser_goes_on_from_the_moments_of_then(tmp_path: Path) -> None:
    """Version 3 made anew from version 2 is the same numbers as the first time, though rounds 3 moved the moments on."""
    store, layout = made(tmp_path, server_optimiser="adam"), adapters.adapter().manifest.layout
    await steering.rollback(Federation(store, "demo"), "anna", 2, "")
    for k, site in enumerate(sorted(closed_rounds.PATIENTS)):  # what `closed_rounds.run` sent in round 3
        closed_rounds.send(store, site, adapters.delta(layout, 300 + k))
    closed_rounds.close(store)
    first, again = (store.read(federations.adapter, "demo", number) for number in (3, 4))
    for name, array in first.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)
    assert store.read(moments.file, "demo", 4) == store.read(moments.file, "demo", 3)
    assert set(differences(store)) == {""}
    store.close()


# weights


def test_capped_weights_recompute(tmp_path: Path) -> None:
    """50, 77 and 273 patients: the median is 77, so that with a cap of 2 siemens counts as 154."""
    store = made(tmp_path, weighting="capped", weight_cap="2")
    assert set(differences(store)) == {""}
    value: dict[str, Any] = json.loads(store.read(round_rows.record, "demo", 1).manifest)
    assert (value["weighting"], value["weight_cap"]) == ("capped", 2.0)
    assert [entry["weight"] for entry in value["entries"]] == [50 / 281, 77 / 281, 154 / 281]
    store.close()
