"""Server optimisers against a sequence worked by hand and the papers' formulas, number by number without numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from aggregator import optimisers, results
from aggregator.optimisers import Moments
from shared.contract import Contract, RoundPolicy
from shared.layout import Layout
from shared.recipe import Recipe
from tests.support import adapters

KEEPING = ("momentum", "adam", "yogi")


def recipe(name: str, **parameters: float) -> Recipe:
    return Recipe(server_optimiser=name, **parameters)  # type: ignore[arg-type]


def path(made: Recipe, means: list[float]) -> list[float]:
    """Return what each of these means moves a single number by."""
    held: Moments | None = None
    steps = []
    for mean in means:
        held = optimisers.moments(made, held, np.array([mean]))
        steps.append(float(optimisers.step(made, held)[0]))
    return steps


def test_momentum_by_hand() -> None:
    """m = 1, then 0.5 + 2 = 2.5, then 1.25 - 1 = 0.25; half of it is applied."""
    assert path(recipe("momentum", server_beta1=0.5, server_lr=0.5), [1.0, 2.0, -1.0]) == [0.5, 1.25, 0.125]


def test_adam_by_hand() -> None:
    """tau = 1: v = 1 at first. m = 2, v = 0.5 + 8 = 8.5; then m = 1 + 0 = 1, v = 4.25."""
    found = path(recipe("adam", server_beta1=0.5, server_beta2=0.5, server_tau=1.0), [4.0, 0.0])
    assert found == [2.0 / (math.sqrt(8.5) + 1.0), 1.0 / (math.sqrt(4.25) + 1.0)]


def test_yogi_by_hand() -> None:
    """tau = 1: v = 1 + 0.5 * 16 = 9 as 1 < 16; then v = 9 - 0.5 * 1 = 8.5 as 9 > 1; m = 2, then 1 + 0.5 = 1.5."""
    found = path(recipe("yogi", server_beta1=0.5, server_beta2=0.5, server_tau=1.0), [4.0, 1.0])
    assert found == [2.0 / (3.0 + 1.0), 1.5 / (math.sqrt(8.5) + 1.0)]


@pytest.mark.parametrize("name", KEEPING)
def test_a_long_sequence_follows_the_papers_formulas(name: str) -> None:
    """Reddi et al. 2021, algorithm 2; Hsu et al. 2019, section 4."""
    made = recipe(name, server_lr=0.3, server_beta1=0.9, server_beta2=0.97, server_tau=0.01)
    means = np.random.default_rng(1).standard_normal(50).tolist()
    m, v, expected = 0.0, 0.01**2, []
    for d in means:
        if name == "momentum":
            m = 0.9 * m + d
            expected.append(0.3 * m)
            continue
        m = 0.9 * m + (1 - 0.9) * d
        sign = (v > d * d) - (v < d * d)
        v = 0.97 * v + (1 - 0.97) * d * d if name == "adam" else v - (1 - 0.97) * d * d * sign
        expected.append(0.3 * m / (math.sqrt(v) + 0.01))
    np.testing.assert_allclose(path(made, means), expected, rtol=1e-12)


# in rounds

ADAPTER = adapters.adapter()


def contract(made: Recipe) -> Contract:
    policy = RoundPolicy(rounds=4, invited=2, quorum=2)
    return Contract(
        federation="demo", adapter_digest=ADAPTER.digest, manifest=ADAPTER.manifest, recipe=made, policy=policy
    )


def federate(made: Recipe, rounds: int = 4) -> list[results.Result]:
    """Two sites whose updates depend on the round alone."""
    agreed, version, moments, found = contract(made), ADAPTER, {}, []
    for number in range(1, rounds + 1):
        layout = made.upload_layout(agreed.manifest, number, 2)
        sent = {site: adapters.delta(layout, 10 * number + k) for k, site in enumerate("ab")}

        def deltas(layout=layout, sent=sent):
            return {site: layout.read([payload]) for site, payload in sent.items()}

        result = results.make(agreed, number, number, version, deltas, {"a": 0.25, "b": 0.75}, {}, moments)
        version, moments = result.version, dict(result.moments)
        found.append(result)
    return found


def test_momentum_without_memory_is_sgd_bit_for_bit() -> None:
    plain = federate(recipe("sgd", server_lr=0.7))
    found = federate(recipe("momentum", server_beta1=0.0, server_lr=0.7))
    assert [result.version.digest for result in found] == [result.version.digest for result in plain]


def test_sgd_keeps_nothing() -> None:
    assert [dict(result.moments) for result in federate(recipe("sgd"))] == [{}] * 4


@pytest.mark.parametrize("name", KEEPING)
def test_each_tensor_goes_its_own_way_by_the_mean_of_its_deltas(name: str) -> None:
    made = recipe(name, server_lr=0.5)
    tensor = next(iter(ADAPTER.tensors))
    value, held = ADAPTER.tensors[tensor], None
    for number, result in enumerate(federate(made), start=1):
        layout = Layout.of(ADAPTER.tensors)
        one, two = (layout.split(adapters.delta(layout, 10 * number + k))[tensor].astype(float) for k in (0, 1))
        held = optimisers.moments(made, held, 0.25 * one + 0.75 * two)
        value = (value.astype(float) + optimisers.step(made, held)).astype(np.float32)
        np.testing.assert_array_equal(result.version.tensors[tensor], value)


def test_what_does_not_travel_in_a_round_keeps_its_moments() -> None:
    """RoLoRA: B in odd rounds, A in even ones."""
    first, second, third, _ = federate(replace(recipe("momentum"), name="rolora"))
    a, b = (next(name for name in ADAPTER.tensors if mark in name) for mark in ("lora_A", "lora_B"))
    assert a not in first.moments
    np.testing.assert_array_equal(second.moments[b].first, first.moments[b].first)
    np.testing.assert_array_equal(third.moments[a].first, second.moments[a].first)
    assert not np.array_equal(third.moments[b].first, second.moments[b].first)
