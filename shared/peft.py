"""Export to Hugging Face PEFT: a folder that `peft.PeftModel.from_pretrained` loads with the same logits.

Format: `adapter_config.json` + `adapter_model.safetensors` (https://huggingface.co/docs/peft, checkpoint format).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from safetensors.numpy import save_file

from shared.adapter import AdapterMetadata
from shared.canonical import write_atomically
from shared.errors import InputError
from shared.recipe import RESIDUAL, factor_of, is_residual

PREFIX = "base_model.model."
HEADER: Mapping[str, str] = MappingProxyType({"format": "pt"})
HEADS = ("pred_head_dict.sax", "pred_head_dict.cls")


def write_folder(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: AdapterMetadata,
    rank: int,
    alpha: float,
    header: Mapping[str, str] = HEADER,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors for CineMA's own classifier, frames stacked.

    `tensors` have PEFT names; heads without a bias get zeros, since PEFT saves whole modules. A residual becomes part of its
    module's LoRA. `header`: metadata of the safetensors file. Raises InputError as `check`.
    """
    check(tensors, metadata)
    merged, rank, alpha = with_residual(tensors, rank, alpha)
    complete = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in merged.items()}
    for head in HEADS:
        weight = complete.get(f"{PREFIX}{head}.weight")
        if weight is not None:
            complete.setdefault(f"{PREFIX}{head}.bias", np.zeros(weight.shape[0], np.float32))
    modules = sorted(
        n.removeprefix(PREFIX).removesuffix(".lora_A.weight") for n in complete if n.endswith(".lora_A.weight")
    )
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": f"sha256:{metadata.base_model_sha256}",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": modules,
        "modules_to_save": sorted(h for h in HEADS if f"{PREFIX}{h}.weight" in complete) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(complete, folder / "adapter_model.safetensors", metadata=dict(header))
    write_atomically(folder / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())


def check(tensors: Mapping[str, np.ndarray], metadata: AdapterMetadata) -> None:
    """Raise InputError for what no PEFT folder can hold."""
    if metadata.dense is not None:
        raise InputError(
            "this federation trains weights of the base model itself, and a PEFT adapter holds low-rank parts only; load the "
            "adapter file of the version, or use `site-agent predict`"
        )
    if not any(factor_of(name) for name in tensors):
        raise InputError(
            "this adapter has rank 0: a head without low-rank parts, of which PEFT makes no adapter; load the adapter file of the "
            "version, or use `site-agent predict`"
        )
    if metadata.frames != "stacked":
        raise InputError(
            "this federation sees frames siamese: its heads take two frames' features, which CineMA's model does not have; "
            "use `site-agent predict`, or train with frames stacked"
        )


def with_residual(
    tensors: Mapping[str, np.ndarray], rank: int, alpha: float
) -> tuple[dict[str, np.ndarray], int, float]:
    """Return tensors, rank and alpha of the same adapter without a residual: a LoRA of rank r + rho of the same scale alpha / r.

    B A + B_R A_R is the product of [B, B_R] and [A; A_R].
    """
    merged = {name: array for name, array in tensors.items() if not is_residual(name)}
    widest = rank
    for name in [name for name in merged if factor_of(name)]:
        residual = tensors.get(name.replace(".lora_", RESIDUAL))
        if residual is not None:
            axis = 0 if factor_of(name) == "A" else 1
            merged[name] = np.concatenate([merged[name], residual], axis=axis)
            widest = merged[name].shape[axis]
    return merged, widest, alpha * widest / rank if widest != rank else alpha
