"""The only door out: exactly the global tensors' change, or nothing at all."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapter import Adapter
from shared.errors import InputError, InvalidAdapter
from shared.layout import Layout
from shared.recipe import INSTALLED, Recipe, is_residual, make
from site_agent import egress
from site_agent.egress import Update, UpdateFacts
from tests.support import adapters

FACTS = UpdateFacts(round=3, base_version=2, training_patients=40, metrics={"train_loss": 0.25})
RECEIVED = adapters.adapter()
NAMES = sorted(RECEIVED.tensors)
LOCAL = "local.encoder.blocks.0.attn.q.lora_A.weight"


def trained(seed: int = 1, received: Adapter = RECEIVED) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (value + rng.standard_normal(value.shape)).astype(np.float32) for name, value in received.tensors.items()
    }


def seal(tensors, facts=FACTS) -> Update:
    return egress.seal(RECEIVED, tensors, Recipe(), facts, sites=3)[0]


def test_an_update_is_trained_minus_received_and_its_digest_that_of_the_bytes_as_sent():
    after = trained()
    update = seal(after)
    delta = update.layout.split(update.payload)
    assert sorted(delta) == NAMES
    for name in NAMES:
        assert np.array_equal(delta[name], after[name] - RECEIVED.tensors[name])
    assert update.digest == hashlib.sha256(update.payload).hexdigest()
    assert len(update.payload) == RECEIVED.manifest.layout.size
    assert update.facts == FACTS


@given(st.integers(0, 2**31))
def test_received_plus_update_is_trained_to_rounding(seed):
    after = trained(seed)
    delta = RECEIVED.manifest.layout.split(seal(after).payload)
    for name in NAMES:
        np.testing.assert_allclose(RECEIVED.tensors[name] + delta[name], after[name], atol=1e-6)


def test_a_local_tensor_among_the_trained_ones_is_refused_by_name_and_not_filtered_out():
    with pytest.raises(InvalidAdapter, match=f"extra tensor '{LOCAL}'"):
        seal({**trained(), LOCAL: np.ones((2, 6), np.float32)})


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_reshaped_or_retyped_tensor_is_refused_by_name(name):
    after = trained()
    with pytest.raises(InvalidAdapter, match=f"missing tensor '{name}'"):
        seal({other: value for other, value in after.items() if other != name})
    with pytest.raises(InvalidAdapter, match=f"tensor '{name}' is"):
        seal({**after, name: after[name][:1, :1]})
    with pytest.raises(InvalidAdapter, match=f"tensor '{name}' is float64, expected float32"):
        seal({**after, name: after[name].astype(np.float64)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_its_tensor(value):
    after = trained()
    after[NAMES[1]][0, 0] = value
    with pytest.raises(InvalidAdapter, match=f"tensor '{NAMES[1]}' has 1 non-finite values"):
        seal(after)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"case_017_score": 0.9}, "metric 'case_017_score' is not on the allow-list"),
        ({"auc": float("nan")}, "'auc' is nan"),
    ],
)
def test_a_figure_that_may_not_leave_is_refused_by_name(metrics, message):
    facts = UpdateFacts(round=3, base_version=2, training_patients=40, metrics=metrics)
    with pytest.raises(InputError, match=message):
        seal(trained(), facts)


def test_the_layout_both_sides_derive_travels_as_its_digest_and_another_one_spelled_out():
    update = seal(trained())
    assert update.layout_field() == {"layout_digest": update.layout.digest}
    other = Update(FACTS, update.layout, update.payload, derived_layout=False)
    assert Layout.from_jsonable(json.loads(other.layout_field()["layout_json"])) == update.layout


# --- what a lossy codec keeps back ----------------------------------------------------------------------------------


def seal_as(codec, tensors, residual=None):
    return egress.seal(RECEIVED, tensors, Recipe(codec=codec), FACTS, 3, residual)


def test_a_lossless_update_leaves_no_residual():
    assert seal_as("f32", trained())[1] == {}


def test_what_is_sent_and_what_is_kept_back_are_the_delta_and_what_was_kept_back_before():
    update, first = seal_as("bf16", trained())
    assert update.facts.codec == "bf16"
    assert 2 * len(update.payload) == RECEIVED.manifest.layout.size
    again, second = seal_as("bf16", trained(2), first)
    for name in NAMES:
        delta = trained()[name] - RECEIVED.tensors[name]
        sent = update.layout.split(update.payload)[name]
        assert first[name].dtype == np.float64
        np.testing.assert_array_equal(sent.astype(np.float64) + first[name], delta.astype(np.float64))
        later = (trained(2)[name] - RECEIVED.tensors[name]).astype(np.float64)
        np.testing.assert_array_equal(
            again.layout.split(again.payload)[name].astype(np.float64) + second[name], later + first[name]
        )
    assert any(value.any() for value in first.values())


def test_a_lossy_update_fails_closed_as_well():
    with pytest.raises(InvalidAdapter, match=f"extra tensor '{LOCAL}'"):
        seal_as("bf16", {**trained(), LOCAL: np.ones((2, 6), np.float32)})
    after = trained()
    after[NAMES[1]][0, 0] = np.nan
    with pytest.raises(InvalidAdapter, match=f"tensor '{NAMES[1]}' has 1 non-finite values"):
        seal_as("bf16", after)


# --- what a recipe lets travel --------------------------------------------------------------------------------------


def travelling(recipe, round_number, tensors):
    return {name: value for name, value in tensors.items() if recipe.travels(name, round_number)}


@pytest.mark.parametrize("codec", ["f32", "int8"])
@pytest.mark.parametrize("round_number", [1, 2])
@pytest.mark.parametrize("name", INSTALLED)
def test_the_door_takes_what_travels_in_the_round_and_refuses_one_more_by_name(name, round_number, codec):
    received, parameters = adapters.fitting(name)
    recipe, facts = make(name, {**parameters, "codec": codec}), replace(FACTS, round=round_number)
    all_of_it = trained(received=received)
    right = travelling(recipe, round_number, all_of_it)
    update, _ = egress.seal(received, right, recipe, facts, 3)
    assert [spec.name for spec in update.layout.tensors] == sorted(right)
    for more in sorted(set(all_of_it) - set(right)):
        with pytest.raises(InvalidAdapter, match=f"extra tensor '{more}'"):
            egress.seal(received, {**right, more: all_of_it[more]}, recipe, facts, 3)
    for less in right:
        with pytest.raises(InvalidAdapter, match=f"missing tensor '{less}'"):
            egress.seal(received, {k: v for k, v in right.items() if k != less}, recipe, facts, 3)


def test_a_residual_is_the_aggregators_and_never_leaves_a_site():
    received, parameters = adapters.fitting("fedex-lora")
    recipe = make("fedex-lora", parameters)
    residual = [name for name in received.tensors if is_residual(name)]
    assert len(residual) == 8
    assert not any(recipe.travels(name, number) for name in residual for number in (1, 2, 3))


def test_what_is_owed_of_a_factor_waits_for_the_round_in_which_it_travels():
    recipe = Recipe(name="rolora", codec="bf16")
    owed: dict[str, np.ndarray] = {}
    for number in (1, 2, 3):
        after = travelling(recipe, number, trained(number))
        _, left = egress.seal(RECEIVED, after, recipe, replace(FACTS, round=number), 3, owed)
        assert left.keys() == owed.keys() | after.keys()
        assert all(np.array_equal(left[name], owed[name]) for name in owed.keys() - after.keys())
        assert any(not np.array_equal(left[name], owed.get(name)) for name in after)
        owed = left


def test_what_a_codec_draws_is_drawn_from_the_seed_it_is_given():
    recipe = Recipe(codec="int4")
    payloads = [
        egress.seal(RECEIVED, trained(), recipe, FACTS, 3, None, seed)[0].payload for seed in (b"1", b"1", b"2")
    ]
    assert payloads[0] == payloads[1] != payloads[2]
