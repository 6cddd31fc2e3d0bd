"""The benchmarks that count and time what passes on a line, at a tiny size: they run, add up, and leave nothing behind."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from experiments.communication import bandwidth, base_adapter, namespaces, wire

pytestmark = pytest.mark.integration


def test_the_adapter_is_that_of_the_claim() -> None:
    """86,016 low-rank numbers: per block q 8 x (768 + 768), kv 8 x (768 + 1536), proj 8 x (768 + 768); a head of 2 x 1,536."""
    layout = base_adapter.make().manifest.layout
    lora = sum(spec.shape[0] * spec.shape[1] for spec in layout.tensors if "lora" in spec.name)
    assert lora == 2 * 8 * ((768 + 768) + (768 + 1536) + (768 + 768)) == 86_016
    assert layout.parameters == lora + 3_072


async def test_a_round_on_the_wire_is_its_payload_and_little_more() -> None:
    found = await wire.measure(base_adapter.make(), "ffa-lora", "int4", rounds=1)
    assert found.payload_up < found.wire_up < 1.01 * found.payload_up + 2000
    assert found.payload_down < found.wire_down < 1.01 * found.payload_down + 2000
    assert 25_000 < found.payload_up < 28_000  # 52,224 numbers of half a byte, and scales


def test_wire_says_which_target_was_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "WARM_UP", 1)
        patch.setattr(wire, "TIMES_LESS", {("rolora", "topk"): 1e9})
        assert not wire.run(1, ["topk"], ["rolora"], tmp_path)
    assert "MISSED  rolora topk, up, below full fine-tuning" in capsys.readouterr().out
    facts = json.loads((tmp_path / "wire.json").read_text())
    assert [row["frames"] for row in facts["rows"]] == ["stacked", "siamese"]
    assert [target["holds"] for target in facts["targets"]] == [True, False]


def namespaces_there() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


async def test_slow_lines_are_slow_and_gone_afterwards() -> None:
    if os.geteuid() != 0:
        with pytest.raises(namespaces.InputError, match="made by root only"):
            namespaces.check()
        return
    before = namespaces_there()
    found = await bandwidth.measure("int8", rounds=1)
    assert namespaces_there() == before
    assert len(found.seconds) == len(bandwidth.SITES)
    carrying = found.payload * 8 / bandwidth.BITS_PER_S
    assert (
        min(found.seconds) > carrying + 2 * bandwidth.ROUND_TRIP_S
    )  # a download and an upload, each a round trip at least


async def test_without_the_programs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(namespaces, "SYSTEM_FOLDERS", "/nonexistent")
    with pytest.raises(namespaces.InputError, match="ip is not there: apt install iproute2"):
        namespaces.check()
