"""Broadcasts by a lossy codec: the change makes the version, nothing of the mean is lost over the rounds, and downloads shrink."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from aggregator import closing, verify
from aggregator.downloads import Downloads
from aggregator.federation import Federation
from aggregator.store import changes, federations, schema
from aggregator.store.engine import Store
from shared import forms
from shared.adapter import Adapter
from shared.methods import METHODS
from shared.recipe import CODECS, INSTALLED
from tests.support import adapters, closed_rounds

LOSSY = [codec for codec in CODECS if not codec.startswith("f32")]
ROUNDS = 4


def made(
    folder: Path,
    recipe: str = "med-duallora",
    rounds_count: int = ROUNDS,
    adapter: Adapter | None = None,
    **parameters: str,
) -> Store:
    folder.mkdir(exist_ok=True)
    store = closed_rounds.make(folder, rounds_count=rounds_count, adapter=adapter, recipe=recipe, parameters=parameters)
    closed_rounds.run(store, rounds_count=rounds_count)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = made(tmp_path, broadcast_codec="int4")
    yield found
    found.close()


@pytest.mark.parametrize("recipe", INSTALLED)
@pytest.mark.parametrize("codec", ["f32", "int8", "topk+zstd"])
def test_every_recipe_and_codec_closes_rounds_that_verify(tmp_path: Path, recipe: str, codec: str) -> None:
    adapter, parameters = adapters.fitting(recipe)
    broadcast = codec if METHODS[recipe].rule == "factors" else "f32"
    store = made(tmp_path, recipe, adapter=adapter, codec=codec, broadcast_codec=broadcast, **parameters)
    assert [check.difference for check in verify.verify(store, "demo")] == [""] * ROUNDS
    first, last = (store.read(federations.adapter, "demo", version).tensors for version in (0, ROUNDS))
    moved = {name for name in first if not np.array_equal(first[name], last[name])}
    a, b, head = ({n for n in first if mark in n} for mark in ("lora_A", "lora_B", "head"))
    only_head = not METHODS[recipe].dense and not any(METHODS[recipe].trained)
    expected = {"ffa-lora": b | head, "fedsa-lora": a | head}.get(recipe, head if only_head else set(first))
    assert moved == expected
    store.close()


@pytest.mark.parametrize("codec", LOSSY)
def test_whoever_has_the_parent_and_the_change_has_the_version(tmp_path: Path, codec: str) -> None:
    store = made(tmp_path, broadcast_codec=codec)
    contract, now = store.read(federations.contract, "demo"), adapters.adapter()
    for version in range(1, ROUNDS + 1):
        change = store.read(changes.find, "demo", version)
        assert change is not None
        layout = contract.recipe.change_layout(contract.manifest, change.round)
        now = now.successor(forms.changed(now.tensors, layout, change.data), version)
        assert now.digest == store.read(federations.adapter_digest, "demo", version)
    store.close()


@pytest.mark.parametrize("codec", ["int4", "topk"])
def test_what_the_codec_kept_back_is_made_up_for_over_the_rounds(tmp_path: Path, codec: str) -> None:
    """version + owed of the lossy federation is the version of the exact one, but for float32's rounding of each version."""
    exact, lossy = made(tmp_path / "exact"), made(tmp_path / "lossy", broadcast_codec=codec)
    wanted, found = (store.read(federations.adapter, "demo", ROUNDS).tensors for store in (exact, lossy))
    change = lossy.read(changes.find, "demo", ROUNDS)
    assert change is not None
    for name, owed in change.residual().items():
        np.testing.assert_allclose(found[name] + owed, wanted[name], atol=1e-6)
        assert np.abs(owed).max() > 1e-4  # or there was nothing to make up for
    exact.close()
    lossy.close()


def test_a_change_is_the_same_bytes_wherever_it_is_computed(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", broadcast_codec="int4"), made(tmp_path / "two", broadcast_codec="int4")
    for version in range(1, ROUNDS + 1):
        assert one.read(changes.find, "demo", version) == two.read(changes.find, "demo", version)
    one.close()
    two.close()


def test_without_a_lossy_broadcast_codec_no_change_is_kept(tmp_path: Path) -> None:
    store = made(tmp_path, codec="int4")
    assert store.read(changes.find, "demo", 1) is None
    store.close()


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ({"data": bytes(40)}, "change to version 2: tensor .*0 bytes of quantised"),
        ({"owed": bytes(40)}, "change to version 2, what it owes"),
        ({"round": 1}, "change to version 2: it is of round 1, expected 2"),
        (None, "change to version 2: none is stored, broadcast codec int4"),
    ],
)
def test_a_change_that_was_tampered_with_is_named(
    store: Store, values: dict[str, object] | None, difference: str
) -> None:
    table = schema.changes
    statement = table.delete() if values is None else table.update().values(**values)
    store.write(lambda connection: connection.execute(statement.where(table.c.version == 2)))
    found = {check.round: check.difference for check in verify.verify(store, "demo")}
    with pytest.raises(AssertionError, match=difference):
        assert found[2] == ""
    assert (found[1], found[4]) == ("", "")


