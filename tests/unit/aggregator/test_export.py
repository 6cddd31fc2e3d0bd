"""An exported version is what PEFT's file format says; that PEFT computes the same logits is tested with the model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aggregator import export
from shared.adapter import Adapter, AdapterManifest
from shared.errors import InputError
from shared.layout import Layout
from tests.support import adapters


def test_an_export_holds_the_tensors_and_the_configuration(tmp_path: Path) -> None:
    adapter = adapters.adapter()
    export.write(adapter, tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for name, array in adapter.tensors.items():
        np.testing.assert_array_equal(tensors[name], array)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4.0)
    assert "encoder.blocks.1.attn.kv" in config["target_modules"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        export.write(adapters.adapter(), tmp_path / "file" / "peft")


def test_a_version_with_a_residual_is_one_lora_that_computes_the_same(tmp_path: Path) -> None:
    """scale * (B A + B_R A_R) of every module, from the written file alone."""
    rng = np.random.default_rng(1)
    adapter = adapters.adapter(residual=3)
    tensors = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in adapter.tensors.items()}
    export.write(adapter.successor(tensors, 1), tmp_path / "peft")
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 2 + 3
    assert config["lora_alpha"] / config["r"] == pytest.approx(4.0 / 2)
    assert not [name for name in written if "residual" in name]
    for module in config["target_modules"]:
        name = f"{adapters.PREFIX}{module}"
        a, b = (written[f"{name}.lora_{factor}.weight"] for factor in "AB")
        assert (a.shape[0], b.shape[1]) == (5, 5)
        parts = [
            tensors[f"{name}.lora_{of}B.weight"] @ tensors[f"{name}.lora_{of}A.weight"] for of in ("", "residual_")
        ]
        np.testing.assert_allclose(b @ a, sum(parts), atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "rank", "message"),
    [("head-only", 0, "rank 0.*site-agent predict"), ("full", 0, "base model itself.*site-agent predict")],
)
def test_what_is_no_lora_is_refused_by_name(tmp_path: Path, recipe: str, rank: int, message: str) -> None:
    adapter, _ = adapters.fitting(recipe)
    if recipe == "head-only":
        heads = {name: array for name, array in adapter.tensors.items() if ".lora_" not in name}
        metadata = replace(adapter.manifest.metadata, rank=rank)
        adapter = Adapter(AdapterManifest(Layout.of(heads), metadata), 0, "", heads)
    with pytest.raises(InputError, match=message):
        export.write(adapter, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
