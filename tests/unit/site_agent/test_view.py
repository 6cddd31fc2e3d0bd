"""The first screen says what leaves and what stays, by recipe, codec and head policy."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from shared.contract import Contract, RoundPolicy
from shared.recipe import INSTALLED, Recipe, make
from site_agent import view
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.egress import Update, UpdateFacts
from tests.support import adapters

FIRST = adapters.adapter()
SIZES = {"A": 4 * 2 * 6, "B": 4 * 5 * 2, "head": 2 * 6}
"""Numbers: two modules in two blocks, rank 2, 6 inputs, 5 outputs; one head of two classes."""


def contract(head: str = "global+local-bias", **parameters) -> Contract:
    metadata = replace(FIRST.manifest.metadata, head_policy=head)
    return Contract(
        federation="hearts",
        adapter_digest=FIRST.digest,
        manifest=replace(FIRST.manifest, metadata=metadata),
        recipe=Recipe(**parameters),
        policy=RoundPolicy(),
    )


@pytest.mark.parametrize(("name", "factors"), [("med-duallora", "AB"), ("ffa-lora", "B"), ("fedsa-lora", "A")])
def test_what_leaves_is_counted_by_what_the_recipe_shares(name, factors):
    numbers = sum(SIZES[factor] for factor in factors) + SIZES["head"]
    named = ", ".join([*factors, "head weight"])
    assert view.leaves(contract(name=name)) == (
        f"change of {numbers} numbers of the global part ({named}), {4 * numbers / 1000:.1f} kB"
    )


def test_where_rounds_take_turns_both_are_said():
    b, a = (SIZES[factor] + SIZES["head"] for factor in "BA")
    assert view.leaves(contract(name="rolora")) == (
        f"change of {b} numbers of the global part (B, head weight), {4 * b / 1000:.1f} kB or "
        f"change of {a} numbers of the global part (A, head weight), {4 * a / 1000:.1f} kB"
    )


def test_a_codec_without_a_fixed_size_is_given_its_largest():
    assert view.leaves(contract(codec="bf16")).endswith("), 0.2 kB")
    assert "), at most 0." in view.leaves(contract(codec="int8+zstd"))


@pytest.mark.parametrize(
    ("parameters", "stays"),
    [
        ({}, ["images", "labels", "frozen activations", "local adapter", "head bias"]),
        ({"head": "local"}, ["images", "labels", "frozen activations", "local adapter", "head"]),
        ({"head": "global", "rank_local": 0}, ["images", "labels", "frozen activations"]),
        (
            {"name": "fedsa-lora"},
            ["images", "labels", "frozen activations", "local adapter", "the global part's B", "head bias"],
        ),
        ({"name": "rolora"}, ["images", "labels", "frozen activations", "local adapter", "head bias"]),
        (
            {"head": "global+local"},
            ["images", "labels", "frozen activations", "local adapter", "a head of its own"],
        ),
        (
            {"gate": True, "head": "global"},
            ["images", "labels", "frozen activations", "local adapter", "weights of the parts"],
        ),
        (
            {"name": "fdlora"},
            ["images", "labels", "frozen activations", "local adapter", "weights of the parts", "head bias"],
        ),
    ],
)
def test_what_stays_is_named(parameters, stays):
    assert view.stays(contract(**parameters)) == stays


@pytest.mark.parametrize("name", INSTALLED)
def test_of_every_method_it_can_be_said_what_leaves_and_what_stays(name):
    received, parameters = adapters.fitting(name)
    made = replace(
        contract(), adapter_digest=received.digest, manifest=received.manifest, recipe=make(name, parameters)
    )
    layout = made.recipe.upload_layout(received.manifest, 1, 3)
    assert view.leaves(made).startswith(f"change of {layout.parameters:,} numbers of the global part (")
    assert ("weights of the base model" in view.leaves(made)) == (name == "full")
    assert ("local adapter" in view.stays(made)) == (made.recipe.rank_local > 0)
    assert "images" in view.stays(made)


def test_a_shared_head_leaves_whole_beside_a_private_one():
    assert "(A, B, head), " in view.leaves(contract("global+local"))


def held_update() -> Update:
    payload = b"x" * 2100
    facts = UpdateFacts(round=2, base_version=1, training_patients=9, metrics={})
    return Update(payload=payload, layout=FIRST.manifest.layout, facts=facts)


def report(**arms: float) -> dict[str, Any]:
    def figures(auc: float) -> dict[str, Any]:
        accuracy = {"balanced_accuracy": 0.75}
        return {"test": {"auc": auc, "at_half": accuracy, "at_validation": accuracy, "n": 20}}

    return {"arms": {arm: figures(arms.get(arm, 0.5)) for arm in ("probe", "alone", "global", "dual")}}


def test_a_service_whose_log_is_a_file_says_in_plain_lines_who_it_is_and_what_a_person_must_see(
    tmp_path, monkeypatch, capsys
):
    """No colour, no bar, no line twice."""
    shown = view.for_stream(log_is_a_file=True)
    config = SiteConfig(aggregator="127.0.0.1:9", cohort=tmp_path, weights=tmp_path, plain_site="ge")
    shown.joined(Joined("ge", contract(), 31, 0), config)
    for _ in range(3):
        shown.task(Task("WAIT", 2, 1, "", 0.0, ""))
    shown.step(3, 10)
    shown.cached(3, 10)
    shown.warned("this site does not take part: rounds")
    shown.held(held_update(), tmp_path)
    shown.uploaded(2, 2100)
    shown.finished(report(dual=0.75), tmp_path, stays=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ge in federation hearts at 127.0.0.1:9 (PLAIN TEXT, loopback only)"
    assert lines[2] == "  never      images, labels, frozen activations, local adapter, head bias"
    assert lines[3] == "  until      8 rounds are closed; 31 patients train here"
    assert lines[5:7] == [
        "round 2: waiting for the other sites",
        "warning: this site does not take part: rounds",
    ]
    assert lines[7].startswith("round 2: an update of 2.1 kB waits for you, digest ")
    assert lines[9].startswith(f"  let it go  site-agent release --state {tmp_path} ")
    assert lines[10] == "round 2: 2.1 kB sent and accepted"
    assert lines[14].startswith("  dual    AUC 0.750 ")
    assert lines[15].endswith(f"site-agent report --state {tmp_path}")
    assert "Ctrl-C" in lines[16]
    assert len(lines) == 17


def test_where_standard_error_is_the_log_nothing_else_is_written_to_it(capsys):
    shown = view.for_stream(log_is_a_file=False)
    shown.warned("something")
    shown.finished(report(), FIRST, stays=False)
    assert capsys.readouterr().err == ""


def test_a_reader_that_is_gone_stops_nothing():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    view.Lines(Gone()).warned("something")


def test_a_person_sees_how_far_the_frozen_activations_are_while_the_agent_waits():
    console = Console(record=True, force_terminal=True, width=100, file=io.StringIO())
    terminal = view.Terminal(console)
    terminal.task(Task("WAIT", 3, 2, "", 0.0, ""))
    shown = []
    for done in (12, 40):
        terminal.cached(done, 40)
        terminal._bar.refresh()
        shown.append(console.export_text())
    terminal.close()
    assert "round 3: waiting for the other sites; frozen activations 12 of 40" in shown[0]
    assert "frozen activations" not in shown[1].splitlines()[-1]
