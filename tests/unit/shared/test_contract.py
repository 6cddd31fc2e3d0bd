"""The contract: one hash over everything a site agrees to, and metrics that may leave."""

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from shared import contract
from shared.adapter import AdapterManifest, AdapterMetadata
from shared.contract import MAX_CONTRACT, Contract, RoundPolicy, check_told
from shared.errors import InputError
from shared.layout import Layout
from shared.recipe import Recipe
from tests.support.methods import PRIVATE

MANIFEST = AdapterManifest(
    Layout.of({"w": np.zeros((1, 2), np.float32)}),
    AdapterMetadata(
        base_model_sha256="ab" * 32,
        rank=1,
        alpha=2.0,
        target_modules=("q", "kv"),
        blocks=(0, 1),
        head_policy="local",
        frames="stacked",
        task="disease",
        class_names=("normal", "disease"),
    ),
)
CONTRACT = Contract(
    federation="hearts", adapter_digest="cd" * 32, manifest=MANIFEST, recipe=Recipe(), policy=RoundPolicy()
)


def other(value: Any) -> Any:
    """Another value of the same type that every field takes."""
    match value:
        case None:
            return 7
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 + 0.01
        case tuple():
            return (*value, value[-1])
        case str():
            return OTHERS.get(value, value + "x")
    raise AssertionError(f"no other value of {value!r}")


OTHERS = {
    "med-duallora": "fedsa-lora",
    "joint": "alternating",
    "patients": "uniform",
    "local": "global",
    "stacked": "siamese",
    "f32": "bf16",
    "cinema": "none",
    "sgd": "yogi",
    "none": "geometric-median",
}
BESIDE: dict[str, dict[str, Any]] = {
    "attackers": {"robust": "krum", "attackers": 1},
    "norm_gate": {"norm_gate": 4.0},
    "cosine_least": {"robust": "cosine-gate"},
    "dp_noise": PRIVATE,
    "dp_epsilon": PRIVATE,
}
"""What a parameter of the recipe needs beside it."""
WITH_RESIDUAL = replace(
    CONTRACT,
    recipe=Recipe(name="fedex-lora"),
    manifest=replace(MANIFEST, metadata=replace(MANIFEST.metadata, residual_rank=7)),
)


def variants() -> dict[str, Contract]:
    """The contract with one field of it, or of what it holds, changed at a time."""
    result = {
        "federation": replace(CONTRACT, federation="lungs"),
        "adapter_digest": replace(CONTRACT, adapter_digest="ef" * 32),
        "layout": replace(CONTRACT, manifest=replace(MANIFEST, layout=Layout.of({"v": np.zeros((1, 2), np.float32)}))),
    }
    for field in fields(RoundPolicy):
        changes = {field.name: other(getattr(CONTRACT.policy, field.name))}
        if field.name == "quorum":
            changes = {"quorum": 2}  # more than are invited cannot be
        result[f"policy.{field.name}"] = replace(CONTRACT, policy=replace(CONTRACT.policy, **changes))
    for field in fields(Recipe):
        before = replace(CONTRACT.recipe, **BESIDE.get(field.name, {}))
        policy = RoundPolicy(invited=9, quorum=9) if field.name == "attackers" else CONTRACT.policy
        changed = replace(before, **{field.name: other(getattr(before, field.name))})
        shared_head = with_metadata(CONTRACT, head_policy="global") if changed.dp_noise else CONTRACT
        result[f"recipe.{field.name}"] = replace(shared_head, recipe=changed, policy=policy)
    result |= {
        "with a residual": WITH_RESIDUAL,
        "metadata.residual_rank": with_metadata(WITH_RESIDUAL, residual_rank=8),
    }
    result |= {"metadata.dense": with_metadata(CONTRACT, dense=("",))}
    for field in fields(AdapterMetadata):
        if f"metadata.{field.name}" not in result:
            changed_value = other(getattr(MANIFEST.metadata, field.name))
            result[f"metadata.{field.name}"] = with_metadata(CONTRACT, **{field.name: changed_value})
    return result


def with_metadata(one: Contract, **changes: Any) -> Contract:
    return replace(one, manifest=replace(one.manifest, metadata=replace(one.manifest.metadata, **changes)))


def test_the_hash_changes_with_every_field() -> None:
    hashes = {"": CONTRACT.sha256} | {name: contract.sha256 for name, contract in variants().items()}
    assert len(set(hashes.values())) == len(hashes)
    assert len(hashes) > 30


def test_the_hash_covers_the_metrics_that_may_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CONTRACT.sha256
    monkeypatch.setattr(contract, "ALLOWED_METRICS", (*contract.ALLOWED_METRICS, "scan_dates"))
    assert CONTRACT.sha256 != before


def test_both_sides_compute_the_same_hash_from_what_they_hold() -> None:
    """The aggregator reads whole numbers from a file; the site gets doubles off the wire and a manifest as bytes."""
    policy = RoundPolicy(deadline_s=600, grace_s=60)
    there = replace(CONTRACT, policy=policy, recipe=Recipe(alpha_local=16, clip_norm=1))
    here = replace(
        CONTRACT,
        manifest=AdapterManifest.from_bytes(MANIFEST.to_bytes()),
        policy=RoundPolicy(deadline_s=600.0, grace_s=60.0),
        recipe=Recipe(alpha_local=16.0, clip_norm=1.0),
    )
    assert here.sha256 == there.sha256


