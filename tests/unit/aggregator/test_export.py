"""An exported version is what PEFT's file format says; that PEFT computes the same logits is tested with the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from aggregator import export
from shared.errors import InputError
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