def test_of_a_purged_round_the_change_is_still_compared_with_the_versions(store: Store) -> None:
    from aggregator.store import updates

    store.write(updates.purge, "demo", 1, 2000.0)
    assert [check.difference for check in verify.verify(store, "demo")] == [""] * ROUNDS
    table = schema.changes
    other = store.read(lambda c: c.execute(sa.select(table.c.data).where(table.c.version == 1)).scalar_one())
    store.write(lambda c: c.execute(table.update().where(table.c.version == 2).values(data=other)))
    assert "change to version 2" in verify.verify(store, "demo")[1].difference


async def download(store: Store, version: int, held: int | None, any_form: bool = True) -> tuple[str, int, int]:
    """Return the form, the bytes and the number of changes of a download."""
    federation = Federation(store, "demo")
    adapter = await federation.adapter(version)
    digest = "" if held is None else store.read(federations.adapter_digest, "demo", held)
    found = await Downloads(federation).choose(adapter, digest, any_form)
    return found.form, len(found.payload), len(found.changes)


async def test_a_site_is_sent_the_changes_since_the_copy_it_has_or_all_packed_where_that_is_smaller(
    store: Store,
) -> None:
    plain = adapters.adapter().manifest.layout.size
    form, one, steps = await download(store, 4, 3)
    assert (form, steps) == ("CHANGES", 1)
    assert one < plain / 3
    form, two, steps = await download(store, 4, 2)
    assert (form, steps) == ("CHANGES", 2)
    assert two > one
    assert await download(store, 4, 3, any_form=False) == ("PLAIN", plain, 0)
    assert (await download(store, 4, None))[0] in ("PLAIN", "PACKED")
    form, whole, _ = await download(store, 0, None)
    assert form == "PACKED"  # B is zero
    assert whole < plain


async def test_a_copy_of_another_federation_is_as_good_as_none(store: Store) -> None:
    federation = Federation(store, "demo")
    adapter = await federation.adapter(4)
    found = await Downloads(federation).choose(adapter, "ab" * 32, True)
    assert found.base_digest == ""
    assert found.changes == ()


async def test_what_does_not_move_costs_nothing_without_any_codec(tmp_path: Path) -> None:
    """FFA-LoRA in float32: A is half of the numbers, and XOR with the copy the site has makes it zeros."""
    store = made(tmp_path, "ffa-lora")
    form, size, _ = await download(store, 4, 3)
    moved = sum(a.nbytes for n, a in adapters.tensors().items() if "lora_A" not in n)
    assert form == "PACKED"
    assert size < moved + 100
    store.close()


def test_after_a_rollback_what_is_owed_is_that_of_the_version_gone_back_to(store: Store, tmp_path: Path) -> None:
    """A round from version 2 is the same whether versions 3 and 4 were ever made: compute reads the parent's residual."""
    decided = closing.RoundManifest.from_bytes(store.read(closing.round_rows.record, "demo", 3).manifest)
    contract, parent = store.read(federations.contract, "demo"), store.read(federations.adapter, "demo", 2)
    again = closing.compute(store, contract, decided, parent)
    change = store.read(changes.find, "demo", 3)
    assert change is not None
    assert again.change is not None
    assert changes.Change.of(3, 3, again.change) == change


def test_the_way_from_an_old_copy_is_not_walked_further_than_it_is_worth(tmp_path: Path) -> None:
    store = made(tmp_path, rounds_count=12, broadcast_codec="int8")
    held = store.read(federations.adapter_digest, "demo", 0)
    size = len(store.read(changes.find, "demo", 1).data)  # type: ignore[union-attr]
    way = store.read(changes.chain, "demo", held, 12, 13 * size)
    assert way is not None
    assert [step.version for step in way] == list(range(1, 13))
    assert len(store.read(changes.data, "demo", way)) == sum(step.size for step in way)
    assert store.read(changes.chain, "demo", held, 12, 12 * size) is None
    assert store.read(changes.chain, "demo", "ab" * 32, 12, 100 * size) is None
    store.close()
