"""The exported folder, file by file. That the real library loads it with the same logits is shown in tests/integration."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from shared import peft
from shared.adapter import AdapterMetadata

METADATA = AdapterMetadata(
    base_model_sha256="ab" * 32,
    rank=2,
    alpha=4.0,
    target_modules=("q",),
    blocks=(1,),
    head_policy="global+local-bias",
    frames="stacked",
    task="disease",
    class_names=("normal", "disease"),
)
Q = "base_model.model.encoder.blocks.1.attn.q"
HEAD = "base_model.model.pred_head_dict.cls"
TENSORS = {
    f"{Q}.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    f"{Q}.lora_B.weight": np.arange(8, dtype=np.float32).reshape(4, 2),
    f"{HEAD}.weight": np.ones((2, 4), np.float32),
}


def test_the_folder_names_modules_rank_and_base(tmp_path: Path) -> None:
    peft.write_folder(tmp_path / "out", TENSORS, METADATA, rank=2, alpha=4.0)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"]) == (2, 4.0)
    assert config["target_modules"] == ["encoder.blocks.1.attn.q"]
    assert config["modules_to_save"] == ["pred_head_dict.cls"]
    assert config["base_model_name_or_path"] == "sha256:" + "ab" * 32


def test_tensors_are_written_as_they_are_and_a_head_without_bias_gets_zeros(tmp_path: Path) -> None:
    turned = {name: np.asfortranarray(array) for name, array in TENSORS.items()}
    peft.write_folder(tmp_path, turned, METADATA, rank=2, alpha=4.0)
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert written.keys() == {*TENSORS, f"{HEAD}.bias"}
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(written[name], array)
    np.testing.assert_array_equal(written[f"{HEAD}.bias"], np.zeros(2, np.float32))
    with safe_open(tmp_path / "adapter_model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_bias_that_is_there_stays(tmp_path: Path) -> None:
    bias = np.array([0.5, -0.5], np.float32)
    peft.write_folder(tmp_path, {**TENSORS, f"{HEAD}.bias": bias}, METADATA, rank=2, alpha=4.0)
    np.testing.assert_array_equal(load_file(tmp_path / "adapter_model.safetensors")[f"{HEAD}.bias"], bias)


def test_without_a_head_no_module_is_saved_whole(tmp_path: Path) -> None:
    factors = {name: array for name, array in TENSORS.items() if HEAD not in name}
    peft.write_folder(tmp_path, factors, METADATA, rank=2, alpha=4.0)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None
