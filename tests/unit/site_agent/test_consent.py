"""Pins and limits of a site, and what of two contracts differs, by name."""

from dataclasses import replace
from typing import Any

import pytest

from shared.adapter import AdapterManifest
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.layout import Layout
from shared.recipe import Recipe
from site_agent import consent
from site_agent.consent import ConsentWithheld, Pins, Window
from site_agent.ledger import Spent
from tests.support import adapters, other_contracts

ADAPTER = adapters.adapter()
CONTRACT = Contract(
    federation="heart",
    adapter_digest=ADAPTER.digest,
    manifest=ADAPTER.manifest,
    recipe=Recipe(),
    policy=RoundPolicy(rounds=8, invited=4, quorum=3),
)
METADATA = ADAPTER.manifest.metadata


def pinned(**table: Any) -> Pins:
    return Pins.parse(table)


EVERYTHING = pinned(
    federation="heart",
    base_model=METADATA.base_model_sha256[:16],
    adapter=ADAPTER.digest,
    recipe="med-duallora",
    mode="joint",
    codec="f32",
    at_most={"local_epochs": 2, "lr_global": 2e-3, "rank_local": 8},
    rounds=8,
    sites_at_least=3,
)


def test_a_contract_inside_all_pins_is_agreed_to() -> None:
    EVERYTHING.check(CONTRACT)
    Pins().check(replace(CONTRACT, federation="anything"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"federation": "lung"}, "federation: this site's site.toml says 'heart', the aggregator offers 'lung'"),
        ({"recipe": Recipe(name="ffa-lora")}, "recipe: .* says 'med-duallora', the aggregator offers 'ffa-lora'"),
        ({"recipe": Recipe(mode="alternating")}, "mode: .* says 'joint', the aggregator offers 'alternating'"),
        ({"recipe": Recipe(codec="int8+zstd")}, r"codec: .* says 'f32', the aggregator offers 'int8\+zstd'"),
        ({"adapter_digest": "0" * 64}, "adapter: .* the aggregator offers 000000000000"),
        ({"recipe": Recipe(local_epochs=3)}, "recipe parameter local_epochs: .* at most 2, the aggregator offers 3"),
        ({"recipe": Recipe(lr_global=1.0)}, "recipe parameter lr_global: .* at most 0.002, the aggregator offers 1.0"),
        ({"policy": RoundPolicy(rounds=9, invited=4, quorum=3)}, "rounds: .* at most 8, the aggregator offers 9"),
        ({"policy": RoundPolicy(rounds=8, invited=4, quorum=2)}, "sites_at_least: .* says 3, .* a quorum of 2"),
    ],
)
def test_what_is_out_of_bounds_is_named_with_both_values(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConsentWithheld, match=said):
        EVERYTHING.check(replace(CONTRACT, **change))


def test_a_manifest_that_is_not_the_pinned_one_is_named() -> None:
    pins = pinned(manifest=ADAPTER.manifest.digest[:12])
    pins.check(CONTRACT)
    larger = adapters.adapter(rank=3).manifest
    with pytest.raises(
        ConsentWithheld, match=f"manifest: .* says {ADAPTER.manifest.digest[:12]}, .* {larger.digest[:12]}"
    ):
        pins.check(replace(CONTRACT, manifest=larger))


def test_a_number_beyond_its_pin_is_refused_by_name() -> None:
    with pytest.raises(ConsentWithheld, match=r"recipe parameter local_epochs: .* at most 2"):
        pinned(at_most={"local_epochs": 2}).check(replace(CONTRACT, recipe=Recipe(local_epochs=1_000_000)))


def test_what_an_aggregator_writes_reaches_no_screen_as_it_is() -> None:
    (line,) = consent.differences(CONTRACT, replace(CONTRACT, federation="\x1b[2Jlung\n"))
    assert line == "federation: agreed 'heart', offered '[2Jlung'"