def test_how_compared_models_do_may_not_be_told_where_nothing_private_may_show() -> None:
    check_told(Recipe(), {"auc": 0.5}, always=True, arm="dual")
    for recipe, said in (
        (Recipe(mode="non-interference"), "'dual' does may not be told in mode non-interference"),
        (Recipe(**PRIVATE), "non-interference"),
    ):
        with pytest.raises(InputError, match=said):
            check_told(recipe, {"auc": 0.5}, always=True, arm="dual")
    with pytest.raises(InputError, match=r"'best' is no model of the comparison \(known: probe, alone, global, dual\)"):
        check_told(Recipe(), {"auc": 0.5}, arm="best")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"quorum": 0}, r"quorum must be between 1 and invited \(3\), got 0"),
        ({"quorum": 4}, r"quorum must be between 1 and invited \(3\), got 4"),
        ({"deadline_s": 0.0}, "deadline must be positive and grace not negative, got 0.0 s"),
        ({"deadline_s": float("nan")}, "deadline must be positive and grace not negative, got nan s"),
        ({"deadline_s": float("inf")}, "deadline must be positive and grace not negative, got inf s"),
        ({"grace_s": -1.0}, "got 3600.0 s and -1.0 s"),
    ],
)
def test_a_policy_that_no_round_could_meet_is_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RoundPolicy(**numbers)


def test_only_metrics_of_the_allow_list_may_leave() -> None:
    contract.check_metrics({"auc": 0.9, "loss": 0.1})
    with pytest.raises(InputError, match=r"metric 'oldest_patient' is not on the allow-list \(train_loss, loss, auc"):
        contract.check_metrics({"auc": 0.9, "oldest_patient": 93.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_must_be_a_finite_number(value: float) -> None:
    with pytest.raises(InputError, match=f"metric 'auc' is {value}, expected a finite number"):
        contract.check_metrics({"auc": value})


def test_a_contract_that_was_kept_is_read_as_the_same() -> None:
    for contract_ in (CONTRACT, *variants().values()):
        assert Contract.from_bytes(contract_.to_bytes()) == contract_


@pytest.mark.parametrize(
    ("parameters", "sha256"),
    [
        ({}, "961aaf3b96ed5efb1fbc14a49bdf2c074cb3fffc2f3222402f72eddcb758d78a"),
        ({"name": "ffa-lora"}, "5d347f8c77c0be41ab08707804d950e5f37cba0d97e5a329d497dbf02f5c73d0"),
        ({"name": "fedsa-lora"}, "85a97e4ee8e0f29c34ecc068bfd75ee383cdae7a2eb9002e1907b06597e602c9"),
        ({"name": "rolora"}, "2b6790df4d872f33fdf740a8aff60ae4b65c66e1a38a6eb09a2f4b4e3f38cd30"),
        ({"mode": "alternating"}, "825b20e65524fbb61f0405db695c752cef5d2677b48c156771c1491d09541588"),
        (
            {
                **{"rank_local": 0, "weighting": "uniform", "codec": "int8+zstd", "server_lr": 0.5},
                **{"broadcast_codec": "topk", "topk_share": 0.1, "view_epochs": 3, "augmentation": "narrow"},
                "class_balanced": False,
            },
            "8741085704d7ec362f6ee626206c9a8ff16b546d3f702c8befcfda6f0ee613c8",
        ),
    ],
)
def test_contracts_of_the_first_four_recipes_keep_their_hash(parameters: dict[str, Any], sha256: str) -> None:
    """As they were before there were methods (commit 3b96d34): stores and agents of then go on with those of now."""
    assert replace(CONTRACT, recipe=Recipe(**parameters)).sha256 == sha256


def test_an_adapter_that_its_recipe_cannot_train_makes_no_contract() -> None:
    with pytest.raises(InputError, match="recipe 'fedex-lora' needs an adapter with a residual"):
        replace(CONTRACT, recipe=Recipe(name="fedex-lora"))
    data = WITH_RESIDUAL.to_bytes().replace(b"fedex-lora", b"flex-lora")
    with pytest.raises(InputError, match="recipe 'flex-lora' has no use for an adapter with a residual"):
        Contract.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        CONTRACT.to_bytes().replace(b'"federation"', b'"federations"'),
        CONTRACT.to_bytes() + b" " * MAX_CONTRACT,
        CONTRACT.to_bytes().replace(b'"rounds":8', b'"rounds":' + b"[" * 990 + b"]" * 990),
        CONTRACT.to_bytes().replace(b'"rounds":8', b'"circles":8'),
    ],
)
def test_a_contract_that_cannot_be_read_says_so(data: bytes) -> None:
    with pytest.raises(InputError, match="a contract cannot be read"):
        Contract.from_bytes(data)


@pytest.mark.parametrize("name", ["rounds", "invited", "quorum"])
@pytest.mark.parametrize("value", [b"NaN", b"1e999", b"8.5", b'"8"', b"true", b"null"])
def test_a_policy_counts_in_whole_numbers(name: str, value: bytes) -> None:
    text = re.sub(rb'("%s":)\d+' % name.encode(), rb"\g<1>" + value, CONTRACT.to_bytes())
    with pytest.raises(InputError, match=f"{name} must be a whole number"):
        Contract.from_bytes(text)
