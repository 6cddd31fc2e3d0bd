"""A manifest that was edited by somebody who then computed its digest anew is found, with the update bytes and without."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator import verify
from aggregator.store import federations
from shared.canonical import canonical_json, sha256_hex
from tests.support import adapters, closed_rounds
from tests.support.tampered import OTHER, checks, purge, tamper


@pytest.fixture(scope="module")
def closed_with_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partial")
    patients = {**closed_rounds.PATIENTS, "philips": 40, "toshiba": 30}
    store = closed_rounds.make(folder, patients, rounds_count=1, quorum=3)
    layout = adapters.adapter().manifest.layout
    for seed, site in enumerate(sorted(patients.keys() - {"philips"})):
        closed_rounds.send(store, site, adapters.delta(layout, seed))
    store.write(federations.evict, "demo", "toshiba", "left the study")
    closed_rounds.close(store)
    assert [check.difference for check in verify.verify(store, "demo")] == [""]
    store.close()
    return folder / "fed.db"


@pytest.fixture
def partial(closed_with_three: Path, tmp_path: Path) -> Path:
    """One round of five sites: three in, one late, and one evicted after its update was accepted."""
    return Path(shutil.copy(closed_with_three, tmp_path / "tampered.db"))


def edit_entry(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda decided: decided["entries"][0].update({name: value})


def edit(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda decided: decided.update({name: value})


def shift_weight(decided: dict[str, Any]) -> None:
    decided["entries"][0]["weight"] += 0.01
    decided["entries"][1]["weight"] -= 0.01


def drop_entry(decided: dict[str, Any]) -> None:
    entry = decided["entries"].pop(0)
    decided["left_out"][entry["site"]] = "joined, no update in time"
    total = sum(other["training_patients"] for other in decided["entries"])
    for other in decided["entries"]:
        other["weight"] = other["training_patients"] / total


def set_entry_aside(decided: dict[str, Any]) -> None:
    entry = decided["entries"][0]
    drop_entry(decided)
    decided["set_aside"][entry["site"]] = entry["digest"]


def add_entry(decided: dict[str, Any]) -> None:
    decided["left_out"].pop("philips")
    decided["entries"].insert(2, {**decided["entries"][1], "site": "philips"})


MANIFESTS = {
    "weights": shift_weight,
    "patients": edit_entry("training_patients", 51),
    "digest": edit_entry("digest", OTHER),
    "site": edit_entry("site", "canon2"),
    "one fewer": drop_entry,
    "one set aside": set_entry_aside,
    "one more": add_entry,
    "rule": edit("rule", "median"),
    "weighting": edit("weighting", "uniform"),
    "server_lr": edit("server_lr", 0.5),
    "weight_cap": edit("weight_cap", 2.0),
    "server_optimiser": edit("server_optimiser", "adam"),
    "server_beta1": edit("server_beta1", 0.5),
    "moments_digest": edit("moments_digest", OTHER),
    "parent_version": edit("parent_version", 1),
    "parent_digest": edit("parent_digest", OTHER),
    "version": edit("version", 2),
    "round": edit("round", 2),
    "federation": edit("federation", "other"),
    "result_digest": edit("result_digest", OTHER),
    "nobody left out": edit("left_out", {}),
    "somebody invented left out": lambda decided: decided["left_out"].update(nobody="never joined"),
    "an eviction invented": lambda decided: decided["left_out"].update(philips="evicted: no reason"),
    "an eviction's reason": lambda decided: decided["left_out"].update(toshiba="evicted: bad data"),
    "an eviction denied": lambda decided: decided["left_out"].update(toshiba="joined, no update in time"),
    "an invitation denied": lambda decided: decided["left_out"].update(philips="not invited"),
    "nothing set aside": edit("set_aside", {}),
    "another set aside": lambda decided: decided["set_aside"].update(toshiba=OTHER),
    "something more": edit("note", "hello"),
}


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with sqlite3.connect(path) as raw:
        (text,) = raw.execute("SELECT manifest FROM rounds WHERE number = 1").fetchone()
    decided = json.loads(text)
    change(decided)
    edited = canonical_json(decided).decode()
    inputs = {name: value for name, value in decided.items() if name != "moments_digest"}
    digest = sha256_hex(canonical_json({**inputs, "result_digest": ""}))
    assert edited != text
    tamper(path, "UPDATE rounds SET manifest = ?, input_digest = ? WHERE number = 1", edited, digest)


@pytest.mark.parametrize("purged", [False, True], ids=["bytes kept", "bytes purged"])
@pytest.mark.parametrize("change", MANIFESTS.values(), ids=list(MANIFESTS))
def test_an_edited_manifest_is_found_though_its_digest_was_recomputed(
    partial: Path, change: Callable[[dict[str, Any]], None], purged: bool
) -> None:
    if purged:
        purge(partial)
    edit_manifest(partial, change)
    (found,) = checks(partial)
    assert found.difference