def test_another_base_model_is_named() -> None:
    other = replace(ADAPTER.manifest, metadata=replace(METADATA, base_model_sha256="cd" * 32))
    with pytest.raises(ConsentWithheld, match=r"base_model: .* says abababababab, the aggregator offers cdcdcdcdcdcd"):
        EVERYTHING.check(replace(CONTRACT, manifest=other))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"federaton": "heart"}, "has no key 'federaton'"),
        ({"federation": 7}, "federation must be a str, got 7"),
        ({"rounds": 0}, "rounds must be a whole number above 0, got 0"),
        ({"rounds": True}, "rounds must be a whole number above 0, got True"),
        ({"base_model": "abc"}, "base_model must be at least 12 hexadecimal digits"),
        ({"adapter": "Z" * 64}, "adapter must be at least 12 hexadecimal digits"),
        ({"metrics": ["auc", "dice"]}, "metrics: 'dice' is none"),
        ({"at_most": {"epochs": 3}}, "epochs = 3: give the largest number of a recipe parameter"),
        ({"at_most": {"local_epochs": "3"}}, "local_epochs = '3'"),
        ({"at_most": {"codec": 1}}, "codec = 1"),
        ({"at_most": {"gate": 1}}, "gate = 1"),
        (
            {"mode": "non-interferance"},
            "mode must be one of joint, alternating, non-interference, got 'non-interferance'",
        ),
        ({"codec": "f16"}, r"codec must be one of f32, .*, got 'f16'"),
        ({"codec": 16}, "codec must be a str, got 16"),
        ({"manifest": "abc"}, "manifest must be at least 12 hexadecimal digits"),
        ({"windows": ["22-6"]}, "a training window is HH:MM-HH:MM"),
        ({"windows": ["24:00-06:00"]}, "a training window is HH:MM-HH:MM"),
        ({"windows": ["06:00-06:00"]}, "has no length"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_key(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Pins.parse(table)


def test_all_pins_that_refuse_are_named_at_once() -> None:
    with pytest.raises(ConsentWithheld) as caught:
        pinned(recipe="fedit", rounds=1).check(CONTRACT)
    recipe, rounds = str(caught.value).split("; ")
    assert recipe.startswith("recipe: this site's site.toml says 'fedit'")
    assert rounds.startswith("rounds: this site's site.toml says at most 1")


def test_figures_that_are_not_named_stay() -> None:
    figures = {"auc": 0.8, "specificity": 0.6, "train_loss": 0.4}
    assert Pins().may_leave(figures) == figures
    assert pinned(metrics=["auc"]).may_leave(figures) == {"auc": 0.8}
    assert pinned(metrics=[]).may_leave(figures) == {}


def spent(for_round: int, in_all: int, rounds: tuple[int, ...] = ()) -> Spent:
    return Spent(for_round, in_all, frozenset(rounds))


def test_budgets_count_what_has_left() -> None:
    pins = pinned(bytes_a_round=1000, bytes_in_all=2500, rounds=2)
    pins.check_spent(1000, 3, spent(0, 1500, (1,)))
    with pytest.raises(
        ConsentWithheld, match=r"bytes_a_round: .* says 1000, 100 have left and 1000 more are asked for; they stay"
    ):
        pins.check_spent(1000, 3, spent(100, 100))
    with pytest.raises(ConsentWithheld, match=r"bytes_in_all: .* says 2500, 1501 have left"):
        pins.check_spent(1000, 3, spent(0, 1501))
    with pytest.raises(
        ConsentWithheld, match=r"rounds: .* says at most 2, updates of 2 have left, and round 3 is another"
    ):
        pins.check_spent(1000, 3, spent(0, 500, (1, 2)))
    pins.check_spent(500, 2, spent(500, 1000, (1, 2)))
    Pins().check_spent(10**9, 10**6, spent(10**9, 10**9, tuple(range(100))))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("08:00-18:30", (8 * 60, 18 * 60 + 29), (8 * 60 - 1, 18 * 60 + 30)),
        ("22:00-06:00", (22 * 60, 23 * 60 + 59, 0, 5 * 60 + 59), (6 * 60, 21 * 60 + 59)),
    ],
)
def test_windows_may_go_past_midnight(text: str, inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    pins = pinned(windows=[text])
    assert all(pins.may_train(minute) for minute in inside)
    assert not any(pins.may_train(minute) for minute in outside)
    assert all(Pins().may_train(minute) for minute in range(24 * 60))
    assert Window.parse(text) == pins.windows[0]


# what differs


PAIRS = list(other_contracts.pairs())


@pytest.mark.parametrize(("name", "agreed", "offered"), PAIRS, ids=[name for name, _, _ in PAIRS])
def test_every_field_that_changed_is_named_alone(name: str, agreed: Contract, offered: Contract) -> None:
    (line,) = consent.differences(agreed, offered)
    assert line.startswith(f"{name}: agreed ")


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (RoundPolicy(rounds=9, invited=4, quorum=3), "rounds: agreed 8, offered 9"),
        (RoundPolicy(rounds=8, invited=5, quorum=3), "invited: agreed 4, offered 5"),
        (RoundPolicy(rounds=8, invited=4, quorum=2), "quorum: agreed 3, offered 2"),
        (RoundPolicy(rounds=8, invited=4, quorum=3, deadline_s=60), "deadline_s: agreed 3600.0, offered 60.0"),
        (RoundPolicy(rounds=8, invited=4, quorum=3, grace_s=60), "grace_s: agreed 300.0, offered 60.0"),
    ],
)
def test_every_number_of_the_round_policy_that_changed_is_named(policy: RoundPolicy, named: str) -> None:
    assert consent.differences(CONTRACT, replace(CONTRACT, policy=policy)) == [named]


def test_federation_adapter_and_tensors_that_changed_are_named() -> None:
    assert consent.differences(CONTRACT, replace(CONTRACT, federation="lung")) == [
        "federation: agreed 'heart', offered 'lung'"
    ]
    assert consent.differences(CONTRACT, CONTRACT) == []
    less = Layout(ADAPTER.manifest.layout.tensors[1:])
    (line,) = consent.differences(CONTRACT, replace(CONTRACT, manifest=AdapterManifest(less, METADATA)))
    assert line.startswith("tensor base_model.model.encoder.blocks.0.attn.kv.lora_A.weight: agreed [[")
    assert line.endswith("offered 'nothing'")


@pytest.mark.parametrize(
    ("robust", "attackers", "least", "said"),
    [
        ("krum", 1, 2, "a quorum of 5 and robust rule krum: results of 1"),
        ("trimmed-distance", 1, 5, "a quorum of 5 and robust rule trimmed-distance: results of 4"),
        ("none", 0, 6, "a quorum of 5"),
    ],
)
def test_the_fewest_sites_are_those_a_result_may_be_made_of(robust, attackers, least, said) -> None:
    policy = replace(CONTRACT.policy, invited=5, quorum=5)
    offered = replace(CONTRACT, policy=policy, recipe=replace(CONTRACT.recipe, robust=robust, attackers=attackers))
    pinned(sites_at_least=least - 1).check(offered)
    with pytest.raises(ConsentWithheld, match=f"sites_at_least: this site's site.toml says {least}, .* {said}$"):
        pinned(sites_at_least=least).check(offered)
