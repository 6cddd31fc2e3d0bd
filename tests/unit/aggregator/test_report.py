"""The federation's report: what stands in the store, in words and figures; findings are told and do not stop it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from aggregator import cli
from aggregator.report import facts, page, words
from aggregator.rounds import SiteState
from aggregator.store import agents, audit, evaluations, federations, schema
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from shared.contract import Contract, RoundPolicy
from shared.recipe import Recipe
from tests.support import adapters, closed_rounds, methods
from tests.support.pages import check_stands_alone

NOW = 1_800_000_000.0
AUC = {"canon": (0.5, 0.7), "ge": (0.6, 0.8), "siemens": (0.7, 0.9)}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.build(), ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    """Three sites, two closed rounds, figures of both versions; one site evicted afterwards."""
    made = closed_rounds.make(folder, rounds_count=3)
    closed_rounds.run(made)
    for record in made.read(round_rows.records, "demo"):
        for site, update in record.state.accepted.items():
            told = {"round": record.state.number, "site": site, "digest": update.digest}
            made.write(lambda connection, told=told: audit.append(connection, "demo", NOW, "update_accepted", **told))
    for site, values in AUC.items():
        versions = {"software_version": f"1.0-{site}", "protocol_version": "1.2"}
        made.write(agents.heard, "demo", site, f"agent-{site}", NOW, 60.0, versions)
        for number, value in enumerate(values, 1):
            made.write(evaluations.report, "demo", site, number, number, 10, {"auc": value}, NOW)
    for arm, value in (("dual", 0.75), ("probe", 0.5), ("dual", 0.875)):  # the last word counts
        told = {"auc": value, "balanced_accuracy": 0.625}
        made.write(evaluations.report, "demo", "ge", 2, 2, 16, told, NOW, arm)
    made.write(federations.evict, "demo", "canon", "left the study")
    told = {"site": "canon", "by": "anna", "reason": "left <the> study"}
    made.write(lambda connection: audit.append(connection, "demo", NOW, "site_evicted", **told))
    yield made
    made.close()


@pytest.fixture(scope="module")
def found(store: Store) -> dict[str, Any]:
    return facts.gather(store, "demo", NOW)


def test_it_says_who_took_part_by_what_right_and_for_how_much(found: dict[str, Any]) -> None:
    sites = {site["site"]: site for site in found["sites"]}
    assert {name: site["training_patients"] for name, site in sites.items()} == closed_rounds.PATIENTS
    assert sites["siemens"]["share"] == pytest.approx(273 / 400)
    assert sites["ge"]["rounds_in"] == [1, 2]
    assert sites["ge"]["authenticated"] is True
    assert (sites["ge"]["software"], sites["ge"]["protocol"]) == ("1.0-ge", "1.2")
    assert (sites["canon"]["phase"], sites["canon"]["reason"]) == ("evicted", "left the study")


def test_means_are_of_the_sites_that_reported(found: dict[str, Any]) -> None:
    (curve,) = (one for one in found["curves"] if one["metric"] == "auc")
    assert curve["mean"] == [[1, pytest.approx(0.6), 3], [2, pytest.approx(0.8), 3]]
    assert "0.600 for version 1 and 0.800 for version 2 (3 sites)" in page.summary(found)


def test_what_a_site_tells_of_its_comparison_stands_beside_its_figures_and_not_among_them(
    found: dict[str, Any], folder: Path
) -> None:
    (ge,) = found["arms"]
    assert (ge["site"], ge["cases"], ge["version"]) == ("ge", 16, 2)
    assert {arm: figures["auc"] for arm, figures in ge["figures"].items()} == {"probe": 0.5, "dual": 0.875}
    assert list(ge["figures"]) == ["probe", "dual"], "in the order in which people read them"
    assert {one["version"] for site in found["sites"] for one in site["evaluations"]} == {1, 2}
    assert "<td>0.500 / 0.625</td>" in page.page(found).replace(' class="text"', "")
    printed = run("--store", folder / "fed.db", "--no-verify").output
    assert "0.500 / 0.625" in printed
    assert "0.875 / 0.625" in printed


def test_rounds_have_their_weights_and_diagnostics(found: dict[str, Any]) -> None:
    first = found["rounds_so_far"][0]
    assert first["weights"] == pytest.approx({"canon": 50 / 400, "ge": 77 / 400, "siemens": 273 / 400})
    assert set(first["update_norms"]) == set(closed_rounds.PATIENTS)
    assert first["cosine_least"] <= first["cosine_median"]
    assert [one["phase"] for one in found["rounds_so_far"]] == ["closed", "closed", "open"]


def test_bytes_are_those_of_the_updates(found: dict[str, Any]) -> None:
    size = found["contract"]["update_bytes"]
    assert found["communication"]["updates_bytes"] == 6 * size
    assert {site["updates_bytes"] for site in found["sites"]} == {2 * size}


def test_rounds_are_recomputed_and_the_journal_is_checked(found: dict[str, Any]) -> None:
    assert found["verified"]["closed"] == 2
    assert found["verified"]["ok"]
    assert "2 of 2 closed rounds recompute from the stored updates to the same bytes." in page.summary(found)
    steered = found["audit"]["steered"]
    assert [one["event"] for one in steered] == ["site_evicted"]
    assert "canon" in steered[0]["words"]


def test_what_does_not_agree_is_told_and_is_exit_code_1(tmp_path: Path) -> None:
    made = closed_rounds.make(tmp_path)
    closed_rounds.run(made)
    made.write(
        lambda connection: connection.execute(
            schema.adapters.update().where(schema.adapters.c.version == 1).values(digest="ab" * 32)
        )
    )
    made.write(lambda connection: connection.execute(sa.delete(schema.audit).where(schema.audit.c.number == 1)))
    made.close()
    shown = run("--store", tmp_path / "fed.db", "--html", tmp_path / "report.html")
    assert shown.exit_code == 1
    assert shown.stdout.count("DIFFERS") >= 2
    text = check_stands_alone((tmp_path / "report.html").read_text()).text
    assert "Something does not agree" in text
    assert "The audit journal DIFFERS" in text
    fast = json.loads(run("--store", tmp_path / "fed.db", "--no-verify", "--json").stdout)
    assert fast["verified"] is None


def test_the_page_stands_alone_and_shows_words_from_outside_as_text(found: dict[str, Any]) -> None:
    shown = page.page(found)
    assert "2027-01-15\u00a008:00\u00a0UTC" in shown
    text = check_stands_alone(shown).text
    assert "left <the> study" in text
    for site in closed_rounds.PATIENTS:
        assert site in text
    for said in (*found["contract"]["words"], *found["security"], found["contract"]["sha256"], found["digest"]):
        assert said in text
    assert "None" not in text
    assert "nan" not in shown


def test_a_federation_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    closed_rounds.make(tmp_path).close()
    shown = run("--store", tmp_path / "fed.db", "--html", tmp_path / "report.html")
    assert shown.exit_code == 0, shown.output
    assert "0 of 3 sites with 0 training patients made version 0" in shown.stdout.replace("\n", " ")
    assert "No figures were reported" in check_stands_alone((tmp_path / "report.html").read_text()).text


def test_the_command_is_short_and_its_json_has_everything(folder: Path, found: dict[str, Any]) -> None:
    shown = run("--store", folder / "fed.db")
    assert shown.exit_code == 0, shown.output
    assert len(shown.stdout.splitlines()) < 30
    value = json.loads(run("--store", folder / "fed.db", "--json").stdout)
    assert value | {"made_at": NOW} == json.loads(json.dumps(found))


def test_who_was_left_out_is_grouped_by_reason_and_the_undrawn_are_counted() -> None:
    reasons = {1: "not invited", 2: "joined, no update in time", 3: "not invited", 5: "joined, no update in time"}
    assert page.left_out(reasons) == "2 not invited; 2, 5: joined, no update in time"
    assert page.left_out({}) == "-"


# --- words ------------------------------------------------------------------------------------------------------------


def contract(recipe: Recipe = Recipe(), quorum: int = 3) -> Contract:
    adapter = adapters.adapter()
    policy = RoundPolicy(rounds=4, invited=5, quorum=quorum)
    return Contract(
        federation="demo", adapter_digest=adapter.digest, manifest=adapter.manifest, recipe=recipe, policy=policy
    )


@pytest.mark.parametrize("name", ["med-duallora", "ffa-lora", "rolora"])
def test_a_contract_is_said_in_sentences(name: str) -> None:
    said = words.contract(contract(Recipe(name=name)))
    assert all(sentence.endswith(".") for sentence in said)
    assert any("closes with at least 3 updates, and waits 60 minutes" in sentence for sentence in said)
    assert any("its share of the training patients" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("recipe", "quorum", "expected"),
    [
        (Recipe(), 3, "No differential privacy"),
        (Recipe(**methods.PRIVATE), 3, "before epsilon 4 at delta 1e-05"),
        (Recipe(norm_gate=3.0), 5, "over 3 times the round's median size are quarantined"),
        (Recipe(), 2, "each of the two sites can read the other's"),
        (Recipe(robust="krum", attackers=1), 5, "A result may be made of 1 update"),
    ],
)
def test_what_protects_and_what_does_not_is_said(recipe: Recipe, quorum: int, expected: str) -> None:
    heard = [SiteState(name="ge", last_seen=NOW)]
    assert any(expected in sentence for sentence in words.security(contract(recipe, quorum), heard, None))


def test_a_claimed_name_is_not_called_authenticated() -> None:
    sites = [SiteState(name="ge", last_seen=NOW), SiteState(name="canon", last_seen=NOW, authenticated=False)]
    assert words.security(contract(), sites, None)[0].startswith("NOT authenticated: canon claimed")
    sites = [replace(site, authenticated=True) for site in sites]
    assert words.security(contract(), sites, None)[0].startswith("Mutual TLS: each of the 2 sites")
    assert "No site" in words.security(contract(), [SiteState(name="ge")], None)[0]
