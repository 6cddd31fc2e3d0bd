"""What the benchmarks of communication print, judge and write, and the numbers their sites draw."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import output
from experiments.communication import federation, plain, site
from experiments.communication.federation import SIZES, Size
from experiments.communication.idle import Idle
from experiments.communication.orchestration import Measured
from experiments.output import Target
from shared.protocol import CHUNK_BYTES


def test_a_table_aligns_the_first_column_left_and_numbers_right() -> None:
    lines = output.table(["what", "ms", "n"], [["short", 1.23456, 7], ["rather long", 12345.6, 1234567]])
    assert lines == [
        "what             ms          n",
        "------------------------------",
        "short         1.235          7",
        "rather long  12,346  1,234,567",
    ]


@pytest.mark.parametrize(("found", "least", "holds"), [(1.9, False, True), (2.1, False, False), (2.1, True, True)])
def test_a_target_says_what_was_found_and_whether_it_holds(found: float, least: bool, holds: bool) -> None:
    target = Target("a round", found, 2.0, "s", least)
    assert target.holds == holds
    word = "least" if least else "most"
    assert target.line() == f"{'holds ' if holds else 'MISSED'}  a round: {found} s, at {word} 2 s"


def test_nothing_measured_holds_no_target() -> None:
    assert math.isnan(output.median([]))
    assert not Target("a round", output.median([]), 2.0).holds
    assert not Target("a round", output.median([]), 2.0, least=True).holds


def test_what_is_shown_is_also_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [Target("this", 1.0, 2.0), Target("that", 3.0, 2.0)]
    assert not output.show("bench", ["a table"], targets, {"figure": [1, 2]}, tmp_path / "new")
    shown = capsys.readouterr().out
    assert shown.startswith("a table\n\nholds   this")
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert written["figure"] == [1, 2]
    assert [target["holds"] for target in written["targets"]] == [True, False]


def test_a_spread_has_median_and_quartiles() -> None:
    found = output.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found["median"], found["least"], found["most"], found["count"]) == (3.0, 1.0, 5.0, 5)
    assert found["quartiles"] == [1.5, 4.5]
    assert output.spread([2.0])["quartiles"] == [2.0, 2.0]


def measured(sites: int, size: Size, ours: float, exchange: float) -> Measured:
    return Measured(sites, size, 4, [[ours, ours], [ours, 9.0]], [[exchange, exchange], [exchange, 9.0]])


def test_rounds_are_judged_in_plain_exchanges_and_in_seconds_where_a_limit_is_known() -> None:
    small, large = SIZES[0], SIZES[-1]
    known = measured(4, small, 0.12, 0.05)
    assert known.ratio == pytest.approx(2.4)
    assert [(target.limit, target.holds) for target in known.targets()] == [(2.0, False), (0.1, False)]
    assert [target.holds for target in measured(8, large, 0.12, 0.07).targets()] == [True]
    assert known.facts()["round_s"]["median"] == 0.12
    assert known.row()[:2] == ["0.1 MB", 4]


def test_idle_bytes_are_of_both_directions() -> None:
    assert Idle(60.0, [(100, 200), (100, 200)], 1).bytes_per_s == 10.0


@pytest.mark.parametrize(("size", "payload"), list(zip(SIZES, (107_520, 1_204_224, 6_193_152), strict=True)))
def test_the_adapters_have_the_sizes_they_are_named_for(size: Size, payload: int) -> None:
    adapter = federation.make_adapter(size)
    assert adapter.manifest.layout.size == payload
    assert round(payload / 1e6, 1) == pytest.approx(float(size.name), rel=0.1)


def test_changes_are_gaussian_with_a_scale_for_each_rank_component() -> None:
    layout = federation.make_adapter(Size("test", 1, 8)).manifest.layout
    changes = site.random_changes(layout, 1, 2)
    again, other = site.random_changes(layout, 1, 2), site.random_changes(layout, 1, 3)
    a, b = (changes[f"base_model.model.encoder.blocks.0.attn.q.lora_{factor}.weight"] for factor in "AB")
    assert (a.shape, b.shape) == ((8, 768), (768, 8))
    for found in (a.std(axis=1), b.std(axis=0)):
        np.testing.assert_allclose(found, site.LARGEST * site.scales(8), rtol=0.15)
    assert all(np.array_equal(changes[name], again[name]) for name in changes)
    assert not any(np.array_equal(changes[name], other[name]) for name in changes)
    assert site.scales(8)[-1] == pytest.approx(1 / site.SPREAD)


def test_the_plain_exchange_cuts_payloads_as_the_protocol_does() -> None:
    payload = bytes(range(256)) * 8192 + b"x"
    pieces = plain.parts(payload)
    assert [len(piece) for piece in pieces] == [CHUNK_BYTES, CHUNK_BYTES, 1]
    assert b"".join(pieces) == payload
