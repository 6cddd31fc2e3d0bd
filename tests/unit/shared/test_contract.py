"""The contract: one hash over everything a site agrees to, and metrics that may leave."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from shared import contract
from shared.adapter import AdapterManifest, AdapterMetadata
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.layout import Layout
from shared.recipe import Recipe

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
        case "joint" | "patients" | "local" | "stacked" | "f32" | "cinema":
            others = {
                "joint": "alternating",
                "patients": "uniform",
                "local": "global",
                "stacked": "siamese",
                "f32": "bf16",
                "cinema": "none",
            }
            return others[value]
        case str():
            return value + "x"
    raise AssertionError(f"no other value of {value!r}")


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
        changed = replace(CONTRACT.recipe, **{field.name: other(getattr(CONTRACT.recipe, field.name))})
        result[f"recipe.{field.name}"] = replace(CONTRACT, recipe=changed)
    for field in fields(AdapterMetadata):
        metadata = replace(MANIFEST.metadata, **{field.name: other(getattr(MANIFEST.metadata, field.name))})
        result[f"metadata.{field.name}"] = replace(CONTRACT, manifest=replace(MANIFEST, metadata=metadata))
    return result


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
        if contract_.recipe.name == CONTRACT.recipe.name:  # another recipe is not installed here
            assert Contract.from_bytes(contract_.to_bytes()) == contract_


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        CONTRACT.to_bytes().replace(b'"federation"', b'"federations"'),
        CONTRACT.to_bytes().replace(b'"rounds":8', b'"rounds":"8"'),
        CONTRACT.to_bytes().replace(b'"rounds":8', b'"circles":8'),
    ],
)
def test_a_contract_that_cannot_be_read_says_so(data: bytes) -> None:
    with pytest.raises(InputError, match="a contract cannot be read"):
        Contract.from_bytes(data)
