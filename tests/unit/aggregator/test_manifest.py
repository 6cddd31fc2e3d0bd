"""The manifest says everything a round's result is made of."""

import json
from dataclasses import replace

import pytest

from aggregator import manifest, rounds
from aggregator.rounds import AcceptedUpdate, FederationState, RoundState, SiteState
from shared.contract import RoundPolicy
from shared.errors import InputError
from shared.recipe import Recipe


def federation(order: tuple[str, ...] = ("ge", "siemens")) -> FederationState:
    updates = {"ge": AcceptedUpdate("11" * 32, 30, 5.0), "siemens": AcceptedUpdate("22" * 32, 90, 4.0)}
    return FederationState(
        name="demo",
        policy=RoundPolicy(rounds=2, invited=3, quorum=2),
        sites={n: SiteState(name=n, phase="joined") for n in ("canon", "ge", "siemens")},
        round=RoundState(
            number=1, base_version=0, invited=("canon", "ge", "siemens"), accepted={s: updates[s] for s in order}
        ),
    )


def made(order: tuple[str, ...] = ("ge", "siemens")) -> manifest.RoundManifest:
    return manifest.of_round(federation(order), Recipe(), "00" * 32, version=1)


def test_a_manifest_holds_sites_digests_weights_and_who_was_left_out() -> None:
    value = json.loads(made().to_bytes())
    assert value["entries"] == [
        {"site": "ge", "digest": "11" * 32, "training_patients": 30, "weight": 0.25},
        {"site": "siemens", "digest": "22" * 32, "training_patients": 90, "weight": 0.75},
    ]
    assert value["left_out"] == {"canon": "joined, no update in time"}
    assert (value["parent_version"], value["parent_digest"], value["version"]) == (0, "00" * 32, 1)
    assert (value["rule"], value["weighting"], value["server_lr"]) == ("weighted_mean", "patients", 1.0)


def test_the_order_of_arrival_does_not_show() -> None:
    assert made(("ge", "siemens")).to_bytes() == made(("siemens", "ge")).to_bytes()


def test_a_manifest_reads_back_and_its_digest_leaves_the_result_out() -> None:
    decided = made()
    final = manifest.with_result(decided, "ff" * 32)
    assert manifest.RoundManifest.from_bytes(final.to_bytes()) == final
    assert final.input_digest == decided.input_digest
    assert final.to_bytes() != decided.to_bytes()


def test_the_input_digest_is_a_known_number() -> None:
    """Pinned: a change of it means that stores of this release can no longer be verified."""
    assert made().input_digest == "84c66f2af3852a9ef5fa2893e8cf9fcc23f9f75e0fd86f1bfaf1a144db8bbed7"
    before = replace(made(), recipe="", codec="", broadcast_codec="")  # as releases wrote it that had no choice
    assert before.input_digest == "5828480892e007b7407c2f7878525d6963476726c2cf5888438e8a8ec7db7ea1"


def test_it_says_how_updates_and_change_were_written() -> None:
    recipe = Recipe(name="ffa-lora", codec="int4+zstd", broadcast_codec="int8")
    value = json.loads(manifest.of_round(federation(("ge",)), recipe, "00" * 32, 1).to_bytes())
    assert (value["recipe"], value["codec"], value["broadcast_codec"]) == ("ffa-lora", "int4+zstd", "int8")


@pytest.mark.parametrize("change", [{"parent_digest": "33" * 32}, {"server_lr": 0.5}, {"round": 2}, {"left_out": {}}])
def test_any_change_changes_the_digest(change: dict[str, object]) -> None:
    assert replace(made(), **change).input_digest != made().input_digest


def test_the_state_decides_who_is_in() -> None:
    state = federation()
    gone = replace(state.sites["ge"], phase="evicted", reason="asked to leave")
    state = replace(state, sites={**state.sites, "ge": gone})
    found = manifest.of_round(state, Recipe(), "00" * 32, 1)
    assert [(e.site, e.weight) for e in found.entries] == [("siemens", 1.0)]
    assert found.left_out["ge"] == "evicted: asked to leave"
    assert rounds.quorum(state) == 2


def test_an_accepted_update_of_an_evicted_site_is_set_aside_by_its_digest() -> None:
    """Without one the manifest says nothing of it: it then has the digest it had before it could."""
    state = federation()
    gone = replace(state.sites["ge"], phase="evicted", reason="asked to leave")
    found = manifest.of_round(replace(state, sites={**state.sites, "ge": gone}), Recipe(), "00" * 32, 1)
    assert found.set_aside == {"ge": "11" * 32}
    assert manifest.RoundManifest.from_bytes(found.to_bytes()) == found
    assert replace(found, set_aside={"ge": "33" * 32}).input_digest != found.input_digest
    assert b"set_aside" not in made().to_bytes()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"entries": 3}', b'{"entries": [], "surprise": 1}'])
def test_a_broken_manifest_is_named_as_such(data: bytes) -> None:
    with pytest.raises(InputError, match="manifest that cannot be read"):
        manifest.RoundManifest.from_bytes(data)


def test_it_says_by_which_rule_and_with_which_numbers() -> None:
    def said(recipe: Recipe) -> dict[str, object]:
        return dict(json.loads(manifest.of_round(federation(), recipe, "00" * 32, 1).to_bytes()))

    later = {"weight_cap", "server_optimiser", "server_beta1", "server_beta2", "server_tau", "moments_digest"}
    assert not later & said(Recipe()).keys()
    assert said(Recipe(name="flex-lora"))["rule"] == "products"
    assert said(Recipe(name="fedex-lora"))["rule"] == "exact"
    momentum = said(Recipe(server_optimiser="momentum"))
    assert later & momentum.keys() == {"server_optimiser", "server_beta1"}
    yogi = said(Recipe(server_optimiser="yogi", server_tau=0.5))
    assert (yogi["server_optimiser"], yogi["server_beta2"], yogi["server_tau"]) == ("yogi", 0.99, 0.5)


def test_capped_weights_stand_in_it_with_their_cap() -> None:
    """30 and 90 patients: the median is 60."""
    found = manifest.of_round(federation(), Recipe(weighting="capped", weight_cap=1.0), "00" * 32, 1)
    assert [entry.weight for entry in found.entries] == [30 / 90, 60 / 90]
    assert found.weight_cap == 1.0
    assert replace(found, weight_cap=2.0).input_digest != found.input_digest


def test_the_digest_of_moments_is_part_of_the_result() -> None:
    decided = made()
    final = manifest.with_result(decided, "ff" * 32, "ee" * 32)
    assert manifest.RoundManifest.from_bytes(final.to_bytes()) == final
    assert final.input_digest == decided.input_digest
